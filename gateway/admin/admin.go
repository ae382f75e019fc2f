// Package admin is the versioned JSON API for operators and tools: tenants,
// repositories and what is in them, waves, nodes, regions, join tokens, trust, status.
//
// It is a protocol like the others, so every endpoint passes the same gate: to see how
// the cluster is takes observe, to change it operate, what belongs to a tenant or a
// repository manage, what is in a repository the rights to it (access.go: accounts,
// roles and bindings). Start reading at API.Routes. Reads answer as the
// request's Shoal-Mode says, else bounded, and local (the header of the answer says
// so) while no quorum is there: an operator needs them most then. Writes are commands, one a call. Refusals are
// {"error": {"kind", "message"}}; listings are pages, {"items", "next"}, by
// ?after= and ?limit=. The types live with their client (admin/client).
//
// The package starts no goroutines.
package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// maxBodyBytes bounds a request's JSON.
const maxBodyBytes = 256 << 10

// standardPage is the limit of a page that the caller did not name.
const standardPage = 100

// Quorum is what a server knows of the Raft group.
type Quorum interface {
	// Leader returns the leader, "" while none is known.
	Leader() meta.NodeID
	// Voters lists the voting servers.
	Voters() []meta.NodeID
	// Survey asks each server of the roster how it is.
	Survey(ctx context.Context) []raftmeta.Surveyed
}

// Config is what an API is made of.
type Config struct {
	// Self is this node, Version the build.
	Self    meta.Node
	Version string
	// Metadata answers. Required.
	Metadata raftmeta.Asker
	// Doer changes; nil on agents, which forward every change.
	Doer raftmeta.Doer
	// Quorum is nil on agents.
	Quorum Quorum
	// Formats that this build serves; a repository of another cannot be created.
	Formats []string
	// Packages are the protocols that know what a version closes over, by format.
	Packages map[string]protocol.Packages
	// Logins is nil on agents, which send such calls on.
	Logins Logins
	// Promoter is nil on agents, which send such calls on.
	Promoter Promoter
	// Waves is nil on agents, which send such questions on.
	Waves Waves
	// Reported lists the peers of this server's region that sent wrong chunks; nil on
	// agents.
	Reported func() []client.ReportedPeer
	// Rates tells what tenants use at present, per second: publish bytes and requests,
	// download bytes and requests, uploads. Nil on agents, which send the question on.
	Rates func(context.Context) (map[meta.TenantName][]float64, error)
	// Trail is this node's chain of denials, failed logins and pulls; nil without one.
	Trail Trail
	// Audited tells what this node knows to be wrong with the audit log; nil says nothing.
	Audited func() client.AuditTrouble
	// Backups is nil on agents, which send such requests on.
	Backups Backups
	// Succession is nil on agents, which send such requests on.
	Succession Succession
	// Nearest returns the second region of a standard repository at home in a
	// region, "" when there is none. Nil chooses none.
	Nearest func(ctx context.Context, home meta.RegionName) meta.RegionName
}

// API is the protocol. It is safe for concurrent use.
type API struct{ Config }

// New builds the API.
//
// Errors: meta.ErrInvalid for a Config without Metadata or Self, or a server's
// without Doer.
func New(c Config) (*API, error) {
	if c.Metadata == nil || c.Self.ID == "" || c.Self.Role == meta.RoleServer && c.Doer == nil {
		return nil, fmt.Errorf("admin: Metadata, Self and on servers Doer are required: %w", meta.ErrInvalid)
	}
	return &API{c}, nil
}

// Format implements protocol.Protocol: the API serves no repositories of its own.
func (a *API) Format() string { return "" }

const (
	base = "/api/v1/"
	repo = base + "repositories/{tenant}/{repository}"
	pkg  = repo + "/packages/{package}"
)

