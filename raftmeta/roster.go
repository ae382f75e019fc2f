package raftmeta

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Roster is the table of admitted nodes, kept current from the feed: on servers
// of all nodes, on agents of their region's nodes and all servers. It is safe for
// concurrent use.
type Roster struct {
	mu    sync.Mutex
	nodes map[meta.NodeID]meta.Node
	// health is how regions fare, without those of which nothing was said.
	health map[meta.RegionName]meta.RegionHealth
	index  uint64
	tell   []func(RosterChange)
	ready  chan struct{}
}

// RosterChange is a node that came, changed, or went (Removed; then only ID is
// sure to be set).
type RosterChange struct {
	Node    meta.Node
	Removed bool
}

// NewRoster returns a roster of the nodes known so far, none at first start.
func NewRoster(known []meta.Node) *Roster {
	r := &Roster{
		nodes: make(map[meta.NodeID]meta.Node, len(known)), health: make(map[meta.RegionName]meta.RegionHealth), ready: make(chan struct{}),
	}
	for _, n := range known {
		r.nodes[n.ID] = n
	}
	return r
}

// OnChange has f called for each change, in order, from the goroutine of Follow,
// and right away for each node known already. f must not block, nor call r.
func (r *Roster) OnChange(f func(RosterChange)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.sorted() {
		f(RosterChange{Node: n})
	}
	r.tell = append(r.tell, f)
}

// Get returns a node.
func (r *Roster) Get(id meta.NodeID) (meta.Node, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, ok := r.nodes[id]
	return n, ok
}

// Nodes returns all nodes, sorted by id.
func (r *Roster) Nodes() []meta.Node {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sorted()
}

func (r *Roster) sorted() []meta.Node {
	return slices.SortedFunc(maps.Values(r.nodes), func(a, b meta.Node) int {
		return strings.Compare(string(a.ID), string(b.ID))
	})
}

// Servers returns the servers of a region, or of all with "", sorted by id.
func (r *Roster) Servers(region meta.RegionName) []meta.Node {
	return slices.DeleteFunc(r.Nodes(), func(n meta.Node) bool {
		return n.Role != meta.RoleServer || (region != "" && n.Region != region)
	})
}

// Serves says that nothing is recorded of a server that keeps it from serving: it is
// heard, and has its blobs. Without news it is so.
func (r *Roster) Serves(id meta.NodeID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, ok := r.nodes[id]
	return !ok || r.health[n.Region].Server(id).Serves()
}

// Gateways returns the base URLs of all servers in the order in which self asks
// them: its region's first, each group in an order of its own for every self, so
// that agents spread over servers and stay with one.
func (r *Roster) Gateways(self meta.NodeID, region meta.RegionName) []string {
	type ranked struct {
		near bool
		rank digest.CID
		url  string
	}
	var servers []ranked
	for _, n := range r.Servers("") {
		if n.Gateway == "" {
			continue // restored and not started yet
		}
		servers = append(servers, ranked{
			near: n.Region == region,
			rank: digest.Sum([]byte(string(self) + " " + string(n.ID))),
			url:  "https://" + n.Gateway,
		})
	}
	slices.SortFunc(servers, func(a, b ranked) int {
		if a.near != b.near {
			if a.near {
				return -1
			}
			return 1
		}
		return bytes.Compare(a.rank[:], b.rank[:])
	})
	urls := make([]string, len(servers))
	for i, s := range servers {
		urls[i] = s.url
	}
	return urls
}

// Ready is closed once the roster is current for the first time.
func (r *Roster) Ready() <-chan struct{} { return r.ready }

// apply takes over one change. Changes at or below the listing's index were in it.
func (r *Roster) apply(c feed.Change) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.Index <= r.index {
		return
	}
	switch {
	case c.Kind == feed.KindHealth:
		if delete(r.health, c.Region); c.Health != nil {
			r.health[c.Region] = *c.Health
		}
	case c.Kind != feed.KindNode:
	case c.Deleted:
		r.remove(c.Node)
	case c.Record != nil && c.Record.Revision > r.nodes[c.Node].Revision:
		r.put(*c.Record)
	}
}

