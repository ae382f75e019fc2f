package swarm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/wire"
)

const (
	linkTimeout = 10 * time.Second // to connect and exchange Hello
	pingEvery   = 5 * time.Second
	linkQueue   = 1024        // messages waiting to be written
	flushBytes  = 64 << 10    // of messages written at once
	linkIdle    = time.Minute // a link that no membership uses is closed
	dataStreams = 4           // chunks sent to one peer at once
)

// link is the relation with one peer for all roots: a control stream and the data
// streams. It is pending until both Hellos are exchanged.
type link struct {
	s       *Swarm
	id      peer.ID
	ready   chan struct{} // closed when up or failed
	closed  chan struct{} // closed when it has ended
	kick    chan struct{} // out is not empty
	rtt     atomic.Int64  // time.Duration
	maps    atomic.Int64  // bytes of maps in out
	outlet  Outlet        // of conn; nil when it has none
	conn    network.Conn  // of the control stream; there may be others to the peer
	piece   atomic.Uint32 // bytes of a chunk written at once
	turn    chan struct{} // held to write a piece, where there is an outlet
	given   int64         // outlet.Written when all pieces are out; of who has the turn
	sending chan struct{}
	// sendingLess is of what is not urgent, which leaves a stream free.
	sendingLess chan struct{}
	took, gave  atomic.Int64 // bytes of chunks
	bad         atomic.Int64 // wrong chunks

	outMu sync.Mutex
	out   []wire.Message // to be written, at most linkQueue
	spare []wire.Message // the writer's: the slice that out was before

	mu       sync.Mutex
	stream   network.Stream // nil while pending
	hello    wire.Hello     // the peer's
	offered  bool           // our Hello is out on a stream of ours
	err      error          // why it ended
	ended    bool
	members  map[*membership]struct{}
	idle     []dataStream // ours, to be used again
	incoming map[network.Stream]struct{}
	unused   time.Time // since when members is empty
}

// dataStream is an open stream to send chunks on.
type dataStream struct {
	network.Stream
	since time.Time // when it was last used
}

func newLink(s *Swarm, id peer.ID) *link {
	l := &link{
		s: s, id: id, ready: make(chan struct{}), closed: make(chan struct{}),
		kick: make(chan struct{}, 1), sending: make(chan struct{}, dataStreams), sendingLess: make(chan struct{}, dataStreams-1),
		members: map[*membership]struct{}{}, incoming: map[network.Stream]struct{}{},
		unused: time.Now(), turn: make(chan struct{}, 1),
	}
	l.piece.Store(maxPiece)
	return l
}