// Routes implements protocol.Protocol.
func (a *API) Routes() []protocol.Route {
	read := func(name, pattern string, action access.Action, serve func(*protocol.Call) error) protocol.Route {
		return protocol.Route{Name: "admin_" + name, Method: http.MethodGet, Pattern: pattern, Action: action, Place: protocol.Anywhere, Serve: serve}
	}
	write := func(name, method, pattern string, action access.Action, serve func(*protocol.Call) error) protocol.Route {
		return protocol.Route{Name: "admin_" + name, Method: method, Pattern: pattern, Action: action, Place: protocol.AnyServer, Serve: serve}
	}
	at := func(name, pattern string, action access.Action, serve func(*protocol.Call) error) protocol.Route {
		return protocol.Route{Name: "admin_" + name, Method: http.MethodGet, Pattern: pattern, Action: action, Place: protocol.Server, Serve: serve}
	}
	return append(append(append(a.accessRoutes(), a.loginRoutes()...), append(append(a.respondRoutes(), a.auditRoutes()...), a.upstreamRoutes()...)...), []protocol.Route{
		read("whoami", base+"whoami", access.Login, a.whoami),
		read("status", base+"status", access.Observe, a.status),
		read("trust_show", base+"trust", access.Observe, a.trust),
		read("trust_holders", base+"trust/holders", access.Observe, a.holders),
		write("trust_rotate", http.MethodPost, base+"trust/rotation", access.Admin, a.beginRotation),
		write("trust_finish", http.MethodDelete, base+"trust/rotation", access.Admin, a.finishRotation),

		read("tenant_list", base+"tenants", access.List, a.tenants),
		write("tenant_create", http.MethodPost, base+"tenants", access.Operate, a.createTenant),

		read("repository_list", base+"repositories", access.List, a.repositories),
		{Name: "admin_search", Method: http.MethodGet, Pattern: base + "search", Action: access.List, Place: protocol.AnyServer, Serve: a.search},
		write("repository_create", http.MethodPost, base+"repositories", access.Manage, a.createRepository),
		read("repository_get", repo, access.Pull, a.repository),
		write("repository_set", http.MethodPatch, repo, access.Manage, a.setRepository),
		write("repository_remove", http.MethodDelete, repo, access.Manage, a.removeRepository),

		read("package_list", repo+"/packages", access.List, a.packages),
		read("reference_resolve", repo+"/resolve", access.Pull, a.resolveReference),
		read("version_list", pkg+"/versions", access.List, a.versions),
		write("version_delete", http.MethodDelete, pkg+"/versions/{version}", access.Delete, a.deleteVersion),
		// Who publishes marks its versions, and so does who curates.
		write("version_mark", http.MethodPost, pkg+"/versions/{version}/marks", access.Pull, a.markVersion),
		read("version_get", pkg+"/versions/{version}", access.Pull, a.version),
		read("version_replication", pkg+"/versions/{version}/replication", access.Pull, a.replication),
		read("alias_list", pkg+"/aliases", access.List, a.aliases),
		read("alias_history", pkg+"/aliases/{alias}/history", access.List, a.aliasHistory),
		write("package_label", http.MethodPut, pkg+"/labels", access.Curate, a.setLabels),
		write("version_label", http.MethodPut, pkg+"/versions/{version}/labels", access.Curate, a.setLabels),

		// Who may promote is a matter of where from and where to.
		write("promote", http.MethodPost, base+"promotions", access.Login, a.promote),

		// Who may plan and cancel a wave is a matter of what it names.
		write("wave_create", http.MethodPost, base+"waves", access.Login, a.createWave),
		write("wave_cancel", http.MethodDelete, base+"waves/{wave}", access.Login, a.cancelWave),
		read("wave_list", base+"waves", access.Login, a.waves),
		read("wave_hosts", base+"waves/{wave}/hosts", access.Login, a.waveHosts),
		// What hosts said lately is known to servers: agents send the question on.
		write("wave_status", http.MethodGet, base+"waves/{wave}", access.Login, a.waveStatus),

		write("backup_open", http.MethodPost, base+"backups", access.Operate, a.openBackup),
		write("backup_renew", http.MethodPut, base+"backups/{backup}", access.Operate, a.renewBackup),
		write("backup_close", http.MethodDelete, base+"backups/{backup}", access.Operate, a.closeBackup),
		read("backup_list", base+"backups", access.Observe, a.backups),
		at("backup_state", base+"servers/{server}/backup/state", access.Operate, a.backupState),
		at("backup_blob", base+"servers/{server}/backup/blobs/{root}", access.Operate, a.backupBlob),

		read("replication", base+"replication", access.Observe, a.replicationStatus),
		read("backlog_list", base+"regions/{region}/backlogs", access.Observe, a.backlogs),
		write("tenant_set", http.MethodPatch, base+"tenants/{tenant}", access.Operate, a.setTenant),
		write("usage_list", http.MethodGet, base+"usage", access.Observe, a.usages),
		// A tenant's usage is for who manages it, and for who sees the cluster.
		write("usage_get", http.MethodGet, base+"tenants/{tenant}/usage", access.Login, a.usage),
		read("usage_repositories", base+"tenants/{tenant}/usage/repositories", access.Login, a.repositoryUsage),
		write("usage_recount", http.MethodPost, base+"tenants/{tenant}/usage/recount", access.Operate, a.recount),
		read("health", base+"health", access.Observe, a.health),
		read("region_health", base+"regions/{region}/health", access.Observe, a.health),
		read("incident_list", base+"incidents", access.Observe, a.incidents),
		read("scrub_status", base+"scrub", access.Observe, a.scrub),
		write("scrub_run", http.MethodPost, base+"scrub", access.Operate, a.runScrub),
		read("scrub_failed", base+"scrub/failed", access.Observe, a.failedCopies),
		read("scrub_unrepairable", base+"scrub/unrepairable", access.Observe, a.unrepairable),

		read("node_list", base+"nodes", access.Observe, a.nodes),
		write("node_narrow", http.MethodPut, base+"nodes/{node}/tenants", access.Operate, a.narrowNode),
		write("revocation_create", http.MethodPost, base+"revocations", access.Manage, a.revoke),
		write("node_remove", http.MethodDelete, base+"nodes/{node}", access.Operate, a.removeNode),
		// What the loss of a region does is seen by servers: agents send the question on.
		write("region_list", http.MethodGet, base+"regions", access.Observe, a.regions),
		write("region_put", http.MethodPut, base+"regions/{region}", access.Operate, a.putRegion),
		write("region_remove", http.MethodDelete, base+"regions/{region}", access.Operate, a.removeRegion),
		write("region_keep", http.MethodDelete, base+"regions/{region}/removal", access.Operate, a.keepRegion),
		write("server_list", http.MethodGet, base+"servers", access.Observe, a.servers),
		write("server_remains", http.MethodGet, base+"servers/{node}/remains", access.Observe, a.serverRemains),
		write("server_drain", http.MethodPut, base+"servers/{node}/drain", access.Operate, a.drainServer),
		write("server_undrain", http.MethodDelete, base+"servers/{node}/drain", access.Operate, a.undrainServer),
		write("cluster_level", http.MethodGet, base+"cluster/level", access.Observe, a.level),
		write("cluster_hold", http.MethodPut, base+"cluster/level", access.Admin, a.holdLevel),
		read("gc_status", base+"gc", access.Observe, a.gc),
		read("gc_garbage", base+"gc/garbage", access.Observe, a.garbage),
		write("gc_set", http.MethodPut, base+"gc", access.Operate, a.setGC),
		write("gc_run", http.MethodPost, base+"gc/run", access.Operate, a.runGC),

		write("join_token_create", http.MethodPost, base+"join-tokens", access.Operate, a.createJoinToken),
		read("join_token_list", base+"join-tokens", access.Operate, a.joinTokens),
		write("join_token_revoke", http.MethodDelete, base+"join-tokens/{token}", access.Operate, a.revokeJoinToken),
	}...)
}

