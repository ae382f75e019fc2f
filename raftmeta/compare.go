package raftmeta

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// Servers compare their states now and then: the leader commits a CompareState, each
// server hashes its state as it was at that entry, slowly and beside its work, and
// reports the hash into the log. One that differs from the majority has a state that
// no command made: it stops, stays down, and rejoins. The hash reads everything that
// is stored, so damage that nothing else has read yet is found too.
const (
	// compareEvery is how often; the first after a start comes a tenth of it later, so
	// that a server that was replaced is not compared while it is busy.
	compareEvery = 6 * time.Hour
	compareLook  = time.Minute
	// hashBytesPerSec bounds what hashing reads.
	hashBytesPerSec = 64 << 20
	// reportFor is how long a server tries to report: the entry is forgotten after a few
	// comparisons anyway.
	reportFor = 10 * time.Minute
)

// toCompare takes the state at a comparison; one that comes while another waits is left
// out, and the server says nothing to it.
func (s *Store) toCompare(v *state.View) bool {
	select {
	case s.compared <- v:
		return true
	default:
		return false
	}
}

// compare runs the comparisons until ctx ends.
func (s *Store) compare(ctx context.Context) error {
	began, look := time.Now(), min(compareLook, s.cfg.CompareEvery)
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case v := <-s.compared:
			err = s.reportState(ctx, v)
		case <-tick.C:
			if err = s.judge(ctx); err == nil && time.Since(began) >= s.cfg.CompareEvery/10 {
				err = s.proposeComparison(ctx)
			}
		}
		if err != nil && ctx.Err() == nil {
			s.cfg.Log.Debug("states are not compared now", "error", err)
		}
	}
}

// forgetCompared frees the state that waits for its comparison. Nothing is applied any more.
func (s *Store) forgetCompared() {
	select {
	case v := <-s.compared:
		_ = v.Close() // it only frees
	default:
	}
}

// proposeComparison asks for one when this server leads and the last is old.
func (s *Store) proposeComparison(ctx context.Context) error {
	if now, err := s.view.read(); err != nil || s.Leader() != s.cfg.Self || state.CheckLevel(state.CompareState{}, now.level) != nil {
		return err
	}
	all, _, err := Ask(ctx, s, meta.Local, state.ListComparisons{})
	if err != nil {
		return err
	}
	if len(all) > 0 && time.Since(all[len(all)-1].At.Std()) < s.cfg.CompareEvery {
		return nil
	}
	_, err = s.DoHere(ctx, state.Origin{Principal: "node:" + string(s.cfg.Self)}, state.CompareState{})
	return err
}

// reportState hashes a state and says so.
func (s *Store) reportState(ctx context.Context, v *state.View) error {
	index, read := v.Index(), 0
	sum, err := v.HashSlowly(ctx, func(n int) {
		const rest = 4 << 20
		if read += n; read >= rest {
			select {
			case <-time.After(time.Second * time.Duration(read) / hashBytesPerSec):
			case <-ctx.Done():
			}
			read = 0
		}
	})
	if err = errors.Join(err, v.Close()); err != nil {
		if state.Damaged(err) {
			s.fatal(err)
		}
		return err
	}
	s.hashed.index, s.hashed.sum = index, sum[:]
	ctx, cancel := context.WithTimeout(ctx, reportFor)
	defer cancel()
	for {
		_, err := s.DoHere(ctx, state.Origin{Principal: "node:" + string(s.cfg.Self)},
			state.ReportState{Index: index, Server: s.cfg.Self, Hash: sum[:]})
		if err == nil || !errors.Is(err, meta.ErrUnavailable) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Second):
		}
	}
}

// judge stops this server when the state that it hashed last was not that of the
// majority. What the log says of it may be of a life before it rejoined.
func (s *Store) judge(ctx context.Context) error {
	now, err := s.view.read()
	if err != nil {
		return err
	}
	var servers []meta.NodeID
	for _, n := range now.servers {
		servers = append(servers, n.ID)
	}
	all, _, err := Ask(ctx, s, meta.Local, state.ListComparisons{})
	if err != nil {
		return err
	}
	for _, c := range all {
		majority, ok := c.Majority(servers)
		if ok && c.Index == s.hashed.index && !bytes.Equal(majority, s.hashed.sum) {
			s.fatal(fmt.Errorf("the state of this server at index %d has the hash %.8x, that of the majority %.8x: %w",
				c.Index, s.hashed.sum, majority, meta.ErrCorrupt))
			return nil
		}
	}
	return nil
}
