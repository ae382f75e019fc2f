package consensus

import (
	"context"
	"sync"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Surveyed is what a server of the roster said of itself.
type Surveyed struct {
	ID meta.NodeID
	// Answered says that it did; without, the rest is unknown.
	Answered bool
	// Level is the newest cluster level that its build knows, 0 from a build that does
	// not say.
	Level   uint32
	Applied uint64
}

// Survey asks each server of the roster how it is, in the roster's order. One that
// does not answer before ctx ends has not.
func (n *Node) Survey(ctx context.Context) []Surveyed {
	servers := n.cfg.Roster.Servers()
	out := make([]Surveyed, len(servers))
	var group sync.WaitGroup
	for i, s := range servers {
		out[i].ID = s.ID
		if s.ID == n.cfg.Self {
			out[i] = Surveyed{ID: s.ID, Answered: true, Level: n.cfg.Level, Applied: n.Applied()}
			continue
		}
		group.Go(func() {
			if a, err := n.ask(ctx, s.ID, question{Health: true}); err == nil {
				out[i] = Surveyed{ID: s.ID, Answered: true, Level: a.Level, Applied: a.Applied}
			}
		})
	}
	group.Wait()
	return out
}
