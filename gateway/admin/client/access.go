package client

import (
	"context"
	"iter"
	"net/http"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// NewAccount is the body of POST /api/v1/users and /api/v1/tenants/T/robots. Name is
// without its kind and tenant: ada, ci.
type NewAccount struct {
	Name string `json:"name"`
	Note string `json:"note,omitempty"`
}

// AccountChange is the body of PATCH of a user or robot; nil stays.
type AccountChange struct {
	Disabled *bool   `json:"disabled,omitempty"`
	Note     *string `json:"note,omitempty"`
}

// RoleActions is the body of PUT of a role.
type RoleActions struct {
	Actions []meta.Action `json:"actions"`
	Note    string        `json:"note,omitempty"`
}

// NewBinding is the body of POST /api/v1/bindings. An empty Repository is `*`.
type NewBinding struct {
	Principal   string `json:"principal"`
	Role        string `json:"role"`
	Repository  string `json:"repository,omitempty"`
	Environment string `json:"environment,omitempty"`
	Deny        bool   `json:"deny,omitempty"`
	// ExpiresInSeconds ends it after so long; 0 never does.
	ExpiresInSeconds int64  `json:"expires_in_seconds,omitempty"`
	Reason           string `json:"reason,omitempty"`
}

// Can is a question: may Principal do Action to Resource? A resource is
// `acme/app`, a tenant `acme`, or "" for the cluster.
type Can struct {
	Principal string
	Action    meta.Action
	Resource  string
}

// Answer says whether, and why.
type Answer struct {
	Principal string      `json:"principal"`
	Action    meta.Action `json:"action"`
	Resource  string      `json:"resource"`
	Allowed   bool        `json:"allowed"`
	// Reason is a word: administrator, right, public, denied, expired, no right, absent.
	Reason string `json:"reason"`
	// Right is what decided, with its role and binding.
	Right *meta.Right `json:"right,omitempty"`
	// Repository is the resource's record where it is one.
	Environment string          `json:"environment,omitempty"`
	Visibility  meta.Visibility `json:"visibility,omitempty"`
	// Text says all of it in a sentence.
	Text string `json:"text"`
}

// accounts is the path of the accounts of a principal's kind, and its name among them.
func accounts(principal string) (path, name string) {
	kind, id := meta.SplitPrincipal(principal)
	if kind == meta.KindRobot {
		tenant, name, _ := strings.Cut(id, "/")
		return join("tenants", tenant, "robots"), name
	}
	return "users", id
}

// account is the path of one: user:ada, robot:acme/ci.
func account(principal string) string {
	path, name := accounts(principal)
	return path + "/" + join(name)
}

// Users lists the accounts of users by their names.
func (c *Client) Users(ctx context.Context) iter.Seq2[meta.Account, error] {
	return all[meta.Account](ctx, c, "users", nil)
}

// Robots lists the accounts of a tenant's robots by their names.
func (c *Client) Robots(ctx context.Context, tenant meta.TenantName) iter.Seq2[meta.Account, error] {
	return all[meta.Account](ctx, c, join("tenants", string(tenant), "robots"), nil)
}

// CreateAccount makes the account of a user or robot, by its principal. Errors:
// meta.ErrConflict when there is one.
func (c *Client) CreateAccount(ctx context.Context, principal, note string) (a meta.Account, err error) {
	path, name := accounts(principal)
	return a, c.call(ctx, http.MethodPost, path, nil, NewAccount{Name: name, Note: note}, &a)
}

// Account returns the account of a principal.
func (c *Client) Account(ctx context.Context, principal string) (a meta.Account, err error) {
	return a, c.call(ctx, http.MethodGet, account(principal), nil, nil, &a)
}

// SetAccount changes an account.
func (c *Client) SetAccount(ctx context.Context, principal string, change AccountChange) (a meta.Account, err error) {
	return a, c.call(ctx, http.MethodPatch, account(principal), nil, change, &a)
}

// RemoveAccount removes an account, its bindings and its tokens.
func (c *Client) RemoveAccount(ctx context.Context, principal string) error {
	return c.call(ctx, http.MethodDelete, account(principal), nil, nil, nil)
}

// rolePath is the path of a role: deployer, acme/deployer.
func rolePath(name string) string {
	if tenant, role, ok := strings.Cut(name, "/"); ok {
		return join("tenants", tenant, "roles", role)
	}
	return join("roles", name)
}

// Roles lists the roles of a tenant, or with "" the built-in ones and those of the
// cluster.
func (c *Client) Roles(ctx context.Context, tenant meta.TenantName) iter.Seq2[meta.AccessRole, error] {
	if tenant != "" {
		return all[meta.AccessRole](ctx, c, join("tenants", string(tenant), "roles"), nil)
	}
	return all[meta.AccessRole](ctx, c, "roles", nil)
}

// Role returns one.
func (c *Client) Role(ctx context.Context, name string) (r meta.AccessRole, err error) {
	return r, c.call(ctx, http.MethodGet, rolePath(name), nil, nil, &r)
}

// PutRole makes a role, or gives it other actions.
func (c *Client) PutRole(ctx context.Context, name string, role RoleActions) (r meta.AccessRole, err error) {
	return r, c.call(ctx, http.MethodPut, rolePath(name), nil, role, &r)
}

// RemoveRole removes a role that nobody is bound to. Errors: meta.ErrConflict.
func (c *Client) RemoveRole(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, rolePath(name), nil, nil, nil)
}

// Bindings lists the bindings of a principal that the caller may see, else those of a
// tenant, else all.
func (c *Client) Bindings(ctx context.Context, principal string, tenant meta.TenantName) iter.Seq2[meta.Binding, error] {
	return all[meta.Binding](ctx, c, "bindings", query("principal", principal, "tenant", string(tenant)))
}

// AddBinding gives a principal a role, or denies it.
func (c *Client) AddBinding(ctx context.Context, n NewBinding) (b meta.Binding, err error) {
	return b, c.call(ctx, http.MethodPost, "bindings", nil, n, &b)
}

// RemoveBinding takes a binding back.
func (c *Client) RemoveBinding(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, join("bindings", id), nil, nil, nil)
}

// Can asks what somebody may.
func (c *Client) Can(ctx context.Context, q Can) (a Answer, err error) {
	return a, c.call(ctx, http.MethodGet, "can", query("principal", q.Principal, "action", string(q.Action), "resource", q.Resource), nil, &a)
}
