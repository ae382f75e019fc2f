package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// CompareState asks every server for the hash of its state as it is at this very
// entry; they say it by ReportState. The last comparisonsKept are kept.
type CompareState struct{}

// Type implements Command.
func (CompareState) Type() uint16 { return typeCompareState }

// Check implements Command.
func (CompareState) Check() error { return nil }

func (CompareState) apply(t *tx) (any, error) {
	all, err := comparisons(t)
	if err != nil {
		return nil, err
	}
	for len(all) >= comparisonsKept {
		t.del(keyComparison(all[0].Index))
		all = all[1:]
	}
	t.put(keyComparison(t.index), Comparison{Index: t.index, At: t.now})
	return nil, nil
}

// ReportState says what the hash of a server's state was at a comparison. The first
// word of a server counts.
//
// Errors: meta.ErrNotFound for a comparison that is forgotten, or one who is no server.
type ReportState struct {
	Index  uint64      `cbor:"1,keyasint,omitempty"`
	Server meta.NodeID `cbor:"2,keyasint,omitempty"`
	Hash   []byte      `cbor:"3,keyasint,omitempty"` // 32 bytes, of Machine.Hash
}

// Type implements Command.
func (ReportState) Type() uint16 { return typeReportState }

// Check implements Command.
func (c ReportState) Check() error {
	if c.Index == 0 || c.Server == "" || len(c.Hash) != 32 {
		return fmt.Errorf("report state: index %d, server %q, hash of %d bytes: %w", c.Index, c.Server, len(c.Hash), meta.ErrInvalid)
	}
	return nil
}

func (c ReportState) apply(t *tx) (any, error) {
	node, err := find[meta.Node](t, keyNode(c.Server), "server", string(c.Server))
	if err != nil {
		return nil, err
	}
	if node.Role != meta.RoleServer {
		return nil, fmt.Errorf("%s is no server: %w", c.Server, meta.ErrNotFound)
	}
	cmp, err := find[Comparison](t, keyComparison(c.Index), "comparison of states at", fmt.Sprint(c.Index))
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(cmp.Said, func(s Said) bool { return s.Server == c.Server }) {
		return nil, nil
	}
	cmp.Said = append(cmp.Said, Said{Server: c.Server, Hash: c.Hash})
	t.put(keyComparison(c.Index), *cmp)
	return nil, nil
}

// Comparison is what servers said of their states at one index.
type Comparison struct {
	Index uint64    `cbor:"1,keyasint,omitempty"`
	At    meta.Time `cbor:"2,keyasint,omitempty"` // the leader's time
	Said  []Said    `cbor:"3,keyasint,omitempty"` // in the order of the log
}

// Said is one server's word.
type Said struct {
	Server meta.NodeID `cbor:"1,keyasint,omitempty"`
	Hash   []byte      `cbor:"2,keyasint,omitempty"`
}

// Majority returns the hash that more than half of these servers have, false when
// there is none: then nobody is known to be wrong.
func (c Comparison) Majority(servers []meta.NodeID) (hash []byte, ok bool) {
	for _, s := range c.Said {
		same := 0
		for _, o := range c.Said {
			if slices.Contains(servers, o.Server) && bytes.Equal(s.Hash, o.Hash) {
				same++
			}
		}
		if 2*same > len(servers) {
			return s.Hash, true
		}
	}
	return nil, false
}

const comparisonsKept = 4

func keyComparison(index uint64) key { return key{spaceComparisons}.u64(index) }

// comparisons returns those that are kept, oldest first.
func comparisons(r reader) (all []Comparison, _ error) {
	for p, err := range r.scan(within(key{spaceComparisons})) {
		if err != nil {
			return nil, err
		}
		c, err := decode[Comparison](p.key, p.value)
		if err != nil {
			return nil, err
		}
		all = append(all, *c)
	}
	return all, nil
}

// ListComparisons lists the comparisons of states that are kept, oldest first.
type ListComparisons struct{}

// Answer implements Question.
func (ListComparisons) Answer(v *View) ([]Comparison, error) { return comparisons(v) }

// compares reports whether an encoded command asks for a comparison: the batch ends
// with it, so that the state can be looked at as it is there.
func compares(command []byte) bool {
	return len(command) >= commandHeader && command[0] == commandFormat &&
		binary.BigEndian.Uint16(command[1:]) == typeCompareState
}

// look hands the state at a comparison to who hashes it.
func (m *Machine) look(results []Result) error {
	last := results[len(results)-1]
	if m.options.Compare == nil || last.Type != typeCompareState || last.Err != nil {
		return nil
	}
	v, err := m.View()
	if err != nil {
		return err
	}
	if v.Index() != last.Index || !m.options.Compare(v) {
		err = errors.Join(err, v.Close())
	}
	return err
}
