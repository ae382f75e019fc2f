package client

import (
	"context"
	"net/http"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Resolved is the answer of .../resolve: what a reference names now.
type Resolved struct {
	Package string       `json:"package"`
	Alias   string       `json:"alias,omitempty"` // that led there, "" when the version was named
	Version meta.Version `json:"version"`
}

// Marked says how many versions a marking changed.
type Marked struct {
	Changed int `json:"changed"`
}

// Resolve returns what a reference of a repository names: what its format writes behind
// `tenant/repository`, or `/PACKAGE@VERSION`.
func (c *Client) Resolve(ctx context.Context, ref meta.RepoRef, reference string) (r Resolved, err error) {
	return r, c.call(ctx, http.MethodGet, repo(ref, "resolve"), query("reference", reference), nil, &r)
}

// MarkVersion sets or takes away marks of a version.
func (c *Client) MarkVersion(ctx context.Context, r meta.VersionRef, m meta.Marking) (done Marked, err error) {
	return done, c.call(ctx, http.MethodPost, repo(r.Repo, "packages", r.Package, "versions", r.Version, "marks"), nil, m, &done)
}

// DeleteVersion takes a version away and leaves a tombstone.
func (c *Client) DeleteVersion(ctx context.Context, r meta.VersionRef) error {
	return c.call(ctx, http.MethodDelete, repo(r.Repo, "packages", r.Package, "versions", r.Version), nil, nil, nil)
}
