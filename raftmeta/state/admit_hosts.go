package state

import (
	"fmt"
	"slices"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// AdmitHosts lets hosts begin with a wave, in the order given, as far as it has
// room: those of the roster that it is for and that have not settled. Hosts that
// fetch already have their lease renewed. Leases that have ended are taken back
// first, so a command without hosts is of use, too.
//
// Errors: meta.ErrNotFound; meta.ErrConflict when the wave admits nobody now.
type AdmitHosts struct {
	Wave  string        `cbor:"1,keyasint,omitempty"`
	Hosts []meta.NodeID `cbor:"2,keyasint,omitempty"` // up to 500
}

// MaxWaveHosts bounds the hosts of one command.
const MaxWaveHosts = 500

// Type implements Command.
func (AdmitHosts) Type() uint16 { return typeAdmitHosts }

// Check implements Command.
func (c AdmitHosts) Check() error {
	if len(c.Hosts) > MaxWaveHosts {
		return fmt.Errorf("admit %d hosts, at most %d: %w", len(c.Hosts), MaxWaveHosts, meta.ErrInvalid)
	}
	for _, id := range c.Hosts {
		if id == "" || len(id) > maxNodeBytes {
			return fmt.Errorf("admit host %q: an id has 1 to %d bytes: %w", id, maxNodeBytes, meta.ErrInvalid)
		}
	}
	return meta.CheckWaveID(c.Wave)
}

func (c AdmitHosts) apply(t *tx) (any, error) {
	w, err := findWave(t, c.Wave)
	if err != nil {
		return nil, err
	}
	if !w.Admits(t.now) {
		return nil, fmt.Errorf("wave %s admits hosts from %s to %s while it is open, and is %s: %w",
			w.ID, w.NotBefore.Std(), w.Expires.Std(), w.State, meta.ErrConflict)
	}
	if err := t.reapLeases(w); err != nil {
		return nil, err
	}
	for _, id := range c.Hosts {
		if err := t.admitHost(w, id); err != nil {
			return nil, err
		}
	}
	t.putWave(w)
	return nil, nil
}

func (t *tx) admitHost(w *meta.Wave, id meta.NodeID) error {
	n, err := load[meta.Node](t, keyNode(id))
	if err != nil || n == nil || !w.Match(*n) {
		return err
	}
	h, err := load[meta.WaveHost](t, keyWaveHosts(w.ID).last(string(id)))
	if err != nil {
		return err
	}
	switch {
	case h == nil:
		h = &meta.WaveHost{Node: id, Region: n.Region}
	case h.State.Settled():
		return nil
	case h.State == meta.HostFetching:
		t.moveHost(w, h, meta.HostFetching)
		return nil
	}
	if total := w.Total(); w.MaxParallel > 0 && total.Fetching >= w.MaxParallel {
		return nil
	}
	h.Admitted = t.now
	t.moveHost(w, h, meta.HostFetching)
	if w.State == meta.WavePlanned {
		w.State, w.Started = meta.WaveRunning, t.now
	}
	return nil
}

// moveHost stores a host in a state, with the counts and the lease that follow from
// it; from fetching to fetching it renews the lease. The caller stores w.
func (t *tx) moveHost(w *meta.Wave, h *meta.WaveHost, to meta.HostState) {
	if h.Until != 0 {
		t.del(keyLease(w.ID, h))
		h.Until = 0
	}
	if h.State != to {
		at, found := slices.BinarySearchFunc(w.Regions, h.Region, func(r meta.WaveRegion, name meta.RegionName) int {
			return strings.Compare(string(r.Region), string(name))
		})
		if !found {
			w.Regions = slices.Insert(w.Regions, at, meta.WaveRegion{Region: h.Region})
		}
		region := &w.Regions[at]
		if n := region.Count(h.State); n != nil {
			*n--
		}
		*region.Count(to)++
		if to == meta.HostDone {
			region.Bytes += h.Bytes
		}
		h.State, h.Changed = to, t.now
	}
	if to == meta.HostFetching && w.MaxParallel > 0 {
		h.Until = t.now + meta.Time(meta.WaveLease)
		t.mark(keyLease(w.ID, h))
	}
	t.put(keyWaveHosts(w.ID).last(string(h.Node)), h)
}

// reapLeases makes hosts lost whose lease has ended, the oldest first, as many as a
// command may name. The caller stores w.
func (t *tx) reapLeases(w *meta.Wave) error {
	prefix := keyLeases(w.ID)
	var ended []meta.NodeID
	for p, err := range t.scan(span{lower: prefix, upper: keyLeases(w.ID).u64(clock(t.now))}) {
		if err != nil {
			return err
		}
		if len(p.key) < len(prefix)+8 {
			return &StorageError{Cause: fmt.Errorf("key %x is no lease", p.key)}
		}
		ended = append(ended, meta.NodeID(p.key[len(prefix)+8:]))
		if len(ended) == MaxWaveHosts {
			break
		}
	}
	for _, id := range ended {
		h, err := load[meta.WaveHost](t, keyWaveHosts(w.ID).last(string(id)))
		if err != nil {
			return err
		}
		if h == nil || h.State != meta.HostFetching {
			return &StorageError{Cause: fmt.Errorf("host %s of wave %s has a lease and does not fetch", id, w.ID)}
		}
		t.moveHost(w, h, meta.HostLost)
	}
	return nil
}

func keyWave(id string) key      { return key{spaceWaves}.last(id) }
func keyWaveHosts(id string) key { return key{spaceWaveHosts}.part(id) }
func keyLeases(id string) key    { return key{spaceLeases}.part(id) }
func keyLease(id string, h *meta.WaveHost) key {
	return keyLeases(id).u64(clock(h.Until)).last(string(h.Node))
}
func keyOpenWave(id string) key { return key{spaceOpenWaves}.last(id) }
func keyOverWave(w *meta.Wave) key {
	return key{spaceOverWaves}.u64(clock(w.Ended)).last(w.ID)
}

// parseOverWave returns the id of a wave in the order of forgetting.
func parseOverWave(k []byte) (string, error) {
	if len(k) < 10 || k[0] != spaceOverWaves {
		return "", &StorageError{Cause: fmt.Errorf("key %x is no wave that is over", k)}
	}
	return string(k[9:]), nil
}
