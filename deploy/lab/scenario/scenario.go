// Package scenario holds the figures that the lab prints: each is a file with a plan
// of hosts and links, what happens to them, and what is held against which goal.
//
// Start reading at Scenario and All, then at one of the small files, such as frozen.go;
// lab.go is what they are written with, over package wave's clusters. Run runs one and
// returns a Result, Table prints several. Every cluster that a scenario starts is gone
// when Run returns. Figures are printed, not asserted, but for those that no machine's
// speed excuses (Must): wrong bytes, bytes where none may be. Linux and root only.
package scenario

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/shoal-registry/shoal/deploy/lab/wave"
)

// Scenario is one command that prints figures.
type Scenario struct {
	Name  string
	Claim string // what it shows, in a line
	// Full is measured; Quick runs the same steps in seconds, for tests and a first look.
	Full, Quick wave.Plan
	Run         func(ctx context.Context, l *Lab) error
}

// All returns every scenario, in the order of the table.
func All() []Scenario {
	return []Scenario{wave16, wave32, cpu, singleflight, liar, headless, regions, regionsKill, failover, frozen, zones, prewarm, limit, yield, cache, memory}
}

// Find returns the scenario of that name.
func Find(name string) (Scenario, error) {
	for _, s := range All() {
		if s.Name == name {
			return s, nil
		}
	}
	return Scenario{}, fmt.Errorf("no scenario %q; --list prints them", name)
}

// hangs is how long a scenario may take; it only guards against hangs.
const hangs = 30 * time.Minute

// Options say how to run scenarios. What is 0 is as the scenario has it.
type Options struct {
	Bin   string // the shoal binary
	Dir   string // parent of the nodes' folders; "" is memory or the disk, as it fits
	Quick bool
	Seed  uint64
	// Hosts, Bytes, Rate and RTT override the plan's.
	Hosts int
	Bytes int64
	Rate  int64
	RTT   time.Duration
	// Say, when not nil, gets a line at each step.
	Say func(format string, args ...any)
}

// Result is what a scenario printed.
type Result struct {
	Scenario   string   `json:"scenario"`
	Claim      string   `json:"claim"`
	Quick      bool     `json:"quick,omitempty"`
	Seed       uint64   `json:"seed"`
	LoadBefore string   `json:"load_before"`
	LoadAfter  string   `json:"load_after"`
	TookSec    float64  `json:"took_sec"`
	Figures    []Figure `json:"figures"`
	Error      string   `json:"error,omitempty"` // the lab did not run to its end
}

// Figure is one measured value.
type Figure struct {
	Name string `json:"name"`
	Got  string `json:"got"`
	Goal string `json:"goal,omitempty"` // "" when it is only for information
	Kept bool   `json:"kept"`
	// Must is of figures that hold on any machine, however busy.
	Must bool `json:"must,omitempty"`
}

// Kept reports whether the scenario ran and met every goal.
func (r Result) Kept() bool {
	return r.Error == "" && len(r.Short()) == 0
}

// Broken reports whether a figure that holds on any machine did not.
func (r Result) Broken() bool {
	return slices.ContainsFunc(r.Figures, func(f Figure) bool { return f.Must && !f.Kept })
}

// Short returns the figures that miss their goal.
func (r Result) Short() []Figure {
	var short []Figure
	for _, f := range r.Figures {
		if !f.Kept {
			short = append(short, f)
		}
	}
	return short
}

// Run runs a scenario in a new folder, and leaves nothing behind, however it ends.
func Run(ctx context.Context, s Scenario, o Options) (r Result) {
	if o.Say == nil {
		o.Say = func(string, ...any) {}
	}
	r = Result{Scenario: s.Name, Claim: s.Claim, Quick: o.Quick, Seed: o.Seed, LoadBefore: wave.LoadAverage()}
	began := time.Now()
	l := &Lab{Plan: s.Full, Quick: o.Quick, options: o}
	var err error
	defer func() {
		r.LoadAfter, r.TookSec = wave.LoadAverage(), time.Since(began).Seconds()
		r.Figures = l.figures
		if err := errors.Join(err, l.close()); err != nil {
			r.Error = err.Error()
		}
	}()
	if o.Quick {
		l.Plan = s.Quick
	}
	l.Plan.Bin, l.Plan.Seed, l.Plan.Say = o.Bin, o.Seed, o.Say
	if o.Hosts > 0 {
		l.Plan.Hosts = o.Hosts
	}
	if o.Bytes > 0 {
		l.Plan.Bytes = o.Bytes
	}
	if o.Rate > 0 {
		l.Plan.Rate = o.Rate
	}
	if o.RTT > 0 {
		l.Plan.RTT = o.RTT
	}
	parent := o.Dir
	if parent == "" {
		parent = wave.DataFolder(l.Plan.Kept())
	}
	if l.dir, err = os.MkdirTemp(parent, "shoal-lab-"); err != nil {
		return r
	}
	ctx, cancel := context.WithTimeoutCause(ctx, hangs, fmt.Errorf("the scenario took more than %v", hangs))
	defer cancel()
	o.Say("%s: %s", s.Name, s.Claim)
	err = s.Run(ctx, l)
	return r
}
