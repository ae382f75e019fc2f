package dht

import (
	"cmp"
	"context"
	"math/bits"
	"slices"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

const (
	// standAfter is how long all servers of the region must have been silent before its
	// agents turn to another region, where standMost of them at a time fetch a blob.
	standAfter = 2 * time.Second
	standMost  = 2
	standTime  = 2 * time.Second // a server beyond answers within
	// aloneTime is what the silent servers of the region have to answer from then on.
	aloneTime = 300 * time.Millisecond
)

// alone reports whether all servers of the region have been silent for standAfter.
func (f *Finder) alone() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.silentSince.After(f.answered) && time.Since(f.silentSince) >= standAfter
}

// stand completes an introduction that was made without the region's own servers, once
// they have been silent for standAfter: this node becomes a guest of another region's
// server, which keeps the members of this region together and lets two of them fetch
// from itself. It reports whether a server beyond has answered.
func (f *Finder) stand(ctx context.Context, want Want, in *Introduction) bool {
	if !f.alone() {
		if !want.Complete {
			in.Again = standAfter // soon enough to stand in, if nobody comes back
		}
		return false
	}
	req := request{
		Root: want.Root, Have: uint64(max(0, want.Have)), Complete: want.Complete, Guest: true,
		HasMap: len(in.Map) > 0 || want.Have > 0 || want.Complete,
	}
	for _, n := range f.beyond(want.Root) {
		limited, cancel := context.WithTimeout(ctx, standTime)
		rep, err := f.caller.do(limited, n.ID, req)
		cancel()
		if err == nil && rep.Error != nil {
			err = rep.Error
		}
		if err != nil {
			f.log.Debug("a server of another region does not help out", "server", n.ID, "root", want.Root, "error", err)
			continue
		}
		learned := f.learn(want.Root, rep)
		in.Map, in.Inline, in.Grant, in.GrantExpires, in.Again = learned.Map, learned.Inline, learned.Grant, learned.GrantExpires, learned.Again
		for _, p := range learned.Peers {
			if !slices.ContainsFunc(in.Peers, func(known Peer) bool { return known.ID == p.ID }) {
				in.Peers = append(in.Peers, p)
			}
		}
		if at := slices.IndexFunc(rep.Peers, func(p referral) bool { return p.ID == n.ID }); at >= 0 {
			in.Peers = append(in.Peers, peerOf(n, rep.Peers[at].Complete))
			f.log.Info("no server of the region answers, this node fetches from another", "server", n.ID, "region", n.Region, "root", want.Root)
		}
		f.metrics.joins.WithLabelValues("beyond").Inc()
		return true
	}
	return false
}

// beyond orders the servers of other regions: those that have their blobs, of the
// nearest region, by rank. Distances count by powers of two, so that the agents of a
// region, which measure each for itself, turn to the same server.
func (f *Finder) beyond(root digest.CID) []meta.Node {
	servers := slices.DeleteFunc(rank(root, f.cfg.Roster.Nodes("", meta.RoleServer)), func(n meta.Node) bool { return n.Region == f.cfg.Self.Region })
	away := map[meta.RegionName]int{}
	for _, n := range servers {
		away[n.Region] = 64
		if f.cfg.Distance != nil {
			if d := f.cfg.Distance(n.Region); d > 0 {
				away[n.Region] = bits.Len64(uint64(d / (2 * time.Millisecond)))
			}
		}
	}
	lost := func(n meta.Node) int { return btoi(f.cfg.Serves != nil && !f.cfg.Serves(n.ID)) }
	slices.SortStableFunc(servers, func(a, b meta.Node) int {
		return cmp.Or(cmp.Compare(lost(a), lost(b)), cmp.Compare(away[a.Region], away[b.Region]), cmp.Compare(a.Region, b.Region))
	})
	return servers[:min(len(servers), askServers)]
}