// link returns the link to id once it is up; it connects when there is none. addrs
// may be empty: the host's address book is asked anyway.
func (s *Swarm) link(ctx context.Context, id peer.ID, addrs []string) (*link, error) {
	s.mu.Lock()
	l := s.links[id]
	if l == nil {
		if s.start == nil {
			s.mu.Unlock()
			return nil, errStopped
		}
		if s.bans[id].After(time.Now()) {
			s.mu.Unlock()
			return nil, errBanned
		}
		l = newLink(s, id)
		s.links[id] = l
		s.start(func(ctx context.Context) { l.connect(ctx, addrs) })
	}
	s.mu.Unlock()
	select {
	case <-l.ready:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return l, l.failure()
}

func (l *link) failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// connect opens the control stream and runs it.
func (l *link) connect(ctx context.Context, addrs []string) {
	dialCtx, cancel := context.WithTimeout(ctx, linkTimeout)
	defer cancel()
	st, err := l.dial(dialCtx, addrs)
	if err != nil {
		if ctx.Err() == nil {
			l.s.miss(l.id)
		}
		l.close(fmt.Errorf("connect to %s: %w", l.id, err))
		return
	}
	cancel()
	if st != nil && l.begin(st) {
		l.run(ctx, st)
	}
}

// dial opens the control stream and exchanges Hellos on it; nil when a stream of
// the peer came first.
func (l *link) dial(ctx context.Context, addrs []string) (network.Stream, error) {
	info := peer.AddrInfo{ID: l.id}
	for _, a := range addrs {
		if addr, err := ma.NewMultiaddr(a); err == nil {
			info.Addrs = append(info.Addrs, addr)
		}
	}
	if err := l.s.cfg.Host.Connect(ctx, info); err != nil {
		return nil, err
	}
	st, err := l.s.cfg.Host.NewStream(ctx, l.id, l.s.control)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	if l.stream != nil || l.ended {
		l.mu.Unlock()
		_ = st.Reset()
		return nil, nil // a stream of the peer came first, or the link was closed
	}
	l.offered = true
	l.mu.Unlock()
	began := time.Now()
	deadline, _ := ctx.Deadline()
	_ = st.SetDeadline(deadline)
	err = wire.Write(st, wire.Message{Hello: l.s.hello()})
	var hello *wire.Hello
	if err == nil {
		hello, err = readHello(bufio.NewReaderSize(onlyOne{st}, 16))
	}
	l.mu.Lock()
	taken := l.stream != nil
	if err == nil && !taken && !l.ended {
		l.stream, l.hello = st, *hello
		l.rtt.Store(int64(time.Since(began)))
		l.mu.Unlock()
		return st, st.SetDeadline(time.Time{})
	}
	l.mu.Unlock()
	_ = st.Reset()
	if taken {
		return nil, nil
	}
	if err == nil {
		err = errStopped
	}
	// The peer may have refused ours because its own is on the way.
	select {
	case <-l.ready:
		return nil, nil
	case <-time.After(time.Second):
		return nil, err
	case <-ctx.Done():
		return nil, err
	}
}

// onlyOne hands out a byte at a time, so that a buffered reader of a Hello takes
// nothing of what follows it.
type onlyOne struct{ network.Stream }

func (o onlyOne) Read(b []byte) (int, error) {
	if len(b) > 1 {
		b = b[:1]
	}
	return o.Stream.Read(b)
}

func readHello(r *bufio.Reader) (*wire.Hello, error) {
	m, err := wire.Read(r)
	switch {
	case err != nil:
		return nil, err
	case m.Hello == nil:
		return nil, fmt.Errorf("the first message is no hello: %w", meta.ErrInvalid)
	case m.Hello.Version != wire.Version:
		return nil, fmt.Errorf("swarm protocol version %d is not spoken here: %w", m.Hello.Version, meta.ErrInvalid)
	}
	return m.Hello, nil
}

// acceptControl takes a control stream that a peer opened. Of two streams opened at
// once, the one of the smaller peer id stays.
func (s *Swarm) acceptControl(ctx context.Context, st network.Stream) {
	_ = st.SetDeadline(time.Now().Add(linkTimeout))
	hello, err := readHello(bufio.NewReaderSize(onlyOne{st}, 16))
	if err != nil {
		s.broke(st.Conn().RemotePeer(), "hello", err)
		s.log.Debug("control stream refused", "peer", st.Conn().RemotePeer().String(), "error", err)
		_ = st.Reset()
		return
	}
	id := st.Conn().RemotePeer()
	for {
		s.mu.Lock()
		l := s.links[id]
		if l == nil {
			if s.start == nil {
				s.mu.Unlock()
				_ = st.Reset()
				return
			}
			l = newLink(s, id)
			s.links[id] = l
		}
		s.mu.Unlock()

		l.mu.Lock()
		switch {
		case l.ended:
			l.mu.Unlock()
			<-l.closed // then it is out of the table
			continue
		case l.stream == nil && l.offered && s.self < id, l.stream != nil && hello.Seq < l.hello.Seq:
			l.mu.Unlock()
			_ = st.Reset()
			return
		case l.stream != nil: // the peer has lost this one
			l.mu.Unlock()
			l.close(errors.New("replaced by a newer stream of the peer"))
			continue
		}
		l.stream, l.hello = st, *hello
		l.mu.Unlock()
		if err := wire.Write(st, wire.Message{Hello: s.hello()}); err != nil {
			l.close(err)
			return
		}
		_ = st.SetDeadline(time.Time{})
		if l.begin(st) {
			l.run(ctx, st)
		}
		return
	}
}

// begin marks the link as up if st is its stream; each stream begins once.
func (l *link) begin(st network.Stream) bool {
	l.s.reached(l.id)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stream != st || l.ended {
		return false
	}
	select {
	case <-l.ready:
		return false
	default:
	}
	if l.conn = st.Conn(); l.s.cfg.Outlet != nil {
		l.outlet = l.s.cfg.Outlet(l.conn)
	}
	l.s.cfg.Host.ConnManager().Protect(l.id, "shoal-swarm")
	close(l.ready)
	return true
}

// run reads the control stream until it ends; a second goroutine writes it.
func (l *link) run(ctx context.Context, st network.Stream) {
	if !l.s.spawn(func(ctx context.Context) { l.write(ctx, st) }) {
		l.close(errStopped)
		return
	}
	f := l.s.flows.begin(l, st, silence)
	defer l.s.flows.finish(f)
	r := bufio.NewReaderSize(st, 4<<10)
	for {
		m, err := wire.Read(r)
		if err != nil {
			l.s.broke(l.id, "frame", err)
			l.close(fmt.Errorf("read: %w", err))
			return
		}
		f.moved.Add(1)
		if err := l.handle(ctx, m); err != nil {
			l.s.broke(l.id, "message", err)
			l.close(err)
			return
		}
	}
}

// write sends what is queued, all that has gathered at once.
func (l *link) write(ctx context.Context, st network.Stream) {
	f := l.s.flows.begin(l, st, 0)
	defer l.s.flows.finish(f)
	ticker := time.NewTicker(pingEvery)
	defer ticker.Stop()
	l.ping()
	for {
		select {
		case <-l.kick:
			if err := l.flush(f); err != nil {
				l.close(fmt.Errorf("write: %w", err))
				return
			}
		case <-ticker.C:
			if l.tidy() {
				l.close(errors.New("nobody uses the link"))
				return
			}
			l.ping()
		case <-l.closed:
			return
		case <-ctx.Done():
			l.close(errStopped)
			return
		}
	}
}

func (l *link) ping() {
	l.send(wire.Message{Ping: &wire.Ping{Nonce: uint64(time.Now().UnixNano())}})
}

// frames holds buffers for messages on their way out.
var frames = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// flush writes the queue.
func (l *link) flush(f *flow) error {
	l.outMu.Lock()
	queue := l.out
	l.out = l.spare
	l.outMu.Unlock()
	defer func() {
		if clear(queue); cap(queue) <= linkQueue/16 {
			l.spare = queue[:0]
		} else {
			l.spare = nil
		}
	}()
	buf := frames.Get().(*bytes.Buffer)
	defer func() {
		if buf.Cap() <= 2*flushBytes {
			frames.Put(buf)
		}
	}()
	buf.Reset()
	f.busy.Store(true)
	defer f.busy.Store(false)
	for i, m := range queue {
		if m.Map != nil {
			l.maps.Add(-int64(len(m.Map.Data)))
		}
		if err := wire.Write(buf, m); err != nil {
			return err
		}
		if buf.Len() >= flushBytes || i == len(queue)-1 {
			if _, err := f.st.Write(buf.Bytes()); err != nil {
				return err
			}
			f.moved.Add(1)
			buf.Reset()
		}
	}
	return nil
}

// tidy closes data streams that were not used lately and reports whether the link
// itself was not.
func (l *link) tidy() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.idle = slices.DeleteFunc(l.idle, func(d dataStream) bool {
		old := time.Since(d.since) > streamIdle/2
		if old {
			_ = d.Close()
		}
		return old
	})
	return len(l.members) == 0 && time.Since(l.unused) > linkIdle
}

