package transfer

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"crypto/sha256"

	godigest "github.com/opencontainers/go-digest"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/transfer/slab"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/verify/digest"
)

const (
	// loadTries is how often a chunk is fetched that turns out damaged here.
	loadTries = 3
	// freeBytes is the chunk length up to which Readers do not count against
	// ReadBytes, so that small documents never wait behind large blobs.
	freeBytes = 64 << 10
	// stallLimit is how long a fetch may bring nothing before a reader gives up. The
	// swarm has asked every holder and the servers several times by then.
	stallLimit = 30 * time.Second
	// stallTurns are the waits that make it up. A process that was stopped finds the one
	// over that it was in, however long that took, and not the patience of its readers.
	stallTurns = 6
)

// source gives the chunks of one blob to one user at a time, in order or not.
type source struct {
	c      *Content
	b      meta.Blob
	blob   store.Blob
	m      *chunk.Map
	owned  bool    // blob is ours to close, not the session's
	fetch  Session // nil while all that was asked for is here
	sum    hash.Hash
	summed int // chunks in sum; they are the first ones
}

// open finds b here or starts to fetch it; it returns once the map is known.
func (c *Content) open(ctx context.Context, b meta.Blob) (*source, error) {
	s := &source{c: c, b: b}
	err := s.open(ctx)
	if err == nil && b.PlainBytes > 0 && s.m.PlainBytes != b.PlainBytes {
		err = fmt.Errorf("the map has %d plain bytes, the metadata %d: %w", s.m.PlainBytes, b.PlainBytes, meta.ErrCorrupt)
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("open %s: %w", b.Digest, err)
	}
	return s, nil
}

func (s *source) open(ctx context.Context) error {
	blob, err := s.c.cfg.Store.Open(ctx, s.b.Root)
	switch {
	case err == nil:
		s.blob, s.owned = blob, true
	case !absent(err):
		return err
	}
	if s.blob == nil || !s.blob.Complete() {
		if s.c.cfg.Missed != nil {
			s.c.cfg.Missed(s.b.Root)
		}
		if err := s.join(ctx); err != nil {
			return err
		}
	}
	s.m = s.blob.Map()
	_, checked := s.c.checked.Get(checkKey{s.b.Root, s.b.Digest})
	if !checked && s.b.Seal == "" && s.b.Digest != "" && (s.fetch != nil || s.c.cfg.CheckLocal) {
		s.sum = sha256.New()
	}
	return nil
}

// join starts to fetch what is missing.
func (s *source) join(ctx context.Context) error {
	if s.c.cfg.Fetcher == nil {
		return fmt.Errorf("it is not here and there is nobody to ask: %w", meta.ErrNotFound)
	}
	fetch, err := s.c.cfg.Fetcher.Fetch(ctx, s.b)
	if err != nil {
		return err
	}
	s.fetch = fetch
	if s.blob == nil {
		// Until the map is known there is nothing to see arriving.
		_, err = patiently(ctx, func() int { return 0 }, func(ctx context.Context) (err error) {
			s.blob, err = fetch.Blob(ctx)
			return err
		})
	}
	return err
}

// patiently waits, in turns, until stallTurns of them in a row were over without wait
// having done and without anything having come; stalled says so, err is wait's last.
func patiently(ctx context.Context, come func() int, wait func(context.Context) error) (stalled bool, err error) {
	for still := 0; still < stallTurns; still++ {
		had := come()
		turn, cancel := context.WithTimeout(ctx, stallLimit/stallTurns)
		err = wait(turn)
		over := err != nil && ctx.Err() == nil && turn.Err() != nil
		cancel()
		if !over {
			return false, err
		}
		if come() != had {
			still = -1
		}
	}
	return true, err
}

func (s *source) close() {
	if s.owned {
		_ = s.blob.Close() // only read
	}
	if s.fetch != nil {
		_ = s.fetch.Close() // nothing to report: what arrived is in the store
	}
}

// load returns the verified stored bytes of chunk i, waiting for them if need be.
// dst is as for store.Blob.ReadChunk.
func (s *source) load(ctx context.Context, i int, dst []byte) ([]byte, error) {
	for try := 1; ; try++ {
		if s.fetch != nil && !s.blob.Complete() {
			s.fetch.Prefer(i, s.reach(i))
			if err := s.arrival(ctx, i); err != nil {
				return nil, err
			}
		}
		b, err := s.blob.ReadChunk(ctx, i, dst)
		if err == nil {
			if s.fetch == nil {
				s.c.metrics.local.add(len(b))
			} else {
				s.c.metrics.fetched.add(len(b))
			}
			return b, nil
		}
		if !absent(err) || try == loadTries {
			return nil, err
		}
		// Damaged, or removed under us: get it again.
		s.c.metrics.healed.Inc()
		if s.fetch != nil {
			_ = s.fetch.Close()
			s.fetch = nil
		}
		if err := s.rejoin(ctx, err); err != nil {
			return nil, err
		}
	}
}