func (r *Roster) put(n meta.Node) {
	if old, ok := r.nodes[n.ID]; ok && old.Revision == n.Revision {
		return
	}
	r.nodes[n.ID] = n
	for _, f := range r.tell {
		f(RosterChange{Node: n})
	}
}

func (r *Roster) remove(id meta.NodeID) {
	n, ok := r.nodes[id]
	if !ok {
		return
	}
	delete(r.nodes, id)
	for _, f := range r.tell {
		f(RosterChange{Node: n, Removed: true})
	}
}

// replace makes the roster exactly nodes, as listed at index.
func (r *Roster) replace(nodes []meta.Node, index uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	listed := make(map[meta.NodeID]bool, len(nodes))
	for _, n := range nodes {
		listed[n.ID] = true
		r.put(n)
	}
	for _, n := range r.sorted() {
		if !listed[n.ID] {
			r.remove(n.ID)
		}
	}
	r.index = index
	select {
	case <-r.ready:
	default:
		close(r.ready)
	}
}

// list asks for the roster: of all nodes, or with a region, as agents do, for its nodes
// and all servers.
func (r *Roster) list(ctx context.Context, m Asker, region meta.RegionName) error {
	// The pages may be of different indexes; following from the oldest repeats what
	// later pages had, which is harmless.
	var nodes []meta.Node
	var oldest uint64
	for _, q := range rosterQuestions(region) {
		for {
			page, asOf, err := Ask(ctx, m, meta.Bounded, q)
			if err != nil {
				return fmt.Errorf("list the roster: %w", err)
			}
			if asOf.Stale {
				return fmt.Errorf("list the roster: %w", &meta.UnavailableError{Reason: "no_server"})
			}
			if oldest == 0 || asOf.Index < oldest {
				oldest = asOf.Index
			}
			if len(page) == 0 {
				break
			}
			nodes = append(nodes, page...)
			q.Page.After = string(page[len(page)-1].ID)
		}
	}
	// A restored cluster's only server tells its address when it has started. An agent that
	// forgot the addresses it knows for a list without any would find no server again.
	if region != "" && !slices.ContainsFunc(nodes, func(n meta.Node) bool { return n.Role == meta.RoleServer && n.Gateway != "" }) {
		return fmt.Errorf("list the roster: no server has an address yet: %w", &meta.UnavailableError{Reason: "no_server"})
	}
	health, asOf, err := Ask(ctx, m, meta.Bounded, state.RegionHealth{})
	if err != nil && !errors.Is(err, meta.ErrInvalid) { // which is a server's that does not know the question
		return fmt.Errorf("list the health of regions: %w", err)
	}
	if err == nil {
		oldest = min(oldest, asOf.Index)
	}
	r.replace(nodes, oldest)
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.health)
	for _, h := range health {
		r.health[h.Region] = h
	}
	return nil
}

func rosterQuestions(region meta.RegionName) []state.ListNodes {
	if region == "" {
		return []state.ListNodes{{}}
	}
	return []state.ListNodes{{Role: meta.RoleServer}, {Region: region}}
}

// Follow keeps the roster current until ctx ends or the feed fails. changes are
// those of a Watcher after an index; region "" is all.
//
// Errors: of the listing; of changes, but for feed.ErrCompacted, after which it
// lists anew.
func (r *Roster) Follow(ctx context.Context, m Asker, region meta.RegionName, changes func(ctx context.Context, after uint64) iter.Seq2[feed.Change, error]) error {
	for {
		if err := r.list(ctx, m, region); err != nil {
			return err
		}
		err := r.follow(changes(ctx, r.index))
		if !errors.Is(err, feed.ErrCompacted) {
			return err
		}
	}
}

func (r *Roster) follow(changes iter.Seq2[feed.Change, error]) error {
	for c, err := range changes {
		if err != nil {
			return err
		}
		r.apply(c)
	}
	return nil
}
