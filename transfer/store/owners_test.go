package store

import (
	"testing"

	"github.com/shoal-registry/shoal/verify/digest"
)

// Who owns pins is known over a restart.
func TestOwned(t *testing.T) {
	dir := t.TempDir()
	open := func() *Disk {
		d, err := OpenDisk(DiskConfig{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	a, b := digest.Sum([]byte("a")), digest.Sum([]byte("b"))
	d := open()
	for _, pin := range []struct {
		root  digest.CID
		owner string
	}{{a, "wave/1"}, {b, "wave/1"}, {a, "wave/2"}, {a, "ingest"}} {
		if err := d.Pin(pin.root, pin.owner); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Unpin(b, "wave/1"); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d = open()
	defer d.Close()
	if got := d.Owned("wave/"); len(got) != 2 || len(got["wave/1"]) != 1 || got["wave/1"][0] != a || len(got["wave/2"]) != 1 {
		t.Errorf("owned are %v", got)
	}
}