// send queues m; a peer that does not read loses its link.
func (l *link) send(m wire.Message) {
	l.outMu.Lock()
	full := len(l.out) >= linkQueue
	if !full {
		l.out = append(l.out, m)
	}
	l.outMu.Unlock()
	if full {
		l.s.spawn(func(context.Context) { l.close(errors.New("the peer does not read its messages")) })
		return
	}
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// close ends the link, tells the memberships and frees the streams. It may be
// called by anyone, any number of times, but not by the owner of a membership.
func (l *link) close(why error) {
	l.mu.Lock()
	if l.ended {
		l.mu.Unlock()
		return
	}
	l.ended, l.err = true, why
	st, idle, incoming, members := l.stream, l.idle, l.incoming, l.members
	l.idle, l.incoming, l.members = nil, nil, nil
	select {
	case <-l.ready:
	default:
		close(l.ready)
	}
	l.mu.Unlock()

	if st != nil {
		_ = st.Reset()
		l.s.cfg.Host.ConnManager().Unprotect(l.id, "shoal-swarm")
	}
	for _, d := range idle {
		_ = d.Reset()
	}
	for d := range incoming {
		_ = d.Reset()
	}
	l.s.flows.endOf(l)
	l.s.yield.forget(l.id)
	l.s.mu.Lock()
	if l.s.links[l.id] == l {
		delete(l.s.links, l.id)
	}
	l.s.mu.Unlock()
	close(l.closed)
	for m := range members {
		m.post(func() { m.linkEnded(l) })
	}
	l.s.log.Debug("link ended", "peer", l.id.String(), "reason", why)
}

// use and unuse keep the list of memberships that have the peer as a member.
func (l *link) use(m *membership) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return false
	}
	l.members[m] = struct{}{}
	return true
}

