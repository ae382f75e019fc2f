package swarm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/transfer/limit"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/transfer/swarm/core"
	"github.com/shoal-registry/shoal/transfer/wire"
	"github.com/shoal-registry/shoal/verify/digest"
)

const (
	pexEvery    = 5 * time.Second
	pexPeers    = 16
	chores      = 500 * time.Millisecond
	regainAfter = time.Second     // a chunk that could not be read is looked for again
	joinWithin  = 5 * time.Second // a peer answers JOIN, or a map part, within
	checkEvery  = time.Second     // a grant in use is checked again
	inboxSize   = 256
	maxMembers  = 4096    // peers known of for one root, connected or not
	maxLoad     = 1 << 16 // waiting requests of a peer that are believed
	dialsAtOnce = 4       // before the map is known
	mapsAtOnce  = 1 << 20 // bytes of maps waiting to be written to one peer, from which on asks are passed over
)

// membership is this node's part in the swarm of one root. The goroutine of run owns
// the fields of the second group; whoever has something for it posts a function.
type membership struct {
	s       *Swarm
	root    digest.CID
	channel uint32
	start   time.Time
	inbox   chan func()
	kick    chan struct{} // sessions changed
	find    chan struct{} // the introducer is to hurry
	quit    chan struct{} // closed when run has ended
	opened  chan struct{} // closed when blob is set
	failed  chan struct{} // closed when err is set
	done    chan struct{} // closed when complete or failed
	io      sync.WaitGroup
	meter   meter
	seen    atomic.Pointer[census]

	mu       sync.Mutex
	blob     store.Blob // set once, before opened is closed
	local    *local     // set before blob; nil when nothing is copied
	passing  bool       // set with blob, which does not stay (store.Blob.Window)
	have     chunk.Bitmap
	waiters  map[int][]chan struct{}
	sessions map[uint32]*Session
	changed  map[uint32]*Session
	lastID   uint32
	asked    map[uint32]asking // our requests without an answer
	lastAsk  uint32
	closed   bool // no new use of blob
	purpose  purpose
	err      error
	trouble  string    // why nothing comes, for people
	used     time.Time // when somebody last wanted something

	core         *core.Core // nil until blob is set
	events       []core.Event
	stepping     bool
	members      map[peer.ID]*member
	handles      []*member // by core.Peer; nil when free
	free         []core.Peer
	joinedCount  int
	uploads      map[uploadKey]*atomic.Bool
	unread       map[int]time.Time // chunks that could not be read, since when
	grant        []byte
	grantExpires time.Time
	grantSent    time.Time   // the expiry that members know of
	saidClass    limit.Class // that members know us to fetch for
	introducing  bool
	fetched      bool // a session was here
	introduced   bool
	encoded      []byte // the map, for MapAsk
	mapFrom      *member
	mapParts     []byte
	mapTotal     uint64
	mapSince     time.Time
	serving      bool     // counted in s.servingRoots
	fetching     bool     // counted in s.fetchingRoots
	shared       [2]int32 // the counts that the core knows
	pexDue       bool
	pexAt        time.Time
}

type asking struct {
	link  *link
	chunk int // -1: a PULL
}

type uploadKey struct {
	peer    core.Peer
	request core.Request
}

// member is a peer that is, or may be, in the swarm of the root.
type member struct {
	id      peer.ID
	handle  core.Peer
	info    Peer
	vouched bool // a Finder told of it
	dialing bool
	banned  bool
	retryAt time.Time // before the map is known; later the core decides

	link    *link
	joining time.Time // when our JOIN went out
	channel uint32    // the peer's number for the root; 0: it has not joined
	grant   []byte
	allowed bool
	denied  error         // why not, when it was checked again
	tenant  string        // of the grant
	class   atomic.Uint32 // limit.Class that it wants the root for
	credit  bool          // it wants to give credit for what it is sent
	checked time.Time
	hasMap  bool
	told    int    // how many chunks it knows us to have; -1: nothing
	bits    []byte // its bitmap, until the core takes it
	early   []uint32
	up      bool // the core knows that it is connected
}

