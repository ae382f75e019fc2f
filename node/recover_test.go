package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// decided makes a data directory whose recovery was decided and not carried out.
func decided(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for part, epoch := range map[string]uint64{"": 0, recoveryDir: 1} {
		base := filepath.Join(dir, part)
		for _, name := range []string{"state", "raft"} {
			if err := os.MkdirAll(filepath.Join(base, name), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(base, name, "epoch"), fmt.Append(nil, epoch), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		id := identity{Cluster: "c", Node: meta.Node{ID: "n", Role: meta.RoleServer}, Epoch: epoch}
		if err := id.save(base); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, restoringFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// epochOf returns the epoch that all files of a directory are of; -1 when they differ.
func epochOf(t *testing.T, dir string) int {
	t.Helper()
	id, err := loadIdentity(dir)
	if err != nil || id == nil {
		t.Fatalf("identity in %s: %v", dir, err)
	}
	for _, name := range []string{"state", "raft"} {
		text, err := os.ReadFile(filepath.Join(dir, name, "epoch"))
		if err != nil {
			t.Fatal(err)
		}
		if string(text) != fmt.Sprint(id.Epoch) {
			return -1
		}
	}
	return int(id.Epoch)
}

// TestRecoveryIsOneStep: whatever was done of moving the new metadata into place when the
// process died, the next start finishes it, and nothing of two epochs is ever mixed.
func TestRecoveryIsOneStep(t *testing.T) {
	const kept = discardedDir + "epoch-1"
	// As settleRecovery does it.
	var moves [][2]string
	for _, name := range replaced {
		moves = append(moves, [2]string{name, filepath.Join(kept, name)})
	}
	for _, name := range replaced {
		moves = append(moves, [2]string{filepath.Join(recoveryDir, name), name})
	}
	for died := range len(moves) + 1 {
		dir := decided(t)
		if err := errors.Join(os.WriteFile(filepath.Join(dir, recoveryDir, readyFile), nil, 0o600), os.Mkdir(filepath.Join(dir, kept), 0o700)); err != nil {
			t.Fatal(err)
		}
		for _, m := range moves[:died] {
			if err := os.Rename(filepath.Join(dir, m[0]), filepath.Join(dir, m[1])); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			if err := settleRecovery(dir); err != nil {
				t.Fatalf("after %d moves: %v", died, err)
			}
		}
		if now, before := epochOf(t, dir), epochOf(t, filepath.Join(dir, kept)); now != 1 || before != 0 {
			t.Errorf("after %d moves the directory is of epoch %d and what was kept of %d", died, now, before)
		}
		for _, gone := range []string{recoveryDir, restoringFile} {
			if _, err := os.Stat(filepath.Join(dir, gone)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("after %d moves %s is left: %v", died, gone, err)
			}
		}
	}
}

// TestARecoveryThatWasNotDecided leaves the old metadata as it was; a restore has none,
// and must be repeated.
func TestARecoveryThatWasNotDecided(t *testing.T) {
	dir := decided(t)
	if err := settleRecovery(dir); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("a restore: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, restoringFile)); err != nil {
		t.Fatal(err)
	}
	if err := settleRecovery(dir); err != nil {
		t.Fatal(err)
	}
	if now := epochOf(t, dir); now != 0 {
		t.Errorf("a recovery: the directory is of epoch %d", now)
	}
	if _, err := os.Stat(filepath.Join(dir, recoveryDir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is left: %v", recoveryDir, err)
	}
}

// TestDiscard keeps the key and the blobs, and the old metadata aside.
func TestDiscard(t *testing.T) {
	dir := decided(t)
	for _, name := range []string{"node.key", "blobs"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := Discard(dir)
	if err != nil {
		t.Fatal(err)
	}
	if before := epochOf(t, kept); before != 0 {
		t.Errorf("kept is epoch %d", before)
	}
	for _, name := range []string{"node.key", "blobs"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	if joined, err := Joined(dir); err != nil || joined {
		t.Errorf("it still belongs to a cluster: %v %v", joined, err)
	}
	if _, err := Discard(dir); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("once more: %v", err)
	}
}

// TestMountsAreNotMoved: what cannot be renamed is refused before anything is decided.
func TestMountsAreNotMoved(t *testing.T) {
	if err := movable(decided(t), replaced); err != nil {
		t.Error(err)
	}
	if err := movable(t.TempDir(), replaced); err != nil {
		t.Errorf("an empty directory: %v", err)
	}
	if err := movable("/", []string{"proc"}); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("a mount: %v", err)
	}
}
