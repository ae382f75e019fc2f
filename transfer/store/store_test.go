package store_test

import (
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/transfer/store/storetest"
	"github.com/shoal-registry/shoal/verify/digest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDirEnv); dir != "" {
		crashChild(dir)
		return
	}
	if dir := os.Getenv(crashCacheEnv); dir != "" {
		crashCacheChild(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

func TestMemory(t *testing.T) {
	storetest.Run(t, storetest.Harness{
		New: func(t *testing.T) store.Store { return store.NewMemory() },
		Damage: func(t *testing.T, s store.Store, root digest.CID, i int) {
			s.(*store.Memory).Damage(root, i)
		},
	})
}

func TestDisk(t *testing.T) {
	for name, cfg := range map[string]store.DiskConfig{
		"server": {Fsync: true},
		"agent":  {CacheBytes: 1 << 30, HotBytes: -1},
	} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, storetest.Harness{
				New: func(t *testing.T) store.Store {
					cfg.Dir = t.TempDir()
					return openDisk(t, cfg)
				},
				Reopen: func(t *testing.T, s store.Store) store.Store {
					if err := s.(*store.Disk).Close(); err != nil {
						t.Fatal(err)
					}
					return openDisk(t, cfg)
				},
				Damage: func(t *testing.T, s store.Store, root digest.CID, i int) {
					b, err := s.Open(t.Context(), root)
					if err != nil {
						t.Fatal(err)
					}
					at := b.Map().StoredOffset(i)
					_ = b.Close()
					flip(t, whole(cfg.Dir, root), at+1)
				},
			})
		})
	}
}

func openDisk(t testing.TB, cfg store.DiskConfig) *store.Disk {
	t.Helper()
	if cfg.Reserve == 0 {
		cfg.Reserve = -1 // the machine's disk is not under test
	}
	d, err := store.OpenDisk(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// whole is where a complete blob lies.
func whole(dir string, root digest.CID) string {
	return filepath.Join(dir, "blobs", root.Hex()[:2], root.Hex())
}

// flip changes a bit of a file.
func flip(t testing.TB, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
}