// newMembership returns a membership that takes over blob, which may be nil; fetch says
// that what it lacks is wanted. s.mu is held.
func newMembership(s *Swarm, root digest.CID, channel uint32, blob store.Blob, fetch bool) *membership {
	m := &membership{
		s: s, root: root, channel: channel, start: time.Now(),
		inbox: make(chan func(), inboxSize), kick: make(chan struct{}, 1), find: make(chan struct{}, 1),
		quit: make(chan struct{}), opened: make(chan struct{}), failed: make(chan struct{}), done: make(chan struct{}),
		waiters: map[int][]chan struct{}{}, sessions: map[uint32]*Session{}, changed: map[uint32]*Session{},
		asked: map[uint32]asking{}, used: time.Now(),
		members: map[peer.ID]*member{}, uploads: map[uploadKey]*atomic.Bool{}, unread: map[int]time.Time{},
		purpose: purpose{changed: make(chan struct{})},
	}
	switch {
	case blob != nil && fetch && !blob.Complete():
		m.s.start(func(ctx context.Context) { m.begin(ctx, blob) })
	case blob != nil:
		m.inbox <- func() { m.open(blob) }
	}
	return m
}

// post hands f to the owner, waiting for room; false when the membership has ended.
func (m *membership) post(f func()) bool {
	select {
	case m.inbox <- f:
		return true
	case <-m.quit:
		return false
	}
}

func (m *membership) wake() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// attach adds a session. With place the caller brings a place in s.fetching, which
// goes back when the fetch has one; without, nil is returned when it has none.
// s.mu is held.
func (m *membership) attach(o FetchOptions, place bool) *Session {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.sessions) == 0 && !place {
		return nil
	}
	if len(m.sessions) > 0 && place {
		m.s.fetching.Release(1)
	}
	m.lastID++
	session := &Session{m: m, id: m.lastID, to: -1, options: o}
	m.sessions[session.id] = session
	m.reclassify()
	m.changed[session.id] = session
	m.used = time.Now()
	if m.blob != nil {
		m.blob.Yield(false)
	}
	m.wake()
	return session
}

// run owns the membership until nobody needs it.
func (m *membership) run(ctx context.Context) {
	tick, chore := time.NewTimer(time.Hour), time.NewTicker(chores)
	defer chore.Stop()
	defer tick.Stop()
	var due time.Duration // of tick
	var stopIntroducer context.CancelFunc
	for {
		select {
		case f := <-m.inbox:
			f()
			m.drain()
		case <-m.kick:
			m.readersChanged()
		case <-tick.C:
			due = 0
			m.step(core.Event{Kind: core.Tick})
		case <-chore.C:
			m.chores()
		case <-ctx.Done():
			m.fail(errStopped)
		}
		m.share()
		if m.core != nil {
			if at, ok := m.core.Next(); ok && at != due {
				due = at
				tick.Reset(at - time.Since(m.start))
			}
		}
		switch announced := m.announced(); {
		case announced && !m.introducing:
			introCtx, cancel := context.WithCancel(ctx)
			stopIntroducer = cancel
			m.introducing = m.s.spawn(func(context.Context) { m.introduce(introCtx) })
		case !announced && stopIntroducer != nil:
			stopIntroducer()
			stopIntroducer = nil
		}
		if m.ended() {
			if stopIntroducer != nil {
				stopIntroducer()
			}
			m.end(ctx)
			return
		}
	}
}

// drain runs what else has come: what follows an event need not be done for each.
func (m *membership) drain() {
	for range inboxSize {
		select {
		case f := <-m.inbox:
			f()
		default:
			return
		}
	}
}

// share keeps the counts of roots that are served and fetched, and tells the core
// of a change. Cores of other roots learn of it at their next event.
func (m *membership) share() {
	if m.core == nil {
		return
	}
	m.tally(&m.serving, m.core.Serving() > 0, &m.s.servingRoots)
	m.tally(&m.fetching, m.core.Missing() > 0, &m.s.fetchingRoots)
	if now := [2]int32{m.s.servingRoots.Load(), m.s.fetchingRoots.Load()}; now != m.shared {
		m.shared = now
		m.step(core.Event{Kind: core.Shared, Serving: int(now[0]), Fetching: int(now[1])})
	}
}

func (m *membership) tally(was *bool, is bool, count *atomic.Int32) {
	switch {
	case is && !*was:
		count.Add(1)
	case !is && *was:
		count.Add(-1)
	}
	*was = is
}

