package admin

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// accessRoutes are about accounts, roles and bindings. All are answered by servers.
// Users and what belongs to the cluster are for its administrators; robots, roles and
// bindings of a tenant for whom may manage it. Bindings are judged by what they reach.
func (a *API) accessRoutes() []protocol.Route {
	at := func(name, method, pattern string, action access.Action, serve func(*protocol.Call) error) protocol.Route {
		return protocol.Route{Name: "admin_" + name, Method: method, Pattern: base + pattern, Action: action, Place: protocol.AnyServer, Serve: serve}
	}
	const robots, roles = "tenants/{tenant}/robots", "tenants/{tenant}/roles"
	return []protocol.Route{
		at("user_list", http.MethodGet, "users", access.Admin, a.accounts),
		at("user_create", http.MethodPost, "users", access.Admin, a.createAccount),
		at("user_get", http.MethodGet, "users/{user}", access.Admin, a.account),
		at("user_set", http.MethodPatch, "users/{user}", access.Admin, a.setAccount),
		at("user_remove", http.MethodDelete, "users/{user}", access.Admin, a.removeAccount),

		at("robot_list", http.MethodGet, robots, access.Manage, a.accounts),
		at("robot_create", http.MethodPost, robots, access.Manage, a.createAccount),
		at("robot_get", http.MethodGet, robots+"/{robot}", access.Manage, a.account),
		at("robot_set", http.MethodPatch, robots+"/{robot}", access.Manage, a.setAccount),
		at("robot_remove", http.MethodDelete, robots+"/{robot}", access.Manage, a.removeAccount),

		// The roles of the cluster are no secret: whoever is bound to one may know it.
		at("role_list", http.MethodGet, "roles", access.Login, a.roles),
		at("role_get", http.MethodGet, "roles/{role}", access.Login, a.role),
		at("role_put", http.MethodPut, "roles/{role}", access.Admin, a.putRole),
		at("role_remove", http.MethodDelete, "roles/{role}", access.Admin, a.removeRole),
		at("tenant_role_list", http.MethodGet, roles, access.Manage, a.roles),
		at("tenant_role_get", http.MethodGet, roles+"/{role}", access.Manage, a.role),
		at("tenant_role_put", http.MethodPut, roles+"/{role}", access.Manage, a.putRole),
		at("tenant_role_remove", http.MethodDelete, roles+"/{role}", access.Manage, a.removeRole),

		// Everybody may list their own.
		at("binding_list", http.MethodGet, "bindings", access.Login, a.bindings),
		at("binding_add", http.MethodPost, "bindings", access.Manage, a.addBinding),
		at("binding_remove", http.MethodDelete, "bindings/{binding}", access.Manage, a.removeBinding),
		at("can", http.MethodGet, "can", access.Login, a.can),
	}
}

// judge is the gate's judgement of what a call turns out to be about.
func (a *API) judge(c *protocol.Call, action access.Action, on access.Target) error {
	d := access.Explain(access.Policy{}, c.Who, action, on)
	if id := d.Elevation(); id != "" {
		c.Who.Elevation = id // what the call does is marked
	}
	return d.Err
}

func tenantOf(c *protocol.Call) meta.TenantName {
	return meta.TenantName(c.Params.Get(protocol.TenantParam))
}

// principalOf returns the principal that the path of an account names.
func principalOf(c *protocol.Call) (string, error) {
	name := accountName(c, c.Params.Get("user")+c.Params.Get("robot"))
	return name, meta.CheckAccount(name)
}

func accountName(c *protocol.Call, name string) string {
	if tenant := tenantOf(c); tenant != "" {
		return meta.KindRobot + ":" + string(tenant) + "/" + name
	}
	return meta.KindUser + ":" + name
}

func (a *API) accounts(c *protocol.Call) error {
	p, err := pageOf(c)
	if err != nil {
		return err
	}
	q := state.ListAccounts{Kind: meta.KindUser, Tenant: tenantOf(c), Page: p}
	accounts, err := ask(a, c, q)
	if err != nil {
		return err
	}
	return writePage(c, p, accounts, func(a meta.Account) string { return a.Name })
}

