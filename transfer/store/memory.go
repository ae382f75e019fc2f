package store

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Memory is a Store in maps, for tests. It runs the same suite as Disk, but bounds
// nothing and forgets all when the process ends.
type Memory struct {
	mu      sync.Mutex
	next    int
	blobs   map[digest.CID]*memoryBlob
	uploads map[string]*memoryUpload
}

// NewMemory returns an empty Memory.
func NewMemory() *Memory {
	return &Memory{blobs: map[digest.CID]*memoryBlob{}, uploads: map[string]*memoryUpload{}}
}

type memoryBlob struct {
	s      *Memory
	root   digest.CID
	m      *chunk.Map
	chunks [][]byte // nil is missing
}

// NewUpload implements Store.
func (s *Memory) NewUpload(_ context.Context, o UploadOptions) (Upload, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next++
	u := &memoryUpload{s: s, id: fmt.Sprintf("%032x", s.next), sha512: o.SHA512}
	s.uploads[u.id] = u
	return u, nil
}

// OpenUpload implements Store.
func (s *Memory) OpenUpload(_ context.Context, id string) (Upload, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := s.uploads[id]; u != nil {
		return u, nil
	}
	return nil, fmt.Errorf("upload %q: %w", id, meta.ErrNotFound)
}

// Create implements Store.
func (s *Memory) Create(_ context.Context, m *chunk.Map) (Blob, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	root := m.Root()
	if s.blobs[root] == nil {
		s.blobs[root] = &memoryBlob{s: s, root: root, m: m, chunks: make([][]byte, m.Len())}
	}
	return s.blobs[root], nil
}

// Reuse implements Store.
func (s *Memory) Reuse(_ context.Context, b Blob) *Reuse {
	s.mu.Lock()
	defer s.mu.Unlock()
	byID := map[digest.CID][]byte{}
	for root, other := range s.blobs {
		for i, c := range other.chunks {
			if c != nil && root != b.Root() {
				byID[other.m.Chunks[i].ID] = c
			}
		}
	}
	m, chunks := b.Map(), chunk.NewBitmap(b.Map().Len())
	into := s.blobs[b.Root()]
	for i, c := range m.Chunks {
		if byID[c.ID] != nil && into != nil && into.chunks[i] == nil {
			chunks.Set(i)
		}
	}
	if chunks.Count() == 0 {
		return nil
	}
	return newReuse(chunks, make(chan struct{}, reuseAtOnce), func(ctx context.Context, i int) error {
		return b.WriteChunk(ctx, i, byID[m.Chunks[i].ID])
	}, func() {})
}

// Open implements Store.
func (s *Memory) Open(_ context.Context, root digest.CID) (Blob, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.blobs[root]; b != nil {
		return b, nil
	}
	return nil, fmt.Errorf("open blob %s: %w", root, meta.ErrNotFound)
}

// Remove implements Store.
func (s *Memory) Remove(_ context.Context, root digest.CID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.blobs[root]; b != nil {
		clear(b.chunks)
		delete(s.blobs, root)
	}
	return nil
}

// List implements Store.
func (s *Memory) List(_ context.Context, after digest.CID, limit int) ([]Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Info
	for root, b := range s.blobs {
		if bytes.Compare(root[:], after[:]) > 0 {
			out = append(out, Info{Root: root, StoredBytes: b.m.StoredBytes, Complete: b.have().Full(), LastUse: time.Now()})
		}
	}
	slices.SortFunc(out, func(a, b Info) int { return bytes.Compare(a.Root[:], b.Root[:]) })
	return out[:min(limit, len(out))], nil
}

// Damage changes the stored bytes of chunk i, as a failing disk would.
func (s *Memory) Damage(root digest.CID, i int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.blobs[root]
	b.chunks[i] = append([]byte(nil), b.chunks[i]...)
	b.chunks[i][0] ^= 1
}

func (b *memoryBlob) Root() digest.CID { return b.root }
func (b *memoryBlob) Map() *chunk.Map  { return b.m }
func (b *memoryBlob) Close() error     { return nil }
func (b *memoryBlob) Yield(bool)       {}
func (b *memoryBlob) Window() int64    { return 0 }
func (b *memoryBlob) Complete() bool   { return b.Have().Full() }

func (b *memoryBlob) Have() chunk.Bitmap {
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	return b.have()
}

