package swarm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/swarm/core"
	"github.com/shoal-registry/shoal/transfer/wire"
)

const (
	streamIdle = time.Minute      // a data stream without a chunk for so long ends
	progress   = 10 * time.Second // a piece must move within
	pieceBytes = 256 << 10
	// maxIncoming bounds the data streams of one peer; a few more than it may use, as
	// old ones end.
	maxIncoming = 2 * dataStreams
	// The system takes megabytes to send at once. A slot would be free long before its
	// chunk has left, the core would choose too early, and messages would wait behind
	// bulk. So within a region no more than stepsAhead steps of a chunk are on their way
	// unconfirmed. Over longer ways that would cost more than it is worth.
	stepsAhead = 2
	minStep    = 16 << 10
	maxStep    = 256 << 10
	quickStep  = 5 * time.Millisecond
	slowStep   = 20 * time.Millisecond
)

// buffers holds chunk buffers by the power of two that fits, from 256 KiB up.
var buffers [6]sync.Pool

func bufferClass(n int) int {
	k := 0
	for k < len(buffers)-1 && n > 256<<10<<k {
		k++
	}
	return k
}

// buffer returns n bytes to be given back by release. A chunk is at most 4 MiB and
// its seal, so the largest class is only allocated as far as that.
func buffer(n int) *[]byte {
	k := bufferClass(n)
	b, _ := buffers[k].Get().(*[]byte)
	if b == nil {
		b = new([]byte)
		*b = make([]byte, min(256<<10<<k, wire.MaxChunkBytes))
	}
	*b = (*b)[:n]
	return b
}

