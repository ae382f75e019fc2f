package node_test

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/gateway"
	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/credential"
	"github.com/shoal-registry/shoal/gateway/forward"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/node"
	"github.com/shoal-registry/shoal/node/join"
	"github.com/shoal-registry/shoal/node/local"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/trust"
)

// The route walk asks for every route of the table of a real server and a real agent as
// every kind of principal, with the real gate and metadata behind, and compares with what
// this file says. A new route is walked without being named here; but one that is open to
// all, to all with credentials, or narrows by itself what it shows has to be listed below
// with its reason, and a new action or role needs a row: the test fails until it has one.

// What each role may do, written down a second time on purpose.
var walkRoles = map[string]string{
	"reader":       "pull list",
	"publisher":    "pull list push",
	"promoter":     "pull list promote",
	"curator":      "pull list delete curate",
	"tenant-admin": "pull list push delete promote curate manage audit respond",
	"operator":     "elevate observe operate",
	"auditor":      "list audit observe",
	"admin":        "pull list push delete promote curate manage audit respond elevate observe operate admin",
}

// What an action may be done to, when the path names it: a repository, a tenant, the
// cluster. On a path that names neither, those marked `self` narrow by themselves.
var walkActions = map[access.Action]string{
	access.Public: "all", access.Login: "all", access.NodeOnly: "node",
	access.Pull: "repository", access.Push: "repository", access.Delete: "repository", access.Promote: "repository", access.Curate: "repository",
	access.List: "repository self", access.Manage: "tenant self", access.Audit: "tenant self", access.Respond: "tenant self", access.Elevate: "tenant self",
	access.Observe: "cluster", access.Operate: "cluster", access.Admin: "cluster",
}

// Routes that the gate alone does not guard, and what does.
var walkOpen = map[string]string{
	// Public.
	"join_enter":     "a join token or the node's key (node/join)",
	"join_standing":  "the node's key (node/join)",
	"epoch":          "the root's signature (node/fence)",
	"token_get":      "the credentials that it exchanges (gateway/token.go)",
	"token_post":     "the credentials that it exchanges (gateway/token.go)",
	"admin_login":    "the user's password, slowed by source and account (gateway/login)",
	"npm_login":      "the user's password, slowed by source and account (gateway/login)",
	"token_exchange": "the issuer's signature and the tenant's rules (gateway/federation)",
	"cargo_me":       "says how to make a token, the same everywhere (gateway/protocols/cargo)",
	"nuget_index":    "says where the endpoints are, of repositories that are there or not (gateway/protocols/nuget)",

	// For whoever has valid credentials: of himself, or of what he may see.
	"oci_ping":                 "says only that the credentials are good",
	"oci_ping_bare":            "says only that the credentials are good",
	"admin_whoami":             "the caller's own rights",
	"admin_can":                "one's own rights, or of whom one manages (gateway/admin/access.go)",
	"admin_logout":             "the caller's own session",
	"admin_password_set":       "one's own with the present password, of others for administrators",
	"admin_token_list":         "one's own, or of whom one manages or audits",
	"admin_token_create":       "login.MayMake: one's own, never wider; of whom one manages",
	"admin_token_get":          "one's own, or of whom one manages",
	"admin_token_revoke":       "one's own, or of whom one manages",
	"admin_token_rotate":       "one's own, or of whom one manages",
	"npm_logout":               "the session that is shown",
	"npm_whoami":               "the caller's own name",
	"npm_token_list":           "the caller's own",
	"npm_token_create":         "the caller's own, with the password once more",
	"npm_token_revoke":         "one's own, or of whom one manages",
	"admin_role_list":          "roles of the cluster and of tenants that the caller sees",
	"admin_role_get":           "roles of the cluster and of tenants that the caller sees",
	"admin_binding_list":       "one's own, or of whom one manages",
	"admin_elevation_list":     "one's own; all of them for operators and auditors, as break-glass is seen by all",
	"admin_elevation_decide":   "who may approve is the elevation's policy (state.DecideElevation)",
	"admin_usage_get":          "observe, or manage of the tenant",
	"admin_usage_repositories": "observe, or manage of the tenant",
	"admin_promote":            "the caller must be allowed to promote to the repository that it names, and to read what it promotes",
	"admin_wave_create":        "the caller must be allowed to push to all that the wave names",
	"admin_wave_cancel":        "the caller must be allowed to push to all that the wave names",
	"admin_wave_list":          "waves of which the caller may read something",
	"admin_wave_hosts":         "waves of which the caller may read something",
	"admin_wave_status":        "waves of which the caller may read something",

	// For who has the right somewhere: the handler judges what it is asked for.
	"oci_catalog":               "the repositories that the caller may list",
	"admin_tenant_list":         "the tenants that the caller sees",
	"admin_repository_list":     "the repositories that the caller may list",
	"admin_search":              "what is in repositories that the caller may list",
	"admin_repository_create":   "manage of the tenant in the body",
	"admin_binding_add":         "manage of the tenant in the body, admin for the cluster's",
	"admin_binding_remove":      "manage of the binding's tenant",
	"admin_compromise_open":     "respond on the tenant of what is compromised",
	"admin_compromise_list":     "respond on their tenants",
	"admin_compromise_get":      "respond on its tenant",
	"admin_compromise_findings": "respond on its tenant",
	"admin_compromise_close":    "respond on its tenant",
	"admin_revocation_create":   "manage of the tenant whose principal it is, admin for the cluster's",
	"admin_elevation_request":   "an approver decides",
	"admin_audit_status":        "audit of the cluster or of the tenants asked for",
	"admin_audit_entries":       "audit of the cluster or of the tenants asked for",
	"admin_audit_proof":         "audit of the cluster or of the tenants asked for",
	"admin_audit_checkpoints":   "audit of the cluster or of the tenants asked for",
	"admin_audit_chains":        "audit of the cluster or of the tenants asked for",
	"admin_audit_access":        "audit of the cluster or of the tenants asked for",
}

