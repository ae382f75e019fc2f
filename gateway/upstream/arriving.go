package upstream

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// A large file is given out while it arrives. The server that downloads it cuts it into
// segments, each a blob of the proxy repository like any other: granted, announced and
// swarmed by what is there for blobs, so that a region's hosts take a segment from one
// another, and the server sends about one copy. No version uses a segment, and it is
// unlinked when the file is whole; should the server die, it expires as uploads do.
//
// What a reader was given is unverified until the end, so nobody is given the end before
// the whole was verified: the last segment is never told, its bytes come out of the file's
// own blob. A reader also hashes what it passes on, and holds the last bytes back until
// the sum is that of the file. When it is not, its client's connection breaks off.

const (
	// minArriving is the size from which on a file is given out while it arrives.
	minArriving = 8 << 20
	// Segments grow from the first, which is soon there, to the largest.
	firstSegmentBytes = 1 << 20
	maxSegmentBytes   = 64 << 20
	// maxSegmentTime is when one ends in any case, so that readers of a slow upstream have
	// something to read: pip gives up after 15 s without a byte.
	maxSegmentTime = 2 * time.Second
	// linger is how long segments stay when the file is there: readers in the middle of
	// one finish it.
	linger = time.Minute
	// tailBytes are held back until all were verified.
	tailBytes = 64 << 10
)

// segmentBytes is the length of the i-th segment, from 0, if it comes in time.
func segmentBytes(i int) int64 {
	return min(int64(firstSegmentBytes)<<min(i, 16), maxSegmentBytes)
}

// Segment is a part of a file that still arrives.
type Segment struct {
	Offset int64     `cbor:"1,keyasint,omitempty"`
	Blob   meta.Blob `cbor:"2,keyasint,omitempty"`
}

// Progress is what is new of a file that still arrives.
type Progress struct {
	// Head, in the first one, is what the upstream says of it; Total is its size, -1 when
	// the upstream does not say.
	Head     *meta.Fetched `cbor:"1,keyasint,omitempty"`
	Total    int64         `cbor:"2,keyasint,omitempty"`
	Segments []Segment     `cbor:"3,keyasint,omitempty"`
}

// arrival is what is known of a file that arrives. Segments come in order, without gaps.
type arrival struct {
	mu      sync.Mutex
	known   Progress
	changed chan struct{} // closed at the next change
}

func newArrival() *arrival { return &arrival{changed: make(chan struct{})} }

func (a *arrival) add(p Progress) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p.Head != nil && a.known.Head == nil {
		a.known.Head, a.known.Total = p.Head, p.Total
	}
	a.known.Segments = append(a.known.Segments, p.Segments...)
	close(a.changed)
	a.changed = make(chan struct{})
}

// after returns what is known behind the first n segments, and what is closed when there
// is more.
func (a *arrival) after(n int) (Progress, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.known
	p.Segments = p.Segments[min(n, len(p.Segments)):]
	return p, a.changed
}

// told returns what hears the progress that another server tells.
func told(watch func(*arrival)) func(Progress) {
	if watch == nil {
		return nil
	}
	var into *arrival
	return func(p Progress) {
		if into == nil {
			into = newArrival()
			watch(into)
		}
		into.add(p)
	}
}

// segmenter cuts a body into segments, beside the upload that keeps the whole.
type segmenter struct {
	engine *Engine
	repo   meta.RepoRef
	into   *arrival
	total  int64 // -1 when unknown

	pipe *io.PipeWriter
	off  bool // nothing more is cut
	done chan struct{}
	made []digest.Digest // once done
}

// errEnough ends the cutting, not the download.
var errEnough = errors.New("no more segments")

// segment begins to cut what Write is given. That ends with end, not with ctx.
func (e *Engine) segment(ctx context.Context, repo meta.RepoRef, head meta.Fetched, total int64, into *arrival) *segmenter {
	r, w := io.Pipe()
	s := &segmenter{engine: e, repo: repo, into: into, total: total, pipe: w, done: make(chan struct{})}
	into.add(Progress{Head: &head, Total: total})
	ctx = context.WithoutCancel(ctx)
	e.running.Go(func() {
		defer close(s.done)
		err := s.cut(ctx, bufio.NewReaderSize(r, 64<<10))
		if !errors.Is(err, errEnough) {
			// The file itself is not concerned: readers wait for the rest of it.
			e.log.Warn("a file that arrives is not given out meanwhile", "repository", repo.String(), "error", err)
		}
		r.CloseWithError(errEnough)
	})
	return s
}

// Write takes the next bytes of the body. It never fails the download.
func (s *segmenter) Write(p []byte) (int, error) {
	if !s.off {
		_, err := s.pipe.Write(p)
		s.off = err != nil
	}
	return len(p), nil
}

