package admin

import (
	"fmt"
	"net/http"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// revoke voids what was issued to a principal, or within a tenant, until now. Who
// manages a tenant may do so within it, the rest is for administrators.
func (a *API) revoke(c *protocol.Call) error {
	var body client.NewRevocation
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return err
	}
	if (body.Principal == "") == (body.Tenant == "") {
		return fmt.Errorf("revocation: name a principal or a tenant: %w", meta.ErrInvalid)
	}
	action, target := access.Manage, access.Target{Tenant: body.Tenant}
	var command state.Command = state.RevokeTenant{Tenant: body.Tenant, Reason: body.Reason}
	if body.Principal != "" {
		command = state.RevokePrincipal{Principal: body.Principal, Reason: body.Reason}
		if target.Tenant = meta.TenantOf(body.Principal); target.Tenant == "" {
			action = access.Admin
		}
	}
	if err := a.judge(c, action, target); err != nil {
		return err
	}
	value, err := a.do(c, 0, command)
	if err != nil {
		return err
	}
	return reply[meta.Revocation](c, http.StatusCreated, value)
}

// narrowNode sets of which tenants an agent may have what is not public.
func (a *API) narrowNode(c *protocol.Call) error {
	var tenants []string
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &tenants); err != nil {
		return err
	}
	value, err := a.do(c, 0, state.NarrowNode{ID: meta.NodeID(c.Params.Get("node")), Tenants: tenants})
	if err != nil {
		return err
	}
	return reply[meta.Node](c, http.StatusOK, value)
}
