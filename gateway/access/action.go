package access

import "github.com/shoal-registry/shoal/raftmeta/meta"

// Action is what a route does; every route declares one, and a route without
// one does not start.
type Action = meta.Action

// Actions; meta says what each is. Those about a repository take it from the route's
// parameters {tenant} and {repository}, those about a tenant from {tenant}. List,
// Manage, Audit and Respond of a route that names neither are for whom may do so
// somewhere: such a route narrows by itself what it shows and does (Authorize of a
// Target of its own).
const (
	Public   = meta.ActionPublic
	Login    = meta.ActionLogin
	NodeOnly = meta.ActionNode

	Pull    = meta.ActionPull
	List    = meta.ActionList
	Push    = meta.ActionPush
	Delete  = meta.ActionDelete
	Promote = meta.ActionPromote
	Curate  = meta.ActionCurate

	Manage  = meta.ActionManage
	Audit   = meta.ActionAudit
	Respond = meta.ActionRespond
	Elevate = meta.ActionElevate

	Observe = meta.ActionObserve
	Operate = meta.ActionOperate
	Admin   = meta.ActionAdmin
)