// cut stores segment after segment. One is told when the first byte behind it is there:
// so it was not the last.
func (s *segmenter) cut(ctx context.Context, r *bufio.Reader) error {
	var at int64
	var held *Segment
	for i := 0; ; i++ {
		if _, err := r.Peek(1); err != nil {
			return errEnough
		}
		if held != nil {
			s.into.add(Progress{Segments: []Segment{*held}})
		}
		p := &piece{r: r, left: segmentBytes(i), until: time.Now().Add(maxSegmentTime)}
		blob, err := s.store(ctx, p, at)
		if err != nil {
			return err
		}
		held = &Segment{Offset: at, Blob: blob}
		at += p.read
	}
}

// piece reads as much as one segment has.
type piece struct {
	r     io.Reader
	read  int64
	left  int64
	until time.Time
	over  bool // the body is
}

// Read implements io.Reader.
func (p *piece) Read(b []byte) (int, error) {
	if p.left == 0 || p.read > 0 && time.Now().After(p.until) {
		return 0, io.EOF
	}
	n, err := p.r.Read(b[:min(int64(len(b)), p.left)])
	p.read, p.left = p.read+int64(n), p.left-int64(n)
	p.over = err == io.EOF
	return n, err
}

// store makes a segment visible to nodes, but for the last one, which nobody is told of.
func (s *segmenter) store(ctx context.Context, p *piece, at int64) (meta.Blob, error) {
	by := catalog.Caller{Who: s.engine.principal()}
	u, err := s.engine.cfg.Catalog.Begin(ctx, by, s.repo, false)
	if err != nil {
		return meta.Blob{}, err
	}
	defer u.Close()
	_, err = u.Append(ctx, p)
	if err == nil && (p.over || at+p.read == s.total) {
		err = errEnough
	}
	if err != nil {
		return meta.Blob{}, errors.Join(err, u.Cancel(context.WithoutCancel(ctx)))
	}
	stored, _, err := u.Commit(ctx, "")
	if err != nil {
		return meta.Blob{}, err
	}
	s.made = append(s.made, stored.Blob.Digest)
	return stored.Blob, nil
}

// end waits until nothing is cut any more, and has the segments unlinked in a while.
func (s *segmenter) end() {
	s.off = true
	s.pipe.Close()
	<-s.done
	if len(s.made) == 0 {
		return
	}
	e := s.engine
	e.running.Go(func() {
		timer := time.NewTimer(linger)
		defer timer.Stop()
		select {
		case <-e.base.Done():
			return // they expire
		case <-timer.C:
		}
		for _, d := range s.made {
			by := catalog.Caller{Who: e.principal()}
			// One that something else uses stays, and one that comes twice goes once.
			if _, err := e.cfg.Catalog.Unlink(e.base, by, s.repo, d); err != nil && !errors.Is(err, meta.ErrConflict) && !errors.Is(err, meta.ErrNotFound) {
				e.log.Debug("a segment is left to expire", "repository", s.repo.String(), "digest", d, "error", err)
			}
		}
	})
}

// Arriving is a file of which the beginning is here.
type Arriving struct {
	// Head is what the upstream says of it: neither Size nor Digest are known. Total is its
	// size, -1 when the upstream does not say.
	Head  meta.Fetched
	Total int64
	// AsOf is what this node knew when the file was not known yet.
	AsOf meta.AsOf

	engine *Engine
	ctx    context.Context
	cancel context.CancelFunc
	from   *arrival
	result chan fetched // one
}

type fetched struct {
	found *Found
	err   error
}

// Stream is Fetch of a File, but for that it does not wait for a large one to be whole:
// then it returns what arrives, to be closed.
func (e *Engine) Stream(ctx context.Context, by catalog.Caller, repo *meta.Repository, w Want) (*Found, *Arriving, error) {
	ctx, cancel := context.WithCancel(ctx)
	result, arrivals := make(chan fetched, 1), make(chan *arrival, 1)
	watch := func(a *arrival) {
		select {
		case arrivals <- a:
		default: // of another server, after the first one died: the result is waited for
		}
	}
	go func() { // It ends with ctx; Arriving.Close waits for it.
		f, err := e.fetch(ctx, by, repo, &w, func(ctx context.Context, repo *meta.Repository, w *Want) (*Found, error) {
			return e.ask(ctx, repo, w, watch)
		})
		result <- fetched{f, err}
	}()
	var from *arrival
	for {
		var changed <-chan struct{}
		if from != nil {
			var p Progress
			if p, changed = from.after(0); len(p.Segments) > 0 {
				e.metrics.answers.WithLabelValues("arriving").Inc()
				_, asOf, _ := e.known(ctx, by, repo, &w) // why it is not known does not matter
				return nil, &Arriving{Head: *p.Head, Total: p.Total, AsOf: asOf, engine: e, ctx: ctx, cancel: cancel, from: from, result: result}, nil
			}
		}
		select {
		case r := <-result:
			cancel()
			return r.found, nil, r.err
		case from = <-arrivals:
		case <-changed:
		}
	}
}

