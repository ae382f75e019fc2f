package dht

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// The registrar's half about peers that send wrong chunks. Who receives one keeps
// its sender away by itself, at once, and tells the server; reports.go decides.

const (
	// maxJudged bounds the judgements on their way to the region's other servers.
	maxJudged = 64
	tellTime  = 2 * time.Second
	// maxListed bounds what Reported and Swarms return.
	maxListed = 256
)

var errKeptAway = errors.New("kept away for a while")

// accuse takes a report of node. It counts when node is a member of the root's
// swarm, and the accused an enrolled node that such a member may meet. A server of
// the region may also pass on its judgement.
func (r *Registrar) accuse(node meta.Node, req request) {
	now := time.Now()
	accused, ok := r.cfg.Roster.Node(req.Accused)
	ok = ok && (accused.Region == r.cfg.Self.Region || node.Role == meta.RoleServer)
	if ok && req.Judged && node.Role == meta.RoleServer && node.ID != r.cfg.Self.ID {
		r.judging.Lock()
		news := r.reports.shun(accused.ID, now)
		r.judging.Unlock()
		if news {
			r.shun(accused, node.ID)
		}
		return
	}
	if ok && node.ID != r.cfg.Self.ID { // this server's own swarm need not be announced to itself
		s := r.shard(req.Root)
		s.mu.Lock()
		_, ok = s.table.find(req.Root, node.ID, now)
		s.mu.Unlock()
	}
	v := ignored
	if ok && !req.Judged {
		r.judging.Lock()
		v = r.reports.take(node.ID, accused.ID, now)
		r.judging.Unlock()
	}
	r.metrics.reports.WithLabelValues(string(v)).Inc()
	log := r.log.Warn
	if v == repeated || v == ignored {
		log = r.log.Debug
	}
	log("a node reports a peer that sent a wrong chunk", "node", node.ID, "peer", req.Accused, "root", req.Root,
		"chunk", req.Chunk, "verdict", string(v))
	if v != shunning {
		return
	}
	r.shun(accused, "")
	select {
	case r.judged <- accused.ID:
	default: // the other servers hear reports of their own
	}
}

// shun has this server keep a peer away; by is the server that said so, "" for
// its own judgement.
func (r *Registrar) shun(accused meta.Node, by meta.NodeID) {
	r.log.Warn("a peer sent wrong chunks to two nodes, it is kept away: look at its memory, its disk, and who owns it",
		"peer", accused.ID, "role", string(accused.Role), "zone", accused.Zone, "for", ShunFor, "told_by", by)
	if r.cfg.Shunned != nil {
		r.cfg.Shunned(accused.ID, ShunFor)
	}
}

// tell passes this server's judgements on to the region's other servers, until ctx
// ends.
func (r *Registrar) tell(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case id := <-r.judged:
			for _, n := range r.cfg.Roster.Nodes(r.cfg.Self.Region, meta.RoleServer) {
				if n.ID == r.cfg.Self.ID || ctx.Err() != nil {
					continue
				}
				limited, cancel := context.WithTimeout(ctx, tellTime)
				_, err := r.caller.do(limited, n.ID, request{Root: digest.Sum([]byte(id)), Accused: id, Judged: true})
				cancel()
				if err != nil {
					r.log.Debug("a server was not told of a peer to keep away", "server", n.ID, "peer", id, "error", err)
				}
			}
		}
	}
}

func (r *Registrar) away(id meta.NodeID) bool {
	r.judging.Lock()
	defer r.judging.Unlock()
	return r.reports.shunned(id, time.Now())
}

func (r *Registrar) shunnedNow() int { return len(r.shunnedPeers(maxAccused)) }

// shunnedPeers returns those kept away now, the latest first.
func (r *Registrar) shunnedPeers(limit int) []meta.NodeID {
	r.judging.Lock()
	defer r.judging.Unlock()
	return r.reports.recent(time.Now(), limit)
}

// Reported lists the peers that nodes of the region reported within ShunFor, the
// latest first, at most 256.
func (r *Registrar) Reported() []ReportedPeer {
	r.judging.Lock()
	defer r.judging.Unlock()
	return r.reports.list(time.Now(), maxListed)
}

// copies counts the whole copies of root in the region besides that of but: of
// complete members, and of servers, which need not be members.
func (r *Registrar) copies(ctx context.Context, root digest.CID, but meta.NodeID) int {
	servers := map[meta.NodeID]bool{}
	if r.cfg.Held != nil && r.cfg.Held(ctx, root) {
		servers[r.cfg.Self.ID] = true
	}
	if r.cfg.Holders != nil {
		limited, cancel := context.WithTimeout(ctx, mapTime)
		holders, err := r.cfg.Holders.Holders(limited, root)
		cancel()
		if err != nil && !errors.Is(err, meta.ErrNotFound) {
			r.log.Debug("the metadata does not say who holds a blob", "root", root, "error", err)
		}
		for _, id := range holders {
			if n, ok := r.cfg.Roster.Node(id); ok && n.Role == meta.RoleServer && n.Region == r.cfg.Self.Region {
				servers[id] = true
			}
		}
	}
	skip := []meta.NodeID{but}
	for id := range servers {
		skip = append(skip, id)
	}
	s := r.shard(root)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(servers, but)
	return len(servers) + s.table.copies(root, skip...)
}

// SwarmView is one root's swarm as the registrar knows it: the members of its
// region that turn to this server.
type SwarmView struct {
	Root digest.CID `json:"root"`
	// Members are under lease, Complete those of them that have every chunk; Have
	// sums the chunks of all.
	Members  int    `json:"members"`
	Complete int    `json:"complete"`
	Have     uint64 `json:"have"`
}

// Swarms lists the swarms of this registrar, the largest first, at most 256.
func (r *Registrar) Swarms() []SwarmView {
	out := []SwarmView{}
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.Lock()
		for root, g := range s.table.roots {
			out = append(out, SwarmView{Root: root, Members: len(g.all), Complete: g.whole, Have: g.have})
		}
		s.mu.Unlock()
	}
	slices.SortFunc(out, func(a, b SwarmView) int {
		if a.Members != b.Members {
			return b.Members - a.Members
		}
		return slices.Compare(a.Root[:], b.Root[:])
	})
	return out[:min(len(out), maxListed)]
}
