package raftmeta

import (
	"context"
	"iter"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// Request is a question of any type with room for its answer.
type Request = state.Asked

// Asker answers questions: a server's Store, an agent's Mirror, a remote client.
type Asker interface {
	// Answer runs q at least as fresh as f says and leaves the answer in q.
	//
	// Errors: of the question (meta.ErrNotFound ...), with the AsOf at which it was
	// so; *meta.UnavailableError when f cannot be had.
	Answer(ctx context.Context, f meta.Freshness, q Request) (meta.AsOf, error)
}

// Ask asks q of m. Errors: of Asker.
func Ask[A any](ctx context.Context, m Asker, f meta.Freshness, q state.Question[A]) (A, meta.AsOf, error) {
	p := state.Posed[A]{Question: q}
	asOf, err := m.Answer(ctx, f, &p)
	return p.Result, asOf, err
}

// Doer makes changes: a server's Store.
type Doer interface {
	// Do commits c and answers once it is applied. The leader stamps o.Time.
	//
	// Errors: the command's refusal; *meta.UnavailableError and
	// *meta.NotLeaderError when it was not applied; *meta.UnknownOutcomeError when
	// it may have been: repeat with the same o.RequestID.
	Do(ctx context.Context, o state.Origin, c state.Command) (Receipt, error)
}

// Receipt is what a change answers.
type Receipt struct {
	// Token makes a read see the change.
	Token meta.Token
	// Value is the result that the command documents, nil when it has none.
	Value any
}

// Watcher follows the changes.
type Watcher interface {
	// Watch yields the changes with an index above after, as they are applied, and
	// feed.KindProgress when it has caught up. It ends with ctx, by the reader's
	// break, or with the first error, which it yields.
	//
	// Errors: feed.ErrCompacted; of ctx; *meta.UnavailableError.
	Watch(ctx context.Context, after uint64) iter.Seq2[feed.Change, error]
}
