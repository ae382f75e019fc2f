package consensus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Outcome is where a command took its place in the log and what the machine made
// of it. The machine's refusals are values too.
type Outcome struct {
	Index uint64
	Value any
}

// forward is a command on its way to the leader.
type forward struct {
	Command []byte `cbor:"1,keyasint,omitempty"`
	// Budget is how long the one who asks will wait.
	Budget time.Duration `cbor:"2,keyasint,omitempty"`
}

// forwarded is the leader's answer.
type forwarded struct {
	Status uint8 `cbor:"1,keyasint,omitempty"`
	// Index is where it was committed.
	Index uint64 `cbor:"2,keyasint,omitempty"`
	// Leader is who leads instead, when known.
	Leader meta.NodeID `cbor:"3,keyasint,omitempty"`
	// Error is what went wrong.
	Error *meta.WireError `cbor:"4,keyasint,omitempty"`
}

// Statuses of forwarded. The numbers are on the wire.
const (
	statusCommitted = 1
	// statusNotLeader: not in the log, and safe to send again.
	statusNotLeader = 2
	// statusRefused: not in the log, and never will be.
	statusRefused = 3
	// statusUnknown: may be in the log.
	statusUnknown = 4
)

// refusedError says that the leader's machine would not stamp a command.
type refusedError struct{ err error }

func (e *refusedError) Error() string { return e.err.Error() }
func (e *refusedError) Unwrap() error { return e.err }

// Propose puts command into the log and returns once this server has applied it. It
// may be called on any server: the leader does it, others send it there. An election
// is waited for, and what may have been lost is sent again, which is safe because a
// machine applies one request id once: commands must carry one.
//
// Errors: what Machine.Stamp refuses; *meta.UnavailableError with no_quorum when
// the command was not applied in time; *meta.UnknownOutcomeError when it may have
// been; context.Canceled, bare or in the latter.
func (n *Node) Propose(ctx context.Context, command []byte) (Outcome, error) {
	start := time.Now()
	out, err := n.propose(ctx, command)
	n.m.commit.Observe(time.Since(start).Seconds())
	var unknown *meta.UnknownOutcomeError
	switch {
	case err == nil:
		n.m.proposals.WithLabelValues("applied").Inc()
	case errors.As(err, &unknown):
		n.m.proposals.WithLabelValues("unknown").Inc()
	default:
		n.m.proposals.WithLabelValues("not_applied").Inc()
	}
	return out, err
}

func (n *Node) propose(ctx context.Context, command []byte) (Outcome, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, n.cfg.Commit, noQuorum())
	defer cancel()
	if err := n.started(ctx); err != nil {
		return Outcome{}, err
	}
	var unknown *meta.UnknownOutcomeError // of the last attempt that may have succeeded
	pause := 5 * time.Millisecond
	for {
		changed := n.leader.changed()
		out, err := n.attempt(ctx, command)
		var refused *refusedError
		var lost *meta.UnknownOutcomeError
		switch {
		case err == nil:
			return out, nil
		case errors.As(err, &refused):
			return Outcome{}, refused.err
		case errors.Is(err, errStopping):
			if unknown == nil {
				return Outcome{}, err
			}
			return Outcome{}, &meta.UnknownOutcomeError{Cause: err}
		case errors.As(err, &lost):
			unknown = lost
		}
		select {
		case <-ctx.Done():
			if unknown != nil {
				return Outcome{}, &meta.UnknownOutcomeError{Cause: ended(ctx)}
			}
			return Outcome{}, ended(ctx)
		case <-changed:
		case <-time.After(pause):
		}
		pause = min(2*pause, 250*time.Millisecond)
	}
}

// attempt tries once, here or at the leader.
//
// Errors: *refusedError; *meta.NotLeaderError when it is not in the log;
// *meta.UnknownOutcomeError when it may be; errStopping.
func (n *Node) attempt(ctx context.Context, command []byte) (Outcome, error) {
	leader := n.Leader()
	switch leader {
	case "":
		return Outcome{}, &meta.NotLeaderError{}
	case n.cfg.Self:
		return n.commit(ctx, command)
	}
	budget := n.cfg.Commit
	if end, ok := ctx.Deadline(); ok {
		budget = time.Until(end)
	}
	asked, stop := n.whileLeads(ctx, leader)
	a, err := n.commands.ask(asked, leader, &forward{Command: command, Budget: budget})
	stop()
	switch {
	case errors.Is(err, errNotSent):
		return Outcome{}, &meta.NotLeaderError{Leader: leader}
	case err != nil:
		return Outcome{}, &meta.UnknownOutcomeError{Cause: err}
	case a.Status == statusNotLeader:
		return Outcome{}, &meta.NotLeaderError{Leader: a.Leader}
	case a.Status == statusRefused:
		return Outcome{}, &refusedError{a.Error.Err()}
	case a.Status != statusCommitted:
		return Outcome{}, &meta.UnknownOutcomeError{Cause: fmt.Errorf("leader %s: %w", leader, a.Error)}
	}
	// Read your writes, and the result with the types of this process.
	if err := n.replica.applied.wait(ctx, a.Index); err != nil {
		return Outcome{}, &meta.UnknownOutcomeError{Cause: fmt.Errorf("committed at %d, not yet applied here: %w", a.Index, err)}
	}
	value, ok := n.replica.results.get(a.Index)
	if !ok {
		// The state came by a snapshot. The repetition answers what was decided.
		return Outcome{}, &meta.UnknownOutcomeError{Cause: fmt.Errorf("committed at %d, its result passed by", a.Index)}
	}
	return outcome(a.Index, value)
}

