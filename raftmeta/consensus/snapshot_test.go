package consensus

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

var someServers = raft.Configuration{Servers: []raft.Server{{ID: "a", Address: "a"}, {ID: "b", Address: "b", Suffrage: raft.Nonvoter}}}

func openTestSnapshots(t *testing.T, dir string) *snapshotStore {
	t.Helper()
	machine := newRegisters()
	machine.values["k"] = "v"
	s, err := openSnapshots(dir, machine.Freeze)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func keep(t *testing.T, s *snapshotStore, index uint64, content []byte) string {
	t.Helper()
	sink, err := s.Create(1, index, 3, someServers, 2, nil)
	if err != nil {
		t.Fatal(err)
	}
	if content != nil {
		if _, err := sink.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
	return sink.ID()
}

func TestSnapshotTaken(t *testing.T) {
	dir := t.TempDir()
	s := openTestSnapshots(t, dir)
	keep(t, s, 10, nil)
	keep(t, s, 20, nil)
	s = openTestSnapshots(t, dir)
	all, err := s.List()
	if err != nil || len(all) != 1 || all[0].Index != 20 || all[0].Term != 3 || all[0].ConfigurationIndex != 2 || len(all[0].Configuration.Servers) != 2 {
		t.Fatalf("%+v, %v", all, err)
	}
	m, stream, err := s.Open(all[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(stream)
	if err = errors.Join(err, stream.Close()); err != nil || int64(len(b)) != m.Size {
		t.Errorf("%d bytes of %d: %v", len(b), m.Size, err)
	}
	other := newRegisters()
	if err := other.Restore(bytes.NewReader(b)); err != nil || other.Get("k") != "v" {
		t.Errorf("%q, %v", other.Get("k"), err)
	}
	// A reader that gives up leaves nothing behind.
	_, stream, err = s.Open(all[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Close(); err != nil {
		t.Error(err)
	}
}

func TestSnapshotInstalled(t *testing.T) {
	dir := t.TempDir()
	s := openTestSnapshots(t, dir)
	content := bytes.Repeat([]byte("state"), 100_000)
	id := keep(t, s, 10, content)
	read := func() ([]byte, error) {
		_, stream, err := s.Open(id)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(stream)
		return b, errors.Join(err, stream.Close())
	}
	if b, err := read(); err != nil || !bytes.Equal(b, content) {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	path := filepath.Join(dir, id, stateFile)
	content[77] ^= 1
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := read(); !errors.Is(err, meta.ErrCorrupt) {
		t.Errorf("a flipped bit reads with %v", err)
	}
	if err := s.restored(12); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the stream is still there: %v", err)
	}
	last, ok, err := s.newest()
	if err != nil || !ok || last.Installed || last.MachineIndex != 12 || last.Index != 10 {
		t.Errorf("%+v, %v, %v", last, ok, err)
	}
}

func TestSnapshotUnfinished(t *testing.T) {
	dir := t.TempDir()
	s := openTestSnapshots(t, dir)
	sink, err := s.Create(1, 10, 3, someServers, 2, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sink.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	if all, err := s.List(); err != nil || len(all) != 0 {
		t.Errorf("a half snapshot is listed: %v, %v", all, err)
	}
	// As after a crash.
	if all, err := openTestSnapshots(t, dir).List(); err != nil || len(all) != 0 {
		t.Errorf("a half snapshot survives: %v, %v", all, err)
	}
	sink, err = s.Create(1, 11, 3, someServers, 2, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := sink.Cancel(); err != nil {
		t.Fatal(err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("%v, %v", names, err)
	}
}

func TestSnapshotDescriptionCorrupt(t *testing.T) {
	dir := t.TempDir()
	s := openTestSnapshots(t, dir)
	id := keep(t, s, 10, nil)
	path := filepath.Join(dir, id, metaFile)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 4
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if m, _, err := s.newest(); err == nil && m.Index != 10 {
			t.Errorf("byte %d: reads as %+v", i, m)
		}
	}
}

// A crash between the arrival of the leader's state and its restore: the next start
// does it, and the log goes on behind it.
func TestInstalledButNotRestored(t *testing.T) {
	c := newCluster(t, 1, nil)
	s := c.servers[0]
	c.set(s, "a", "old")
	s.halt()
	later := newRegisters()
	later.index, later.values["a"] = 50, "installed"
	frozen, err := later.Freeze()
	if err != nil {
		t.Fatal(err)
	}
	store, err := openSnapshots(filepath.Join(s.dir, "snapshots"), s.machine.Freeze)
	if err != nil {
		t.Fatal(err)
	}
	self := raft.Configuration{Servers: []raft.Server{{ID: raftID(s.id), Address: raftAddress(s.id)}}}
	sink, err := store.Create(1, 50, 3, self, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := frozen.WriteTo(sink); err != nil {
		t.Fatal(err)
	}
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
	s.start()
	if got, err := s.get(c.ctx, "a"); err != nil || got != "installed" {
		t.Fatalf("%q, %v", got, err)
	}
	if out := c.set(s, "a", "new"); out.Index <= 50 {
		t.Errorf("written at %d", out.Index)
	}
}