// caller is somebody who asks.
type caller struct {
	name string
	// shows puts on what the caller shows.
	shows func(*http.Request)
	// bad credentials are refused whatever they ask for; none leave a caller anonymous.
	bad, none bool
	node      bool
	// grants are what it may: actions on a pattern, in an environment.
	grants []grant
	denied []grant
}

type grant struct{ actions, pattern, environment string }

func (g grant) has(a access.Action) bool {
	return slices.Contains(strings.Fields(g.actions), string(a))
}

func (g grant) covers(repo meta.RepoRef, environment string) bool {
	inRepo := g.pattern == "*" || g.pattern == string(repo.Tenant)+"/*" || g.pattern == repo.String()
	return inRepo && (g.environment == "" || g.environment == environment)
}

// may is the oracle of rights on a repository.
func (c caller) may(a access.Action, repo meta.RepoRef, environment string) bool {
	covers := func(g grant) bool { return g.has(a) && g.covers(repo, environment) }
	return slices.ContainsFunc(c.grants, covers) && !slices.ContainsFunc(c.denied, covers)
}

// everywhere says whether c has the action on all of a tenant, or of the cluster with "*".
func (c caller) everywhere(a access.Action, pattern string) bool {
	return slices.ContainsFunc(c.grants, func(g grant) bool {
		return g.has(a) && g.environment == "" && (g.pattern == "*" || g.pattern == pattern)
	})
}

// known says whether c has any right to something of the tenant.
func (c caller) known(tenant string) bool {
	return slices.ContainsFunc(c.grants, func(g grant) bool { return g.pattern == "*" || strings.HasPrefix(g.pattern, tenant+"/") })
}

// place is a repository that is asked for.
type place struct {
	name        string
	absent      bool
	public      bool
	environment string
}

var walkPlaces = []place{
	{name: "app", environment: "prod"},
	{name: "dev", environment: "dev"},
	{name: "open", public: true, environment: "prod"},
	{name: "nothing", absent: true},
}

