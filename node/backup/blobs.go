package backup

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/verify/digest"
)

// maxMapBytes bounds what is read as a chunk map.
const maxMapBytes = 64 << 20

// has reports whether a blob is in the directory. It was checked when it was written, so
// only its length is looked at; Verify reads it.
func (d *Dir) has(b meta.Blob) (bool, error) {
	info, err := os.Stat(d.blob(b.Root))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	if _, err := os.Stat(d.blob(b.Root) + mapSuffix); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	return info.Size() == b.StoredBytes, nil
}

// fetch brings a blob from a server: chunk by chunk as the map says, the whole as its
// digest says, durable before it has its name. What an earlier try left is kept as far
// as it is right. It returns how many bytes came.
//
// Errors: meta.ErrCorrupt for bytes that are not the blob's; of the source; of the disk.
func (d *Dir) fetch(ctx context.Context, src Source, server meta.NodeID, b meta.Blob) (fetched int64, err error) {
	path := d.blob(b.Root)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return 0, err
	}
	out, err := os.OpenFile(path+partSuffix, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, out.Close())
		}
	}()
	hasher := digest.NewHasher(false)
	from, err := d.resume(out, b, hasher)
	if err != nil {
		return 0, err
	}
	ctx, moving, cancel := guard(ctx)
	defer cancel()
	stream, err := src.BackupBlob(ctx, server, b.Root, from)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, stream.Close()) }()
	in := bufio.NewReaderSize(moving(stream), 256<<10)
	encoded, err := readFrame(in)
	if err != nil {
		return 0, err
	}
	if digest.Sum(encoded) != b.Root {
		return 0, fmt.Errorf("server %s gave another map for blob %s: %w", server, b.Root, meta.ErrCorrupt)
	}
	m, err := chunk.Decode(encoded)
	if err != nil {
		return 0, fmt.Errorf("map of blob %s: %w", b.Root, err)
	}
	if err := writeFile(path+mapSuffix, encoded); err != nil {
		return 0, err
	}
	if m.StoredBytes != b.StoredBytes {
		return 0, fmt.Errorf("blob %s has %d bytes, the metadata says %d: %w", b.Root, m.StoredBytes, b.StoredBytes, meta.ErrCorrupt)
	}
	buffer := make([]byte, 0, 1<<20)
	for i := from; i < m.Len(); i++ {
		c := m.Chunks[i]
		buffer = grow(buffer, int(c.Stored))
		if _, err := io.ReadFull(in, buffer); err != nil {
			return fetched, fmt.Errorf("blob %s from server %s broke off in chunk %d: %w: %w", b.Root, server, i, err, meta.ErrUnavailable)
		}
		if digest.Sum(buffer) != c.ID {
			return fetched, fmt.Errorf("server %s gave wrong bytes for chunk %d of blob %s: %w", server, i, b.Root, meta.ErrCorrupt)
		}
		if _, err := out.Write(buffer); err != nil {
			return fetched, err
		}
		_, _ = hasher.Write(buffer) // It never fails.
		fetched += int64(len(buffer))
	}
	if m.Seal == 0 && hasher.SHA256() != b.Digest {
		// The chunks are those of the map, so the map is not of this content.
		return fetched, errors.Join(&digest.MismatchError{Want: b.Digest, Got: hasher.SHA256()}, os.Remove(path+partSuffix))
	}
	if err := errors.Join(out.Sync(), out.Close()); err != nil {
		return fetched, err
	}
	if err := os.Rename(path+partSuffix, path); err != nil {
		return fetched, err
	}
	return fetched, syncDir(filepath.Dir(path))
}

// stall is how long a server may send nothing.
const stall = 2 * time.Minute

// guard returns a context that ends when what is read through moving stands still.
func guard(ctx context.Context) (_ context.Context, moving func(io.Reader) io.Reader, cancel func()) {
	ctx, lose := context.WithCancelCause(ctx)
	timer := time.AfterFunc(stall, func() {
		lose(fmt.Errorf("the server sent nothing for %v: %w", stall, meta.ErrUnavailable))
	})
	return ctx, func(r io.Reader) io.Reader { return &movingReader{r, timer} }, func() {
		timer.Stop()
		lose(nil)
	}
}

type movingReader struct {
	io.Reader
	timer *time.Timer
}