// announced reports whether the Finder is to know of this member: while it fetches,
// and after that as long as it lingers.
func (m *membership) announced() bool {
	if !m.fetched || m.failure() != nil {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	complete := m.core != nil && m.core.Complete()
	if len(m.sessions) > 0 {
		return !complete || m.introduced
	}
	return complete && m.introduced && time.Since(m.used) < m.s.idles(m.s.cfg.Limits.Linger)
}

// ended decides, with attach, whether the membership is over.
func (m *membership) ended() bool {
	if m.needed() { // which it mostly is, and costs no lock of all
		return false
	}
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	if m.needed() {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	if m.s.byRoot[m.root] == m {
		delete(m.s.byRoot, m.root)
	}
	delete(m.s.byChannel, m.channel)
	m.s.counted()
	return true
}

// needed reports whether somebody holds the membership or has used it lately.
func (m *membership) needed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	idle := m.s.cfg.Limits.IdleAfter
	if m.introduced && m.core != nil && m.core.Complete() {
		idle = max(idle, m.s.cfg.Limits.Linger)
	}
	return m.err == nil && (len(m.sessions) > 0 || time.Since(m.used) < m.s.idles(idle))
}

// end lets the members go and frees the blob once nothing uses it.
func (m *membership) end(ctx context.Context) {
	m.tally(&m.serving, false, &m.s.servingRoots)
	m.tally(&m.fetching, false, &m.s.fetchingRoots)
	for _, p := range m.members {
		if p.link == nil {
			continue
		}
		if p.channel != 0 {
			p.link.send(wire.Message{Leave: &wire.Leave{Channel: p.channel, Reason: "done", From: m.channel}})
		}
		p.link.unuse(m)
	}
	for _, stop := range m.uploads {
		stop.Store(true)
	}
	close(m.quit)
	m.io.Wait()
	// A failed fetch may still be read by who holds a session.
	for ctx.Err() == nil {
		m.mu.Lock()
		held := len(m.sessions) > 0
		m.mu.Unlock()
		if !held {
			break
		}
		select {
		case <-m.kick:
		case <-ctx.Done():
		}
	}
	if m.blob != nil {
		if err := m.blob.Close(); err != nil {
			m.s.log.Warn("close blob", "root", m.root.String(), "error", err)
		}
	}
}

func (m *membership) failure() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// fail ends the fetch for all sessions.
func (m *membership) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return
	}
	m.err = err
	close(m.failed)
	select {
	case <-m.done:
	default:
		close(m.done)
	}
}

func (m *membership) setTrouble(why string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.trouble = why
}

func (m *membership) touch() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.used = time.Now()
}

// open takes over the blob, partial or complete, and starts to decide.
func (m *membership) open(blob store.Blob) {
	m.mu.Lock()
	if m.core != nil || m.blob != nil && m.blob != blob {
		m.mu.Unlock()
		closeBlob(blob)
		return
	}
	if m.blob == nil {
		m.show(blob)
	}
	m.have = blob.Have()
	have := m.have.Clone()
	for id, session := range m.sessions {
		m.changed[id] = session
	}
	m.mu.Unlock()
	chunks := blob.Map().Chunks
	lengths := make([]uint32, len(chunks))
	for i, c := range chunks {
		lengths[i] = c.Stored
	}
	limits := m.s.cfg.Limits
	bits, _ := toBits(len(chunks), have.Bytes())
	m.core = core.New(core.Config{
		Chunks: lengths, Server: m.s.cfg.Self.Server, Seed: rand.Uint64(),
		Key: peerKey(m.s.self), Zone: zoneHandle(m.s.cfg.Self),
		Degree: limits.Degree, Members: limits.Members, Slots: limits.UploadSlots,
	}, bits)
	m.found(blob.Map(), have)
	m.mapFrom, m.mapParts = nil, nil
	m.readersChanged()
	for _, p := range m.members {
		m.tell(p)
		if p.channel != 0 {
			m.sendJoin(p, true)
			m.bringUp(p)
		}
	}
	m.completed()
}

func wakeAll(waiting []chan struct{}) {
	for _, c := range waiting {
		close(c)
	}
}