// reach is up to where a reader at chunk i wants the blob: to the end, or of one that
// only passes through the cache as much as leaves room for other readers.
func (s *source) reach(i int) int {
	window := s.blob.Window()
	if window == 0 {
		return s.m.Len()
	}
	to, sum := i, int64(0)
	for to < s.m.Len() && (to == i || sum < window/4) {
		sum += int64(s.m.Chunks[to].Stored)
		to++
	}
	return to
}

// arrival waits until chunk i is here. It gives up when no chunk at all came for
// stallLimit: then nobody who can be reached has what is missing, and a client learns
// that instead of waiting for as long as it likes.
func (s *source) arrival(ctx context.Context, i int) error {
	stalled, err := patiently(ctx, func() int { return s.blob.Have().Count() }, func(ctx context.Context) error { return s.fetch.Wait(ctx, i) })
	if stalled {
		err = errors.Join(&meta.UnavailableError{Reason: "no_source", RetryAfter: stallLimit}, err)
	}
	return err
}

// rejoin fetches anew after cause. A blob that was removed has to be created again,
// which the fetch does, so its handle is asked for again too.
func (s *source) rejoin(ctx context.Context, cause error) error {
	old, owned := s.blob, s.owned
	s.blob, s.owned = nil, false
	err := s.join(ctx)
	if s.blob == nil {
		s.blob, s.owned = old, owned
		return errors.Join(cause, err)
	}
	if owned {
		_ = old.Close()
	}
	return err
}

// check takes the plain bytes of chunk i into the sum if they come in order, and
// compares it at the end.
//
// Errors: meta.ErrCorrupt wrapping *digest.MismatchError; the blob is then removed.
func (s *source) check(ctx context.Context, i int, plain []byte) error {
	if s.sum == nil {
		return nil
	}
	if i == 0 {
		s.sum.Reset()
		s.summed = 0
	}
	if i != s.summed {
		return nil
	}
	s.sum.Write(plain)
	if s.summed++; s.summed < s.m.Len() {
		return nil
	}
	return s.conclude(ctx)
}

// conclude compares the sum of all chunks with the digest.
func (s *source) conclude(ctx context.Context) error {
	got := godigest.NewDigest(godigest.SHA256, s.sum)
	s.sum = nil
	if got == s.b.Digest {
		s.c.checked.Add(checkKey{s.b.Root, s.b.Digest}, struct{}{})
		return nil
	}
	s.c.metrics.mismatches.Inc()
	mismatch := &digest.MismatchError{Want: s.b.Digest, Got: got}
	s.c.log.Error("a blob's chunks are right but its digest is not", "digest", s.b.Digest, "root", s.b.Root.String(), "got", got)
	if err := s.c.cfg.Store.Remove(ctx, s.b.Root); err != nil {
		s.c.log.Warn("cannot remove a wrong blob", "root", s.b.Root.String(), "error", err)
	}
	return fmt.Errorf("%w: %w", meta.ErrCorrupt, mismatch)
}

// Ensure brings the whole blob here and compares its sha256, unless that was done by
// this process; on a store that syncs it is then durable. A sealed blob is only
// compared with its chunk map.
//
// Errors: meta.ErrCorrupt when the content does not have the digest (the blob is
// then removed), meta.ErrNotFound, meta.ErrUnavailable, meta.ErrNoSpace (also for a
// blob that a client may read while it passes through), ctx's.
func (c *Content) Ensure(ctx context.Context, b meta.Blob) error {
	s, err := c.open(ctx, b)
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.ensure(ctx); err != nil {
		return fmt.Errorf("ensure %s: %w", b.Digest, err)
	}
	return nil
}

