package node

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/shoal-registry/shoal/dht/host"
	"github.com/shoal-registry/shoal/gateway"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// admit keeps the gates and address books of hosts at the roster.
func admit(r *raftmeta.Roster, hosts ...*host.Host) {
	r.OnChange(func(c raftmeta.RosterChange) {
		for _, h := range hosts {
			if c.Removed {
				h.Update(nil, []meta.NodeID{c.Node.ID})
			} else {
				h.Update([]meta.Node{c.Node}, nil)
			}
		}
	})
}

// evict closes the connections to a gateway of nodes that are removed.
func evict(r *raftmeta.Roster, g *gateway.Gateway) {
	r.OnChange(func(c raftmeta.RosterChange) {
		if c.Removed {
			g.Evict(c.Node.ID)
		}
	})
}

// keepServers writes the cluster's servers down each time they change, so that a
// server that was killed finds the others, and lets them in, before its own state
// has caught up with the log.
func (n *Node) keepServers(ctx context.Context, r *raftmeta.Roster) error {
	changed := make(chan struct{}, 1)
	r.OnChange(func(c raftmeta.RosterChange) {
		if c.Node.Role == meta.RoleServer {
			select {
			case changed <- struct{}{}:
			default: // the write to come has this change too
			}
		}
	})
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
		servers := slices.DeleteFunc(r.Nodes(), func(other meta.Node) bool { return other.Role != meta.RoleServer })
		if err := n.keep(func(id *identity) { id.Servers = servers }); err != nil {
			n.log.Warn("the servers of the cluster were not written down", "error", err)
		}
	}
}

// knownNodes returns what a server's own state says of the roster, whatever its
// age, and who it knew when it stopped: enough to find the others and to let the
// region's agents in while there is no quorum.
func knownNodes(ctx context.Context, store *raftmeta.Store, last []meta.Node) ([]meta.Node, error) {
	nodes := last
	for after := ""; ; {
		const atOnce = 1000
		page, _, err := raftmeta.Ask(ctx, store, meta.Local, state.ListNodes{Page: state.Page{After: after, Limit: atOnce}})
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, page...)
		if len(page) < atOnce {
			return nodes, nil
		}
		after = string(page[len(page)-1].ID)
	}
}

// followRoster keeps r current from the server's own feed.
func followRoster(ctx context.Context, r *raftmeta.Roster, store *raftmeta.Store, log *slog.Logger) error {
	for {
		err := r.Follow(ctx, store, "", store.Watch)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !errors.Is(err, meta.ErrUnavailable) {
			log.Warn("following the roster failed, trying again", "error", err)
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