func (l *link) unuse(m *membership) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.members, m)
	l.unused = time.Now()
}

// info is what the peer said of itself.
func (l *link) info() Peer {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.hello
	return Peer{ID: meta.NodeID(l.id.String()), Region: h.Region, Zone: h.Zone, Rack: h.Rack, Server: h.Server}
}

// handle acts on one message. What concerns a membership is handed to its owner,
// and waits when that one is behind: so a peer is read no faster than it is served.
func (l *link) handle(ctx context.Context, msg wire.Message) error {
	to := func(channel uint32, f func(m *membership, p *member)) {
		if m := l.s.channel(channel); m != nil {
			m.post(func() {
				if p := m.joined(l); p != nil {
					f(m, p)
				}
			})
		}
	}
	switch {
	case msg.Hello != nil:
		return fmt.Errorf("a second hello: %w", meta.ErrInvalid)
	case msg.Ping != nil && msg.Ping.Answer:
		l.pong(msg.Ping)
	case msg.Ping != nil:
		l.send(wire.Message{Ping: &wire.Ping{Nonce: msg.Ping.Nonce, Answer: true}})
	case msg.Join != nil:
		l.join(ctx, msg.Join)
	case msg.Have != nil:
		to(msg.Have.Channel, func(m *membership, p *member) { m.onHave(p, msg.Have) })
	case msg.Want != nil:
		to(msg.Want.Channel, func(m *membership, p *member) { m.onWant(p, msg.Want) })
	case msg.Pull != nil:
		to(msg.Pull.Channel, func(m *membership, p *member) { m.onPull(p, msg.Pull) })
	case msg.Cancel != nil:
		to(msg.Cancel.Channel, func(m *membership, p *member) { m.onCancel(p, msg.Cancel) })
	case msg.Pex != nil:
		to(msg.Pex.Channel, func(m *membership, p *member) { m.onPex(p, msg.Pex.Peers) })
	case msg.MapAsk != nil:
		to(msg.MapAsk.Channel, func(m *membership, p *member) { m.onMapAsk(p, msg.MapAsk) })
	case msg.Map != nil:
		to(msg.Map.Channel, func(m *membership, p *member) { m.onMap(p, msg.Map) })
	case msg.Busy != nil:
		if m := l.s.channel(msg.Busy.Channel); m != nil {
			m.post(func() { m.onBusy(l, msg.Busy) })
		}
	case msg.Leave != nil:
		if m := l.s.channel(msg.Leave.Channel); m != nil {
			m.post(func() { m.onLeave(l, msg.Leave) })
		}
	}
	return nil
}

