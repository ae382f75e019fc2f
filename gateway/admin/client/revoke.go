package client

import (
	"context"
	"net/http"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Revoke voids what was issued to a principal, or within a tenant, until now.
func (c *Client) Revoke(ctx context.Context, n NewRevocation) (r meta.Revocation, err error) {
	return r, c.call(ctx, http.MethodPost, "revocations", nil, n, &r)
}

// NarrowNode sets of which tenants an agent may have what is not public; no patterns are
// all. Errors: meta.ErrInvalid for a server.
func (c *Client) NarrowNode(ctx context.Context, id meta.NodeID, tenants []string) (n meta.Node, err error) {
	if tenants == nil {
		tenants = []string{}
	}
	return n, c.call(ctx, http.MethodPut, join("nodes", string(id), "tenants"), nil, tenants, &n)
}
