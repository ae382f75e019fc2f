package swarm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/slab"
	"github.com/shoal-registry/shoal/transfer/swarm/core"
	"github.com/shoal-registry/shoal/transfer/wire"
)

const (
	// maxIncoming bounds the data streams of one peer; a few more than it may use, as
	// old ones end.
	maxIncoming = 2 * dataStreams
	// A muxer and a kernel take megabytes to send at once, and messages would wait
	// behind them. So a chunk is written in pieces, of a link no more than two at a
	// time that the kernel has not taken; it takes little itself, see Outlet. A
	// piece with the muxer's header is so many full TLS records.
	muxHeader = 12
	minPiece  = 16<<10 - muxHeader
	maxPiece  = 64<<10 - muxHeader
	// How long a piece should wait at least, or at most, for the kernel; its length
	// follows.
	quickPiece = 5 * time.Millisecond
	slowPiece  = 20 * time.Millisecond
)

// acceptChunks reads the chunks that a peer sends on a stream of its own.
func (s *Swarm) acceptChunks(ctx context.Context, st network.Stream) {
	id := st.Conn().RemotePeer()
	s.mu.Lock()
	l := s.links[id]
	s.mu.Unlock()
	if l == nil || !l.addIncoming(st) {
		_ = st.Reset()
		return
	}
	defer l.removeIncoming(st)
	f := s.flows.begin(l, st, streamIdle)
	defer s.flows.finish(f)
	var head [wire.HeaderBytes]byte
	for {
		if _, err := io.ReadFull(st, head[:]); err != nil {
			_ = st.Reset()
			return
		}
		f.moved.Add(wire.HeaderBytes) // it rests no longer
		f.busy.Store(true)
		h, err := wire.ParseHeader(&head)
		if err == nil {
			err = l.receive(ctx, f, h)
		}
		f.busy.Store(false)
		if err != nil {
			_ = st.Reset()
			s.log.Debug("chunk stream ended", "peer", id, "error", err)
			if errors.Is(err, meta.ErrInvalid) {
				s.broke(id, "chunk", err)
				l.close(err)
			}
			return
		}
	}
}

func (l *link) addIncoming(st network.Stream) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended || l.stream == nil || len(l.incoming) >= maxIncoming {
		return false
	}
	l.incoming[st] = struct{}{}
	return true
}

func (l *link) removeIncoming(st network.Stream) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.incoming, st)
}

// receive reads one chunk, has the store verify and write it, and tells the owner.
//
// Errors: of the stream; meta.ErrInvalid for what was never asked for.
func (l *link) receive(ctx context.Context, f *flow, h wire.Header) error {
	s := l.s
	m := s.channel(h.Channel)
	if m == nil {
		return f.discard(ctx, nil, h) // the fetch has ended
	}
	blob, fit := m.expect(l, h)
	if fit != nil {
		return fit
	}
	if blob == nil { // cancelled, the peer could not know
		m.wasted()
		return f.discard(ctx, m, h)
	}
	defer m.io.Done()
	request, chunk := core.Request(h.Request), int(h.Chunk)
	m.post(func() { m.answer(l, core.Event{Kind: core.Coming, Request: request, Chunk: chunk}) })
	tell := func(kind core.EventKind) {
		m.post(func() { m.answer(l, core.Event{Kind: kind, Request: request, Chunk: chunk}) })
	}
	if err := s.inBytes.take(ctx, f, m.fetchedFor().Class, int64(h.Bytes)); err != nil {
		return err
	}
	defer s.inBytes.drop(f, int64(h.Bytes))
	buf := slab.Get(int(h.Bytes))
	defer slab.Put(buf)
	err := f.fillWithin(ctx, m, h, buf)
	if err == nil {
		err = f.confirm(h)
	}
	if err != nil {
		tell(core.Failed)
		return err
	}
	m.took(l, int64(h.Bytes))
	if !m.pending(h.Request) { // another peer was faster
		m.wasted()
		return nil
	}
	switch err := blob.WriteChunk(ctx, chunk, buf); {
	case err == nil:
		s.metrics.received.WithLabelValues("ok").Inc()
		m.wrote(chunk)
		tell(core.Arrived)
		m.slid()
	case errors.Is(err, meta.ErrCorrupt):
		m.wrong(l, chunk)
		tell(core.Corrupt)
	default:
		tell(core.Failed)
		m.post(func() { m.fail(fmt.Errorf("write chunk %d of %s: %w", chunk, m.root, err)) })
	}
	return nil
}

