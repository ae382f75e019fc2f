package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// CancelWave ends a wave: no further host begins, and those that fetch stop. One
// that was cancelled is left as it is. Result: meta.Wave.
//
// Errors: meta.ErrNotFound; meta.ErrConflict for a wave that is over otherwise.
type CancelWave struct {
	ID     string `cbor:"1,keyasint,omitempty"`
	Reason string `cbor:"2,keyasint,omitempty"`
}

// Type implements Command.
func (CancelWave) Type() uint16 { return typeCancelWave }

// Check implements Command.
func (c CancelWave) Check() error {
	if len(c.Reason) > meta.MaxWaveReason {
		return fmt.Errorf("cancel wave %s: reason of %d bytes, at most %d: %w", c.ID, len(c.Reason), meta.MaxWaveReason, meta.ErrInvalid)
	}
	return meta.CheckWaveID(c.ID)
}

func (c CancelWave) apply(t *tx) (any, error) {
	w, err := findWave(t, c.ID)
	if err != nil {
		return nil, err
	}
	switch {
	case w.State == meta.WaveCancelled:
		return *w, nil
	case w.Ended != 0:
		return nil, fmt.Errorf("wave %s is over: it is %s: %w", w.ID, w.State, meta.ErrConflict)
	}
	t.endWave(w, meta.WaveCancelled, c.Reason)
	t.putWave(w)
	return *w, nil
}

func findWave(r reader, id string) (*meta.Wave, error) {
	return find[meta.Wave](r, keyWave(id), "wave", id)
}