// expect is what the gate shall say of a call.
func expect(c caller, r *protocol.Route, repo meta.RepoRef, at place) int {
	hasTenant, hasRepo := strings.Contains(r.Pattern, "{tenant}"), strings.Contains(r.Pattern, "{repository}")
	asks := http.StatusUnauthorized
	switch {
	case r.Action == access.Public:
		return node.WalkServed
	case r.Action == access.NodeOnly:
		if c.node {
			return node.WalkServed
		}
		return http.StatusForbidden
	case c.bad:
		return asks
	case c.node:
		c = caller{none: true} // a certificate is no client's credential
	}
	served := func(ok bool, otherwise int) int {
		switch {
		case ok:
			return node.WalkServed
		case c.none:
			return asks
		}
		return otherwise
	}
	switch {
	case r.Action == access.Login:
		return served(!c.none, 0)
	case walkActions[r.Action] == "cluster":
		return served(c.everywhere(r.Action, "*"), http.StatusForbidden)
	case hasRepo:
		reads := at.public || !at.absent && (c.may(access.Pull, repo, at.environment) || c.may(access.List, repo, at.environment))
		may := c.may(r.Action, repo, at.environment)
		if at.public && (r.Action == access.Pull || r.Action == access.List) {
			may = true
		}
		if at.absent {
			// Who may add or manage learns of the absence from who serves; others nothing.
			return served(c.may(r.Action, repo, "") && (r.Action == access.Push || r.Action == access.Manage), http.StatusNotFound)
		}
		if reads {
			return served(may, http.StatusForbidden)
		}
		return served(may, http.StatusNotFound)
	case hasTenant:
		if c.known("acme") {
			return served(c.everywhere(r.Action, "acme/*"), http.StatusForbidden)
		}
		return served(false, http.StatusNotFound)
	case r.Action == access.List:
		return served(!c.none, 0)
	}
	somewhere := slices.ContainsFunc(c.grants, func(g grant) bool { return g.has(r.Action) })
	return served(somewhere, http.StatusForbidden)
}

// walk is a running cluster and who asks there.
type walk struct {
	*testing.T
	server  *node.Node
	callers []caller
	formats []string
}

func (w *walk) do(c state.Command) any {
	w.Helper()
	v, err := w.server.WalkDo(w.Context(), c)
	if err != nil {
		w.Fatalf("%s: %v", state.Name(c), err)
	}
	return v
}

func bearer(token string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }
}

// token makes a credential of a principal and returns its text and id.
func (w *walk) token(principal string, life time.Duration, limits ...meta.Right) (string, string) {
	w.Helper()
	text, minted := credential.Mint()
	w.do(state.CreateCredential{Life: life, Credential: meta.Credential{
		ID: minted.ID, Hash: minted.Hash, Principal: principal, Kind: meta.CredentialToken, Limits: limits, CreatedBy: "admin:bootstrap",
	}})
	return text.Reveal(), minted.ID
}

// account makes an account with bindings and a token for it.
func (w *walk) account(name string, bindings ...meta.Binding) string {
	w.Helper()
	w.do(state.CreateAccount{Name: name})
	for _, b := range bindings {
		b.Principal = name
		w.do(state.AddBinding{Binding: b})
	}
	text, _ := w.token(name, time.Hour)
	return text
}

// certificate shows a node's.
func (w *walk) certificate(p trust.Papers) func(*http.Request) {
	w.Helper()
	cs := &tls.ConnectionState{Version: tls.VersionTLS13, HandshakeComplete: true}
	for _, der := range p.Chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			w.Fatal(err)
		}
		cs.PeerCertificates = append(cs.PeerCertificates, c)
	}
	return func(r *http.Request) { r.TLS = cs }
}

// host joins the cluster without running, and returns its papers.
func (w *walk) host() (meta.NodeID, trust.Papers) {
	w.Helper()
	text, err := w.server.JoinToken(w.Context(), meta.JoinToken{Role: meta.RoleAgent, Region: w.server.Region(), Uses: 1, Expires: meta.TimeOf(time.Now().Add(time.Hour))})
	if err != nil {
		w.Fatal(err)
	}
	token, err := trust.ParseJoinToken(text)
	if err != nil {
		w.Fatal(err)
	}
	key, err := trust.NewKey()
	if err != nil {
		w.Fatal(err)
	}
	reply, err := join.Enter(w.Context(), "https://"+w.server.Gateway(), token, key, join.Request{Node: meta.Node{ID: key.ID(), Role: meta.RoleAgent, Seal: key.Recipient()}})
	if err != nil {
		w.Fatal(err)
	}
	return key.ID(), reply.Papers()
}

