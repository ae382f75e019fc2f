package consensus

import (
	"testing"
	"time"
)

// The distance to a server is its fastest recent answer: slow ones, that opened a
// stream or waited, do not move it, and it forgets.
func TestTripsKeepTheLeast(t *testing.T) {
	var seen trips
	if seen.least() != 0 {
		t.Errorf("nothing seen is %v", seen.least())
	}
	for _, ms := range []time.Duration{30, 10, 200} {
		seen.add(ms * time.Millisecond)
	}
	if seen.least() != 10*time.Millisecond {
		t.Errorf("least = %v, want 10ms", seen.least())
	}
	for range len(seen.last) {
		seen.add(50 * time.Millisecond)
	}
	if seen.least() != 50*time.Millisecond {
		t.Errorf("after the link changed: %v, want 50ms", seen.least())
	}
}
