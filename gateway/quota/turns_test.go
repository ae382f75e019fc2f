package quota

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// office is a turnCore at which tenants work in virtual time: each of a tenant's
// workers takes a turn, works, gives it back and begins anew.
type office struct {
	core  *turnCore
	now   time.Duration
	work  map[*turn]time.Duration // until when it works
	waits map[*turn]time.Duration // since when it waits
	long  map[meta.TenantName]time.Duration
	done  map[meta.TenantName]int
}

func newOffice(slots int) *office {
	return &office{
		core: newTurnCore(slots), now: time.Second, work: map[*turn]time.Duration{}, waits: map[*turn]time.Duration{},
		long: map[meta.TenantName]time.Duration{}, done: map[meta.TenantName]int{},
	}
}

func (o *office) begin(l *line, takes time.Duration) {
	t := &turn{line: l}
	if o.core.take(o.now, t) {
		o.work[t] = o.now + takes
	} else {
		o.waits[t] = o.now
	}
}

// run lets time pass until end. takes is how long a turn of each tenant works.
func (o *office) run(end time.Duration, takes map[meta.TenantName]time.Duration) {
	for o.now < end {
		o.now += 100 * time.Microsecond
		for t, until := range o.work {
			if until > o.now {
				continue
			}
			delete(o.work, t)
			o.core.end(o.now, t)
			o.done[t.line.name]++
			o.begin(t.line, takes[t.line.name])
		}
		o.core.next(o.now, func(t *turn) {
			o.long[t.line.name] = max(o.long[t.line.name], o.now-o.waits[t])
			delete(o.waits, t)
			o.work[t] = o.now + takes[t.line.name]
		})
	}
}

// A tenant with many callers leaves one with few its part, at once.
func TestTurnsAreShared(t *testing.T) {
	o := newOffice(4)
	noisy := o.core.open(o.now, "noisy", 4)
	takes := map[meta.TenantName]time.Duration{"noisy": time.Millisecond, "quiet": time.Millisecond}
	for range 100 {
		o.begin(noisy, time.Millisecond)
	}
	if len(o.waits) != 0 {
		t.Fatalf("%d wait although nobody else is there", len(o.waits))
	}
	o.run(2*time.Second, takes)
	quiet := o.core.open(o.now, "quiet", 4)
	for range 2 {
		o.begin(quiet, time.Millisecond)
	}
	o.run(o.now+20*time.Millisecond, takes) // those that were under way end
	clear(o.done)
	clear(o.long)
	o.run(o.now+time.Second, takes)
	if o.long["quiet"] > 0 {
		t.Errorf("who stays within his part waited %v", o.long["quiet"])
	}
	if o.core.taken > 4 || o.done["quiet"] < 1500 || o.done["noisy"] < 1500 {
		t.Errorf("%d turns are taken, %v are done", o.core.taken, o.done)
	}
	// Once the other has gone it has all again.
	for t := range o.work {
		if t.line == quiet {
			delete(o.work, t)
			o.core.end(o.now, t)
		}
	}
	o.core.close(quiet)
	o.run(o.now+2*time.Second, takes)
	if len(o.waits) != 0 {
		t.Errorf("%d wait although nobody else is there any more", len(o.waits))
	}
}

// Weights are parts of the slots, and of what others leave.
func TestTurnsByWeight(t *testing.T) {
	o := newOffice(10)
	takes := map[meta.TenantName]time.Duration{"basic": time.Millisecond, "premium": time.Millisecond}
	for name, weight := range map[meta.TenantName]int{"basic": 4, "premium": 16} {
		l := o.core.open(o.now, name, weight)
		for range 50 {
			o.begin(l, time.Millisecond)
		}
	}
	o.run(3*time.Second, takes)
	if ratio := float64(o.done["premium"]) / float64(o.done["basic"]); ratio < 3.4 || ratio > 4.6 {
		t.Errorf("premium did %.1f times what basic did: %v", ratio, o.done)
	}
}

// A turn that lasts does not keep others out: it waits for a client, not for a processor.
func TestLongTurnsDoNotCount(t *testing.T) {
	o := newOffice(2)
	slow, quick := o.core.open(o.now, "slow", 4), o.core.open(o.now, "quick", 4)
	takes := map[meta.TenantName]time.Duration{"slow": time.Minute, "quick": 200 * time.Microsecond}
	for range 50 {
		o.begin(slow, time.Minute)
	}
	o.begin(quick, takes["quick"])
	o.run(2*time.Second, takes)
	if len(o.waits) != 0 {
		t.Errorf("%d wait for turns that do nothing", len(o.waits))
	}
	if o.done["quick"] < 2000 {
		t.Errorf("the other did %d turns", o.done["quick"])
	}
}

// Whatever comes, nobody who has a place waits, counts agree, and all end.
func TestTurnsProperties(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		c := newTurnCore(rapid.IntRange(1, 6).Draw(r, "slots"))
		now := time.Second
		var taken, waits []*turn
		granted := func(t *turn) {
			for i, w := range waits {
				if w == t {
					waits = append(waits[:i], waits[i+1:]...)
				}
			}
			taken = append(taken, t)
		}
		lines := map[meta.TenantName]*line{}
		for range rapid.IntRange(1, 100).Draw(r, "steps") {
			now += time.Duration(rapid.IntRange(0, 3000).Draw(r, "µs")) * time.Microsecond
			name := meta.TenantName(fmt.Sprint("t", rapid.IntRange(0, 3).Draw(r, "tenant")))
			if lines[name] == nil {
				lines[name] = c.open(now, name, rapid.SampledFrom([]int{1, 4, 16}).Draw(r, "weight"))
			}
			switch rapid.IntRange(0, 3).Draw(r, "act") {
			case 0, 1:
				if x := (&turn{line: lines[name]}); c.take(now, x) {
					taken = append(taken, x)
				} else {
					waits = append(waits, x)
				}
			case 2:
				if len(taken) > 0 {
					i := rapid.IntRange(0, len(taken)-1).Draw(r, "which")
					c.end(now, taken[i])
					taken = append(taken[:i], taken[i+1:]...)
				}
			case 3:
				if len(waits) > 0 {
					i := rapid.IntRange(0, len(waits)-1).Draw(r, "which")
					c.leave(waits[i])
					waits = append(waits[:i], waits[i+1:]...)
				}
			}
			c.next(now, granted)
			if c.waiting != len(waits) {
				r.Fatalf("%d wait and %d are counted", len(waits), c.waiting)
			}
			counts := 0
			for x := c.oldest; x != nil; x = x.next {
				counts++
			}
			if counts != c.taken {
				r.Fatalf("%d turns count and %d are counted", counts, c.taken)
			}
			for _, w := range waits {
				if c.taken < c.slots || w.line.taken < c.part(now, w.line) {
					r.Fatalf("one of %s waits with %d of %d slots taken, %d by itself", w.line.name, c.taken, c.slots, w.line.taken)
				}
			}
		}
		for len(taken)+len(waits) > 0 {
			if len(taken) == 0 {
				r.Fatalf("%d wait for nobody", len(waits))
			}
			c.end(now, taken[0])
			taken = taken[1:]
			c.next(now, granted)
		}
		if c.taken != 0 || c.waiting != 0 {
			r.Fatalf("%d turns and %d waiting are left", c.taken, c.waiting)
		}
	})
}
