package consensus

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// rounds are quorum-index rounds: after one, this server's state has seen all that
// was acknowledged before the round began.
//
// A round asks every voter for its last log index, waits until a majority of one
// voter set has answered, all with that set as their latest, and then for the state
// to reach the lowest index that bounds such a majority. No clock and no leader is
// part of the argument; DESIGN.md has it. All readers that come before a round
// starts share it; a reader never joins a round that runs already, because the
// write that it must see may be acknowledged after that round began. Asking is one
// round at a time; a round that waits for the state no longer holds up the next.
type rounds struct {
	n *Node

	mu     sync.Mutex
	next   *round // not begun; readers may join
	asking bool
	open   int
	best   freshness
	// failing says that the last round to end found no quorum.
	failing bool

	inquiries inquiries
}

// freshness says that the state has seen all that was acknowledged before began.
type freshness struct {
	began time.Time // zero: no round has succeeded yet
	index uint64
}

// age is how far the state may lie behind.
func (f freshness) age() time.Duration {
	if f.began.IsZero() {
		return meta.UnknownAge
	}
	return time.Since(f.began)
}

// round is one of them.
type round struct {
	began time.Time
	done  chan struct{}
	err   error
}

// maxOpenRounds bounds the rounds that wait for the state.
const maxOpenRounds = 16

// join waits for a round that begins after the call and returns when it began.
//
// Errors: *meta.UnavailableError with no_quorum after 2 s; of ctx.
func (r *rounds) join(ctx context.Context) (time.Time, error) {
	r.mu.Lock()
	rd := r.next
	if rd == nil {
		rd = &round{done: make(chan struct{})}
		r.next = rd
		r.beginLocked()
	}
	r.mu.Unlock()
	select {
	case <-rd.done:
		return rd.began, rd.err
	case <-ctx.Done():
		return time.Time{}, ended(ctx)
	case <-r.n.stopping:
		return time.Time{}, errStopping
	}
}

// beginLocked starts the next round unless another is asking.
func (r *rounds) beginLocked() {
	if r.next == nil || r.asking || r.open >= maxOpenRounds {
		return
	}
	rd := r.next
	if !r.n.spawn(func(ctx context.Context) { r.run(ctx, rd) }) {
		rd.err = errStopping
		close(rd.done)
		r.next = nil
		return
	}
	r.next = nil
	r.asking = true
	r.open++
}

// asked lets the next round begin.
func (r *rounds) asked() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asking = false
	r.beginLocked()
}

func (r *rounds) run(ctx context.Context, rd *round) {
	rd.began = time.Now()
	once := sync.OnceFunc(r.asked)
	index, err := r.n.quorumIndex(ctx, once)
	outcome := "ok"
	if err != nil {
		rd.err, outcome = err, "no_quorum"
	}
	r.n.m.rounds.WithLabelValues(outcome).Inc()
	r.n.m.round.Observe(time.Since(rd.began).Seconds())
	r.mu.Lock()
	r.failing = err != nil && ctx.Err() == nil
	if err == nil && rd.began.After(r.best.began) {
		r.best = freshness{began: rd.began, index: index}
	}
	r.open--
	r.beginLocked()
	r.mu.Unlock()
	once()
	close(rd.done)
}

func (r *rounds) freshest() freshness {
	best, _ := r.known()
	return best
}

// known returns the freshest round, and whether the last one found no quorum.
func (r *rounds) known() (best freshness, failing bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.best, r.failing
}

// Confirmed returns how far this server's state may lie behind, meta.UnknownAge before
// the first round, and whether the last round found no quorum.
func (n *Node) Confirmed() (age time.Duration, failing bool) {
	best, failing := n.rounds.known()
	return best.age(), failing
}

// heardIndex is a voter's answer within a round.
type heardIndex struct {
	from   meta.NodeID
	last   uint64
	voters []string
	err    error
}