func (m *movingReader) Read(b []byte) (int, error) {
	n, err := m.Reader.Read(b)
	m.timer.Reset(stall)
	return n, err
}

func grow(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n)
	}
	return b[:n]
}

// resume reads what an earlier try left of a blob, and cuts it to the chunks that are
// right; hasher gets their bytes. It returns their number.
func (d *Dir) resume(out *os.File, b meta.Blob, hasher io.Writer) (chunks int, err error) {
	info, err := out.Stat()
	if err != nil || info.Size() == 0 {
		return 0, err
	}
	m, err := d.mapOf(b.Root)
	if err != nil {
		return 0, out.Truncate(0)
	}
	at := int64(0)
	buffer := make([]byte, 0, 1<<20)
	for ; chunks < m.Len(); chunks++ {
		buffer = grow(buffer, int(m.Chunks[chunks].Stored))
		if _, err := out.ReadAt(buffer, at); err != nil || digest.Sum(buffer) != m.Chunks[chunks].ID {
			break
		}
		_, _ = hasher.Write(buffer) // It never fails.
		at += int64(len(buffer))
	}
	if err := out.Truncate(at); err != nil {
		return 0, err
	}
	_, err = out.Seek(at, io.SeekStart)
	return chunks, err
}

// mapOf reads a blob's chunk map.
//
// Errors: meta.ErrNotFound; meta.ErrCorrupt.
func (d *Dir) mapOf(root digest.CID) (*chunk.Map, error) {
	encoded, err := os.ReadFile(d.blob(root) + mapSuffix)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("the map of blob %s is gone: %w", root, meta.ErrNotFound)
	case err != nil:
		return nil, err
	case digest.Sum(encoded) != root:
		return nil, fmt.Errorf("the map of blob %s is damaged: %w", root, meta.ErrCorrupt)
	}
	return chunk.Decode(encoded)
}

// readFrame reads bytes behind their length.
func readFrame(in *bufio.Reader) ([]byte, error) {
	n, err := binary.ReadUvarint(in)
	if err != nil {
		return nil, fmt.Errorf("the answer broke off: %w: %w", err, meta.ErrUnavailable)
	}
	if n > maxMapBytes {
		return nil, fmt.Errorf("a map of %d bytes, at most %d: %w", n, maxMapBytes, meta.ErrCorrupt)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(in, b); err != nil {
		return nil, fmt.Errorf("the answer broke off: %w: %w", err, meta.ErrUnavailable)
	}
	return b, nil
}

// Read gives each chunk of a blob, checked, to take; take must not keep it. The whole is
// checked against its digest at the end.
//
// Errors: meta.ErrNotFound and meta.ErrCorrupt for a blob that is not what it was; of take.
func (d *Dir) Read(ctx context.Context, b meta.Blob, take func(m *chunk.Map, i int, bytes []byte) error) error {
	m, err := d.mapOf(b.Root)
	if err != nil {
		return err
	}
	f, err := os.Open(d.blob(b.Root))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("blob %s is gone: %w", b.Root, meta.ErrNotFound)
	} else if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // It was only read.
	if info, err := f.Stat(); err != nil {
		return err
	} else if info.Size() != m.StoredBytes || info.Size() != b.StoredBytes {
		return fmt.Errorf("blob %s has %d bytes, not %d: %w", b.Root, info.Size(), b.StoredBytes, meta.ErrCorrupt)
	}
	in := bufio.NewReaderSize(f, 256<<10)
	hasher := digest.NewHasher(false)
	buffer := make([]byte, 0, 1<<20)
	for i, c := range m.Chunks {
		if err := ctx.Err(); err != nil {
			return err
		}
		buffer = grow(buffer, int(c.Stored))
		if _, err := io.ReadFull(in, buffer); err != nil {
			return fmt.Errorf("read blob %s: %w", b.Root, err)
		}
		if digest.Sum(buffer) != c.ID {
			return fmt.Errorf("chunk %d of blob %s is damaged: %w", i, b.Root, meta.ErrCorrupt)
		}
		_, _ = hasher.Write(buffer) // It never fails.
		if err := take(m, i, buffer); err != nil {
			return err
		}
	}
	if got := hasher.SHA256(); m.Seal == 0 && got != b.Digest {
		return fmt.Errorf("blob %s: %w: %w", b.Root, &digest.MismatchError{Want: b.Digest, Got: got}, meta.ErrCorrupt)
	}
	return nil
}