func (s *source) ensure(ctx context.Context) error {
	if s.blob.Window() > 0 {
		return fmt.Errorf("it does not fit the cache beside what is pinned and in use, --cache-size can make that larger: %w", meta.ErrNoSpace)
	}
	_, checked := s.c.checked.Get(checkKey{s.b.Root, s.b.Digest})
	if checked || s.b.Seal != "" || s.b.Digest == "" {
		s.sum = nil
	} else {
		s.sum = sha256.New()
	}
	if s.sum == nil && s.blob.Complete() {
		return nil
	}
	for i := range s.m.Chunks {
		if err := s.ensureChunk(ctx, i); err != nil {
			return err
		}
	}
	if s.sum != nil { // of no chunks
		if err := s.conclude(ctx); err != nil {
			return err
		}
	}
	if !s.blob.Complete() {
		return fmt.Errorf("chunks went missing meanwhile: %w", meta.ErrUnavailable)
	}
	return nil
}

func (s *source) ensureChunk(ctx context.Context, i int) error {
	p, err := s.c.piece(ctx, s, i, nil)
	if err != nil {
		return err
	}
	defer p.release()
	return s.check(ctx, i, p.b)
}

// piece is one chunk in memory, accounted for until release.
type piece struct {
	b       []byte
	err     error
	release func()
}

// piece loads chunk i of s within the memory that Readers may use. If that is scarce
// and wanted not nil, it waits for a signal there before it queues for memory: what
// is read ahead gives way to what a client waits for.
func (c *Content) piece(ctx context.Context, s *source, i int, wanted <-chan struct{}) (piece, error) {
	length := int64(s.m.Chunks[i].Stored)
	var counted int64
	if length > freeBytes {
		counted = length
		if !c.memory.TryAcquire(counted) {
			if wanted != nil {
				select {
				case <-wanted:
				case <-ctx.Done():
					return piece{}, ctx.Err()
				}
			}
			if err := c.memory.Acquire(ctx, counted); err != nil {
				return piece{}, err
			}
		}
	}
	var buf []byte
	if length > freeBytes {
		buf = slab.Get(int(length))
	} else {
		buf = make([]byte, length)
	}
	release := func() {
		if length > freeBytes {
			slab.Put(buf)
		}
		c.memory.Release(counted)
	}
	b, err := s.load(ctx, i, buf)
	if err != nil {
		release()
		return piece{}, err
	}
	return piece{b: b, release: release}, nil
}

// Reader reads the plain bytes of a blob that is here or arriving. It is an
// io.ReadSeekCloser and io.WriterTo, for one goroutine at a time. Any number of
// Readers may read one blob.
type Reader struct {
	src *source
	// ctx is Open's: the io interfaces have no other way for it.
	ctx    context.Context
	cancel context.CancelFunc

	at    int64 // plain offset of the next byte
	cur   piece // the chunk that holds at, if curAt >= 0
	curAt int   // its index
	last  int   // index of the chunk loaded last, -1 at first
	ahead *ahead
	err   error
}

// ahead is a goroutine that loads chunks in order before they are asked for.
type ahead struct {
	next   int // index that pieces yields next
	pieces chan piece
	wanted chan struct{} // has a signal while somebody waits for pieces
	stop   context.CancelFunc
}

// Open returns a Reader of b's plain bytes. It returns when the chunk map is known,
// which for a blob that is not here takes a round trip; bytes come as they arrive.
// ctx ends the Reader.
//
// Errors: meta.ErrNotFound, meta.ErrUnavailable, meta.ErrNoSpace, ctx's;
// meta.ErrInvalid for a sealed blob, which this Content cannot unseal.
func (c *Content) Open(ctx context.Context, b meta.Blob) (*Reader, error) {
	if b.Seal != "" {
		return nil, fmt.Errorf("open %s: it is sealed with %s: %w", b.Digest, b.Seal, meta.ErrInvalid)
	}
	ctx, cancel := context.WithCancel(ctx)
	s, err := c.open(ctx, b)
	if err != nil {
		cancel()
		return nil, err
	}
	c.metrics.readers.Inc()
	return &Reader{src: s, ctx: ctx, cancel: cancel, curAt: -1, last: -1}, nil
}

// Size returns the length of the plain bytes.
func (r *Reader) Size() int64 { return r.src.m.PlainBytes }

// Close ends the reading ahead and lets go of the blob.
func (r *Reader) Close() error {
	if r.cancel == nil {
		return nil
	}
	r.cancel()
	r.cancel = nil
	r.stopAhead()
	r.dropCurrent()
	r.src.close()
	r.src.c.metrics.readers.Dec()
	r.err = errClosed
	return nil
}

var errClosed = errors.New("the reader is closed")