func (w *walk) add(c caller) { w.callers = append(w.callers, c) }

func (w *walk) enlist() {
	role := func(r, pattern, environment string) meta.Binding {
		tenant, _, _ := strings.Cut(pattern, "/")
		if pattern == "*" {
			tenant = ""
		}
		return meta.Binding{Role: r, Repository: pattern, Environment: environment, Tenant: meta.TenantName(tenant), Reason: "the walk"}
	}
	w.add(caller{name: "anonymous", none: true, shows: func(*http.Request) {}})
	w.add(caller{name: "garbage", bad: true, shows: bearer("garbage")})
	w.add(caller{name: "unknown token", bad: true, shows: func(r *http.Request) {
		text, _ := credential.Mint()
		r.SetBasicAuth("x", text.Reveal())
	}})
	for r, actions := range walkRoles {
		pattern := "acme/*"
		if r == "operator" || r == "auditor" || r == "admin" {
			pattern = "*"
		}
		w.add(caller{name: r, shows: bearer(w.account("user:"+r, role(r, pattern, ""))), grants: []grant{{actions, pattern, ""}}})
	}
	w.add(caller{name: "reader of one repository", shows: bearer(w.account("user:one", role("reader", "acme/generic-app", ""))),
		grants: []grant{{walkRoles["reader"], "acme/generic-app", ""}}})
	w.add(caller{name: "other tenant's reader", shows: bearer(w.account("user:beta", role("reader", "beta/*", ""))), grants: []grant{{walkRoles["reader"], "beta/*", ""}}})
	w.add(caller{name: "other tenant's admin", shows: bearer(w.account("user:beta-admin", role("tenant-admin", "beta/*", ""))), grants: []grant{{walkRoles["tenant-admin"], "beta/*", ""}}})
	robot := w.account("robot:acme/ci", role("publisher", "acme/*", ""))
	w.add(caller{name: "robot", shows: func(r *http.Request) { r.SetBasicAuth("anything", robot) }, grants: []grant{{walkRoles["publisher"], "acme/*", ""}}})
	w.add(caller{name: "publisher of dev", shows: bearer(w.account("user:dev", role("publisher", "acme/*", "dev"))), grants: []grant{{walkRoles["publisher"], "acme/*", "dev"}}})
	w.add(caller{name: "nobody with a token", shows: bearer(w.account("user:none"))})
	deny := role("publisher", "acme/*", "")
	deny.Deny = true
	w.add(caller{name: "denied", shows: bearer(w.account("user:denied", role("tenant-admin", "acme/*", ""), deny)),
		grants: []grant{{"delete promote curate manage audit respond", "acme/*", ""}}})

	text, id := w.token("user:publisher", time.Hour)
	w.do(state.RevokeCredential{ID: id})
	w.add(caller{name: "revoked", bad: true, shows: bearer(text)})
	text, _ = w.token("user:publisher", time.Second)
	w.add(caller{name: "expired", bad: true, shows: bearer(text)})
	text, _ = w.token("user:admin", time.Hour, meta.Right{Actions: []meta.Action{meta.ActionPull, meta.ActionList}, Repository: "acme/*"})
	w.add(caller{name: "admin, narrowed", shows: bearer(text), grants: []grant{{"pull list", "acme/*", ""}}})
	disabled := w.account("user:disabled", role("publisher", "acme/*", ""))
	yes := true
	w.do(state.SetAccount{Name: "user:disabled", Disabled: &yes})
	w.add(caller{name: "disabled", bad: true, shows: bearer(disabled)})

	_, papers := w.host()
	agent := w.certificate(papers)
	w.add(caller{name: "agent", node: true, shows: agent})
	w.add(caller{name: "server", node: true, shows: w.certificate(w.server.WalkPapers())})
	gone, papers := w.host()
	w.do(state.RemoveNode{ID: gone})
	w.add(caller{name: "removed node", none: true, shows: w.certificate(papers)})
	reader := w.account("user:through", role("reader", "acme/*", ""))
	w.add(caller{name: "reader through an agent", grants: []grant{{walkRoles["reader"], "acme/*", ""}}, shows: func(r *http.Request) {
		agent(r)
		bearer(reader)(r)
		r.Header.Set(forward.HeaderHops, "a-node")
	}})
}