func release(b *[]byte) {
	*b = (*b)[:cap(*b)]
	buffers[bufferClass(len(*b))].Put(b)
}

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
	var head [wire.HeaderBytes]byte
	for {
		_ = st.SetReadDeadline(time.Now().Add(streamIdle))
		if _, err := io.ReadFull(st, head[:]); err != nil {
			_ = st.Reset()
			return
		}
		h, err := wire.ParseHeader(&head)
		if err == nil {
			err = l.receive(ctx, st, header{h})
		}
		if err != nil {
			_ = st.Reset()
			s.log.Debug("chunk stream ended", "peer", id.String(), "error", err)
			if errors.Is(err, meta.ErrInvalid) {
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
func (l *link) receive(ctx context.Context, st network.Stream, h header) error {
	s := l.s
	m := s.channel(h.Channel)
	if m == nil {
		return discard(st, h) // the fetch has ended
	}
	blob, fit := m.expect(l, h.Header)
	if fit != nil {
		return fit
	}
	if blob == nil { // cancelled, the peer could not know
		m.wasted()
		return discard(st, h)
	}
	defer m.io.Done()
	request, chunk := core.Request(h.Request), int(h.Chunk)
	m.post(func() { m.answer(l, core.Event{Kind: core.Coming, Request: request, Chunk: chunk}) })
	fail := func(kind core.EventKind) {
		m.post(func() { m.answer(l, core.Event{Kind: kind, Request: request, Chunk: chunk}) })
	}
	if err := s.inBytes.Acquire(ctx, int64(h.Bytes)); err != nil {
		return err
	}
	defer s.inBytes.Release(int64(h.Bytes))
	buf := buffer(int(h.Bytes))
	defer release(buf)
	if err := h.each(func(from, to int) error {
		_ = st.SetReadDeadline(time.Now().Add(progress))
		if _, err := io.ReadFull(st, (*buf)[from:to]); err != nil {
			return err
		}
		return h.confirm(st)
	}); err != nil {
		fail(core.Failed)
		return err
	}
	m.took(l, int64(h.Bytes))
	if !m.pending(h.Request) { // another peer was faster
		m.wasted()
		return nil
	}
	switch err := blob.WriteChunk(ctx, chunk, *buf); {
	case err == nil:
		s.metrics.received.WithLabelValues("ok").Inc()
		m.wrote(chunk)
		fail(core.Arrived)
	case errors.Is(err, meta.ErrCorrupt):
		m.wrong(l, chunk)
		fail(core.Corrupt)
	default:
		fail(core.Failed)
		m.post(func() { m.fail(fmt.Errorf("write chunk %d of %s: %w", chunk, m.root, err)) })
	}
	return nil
}

// header is a chunk's header with what both ends do by it.
type header struct{ wire.Header }

// each calls f with the bounds of each step of the chunk.
func (h header) each(f func(from, to int) error) error {
	step := int(h.Step)
	if step == 0 {
		step = pieceBytes
	}
	for from := 0; from < int(h.Bytes); from += step {
		if err := f(from, min(from+step, int(h.Bytes))); err != nil {
			return err
		}
	}
	return nil
}

// confirm tells the sender that a step has come, if it wants to know.
func (h header) confirm(st network.Stream) error {
	if h.Step == 0 {
		return nil
	}
	_ = st.SetWriteDeadline(time.Now().Add(progress))
	_, err := st.Write([]byte{wire.Confirmed})
	return err
}

// discard reads a chunk that is not wanted.
func discard(st network.Stream, h header) error {
	return h.each(func(from, to int) error {
		_ = st.SetReadDeadline(time.Now().Add(progress))
		if _, err := io.CopyN(io.Discard, st, int64(to-from)); err != nil {
			return err
		}
		return h.confirm(st)
	})
}

// upload sends a chunk and reports whether it left. It waits for one of the peer's
// data streams and for memory, and gives up between pieces when stop is set.
func (m *membership) upload(ctx context.Context, l *link, h header, stop *atomic.Bool) bool {
	select {
	case l.sending <- struct{}{}:
	case <-l.closed:
		return false
	case <-ctx.Done():
		return false
	}
	defer func() { <-l.sending }()
	s, chunk := m.s, int(h.Chunk)
	if stop.Load() || s.outBytes.Acquire(ctx, int64(h.Bytes)) != nil {
		return false
	}
	defer s.outBytes.Release(int64(h.Bytes))
	buf := buffer(int(h.Bytes))
	defer release(buf)
	b, err := m.blob.ReadChunk(ctx, chunk, (*buf)[:0])
	if err == nil && len(b) != int(h.Bytes) {
		err = fmt.Errorf("%d bytes instead of %d: %w", len(b), h.Bytes, meta.ErrCorrupt)
	}
	if err != nil {
		s.log.Warn("chunk cannot be served", "root", m.root.String(), "chunk", chunk, "error", err)
		l.send(wire.Message{Busy: &wire.Busy{Channel: h.Channel, Request: h.Request}})
		m.post(func() { m.lost(chunk) })
		return false
	}
	if err := l.transmit(ctx, h, b, stop); err != nil {
		s.log.Debug("chunk was not sent", "peer", l.id.String(), "chunk", chunk, "error", err)
		return false
	}
	m.gave(l, int64(len(b)))
	return true
}

// errUnwanted says that the peer has cancelled.
var errUnwanted = errors.New("the peer does not want it any more")

// transmit writes a chunk to a data stream. An idle stream may have been ended by
// the peer meanwhile; then a new one is tried once.
func (l *link) transmit(ctx context.Context, h header, b []byte, stop *atomic.Bool) error {
	for {
		st, reused, err := l.takeStream(ctx)
		if err != nil {
			return err
		}
		moved, err := l.transmitOn(st, h, b, stop)
		if err == nil {
			l.giveStream(st)
			return nil
		}
		_ = st.Reset()
		if !reused || moved || ctx.Err() != nil {
			return err
		}
	}
}

func (l *link) transmitOn(st network.Stream, h header, b []byte, stop *atomic.Bool) (moved bool, err error) {
	var head [wire.HeaderBytes]byte
	h.Put(&head)
	_ = st.SetWriteDeadline(time.Now().Add(progress))
	if _, err := st.Write(head[:]); err != nil {
		return false, err
	}
	var written [stepsAhead]time.Time // of the steps not confirmed, a ring
	first, last := 0, 0
	confirmed := func() error {
		_ = st.SetReadDeadline(time.Now().Add(progress))
		var answer [1]byte
		if _, err := io.ReadFull(st, answer[:]); err != nil {
			return err
		}
		if answer[0] != wire.Confirmed {
			return fmt.Errorf("a step is answered with %#x: %w", answer[0], meta.ErrInvalid)
		}
		l.pace(h.Step, time.Since(written[first%stepsAhead]))
		first++
		return nil
	}
	if err := h.each(func(from, to int) error {
		if last-first == stepsAhead {
			if err := confirmed(); err != nil {
				return err
			}
		}
		if stop.Load() {
			return errUnwanted
		}
		_ = st.SetWriteDeadline(time.Now().Add(progress))
		n, err := st.Write(b[from:to])
		moved = moved || n > 0
		if h.Step > 0 {
			written[last%stepsAhead] = time.Now()
			last++
		}
		return err
	}); err != nil {
		return moved, err
	}
	for first < last {
		if err := confirmed(); err != nil {
			return true, err
		}
	}
	return true, nil
}

// pace sets the step of the chunks to come by how long one took: so little is on
// its way that messages need not wait long behind it, so much that the link is full.
func (l *link) pace(step uint32, took time.Duration) {
	switch now := l.step.Load(); {
	case now != step: // it was judged already
	case took < quickStep && step < maxStep:
		l.step.Store(2 * step)
	case took > slowStep && step > minStep:
		l.step.Store(step / 2)
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
