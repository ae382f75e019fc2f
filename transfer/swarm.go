package transfer

import (
	"context"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/limit"
	"github.com/shoal-registry/shoal/transfer/swarm"
)

// Swarm makes s a Fetcher.
func Swarm(s *swarm.Swarm) Fetcher { return swarmFetcher{s} }

type swarmFetcher struct{ *swarm.Swarm }

func (f swarmFetcher) Fetch(ctx context.Context, b meta.Blob) (Session, error) {
	session, err := f.Swarm.Fetch(ctx, b.Root, swarm.FetchOptions{Tenant: b.Context, Class: limit.ClassOf(ctx)})
	if err != nil {
		return nil, err // not a nil *swarm.Session in an interface
	}
	return session, nil
}
