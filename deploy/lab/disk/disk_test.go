package disk

import (
	"errors"
	"log"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if os.Geteuid() == 0 {
		if err := Private(); err != nil {
			log.Fatal(err)
		}
	}
	os.Exit(m.Run())
}

func newDisk(t *testing.T, bytes int64) *Disk {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("CI must run the lab's tests as root")
		}
		t.Skip("SKIPPED: not root, so nothing can be mounted")
	}
	dir := t.TempDir()
	d, err := Make(filepath.Join(dir, "image"), filepath.Join(dir, "mount"), bytes)
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

// What was synced survives a power cut, what was only written does not: the lab would
// otherwise miss a missing fsync.
func TestPowerCutLosesWhatWasNotSynced(t *testing.T) {
	d := newDisk(t, 64<<20)
	write := func(name string, sync bool) {
		f, err := os.Create(filepath.Join(d.Mount, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString("content of " + name); err != nil {
			t.Fatal(err)
		}
		if !sync {
			return
		}
		dir, err := os.Open(d.Mount)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		if err := errors.Join(f.Sync(), dir.Sync()); err != nil {
			t.Fatal(err)
		}
	}
	write("synced", true)
	write("written", false)
	if err := d.PowerCut(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.Mount, "late"), nil, 0o600); err == nil {
		t.Error("a disk without power took a file")
	}
	if err := d.Replug(); err != nil {
		t.Fatal(err)
	}
	if content, err := os.ReadFile(filepath.Join(d.Mount, "synced")); err != nil || string(content) != "content of synced" {
		t.Errorf("synced: %q, %v", content, err)
	}
	if content, err := os.ReadFile(filepath.Join(d.Mount, "written")); err == nil && len(content) > 0 {
		t.Errorf("what was not synced is there: %q", content)
	}
}

func TestFillAndEmpty(t *testing.T) {
	d := newDisk(t, 32<<20)
	name := filepath.Join(d.Mount, "big")
	content := make([]byte, 4<<20)
	if err := d.Fill(1 << 20); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, content, 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a full disk says %v", err)
	}
	if err := d.Empty(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Error(err)
	}
	if err := d.Empty(); err != nil {
		t.Errorf("twice: %v", err)
	}
}

func TestFreezeHoldsWrites(t *testing.T) {
	d := newDisk(t, 32<<20)
	if err := d.Freeze(); err != nil {
		t.Fatal(err)
	}
	wrote := make(chan error, 1)
	go func() { wrote <- os.WriteFile(filepath.Join(d.Mount, "held"), []byte("x"), 0o600) }()
	select {
	case err := <-wrote:
		t.Errorf("a frozen disk took a file: %v", err)
		wrote <- err
	case <-t.Context().Done():
	default:
	}
	if err := d.Thaw(); err != nil {
		t.Fatal(err)
	}
	if err := <-wrote; err != nil {
		t.Error(err)
	}
}