// fillWithin reads len(b) bytes of a chunk of m, which may be nil, as budgets let it. If
// the sender waits for credit, it has some for the next pieces while one is read.
func (f *flow) fillWithin(ctx context.Context, m *membership, h wire.Header, b []byte) error {
	ahead := 1
	if h.Credit {
		ahead = f.link.creditsAhead()
	}
	var pieces [maxAhead]int
	let := pieces[:0] // in, and not read
	for in, at := 0, 0; at < len(b); {
		for len(let) < ahead && in < len(b) {
			n, err := f.letIn(ctx, m, len(b)-in)
			if err == nil && h.Credit {
				err = f.grant(n)
			}
			if err != nil {
				return err
			}
			let = append(let, n)
			in += n
		}
		if err := f.fill(b[at : at+let[0]]); err != nil {
			return err
		}
		at += let[0]
		let = let[:copy(let, let[1:])]
	}
	return nil
}

// fill reads len(b) bytes.
func (f *flow) fill(b []byte) error {
	for len(b) > 0 {
		n, err := f.st.Read(b)
		f.moved.Add(int64(n))
		b = b[n:]
		if err != nil && len(b) > 0 {
			return err
		}
	}
	return nil
}

// confirm tells the sender that a chunk has come, if it wants to know.
func (f *flow) confirm(h wire.Header) error {
	if !h.Confirm {
		return nil
	}
	_, err := f.st.Write([]byte{wire.Confirmed})
	return err
}

// discard reads a chunk that is not wanted; m is as in fillWithin.
func (f *flow) discard(ctx context.Context, m *membership, h wire.Header) error {
	buf := slab.Get(maxPiece)
	defer slab.Put(buf)
	for left := int(h.Bytes); left > 0; {
		n := min(left, len(buf))
		if err := f.fillWithin(ctx, m, h, buf[:n]); err != nil {
			return err
		}
		left -= n
	}
	return f.confirm(h)
}

// upload sends a chunk and reports whether it left. It waits for one of the peer's
// data streams and for memory, and gives up between pieces when stop is set.
func (m *membership) upload(ctx context.Context, l *link, h wire.Header, out outgoing, stop *atomic.Bool) bool {
	for _, streams := range out.streams(l) {
		select {
		case streams <- struct{}{}:
		case <-l.closed:
			return false
		case <-ctx.Done():
			return false
		}
		defer func() { <-streams }()
	}
	if stop.Load() {
		return false
	}
	if err := m.transmit(ctx, l, h, out, stop); err != nil {
		m.s.log.Debug("chunk was not sent", "peer", l.id, "chunk", h.Chunk, "error", err)
		return false
	}
	m.gave(l, int64(h.Bytes))
	return true
}

// errUnwanted says that the peer has cancelled, errLost that the chunk is not here.
var (
	errUnwanted = errors.New("the peer does not want it any more")
	errLost     = errors.New("the chunk cannot be read")
)

// transmit writes a chunk to a data stream. An idle stream may have been ended by
// the peer meanwhile; then a new one is tried once.
func (m *membership) transmit(ctx context.Context, l *link, h wire.Header, out outgoing, stop *atomic.Bool) error {
	for {
		st, reused, err := l.takeStream(ctx)
		if err != nil {
			return err
		}
		f := m.s.flows.begin(l, st, 0)
		f.busy.Store(true)
		err = m.transmitOn(ctx, f, h, out, stop)
		m.s.flows.finish(f)
		if err == nil || errors.Is(err, errLost) {
			l.giveStream(st)
			return err
		}
		_ = st.Reset()
		if !reused || f.moved.Load() > 0 || ctx.Err() != nil {
			return err
		}
	}
}

// transmitOn holds memory for the chunk while it is being sent.
func (m *membership) transmitOn(ctx context.Context, f *flow, h wire.Header, out outgoing, stop *atomic.Bool) error {
	s := m.s
	if err := s.outBytes.take(ctx, f, out.class(), int64(h.Bytes)); err != nil {
		return err
	}
	defer s.outBytes.drop(f, int64(h.Bytes))
	buf := slab.Get(int(h.Bytes))
	defer slab.Put(buf)
	b, err := m.blob.ReadChunk(ctx, int(h.Chunk), buf[:0])
	if err == nil && len(b) != int(h.Bytes) {
		err = fmt.Errorf("%d bytes instead of %d: %w", len(b), h.Bytes, meta.ErrCorrupt)
	}
	if err != nil {
		s.log.Warn("chunk cannot be served", "root", m.root, "chunk", h.Chunk, "error", err)
		f.link.send(wire.Message{Busy: &wire.Busy{Channel: h.Channel, Request: h.Request}})
		m.post(func() { m.lost(int(h.Chunk)) })
		return fmt.Errorf("%w: %w", errLost, err)
	}
	if err := f.send(ctx, h, b, out, stop); err != nil {
		return err
	}
	return f.confirmed(h)
}

