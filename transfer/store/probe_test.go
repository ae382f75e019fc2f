package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func TestProbe(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	d, err := OpenDisk(DiskConfig{Dir: dir, Fsync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	probe := func() error { return d.Probe(t.Context()) }
	if err := probe(); err != nil {
		t.Errorf("of a store that is well: %v", err)
	}
	if _, err := os.Stat(d.path(blobsDir, probeFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the probe is left behind: %v", err)
	}
	d.cfg.Reserve = 1 << 62
	if err := probe(); !errors.Is(err, meta.ErrNoSpace) {
		t.Errorf("below the reserve: %v", err)
	}
	d.cfg.Reserve = 0
	if err := os.Rename(d.path(blobsDir), d.path("elsewhere")); err != nil {
		t.Fatal(err)
	}
	if err := probe(); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, meta.ErrNoSpace) {
		t.Errorf("without its blobs: %v", err)
	}
	if err := os.Rename(d.path("elsewhere"), d.path(blobsDir)); err != nil {
		t.Fatal(err)
	}
	if err := probe(); err != nil {
		t.Errorf("of one that came back: %v", err)
	}
	// What is in the way of writing, whoever runs the test: root ignores permissions.
	if err := os.Mkdir(d.path(blobsDir, probeFile), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := probe(); err == nil {
		t.Error("what cannot be written is well")
	}
}
