package swarm

import (
	"fmt"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

func TestMissedPeersAreRememberedWithinBounds(t *testing.T) {
	s := &Swarm{missed: map[peer.ID]time.Time{}}
	s.miss("gone")
	s.miss("back")
	s.reached("back")
	if !s.isMissed("gone") || s.isMissed("back") || s.isMissed("new") {
		t.Errorf("gone %v, back %v, new %v", s.isMissed("gone"), s.isMissed("back"), s.isMissed("new"))
	}
	s.missed["gone"] = time.Now().Add(-2 * missedFor)
	if s.isMissed("gone") {
		t.Error("it is expected to be away for ever")
	}
	for i := range 3 * maxMissed {
		s.miss(peer.ID(fmt.Sprint(i)))
	}
	if len(s.missed) > maxMissed {
		t.Errorf("%d are remembered", len(s.missed))
	}
}

// IsMissed is isMissed, for tests of what makes it so.
func (s *Swarm) IsMissed(id peer.ID) bool { return s.isMissed(id) }