// send writes the header and the chunk in pieces, as budgets let it, and as the
// receiver does if it wants to.
func (f *flow) send(ctx context.Context, h wire.Header, b []byte, out outgoing, stop *atomic.Bool) error {
	l, credit := f.link, len(b)
	if h.Credit {
		credit = 0
	}
	n, err := f.letOut(ctx, out, min(int(l.piece.Load()), wire.HeaderBytes+credit))
	if err != nil {
		return err
	}
	// The header goes with the first bytes, as one frame.
	first := slab.Get(max(n, wire.HeaderBytes))
	h.Put((*[wire.HeaderBytes]byte)(first))
	n = copy(first[wire.HeaderBytes:], b)
	err = f.put(first[:wire.HeaderBytes+n])
	slab.Put(first)
	for err == nil {
		b, credit = b[n:], credit-n
		if len(b) == 0 {
			break
		}
		if h.Credit && credit == 0 {
			if credit, err = f.credit(len(b)); err != nil {
				break
			}
		}
		if stop.Load() {
			return errUnwanted
		}
		if n, err = f.letOut(ctx, out, min(int(l.piece.Load()), credit)); err == nil {
			err = f.put(b[:n])
		}
	}
	return err
}

// put writes a piece when there is room for it.
func (f *flow) put(p []byte) error {
	l := f.link
	paced := l.outlet != nil && f.st.Conn() == l.conn
	if paced {
		select {
		case l.turn <- struct{}{}:
		case <-f.ended:
			return errStalled
		}
		defer func() { <-l.turn }()
		if err := f.await(len(p)); err != nil {
			return err
		}
		l.given += int64(len(p))
	}
	n, err := f.st.Write(p)
	f.moved.Add(int64(n))
	if paced {
		l.given -= int64(len(p) - n) // what was not taken never goes out
	}
	return err
}

var errStalled = errors.New("nothing moves")

// await waits until no more than one piece of the link is on the way to the kernel.
// It is its turn.
func (f *flow) await(n int) error {
	l := f.link
	began := time.Time{}
	for {
		written := l.outlet.Written()
		if written >= l.given { // what else is written counts too, so start anew
			l.given = written
		}
		if l.given-written <= int64(n) {
			break
		}
		if began.IsZero() {
			began = time.Now()
		}
		select {
		case <-l.outlet.Reach(l.given - int64(n)):
		case <-f.ended:
			return errStalled
		}
	}
	if began.IsZero() {
		l.pace(n, 0)
	} else {
		l.pace(n, time.Since(began))
	}
	return nil
}

// confirmed waits until the peer has the chunk.
func (f *flow) confirmed(h wire.Header) error {
	if !h.Confirm {
		return nil
	}
	var answer [1]byte
	if _, err := io.ReadFull(f.st, answer[:]); err != nil {
		return err
	}
	if answer[0] != wire.Confirmed {
		return fmt.Errorf("a chunk is answered with %#x: %w", answer[0], meta.ErrInvalid)
	}
	return nil
}

// pace sets the length of the pieces to come by how long one waited: so little is on
// its way that messages need not wait long behind it, so much that the link is full.
func (l *link) pace(n int, waited time.Duration) {
	switch now := l.piece.Load(); {
	case n < int(now): // the end of a chunk, or judged already
	case waited < quickPiece && now < maxPiece:
		l.piece.Store(2*(now+muxHeader) - muxHeader)
	case waited > slowPiece && now > minPiece:
		l.piece.Store((now+muxHeader)/2 - muxHeader)
	}
}

func (l *link) takeStream(ctx context.Context) (st network.Stream, reused bool, err error) {
	l.mu.Lock()
	if l.ended {
		l.mu.Unlock()
		return nil, false, l.err
	}
	if n := len(l.idle); n > 0 {
		d := l.idle[n-1]
		l.idle = l.idle[:n-1]
		l.mu.Unlock()
		return d.Stream, true, nil
	}
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(network.WithNoDial(ctx, "the link's connection is used"), linkTimeout)
	defer cancel()
	st, err = l.s.cfg.Host.NewStream(ctx, l.id, l.s.chunks)
	return st, false, err
}

func (l *link) giveStream(st network.Stream) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		_ = st.Reset()
		return
	}
	l.idle = append(l.idle, dataStream{st, time.Now()})
}
