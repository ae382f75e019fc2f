package consensus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// A voter that has lost its log must not take part as if nothing had happened: it
// stored entries that count as committed by its word, and gave votes that it would
// give again. So before Raft starts it asks to be taken out of the configuration.
// The leader's entry that does so commits on a majority without it, and with that
// entry all that was committed before. From then on the server is one that never
// was: the leader adds it without a vote, as it does with all of the roster, and it
// votes again when it has caught up. That it voted in the leader's term, for whomever,
// it writes down first, so it gives no second vote there; terms before are refused
// anyway.

// Keys of hashicorp/raft in its stable store.
var (
	keyTerm     = []byte("CurrentTerm")
	keyVoteTerm = []byte("LastVoteTerm")
	keyVote     = []byte("LastVoteCand")
)

// JoinAnew makes Run do so. It comes between New and Run, for a server that was of the
// cluster before and has no log (HasState).
func (n *Node) JoinAnew() { n.anew = true }

// rejoin returns when this server is out of the configuration and knows the term.
//
// Errors: meta.ErrInvalid when it knows nobody to ask; of the disk; of ctx.
func (n *Node) rejoin(ctx context.Context) error {
	others := slices.DeleteFunc(slices.Clone(n.cfg.Seeds), func(s meta.Node) bool { return s.ID == n.cfg.Self })
	if len(others) == 0 {
		return fmt.Errorf("this server has lost its log and knows no other server: restore a backup: %w", meta.ErrInvalid)
	}
	n.log.Warn("this server has no log: it leaves the configuration and joins anew, without a vote at first")
	const patience = 10 * time.Second
	for {
		leader, term, err := n.askOut(ctx, others, patience)
		if err == nil {
			if err := keepTerm(n.logs, leader, term); err != nil {
				return fmt.Errorf("keep the term: %w", err)
			}
			n.log.Info("out of the configuration, joining anew", "leader", leader, "term", term)
			return nil
		}
		n.log.Warn("cannot join anew yet, trying again", "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// keepTerm writes down that this server voted for the leader of a term. The term comes
// last: with it there is a state (HasState), and no rejoin after a crash.
func keepTerm(disk raft.StableStore, leader meta.NodeID, term uint64) error {
	if err := disk.Set(keyVote, []byte(leader)); err != nil {
		return err
	}
	if err := disk.SetUint64(keyVoteTerm, term); err != nil {
		return err
	}
	return disk.SetUint64(keyTerm, term)
}

// askOut asks the servers in turn, and whom they name as leader, until one has taken
// this one out. patience bounds each question.
func (n *Node) askOut(ctx context.Context, servers []meta.Node, patience time.Duration) (meta.NodeID, uint64, error) {
	var failed error
	ask := func(id meta.NodeID) (*answer, error) {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		return n.questions.ask(ctx, id, &question{Expel: true})
	}
	for _, s := range servers {
		a, err := ask(s.ID)
		if err == nil && a.Expelled == 0 && a.Leader != "" && a.Leader != s.ID && a.Leader != n.cfg.Self {
			s.ID = a.Leader
			a, err = ask(s.ID)
		}
		switch {
		case err != nil:
			failed = errors.Join(failed, err)
		case a.Expelled > 0:
			return s.ID, a.Expelled, nil
		default:
			failed = errors.Join(failed, fmt.Errorf("%s knows no leader that could let this server in: %w", s.ID, meta.ErrUnavailable))
		}
	}
	return "", 0, failed
}

// expel takes a server out of the configuration, when this one leads, and returns the
// term in which that was committed, 0 when it was not.
func (n *Node) expel(id meta.NodeID) uint64 {
	term := n.raft.CurrentTerm()
	if n.raft.State() != raft.Leader {
		return 0
	}
	// Also when the configuration lacks it: an entry that takes it out may not be
	// committed yet, and this one commits behind it.
	if err := n.raft.RemoveServer(raft.ServerID(id), 0, transportTimeout).Error(); err != nil {
		n.log.Debug("cannot take a server out yet", "node", id, "error", err)
		return 0
	}
	if n.raft.CurrentTerm() != term {
		return 0
	}
	n.log.Info("a server without its log left the configuration", "node", id)
	return term
}
