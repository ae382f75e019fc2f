package transfer

import (
	"context"

	"github.com/shoal-registry/shoal/transfer/swarm"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Swarm makes s a Fetcher.
func Swarm(s *swarm.Swarm) Fetcher { return swarmFetcher{s} }

type swarmFetcher struct{ *swarm.Swarm }

func (f swarmFetcher) Fetch(ctx context.Context, root digest.CID, _ int64) (Session, error) {
	session, err := f.Swarm.Fetch(ctx, root)
	if err != nil {
		return nil, err // not a nil *swarm.Session in an interface
	}
	return session, nil
}
