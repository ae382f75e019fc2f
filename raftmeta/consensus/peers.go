package consensus

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// question is what one server asks another on /round/1. Each carries the asker's
// applied index, so that both ends learn who lives and how far it is.
type question struct {
	// Voters asks for the last log index and the voters of the configuration.
	Voters bool `cbor:"1,keyasint,omitempty"`
	// Nudge asks a leader to commit a Tick: a round waits for one.
	Nudge bool `cbor:"2,keyasint,omitempty"`
	// Wait delays the answer until this index is applied, at most Limit.
	Wait  uint64        `cbor:"3,keyasint,omitempty"`
	Limit time.Duration `cbor:"4,keyasint,omitempty"`
	// Health asks for what the leader needs to know of a server that may vote.
	Health bool `cbor:"5,keyasint,omitempty"`
	// Servers asks for the roster's servers, after a long absence.
	Servers bool   `cbor:"6,keyasint,omitempty"`
	Applied uint64 `cbor:"7,keyasint,omitempty"`
	// Sights asks whom the other hears (sights.go).
	Sights bool `cbor:"8,keyasint,omitempty"`
	// Expel asks the leader to take the asker, which has lost its log and its vote, out
	// of the configuration (rejoin.go).
	Expel bool `cbor:"9,keyasint,omitempty"`
}

// answer is what it gets.
type answer struct {
	Applied uint64 `cbor:"1,keyasint,omitempty"`
	// Last is the last index of the log, Voters the ids of the latest configuration
	// in it, sorted; both are read after the question arrived.
	Last   uint64   `cbor:"2,keyasint,omitempty"`
	Voters []string `cbor:"3,keyasint,omitempty"`
	// LastTerm is the term of the last entry, Contact the time since the leader was
	// heard, negative when never.
	LastTerm uint64        `cbor:"4,keyasint,omitempty"`
	Contact  time.Duration `cbor:"5,keyasint,omitempty"`
	Servers  []meta.Node   `cbor:"6,keyasint,omitempty"`
	Sights   []Sight       `cbor:"7,keyasint,omitempty"`
	// Level is the newest level that the server's build knows; with Health.
	Level uint32 `cbor:"8,keyasint,omitempty"`
	// Leader is who leads, Expelled the term in which it took the asker out, 0 when it
	// did not.
	Leader   meta.NodeID `cbor:"9,keyasint,omitempty"`
	Expelled uint64      `cbor:"10,keyasint,omitempty"`
}

// peers is what this server knows of the others' lives.
type peers struct {
	mu  sync.Mutex
	all map[meta.NodeID]*peerState
}

// peerState is one of them.
type peerState struct {
	applied watermark

	heard  time.Time // guarded by peers.mu, as are those below
	trips  trips
	want   uint64    // highest index that somebody waits for it to apply
	asking bool      // a question with Wait is out
	lost   broadcast // it does not answer: nobody waits any longer
}

// trips holds the latest round trips. The smallest is the link's own time: the
// others also opened a stream, or waited behind something.
type trips struct {
	last [16]time.Duration
	next int
}

func (t *trips) add(d time.Duration) {
	t.last[t.next%len(t.last)] = d
	t.next++
}

// least returns the smallest, 0 when there is none.
func (t *trips) least() time.Duration {
	if t.next == 0 {
		return 0
	}
	return slices.Min(t.last[:min(t.next, len(t.last))])
}

func (p *peers) of(id meta.NodeID) *peerState {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.all[id]
	if !ok {
		s = &peerState{}
		p.all[id] = s
	}
	return s
}

// heard notes that id said it has applied this much, trip after it was asked; 0 is
// unknown.
func (p *peers) heard(id meta.NodeID, applied uint64, trip time.Duration) {
	s := p.of(id)
	p.mu.Lock()
	s.heard = time.Now()
	if trip > 0 {
		s.trips.add(trip)
	}
	p.mu.Unlock()
	s.applied.raise(applied)
}

// ask asks id and notes what the answer tells of it.
func (n *Node) ask(ctx context.Context, id meta.NodeID, q question) (*answer, error) {
	q.Applied = n.replica.applied.get()
	asked := time.Now()
	a, err := n.questions.ask(ctx, id, &q)
	if err != nil {
		return nil, err
	}
	trip := time.Since(asked)
	if q.Wait > 0 {
		trip = 0 // it waited
	}
	n.peers.heard(id, a.Applied, trip)
	return a, nil
}

// RTT returns the round-trip time to another server, 0 when unknown.
func (n *Node) RTT(id meta.NodeID) time.Duration {
	n.peers.mu.Lock()
	defer n.peers.mu.Unlock()
	s, ok := n.peers.all[id]
	if !ok {
		return 0
	}
	return s.trips.least()
}

// keep forgets all but these.
func (p *peers) keep(ids map[meta.NodeID]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id := range p.all {
		if !ids[id] {
			delete(p.all, id)
		}
	}
}

