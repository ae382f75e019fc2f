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

// quieter closes the open versions that no file came for in a while: what a client of
// Maven left half sent, or sent without metadata. It remembers nothing; that a file comes
// between the look and the command is judged by the command, by the leader's time.
type quieter struct {
	metadata raftmeta.Asker
	doer     raftmeta.Doer
	self     meta.NodeID
	leads    func() bool
	log      *slog.Logger
}

const (
	// quietEvery is how often the leader looks: one read of its own state, of nothing when
	// nothing waits.
	quietEvery = 15 * time.Second
	// quietAtOnce bounds what one look closes, so that what cannot be closed now does not
	// hold up the rest for longer than a look.
	quietAtOnce = 1000
)

func (q quieter) run(ctx context.Context) error {
	tick := time.NewTicker(quietEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if !q.leads() {
			continue
		}
		if err := q.close(ctx); err != nil && ctx.Err() == nil {
			q.log.Warn("versions that are quiet are not closed, trying again", "error", err)
		}
	}
}

// close closes what is due.
func (q quieter) close(ctx context.Context) error {
	due, _, err := raftmeta.Ask(ctx, q.metadata, meta.Local, state.QuietVersions{Now: meta.TimeOf(time.Now()), Limit: quietAtOnce})
	if err != nil {
		return err
	}
	for _, v := range due {
		if !q.leads() {
			return nil
		}
		_, err := q.doer.Do(ctx, state.Origin{Principal: "node:" + string(q.self)},
			state.CloseVersion{Repo: v.Repo, Package: v.Package, Version: v.Name, Quiet: v.Quiet})
		switch {
		case errors.Is(err, meta.ErrConflict), errors.Is(err, meta.ErrNotFound):
			// A file came, or the version went.
		case err != nil:
			return err
		default:
			q.log.Info("a version is closed, it was quiet", "repository", v.Repo.String(), "package", v.Package, "version", v.Name, "after", v.Quiet)
		}
	}
	return nil
}