// WriteError implements protocol.Protocol.
func (a *API) WriteError(w http.ResponseWriter, r *http.Request, err error) {
	status := protocol.Fail(w.Header(), err)
	kind := meta.KindOf(err)
	switch {
	case status == http.StatusMethodNotAllowed:
		kind = "method_not_allowed"
	case kind == "":
		kind = "internal"
	}
	// A client that went away reads no error.
	_ = protocol.WriteJSON(w, status, client.ErrorBody{Error: client.ErrorDetail{Kind: kind, Message: protocol.Message(err)}})
}

// Challenge implements protocol.Protocol.
func (a *API) Challenge(w http.ResponseWriter, r *http.Request, s protocol.Scope) {
	text := "this needs a token"
	if s.Cause != nil {
		text = s.Cause.Error()
	}
	w.Header().Set("WWW-Authenticate", `Bearer realm="shoal"`)
	_ = protocol.WriteJSON(w, http.StatusUnauthorized, client.ErrorBody{Error: client.ErrorDetail{Kind: "unauthorized", Message: text}})
}

// ask answers as the caller asked, else bounded, or local while that cannot be had
// and the caller named no write to include, and writes what the answer is.
func ask[A any](a *API, c *protocol.Call, q state.Question[A]) (A, error) {
	f := c.Fresh(meta.Bounded)
	answer, asOf, err := raftmeta.Ask(c.R.Context(), a.Metadata, f, q)
	if errors.Is(err, meta.ErrUnavailable) && !f.Exact && c.After == (meta.Token{}) && c.R.Context().Err() == nil {
		answer, asOf, err = raftmeta.Ask(c.R.Context(), a.Metadata, meta.Local, q)
		asOf.Stale = true
	}
	if err == nil || errors.Is(err, meta.ErrNotFound) {
		c.AsOf(asOf)
	}
	return answer, err
}

