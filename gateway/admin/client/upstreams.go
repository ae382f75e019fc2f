package client

import (
	"context"
	"net/http"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// UpstreamCredential is the body of PUT /api/v1/repositories/T/R/upstream/credential: a
// user and a password, or without a user a bearer token. Nobody reads it again.
type UpstreamCredential struct {
	User   string `json:"user,omitempty"`
	Secret string `json:"secret"`
}

// Forget is the body of POST .../upstream/forget; without a path it is all.
type Forget struct {
	Path   string `json:"path,omitempty"`
	Accept string `json:"accept,omitempty"`
	// Package, of a group, forgets from which proxy it takes that one, and nothing else.
	Package string `json:"package,omitempty"`
}

// Forgotten answers it.
type Forgotten struct {
	Records uint64 `json:"records"`
}

// SetUpstreamCredential has a proxy ask its upstream with a credential. Errors:
// meta.ErrConflict when it is no proxy.
func (c *Client) SetUpstreamCredential(ctx context.Context, ref meta.RepoRef, credential UpstreamCredential) (r meta.Repository, err error) {
	return r, c.call(ctx, http.MethodPut, repo(ref, "upstream", "credential"), nil, credential, &r)
}

// RemoveUpstreamCredential has it ask without. Errors: meta.ErrNotFound.
func (c *Client) RemoveUpstreamCredential(ctx context.Context, ref meta.RepoRef) (r meta.Repository, err error) {
	return r, c.call(ctx, http.MethodDelete, repo(ref, "upstream", "credential"), nil, nil, &r)
}

// ForgetFetched forgets what a proxy has of its upstream, so that the next reader asks, or
// where a group takes a package from. Errors: meta.ErrConflict for a package of what is no
// group; meta.ErrInvalid.
func (c *Client) ForgetFetched(ctx context.Context, ref meta.RepoRef, f Forget) (n Forgotten, err error) {
	return n, c.call(ctx, http.MethodPost, repo(ref, "upstream", "forget"), nil, f, &n)
}
