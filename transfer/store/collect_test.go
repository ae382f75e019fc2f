package store

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/verify/digest"
)

func yes() (bool, error) { return true, nil }

func upload1(t *testing.T, d *Disk, content []byte) (Upload, digest.CID) {
	t.Helper()
	u, err := d.NewUpload(t.Context(), UploadOptions{})
	if err == nil {
		_, err = u.Append(t.Context(), bytes.NewReader(content))
	}
	if err != nil {
		t.Fatal(err)
	}
	in, err := u.Commit(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	return u, in.Root
}

// Reading a large blob at a gentle pace takes hours: it keeps nobody from removing it.
func TestCollectWhileScrubbed(t *testing.T) {
	d := testDisk(t, DiskConfig{Dir: t.TempDir(), Fsync: true})
	root := put(t, d, random(2<<20, 1)).Map.Root()
	var collected error
	chunks := 0
	found, err := d.Scrub(t.Context(), root, ScrubOptions{Pace: func(ctx context.Context, _ int64) error {
		if chunks++; chunks == 2 {
			_, collected = d.Collect(ctx, root, yes)
		}
		return nil
	}})
	if err != nil || collected != nil || found.Whole || found.Damaged != 0 {
		t.Errorf("collected: %v; the scrub found %+v: %v", collected, found, err)
	}
	if _, err := d.Open(t.Context(), root); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("a collected blob opens: %v", err)
	}
	if e := d.hold(root); e.refs != 1 || e.yields != 0 {
		t.Errorf("%d uses and %d yields are left", e.refs, e.yields)
	} else {
		d.drop(e)
	}
}

// A blob goes when nobody uses it and it is still to go; what an upload has made stays
// until its handle is closed, also when the blob was there before.
func TestCollect(t *testing.T) {
	d, err := OpenDisk(DiskConfig{Dir: t.TempDir(), Fsync: true, Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	content := bytes.Repeat([]byte("content "), 100_000)
	first, root := upload1(t, d, content)
	if _, err := d.Collect(t.Context(), root, yes); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("collected what was just taken in: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second, _ := upload1(t, d, content)
	if _, err := d.Collect(t.Context(), root, yes); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("collected what joined the one that is there: %v", err)
	}
	if err := errors.Join(second.Close(), second.Close()); err != nil {
		t.Fatal(err)
	}
	reader, err := d.Open(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Collect(t.Context(), root, yes); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("collected what is read: %v", err)
	}
	reader.Yield(true) // it does without
	if _, err := d.Collect(t.Context(), root, func() (bool, error) { return false, nil }); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("collected what is wanted again: %v", err)
	}
	broken := errors.New("broken")
	if _, err := d.Collect(t.Context(), root, func() (bool, error) { return true, broken }); !errors.Is(err, broken) {
		t.Errorf("the answer's error became %v", err)
	}
	freed, err := d.Collect(t.Context(), root, yes)
	if err != nil || freed < int64(len(content)) {
		t.Errorf("freed %d of %d bytes: %v", freed, len(content), err)
	}
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Open(t.Context(), root); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("a collected blob opens: %v", err)
	}
	if freed, err := d.Collect(t.Context(), root, yes); err != nil || freed != 0 {
		t.Errorf("an absent one: %d, %v", freed, err)
	}
	m := chunk.Of(content)
	part, err := d.Create(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	if err := part.WriteChunk(t.Context(), 0, content[:m.Chunks[0].Stored]); err != nil {
		t.Fatal(err)
	}
	if err := part.Close(); err != nil {
		t.Fatal(err)
	}
	if freed, err := d.Collect(t.Context(), root, yes); err != nil || freed == 0 {
		t.Errorf("a partial one: %d, %v", freed, err)
	}
	if infos, err := d.List(t.Context(), digest.CID{}, 10); err != nil || len(infos) != 0 {
		t.Errorf("left are %+v, %v", infos, err)
	}
}

// Uploads of one content and its collection, all at once: what an upload's open handle
// stands for is there.
func TestCollectDuringUploads(t *testing.T) {
	d, err := OpenDisk(DiskConfig{Dir: t.TempDir(), Fsync: true, Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	content := bytes.Repeat([]byte("x"), 300_000)
	root := chunk.Of(content).Root()
	ctx, stop := context.WithCancel(t.Context())
	var group, collector sync.WaitGroup
	collected := 0
	collector.Go(func() {
		for ctx.Err() == nil {
			if freed, err := d.Collect(ctx, root, yes); err == nil && freed > 0 {
				collected++
			} else if err != nil && !errors.Is(err, meta.ErrConflict) {
				t.Error(err)
				return
			}
		}
	})
	for range 4 {
		group.Go(func() {
			for range 50 {
				u, err := d.NewUpload(ctx, UploadOptions{})
				if err == nil {
					_, err = u.Append(ctx, bytes.NewReader(content))
				}
				if err == nil {
					_, err = u.Commit(ctx, "")
				}
				if err != nil {
					t.Error(err)
					return
				}
				b, err := d.Open(ctx, root)
				if err != nil || !b.Complete() {
					t.Errorf("what was taken in is not here: %v", err)
				}
				if err == nil {
					err = errors.Join(b.Close(), u.Close())
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	stop()
	collector.Wait()
	t.Logf("collected %d times during 200 uploads", collected)
}
