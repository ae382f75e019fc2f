package gateway

import (
	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// targetOf says what a route's action is done to: the repository or the tenant that
// its path names, or the cluster. Actions that tenants have too, on a route that names
// none, are for whom may do so somewhere: the route narrows by itself.
func targetOf(call *protocol.Call, route *protocol.Route, repo *meta.Repository) access.Target {
	tenant := meta.TenantName(call.Params.Get(protocol.TenantParam))
	switch {
	case call.Repo != (meta.RepoRef{}):
		return access.Target{Repo: call.Repo, Record: repo}
	case tenant != "":
		return access.Target{Tenant: tenant}
	}
	switch route.Action {
	case access.List, access.Manage, access.Audit, access.Respond, access.Elevate:
		return access.Target{Somewhere: true}
	}
	return access.Target{}
}
