package node

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// settler proposes what is to be settled since the servers, the regions or a class
// changed. It remembers nothing: where the work stands is metadata, so the next leader
// goes on where the last one stopped, and two that both think they lead do it once.
type settler struct {
	metadata raftmeta.Asker
	doer     raftmeta.Doer
	self     meta.NodeID
	leads    func() bool
	limit    uint32 // records that one command reads
	log      *slog.Logger
}

const (
	// settleEvery is how often the leader looks whether something is to be settled:
	// one read of its own state.
	settleEvery = time.Second
	// settleLimit is how many records one command reads: a few milliseconds of every
	// server's time.
	settleLimit = 500
)

func (s settler) run(ctx context.Context) error {
	tick := time.NewTicker(settleEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if !s.leads() {
			continue
		}
		if err := s.settle(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("demands are not settled, trying again", "error", err)
		}
	}
}

// settle proposes until nothing is left to settle or this server does not lead any more.
func (s settler) settle(ctx context.Context) error {
	fresh := meta.Local
	for s.leads() {
		next, _, err := raftmeta.Ask(ctx, s.metadata, fresh, state.NextSettlement{})
		if errors.Is(err, meta.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		receipt, err := s.doer.Do(ctx, state.Origin{Principal: "node:" + string(s.self)},
			state.SettleDemands{Since: next.Since, After: next.After, Limit: s.limit})
		if err != nil {
			return err
		}
		fresh.After = receipt.Token
		if r, ok := receipt.Value.(state.SettleResult); ok && r.Done {
			s.log.Info("demands are settled", "since", next.Since, "repository", next.Repo.String(), "records", next.Read+uint64(r.Read),
				"dropped", next.Dropped+uint64(r.Dropped), "owed", next.Owed+uint64(r.Owed))
		}
	}
	return nil
}