func (l *link) pong(p *wire.Ping) {
	rtt := time.Since(time.Unix(0, int64(p.Nonce)))
	if rtt < 0 || rtt > silence {
		return
	}
	l.s.yield.sample(l.id, rtt)
	// The least is the path; more is waiting behind bulk. It ages, as paths change.
	if old := time.Duration(l.rtt.Load()); old > 0 {
		rtt = min(rtt, old+old/32)
	}
	l.rtt.Store(int64(max(rtt, 1)))
	l.mu.Lock()
	members := make([]*membership, 0, len(l.members))
	for m := range l.members {
		members = append(members, m)
	}
	l.mu.Unlock()
	for _, m := range members {
		m.post(func() { m.onRTT(l, rtt) })
	}
}

// join checks a grant and hands the Join to the membership of its root. Whoever
// has no right learns nothing, not even whether there is such a root.
func (l *link) join(ctx context.Context, j *wire.Join) {
	refuse := func(reason string, after time.Duration) {
		l.send(wire.Message{Leave: &wire.Leave{Channel: j.Channel, Reason: reason, After: after}})
	}
	denied := l.s.denies(j.Grant, l.id, j.Root)
	allowed := denied == nil
	if !allowed && !j.Answer {
		l.s.refused(l.id, denied)
		refuse("unknown", 0)
		return
	}
	s := l.s
	s.mu.Lock()
	m := s.byRoot[j.Root]
	s.mu.Unlock()
	if m == nil && j.Answer {
		refuse("done", 0)
		return
	}
	if m == nil {
		var err error
		var unavailable *meta.UnavailableError
		switch m, err = s.passive(ctx, j.Root); {
		case errors.As(err, &unavailable):
			l.send(wire.Message{Busy: &wire.Busy{Channel: j.Channel, After: unavailable.RetryAfter}})
			return
		case m == nil:
			refuse("absent", absentRetry)
			return
		}
	}
	if !m.post(func() { m.onJoin(l, j, allowed) }) {
		refuse("absent", absentRetry)
	}
}

// absentRetry is when a peer may ask again for a blob that is not here yet.
const absentRetry = 250 * time.Millisecond

// denies returns why grant does not give peer the right to root now, nil when it does.
func (s *Swarm) denies(grant []byte, id peer.ID, root [32]byte) error {
	if len(grant) == 0 {
		return errNoGrant
	}
	return s.cfg.Authorizer.Check(grant, meta.NodeID(id.String()), root, time.Now())
}

// errNoGrant refuses whoever shows nothing.
var errNoGrant = fmt.Errorf("no grant was shown: %w", meta.ErrDenied)

// refused counts a peer that is refused, by the reason that the Authorizer gives.
func (s *Swarm) refused(id peer.ID, err error) {
	reason := "other"
	var told interface{ Label() string }
	switch {
	case err == nil, errors.Is(err, errNoGrant):
		reason = "missing"
	case errors.As(err, &told):
		reason = told.Label()
	}
	s.metrics.refused.WithLabelValues(reason).Inc()
	s.log.Debug("a peer was refused", "peer", id, "reason", reason, "error", err)
}

// broke counts a link that ends because the peer broke the protocol.
func (s *Swarm) broke(id peer.ID, where string, err error) {
	for _, kind := range []error{meta.ErrInvalid, meta.ErrTooLarge, meta.ErrCorrupt} {
		if errors.Is(err, kind) {
			s.metrics.broken.WithLabelValues(where).Inc()
			s.log.Info("a peer broke the protocol, its link was ended", "peer", id, "where", where, "error", err)
			return
		}
	}
}