// whileLeads returns a context that also ends when another server than leader leads: a
// stopped process keeps its connections and answers nothing, and what it was asked is
// sent again to the one that follows. stop waits for the context's goroutine.
func (n *Node) whileLeads(ctx context.Context, leader meta.NodeID) (asked context.Context, stop func()) {
	asked, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			changed := n.leader.changed()
			if now := n.Leader(); now != leader && now != "" {
				cancel()
				return
			}
			select {
			case <-asked.Done():
				return
			case <-changed:
			}
		}
	}()
	return asked, func() {
		cancel()
		<-done
	}
}

func outcome(index uint64, value any) (Outcome, error) {
	if err, ok := value.(error); ok && errors.Is(err, errMachine) {
		return Outcome{}, &meta.UnknownOutcomeError{Cause: err}
	}
	return Outcome{Index: index, Value: value}, nil
}

// commit puts command into the log of this server, which must lead, and waits for
// the result.
//
// Errors: of attempt.
func (n *Node) commit(ctx context.Context, command []byte) (Outcome, error) {
	changed := n.leader.changed()
	select {
	case <-n.leading.opened():
	case <-changed:
		return Outcome{}, &meta.NotLeaderError{Leader: n.Leader()}
	case <-ctx.Done():
		return Outcome{}, &meta.NotLeaderError{Leader: n.Leader()}
	}
	size := int64(len(command))
	if err := n.proposals.Acquire(ctx, size); err != nil {
		return Outcome{}, &meta.NotLeaderError{Leader: n.cfg.Self}
	}
	defer n.proposals.Release(size)
	return n.commitStamped(ctx, command)
}

func (n *Node) commitStamped(ctx context.Context, command []byte) (Outcome, error) {
	// Stamping and queueing are one step, so that times rise with the log.
	n.stamp.Lock()
	select {
	case <-n.stopping:
		n.stamp.Unlock()
		return Outcome{}, errStopping
	default:
	}
	if n.raft.CurrentTerm() != n.stampTerm {
		n.stamp.Unlock()
		return Outcome{}, &meta.NotLeaderError{Leader: n.Leader()}
	}
	at := max(meta.TimeOf(time.Now()), n.stamped)
	stamped, err := n.cfg.Machine.Stamp(command, at)
	if err != nil {
		n.stamp.Unlock()
		return Outcome{}, &refusedError{err}
	}
	n.stamped = at
	future := n.raft.Apply(stamped, time.Second)
	done := make(chan error, 1) // a future knows no context
	n.futures.Go(func() { done <- future.Error() })
	n.stamp.Unlock()
	select {
	case err = <-done:
	case <-ctx.Done():
		return Outcome{}, &meta.UnknownOutcomeError{Cause: ended(ctx)}
	case <-n.stopping:
		return Outcome{}, &meta.UnknownOutcomeError{Cause: errStopping}
	}
	switch {
	case err == nil:
		return outcome(future.Index(), future.Response())
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		return Outcome{}, &meta.NotLeaderError{Leader: n.Leader()}
	}
	return Outcome{}, &meta.UnknownOutcomeError{Cause: err}
}

// answerForward serves /command/1.
func (n *Node) answerForward(ctx context.Context, _ meta.NodeID, f *forward) *forwarded {
	ctx, cancel := context.WithTimeoutCause(ctx, min(f.Budget, n.cfg.Commit), noQuorum())
	defer cancel()
	if n.Leader() != n.cfg.Self {
		return &forwarded{Status: statusNotLeader, Leader: n.Leader()}
	}
	out, err := n.commit(ctx, f.Command)
	var refused *refusedError
	var not *meta.NotLeaderError
	switch {
	case err == nil:
		return &forwarded{Status: statusCommitted, Index: out.Index}
	case errors.As(err, &refused):
		return &forwarded{Status: statusRefused, Error: meta.ToWire(refused.err)}
	case errors.As(err, &not):
		return &forwarded{Status: statusNotLeader, Leader: not.Leader}
	}
	return &forwarded{Status: statusUnknown, Error: meta.ToWire(err)}
}
