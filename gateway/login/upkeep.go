package login

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

const (
	// reportEvery is how often uses are put on record, and seldom how old the last
	// report of a credential is before it is reported again: what people want to know
	// is whether a token is still in use, not when to the second.
	reportEvery = time.Minute
	seldom      = 5 * time.Minute
	maxUses     = 4096
	usesAtOnce  = 500
	sweepAtOnce = 500
	// keysEvery is how old an issuer's keys may get before it is asked again.
	keysEvery = time.Hour
)

// Uses gathers when credentials were used. It is safe for concurrent use.
type Uses struct {
	mu       sync.Mutex
	pending  map[string]meta.Time
	reported map[string]meta.Time
}

// NewUses makes a Uses.
func NewUses() *Uses {
	return &Uses{pending: map[string]meta.Time{}, reported: map[string]meta.Time{}}
}

// Used notes that a credential is being used.
func (u *Uses) Used(id string) { u.note(id, meta.TimeOf(time.Now())) }

// Merge notes what another node gathered.
func (u *Uses) Merge(uses []state.CredentialUse) {
	for _, use := range uses {
		if (state.TouchCredentials{Uses: []state.CredentialUse{use}}).Check() != nil {
			continue
		}
		u.note(use.ID, min(use.At, meta.TimeOf(time.Now())))
	}
}

func (u *Uses) note(id string, at meta.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if last, ok := u.reported[id]; ok && at-last < meta.Time(seldom) || len(u.pending) >= maxUses {
		return
	}
	u.pending[id] = max(u.pending[id], at)
}

// Take returns what is to be reported, at most so many, in order of ids, and takes it
// for reported.
func (u *Uses) Take(limit int) []state.CredentialUse {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.reported) > 4*maxUses {
		clear(u.reported)
	}
	var uses []state.CredentialUse
	for _, id := range slices.Sorted(maps.Keys(u.pending)) {
		if len(uses) == limit {
			break
		}
		uses = append(uses, state.CredentialUse{ID: id, At: u.pending[id]})
		u.reported[id] = u.pending[id]
		delete(u.pending, id)
	}
	return uses
}

// Run reports uses, and where this server leads sweeps credentials that ended and looks
// at issuers, until ctx ends.
func (d *Desk) Run(ctx context.Context) error {
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			d.report(ctx)
			if d.Leads != nil && d.Leads() {
				d.sweep(ctx)
				d.lookAtIssuers(ctx)
			}
		}
	}
}

var upkeep = state.Origin{Principal: "system:credentials"}

// report puts uses on record; a failure loses them, and the next use makes good.
func (d *Desk) report(ctx context.Context) {
	for {
		uses := d.uses.Take(usesAtOnce)
		if len(uses) == 0 {
			return
		}
		if _, err := d.Doer.Do(ctx, upkeep, state.TouchCredentials{Uses: uses}); err != nil {
			d.Log.Debug("uses of tokens were not put on record", "error", err)
			return
		}
	}
}

// sweep forgets credentials that ended a day ago.
func (d *Desk) sweep(ctx context.Context) {
	for ctx.Err() == nil {
		due, err := ask(ctx, d, state.CredentialsEnded{Before: meta.TimeOf(time.Now().Add(-meta.KeepExpired))})
		if err != nil || !due {
			return
		}
		receipt, err := d.Doer.Do(ctx, upkeep, state.ExpireCredentials{Limit: sweepAtOnce})
		if err != nil {
			d.Log.Debug("tokens that ended were not swept", "error", err)
			return
		}
		if done, ok := receipt.Value.(state.ExpiredCredentials); !ok || done.Forgotten == 0 {
			return // by the leader's clock it is not time yet
		}
	}
}

// lookAtIssuers asks issuers whose keys are old. One that does not answer keeps what is
// known of it, and is asked again the next minute.
func (d *Desk) lookAtIssuers(ctx context.Context) {
	const page = 100
	for after := ""; ; {
		issuers, err := ask(ctx, d, state.ListIssuers{Page: state.Page{After: after, Limit: page}})
		if err != nil {
			return
		}
		for i := range issuers {
			if ctx.Err() != nil {
				return
			}
			if issuers[i].Pinned || time.Since(issuers[i].KeysAt.Std()) < keysEvery {
				continue
			}
			if _, err := d.Look(ctx, &issuers[i]); err != nil {
				d.Log.Warn("an issuer does not say which keys it has, those that are known stay", "issuer", issuers[i].ID(), "error", err)
			}
		}
		if len(issuers) < page {
			return
		}
		after = issuers[len(issuers)-1].ID()
	}
}