func (m *membership) unwait(i int, c chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := m.waiters[i]
	for k, have := range list {
		if have == c {
			list = append(list[:k], list[k+1:]...)
			break
		}
	}
	if len(list) == 0 {
		delete(m.waiters, i)
	} else {
		m.waiters[i] = list
	}
}

// wrote notes that chunk i is in the store; any goroutine may call it.
func (m *membership) wrote(i int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.have.Set(i)
	wakeAll(m.waiters[i])
	delete(m.waiters, i)
}

// reconcile compares what is believed to be here with the store, which may have
// lost chunks; false when the blob itself is gone. Any goroutine may call it.
func (m *membership) reconcile(ctx context.Context) bool {
	select {
	case <-m.opened:
	default:
		return true
	}
	m.mu.Lock()
	believed := m.have.Clone()
	m.mu.Unlock()
	blob, err := m.s.cfg.Store.Open(ctx, m.root)
	if err != nil {
		return !errors.Is(err, meta.ErrNotFound) && !errors.Is(err, meta.ErrCorrupt)
	}
	defer closeBlob(blob)
	have := blob.Have()
	for i := range believed.Len() {
		if believed.Has(i) && !have.Has(i) {
			m.mu.Lock()
			m.have.Clear(i)
			m.mu.Unlock()
			m.post(func() { m.lost(i) })
		}
	}
	return true
}

// lost notes that chunk i cannot be read any more.
func (m *membership) lost(i int) {
	if m.core == nil {
		return
	}
	m.mu.Lock()
	if i < m.have.Len() {
		m.have.Clear(i)
	}
	m.mu.Unlock()
	m.unread[i] = time.Now()
	m.step(core.Event{Kind: core.Lost, Chunk: i})
}

// regain takes back what could not be read and is in the store: a disk or a bucket failed
// for a moment, or the blob was made whole by other than this fetch.
func (m *membership) regain(now time.Time) {
	if m.core == nil || m.passing {
		return
	}
	var have chunk.Bitmap
	for i, since := range m.unread {
		switch {
		case m.core.Has(i):
			delete(m.unread, i)
		case now.Sub(since) >= regainAfter:
			if m.unread[i] = now; have.Len() == 0 {
				have = m.blob.Have()
			}
			if have.Has(i) {
				delete(m.unread, i)
				m.wrote(i)
				m.step(core.Event{Kind: core.Arrived, Peer: ^core.Peer(0), Chunk: i})
			}
		}
	}
}

func (m *membership) completed() {
	if m.core == nil || !m.core.Complete() {
		return
	}
	select {
	case <-m.done:
	default:
		close(m.done)
	}
}

// readersChanged tells the core what the sessions want.
func (m *membership) readersChanged() {
	m.mu.Lock()
	m.fetched = m.fetched || len(m.sessions) > 0
	m.mu.Unlock()
	m.tellClass()
	m.mu.Lock()
	if m.core == nil {
		m.mu.Unlock()
		return
	}
	var events []core.Event
	for id, session := range m.changed {
		delete(m.changed, id)
		ev := core.Event{Kind: core.ReaderAt, Reader: id, From: session.from, To: session.to}
		if session.closed || session.to >= 0 && session.to <= session.from {
			ev.Kind = core.ReaderGone
		}
		events = append(events, ev)
	}
	m.mu.Unlock()
	for _, ev := range events {
		m.step(ev)
	}
}

// step gives the core an event and carries out what it decides. Events that arise
// meanwhile follow.
func (m *membership) step(ev core.Event) {
	if m.core == nil {
		return
	}
	m.events = append(m.events, ev)
	if m.stepping {
		return
	}
	m.stepping = true
	for len(m.events) > 0 {
		ev, m.events = m.events[0], m.events[1:]
		for _, e := range m.core.Step(time.Since(m.start), ev) {
			m.carry(e)
		}
	}
	m.stepping = false
	m.completed()
}