// Close ends the wait for the rest.
func (a *Arriving) Close() error {
	a.cancel()
	r := <-a.result
	a.result <- r // it may be closed twice
	return nil
}

// WriteTo passes on what comes, to the end.
//
// Errors: of w; those of Fetch; *IntegrityError when what was passed on is not what the
// upstream's file is. w has then never had all of it.
func (a *Arriving) WriteTo(w io.Writer) (int64, error) {
	out := &passing{to: w, sum: digest.NewHasher(false)}
	for next := 0; ; {
		select {
		case r := <-a.result:
			a.result <- r
			return a.rest(out, r)
		default:
		}
		p, changed := a.from.after(next)
		if len(p.Segments) > 0 {
			s := p.Segments[0]
			next++
			if s.Offset == out.n {
				if err := a.segment(out, s); out.err != nil {
					return out.n, out.err
				} else if err != nil {
					// Some of its bytes may have been passed on: the rest comes out of the file.
					a.engine.log.Debug("a segment cannot be read, the file is waited for", "error", err)
				}
			}
			continue
		}
		select {
		case r := <-a.result:
			a.result <- r
			return a.rest(out, r)
		case <-changed:
		}
	}
}

func (a *Arriving) segment(out *passing, s Segment) error {
	r, err := a.engine.cfg.Catalog.Open(a.ctx, s.Blob)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.CopyN(out, r, s.Blob.PlainBytes)
	return err
}

// rest passes on what is left, from the file's own blob.
func (a *Arriving) rest(out *passing, r fetched) (int64, error) {
	if r.err != nil {
		return out.n, r.err
	}
	size := r.found.Record.Size
	if out.n > size || a.Total >= 0 && size != a.Total {
		return out.n, fmt.Errorf("%d bytes of %s were passed on, which has %d: %w", out.n, r.found.Record.Path, size, meta.ErrCorrupt)
	}
	body, err := a.engine.Open(a.ctx, r.found)
	if err != nil {
		return out.n, err
	}
	defer body.Close()
	if _, err := body.Seek(out.n, io.SeekStart); err != nil {
		return out.n, err
	}
	if _, err := io.CopyN(out, body, max(0, size-out.n-tailBytes)); err != nil {
		return out.n, err
	}
	tail := make([]byte, size-out.n)
	if _, err := io.ReadFull(body, tail); err != nil {
		return out.n, err
	}
	_, _ = out.sum.Write(tail)
	if got, want := out.sum.SHA256(), r.found.Record.Digest; got != want {
		return out.n, &IntegrityError{Path: r.found.Record.Path, Mismatch: &digest.MismatchError{Want: want, Got: got}}
	}
	n, err := out.to.Write(tail)
	return out.n + int64(n), err
}

// passing hashes and counts what is passed on.
type passing struct {
	to  io.Writer
	sum *digest.Hasher
	n   int64
	err error // of to
}

// Write implements io.Writer.
func (p *passing) Write(b []byte) (int, error) {
	n, err := p.to.Write(b)
	_, _ = p.sum.Write(b[:n])
	p.n += int64(n)
	p.err = err
	return n, err
}

// ServeFile answers a GET or HEAD with a file of the upstream: while it arrives when it is
// large, and all of it is asked for.
//
// Errors: as Fetch and protocol.Serve have them.
func ServeFile(c *protocol.Call, e *Engine, by catalog.Caller, repo *meta.Repository, w Want, content protocol.Content) error {
	ctx, h := c.R.Context(), c.R.Header
	if c.R.Method != http.MethodGet || h.Get("Range") != "" || h.Get("If-None-Match") != "" || h.Get("If-Match") != "" {
		f, err := e.Fetch(ctx, by, repo, w)
		if err != nil {
			return err
		}
		return Serve(c, e, f, content)
	}
	f, a, err := e.Stream(ctx, by, repo, w)
	switch {
	case err != nil:
		return err
	case a == nil:
		return Serve(c, e, f, content)
	}
	defer a.Close()
	if content.ETag == "" && w.Digest != "" && w.Digest.Algorithm() == "sha256" {
		content.ETag = protocol.ETag(w.Digest)
	}
	c.AsOf(a.AsOf)
	out := c.W.Header()
	out.Set("Content-Type", cmp.Or(content.MediaType, a.Head.MediaType, "application/octet-stream"))
	out.Set("Cache-Control", content.Cache.Header(content.Public))
	out.Set("X-Content-Type-Options", "nosniff")
	if content.ETag != "" {
		out.Set("Etag", content.ETag)
	}
	if a.Total >= 0 {
		out.Set("Content-Length", strconv.FormatInt(a.Total, 10))
	}
	c.W.WriteHeader(http.StatusOK)
	_, err = a.WriteTo(c.W)
	return err
}
