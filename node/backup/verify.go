package backup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/transfer/chunk"
)

// Verified is what a Verify found.
type Verified struct {
	Manifest
	// Read blobs of ReadBytes are as they were; Damaged are not. Peers would have to
	// give Left + Missing + Damaged after a restore.
	Read      int64 `json:"read"`
	ReadBytes int64 `json:"read_bytes"`
	Damaged   int64 `json:"damaged"`
	// Findings are in sentences, at most 100; Names are of what peers would have to give,
	// at most 100.
	Findings []string `json:"findings"`
	Names    []string `json:"needed_from_peers"`
}

// Verify reads all of a backup: its manifest, metadata (opened, and its state hash
// computed), list, which must be what the metadata says, and each blob, chunk by chunk
// and as a whole. temp is a directory to open the metadata in; it is left empty.
//
// Errors: meta.ErrCorrupt for metadata or a list that is not what it was: such a backup
// cannot be restored. Damaged blobs are findings.
func Verify(ctx context.Context, p *Point, temp string) (v Verified, err error) {
	v.Manifest = p.Manifest
	if p.Manifest.Key != nil {
		if err := p.check(*p.Manifest.Key); err != nil {
			return v, err
		}
	}
	stream, err := p.State()
	if err != nil {
		return v, err
	}
	dir, err := os.MkdirTemp(temp, "shoal-verify-")
	if err != nil {
		return v, errors.Join(err, stream.Close())
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	machine, err := state.Open(dir, state.Options{})
	if err != nil {
		return v, errors.Join(err, stream.Close())
	}
	defer func() { err = errors.Join(err, machine.Close()) }()
	err = machine.Restore(bufio.NewReaderSize(stream, 256<<10))
	if err = errors.Join(err, stream.Close()); err != nil {
		return v, fmt.Errorf("backup %s: %w", p.ID, err)
	}
	view, err := viewOf(ctx, machine, &p.Manifest)
	if err != nil {
		return v, fmt.Errorf("backup %s: %w", p.ID, err)
	}
	defer func() { err = errors.Join(err, view.Close()) }()
	return v, p.compare(ctx, view, &v)
}

// compare reads the list beside the metadata.
func (p *Point) compare(ctx context.Context, view *state.View, v *Verified) error {
	entries := make(chan Entry)
	listed := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer close(entries)
		listed <- p.Entries(func(e Entry) error {
			select {
			case entries <- e:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	var last Entry
	sound := false // what became of last
	err := used(ctx, view, func(page []state.UsedBlob) error {
		for _, u := range page {
			e, ok := <-entries
			if !ok {
				return errors.Join(<-listed, fmt.Errorf("the list of backup %s ends before the metadata does: %w", p.ID, meta.ErrCorrupt))
			}
			if want := (Entry{Blob: u.Blob, Here: e.Here, Class: u.Class, Repo: u.Repo}); e.line() != want.line() {
				return fmt.Errorf("the list of backup %s has blob %s where the metadata has %s: %w", p.ID, e.Blob.Root, u.Blob.Root, meta.ErrCorrupt)
			}
			if e.Here == '+' && (last.Here != '+' || last.Blob.Root != e.Blob.Root) {
				var err error
				if sound, err = p.readBlob(ctx, u, v); err != nil {
					return err
				}
			}
			if (e.Here != '+' || !sound) && len(v.Names) < maxNames {
				v.Names = append(v.Names, NamesOf(view, u)...)
			}
			last = e
		}
		return nil
	})
	if err != nil {
		return err
	}
	if e, more := <-entries; more {
		return fmt.Errorf("the list of backup %s has blob %s, which the metadata has not: %w", p.ID, e.Blob.Root, meta.ErrCorrupt)
	}
	return <-listed
}

// readBlob reads one blob of the directory.
func (p *Point) readBlob(ctx context.Context, u state.UsedBlob, v *Verified) (sound bool, err error) {
	err = p.dir.Read(ctx, u.Blob, func(*chunk.Map, int, []byte) error { return nil })
	if err == nil {
		v.Read++
		v.ReadBytes += u.Blob.StoredBytes
		return true, nil
	}
	if ctx.Err() != nil {
		return false, err
	}
	v.Damaged++
	if len(v.Findings) < maxNames {
		v.Findings = append(v.Findings, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return false, nil
}

// Summary says in a sentence what a backup is.
func (m Manifest) Summary() string {
	text := fmt.Sprintf("backup %s of cluster %s: epoch %d, index %d, %d blobs of %d bytes", m.ID, m.Cluster, m.Epoch, m.Index, m.Blobs, m.StoredBytes)
	if m.Left > 0 {
		text += fmt.Sprintf(", %d blobs left to peers (--blobs %s)", m.Left, m.Which)
	}
	if m.Missing > 0 {
		text += fmt.Sprintf(", %d blobs that no server had", m.Missing)
	}
	return text
}

// Dir returns the directory that the point is in.
func (p *Point) Dir() *Dir { return p.dir }