func (m *membership) carry(e core.Effect) {
	var p *member
	if int(e.Peer) < len(m.handles) {
		p = m.handles[e.Peer]
	}
	switch e.Kind {
	case core.Find:
		m.hurry()
	case core.Dial:
		m.dial(p)
	case core.Want, core.Pull:
		m.ask(p, e)
	case core.Cancel:
		m.mu.Lock()
		delete(m.asked, uint32(e.Request))
		m.mu.Unlock()
		m.send(p, wire.Message{Cancel: &wire.Cancel{Channel: p.channel, Request: uint32(e.Request)}})
	case core.Tell:
		if !m.passing {
			m.inform(p, e)
		}
	case core.Serve:
		m.serve(p, e)
	case core.Stop:
		if stop := m.uploads[uploadKey{e.Peer, e.Request}]; stop != nil {
			stop.Store(true)
		}
	case core.Busy:
		b := &wire.Busy{Channel: p.channel, Request: uint32(e.Request), After: e.After}
		for _, other := range e.Peers {
			if q := m.handles[other]; m.visible(q, p) {
				b.Peers = append(b.Peers, wirePeer(q.info))
			}
		}
		m.send(p, wire.Message{Busy: b})
	case core.Ban:
		// Closing links waits for memberships, so not from here.
		p.banned = true
		m.s.spawn(func(context.Context) { m.s.ban(p.id, banFor, "it sent wrong chunks") })
		m.drop(p)
	case core.Done:
		m.s.log.Debug("fetched what was wanted", "root", m.root.String(), "took", time.Since(m.start))
	}
}

func (m *membership) send(p *member, msg wire.Message) {
	if p.link != nil && p.channel != 0 {
		p.link.send(msg)
	}
}

// ask sends a WANT or PULL and remembers it for the data stream's reader.
func (m *membership) ask(p *member, e core.Effect) {
	request := uint32(e.Request)
	if p.link == nil {
		m.step(core.Event{Kind: core.Failed, Peer: p.handle, Request: e.Request})
		return
	}
	a := asking{link: p.link, chunk: -1}
	if e.Kind == core.Want {
		a.chunk = e.Chunk
	}
	why, credit := uint8(m.saidClass), m.givesCredit(p.link)
	if e.Hedge {
		m.hedged()
	}
	m.mu.Lock()
	m.asked[request] = a
	m.lastAsk = request
	m.mu.Unlock()
	if e.Kind == core.Want {
		items := []wire.WantItem{{Request: request, Chunk: uint32(e.Chunk)}}
		m.send(p, wire.Message{Want: &wire.Want{Channel: p.channel, Items: items, Purpose: why, Credit: credit}})
	} else {
		m.send(p, wire.Message{Pull: &wire.Pull{
			Channel: p.channel, Request: request, From: uint32(e.From), Class: uint32(e.Class), Classes: uint32(e.Classes),
			Purpose: why, Credit: credit, Owners: e.Owners,
		}})
	}
}

// expect decides on an answer that begins to come: the blob to write it to, after
// which the caller calls m.io.Done; nil when it is not wanted any more.
//
// Errors: meta.ErrInvalid for what was never asked for.
func (m *membership) expect(l *link, h wire.Header) (store.Blob, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a, ok := m.asked[h.Request]
	switch {
	case m.closed || m.blob == nil:
		return nil, nil
	case !ok && h.Request != 0 && h.Request <= m.lastAsk:
		return nil, nil
	case !ok || a.link != l || a.chunk >= 0 && a.chunk != int(h.Chunk):
		return nil, fmt.Errorf("chunk %d for request %d was not asked for: %w", h.Chunk, h.Request, meta.ErrInvalid)
	}
	if chunks := m.blob.Map().Chunks; int(h.Chunk) >= len(chunks) || chunks[h.Chunk].Stored != h.Bytes {
		return nil, fmt.Errorf("chunk %d of %d bytes is none of the map: %w", h.Chunk, h.Bytes, meta.ErrInvalid)
	}
	m.io.Add(1)
	return m.blob, nil
}

// pending reports whether the answer to request is still wanted.
func (m *membership) pending(request uint32) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.asked[request]
	return ok
}

// answer gives the core what became of a request to the peer of l.
func (m *membership) answer(l *link, ev core.Event) {
	ev.Peer = ^core.Peer(0)
	if p := m.members[l.id]; p != nil && p.link == l {
		ev.Peer = p.handle
	}
	if ev.Kind != core.Coming {
		m.mu.Lock()
		delete(m.asked, uint32(ev.Request))
		m.mu.Unlock()
	}
	m.step(ev)
}

