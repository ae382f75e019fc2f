package state

import (
	"fmt"
	"slices"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// CreateWave plans a wave. Of Wave it takes ID, Name, Refs, Targets, Platform,
// NotBefore (at once when it has passed), MaxParallel, Abort and Expected; it
// expires Life after its start. Result: meta.Wave.
//
// Errors: meta.ErrExists for a wave of the id, meta.ErrNotFound for a version,
// meta.ErrInvalid for an unknown region, meta.ErrConflict when too many are open.
type CreateWave struct {
	Wave meta.Wave     `cbor:"1,keyasint,omitempty"`
	Life time.Duration `cbor:"2,keyasint,omitempty"` // 1 minute to 90 days
}

// Bounds of waves.
const (
	maxOpenWaves = 256
	minWaveLife  = time.Minute
	maxWaveLife  = 90 * 24 * time.Hour
	// maxWaveWait bounds how far ahead a wave is planned.
	maxWaveWait = 366 * 24 * time.Hour
)

// Type implements Command.
func (CreateWave) Type() uint16 { return typeCreateWave }

// Check implements Command.
func (c CreateWave) Check() error {
	if c.Life < minWaveLife || c.Life > maxWaveLife {
		return fmt.Errorf("wave %s: it lives %v, use %v to %v: %w", c.Wave.ID, c.Life, minWaveLife, maxWaveLife, meta.ErrInvalid)
	}
	return c.Wave.Check()
}

func (c CreateWave) apply(t *tx) (any, error) {
	old, err := load[meta.Wave](t, keyWave(c.Wave.ID))
	if err != nil {
		return nil, err
	}
	if old != nil {
		return nil, fmt.Errorf("wave %s is there already: %w", c.Wave.ID, meta.ErrExists)
	}
	open := 0
	for _, err := range t.scan(within(key{spaceOpenWaves})) {
		if err != nil {
			return nil, err
		}
		open++
	}
	if open >= maxOpenWaves {
		return nil, fmt.Errorf("%d waves are open; cancel one that is no longer needed: %w", open, meta.ErrConflict)
	}
	w := meta.Wave{
		ID: c.Wave.ID, Name: c.Wave.Name, Refs: slices.Clone(c.Wave.Refs), Targets: c.Wave.Targets, Platform: c.Wave.Platform,
		NotBefore: max(c.Wave.NotBefore, t.now), MaxParallel: c.Wave.MaxParallel, Abort: c.Wave.Abort, Expected: c.Wave.Expected,
		State: meta.WavePlanned, Created: t.now, CreatedBy: t.origin.Principal,
	}
	if w.NotBefore-t.now > meta.Time(maxWaveWait) {
		return nil, fmt.Errorf("wave %s: it begins in more than a year: %w", w.ID, meta.ErrInvalid)
	}
	w.Expires = w.NotBefore + meta.Time(c.Life)
	for i, ref := range w.Refs {
		v, err := findVersion(t, ref.Repo, ref.Package, ref.Version)
		if err != nil {
			return nil, err
		}
		w.Refs[i].Digest = v.Digest
	}
	for _, target := range w.Targets {
		if target.Region == "" {
			continue
		}
		if err := t.needRegion(target.Region); err != nil {
			return nil, fmt.Errorf("wave %s: target %s: %w", w.ID, target, err)
		}
	}
	t.mark(keyOpenWave(w.ID))
	t.putWave(&w)
	t.emitWave(&w)
	return w, nil
}

func (t *tx) putWave(w *meta.Wave) { t.put(keyWave(w.ID), w) }

// emitWave tells followers that a wave has begun to be, or is over, or done.
func (t *tx) emitWave(w *meta.Wave) {
	t.emit(feed.Change{Kind: feed.KindWave, Name: w.ID, Deleted: w.Ended != 0})
}

// endWave closes an open wave.
func (t *tx) endWave(w *meta.Wave, s meta.WaveState, reason string) {
	w.State, w.Reason, w.Ended = s, reason, t.now
	t.del(keyOpenWave(w.ID))
	t.mark(keyOverWave(w))
	t.emitWave(w)
}
