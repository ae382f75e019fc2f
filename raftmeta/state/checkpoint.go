package state

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/cockroachdb/pebble/v2"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Checkpoint is the state frozen at an index, by hard links to its files.
type Checkpoint struct {
	Index, Term uint64
	dir         string
}

// Snapshot freezes the state as it is now and makes it durable up to its index.
// Close the Checkpoint.
//
// Errors: *StorageError, ErrClosed.
func (m *Machine) Snapshot() (*Checkpoint, error) {
	// Under apply the checkpoint has exactly the applied index.
	m.apply.Lock()
	defer m.apply.Unlock()
	return m.snapshot()
}

// SnapshotView is Snapshot with a View of the same index; close both.
//
// Errors: *StorageError, ErrClosed.
func (m *Machine) SnapshotView() (*Checkpoint, *View, error) {
	m.apply.Lock()
	defer m.apply.Unlock()
	c, err := m.snapshot()
	if err != nil {
		return nil, nil, err
	}
	v, err := m.View()
	if err != nil {
		return nil, nil, errors.Join(err, c.Close())
	}
	return c, v, nil
}

// snapshot is Snapshot under apply.
func (m *Machine) snapshot() (*Checkpoint, error) {
	m.mu.Lock()
	db, c := m.db, &Checkpoint{Index: m.index, Term: m.term}
	m.mu.Unlock()
	if db == nil {
		return nil, ErrClosed
	}
	dir, err := os.MkdirTemp(m.dir, checkpointPrefix)
	if err != nil {
		return nil, &StorageError{Cause: err}
	}
	c.dir = filepath.Join(dir, "db")
	if err := db.Checkpoint(c.dir, pebble.WithFlushedWAL()); err != nil {
		return nil, &StorageError{Cause: errors.Join(err, c.Close())}
	}
	return c, nil
}

// Size returns how many bytes WriteTo writes.
func (c *Checkpoint) Size() (int64, error) {
	entries, err := c.entries()
	if err != nil {
		return 0, err
	}
	const block = 512 // A tar pads files to blocks, and ends with two.
	total := int64(2 * block)
	for _, e := range entries {
		total += block + (e.bytes+block-1)/block*block
	}
	return total, nil
}

// Close frees the checkpoint.
func (c *Checkpoint) Close() error { return os.RemoveAll(filepath.Dir(c.dir)) }

// head is the first file of the stream; it also marks where it ends.
type head struct {
	Format string `cbor:"1,keyasint,omitempty"`
	Index  uint64 `cbor:"2,keyasint,omitempty"`
	Term   uint64 `cbor:"3,keyasint,omitempty"`
	Files  int    `cbor:"4,keyasint,omitempty"`
}

const headFile = "shoal-state"

// WriteTo streams the checkpoint: a tar of a head and the database's files, to be
// read by Restore.
func (c *Checkpoint) WriteTo(w io.Writer) (int64, error) {
	counted := &countingWriter{w: w}
	if err := c.writeTar(counted); err != nil {
		return counted.n, fmt.Errorf("write metadata snapshot at %d: %w", c.Index, err)
	}
	return counted.n, nil
}

// entry is a file of the stream.
type entry struct {
	name    string
	bytes   int64
	content []byte // of the head; else it is the file of that name
}

func (c *Checkpoint) entries() ([]entry, error) {
	files, err := os.ReadDir(c.dir)
	if err != nil {
		return nil, err
	}
	first := codec.Encode(head{Format: formatName, Index: c.Index, Term: c.Term, Files: len(files)})
	entries := []entry{{name: headFile, bytes: int64(len(first)), content: first}}
	for _, f := range files {
		info, err := f.Info()
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry{name: f.Name(), bytes: info.Size()})
	}
	return entries, nil
}

func (c *Checkpoint) writeTar(w io.Writer) error {
	entries, err := c.entries()
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	for _, e := range entries {
		if err := tw.WriteHeader(&tar.Header{Name: e.name, Mode: 0o600, Size: e.bytes, Format: tar.FormatUSTAR}); err != nil {
			return err
		}
		if err := c.writeEntry(tw, e); err != nil {
			return err
		}
	}
	return tw.Close()
}

