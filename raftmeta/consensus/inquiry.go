package consensus

import (
	"context"
	"sync"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// inquiries are the questions of rounds that are out to voters. A round ends with
// the majority that answers first; the question to a slower voter goes on, so that
// its stream stays good and what it says of itself is heard. Of one voter there are
// at most maxInquiries out: rounds that come meanwhile share the one that is sent
// next, which is after they began, as the proof wants.
type inquiries struct {
	ask   func(ctx context.Context, to meta.NodeID, q question) (*answer, error)
	spawn func(func(context.Context)) bool // false: the node stops

	mu  sync.Mutex
	all map[meta.NodeID]*inquirer // those with something out
}

// inquirer is one voter's.
type inquirer struct {
	out  int
	next *inquiry // not sent yet
}

// inquiry is one question; answer and err are set when done is closed.
type inquiry struct {
	done   chan struct{}
	nudge  bool // under inquiries.mu until it is sent
	answer *answer
	err    error
}

const maxInquiries = idleLines

// join returns a question to a voter that is sent after the call.
func (q *inquiries) join(to meta.NodeID, nudge bool) *inquiry {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.all == nil {
		q.all = map[meta.NodeID]*inquirer{}
	}
	voter := q.all[to]
	if voter == nil {
		voter = &inquirer{}
		q.all[to] = voter
	}
	if voter.next == nil {
		voter.next = &inquiry{done: make(chan struct{})}
	}
	joined := voter.next
	joined.nudge = joined.nudge || nudge
	q.sendLocked(to, voter)
	return joined
}

// sendLocked sends the next question if there is one and room for it.
func (q *inquiries) sendLocked(to meta.NodeID, voter *inquirer) {
	if voter.next == nil || voter.out >= maxInquiries {
		return
	}
	sent := voter.next
	voter.next = nil
	voter.out++
	if !q.spawn(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, roundLimit)
		defer cancel()
		sent.answer, sent.err = q.ask(ctx, to, question{Voters: true, Nudge: sent.nudge})
		close(sent.done)
		q.mu.Lock()
		defer q.mu.Unlock()
		voter.out--
		q.sendLocked(to, voter)
		if voter.out == 0 {
			delete(q.all, to)
		}
	}) {
		voter.out--
		sent.err = errStopping
		close(sent.done)
		if voter.out == 0 {
			delete(q.all, to)
		}
	}
}
