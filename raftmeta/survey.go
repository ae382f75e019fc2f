package raftmeta

import (
	"context"

	"github.com/shoal-registry/shoal/raftmeta/consensus"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Surveyed is what a server said of itself.
type Surveyed struct {
	ID       meta.NodeID
	Answered bool
	// Level is the newest cluster level that its build knows, while it answers.
	Level uint32
	// Applied is the index that its state has.
	Applied uint64
}

// SilentLevel is the newest level that builds knew before they told.
const SilentLevel uint32 = 3

// Survey asks each server of the roster how it is, in the roster's order, until ctx
// ends.
func (s *Store) Survey(ctx context.Context) []Surveyed {
	asked := s.node.Survey(ctx)
	out := make([]Surveyed, len(asked))
	for i, a := range asked {
		out[i] = surveyed(a)
	}
	return out
}

func surveyed(a consensus.Surveyed) Surveyed {
	s := Surveyed{ID: a.ID, Answered: a.Answered, Applied: a.Applied}
	if s.Answered {
		s.Level = max(a.Level, SilentLevel)
	}
	return s
}
