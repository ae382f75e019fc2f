package scrub

import (
	"fmt"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// play runs the core for a while of virtual time: each existence pass takes a minute,
// each full one a day when nobody asked, an hour when somebody did.
type play struct {
	t      *testing.T
	state  State
	now    time.Time
	wanted meta.AuditRequest
	lost   bool
	log    []string
}

func newPlay(t *testing.T) *play { return &play{t: t, now: time.Unix(1_800_000_000, 0)} }

func (p *play) run(d time.Duration) {
	p.t.Helper()
	for end := p.now.Add(d); p.now.Before(end); {
		// As after a restart.
		var again State
		if err := codec.Unmarshal(codec.Encode(p.state), &again); err != nil {
			p.t.Fatal(err)
		}
		p.state = again
		step := p.state.Next(Input{Now: p.now, Self: "s1", Wanted: p.wanted, Lost: p.lost})
		p.lost = false
		switch step.Task {
		case Rest:
			if !step.Until.After(p.now) {
				p.t.Fatalf("at %v it rests until %v", p.now, step.Until)
			}
			p.now = p.now.Add(min(time.Hour, step.Until.Sub(p.now)))
		case Named:
			p.log = append(p.log, "named")
		case Existence:
			p.now = p.now.Add(time.Minute)
			p.state.Existence.finish(p.now)
			p.log = append(p.log, fmt.Sprint("existence ", p.state.Existence.Request))
		case Full:
			took := 24 * time.Hour
			if step.Asked {
				took = time.Hour
			}
			p.now = p.now.Add(took)
			p.state.Full.finish(p.now)
			p.log = append(p.log, fmt.Sprint("full ", p.state.Full.Request))
		}
		if p.state.Answer(p.wanted) {
			p.log = append(p.log, fmt.Sprint("answered ", p.wanted.ID))
		}
	}
}

func (p *play) expect(want ...string) {
	p.t.Helper()
	if got := fmt.Sprint(p.log); got != fmt.Sprint(want) {
		p.t.Errorf("it did %v, want %v", got, want)
	}
	p.log = nil
}

// Existence daily, everything in 14 days, a little earlier by chance.
func TestBothPassesComeByThemselves(t *testing.T) {
	p := newPlay(t)
	p.run(70 * 24 * time.Hour)
	existence, full := 0, 0
	for _, l := range p.log {
		switch l {
		case "existence 0":
			existence++
		case "full 0":
			full++
		default:
			t.Errorf("it did %q", l)
		}
	}
	// A pass that takes a day holds up that of the day.
	if existence < 65 || existence > 78 {
		t.Errorf("%d passes over what is there in 70 days", existence)
	}
	if full < 5 || full > 6 {
		t.Errorf("everything was read %d times in 70 days", full)
	}
}

func TestServersDoNotReadTogether(t *testing.T) {
	w := Walk{Number: 3, Started: meta.TimeOf(time.Unix(1_800_000_000, 0))}
	seen := map[time.Time]bool{}
	for i := range 20 {
		due := w.due(fullEvery, meta.NodeID(fmt.Sprint("s", i)))
		if late := due.Sub(w.Started.Std()); late > fullEvery || late < fullEvery*9/10 {
			t.Errorf("the next pass begins after %v", late)
		}
		seen[due] = true
	}
	if len(seen) < 20 {
		t.Errorf("20 servers begin at %d times", len(seen))
	}
}

func TestRequests(t *testing.T) {
	p := newPlay(t)
	p.run(3 * time.Hour)
	p.expect("existence 0", "full 0")
	// Over the daily one; answered once the pass that began after it has ended.
	p.wanted = meta.AuditRequest{ID: 7}
	p.run(time.Hour)
	p.expect("existence 7", "answered 7")
	p.wanted = meta.AuditRequest{ID: 9, Full: true}
	p.run(2 * time.Hour)
	p.expect("existence 9", "full 9", "answered 9")
	p.wanted = meta.AuditRequest{ID: 11, Roots: []digest.CID{{1}}}
	p.run(time.Minute)
	p.expect("named", "answered 11")
	p.run(time.Hour)
	p.expect()
}

// A request that comes while another's pass is under way begins it anew: what it asks
// for has to be seen after it was asked.
func TestALaterRequestBeginsAnew(t *testing.T) {
	s := State{}
	now := time.Unix(1_800_000_000, 0)
	first := meta.AuditRequest{ID: 5, Full: true}
	if step := s.Next(Input{Now: now, Self: "s1", Wanted: first}); step.Task != Existence || s.Existence.Request != 5 {
		t.Fatalf("%+v, %+v", step, s)
	}
	s.Existence.finish(now)
	if step := s.Next(Input{Now: now, Self: "s1", Wanted: first}); step.Task != Full || !step.Asked {
		t.Fatalf("%+v", step)
	}
	s.Full.After = digest.CID{0x80}
	second := meta.AuditRequest{ID: 6, Full: true}
	if step := s.Next(Input{Now: now, Self: "s1", Wanted: second}); step.Task != Existence || s.Existence.Request != 6 {
		t.Fatalf("%+v", step)
	}
	s.Existence.finish(now)
	if s.Answer(second) {
		t.Error("it is answered by half of it")
	}
	if step := s.Next(Input{Now: now, Self: "s1", Wanted: second}); step.Task != Full || s.Full.Request != 6 || !s.Full.After.IsZero() {
		t.Fatalf("%+v, %+v", step, s.Full)
	}
	s.Full.finish(now)
	if !s.Answer(second) || s.Answer(second) || s.Answered != 6 {
		t.Errorf("answered %d", s.Answered)
	}
}

// When files may have gone, what is there is looked at anew, at once, whatever was under
// way; a request under way is still answered.
func TestLostBeginsAnew(t *testing.T) {
	p := newPlay(t)
	p.run(time.Hour)
	p.log = nil
	p.lost = true
	p.run(time.Minute)
	p.expect("existence 0")
	s := State{}
	now := time.Unix(1_800_000_000, 0)
	wanted := meta.AuditRequest{ID: 5}
	s.Next(Input{Now: now, Self: "s1", Wanted: wanted})
	s.Existence.After = digest.CID{0x40}
	if step := s.Next(Input{Now: now, Self: "s1", Wanted: wanted, Lost: true}); step.Task != Existence || !s.Existence.After.IsZero() || s.Existence.Request != 5 {
		t.Errorf("%+v, %+v", step, s.Existence)
	}
	// A single file that is missing is no reason to look all the time.
	s.Existence.finish(now)
	s.Answer(wanted)
	s.Full.begin(now, 0)
	s.Full.finish(now)
	if step := s.Next(Input{Now: now.Add(time.Minute), Self: "s1", Wanted: wanted, Missing: true}); step.Task != Rest {
		t.Errorf("after a minute: %+v", step)
	}
	if step := s.Next(Input{Now: now.Add(missedAgain + time.Minute), Self: "s1", Wanted: wanted, Missing: true}); step.Task != Existence {
		t.Errorf("later: %+v", step)
	}
}

func TestRate(t *testing.T) {
	const tb = 1 << 40
	for _, test := range []struct {
		name    string
		budget  Budget
		asked   bool
		foreign float64
		least   float64
		most    float64
	}{
		{"small and idle", Budget{Cap: 100 << 20, Stored: 1 << 30}, false, 0, leastRate, leastRate},
		{"10 TB and idle", Budget{Cap: 100 << 20, Stored: 10 * tb}, false, 0, 36 << 20, 41 << 20},
		{"10 TB beside clients", Budget{Cap: 100 << 20, Stored: 10 * tb}, false, 50 << 20, 9 << 20, 10 << 20},
		{"small beside clients", Budget{Cap: 100 << 20, Stored: 1 << 30}, false, 50 << 20, busyLeast, busyLeast},
		{"asked and idle", Budget{Cap: 100 << 20, Stored: tb}, true, 0, 100 << 20, 100 << 20},
		{"asked beside clients", Budget{Cap: 100 << 20, Stored: tb}, true, 50 << 20, 12 << 20, 13 << 20},
		{"more than the cap", Budget{Cap: 100 << 20, Stored: 1000 * tb}, false, 50 << 20, 100 << 20, 100 << 20},
	} {
		if got := test.budget.Rate(test.asked, test.foreign); got < test.least || got > test.most {
			t.Errorf("%s: %.0f bytes/s, want %.0f to %.0f", test.name, got, test.least, test.most)
		}
	}
	// Beside clients all the time it still ends in time.
	for _, stored := range []int64{1 << 30, tb, 50 * tb} {
		if took := float64(stored) / (Budget{Cap: 100 << 20, Stored: stored}).Rate(false, 1<<30); took > fullEvery.Seconds() {
			t.Errorf("%d bytes take %.1f days beside clients", stored, took/86400)
		}
	}
}
