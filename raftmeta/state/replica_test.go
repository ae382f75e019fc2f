package state

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func hash(t testing.TB, m *Machine) string {
	t.Helper()
	index, sum, err := m.Hash(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d %x", index, sum)
}

// TestReplicasAgree gives one log to two machines, to the second in batches of any
// size, with restarts in between after which it gets part of the log again.
func TestReplicasAgree(t *testing.T) {
	entries := levelOne()
	one := openMachine(t, t.TempDir())
	var want []Result
	for _, e := range entries {
		r, err := one.Apply(e.Index, e.Term, e.Command)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, r)
	}
	for seed := range uint64(10) {
		random := rand.New(rand.NewPCG(seed, 1))
		dir := t.TempDir()
		two, err := Open(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(entries); {
			n := min(1+random.IntN(20), len(entries)-at)
			results, err := two.ApplyBatch(entries[at : at+n])
			if err != nil {
				t.Fatal(err)
			}
			for i, r := range results {
				if !bytes.Equal(r.Encode(), want[at+i].Encode()) {
					t.Fatalf("entry %d: %+v, the other has %+v", at+i+1, r, want[at+i])
				}
			}
			at += n
			if random.IntN(3) == 0 {
				if err := two.Close(); err != nil {
					t.Fatal(err)
				}
				if two, err = Open(dir, Options{}); err != nil {
					t.Fatal(err)
				}
				back := random.IntN(at + 1)
				if _, err := two.ApplyBatch(entries[back:at]); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got := hash(t, two); got != hash(t, one) {
			t.Errorf("seed %d: %s, the other is %s", seed, got, hash(t, one))
		}
		if err := two.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func stream(t testing.TB, m *Machine) []byte {
	t.Helper()
	c, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	size, err := c.Size()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	n, err := c.WriteTo(&out)
	if err != nil || n != size || n != int64(out.Len()) {
		t.Fatalf("wrote %d of %d bytes, %d arrived: %v", n, size, out.Len(), err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestRestore(t *testing.T) {
	b := newBench(t)
	b.must(image("m1"))
	snapshot := stream(t, b.Machine)

	dir := t.TempDir()
	to := openMachine(t, dir)
	view, err := to.View()
	if err != nil {
		t.Fatal(err)
	}
	if err := to.Restore(bytes.NewReader(snapshot)); err != nil {
		t.Fatal(err)
	}
	if hash(t, to) != hash(t, b.Machine) {
		t.Error("the restored state is another")
	}
	// An old view still reads the old state.
	if _, err := (GetCluster{}).Answer(view); !errors.Is(err, meta.ErrNotFound) || view.Index() != 0 {
		t.Errorf("the old view has index %d: %v", view.Index(), err)
	}
	if err := view.Close(); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*-*")); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
	// It goes on from there, and over a restart.
	b.Machine = to
	b.must(image("m2"))
	before := hash(t, to)
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	if again := openMachine(t, dir); hash(t, again) != before {
		t.Error("after a restart the state is another")
	}
}

func TestRestoreRefusesDamage(t *testing.T) {
	later := newBench(t)
	later.must(image("m1"))
	snapshot := stream(t, later.Machine)
	b := newBench(t)
	before := hash(t, b.Machine)
	for name, damaged := range map[string]io.Reader{
		"empty":      strings.NewReader(""),
		"cut":        bytes.NewReader(snapshot[:len(snapshot)/2]),
		"foreign":    strings.NewReader(strings.Repeat("not a tar ", 1000)),
		"other tar":  bytes.NewReader(append(bytes.Clone(snapshot[:512]), snapshot...)),
		"wrong name": bytes.NewReader(bytes.Replace(snapshot, []byte("MANIFEST-"), []byte("../EVIL--"), 1)),
	} {
		if b.Restore(damaged) == nil {
			t.Errorf("%s: restored", name)
		}
		if got := hash(t, b.Machine); got != before {
			t.Errorf("%s: the state changed", name)
		}
	}
	b.index, _ = b.Applied()
	b.must(CreateTenant{Name: "still"})
}

// A leader may be behind a server that asks it for its state: readers of that server
// were told of what it has.
func TestRestoreOfAnEarlierStateChangesNothing(t *testing.T) {
	b := newBench(t)
	snapshot := stream(t, b.Machine)
	b.must(image("m1"))
	before := hash(t, b.Machine)
	if err := b.Restore(bytes.NewReader(snapshot)); err != nil {
		t.Fatal(err)
	}
	if after := hash(t, b.Machine); after != before {
		t.Error("the state went back")
	}
}

// TestRestoreSurvivesACrash stops a restore at each of its steps on disk.
func TestRestoreSurvivesACrash(t *testing.T) {
	b := newBench(t)
	b.must(image("m1"))
	want := hash(t, b.Machine)
	snapshot := stream(t, b.Machine)
	old := hash(t, openMachine(t, t.TempDir()))

	for _, test := range []struct {
		name  string
		crash func(t *testing.T, dir string)
		want  string
	}{
		{"while it unpacks", func(t *testing.T, dir string) {
			half := filepath.Join(dir, "db-2")
			if err := os.Mkdir(half, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(half, "000001.sst"), []byte("half"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, old},
		{"before the rename", func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, "LIVE.new"), []byte("db-"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, old},
		{"after the rename", func(t *testing.T, dir string) {
			m := openMachine(t, dir)
			view, err := m.View() // It keeps the old database from being removed.
			if err != nil {
				t.Fatal(err)
			}
			if err := m.Restore(bytes.NewReader(snapshot)); err != nil {
				t.Fatal(err)
			}
			copied := filepath.Join(t.TempDir(), "crashed")
			if err := m.Flush(); err != nil {
				t.Fatal(err)
			}
			if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(view.Close(), m.Close(), os.RemoveAll(dir), os.Rename(copied, dir)); err != nil {
				t.Fatal(err)
			}
		}, want},
		{"in a snapshot", func(t *testing.T, dir string) {
			if err := os.MkdirAll(filepath.Join(dir, "checkpoint-1", "db"), 0o700); err != nil {
				t.Fatal(err)
			}
		}, old},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			m, err := Open(dir, Options{})
			if err != nil {
				t.Fatal(err)
			}
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
			test.crash(t, dir)
			if got := hash(t, openMachine(t, dir)); got != test.want {
				t.Errorf("the state is %s, want %s", got, test.want)
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "*-*")); len(left) != 1 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestOpenRefusesAnotherFormat(t *testing.T) {
	dir := t.TempDir()
	m, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.db.Set(keyFormat, []byte("shoal state 9"), nil); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); !errors.Is(err, meta.ErrInvalid) || !strings.Contains(err.Error(), "shoal state 9") {
		t.Errorf("opened: %v", err)
	}
}

func TestOpenDoesNotThrowAwayTheState(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	m, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Restore(bytes.NewReader(stream(t, b.Machine))); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(m.Close(), os.Remove(filepath.Join(dir, liveFile))); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), liveFile) {
		t.Errorf("opened without %s: %v", liveFile, err)
	}
}

func TestClosedMachine(t *testing.T) {
	m, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	waited := make(chan error)
	go func() { waited <- m.Wait(t.Context(), 1) }()
	view, err := m.View()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; !errors.Is(err, ErrClosed) {
		t.Errorf("the wait ended with %v", err)
	}
	if _, err := (ListRegions{}).Answer(view); err != nil {
		t.Errorf("the open view: %v", err)
	}
	if err := view.Close(); err != nil {
		t.Error(err)
	}
	for name, act := range map[string]func() error{
		"apply":    func() error { _, err := m.Apply(1, 1, nil); return err },
		"view":     func() error { _, err := m.View(); return err },
		"snapshot": func() error { _, err := m.Snapshot(); return err },
		"flush":    m.Flush,
		"close":    func() error { return errors.Join(m.Close(), ErrClosed) },
		"follow": func() error {
			for _, err := range feed.Follow(t.Context(), m, 0) {
				return err
			}
			return nil
		},
	} {
		if err := act(); !errors.Is(err, ErrClosed) {
			t.Errorf("%s of a closed machine: %v", name, err)
		}
	}
}

func TestUnknownCommandStops(t *testing.T) {
	b := newBench(t)
	before := hash(t, b.Machine)
	known, err := Encode(Origin{}, Tick{})
	if err != nil {
		t.Fatal(err)
	}
	unknown := bytes.Clone(known)
	unknown[1], unknown[3] = 0xff, 0
	future := bytes.Clone(known)
	future[0] = 9
	for name, command := range map[string][]byte{"type": unknown, "format": future} {
		_, err := b.ApplyBatch([]Entry{{Index: b.index + 1, Term: 1, Command: command}})
		if _, ok := errors.AsType[*UnknownTypeError](err); !ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := b.Apply(b.index+1, 1, []byte("no command")); err == nil {
		t.Error("applied what is no command")
	}
	if got := hash(t, b.Machine); got != before {
		t.Error("the state changed")
	}
	unknown[3] = flagIgnorable
	if r, err := b.Apply(b.index+1, 1, unknown); err != nil || r.Err != nil {
		t.Errorf("an ignorable one: %+v, %v", r, err)
	}
}