// Seek implements io.Seeker; it costs nothing until the next read.
func (r *Reader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += r.at
	case io.SeekEnd:
		offset += r.Size()
	default:
		return r.at, fmt.Errorf("seek from %d: %w", whence, meta.ErrInvalid)
	}
	if offset < 0 {
		return r.at, fmt.Errorf("seek to %d: %w", offset, meta.ErrInvalid)
	}
	r.at = offset
	return offset, nil
}

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	b, err := r.rest()
	if err != nil {
		return 0, err
	}
	n := copy(p, b)
	r.at += int64(n)
	return n, nil
}

// WriteTo implements io.WriterTo: it writes the rest in pieces of a chunk. They may be
// unmapped as soon as w's Write has returned, so w must be one that keeps nothing, not
// even when it fails; net/http's writer for HTTP/2 is none.
func (r *Reader) WriteTo(w io.Writer) (int64, error) {
	var written int64
	for {
		b, err := r.rest()
		if err == io.EOF {
			return written, nil
		}
		if err != nil {
			return written, err
		}
		n, err := w.Write(b)
		r.at += int64(n)
		written += int64(n)
		if err != nil {
			return written, err
		}
	}
}

// rest returns what the current chunk has from at on, at least a byte, or io.EOF.
func (r *Reader) rest() ([]byte, error) {
	if r.err != nil {
		return nil, r.err
	}
	i, within := r.src.m.Find(r.at)
	if i == r.src.m.Len() {
		return nil, r.finish()
	}
	if i != r.curAt {
		r.dropCurrent()
		p, err := r.next(i)
		if err != nil {
			err = fmt.Errorf("read %s at %d: %w", r.src.b.Digest, r.at, err)
			if r.ctx.Err() == nil {
				// A later call may succeed after a seek or another try, but not after this one.
				r.stopAhead()
			}
			return nil, err
		}
		r.cur, r.curAt, r.last = p, i, i
	}
	return r.cur.b[within:], nil
}

// finish is the end; a blob of no chunks is checked here.
func (r *Reader) finish() error {
	r.stopAhead()
	r.dropCurrent()
	if r.src.sum != nil && r.src.m.Len() == 0 {
		if err := r.src.conclude(r.ctx); err != nil {
			return err
		}
	}
	return io.EOF
}

func (r *Reader) dropCurrent() {
	if r.curAt >= 0 {
		r.cur.release()
		r.cur, r.curAt = piece{}, -1
	}
}

// next loads chunk i, from the goroutine that reads ahead if it comes to it. Reading
// ahead starts with the second chunk in a row: a short range needs none.
func (r *Reader) next(i int) (piece, error) {
	if r.ahead != nil && r.ahead.next != i {
		r.stopAhead()
	}
	if r.ahead == nil && r.last >= 0 && i == r.last+1 && i+1 < r.src.m.Len() {
		r.startAhead(i)
	}
	if r.ahead == nil {
		return r.produce(r.ctx, i, nil)
	}
	r.ahead.next++
	r.ahead.wanted <- struct{}{}
	p, ok := <-r.ahead.pieces
	select {
	case <-r.ahead.wanted:
	default: // taken
	}
	if !ok { // it has loaded the last chunk, or failed before
		r.ahead = nil
		return r.produce(r.ctx, i, nil)
	}
	return p, p.err
}

// produce loads and checks chunk i; wanted is as for piece.
func (r *Reader) produce(ctx context.Context, i int, wanted <-chan struct{}) (piece, error) {
	p, err := r.src.c.piece(ctx, r.src, i, wanted)
	if err != nil {
		return piece{}, err
	}
	if err := r.src.check(ctx, i, p.b); err != nil {
		p.release()
		return piece{}, err
	}
	return p, nil
}

func (r *Reader) startAhead(from int) {
	ctx, stop := context.WithCancel(r.ctx)
	a := &ahead{next: from, pieces: make(chan piece, 1), wanted: make(chan struct{}, 1), stop: stop}
	r.ahead = a
	// The source is the goroutine's until the channel is closed.
	go func() {
		defer close(a.pieces)
		for i := from; i < r.src.m.Len(); i++ {
			p, err := r.produce(ctx, i, a.wanted)
			if err != nil {
				p = piece{err: err}
			}
			select {
			case a.pieces <- p:
			case <-ctx.Done():
				if err == nil {
					p.release()
				}
				return
			}
			if err != nil {
				return
			}
		}
	}()
}

// stopAhead ends the goroutine and waits for it.
func (r *Reader) stopAhead() {
	if r.ahead == nil {
		return
	}
	r.ahead.stop()
	for p := range r.ahead.pieces {
		if p.err == nil {
			p.release()
		}
	}
	r.ahead = nil
}
