package dht

import (
	"context"
	"slices"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

const (
	// standAfter is how long all servers of the region must have been silent before
	// agents stand in for them, and standMost how many agents of a swarm do.
	standAfter = 2 * time.Second
	standMost  = 2
	standTime  = time.Second // a server beyond answers within
)

// elected reports whether self is among those of members, itself included, that stand
// in for the region's servers: the first of the rank by root. Who knows the same
// members elects the same.
func elected(root digest.CID, self meta.Node, members []meta.Node) bool {
	if !slices.ContainsFunc(members, func(n meta.Node) bool { return n.ID == self.ID }) {
		members = append(slices.Clone(members), self)
	}
	ranked := rank(root, members)
	return slices.ContainsFunc(ranked[:min(len(ranked), standMost)], func(n meta.Node) bool { return n.ID == self.ID })
}

// stand adds a server of another region to an introduction that was made without the
// region's own, when they have been silent for standAfter and this node is elected to
// fetch for its region: the first of the rank that grants it. All who are elected turn to the
// same one, which gives each other chunks.
func (f *Finder) stand(ctx context.Context, want Want, in *Introduction) {
	f.mu.Lock()
	silent := f.silentSince.After(f.answered) && time.Since(f.silentSince) >= standAfter
	f.mu.Unlock()
	if want.Complete {
		return
	}
	if !silent {
		in.Again = standAfter // soon enough to stand in, if nobody comes back
		return
	}
	self := f.cfg.Self
	var members []meta.Node
	for _, p := range in.Peers {
		if n, ok := f.cfg.Roster.Node(p.ID); ok && n.Role == meta.RoleAgent && n.Region == self.Region {
			members = append(members, n)
		}
	}
	if !elected(want.Root, self, members) {
		return
	}
	beyond := slices.DeleteFunc(slices.Clone(f.cfg.Roster.Nodes("", meta.RoleServer)), func(n meta.Node) bool { return n.Region == self.Region })
	for _, n := range rank(want.Root, beyond)[:min(len(beyond), askServers)] {
		limited, cancel := context.WithTimeout(ctx, standTime)
		rep, err := f.caller.do(limited, n.ID, request{Root: want.Root, Look: true})
		cancel()
		if err != nil || rep.Error != nil {
			f.log.Debug("a server of another region does not help out", "server", n.ID, "root", want.Root, "error", err)
			continue
		}
		in.Grant, in.GrantExpires = rep.Grant, rep.GrantExpires.Std()
		in.Peers = append(in.Peers, peerOf(n, false))
		f.log.Info("no server of the region answers, this node fetches from another", "server", n.ID, "region", n.Region, "root", want.Root)
		return
	}
}
