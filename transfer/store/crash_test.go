package store_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/transfer/store/storetest"
	"github.com/shoal-registry/shoal/verify/digest"
)

// crashDirEnv makes the test binary a writer that waits to be killed.
const crashDirEnv = "SHOAL_STORE_CRASH_DIR"

// crashSize is how large the blob of a number is: mostly small, some of many chunks.
func crashSize(n int) int {
	switch n % 5 {
	case 0:
		return 700<<10 + n
	case 1:
		return 3<<20 + n
	default:
		return 1000 + n
	}
}

// crashChild commits and fills blobs for ever and prints a line for each that the
// store has acknowledged.
func crashChild(dir string) {
	fail := func(err error) {
		if err != nil {
			fmt.Println("fail", err)
			os.Exit(1)
		}
	}
	d, err := store.OpenDisk(store.DiskConfig{Dir: dir, Fsync: true, Reserve: -1})
	fail(err)
	ctx := context.Background()
	base := os.Getpid() * 1000 // other blobs than those of the child before
	for w := range 3 {
		go func() {
			for n := base + w; ; n += 3 {
				content := storetest.Content(crashSize(n), byte(n))
				if n%2 == 0 {
					m := chunk.Of(content)
					b, err := d.Create(ctx, m)
					fail(err)
					for i, c := range m.Chunks {
						at := m.StoredOffset(i)
						fail(b.WriteChunk(ctx, i, content[at:at+int64(c.Stored)]))
					}
					fail(b.Close())
					fmt.Println("blob", n, m.Root().Hex())
					continue
				}
				u, err := d.NewUpload(ctx, store.UploadOptions{})
				fail(err)
				half := len(content) / 2
				_, err = u.Append(ctx, bytes.NewReader(content[:half]))
				fail(err)
				fmt.Println("upload", n, u.ID(), half)
				_, err = u.Append(ctx, bytes.NewReader(content[half:]))
				fail(err)
				in, err := u.Commit(ctx, digest.FromBytes(content))
				fail(err)
				fail(u.Close())
				fmt.Println("blob", n, in.Root.Hex())
			}
		}()
	}
	_, _ = io.Copy(io.Discard, os.Stdin) // until killed, or the parent is
	os.Exit(1)
}

// A process killed at any moment loses nothing that it acknowledged and leaves no
// blob visible that is not whole; upload sessions go on from where they were.
func TestKill(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED by -short: kills processes in a loop")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "store")
	for range 12 {
		acked, uploads := runAndKill(t, exe, crashDirEnv, dir, 3+rand.IntN(25))
		d := openDisk(t, store.DiskConfig{Dir: dir, Fsync: true})
		for root, n := range acked {
			b, err := d.Open(t.Context(), root)
			if err != nil {
				t.Fatalf("blob %d was acknowledged: %v", n, err)
			}
			if !b.Complete() {
				t.Fatalf("blob %d was acknowledged and is not complete", n)
			}
			_ = b.Close()
			if want := chunk.Of(storetest.Content(crashSize(n), byte(n))).Root(); want != root {
				t.Fatalf("blob %d has root %s, want %s", n, root, want)
			}
		}
		checkAll(t, d)
		for id, u := range uploads {
			resume(t, d, id, u)
		}
		if err := d.Sweep(t.Context(), time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		// Keep the next rounds small.
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

type half struct{ n, bytes int }

// runAndKill returns what the child acknowledged before its end, and the uploads
// that were half way.
func runAndKill(t *testing.T, exe, env, dir string, lines int) (acked map[digest.CID]int, uploads map[string]half) {
	t.Helper()
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), env+"="+dir)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	acked, uploads = map[digest.CID]int{}, map[string]half{}
	r := bufio.NewReader(out)
	for n := 0; ; n++ {
		line, err := r.ReadString('\n')
		if err != nil {
			break // killed; a torn line was not acknowledged
		}
		if n == lines {
			_ = cmd.Process.Kill()
		}
		var word, name string
		var u half
		fields, _ := fmt.Sscan(line, &word, &u.n, &name, &u.bytes)
		switch {
		case word == "blob" && fields >= 3:
			root, err := digest.ParseHex(name)
			if err != nil {
				t.Fatal(err)
			}
			acked[root] = u.n
		case word == "upload" && fields == 4:
			uploads[name] = u
		default:
			t.Fatalf("child: %s", strings.TrimSpace(line))
		}
	}
	_ = cmd.Wait() // killed
	return acked, uploads
}

// checkAll fails on a listed complete blob that is not what its name says.
func checkAll(t *testing.T, d *store.Disk) {
	t.Helper()
	infos, err := d.List(t.Context(), digest.CID{}, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range infos {
		if bad, err := d.Verify(t.Context(), info.Root); err != nil || bad > 0 {
			t.Fatalf("%s (complete %v): %d bad chunks, %v", info.Root, info.Complete, bad, err)
		}
	}
}

// resume finishes an upload of the killed process.
func resume(t *testing.T, d *store.Disk, id string, h half) {
	t.Helper()
	u, err := d.OpenUpload(t.Context(), id)
	if err != nil {
		return // it was committed
	}
	defer u.Close()
	content := storetest.Content(crashSize(h.n), byte(h.n))
	at := u.Offset()
	if at < int64(h.bytes) || at > int64(len(content)) {
		t.Fatalf("upload %d is at %d, it was told %d", h.n, at, h.bytes)
	}
	if _, err := u.Append(t.Context(), bytes.NewReader(content[at:])); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Commit(t.Context(), digest.FromBytes(content)); err != nil {
		t.Fatal(err)
	}
}