func (a *API) createAccount(c *protocol.Call) error {
	var body client.NewAccount
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return err
	}
	value, err := a.do(c, 0, state.CreateAccount{Name: accountName(c, body.Name), Note: body.Note})
	if err != nil {
		return err
	}
	return reply[meta.Account](c, http.StatusCreated, value)
}

func (a *API) account(c *protocol.Call) error {
	name, err := principalOf(c)
	if err != nil {
		return err
	}
	account, err := ask(a, c, state.GetAccount{Name: name})
	if err != nil {
		return err
	}
	return protocol.WriteJSON(c.W, http.StatusOK, account)
}

func (a *API) setAccount(c *protocol.Call) error {
	var body client.AccountChange
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return err
	}
	name, err := principalOf(c)
	if err != nil {
		return err
	}
	value, err := a.do(c, 0, state.SetAccount{Name: name, Disabled: body.Disabled, Note: body.Note})
	if err != nil {
		return err
	}
	return reply[meta.Account](c, http.StatusOK, value)
}

func (a *API) removeAccount(c *protocol.Call) error {
	name, err := principalOf(c)
	if err != nil {
		return err
	}
	if _, err := a.do(c, 0, state.RemoveAccount{Name: name}); err != nil {
		return err
	}
	c.W.WriteHeader(http.StatusNoContent)
	return nil
}

// roles lists those of a tenant, or on the route without one the built-in ones, on the
// first page, and those of the cluster.
func (a *API) roles(c *protocol.Call) error {
	p, err := pageOf(c)
	if err != nil {
		return err
	}
	roles, err := ask(a, c, state.ListRoles{Tenant: tenantOf(c), Page: p})
	if err != nil {
		return err
	}
	page := client.Page[meta.AccessRole]{Items: []meta.AccessRole{}}
	if tenantOf(c) == "" && p.After == "" {
		page.Items = append(page.Items, meta.BuiltInRoles...)
	}
	page.Items = append(page.Items, roles...)
	if len(roles) == p.Limit {
		page.Next = roles[len(roles)-1].Name
	}
	return protocol.WriteJSON(c.W, http.StatusOK, page)
}

// roleOf returns the name of the role that the path names.
func roleOf(c *protocol.Call) string {
	if tenant := tenantOf(c); tenant != "" {
		return string(tenant) + "/" + c.Params.Get("role")
	}
	return c.Params.Get("role")
}

func (a *API) role(c *protocol.Call) error {
	role, err := ask(a, c, state.GetRole{Name: roleOf(c)})
	if err != nil {
		return err
	}
	return protocol.WriteJSON(c.W, http.StatusOK, role)
}

func (a *API) putRole(c *protocol.Call) error {
	var body client.RoleActions
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return err
	}
	value, err := a.do(c, 0, state.PutRole{Name: roleOf(c), Actions: body.Actions, Note: body.Note})
	if err != nil {
		return err
	}
	return reply[meta.AccessRole](c, http.StatusOK, value)
}

func (a *API) removeRole(c *protocol.Call) error {
	if _, err := a.do(c, 0, state.RemoveRole{Name: roleOf(c)}); err != nil {
		return err
	}
	c.W.WriteHeader(http.StatusNoContent)
	return nil
}

// reachOf says what must be managed by who gives or takes rights to what a pattern
// matches: the one repository, the tenant within which it stays, or the cluster.
func (a *API) reachOf(c *protocol.Call, pattern string) (access.Action, access.Target, error) {
	switch tenant := meta.PatternTenant(pattern); {
	case tenant == "":
		return access.Admin, access.Target{}, nil
	case strings.HasSuffix(pattern, "*"):
		return access.Manage, access.Target{Tenant: tenant}, nil
	}
	ref, err := meta.ParseRepoRef(pattern)
	if err != nil {
		return "", access.Target{}, err
	}
	on, err := a.repositoryTarget(c, ref)
	return access.Manage, on, err
}

