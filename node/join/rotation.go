package join

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/trust"
)

// Begin makes the cluster's next root, and seals its key to every server of the roster.
//
// Errors: meta.ErrUnavailable while a server has no key that can be sealed to.
func (s *Server) Begin(ctx context.Context) (state.BeginRotation, error) {
	var none state.BeginRotation
	cluster, _, err := raftmeta.Ask(ctx, s.Metadata, meta.Strong, state.GetCluster{})
	if err != nil {
		return none, err
	}
	authority, err := s.open(0, cluster.Root, cluster.RootKey)
	if err != nil {
		return none, err
	}
	next, cross, err := authority.Succeed(time.Now())
	if err != nil {
		return none, err
	}
	der, err := next.KeyDER()
	if err != nil {
		return none, err
	}
	servers, _, err := raftmeta.Ask(ctx, s.Metadata, meta.Strong, state.ListNodes{Role: meta.RoleServer, Page: state.Page{Limit: 1000}})
	if err != nil {
		return none, err
	}
	hash := authority.Root().Hash()
	begin := state.BeginRotation{Root: hash[:], Next: next.Root().DER(), Cross: cross, Keys: make(map[meta.NodeID][]byte, len(servers))}
	for _, n := range servers {
		recipient, err := trust.ParseRecipient(n.Seal)
		if err != nil {
			return none, fmt.Errorf("seal the next root's key to %s: %w", n.ID, errors.Join(err, meta.ErrInvalid))
		}
		if begin.Keys[n.ID], err = trust.Seal(der, recipient); err != nil {
			return none, err
		}
	}
	return begin, nil
}

// Finish is the command that drops the old root. The next one signs the epoch anew, as
// the old one's word on it counts no more.
//
// Errors: meta.ErrConflict when no root is taking over.
func (s *Server) Finish(ctx context.Context) (state.FinishRotation, error) {
	var none state.FinishRotation
	cluster, _, err := raftmeta.Ask(ctx, s.Metadata, meta.Strong, state.GetCluster{})
	if err != nil {
		return none, err
	}
	succession, _, err := raftmeta.Ask(ctx, s.Metadata, meta.Local, state.GetTrust{})
	if err != nil {
		return none, err
	}
	if len(succession.Next) == 0 {
		return none, fmt.Errorf("drop the old root: no root is being replaced, begin with `shoal trust rotate`: %w", meta.ErrConflict)
	}
	finish := state.FinishRotation{Root: meta.RootHash(succession.Next)}
	if cluster.Recovery == nil || len(cluster.Recovery.Statement) == 0 {
		return finish, nil
	}
	root, err := trust.ParseRoot(cluster.Root)
	if err != nil {
		return none, err
	}
	epoch, err := root.CheckEpoch(cluster.Recovery.Statement)
	if err != nil {
		return none, err
	}
	next, err := s.open(1, succession.Next, succession.Keys)
	if err != nil {
		return none, err
	}
	finish.Statement = next.SignEpoch(epoch)
	return finish, nil
}
