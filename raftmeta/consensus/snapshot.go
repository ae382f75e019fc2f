package consensus

import (
	"bufio"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// snapshotStore is a raft.SnapshotStore for a machine that is durable by itself. A
// snapshot taken here is only its description: up to which index the machine has
// made its state durable, so that the log before may go. When a follower needs it,
// the state as it is then is streamed, which may be ahead of the description and
// never behind; a machine skips entries that it has. A snapshot installed from the
// leader is kept as a file until the machine has restored it.
//
// On disk, in dir: TERM-INDEX-TIME/meta (codec, with a CRC-32C) and, until restored,
// TERM-INDEX-TIME/state. A directory appears whole, by rename, before older ones go.
type snapshotStore struct {
	dir    string
	freeze func() (Frozen, error)

	mu sync.Mutex // guards the directory
}

var _ raft.SnapshotStore = (*snapshotStore)(nil)

// snapshotMeta is what describes a snapshot.
type snapshotMeta struct {
	Index         uint64 `cbor:"1,keyasint,omitempty"`
	Term          uint64 `cbor:"2,keyasint,omitempty"`
	Configuration []byte `cbor:"3,keyasint,omitempty"` // raft.EncodeConfiguration
	ConfigIndex   uint64 `cbor:"4,keyasint,omitempty"`
	// Installed says that state holds StateBytes with this sum.
	Installed  bool   `cbor:"5,keyasint,omitempty"`
	StateBytes int64  `cbor:"6,keyasint,omitempty"`
	StateSum   uint32 `cbor:"7,keyasint,omitempty"`

	// MachineIndex is how far the machine was, durably.
	MachineIndex uint64 `cbor:"8,keyasint,omitempty"`

	id string // the directory
}

const (
	metaFile  = "meta"
	stateFile = "state"
	partDir   = ".part"
)

func openSnapshots(dir string, freeze func() (Frozen, error)) (*snapshotStore, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if strings.HasSuffix(n.Name(), partDir) {
			if err := os.RemoveAll(filepath.Join(dir, n.Name())); err != nil {
				return nil, err
			}
		}
	}
	return &snapshotStore{dir: dir, freeze: freeze}, nil
}

func snapshotID(term, index uint64) string {
	return fmt.Sprintf("%016x-%016x-%016x", term, index, time.Now().UnixNano())
}

// Create implements raft.SnapshotStore.
func (s *snapshotStore) Create(_ raft.SnapshotVersion, index, term uint64, c raft.Configuration, configIndex uint64,
	_ raft.Transport) (raft.SnapshotSink, error) {
	sink := &snapshotSink{
		store: s, id: snapshotID(term, index), sum: crc32.New(castagnoli),
		meta: snapshotMeta{Index: index, Term: term, Configuration: raft.EncodeConfiguration(c), ConfigIndex: configIndex},
	}
	return sink, os.Mkdir(sink.part(), 0o700)
}

// List implements raft.SnapshotStore: newest first.
func (s *snapshotStore) List() ([]*raft.SnapshotMeta, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, err := s.list()
	if err != nil {
		return nil, err
	}
	out := make([]*raft.SnapshotMeta, len(all))
	for i, m := range all {
		out[i] = m.raft()
	}
	return out, nil
}

func (m snapshotMeta) raft() *raft.SnapshotMeta {
	return &raft.SnapshotMeta{
		Version: raft.SnapshotVersionMax, ID: m.id, Index: m.Index, Term: m.Term,
		Configuration: raft.DecodeConfiguration(m.Configuration), ConfigurationIndex: m.ConfigIndex, Size: m.StateBytes,
	}
}

// list reads all descriptions, newest first. Errors: meta.ErrCorrupt.
func (s *snapshotStore) list() ([]snapshotMeta, error) {
	names, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var all []snapshotMeta
	for _, n := range names {
		if strings.HasSuffix(n.Name(), partDir) {
			continue
		}
		m, err := s.read(n.Name())
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b snapshotMeta) int {
		return strings.Compare(b.id, a.id)
	})
	return all, nil
}

func (s *snapshotStore) read(id string) (snapshotMeta, error) {
	m := snapshotMeta{id: id}
	path := filepath.Join(s.dir, id, metaFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return m, err
	}
	var sealed sealedMeta
	if err := codec.Unmarshal(b, &sealed); err != nil || crc32.Checksum(sealed.Meta, castagnoli) != sealed.Sum {
		return m, fmt.Errorf("snapshot description %s fails its checksum: %w", path, meta.ErrCorrupt)
	}
	return m, codec.Unmarshal(sealed.Meta, &m)
}

type sealedMeta struct {
	Meta []byte `cbor:"1,keyasint,omitempty"`
	Sum  uint32 `cbor:"2,keyasint,omitempty"`
}

// Open implements raft.SnapshotStore.
//
// Errors: fs.ErrNotExist; meta.ErrCorrupt while the state is read.
func (s *snapshotStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.mu.Lock()
	m, err := s.read(id)
	var installed *os.File
	if err == nil && m.Installed {
		installed, err = os.Open(filepath.Join(s.dir, id, stateFile))
	}
	s.mu.Unlock()
	if err != nil {
		return nil, nil, fmt.Errorf("open snapshot %s: %w", id, err)
	}
	if installed != nil {
		return m.raft(), &summedFile{file: installed, in: bufio.NewReaderSize(installed, 1<<18), sum: crc32.New(castagnoli), meta: m}, nil
	}
	frozen, err := s.freeze()
	if err != nil {
		return nil, nil, fmt.Errorf("open snapshot %s: freeze the state: %w", id, err)
	}
	if m.StateBytes, err = frozen.Size(); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("open snapshot %s: %w", id, err), frozen.Close())
	}
	return m.raft(), streamOf(frozen), nil
}

