package health

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// SelfConfig is what a Self is made of; all fields are required.
type SelfConfig struct {
	Node     meta.Node
	Metadata raftmeta.Asker
	Doer     raftmeta.Doer
	// Probe tries the blob store: nil, meta.ErrNoSpace when it takes nothing new,
	// another error when it cannot be used.
	Probe func(ctx context.Context) error
	// Check looks whether the copies that this server is said to have are there, and
	// reports those that are not, before it returns.
	Check func(ctx context.Context) (copies, missing uint64, err error)
	Log   *slog.Logger
}

// Self is a server's own part.
type Self struct {
	SelfConfig

	mu    sync.Mutex
	tries tries
}

// NewSelf returns a Self that takes its blob store for well until Run has tried it.
func NewSelf(c SelfConfig) *Self { return &Self{SelfConfig: c} }

const (
	probeEvery = 2 * time.Second
	// After a failure it is tried again sooner.
	probeAgain = 500 * time.Millisecond
	// probePatience is how long a probe may take before the disk counts as hung.
	probePatience = 5 * time.Second
	// probeLong is how long one takes that counts twice when it fails: what is slow to
	// fail is not tried often.
	probeLong = 3 * time.Second
	tellEvery = time.Second
)

// Blobs returns how the blob store is, and why.
func (s *Self) Blobs() (meta.BlobsState, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tries.state, s.tries.why
}

// Failing says that the blob store cannot be used: what needs it is for others.
func (s *Self) Failing() bool {
	b, _ := s.Blobs()
	return b == meta.BlobsFailing
}

// Lost says that the blob store was found lost by whoever uses it, as if probes had: it
// is failing until they find it well.
func (s *Self) Lost(why error) {
	for range triesWorse {
		s.note(why)
	}
}

// tries makes a state of the outcomes of probes: two in a row make it worse, three
// better.
type tries struct {
	state   meta.BlobsState
	why     string
	next    meta.BlobsState
	inARow  int
	nextWhy string
}

const (
	triesWorse  = 2
	triesBetter = 3
)

// note takes over an outcome.
func (t *tries) note(err error) {
	next, why := meta.BlobsOK, ""
	switch {
	case errors.Is(err, meta.ErrNoSpace):
		next, why = meta.BlobsLow, err.Error()
	case err != nil:
		next, why = meta.BlobsFailing, err.Error()
	}
	if len(why) > 256 {
		why = why[:256]
	}
	if next == t.state {
		t.inARow = 0
		return
	}
	if next != t.next || t.inARow == 0 {
		t.next, t.inARow = next, 0
	}
	t.inARow++
	t.nextWhy = why
	enough := triesBetter
	if badness(next) > badness(t.state) {
		enough = triesWorse
	}
	if t.inARow >= enough {
		t.state, t.why, t.inARow = next, t.nextWhy, 0
	}
}

func badness(b meta.BlobsState) int {
	switch b {
	case meta.BlobsFailing:
		return 2
	case meta.BlobsLow:
		return 1
	}
	return 0
}

// Run works until ctx ends.
func (s *Self) Run(ctx context.Context) error {
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() { s.probe(ctx) })
	group.Go(func() { s.check(ctx) })
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := s.tell(ctx); err != nil && ctx.Err() == nil {
			s.Log.Debug("the state of the blob store is not recorded yet", "error", err)
		}
	}
}

// probe tries the blob store again and again. One that hangs counts as failing, and is
// not tried again until the try has come back.
func (s *Self) probe(ctx context.Context) {
	for {
		began := time.Now()
		done := make(chan error, 1)
		go func() {
			limited, cancel := context.WithTimeout(ctx, probePatience)
			defer cancel()
			done <- s.Probe(limited)
		}()
		patience := time.NewTimer(probePatience)
		var err error
	waiting:
		for {
			select {
			case <-ctx.Done():
				patience.Stop()
				return // a hung disk holds the goroutine, not the process
			case err = <-done:
				break waiting
			case <-patience.C:
				hung := fmt.Errorf("the disk has not answered for %v: %w", probePatience, meta.ErrUnavailable)
				s.note(hung)
				s.note(hung) // a try of that length is worth two
			}
		}
		patience.Stop()
		s.note(err)
		if err != nil && time.Since(began) >= probeLong {
			s.note(err)
		}
		pause := probeEvery
		if state, _ := s.Blobs(); err != nil || state != meta.BlobsOK {
			pause = probeAgain
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

func (s *Self) note(err error) {
	s.mu.Lock()
	before := s.tries.state
	s.tries.note(err)
	now, why := s.tries.state, s.tries.why
	s.mu.Unlock()
	switch {
	case before == now:
	case now == meta.BlobsOK:
		s.Log.Info("the blob store is well again", "was", before)
	default:
		s.Log.Error("the blob store cannot be used", "state", now, "error", why)
	}
}

// recorded returns what the metadata says of this server. ok is false where there is
// nothing to say it in, in a cluster of an earlier level.
func (s *Self) recorded(ctx context.Context) (h meta.ServerHealth, ok bool, err error) {
	level, _, err := raftmeta.Ask(ctx, s.Metadata, meta.Local, state.GetLevel{})
	if err != nil || state.CheckLevel(state.ReportBlobs{}, level) != nil {
		return h, false, err
	}
	all, _, err := raftmeta.Ask(ctx, s.Metadata, meta.Local, state.RegionHealth{Region: s.Node.Region})
	if err != nil || len(all) == 0 {
		return h, false, err
	}
	return all[0].Server(s.Node.ID), true, nil
}

// tell brings the record of the blob store up to date.
func (s *Self) tell(ctx context.Context) error {
	h, ok, err := s.recorded(ctx)
	if err != nil || !ok {
		return err
	}
	blobs, why := s.Blobs()
	if h.Blobs == blobs {
		return nil
	}
	_, err = s.Doer.Do(ctx, s.origin(), state.ReportBlobs{Server: s.Node.ID, State: blobs, Why: why})
	return err
}

func (s *Self) origin() state.Origin { return state.Origin{Principal: "node:" + string(s.Node.ID)} }

// check looks after the copies when their records are doubtful.
func (s *Self) check(ctx context.Context) {
	var of uint64       // the doubt that is looked into
	var reported uint64 // copies found missing by tries that came to nothing
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		h, ok, err := s.recorded(ctx)
		if err != nil || !ok || h.Unchecked == 0 || s.Failing() || h.Blobs == meta.BlobsFailing {
			continue
		}
		began := time.Now()
		copies, missing, err := s.Check(ctx)
		if h.Unchecked != of {
			of, reported = h.Unchecked, 0
		}
		copies, missing = copies+reported, missing+reported
		reported = missing
		if err == nil {
			_, err = s.Doer.Do(ctx, s.origin(), state.ReportChecked{Server: s.Node.ID, Unchecked: h.Unchecked, Copies: copies, Missing: missing})
		}
		switch {
		case ctx.Err() != nil:
		case err != nil:
			s.Log.Warn("the copies here are not looked at yet, trying again", "error", err)
		default:
			s.Log.Info("looked whether the copies are still here", "copies", copies, "missing", missing, "took", time.Since(began))
		}
	}
}