func (b *memoryBlob) have() chunk.Bitmap {
	have := chunk.NewBitmap(len(b.chunks))
	for i, c := range b.chunks {
		if c != nil {
			have.Set(i)
		}
	}
	return have
}

func (b *memoryBlob) check(ctx context.Context, i int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if i < 0 || i >= len(b.chunks) {
		return fmt.Errorf("chunk %d of %s, which has %d: %w", i, b.root, len(b.chunks), meta.ErrInvalid)
	}
	return nil
}

func (b *memoryBlob) ReadChunk(ctx context.Context, i int, _ []byte) ([]byte, error) {
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	if err := b.check(ctx, i); err != nil {
		return nil, err
	}
	c := b.chunks[i]
	switch {
	case c == nil:
		return nil, fmt.Errorf("chunk %d of %s: %w", i, b.root, meta.ErrNotFound)
	case digest.Sum(c) != b.m.Chunks[i].ID:
		b.chunks[i] = nil
		return nil, fmt.Errorf("chunk %d of %s: %w", i, b.root, meta.ErrCorrupt)
	}
	return c, nil
}

func (b *memoryBlob) WriteChunk(ctx context.Context, i int, data []byte) error {
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	if err := b.check(ctx, i); err != nil {
		return err
	}
	switch {
	case b.chunks[i] != nil:
	case b.s.blobs[b.root] == nil:
		return fmt.Errorf("write chunk %d of %s: %w", i, b.root, meta.ErrNotFound)
	case len(data) != int(b.m.Chunks[i].Stored) || digest.Sum(data) != b.m.Chunks[i].ID:
		return fmt.Errorf("write chunk %d of %s: %w", i, b.root, meta.ErrCorrupt)
	default:
		b.chunks[i] = append(make([]byte, 0, len(data)), data...)
	}
	return nil
}

// memoryUpload is session and handle in one.
type memoryUpload struct {
	s      *Memory
	id     string
	sha512 bool

	busy sync.Mutex
	mu   sync.Mutex
	data []byte
	over bool
}

func (u *memoryUpload) ID() string   { return u.id }
func (u *memoryUpload) Close() error { return nil }

func (u *memoryUpload) Offset() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return int64(len(u.data))
}

func (u *memoryUpload) begin() error {
	if !u.busy.TryLock() {
		return fmt.Errorf("upload %s: another request is using it: %w", u.id, meta.ErrConflict)
	}
	if u.over {
		u.busy.Unlock()
		return fmt.Errorf("upload %s: %w", u.id, meta.ErrNotFound)
	}
	return nil
}

func (u *memoryUpload) Append(ctx context.Context, r io.Reader) (int64, error) {
	if err := u.begin(); err != nil {
		return 0, err
	}
	defer u.busy.Unlock()
	var n int64
	for buf := make([]byte, 32<<10); ; {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		m, err := r.Read(buf)
		u.mu.Lock()
		u.data = append(u.data, buf[:m]...)
		u.mu.Unlock()
		n += int64(m)
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, fmt.Errorf("append to upload %s: %w", u.id, err)
		}
	}
}

func (u *memoryUpload) Commit(ctx context.Context, want digest.Digest) (Ingested, error) {
	if err := u.begin(); err != nil {
		return Ingested{}, err
	}
	defer u.busy.Unlock()
	hash := digest.NewHasher(u.sha512)
	_, _ = hash.Write(u.data) // never fails
	if want != "" {
		if err := hash.Check(want); err != nil {
			return Ingested{}, fmt.Errorf("commit upload %s: %w", u.id, err)
		}
	}
	m := chunk.Of(u.data)
	b, err := u.s.Create(ctx, m)
	if err != nil {
		return Ingested{}, err
	}
	for i, c := range m.Chunks {
		at := m.StoredOffset(i)
		if err := b.WriteChunk(ctx, i, u.data[at:at+int64(c.Stored)]); err != nil {
			return Ingested{}, err
		}
	}
	u.end()
	return Ingested{
		Digest: hash.SHA256(), SHA512: hash.SHA512(), Map: m, Root: m.Root(),
		PlainBytes: m.PlainBytes, StoredBytes: m.StoredBytes,
	}, nil
}

func (u *memoryUpload) Cancel(context.Context) error {
	if err := u.begin(); err != nil {
		return err
	}
	defer u.busy.Unlock()
	u.end()
	return nil
}

func (u *memoryUpload) end() {
	u.over = true
	u.s.mu.Lock()
	defer u.s.mu.Unlock()
	delete(u.s.uploads, u.id)
}
