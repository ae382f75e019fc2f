package raftmeta_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// A server whose state has something that no command put there is found by comparing
// hashes, stops, does not start again, and joins anew under its key; the others go on.
func TestServerThatDiffersStops(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	all := newStores(ctx, t, 3)
	wrong := all[2]
	wrong.halt()
	tamper(t, wrong.cfg.Dir)
	stopped := make(chan error, 1)
	for _, m := range all {
		m.halt()
		m.cfg.CompareEvery, m.cfg.Bootstrap = 200*time.Millisecond, nil
		if m.cfg.Servers == nil {
			m.cfg.Servers = []meta.Node{all[1].node, m.node}
		}
	}
	wrong.cfg.Fatal = func(err error) {
		select {
		case stopped <- err:
		default:
		}
	}
	for _, m := range all {
		m.start()
	}
	select {
	case err := <-stopped:
		if !errors.Is(err, meta.ErrCorrupt) || !strings.Contains(err.Error(), "shoal rejoin") {
			t.Errorf("it stopped with %v", err)
		}
	case <-ctx.Done():
		t.Fatal("nobody found it")
	}
	wrong.halt()
	if _, err := raftmeta.OpenStore(wrong.cfg); !errors.Is(err, meta.ErrCorrupt) || !strings.Contains(err.Error(), "shoal rejoin") {
		t.Fatalf("it starts again: %v", err)
	}
	if _, err := raftmeta.SetAside(wrong.cfg.Dir, "aside"); err != nil {
		t.Fatal(err)
	}
	wrong.cfg.Servers, wrong.cfg.Rejoins = []meta.Node{all[0].node, all[1].node, wrong.node}, true
	wrong.cfg.Fatal = func(err error) { t.Errorf("after it rejoined: %v", err) }
	wrong.start()
	if err := wrong.store.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	// A comparison that all three have the same word in.
	seen := comparisons(ctx, t, wrong)
	await(ctx, t, "a comparison after it rejoined", func() bool {
		for _, c := range comparisons(ctx, t, wrong) {
			if len(seen) > 0 && c.Index > seen[len(seen)-1].Index && len(c.Said) == 3 {
				hash, ok := c.Majority([]meta.NodeID{all[0].node.ID, all[1].node.ID, wrong.node.ID})
				for _, s := range c.Said {
					ok = ok && string(s.Hash) == string(hash)
				}
				return ok
			}
		}
		return false
	})
}

func comparisons(ctx context.Context, t *testing.T, m *member) []state.Comparison {
	t.Helper()
	all, _, err := raftmeta.Ask(ctx, m.store, meta.Local, state.ListComparisons{})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// tamper writes a record into a stopped server's state.
func tamper(t *testing.T, dir string) {
	t.Helper()
	dbs, err := filepath.Glob(filepath.Join(dir, "state", "db-*"))
	if err != nil || len(dbs) != 1 {
		t.Fatalf("%v, %v", dbs, err)
	}
	db, err := pebble.Open(dbs[0], &pebble.Options{FormatMajorVersion: pebble.FormatTableFormatV6})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Set([]byte("Tnobody made it"), []byte("x"), pebble.Sync), db.Close()); err != nil {
		t.Fatal(err)
	}
}
