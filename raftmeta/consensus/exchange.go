package consensus

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// exchange is one question and one answer at a time on a stream, the streams
// pooled by peer. Q and A are codec structs.
type exchange[Q, A any] struct {
	host     host.Host
	protocol protocol.ID
	admits   func(peer.ID) bool
	refused  func(peer.ID)
	// answer serves a question. It ends with ctx at the latest.
	answer func(ctx context.Context, from meta.NodeID, q *Q) *A
	log    *slog.Logger

	mu      sync.Mutex
	idle    map[peer.ID][]*line[A]
	serving map[peer.ID]int
	streams map[network.Stream]struct{} // being served
	down    bool
	group   sync.WaitGroup
}

// line is a pooled stream.
type line[A any] struct {
	stream network.Stream
	in     *bufio.Reader
	used   time.Time
}

const (
	idleLines = 4 // a peer
	// A pooled stream is left unused for at most half the time after which the
	// other end gives it up.
	lineFresh = idleStream / 2
)

// open makes the exchange ready to ask.
func (x *exchange[Q, A]) open() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.idle = make(map[peer.ID][]*line[A])
	x.serving = make(map[peer.ID]int)
	x.streams = make(map[network.Stream]struct{})
}

// start takes questions until stop.
func (x *exchange[Q, A]) start(ctx context.Context) {
	x.host.SetStreamHandler(x.protocol, func(s network.Stream) { x.serve(ctx, s) })
}

// stop ends all streams and waits for their goroutines.
func (x *exchange[Q, A]) stop() {
	x.host.RemoveStreamHandler(x.protocol)
	x.mu.Lock()
	x.down = true
	for s := range x.streams {
		_ = s.Reset()
	}
	for _, lines := range x.idle {
		for _, l := range lines {
			_ = l.stream.Reset()
		}
	}
	x.idle = nil
	x.mu.Unlock()
	x.group.Wait()
}

// sweep ends the streams of peers that are no longer admitted.
func (x *exchange[Q, A]) sweep() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for s := range x.streams {
		if !x.admits(s.Conn().RemotePeer()) {
			_ = s.Reset()
		}
	}
}

// serve answers the questions of one stream.
func (x *exchange[Q, A]) serve(ctx context.Context, s network.Stream) {
	from := s.Conn().RemotePeer()
	if !x.admits(from) {
		_ = s.ResetWithError(network.StreamGated)
		x.refused(from)
		return
	}
	x.mu.Lock()
	if x.down || x.serving[from] >= maxStreamsPerPeer {
		x.mu.Unlock()
		_ = s.ResetWithError(network.StreamResourceLimitExceeded)
		return
	}
	x.serving[from]++
	x.streams[s] = struct{}{}
	x.group.Add(1)
	ctx, cancel := context.WithCancel(ctx)
	x.mu.Unlock()
	defer func() {
		cancel()
		_ = s.Reset()
		x.mu.Lock()
		delete(x.streams, s)
		if x.serving[from]--; x.serving[from] == 0 {
			delete(x.serving, from)
		}
		x.mu.Unlock()
		x.group.Done()
	}()
	in := bufio.NewReader(s)
	for {
		_ = s.SetReadDeadline(time.Now().Add(idleStream))
		var q Q
		if err := codec.ReadMessage(in, &q); err != nil {
			if !errors.Is(err, io.EOF) {
				x.log.Debug("a stream ended", "protocol", x.protocol, "peer", from, "error", err)
			}
			return
		}
		a := x.answer(ctx, meta.NodeID(from.String()), &q)
		_ = s.SetWriteDeadline(time.Now().Add(transportTimeout))
		if err := codec.WriteMessage(s, a); err != nil {
			return
		}
	}
}

// errNotSent says that a question did not reach the other end.
var errNotSent = errors.New("not sent")

// ask asks to and waits for the answer until ctx ends; ctx must have a deadline.
//
// Errors: errNotSent when no stream could be had; else the outcome is unknown.
func (x *exchange[Q, A]) ask(ctx context.Context, to meta.NodeID, q *Q) (*A, error) {
	id, err := peer.Decode(string(to))
	if err != nil {
		return nil, fmt.Errorf("ask %q: %w: %w", to, err, errNotSent)
	}
	l, err := x.line(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w: %w", to, err, errNotSent)
	}
	stop := context.AfterFunc(ctx, func() { _ = l.stream.Reset() })
	var a A
	err = codec.WriteMessage(l.stream, q)
	if err == nil {
		err = codec.ReadMessage(l.in, &a)
	}
	if !stop() || err != nil {
		_ = l.stream.Reset()
		if err == nil || ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("ask %s: %w", to, err)
	}
	x.release(id, l)
	return &a, nil
}

// line returns a pooled stream or a new one.
func (x *exchange[Q, A]) line(ctx context.Context, id peer.ID) (*line[A], error) {
	x.mu.Lock()
	for lines := x.idle[id]; len(lines) > 0; lines = x.idle[id] {
		l := lines[len(lines)-1]
		x.idle[id] = lines[:len(lines)-1]
		if time.Since(l.used) < lineFresh && !l.stream.Conn().IsClosed() {
			x.mu.Unlock()
			return l, nil
		}
		_ = l.stream.Reset()
	}
	down := x.down
	x.mu.Unlock()
	if down {
		return nil, context.Canceled
	}
	timeout := transportTimeout
	if end, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(end))
	}
	s, err := openStream(ctx, x.host, id, x.protocol, timeout)
	if err != nil {
		return nil, err
	}
	return &line[A]{stream: s, in: bufio.NewReader(s)}, nil
}

func (x *exchange[Q, A]) release(id peer.ID, l *line[A]) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.down || len(x.idle[id]) >= idleLines {
		_ = l.stream.Reset()
		return
	}
	l.used = time.Now()
	x.idle[id] = append(x.idle[id], l)
}