// fill makes a path of a pattern.
func fill(pattern string, values map[string]string) string {
	var path []string
	for segment := range strings.SplitSeq(strings.TrimPrefix(pattern, "/"), "/") {
		if name, ok := strings.CutPrefix(segment, "{"); ok {
			name = strings.TrimSuffix(strings.TrimSuffix(name, "}"), "...")
			segment = cmp.Or(values[name], "x")
		}
		path = append(path, segment)
	}
	return "/" + strings.Join(path, "/")
}

func TestEveryRouteForEverybody(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a cluster")
	}
	cluster, err := local.Open(local.Options{Dir: t.TempDir(), Gateway: "127.0.0.1:0", Regions: 1, Agents: 1, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- cluster.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	select {
	case <-cluster.Ready():
	case <-time.After(2 * time.Minute):
		t.Fatal("the cluster does not get ready")
	}
	w := &walk{T: t, server: cluster.Nodes()[0]}
	gate, err := w.server.Walked()
	if err != nil {
		t.Fatal(err)
	}
	defer gate.Close()
	w.settle(gate)
	w.enlist()
	w.awaitExpiry(gate)
	w.checkLists(gate)
	w.asServer(gate)

	agent, err := cluster.Nodes()[1].Walked()
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	w.asAgent(agent)
}

// settle makes the tenants and, for each format, the repositories that are asked for.
func (w *walk) settle(g *gateway.Gateway) {
	w.do(state.CreateTenant{Name: "acme"})
	w.do(state.CreateTenant{Name: "beta"})
	w.formats = []string{""}
	for _, p := range g.Protocols {
		if p.Format() != "" {
			w.formats = append(w.formats, p.Format())
		}
	}
	for _, format := range w.formats {
		for _, at := range walkPlaces {
			if at.absent {
				continue
			}
			visibility := meta.VisibilityPrivate
			if at.public {
				visibility = meta.VisibilityPublic
			}
			w.do(state.CreateRepository{Repository: meta.Repository{
				Ref: repositoryOf(format, at), Format: cmp.Or(format, "generic"), Kind: meta.KindHosted, Class: meta.ClassStandard,
				Home: w.server.Region(), Visibility: visibility, Environment: at.environment,
			}})
		}
	}
}

// repositoryOf names a repository of a format; those of no format are generic ones.
func repositoryOf(format string, at place) meta.RepoRef {
	return meta.RepoRef{Tenant: "acme", Name: cmp.Or(format, "api") + "-" + at.name}
}

// ask walks one route.
func (w *walk) ask(g *gateway.Gateway, c caller, r *protocol.Route, repo meta.RepoRef) *httptest.ResponseRecorder {
	values := map[string]string{
		"tenant": string(repo.Tenant), "repository": repo.Name,
		"upload": string(w.server.ID()) + "~session~sum", "server": string(w.server.ID()),
	}
	request := httptest.NewRequest(r.Method, "https://shoal.example"+fill(r.Pattern, values), http.NoBody)
	request.RemoteAddr = "192.0.2.1:1234" // not of this machine
	request.TLS = &tls.ConnectionState{Version: tls.VersionTLS13, HandshakeComplete: true}
	c.shows(request)
	answer := httptest.NewRecorder()
	g.Handler().ServeHTTP(answer, request)
	return answer
}

// awaitExpiry waits until the token that lives a second has ended.
func (w *walk) awaitExpiry(g *gateway.Gateway) {
	i := slices.IndexFunc(w.callers, func(c caller) bool { return c.name == "expired" })
	route := &protocol.Route{Method: http.MethodGet, Pattern: "/api/v1/whoami"}
	for end := time.Now().Add(2 * time.Minute); w.ask(g, w.callers[i], route, meta.RepoRef{}).Code != http.StatusUnauthorized; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			w.Fatal("the token does not end")
		}
	}
}