// do commits one command and writes its token. The n-th command of a call has a
// request id of its own.
func (a *API) do(c *protocol.Call, n int, command state.Command) (any, error) {
	if err := command.Check(); err != nil {
		return nil, err
	}
	if a.Doer == nil {
		return nil, fmt.Errorf("an agent changes nothing: %w", meta.ErrUnavailable)
	}
	origin := c.Origin()
	if n > 0 {
		origin.RequestID = fmt.Sprintf("%s.%d", origin.RequestID, n)
	}
	receipt, err := a.Doer.Do(c.R.Context(), origin, command)
	if err != nil {
		return nil, err
	}
	c.Committed(receipt.Token)
	return receipt.Value, nil
}

// reply answers with the result of a command, which its documentation says is a
// T.
func reply[T any](c *protocol.Call, status int, value any) error {
	v, ok := value.(T)
	if !ok {
		return fmt.Errorf("the command answered %T", value)
	}
	return protocol.WriteJSON(c.W, status, v)
}

// pageOf reads ?after and ?limit.
func pageOf(c *protocol.Call) (state.Page, error) {
	p, err := protocol.ParsePage(c.R.URL.Query(), "limit", "after", standardPage, client.MaxPage)
	if err != nil {
		return state.Page{}, err
	}
	if p.Limit < 1 {
		return state.Page{}, fmt.Errorf("limit=%d: ask for at least 1: %w", p.Limit, meta.ErrInvalid)
	}
	return state.Page{After: p.After, Limit: p.Limit}, nil
}

// writePage answers with a page; name gives the `after` of an item. A full page
// says that more may come.
func writePage[T any](c *protocol.Call, p state.Page, items []T, name func(T) string) error {
	page := client.Page[T]{Items: items}
	if page.Items == nil {
		page.Items = []T{}
	}
	if len(items) > 0 && len(items) == p.Limit {
		page.Next = name(items[len(items)-1])
	}
	return protocol.WriteJSON(c.W, http.StatusOK, page)
}

func (a *API) whoami(c *protocol.Call) error {
	return protocol.WriteJSON(c.W, http.StatusOK, client.Principal{Name: c.Who.Name, Admin: c.Who.Admin, Rights: c.Who.Rights, Limits: c.Who.Limits, Token: c.Who.Token})
}
