package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// probeFile is in the directory of the blobs: what goes with it, goes with them.
const probeFile = "probe" + tempSuffix

// Probe tries whether the store can be used: it writes a few bytes as a commit would,
// reads them, and removes them again. A hung disk hangs it.
//
// Errors: meta.ErrNoSpace when nothing new is taken because the disk is full, or down
// to the reserve; others when the store cannot be written or read.
func (d *Disk) Probe(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, dir := range []string{blobsDir, uploadsDir} {
		if _, err := os.Stat(d.path(dir)); err != nil {
			return fmt.Errorf("the blob store %s: %w", d.cfg.Dir, err)
		}
	}
	free, err := d.free()
	if err != nil {
		return err
	}
	path := d.path(blobsDir, probeFile)
	content := binary.BigEndian.AppendUint64([]byte("shoal looks whether it can write here "), uint64(time.Now().UnixNano()))
	if err := d.tryFile(path, content); err != nil {
		return diskError("try the blob store "+d.cfg.Dir, err)
	}
	if free <= 0 {
		return fmt.Errorf("the disk of %s is down to its reserve, new blobs are not taken: %w", d.cfg.Dir, meta.ErrNoSpace)
	}
	return nil
}

func (d *Disk) tryFile(path string, content []byte) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close(), unlink(path)) }()
	if _, err := f.Write(content); err != nil {
		return err
	}
	if d.cfg.Fsync {
		if err := fdatasync(f); err != nil {
			return err
		}
	}
	got := make([]byte, len(content))
	if _, err := f.ReadAt(got, 0); err != nil {
		return err
	}
	if !bytes.Equal(got, content) {
		return fmt.Errorf("it read other bytes than it had written: %w", meta.ErrCorrupt)
	}
	return nil
}