func (a *API) repositoryTarget(c *protocol.Call, ref meta.RepoRef) (access.Target, error) {
	r, err := ask(a, c, state.GetRepository{Ref: ref})
	switch {
	case err == nil:
		return access.Target{Repo: ref, Record: &r}, nil
	case errors.Is(err, meta.ErrNotFound):
		return access.Target{Repo: ref}, nil
	}
	return access.Target{}, err
}

// mayBind judges whether the caller may give or take what a binding gives.
func (a *API) mayBind(c *protocol.Call, b meta.Binding) error {
	if b.Tenant == "" {
		return a.judge(c, access.Admin, access.Target{})
	}
	action, on, err := a.reachOf(c, b.Repository)
	if err != nil {
		return err
	}
	return a.judge(c, action, on)
}

// bindings lists those of a principal that the caller may remove, or all of its own;
// else those of a tenant; else all.
func (a *API) bindings(c *protocol.Call) error {
	p, err := pageOf(c)
	if err != nil {
		return err
	}
	query := c.R.URL.Query()
	q := state.ListBindings{Principal: query.Get("principal"), Tenant: meta.TenantName(query.Get("tenant")), Page: p}
	switch {
	case q.Principal == c.Who.Name:
	case q.Principal != "":
		err = a.judge(c, access.Manage, access.Target{Somewhere: true})
	case q.Tenant != "":
		err = a.judge(c, access.Manage, access.Target{Tenant: q.Tenant})
	default:
		err = a.judge(c, access.Admin, access.Target{})
	}
	if err != nil {
		return err
	}
	bindings, err := ask(a, c, q)
	if err != nil {
		return err
	}
	page := client.Page[meta.Binding]{Items: []meta.Binding{}}
	if len(bindings) == p.Limit {
		page.Next = bindings[len(bindings)-1].ID
	}
	for _, b := range bindings {
		if q.Principal == "" || q.Principal == c.Who.Name || a.mayBind(c, b) == nil {
			page.Items = append(page.Items, b)
		}
	}
	return protocol.WriteJSON(c.W, http.StatusOK, page)
}

// addBinding: what stays within a tenant belongs to it, so that whoever manages the
// tenant may take it back; but not a deny of the cluster's administrators.
func (a *API) addBinding(c *protocol.Call) error {
	var body client.NewBinding
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return err
	}
	if body.ExpiresInSeconds < 0 || body.ExpiresInSeconds > math.MaxInt64/int64(2*time.Second) {
		return fmt.Errorf("a binding that ends in %d s: %w", body.ExpiresInSeconds, meta.ErrInvalid)
	}
	b := meta.Binding{
		Principal: body.Principal, Role: body.Role, Repository: body.Repository, Environment: body.Environment,
		Deny: body.Deny, Reason: body.Reason,
	}
	if b.Repository == "" {
		b.Repository = "*"
	}
	if body.ExpiresInSeconds > 0 {
		b.Expires = meta.TimeOf(time.Now().Add(time.Duration(body.ExpiresInSeconds) * time.Second))
	}
	if !b.Deny || a.judge(c, access.Admin, access.Target{}) != nil {
		b.Tenant = meta.PatternTenant(b.Repository)
	}
	if err := meta.CheckPattern(b.Repository); err != nil {
		return err
	}
	if err := a.mayBind(c, b); err != nil {
		return err
	}
	value, err := a.do(c, 0, state.AddBinding{Binding: b})
	if err != nil {
		return err
	}
	return reply[meta.Binding](c, http.StatusCreated, value)
}

// removeBinding: one that the caller may not remove is not there.
func (a *API) removeBinding(c *protocol.Call) error {
	id := c.Params.Get("binding")
	b, err := confirmed(a, c, state.GetBinding{ID: id})
	if err != nil {
		return err
	}
	if err := a.mayBind(c, b); err != nil {
		if b.Principal == c.Who.Name {
			return err // It is no secret to whom it binds.
		}
		return fmt.Errorf("binding %s: %w", id, meta.ErrNotFound)
	}
	if _, err := a.do(c, 0, state.RemoveBinding{ID: id}); err != nil {
		return err
	}
	c.W.WriteHeader(http.StatusNoContent)
	return nil
}