// quorumIndex runs one round and returns the index that the state has reached.
// asked is called once a majority has answered.
func (n *Node) quorumIndex(ctx context.Context, asked func()) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, roundLimit)
	defer cancel()
	tally := tally{self: n.cfg.Self}
	answers := make(chan heardIndex)
	out := map[meta.NodeID]bool{} // asked and not answered
	ask := func(again bool) {
		last, voters := n.lastAndVoters()
		tally.restart(voters)
		tally.add(heardIndex{from: n.cfg.Self, last: last, voters: voters})
		for _, v := range voters {
			id := meta.NodeID(v)
			if id == n.cfg.Self || out[id] {
				continue
			}
			out[id] = true
			inquiry := n.rounds.inquiries.join(id, again)
			if !n.spawn(func(context.Context) {
				select {
				case <-inquiry.done:
				case <-ctx.Done():
					return
				}
				h := heardIndex{from: id, err: inquiry.err}
				if h.err == nil {
					h.last, h.voters = inquiry.answer.Last, inquiry.answer.Voters
				}
				select {
				case answers <- h:
				case <-ctx.Done():
				}
			}) {
				return
			}
		}
		if again {
			n.nudge()
		}
	}
	ask(false)
	again := time.NewTicker(roundAgain)
	defer again.Stop()
	for {
		var reached <-chan struct{}
		stop := func() {}
		index, ok := tally.index()
		if ok {
			asked()
			reached, stop = n.replica.applied.reached(index)
		}
		select {
		case <-reached:
			return index, nil
		case h := <-answers:
			delete(out, h.from)
			if h.err == nil {
				tally.add(h)
			}
		case <-again.C:
			ask(true)
		case <-ctx.Done():
			stop()
			return 0, noQuorum()
		}
		stop()
	}
}

// tally is the arithmetic of a round.
type tally struct {
	self   meta.NodeID
	voters []string // sorted
	last   map[meta.NodeID]uint64
}

// restart begins anew when the voters changed, else keeps what was heard: any
// answer to a question of the round counts, the lowest of a voter most.
func (t *tally) restart(voters []string) {
	if t.last == nil || !slices.Equal(t.voters, voters) {
		t.voters = voters
		t.last = make(map[meta.NodeID]uint64, len(voters))
	}
}

// add counts an answer of a voter that has the same voters in its log.
func (t *tally) add(h heardIndex) {
	if !slices.Equal(h.voters, t.voters) || !slices.Contains(t.voters, string(h.from)) {
		return
	}
	if last, ok := t.last[h.from]; !ok || h.last < last {
		t.last[h.from] = h.last
	}
}

// index returns the lowest index that bounds the answers of some majority, false
// when no majority has answered.
func (t *tally) index() (uint64, bool) {
	quorum := len(t.voters)/2 + 1
	if len(t.voters) == 0 || len(t.last) < quorum {
		return 0, false
	}
	all := make([]uint64, 0, len(t.last))
	for _, last := range t.last {
		all = append(all, last)
	}
	slices.Sort(all)
	return all[quorum-1], true
}

// Read waits until this server's state is as fresh as f says and returns what it
// is then: Index is at least what was asked for, Epoch is left to the caller.
//
// Errors: *meta.UnavailableError with no_quorum; of ctx.
func (n *Node) Read(ctx context.Context, f meta.Freshness) (meta.AsOf, error) {
	if f.Mode != meta.ModeLocal {
		if err := n.started(ctx); err != nil {
			return meta.AsOf{}, err
		}
	}
	if f.After.Index > 0 {
		if err := n.waitApplied(ctx, f.After.Index); err != nil {
			return meta.AsOf{}, err
		}
	}
	best, failing := n.rounds.known()
	mode := f.Mode
	switch mode {
	case meta.ModeLocal:
	case meta.ModeBounded:
		limit := f.MaxAge
		if limit <= 0 {
			limit = meta.Bounded.MaxAge
		}
		wanted := limit
		if f.Own {
			wanted = min(limit, ownWithin)
		}
		switch age := best.age(); {
		case age <= wanted:
		case failing && age <= limit:
			// Within its bound, and a round is not to be had.
		case failing && !f.Exact:
			// The rounds in the background find out when there is a quorum again; a reader
			// that can do with less shall not wait for each of them.
			return meta.AsOf{}, noQuorum()
		default:
			began, err := n.rounds.join(ctx)
			switch {
			case err == nil:
				best.began = began
			case best.age() > limit || ctx.Err() != nil:
				return meta.AsOf{}, err
			}
		}
	default:
		mode = meta.ModeStrong
		began, err := n.rounds.join(ctx)
		if err != nil {
			return meta.AsOf{}, err
		}
		best.began = began
	}
	return meta.AsOf{Index: n.replica.applied.get(), Age: best.age(), Mode: mode}, nil
}

// waitApplied waits for an index that somebody was told is committed.
func (n *Node) waitApplied(ctx context.Context, index uint64) error {
	ctx, cancel := context.WithTimeoutCause(ctx, roundLimit, noQuorum())
	defer cancel()
	if err := n.replica.applied.wait(ctx, index); err != nil {
		return ended(ctx)
	}
	return nil
}