func (c *Checkpoint) writeEntry(w io.Writer, e entry) error {
	if e.content != nil {
		_, err := w.Write(e.content)
		return err
	}
	f, err := os.Open(filepath.Join(c.dir, e.name))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // It was only read.
	_, err = io.CopyN(w, f, e.bytes)
	return err
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// Restore replaces the state by what Checkpoint.WriteTo wrote, if that is later than
// what is applied here. It lasts when it returns; before that, a crash leaves the
// state as it was. Open Views keep the old state.
//
// Errors: *StorageError; meta.ErrInvalid for a stream of another format,
// meta.ErrCorrupt for one that is cut off or is no snapshot; ErrClosed.
func (m *Machine) Restore(r io.Reader) error {
	m.apply.Lock()
	defer m.apply.Unlock()
	m.mu.Lock()
	old, applied := m.db, m.index
	m.mu.Unlock()
	if old == nil {
		return ErrClosed
	}
	tr := tar.NewReader(r)
	want, err := readHead(tr)
	if err != nil {
		return fmt.Errorf("restore metadata: %w", err)
	}
	if want.Index <= applied {
		return nil
	}
	n, err := generation(filepath.Base(old.dir))
	if err != nil {
		return &StorageError{Cause: err}
	}
	name := databasePrefix + strconv.FormatUint(n+1, 10)
	dir := filepath.Join(m.dir, name)
	db, err := m.unpack(tr, want, dir)
	if err != nil {
		return fmt.Errorf("restore metadata: %w", errors.Join(err, os.RemoveAll(dir)))
	}
	if err := knownLevel(db); err != nil {
		db.gone.Store(true) // The state that this build can use stays.
		return fmt.Errorf("restore metadata: %w", errors.Join(err, db.release()))
	}
	if err := m.setLive(name); err != nil {
		return errors.Join(err, db.release())
	}
	old.gone.Store(true)
	return m.install(db)
}

// unpack writes the stream's files, behind its head, to dir and opens the database
// they make.
func (m *Machine) unpack(tr *tar.Reader, want head, dir string) (*database, error) {
	if err := os.RemoveAll(dir); err != nil {
		return nil, &StorageError{Cause: err}
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, &StorageError{Cause: err}
	}
	for range want.Files {
		h, err := tr.Next()
		if err != nil {
			return nil, fmt.Errorf("snapshot stream: %w: %w", err, meta.ErrCorrupt)
		}
		if h.Typeflag != tar.TypeReg || h.Name != filepath.Base(h.Name) || !filepath.IsLocal(h.Name) {
			return nil, fmt.Errorf("snapshot stream has %q, which is no file of a database: %w", h.Name, meta.ErrCorrupt)
		}
		if err := readFile(tr, filepath.Join(dir, h.Name)); err != nil {
			return nil, err
		}
	}
	if _, err := tr.Next(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("snapshot stream goes on after its %d files: %w", want.Files, meta.ErrCorrupt)
	}
	if err := errors.Join(syncDir(dir), syncDir(m.dir)); err != nil {
		return nil, &StorageError{Cause: err}
	}
	db, err := m.openDatabase(dir, false)
	if err != nil {
		return nil, err
	}
	applied, err := stored{db}.get(keyApplied)
	if err == nil {
		var index uint64
		if index, _, err = parseApplied(applied); err == nil && index != want.Index {
			err = fmt.Errorf("snapshot of index %d holds index %d: %w", want.Index, index, meta.ErrCorrupt)
		}
	}
	if err != nil {
		return nil, errors.Join(err, db.release())
	}
	return db, nil
}

func readHead(tr *tar.Reader) (head, error) {
	var first head
	h, err := tr.Next()
	if err != nil || h.Name != headFile || h.Size > 4<<10 {
		return first, fmt.Errorf("the stream is no metadata snapshot: %w", errors.Join(err, meta.ErrCorrupt))
	}
	b, err := io.ReadAll(tr)
	if err == nil {
		err = codec.Unmarshal(b, &first)
	}
	if err != nil {
		return first, fmt.Errorf("snapshot stream: %w: %w", err, meta.ErrCorrupt)
	}
	if first.Format != formatName {
		return first, fmt.Errorf("the snapshot has format %q, this build reads %q: %w", first.Format, formatName, meta.ErrInvalid)
	}
	return first, nil
}

func readFile(r io.Reader, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return &StorageError{Cause: err}
	}
	if _, err := io.Copy(f, r); err != nil {
		err = errors.Join(err, f.Close())
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("snapshot stream: %w: %w", err, meta.ErrCorrupt)
		}
		return &StorageError{Cause: err}
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return &StorageError{Cause: err}
	}
	return nil
}