// quiet lists those of ids that were not heard for a while, or are at an unknown
// distance.
func (p *peers) quiet(ids []meta.NodeID, since time.Duration) []meta.NodeID {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []meta.NodeID
	for _, id := range ids {
		if s, ok := p.all[id]; !ok || time.Since(s.heard) > since || s.trips.least() == 0 {
			out = append(out, id)
		}
	}
	return out
}

// Peer is what Status says of another server.
type Peer struct {
	ID      meta.NodeID   `json:"id"`
	Heard   time.Duration `json:"heard_ago"`
	RTT     time.Duration `json:"rtt"` // 0 is unknown
	Applied uint64        `json:"applied"`
}

func (p *peers) list() []Peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]Peer, 0, len(p.all))
	for id, s := range p.all {
		out = append(out, Peer{ID: id, Heard: time.Since(s.heard), RTT: s.trips.least(), Applied: s.applied.get()})
	}
	return out
}

// WaitVisible waits until every server heard from in the last 5 s has applied
// index, at most 500 ms, and reports whether all have. At most one question a peer
// is out; who comes meanwhile joins the next. One whose connection fails counts as
// not heard from until it is heard again.
func (n *Node) WaitVisible(ctx context.Context, index uint64) bool {
	ctx, cancel := context.WithTimeout(ctx, visibleLimit)
	defer cancel()
	type wait struct{ done, lost <-chan struct{} }
	var waits []wait
	n.peers.mu.Lock()
	for id, s := range n.peers.all {
		if time.Since(s.heard) > heardWithin {
			continue
		}
		done, stop := s.applied.reached(index)
		defer stop()
		waits = append(waits, wait{done, s.lost.changed()})
		if s.want = max(s.want, index); !s.asking && s.applied.get() < index {
			s.asking = n.spawn(func(ctx context.Context) { n.askApplied(ctx, id, s) })
		}
	}
	n.peers.mu.Unlock()
	for _, w := range waits {
		select {
		case <-w.done:
		case <-w.lost:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// askApplied asks id for as long as somebody waits for more than it has applied.
func (n *Node) askApplied(ctx context.Context, id meta.NodeID, s *peerState) {
	for {
		n.peers.mu.Lock()
		want := s.want
		if want <= s.applied.get() || ctx.Err() != nil {
			s.asking = false
			n.peers.mu.Unlock()
			return
		}
		n.peers.mu.Unlock()
		ctx, cancel := context.WithTimeout(ctx, 2*visibleLimit)
		a, err := n.ask(ctx, id, question{Wait: want, Limit: visibleLimit})
		cancel()
		n.peers.mu.Lock()
		if err != nil {
			s.heard = time.Time{}
			s.lost.fire()
		}
		if (err != nil || a.Applied < want) && s.want == want {
			s.want = 0 // those who wanted it have waited long enough
		}
		n.peers.mu.Unlock()
	}
}

// answerQuestion serves /round/1.
func (n *Node) answerQuestion(ctx context.Context, from meta.NodeID, q *question) *answer {
	n.peers.heard(from, q.Applied, 0)
	a := &answer{}
	if q.Wait > 0 {
		ctx, cancel := context.WithTimeout(ctx, min(q.Limit, visibleLimit))
		_ = n.replica.applied.wait(ctx, q.Wait) // the answer says how far it is
		cancel()
	}
	if q.Nudge {
		n.nudge()
	}
	if q.Voters {
		a.Last, a.Voters = n.lastAndVoters()
	}
	if q.Health {
		a.Last = n.raft.LastIndex()
		a.LastTerm = n.lastTerm()
		a.Contact = n.contact()
		a.Level = n.cfg.Level
	}
	if q.Servers {
		a.Servers = n.cfg.Roster.Servers()
	}
	if q.Expel {
		a.Leader, a.Expelled = n.Leader(), n.expel(from)
	}
	if q.Sights {
		a.Sights = n.sights()
	}
	a.Applied = n.replica.applied.get()
	return a
}

// freshen keeps the age of the local state low and the others heard.
func (n *Node) freshen(ctx context.Context) error {
	tick := time.NewTicker(freshEvery)
	defer tick.Stop()
	var last time.Time
	for {
		_, _ = n.rounds.join(ctx) // no quorum shows in the age
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if time.Since(last) < quietEvery {
			continue
		}
		last = time.Now()
		var ids []meta.NodeID
		known := map[meta.NodeID]bool{}
		for _, s := range n.servers() {
			if id := meta.NodeID(s.ID); id != n.cfg.Self {
				ids = append(ids, id)
				known[id] = true
			}
		}
		n.peers.keep(known)
		for _, id := range n.peers.quiet(ids, 2*quietEvery) {
			n.spawn(func(ctx context.Context) {
				ctx, cancel := context.WithTimeout(ctx, 2*quietEvery)
				defer cancel()
				_, _ = n.ask(ctx, id, question{}) // who does not answer stays quiet
			})
		}
	}
}