// serve sends a chunk if the peer's grant still holds.
func (m *membership) serve(p *member, e core.Effect) {
	key := uploadKey{e.Peer, e.Request}
	m.touch()
	if p.link == nil || m.uploads[key] != nil || !m.mayRead(p) {
		m.step(core.Event{Kind: core.Sent, Peer: e.Peer, Request: e.Request, Chunk: e.Chunk})
		return
	}
	stop := new(atomic.Bool)
	l, out := p.link, m.outgoing(p)
	h := wire.Header{
		Channel: p.channel, Request: uint32(e.Request), Chunk: uint32(e.Chunk), Bytes: m.blob.Map().Chunks[e.Chunk].Stored,
		// Beyond, a round trip would cost more than it is worth.
		Confirm: p.info.Region == m.s.cfg.Self.Region,
		Credit:  p.credit,
	}
	m.io.Add(1)
	if !m.s.spawn(func(ctx context.Context) {
		defer m.io.Done()
		ok := m.upload(ctx, l, h, out, stop)
		m.post(func() { m.sent(e, ok) })
	}) {
		m.io.Done()
		return
	}
	m.uploads[key] = stop
}

func (m *membership) sent(e core.Effect, ok bool) {
	delete(m.uploads, uploadKey{e.Peer, e.Request})
	m.step(core.Event{Kind: core.Sent, Peer: e.Peer, Request: e.Request, Chunk: e.Chunk, OK: ok})
}

// entitled reports whether p's grant holds.
func (m *membership) entitled(p *member) bool {
	if time.Since(p.checked) >= checkEvery {
		p.checked = time.Now()
		p.denied = m.s.denies(p.grant, p.id, m.root)
		p.allowed = p.denied == nil
	}
	return p.allowed
}

// mayRead is entitled of a peer that asks; a grant that has ended also ends the
// membership of p until it joins with a new one.
func (m *membership) mayRead(p *member) bool {
	if m.entitled(p) {
		return true
	}
	if p.channel != 0 {
		m.s.refused(p.id, p.denied)
		m.send(p, wire.Message{Leave: &wire.Leave{Channel: p.channel, Reason: "unknown", From: m.channel}})
		m.gone(p)
	}
	return false
}

// inform tells a member which chunks are here. Whose grant has ended is told no more
// until it brings a new one, and then with a bitmap.
func (m *membership) inform(p *member, e core.Effect) {
	if p.told < 0 || p.link == nil || p.channel == 0 {
		return
	}
	if !p.vouched && !m.entitled(p) {
		p.told = -1
		return
	}
	if len(e.Chunks) == 0 {
		m.disclose(p)
		return
	}
	chunks := slices.Clone(e.Chunks) // the message outlives the effect
	for batch := range slices.Chunk(chunks, wire.MaxBatch) {
		p.told += len(batch)
		p.link.send(wire.Message{Have: &wire.Have{Channel: p.channel, Chunks: batch, Load: uint32(e.Load)}})
	}
}

// chores is what is due now and then.
func (m *membership) chores() {
	now := time.Now()
	for _, p := range m.members {
		if p.link != nil && p.channel == 0 && now.Sub(p.joining) > joinWithin {
			m.drop(p)
		}
	}
	if m.core == nil {
		if m.mapFrom != nil && now.Sub(m.mapSince) > joinWithin {
			m.drop(m.mapFrom)
		}
		m.askMap()
		m.dialForMap()
	}
	if m.pexDue && now.Sub(m.pexAt) >= pexEvery {
		m.exchange()
	}
	m.regain(now)
	m.readersChanged()
	m.takeCensus()
}

// hurry makes the introducer ask soon.
func (m *membership) hurry() {
	select {
	case m.find <- struct{}{}:
	default:
	}
}

// toBits turns the bytes of a chunk.Bitmap into the core's set.
func toBits(n int, b []byte) (core.Bits, bool) {
	if _, err := chunk.ParseBitmap(n, b); err != nil {
		return nil, false
	}
	bits := core.NewBits(n)
	var word [8]byte
	for i := range bits {
		word = [8]byte{}
		copy(word[:], b[8*i:])
		bits[i] = binary.LittleEndian.Uint64(word[:])
	}
	return bits, true
}

