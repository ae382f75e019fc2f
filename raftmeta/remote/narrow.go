package remote

import (
	"context"
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// A node that is narrowed to some tenants asks about those, about what is public, and
// what every node has to know. Of the rest it hears the same whether it is there or not.

// about returns the repository that a question is about; open says that it is about
// none, and for every node.
func about(question any) (ref meta.RepoRef, open bool) {
	switch q := question.(type) {
	case state.GetCluster, state.GetLevel, state.GetNode, state.ListNodes, state.ListRegions, state.RegionHealth,
		state.GetAccessHead, state.GetCaller, state.GetTrust, state.GetAuditLog, state.ProveContinuation:
		return ref, true
	case state.GetTenant:
		return meta.RepoRef{Tenant: q.Name}, false
	case state.GetUsage:
		return meta.RepoRef{Tenant: q.Tenant}, false
	case state.ListRepositories:
		return meta.RepoRef{Tenant: q.Tenant}, false
	case state.FindLink:
		return meta.RepoRef{Tenant: q.Tenant}, false
	case state.GetRepository:
		return q.Ref, false
	case state.GetPackage:
		return q.Repo, false
	case state.ListPackages:
		return q.Repo, false
	case state.GetVersion:
		return q.Repo, false
	case state.GetTombstone:
		return q.Repo, false
	case state.Resolve:
		return q.Repo, false
	case state.ListVersions:
		return q.Repo, false
	case state.ListReferences:
		return q.Repo, false
	case state.ListFiles:
		return q.Repo, false
	case state.GetFile:
		return q.Repo, false
	case state.ListPackageFiles:
		return q.Repo, false
	case state.GetFetched:
		return q.Repo, false
	case state.GetSources:
		return q.Repo, false
	case state.Members:
		return q.Repo, false
	case state.ListAliases:
		return q.Repo, false
	case state.AliasHistory:
		return q.Repo, false
	case state.Attachments:
		return q.Repo, false
	case state.GetBlob:
		return q.Repo, false
	case state.GetSets:
		return q.Repo, false
	case state.GetPublication:
		return q.Repo, false
	case state.ListPublications:
		return q.Repo, false
	}
	return ref, false
}

// mayAsk refuses a narrowed node's question.
//
// Errors: meta.ErrDenied for one about all tenants, meta.ErrNotFound for one about a
// repository that it may know nothing of, whether it is there or not.
func mayAsk(ctx context.Context, asker raftmeta.Asker, node meta.Node, q raftmeta.Request) error {
	ref, open := about(q.Args())
	switch {
	case open || ref.Tenant != "" && node.MayHold(ref.Tenant):
		return nil
	case ref.Tenant == "":
		return fmt.Errorf("%s is not for a node that is narrowed to some tenants, ask a server: %w", q.Name(), meta.ErrDenied)
	case ref.Name == "":
		return fmt.Errorf("tenant %s: %w", ref.Tenant, meta.ErrNotFound)
	}
	repo, _, err := raftmeta.Ask(ctx, asker, meta.Local, state.GetRepository{Ref: ref})
	if err == nil && repo.Visibility == meta.VisibilityPublic {
		return nil
	}
	return fmt.Errorf("repository %s: %w", ref, meta.ErrNotFound)
}

// mayHear says whether a narrowed node is told of a change: none of another tenant, and
// none that names a blob alone.
func mayHear(node meta.Node, c feed.Change) bool {
	switch c.Kind {
	case feed.KindProgress, feed.KindCluster, feed.KindNode, feed.KindRegion, feed.KindHealth, feed.KindWave, feed.KindAccess:
		return true
	case feed.KindTenant:
		return node.MayHold(meta.TenantName(c.Name))
	}
	return c.Repo.Tenant != "" && node.MayHold(c.Repo.Tenant)
}