// can explains the gate's decision about anybody: to themselves, and to whom may
// manage what it is about.
func (a *API) can(c *protocol.Call) error {
	query := c.R.URL.Query()
	q := client.Can{Principal: query.Get("principal"), Action: meta.Action(query.Get("action")), Resource: query.Get("resource")}
	if q.Principal == "" {
		q.Principal = c.Who.Name
	}
	if !q.Action.Valid() {
		return fmt.Errorf("action %q: use one of %v: %w", q.Action, meta.GrantedActions, meta.ErrInvalid)
	}
	var on access.Target
	manage, need := access.Manage, access.Target{}
	switch {
	case q.Resource == "" || q.Resource == "*":
		manage = access.Admin
	case strings.Contains(q.Resource, "/"):
		ref, err := meta.ParseRepoRef(q.Resource)
		if err != nil {
			return err
		}
		if on, err = a.repositoryTarget(c, ref); err != nil {
			return err
		}
		need = on
	default:
		on.Tenant = meta.TenantName(q.Resource)
		if err := meta.CheckTenant(on.Tenant); err != nil {
			return err
		}
		need = on
	}
	who, self := c.Who, q.Principal == c.Who.Name
	var disabled error
	if !self {
		if err := a.judge(c, manage, need); err != nil {
			return err
		}
		var err error
		if who, err = a.principal(c, q.Principal); errors.Is(err, meta.ErrDenied) {
			disabled = err
		} else if err != nil {
			return err
		}
	}
	answer := client.Answer{Principal: q.Principal, Action: q.Action, Resource: q.Resource}
	if disabled != nil {
		answer.Reason, answer.Text = "disabled", strings.TrimSuffix(disabled.Error(), ": "+meta.ErrDenied.Error())
		return protocol.WriteJSON(c.W, http.StatusOK, answer)
	}
	d := access.Explain(access.Policy{}, who, q.Action, on)
	answer.Allowed, answer.Reason, answer.Right = d.Allowed, string(d.Reason), d.Right
	answer.Text = access.Sentence(d, who.Name, q.Action, on)
	if on.Record != nil && (!self || access.Readable(who, on.Record)) {
		answer.Environment, answer.Visibility = on.Record.Environment, on.Record.Visibility
	}
	if self && d.Reason == access.Absent || self && !d.Allowed && errors.Is(d.Err, meta.ErrNotFound) {
		// Whether there is one is not said to whom may not see it.
		answer.Reason, answer.Right = string(access.NoRight), nil
		answer.Text = d.Err.Error()
	}
	return protocol.WriteJSON(c.W, http.StatusOK, answer)
}

// principal resolves a principal by its name.
//
// Errors: meta.ErrDenied for an account that is disabled; meta.ErrNotFound.
func (a *API) principal(c *protocol.Call, name string) (meta.Principal, error) {
	kind, id := meta.SplitPrincipal(name)
	switch {
	case name == meta.Anonymous.Name:
		return meta.Anonymous, nil
	case name == meta.AdminBootstrap:
		return meta.Principal{Name: name, Admin: true}, nil
	case kind == meta.KindHost || kind == meta.KindNode:
		n, err := ask(a, c, state.GetNode{ID: meta.NodeID(id)})
		if err != nil {
			return meta.Principal{}, err
		}
		if kind == meta.KindHost {
			return access.HostPrincipal(n), nil
		}
		return access.NodePrincipal(n), nil
	}
	if err := meta.CheckPrincipal(name); err != nil {
		return meta.Principal{}, err
	}
	caller, err := confirmed(a, c, state.GetCaller{Principal: name})
	if err != nil {
		return meta.Principal{}, err
	}
	return meta.Principal{Name: name, Rights: caller.Rights, At: meta.TimeOf(time.Now())}, nil
}
