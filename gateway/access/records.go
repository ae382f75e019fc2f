package access

import (
	"context"
	"errors"
	"time"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// Records is the Metadata of a Store or a Mirror. Cluster and roster are read
// where they are: they follow the log by themselves, and must be readable
// without a quorum.
type Records struct{ Asker raftmeta.Asker }

// AdminTokenHash implements Metadata. A server that has joined and has no state yet
// knows nobody, which is no reason to call a credential wrong.
//
// Errors: *meta.UnavailableError with starting.
func (m Records) AdminTokenHash(ctx context.Context) ([]byte, error) {
	cluster, _, err := raftmeta.Ask(ctx, m.Asker, meta.Local, state.GetCluster{})
	if errors.Is(err, meta.ErrNotFound) {
		return nil, &meta.UnavailableError{Reason: "starting", RetryAfter: time.Second}
	}
	return cluster.AdminToken, err
}

// Epoch implements Metadata. Errors: as of AdminTokenHash.
func (m Records) Epoch(ctx context.Context) (uint64, error) {
	cluster, _, err := raftmeta.Ask(ctx, m.Asker, meta.Local, state.GetCluster{})
	if errors.Is(err, meta.ErrNotFound) {
		return 0, &meta.UnavailableError{Reason: "starting", RetryAfter: time.Second}
	}
	return cluster.Epoch, err
}

// Node implements Metadata. Errors: as of AdminTokenHash.
func (m Records) Node(ctx context.Context, id meta.NodeID) (meta.Node, error) {
	node, _, err := raftmeta.Ask(ctx, m.Asker, meta.Local, state.GetNode{ID: id})
	if errors.Is(err, meta.ErrNotFound) {
		if _, err := m.AdminTokenHash(ctx); err != nil {
			return node, err
		}
	}
	return node, err
}

// Caller implements Metadata.
func (m Records) Caller(ctx context.Context, q state.GetCaller, f meta.Freshness) (state.Caller, error) {
	c, _, err := raftmeta.Ask(ctx, m.Asker, f, q)
	return c, err
}

// Repository implements Metadata.
func (m Records) Repository(ctx context.Context, ref meta.RepoRef, f meta.Freshness) (meta.Repository, error) {
	repo, _, err := raftmeta.Ask(ctx, m.Asker, f, state.GetRepository{Ref: ref})
	return repo, err
}

// Servers implements forward.Roster.
func (m Records) Servers(ctx context.Context) ([]meta.Node, error) {
	var servers []meta.Node
	for after := ""; ; {
		page, _, err := raftmeta.Ask(ctx, m.Asker, meta.Local, state.ListNodes{Role: meta.RoleServer, Page: state.Page{After: after, Limit: serverPage}})
		if err != nil {
			return nil, err
		}
		servers = append(servers, page...)
		if len(page) < serverPage {
			return servers, nil
		}
		after = string(page[len(page)-1].ID)
	}
}

// serverPage is far above the servers that a cluster has.
const serverPage = 1000
