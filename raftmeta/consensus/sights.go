package consensus

import (
	"context"
	"sync"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Sight is what one server knows of another's life.
type Sight struct {
	Server meta.NodeID `cbor:"1,keyasint,omitempty"`
	// Heard is how long ago it was last heard, negative when never.
	Heard time.Duration `cbor:"2,keyasint,omitempty"`
	RTT   time.Duration `cbor:"3,keyasint,omitempty"` // 0 is unknown
}

// View is whom a server hears.
type View struct {
	From   meta.NodeID
	Sights []Sight
}

// maxSights bounds what is taken from one answer.
const maxSights = 1024

// Views returns whom this server hears, and whom those hear that answer in time: the
// first of the list is its own. Each server is asked once, so each that lives is heard.
func (n *Node) Views(ctx context.Context) []View {
	var others []meta.NodeID
	for _, s := range n.servers() {
		if id := meta.NodeID(s.ID); id != n.cfg.Self {
			others = append(others, id)
		}
	}
	answers := make([]*answer, len(others))
	var group sync.WaitGroup
	for i, id := range others {
		group.Go(func() {
			if a, err := n.ask(ctx, id, question{Sights: true}); err == nil && len(a.Sights) <= maxSights {
				answers[i] = a
			}
		})
	}
	group.Wait()
	views := []View{{From: n.cfg.Self, Sights: n.sights()}}
	for i, a := range answers {
		if a != nil {
			views = append(views, View{From: others[i], Sights: a.Sights})
		}
	}
	return views
}

// sights is this server's own view.
func (n *Node) sights() []Sight {
	n.peers.mu.Lock()
	defer n.peers.mu.Unlock()
	out := make([]Sight, 0, len(n.peers.all))
	for id, s := range n.peers.all {
		heard := time.Duration(-1)
		if !s.heard.IsZero() {
			heard = time.Since(s.heard)
		}
		out = append(out, Sight{Server: id, Heard: heard, RTT: s.trips.least()})
	}
	return out
}
