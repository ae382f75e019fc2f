// Package lifecycle runs the parts of a node in order and stops them in reverse.
//
// A Group holds named parts, each a function that works until its context ends.
// Run starts them in the order they were added; when the context ends or a part
// fails, it ends them one by one from the last, so that what a part leans on is
// there until the part has ended. Every goroutine belongs to Run and has ended
// when Run returns.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Group is an ordered set of named parts. The zero value is empty and usable.
type Group struct {
	// Log tells of slow stops; nil is silent.
	Log *slog.Logger
	// StopAfter bounds how long one part may take to end before the next is told;
	// 0 is 30 s.
	StopAfter time.Duration

	parts []part
}

type part struct {
	name string
	run  func(context.Context) error
}

// Add appends a part. run returns nil or the context's error when its context
// ends; any other return, even nil, before that ends the whole group.
func (g *Group) Add(name string, run func(context.Context) error) {
	g.parts = append(g.parts, part{name, run})
}

// EndedError says that a part ended by itself without an error.
type EndedError struct{ Part string }

func (e *EndedError) Error() string { return e.Part + " ended unexpectedly" }

type ending struct {
	index int
	err   error
}

// Run starts all parts, waits for ctx or the first failure, stops all and
// returns the failure; nil when ctx ended it.
func (g *Group) Run(ctx context.Context) error {
	patience := g.StopAfter
	if patience == 0 {
		patience = 30 * time.Second
	}
	base := context.WithoutCancel(ctx)
	endings := make(chan ending, len(g.parts))
	cancels := make([]context.CancelFunc, len(g.parts))
	ended := make([]bool, len(g.parts))
	for i, p := range g.parts {
		partCtx, cancel := context.WithCancel(base)
		cancels[i] = cancel
		go func() { endings <- ending{i, p.run(partCtx)} }()
	}

	var failure error
	running := len(g.parts)
	note := func(e ending, stopping bool) {
		running--
		ended[e.index] = true
		name := g.parts[e.index].name
		switch {
		case e.err != nil && !(stopping && errors.Is(e.err, context.Canceled)):
			failure = errors.Join(failure, fmt.Errorf("%s: %w", name, e.err))
		case !stopping:
			failure = errors.Join(failure, &EndedError{name})
		}
	}
	if running > 0 {
		select {
		case <-ctx.Done():
		case e := <-endings:
			note(e, false)
		}
	}
	for i := len(g.parts) - 1; i >= 0; i-- {
		cancels[i]()
		timer := time.NewTimer(patience)
		for waiting := true; waiting && !ended[i]; {
			select {
			case e := <-endings:
				note(e, true)
			case <-timer.C:
				if g.Log != nil {
					g.Log.Warn("a part is slow to stop", "part", g.parts[i].name, "after", patience)
				}
				waiting = false
			}
		}
		timer.Stop()
	}
	for running > 0 {
		note(<-endings, true)
	}
	return failure
}