// guarded says whether the gate alone decides about a route.
func guarded(r *protocol.Route) bool {
	named := strings.Contains(r.Pattern, "{tenant}")
	return r.Action != access.Public && r.Action != access.Login && (named || !strings.Contains(walkActions[r.Action], "self"))
}

// checkLists fails for what has no expectation, and for expectations of nothing.
func (w *walk) checkLists(g *gateway.Gateway) {
	listed := map[string]bool{}
	for _, r := range g.Routes() {
		if walkActions[r.Action] == "" {
			w.Errorf("route %s has the action %q, of which walkActions says nothing", r.Name, r.Action)
		}
		if guarded(r) {
			continue
		}
		listed[r.Name] = true
		if walkOpen[r.Name] == "" {
			w.Errorf("%q: \"\", // %s, %s %s: the gate lets it through: say in walkOpen what guards it", r.Name, r.Action, r.Method, r.Pattern)
		}
	}
	for name := range walkOpen {
		if !listed[name] {
			w.Errorf("walkOpen has %s, which is no such route", name)
		}
	}
	for _, a := range meta.GrantedActions {
		if walkActions[a] == "" {
			w.Errorf("walkActions says nothing of %s", a)
		}
	}
	for _, r := range meta.BuiltInRoles {
		if walkRoles[r.Name] == "" {
			w.Errorf("walkRoles says nothing of %s", r.Name)
		}
	}
}

// formatOf finds the format of a route's protocol.
func formatOf(g *gateway.Gateway, r *protocol.Route) string {
	for _, p := range g.Protocols {
		for _, known := range p.Routes() {
			if known.Name == r.Name {
				return p.Format()
			}
		}
	}
	return ""
}

// byGateway are routes that the gateway serves itself, with its own handlers.
func byGateway(r *protocol.Route) bool { return strings.HasPrefix(r.Name, "token_") }

func (w *walk) asServer(g *gateway.Gateway) {
	asked := 0
	for _, r := range g.Routes() {
		if byGateway(r) {
			continue
		}
		places := walkPlaces
		if !strings.Contains(r.Pattern, "{repository}") {
			places = places[:1]
		}
		format := formatOf(g, r)
		for _, at := range places {
			repo := repositoryOf(format, at)
			for _, c := range w.callers {
				answer := w.ask(g, c, r, repo)
				asked++
				if want := expect(c, r, repo, at); answer.Code != want {
					w.Errorf("%s %s (%s, %s) at %s as %s: %d, want %d: %s", r.Method, r.Pattern, r.Name, r.Action, repo.Name, c.name, answer.Code, want, strings.TrimSpace(answer.Body.String()))
				} else if want == node.WalkServed && !strings.HasPrefix(r.Name, answer.Header().Get(node.WalkRoute)) {
					w.Errorf("%s: %s was reached", r.Name, answer.Header().Get(node.WalkRoute))
				}
			}
		}
	}
	w.Logf("%d routes, %d callers, %d questions", len(g.Routes()), len(w.callers), asked)
}

// asAgent walks the agent's table: what is not served there goes to a server, whoever
// asks, which then judges; the rest is judged as a server does, after the agent has heard
// of who is who.
func (w *walk) asAgent(g *gateway.Gateway) {
	for _, r := range g.Routes() {
		if byGateway(r) {
			continue
		}
		format := formatOf(g, r)
		places := walkPlaces
		if !strings.Contains(r.Pattern, "{repository}") {
			places = places[:1]
		}
		for _, at := range places {
			repo := repositoryOf(format, at)
			for _, c := range w.callers {
				want := node.WalkForwarded
				if r.Place == protocol.Anywhere {
					want = expect(c, r, repo, at)
				}
				if answer := w.ask(g, c, r, repo); answer.Code != want {
					w.Errorf("agent: %s %s (%s, %s) at %s as %s: %d, want %d: %s", r.Method, r.Pattern, r.Name, r.Action, repo.Name, c.name, answer.Code, want, strings.TrimSpace(answer.Body.String()))
				}
			}
		}
	}
}
