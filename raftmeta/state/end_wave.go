package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// EndWave closes a wave that has expired, and makes one done that has not: the
// proposer has found all hosts of the roster that it is for settled. Leases that
// have ended are taken back first.
//
// Errors: meta.ErrNotFound; meta.ErrConflict while hosts fetch, or none has begun.
type EndWave struct {
	ID string `cbor:"1,keyasint,omitempty"`
}

// Type implements Command.
func (EndWave) Type() uint16 { return typeEndWave }

// Check implements Command.
func (c EndWave) Check() error { return meta.CheckWaveID(c.ID) }

func (c EndWave) apply(t *tx) (any, error) {
	w, err := findWave(t, c.ID)
	if err != nil || w.Ended != 0 {
		return nil, err
	}
	if err := t.reapLeases(w); err != nil {
		return nil, err
	}
	total := w.Total()
	switch {
	case t.now >= w.Expires:
		if w.Finished == 0 {
			w.Finished = t.now
		}
		t.endWave(w, meta.WaveDone, "")
	case total.Fetching > 0 || total.Settled() == 0:
		return nil, fmt.Errorf("wave %s: %d hosts fetch, %d have settled: %w", w.ID, total.Fetching, total.Settled(), meta.ErrConflict)
	case w.Finished == 0:
		w.State, w.Finished = meta.WaveDone, t.now
		t.emitWave(w)
	}
	t.putWave(w)
	return nil, nil
}
