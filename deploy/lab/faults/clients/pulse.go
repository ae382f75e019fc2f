package clients

import (
	"context"
	"errors"
	"sync"
	"time"
)

// beat is the length of the windows that acknowledged operations are counted in.
const beat = 100 * time.Millisecond

// Pulse counts acknowledged operations in windows of a tenth of a second: a few bytes
// for each, so that an hour is small.
type Pulse struct {
	begun time.Time

	mu    sync.Mutex
	beats []uint16
}

func newPulse() *Pulse { return &Pulse{begun: time.Now()} }

// count adds an acknowledged operation.
func (p *Pulse) count() {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := int(time.Since(p.begun) / beat)
	for len(p.beats) <= at {
		p.beats = append(p.beats, 0)
	}
	if p.beats[at] < 1<<16-1 {
		p.beats[at]++
	}
}

// lately reports whether each of the last n whole seconds had so many operations.
func (p *Pulse) lately(n, atLeast int) bool {
	const second = int(time.Second / beat)
	p.mu.Lock()
	defer p.mu.Unlock()
	now := int(time.Since(p.begun) / beat)
	for ; n > 0; n-- {
		sum := 0
		for i := now - second; i < now; i++ {
			if i >= 0 && i < len(p.beats) {
				sum += int(p.beats[i])
			}
		}
		if sum < atLeast {
			return false
		}
		now -= second
	}
	return true
}

// AwaitLoad waits until each of the last two seconds had so many acknowledged operations.
func (p *Pulse) AwaitLoad(ctx context.Context, atLeast int) error {
	ticker := time.NewTicker(beat)
	defer ticker.Stop()
	for !p.lately(2, atLeast) {
		select {
		case <-ctx.Done():
			return errors.Join(errors.New("the load did not come back"), context.Cause(ctx))
		case <-ticker.C:
		}
	}
	return nil
}

// Availability is how steadily operations were acknowledged.
type Availability struct {
	Acknowledged int     `json:"acknowledged"`
	Tenths       float64 `json:"tenths"`  // share of the windows of 100 ms with at least one
	Seconds      float64 `json:"seconds"` // the same of whole seconds
	LongestSec   float64 `json:"longest_gap_sec"`
}

// Availability returns what there was between two times.
func (p *Pulse) Availability(from, until time.Time) Availability {
	const second = int(time.Second / beat)
	p.mu.Lock()
	defer p.mu.Unlock()
	first, last := int(from.Sub(p.begun)/beat), int(until.Sub(p.begun)/beat)
	var a Availability
	var tenths, seconds, good, goodSeconds, gap, longest int
	inSecond := false
	for i := max(0, first); i < last; i++ {
		n := 0
		if i < len(p.beats) {
			n = int(p.beats[i])
		}
		a.Acknowledged += n
		tenths++
		if n > 0 {
			good, gap, inSecond = good+1, 0, true
		} else {
			gap++
			longest = max(longest, gap)
		}
		if tenths%second == 0 {
			seconds++
			if inSecond {
				goodSeconds++
			}
			inSecond = false
		}
	}
	a.Tenths, a.Seconds = share(good, tenths), share(goodSeconds, seconds)
	a.LongestSec = float64(longest) * beat.Seconds()
	return a
}

func share(part, of int) float64 {
	if of == 0 {
		return 1
	}
	return float64(part) / float64(of)
}
