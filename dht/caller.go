package dht

import (
	"bufio"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/trust"
)

const (
	// callsPerServer bounds the requests under way to one server, a stream each;
	// the registrar allows as many again, for restarts.
	callsPerServer = 8
	// reuseFor is how long a stream is kept for the next call, well below the
	// registrar's own patience.
	reuseFor = streamIdle / 2
)

// caller makes calls to registrars over streams that it keeps.
type caller struct {
	host     host.Host
	protocol protocol.ID

	mu      sync.Mutex
	closed  bool
	servers map[peer.ID]*line // bounded by the servers of a region
}

// line is the streams to one server.
type line struct {
	slots chan struct{}
	idle  []*call // the last is the latest used
}

type call struct {
	stream network.Stream
	in     *bufio.Reader
	used   time.Time
}

func newCaller(h host.Host, cluster string) *caller {
	return &caller{host: h, protocol: RegistrarProtocol(cluster), servers: map[peer.ID]*line{}}
}

func (c *caller) line(p peer.ID) *line {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.servers[p]
	if l == nil {
		l = &line{slots: make(chan struct{}, callsPerServer)}
		c.servers[p] = l
	}
	return l
}

func (c *caller) take(l *line, now time.Time) *call {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(l.idle) > 0 {
		last := l.idle[len(l.idle)-1]
		l.idle = l.idle[:len(l.idle)-1]
		if now.Sub(last.used) < reuseFor {
			return last
		}
		last.stream.Reset()
	}
	return nil
}

func (c *caller) keep(l *line, done *call) {
	done.used = time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		done.stream.Reset()
		return
	}
	l.idle = append(l.idle, done)
}

// tidy resets streams that nobody has used for long, all of them when final.
func (c *caller) tidy(now time.Time, final bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = c.closed || final
	for p, l := range c.servers {
		kept := l.idle[:0]
		for _, s := range l.idle {
			if final || now.Sub(s.used) >= reuseFor {
				s.stream.Reset()
			} else {
				kept = append(kept, s)
			}
		}
		clear(l.idle[len(kept):])
		if l.idle = kept; len(kept) == 0 && len(l.slots) == 0 {
			delete(c.servers, p)
		}
	}
}

// do sends req to the server and returns its reply, which may be a refusal. ctx
// must have a deadline.
//
// Errors: of the network; the reply's own form.
func (c *caller) do(ctx context.Context, server meta.NodeID, req request) (reply, error) {
	p, err := trust.PeerID(server)
	if err != nil {
		return reply{}, err
	}
	l := c.line(p)
	select {
	case l.slots <- struct{}{}:
		defer func() { <-l.slots }()
	case <-ctx.Done():
		return reply{}, fmt.Errorf("ask %s: %w", server, ctx.Err())
	}
	if kept := c.take(l, time.Now()); kept != nil {
		// A kept stream may have ended meanwhile; then a new one tells.
		if rep, err := exchange(ctx, kept, req); err == nil {
			c.keep(l, kept)
			return rep, nil
		}
		kept.stream.Reset()
		if ctx.Err() != nil {
			return reply{}, fmt.Errorf("ask %s: %w", server, ctx.Err())
		}
	}
	s, err := c.host.NewStream(ctx, p, c.protocol)
	if err != nil {
		return reply{}, fmt.Errorf("ask %s: %w", server, err)
	}
	fresh := &call{stream: s, in: bufio.NewReader(s)}
	rep, err := exchange(ctx, fresh, req)
	if err != nil {
		s.Reset()
		return reply{}, fmt.Errorf("ask %s: %w", server, err)
	}
	c.keep(l, fresh)
	return rep, nil
}

func exchange(ctx context.Context, on *call, req request) (reply, error) {
	deadline, _ := ctx.Deadline()
	if err := on.stream.SetDeadline(deadline); err != nil {
		return reply{}, err
	}
	stop := context.AfterFunc(ctx, func() { on.stream.Reset() })
	defer stop()
	if err := codec.WriteMessage(on.stream, req); err != nil {
		return reply{}, err
	}
	rep, err := readReply(on.in)
	if err == nil && !stop() {
		err = ctx.Err() // the reset won: the stream is of no further use
	}
	return rep, err
}