// newest returns the newest description, false when there is none.
func (s *snapshotStore) newest() (snapshotMeta, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, err := s.list()
	if err != nil || len(all) == 0 {
		return snapshotMeta{}, false, err
	}
	return all[0], true, nil
}

// covers returns the index of the newest description, 0 when there is none to be read.
func (s *snapshotStore) covers() uint64 {
	newest, found, err := s.newest()
	if err != nil || !found {
		return 0
	}
	return newest.Index
}

// restored says that the machine has the installed state and is at this index: the
// file goes.
func (s *snapshotStore) restored(machineIndex uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, err := s.list()
	if err != nil {
		return err
	}
	for _, m := range all {
		if !m.Installed {
			continue
		}
		dir := filepath.Join(s.dir, m.id)
		m.Installed, m.StateBytes, m.StateSum, m.MachineIndex = false, 0, 0, machineIndex
		if err := writeSnapshotMeta(dir, m); err != nil {
			return err
		}
		if err := os.Remove(filepath.Join(dir, stateFile)); err != nil {
			return err
		}
	}
	return nil
}

// writeSnapshotMeta replaces a description atomically.
func writeSnapshotMeta(dir string, m snapshotMeta) error {
	b := codec.Encode(m)
	b = codec.Encode(sealedMeta{Meta: b, Sum: crc32.Checksum(b, castagnoli)})
	path := filepath.Join(dir, metaFile)
	f, err := os.OpenFile(path+partDir, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+partDir, path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// snapshotSink receives a snapshot: nothing when it is taken here, the leader's
// state when it is installed.
type snapshotSink struct {
	store *snapshotStore
	id    string
	meta  snapshotMeta
	file  *os.File
	buf   *bufio.Writer
	sum   hash.Hash32
	done  bool
}

func (s *snapshotSink) part() string { return filepath.Join(s.store.dir, s.id+partDir) }

// ID implements raft.SnapshotSink.
func (s *snapshotSink) ID() string { return s.id }

// Write implements raft.SnapshotSink.
func (s *snapshotSink) Write(b []byte) (int, error) {
	if s.file == nil {
		var err error
		if s.file, err = os.OpenFile(filepath.Join(s.part(), stateFile), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600); err != nil {
			return 0, err
		}
		s.buf = bufio.NewWriterSize(s.file, 1<<18)
	}
	n, err := s.buf.Write(b)
	s.sum.Write(b[:n])
	s.meta.StateBytes += int64(n)
	return n, err
}

// Close implements raft.SnapshotSink: the snapshot is durable when it returns, and
// older ones are gone.
func (s *snapshotSink) Close() error {
	if s.done {
		return nil
	}
	s.done = true
	if err := s.finish(); err != nil {
		return errors.Join(fmt.Errorf("keep snapshot %s: %w", s.id, err), os.RemoveAll(s.part()))
	}
	return nil
}

func (s *snapshotSink) finish() error {
	if s.file != nil {
		s.meta.Installed, s.meta.StateSum = true, s.sum.Sum32()
		if err := errors.Join(s.buf.Flush(), s.file.Sync(), s.file.Close()); err != nil {
			return err
		}
	}
	if err := writeSnapshotMeta(s.part(), s.meta); err != nil {
		return err
	}
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	if err := os.Rename(s.part(), filepath.Join(s.store.dir, s.id)); err != nil {
		return err
	}
	if err := syncDir(s.store.dir); err != nil {
		return err
	}
	all, err := s.store.list()
	if err != nil {
		return err
	}
	for _, m := range all {
		if m.id < s.id {
			if err := os.RemoveAll(filepath.Join(s.store.dir, m.id)); err != nil {
				return err
			}
		}
	}
	return nil
}

// Cancel implements raft.SnapshotSink.
func (s *snapshotSink) Cancel() error {
	if s.done {
		return nil
	}
	s.done = true
	var err error
	if s.file != nil {
		err = s.file.Close()
	}
	return errors.Join(err, os.RemoveAll(s.part()))
}

// summedFile reads an installed state and checks it on the way.
type summedFile struct {
	file *os.File
	in   *bufio.Reader
	sum  hash.Hash32
	read int64
	meta snapshotMeta
}

func (f *summedFile) Read(b []byte) (int, error) {
	n, err := f.in.Read(b)
	f.sum.Write(b[:n])
	f.read += int64(n)
	if err == io.EOF && (f.read != f.meta.StateBytes || f.sum.Sum32() != f.meta.StateSum) {
		err = fmt.Errorf("the installed state of index %d fails its checksum: %w", f.meta.Index, meta.ErrCorrupt)
	}
	return n, err
}

func (f *summedFile) Close() error { return f.file.Close() }

// frozenStream is a Frozen as a reader. Its goroutine ends with Close.
type frozenStream struct {
	*io.PipeReader
	frozen Frozen
	done   chan struct{}
}

func streamOf(frozen Frozen) *frozenStream {
	r, w := io.Pipe()
	s := &frozenStream{PipeReader: r, frozen: frozen, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		_, err := frozen.WriteTo(w)
		w.CloseWithError(err)
	}()
	return s
}

func (s *frozenStream) Close() error {
	s.PipeReader.CloseWithError(fs.ErrClosed)
	<-s.done
	return s.frozen.Close()
}