// introduce keeps this node known to the Finder and brings what it answers, until
// ctx ends.
func (m *membership) introduce(ctx context.Context) {
	const least, most = 250 * time.Millisecond, 5 * time.Second
	var backoff time.Duration
	var absent time.Time
	for ctx.Err() == nil {
		intro, err := m.joinFinder(ctx)
		wait := intro.Again
		if wait <= 0 {
			wait = 5 * time.Second
		}
		switch {
		case ctx.Err() != nil:
		case err == nil:
			absent = time.Time{}
			if err = m.prepare(ctx, intro.Map, intro.Inline); err != nil {
				m.report("prepare "+m.root.String(), err)
			}
			m.post(func() { m.meet(intro) })
			if len(intro.Peers) == 0 && !m.whole() {
				err = errors.New("the finder knows no peer")
			}
		case errors.Is(err, meta.ErrNotFound) && absent.IsZero():
			absent = time.Now() // a server that lags behind may not know the root yet
		case errors.Is(err, meta.ErrDenied), errors.Is(err, meta.ErrNotFound) && time.Since(absent) > absentFor:
			m.post(func() { m.fail(fmt.Errorf("fetch %s: %w", m.root, err)) })
		}
		if err != nil {
			m.setTrouble(err.Error())
			backoff = min(max(2*backoff, least), most)
			wait = min(wait, backoff)
		} else {
			m.setTrouble("")
			backoff = 0
		}
		timer := time.NewTimer(wait)
		hurry := m.find
		began := time.Now()
		for waiting := true; waiting; {
			select {
			case <-timer.C:
				waiting = false
			case <-hurry:
				hurry = nil
				timer.Reset(max(0, min(wait, least-time.Since(began))))
			case <-ctx.Done():
				waiting = false
			}
		}
		timer.Stop()
	}
	leaveCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := m.s.cfg.Finder.Leave(leaveCtx, m.root); err != nil {
		m.s.log.Debug("leave the finder", "root", m.root.String(), "error", err)
	}
	m.post(func() { m.introducing = false })
}

// absentFor is how long a Finder may say that there is no such root before it is
// believed.
const absentFor = 2 * time.Second

func (m *membership) joinFinder(ctx context.Context) (Introduction, error) {
	ctx, cancel := context.WithTimeout(ctx, linkTimeout)
	defer cancel()
	m.mu.Lock()
	want := Want{Root: m.root, Have: m.have.Count(), Complete: m.blob != nil && m.have.Full() && !m.passing}
	m.mu.Unlock()
	return m.s.cfg.Finder.Join(ctx, want)
}

// whole reports whether every chunk is here.
func (m *membership) whole() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.blob != nil && m.have.Full() && !m.passing
}

func (m *membership) report(act string, err error) {
	m.s.log.Warn("swarm membership", "act", act, "error", err)
	m.setTrouble(err.Error())
}

// prepare creates the blob when its map is known, with its content if that came
// along, and hands it to the owner.
//
// Errors: meta.ErrCorrupt when the map is not the root's; of the store.
func (m *membership) prepare(ctx context.Context, encoded, inline []byte) error {
	select {
	case <-m.opened:
		return nil
	default:
	}
	if len(encoded) == 0 {
		return nil
	}
	if digest.Sum(encoded) != m.root {
		return fmt.Errorf("chunk map of %s has another root: %w", m.root, meta.ErrCorrupt)
	}
	cm, err := chunk.Decode(encoded)
	if err != nil {
		return err
	}
	blob, err := m.s.cfg.Store.Create(ctx, cm)
	if err != nil {
		if errors.Is(err, meta.ErrNoSpace) {
			m.post(func() { m.fail(fmt.Errorf("fetch %s: %w", m.root, err)) })
		}
		return err
	}
	if int64(len(inline)) == cm.StoredBytes {
		for i := range cm.Chunks {
			at := cm.StoredOffset(i)
			if err := blob.WriteChunk(ctx, i, inline[at:at+int64(cm.Chunks[i].Stored)]); err != nil {
				m.report("take the inline content of "+m.root.String(), err)
				break
			}
		}
	}
	m.begin(ctx, blob)
	return nil
}
