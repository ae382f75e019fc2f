package catalogtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"sync"

	godigest "github.com/opencontainers/go-digest"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Memory is content in maps, for tests of what lies above it. Full, when set,
// makes every append fail for want of space.
type Memory struct {
	mu       sync.Mutex
	blobs    map[digest.CID][]byte
	sessions map[string]*session
	full     bool
	opened   int
}

var _ catalog.Content = (*Memory)(nil)

// NewMemory returns an empty Memory.
func NewMemory() *Memory {
	return &Memory{blobs: map[digest.CID][]byte{}, sessions: map[string]*session{}}
}

// Fill makes the disk full, or empty again.
func (m *Memory) Fill(full bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.full = full
}

// Opened returns how often a blob was opened.
func (m *Memory) Opened() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.opened
}

// Flip changes one bit of every blob.
func (m *Memory) Flip() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, b := range m.blobs {
		if len(b) > 0 {
			b[len(b)/2] ^= 1
		}
	}
}

// Open implements catalog.Content.
func (m *Memory) Open(_ context.Context, b meta.Blob) (catalog.Reader, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.opened++
	body, ok := m.blobs[b.Root]
	if !ok {
		return nil, fmt.Errorf("root %s: %w", b.Root, meta.ErrUnavailable)
	}
	return reader{bytes.NewReader(body)}, nil
}

type reader struct{ *bytes.Reader }

func (reader) Close() error { return nil }

// NewUpload implements catalog.Content.
func (m *Memory) NewUpload(_ context.Context, o store.UploadOptions) (store.Upload, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &session{memory: m, id: rand.Text(), sha512: o.SHA512}
	m.sessions[s.id] = s
	return s, nil
}

// OpenUpload implements catalog.Content.
func (m *Memory) OpenUpload(_ context.Context, id string) (store.Upload, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.sessions[id]
	if !ok {
		return nil, fmt.Errorf("session %s: %w", id, meta.ErrNotFound)
	}
	return s, nil
}

type session struct {
	memory *Memory
	id     string
	sha512 bool
	bytes  []byte
}

func (s *session) ID() string { return s.id }

func (s *session) Offset() int64 {
	s.memory.mu.Lock()
	defer s.memory.mu.Unlock()
	return int64(len(s.bytes))
}

func (s *session) Append(_ context.Context, r io.Reader) (int64, error) {
	s.memory.mu.Lock()
	full := s.memory.full
	s.memory.mu.Unlock()
	if full {
		return 0, fmt.Errorf("append: %w", meta.ErrNoSpace)
	}
	b, err := io.ReadAll(r)
	s.memory.mu.Lock()
	defer s.memory.mu.Unlock()
	s.bytes = append(s.bytes, b...)
	return int64(len(b)), err
}

func (s *session) Commit(_ context.Context, want digest.Digest) (store.Ingested, error) {
	s.memory.mu.Lock()
	defer s.memory.mu.Unlock()
	if _, ok := s.memory.sessions[s.id]; !ok {
		return store.Ingested{}, meta.ErrNotFound
	}
	h := digest.NewHasher(s.sha512)
	h.Write(s.bytes)
	if want != "" {
		if err := h.Check(want); err != nil {
			return store.Ingested{}, err
		}
	}
	in := store.Ingested{
		Digest: h.SHA256(), SHA512: h.SHA512(), Root: digest.Sum([]byte(godigest.SHA256.FromBytes(s.bytes))),
		PlainBytes: h.Size(), StoredBytes: h.Size(),
	}
	s.memory.blobs[in.Root] = s.bytes
	delete(s.memory.sessions, s.id)
	return in, nil
}

func (s *session) Cancel(context.Context) error {
	s.memory.mu.Lock()
	defer s.memory.mu.Unlock()
	if _, ok := s.memory.sessions[s.id]; !ok {
		return meta.ErrNotFound
	}
	delete(s.memory.sessions, s.id)
	return nil
}

func (s *session) Close() error { return nil }
