package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

const (
	// callTimeout bounds one call; the API answers in a page.
	callTimeout   = 30 * time.Second
	maxReplyBytes = 16 << 20
)

// Client calls the admin API of one gateway. The zero value of everything but
// Base is usable.
type Client struct {
	// Base is the gateway's URL: https://host:5000.
	Base string
	// Token is the credential, "" for none.
	Token string
	// HTTP sends; nil is http.DefaultClient.
	HTTP *http.Client
}

// Error is a refusal by the gateway. It unwraps to its kind of meta, so that
// errors.Is works on it.
type Error struct {
	Status  int
	Kind    string
	Message string
}

func (e *Error) Error() string {
	if e.Status == http.StatusUnauthorized {
		return e.Message + " (give a token with --auth or SHOAL_TOKEN, or run `shoal login`)"
	}
	return e.Message
}

// Unwrap returns the kind, nil when it is none of meta's.
func (e *Error) Unwrap() error { return meta.Kinds[e.Kind] }

// Tenants lists all tenants, in byte order.
func (c *Client) Tenants(ctx context.Context) iter.Seq2[meta.Tenant, error] {
	return all[meta.Tenant](ctx, c, "tenants", nil)
}

// CreateTenant creates a tenant; one that exists is returned as it is.
func (c *Client) CreateTenant(ctx context.Context, name meta.TenantName) (meta.Tenant, error) {
	return c.NewTenant(ctx, NewTenant{Name: name})
}

// Repositories lists the repositories that the caller may read, of one tenant or
// with "" of all.
func (c *Client) Repositories(ctx context.Context, tenant meta.TenantName) iter.Seq2[meta.Repository, error] {
	return all[meta.Repository](ctx, c, "repositories", query("tenant", string(tenant)))
}

// Repository returns one.
func (c *Client) Repository(ctx context.Context, ref meta.RepoRef) (r meta.Repository, err error) {
	return r, c.call(ctx, http.MethodGet, repo(ref), nil, nil, &r)
}

// CreateRepository creates one; an equal one that exists is returned.
func (c *Client) CreateRepository(ctx context.Context, n NewRepository) (r meta.Repository, err error) {
	return r, c.call(ctx, http.MethodPost, "repositories", nil, n, &r)
}

// SetRepository changes one and returns what it is now.
func (c *Client) SetRepository(ctx context.Context, ref meta.RepoRef, change RepositoryChange) (r meta.Repository, err error) {
	return r, c.call(ctx, http.MethodPatch, repo(ref), nil, change, &r)
}

// RemoveRepository removes one without versions. Errors: meta.ErrConflict.
func (c *Client) RemoveRepository(ctx context.Context, ref meta.RepoRef) error {
	return c.call(ctx, http.MethodDelete, repo(ref), nil, nil, nil)
}

// Packages lists a repository's packages whose name begins with prefix.
func (c *Client) Packages(ctx context.Context, ref meta.RepoRef, prefix string) iter.Seq2[meta.Package, error] {
	return all[meta.Package](ctx, c, repo(ref, "packages"), query("prefix", prefix))
}

// Versions lists a package's versions in byte order of their names.
func (c *Client) Versions(ctx context.Context, ref meta.RepoRef, pkg string) iter.Seq2[meta.Version, error] {
	return all[meta.Version](ctx, c, repo(ref, "packages", pkg, "versions"), nil)
}

// Version returns one.
func (c *Client) Version(ctx context.Context, ref meta.RepoRef, pkg, version string) (v meta.Version, err error) {
	return v, c.call(ctx, http.MethodGet, repo(ref, "packages", pkg, "versions", version), nil, nil, &v)
}

// Replication returns how far a version is in each region.
func (c *Client) Replication(ctx context.Context, ref meta.RepoRef, pkg, version string) (r VersionReplication, err error) {
	return r, c.call(ctx, http.MethodGet, repo(ref, "packages", pkg, "versions", version, "replication"), nil, nil, &r)
}

// Aliases lists a package's aliases in byte order.
func (c *Client) Aliases(ctx context.Context, ref meta.RepoRef, pkg string) iter.Seq2[meta.Alias, error] {
	return all[meta.Alias](ctx, c, repo(ref, "packages", pkg, "aliases"), nil)
}

// AliasHistory lists the moves of an alias, newest first.
func (c *Client) AliasHistory(ctx context.Context, ref meta.RepoRef, pkg, alias string) iter.Seq2[meta.Alias, error] {
	return all[meta.Alias](ctx, c, repo(ref, "packages", pkg, "aliases", alias, "history"), nil)
}

// SetLabels replaces the labels of a version, or with version "" of the package.
func (c *Client) SetLabels(ctx context.Context, ref meta.RepoRef, pkg, version string, labels meta.Labels) error {
	path := repo(ref, "packages", pkg, "labels")
	if version != "" {
		path = repo(ref, "packages", pkg, "versions", version, "labels")
	}
	if labels == nil {
		labels = meta.Labels{}
	}
	return c.call(ctx, http.MethodPut, path, nil, labels, nil)
}

// Nodes lists the roster; zero values list all.
func (c *Client) Nodes(ctx context.Context, role meta.Role, region meta.RegionName) iter.Seq2[meta.Node, error] {
	return all[meta.Node](ctx, c, "nodes", query("role", string(role), "region", string(region)))
}

// RemoveNode takes a node from the roster: it can no longer reach the cluster. Without
// force it refuses to lose the last copies of blobs. Errors: meta.ErrConflict.
func (c *Client) RemoveNode(ctx context.Context, id meta.NodeID, force bool) error {
	return c.call(ctx, http.MethodDelete, join("nodes", string(id)), forced(force), nil, nil)
}

// Regions lists the regions.
func (c *Client) Regions(ctx context.Context) (regions []Region, err error) {
	var page Page[Region]
	err = c.call(ctx, http.MethodGet, "regions", nil, nil, &page)
	return page.Items, err
}

// PutRegion creates a region or changes whether it is primary.
func (c *Client) PutRegion(ctx context.Context, name meta.RegionName, change RegionChange) (r meta.Region, err error) {
	return r, c.call(ctx, http.MethodPut, join("regions", string(name)), nil, change, &r)
}

// RemoveRegion empties a region and, when nothing remains there, removes it with its
// servers; it is asked again until the answer is Done. Errors: meta.ErrConflict.
func (c *Client) RemoveRegion(ctx context.Context, name meta.RegionName, how RegionRemoval) (r Removed, err error) {
	q := query("home", string(how.Home))
	for param, on := range map[string]bool{"force": how.Force, "agents": how.Agents} {
		if on {
			q.Set(param, "true")
		}
	}
	return r, c.call(ctx, http.MethodDelete, join("regions", string(name)), q, nil, &r)
}

func forced(force bool) url.Values {
	if force {
		return query("force", "true")
	}
	return nil
}

// Status returns what the gateway's node knows of the cluster.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.call(ctx, http.MethodGet, "status", nil, nil, &s)
}

// CreateJoinToken issues a token that admits nodes.
func (c *Client) CreateJoinToken(ctx context.Context, n NewJoinToken) (t JoinToken, err error) {
	return t, c.call(ctx, http.MethodPost, "join-tokens", nil, n, &t)
}

// Trust returns the cluster's trust root.
func (c *Client) Trust(ctx context.Context) (t Trust, err error) {
	return t, c.call(ctx, http.MethodGet, "trust", nil, nil, &t)
}

// RotateTrust begins to replace the cluster's root.
func (c *Client) RotateTrust(ctx context.Context) (t Trust, err error) {
	return t, c.call(ctx, http.MethodPost, "trust/rotation", nil, nil, &t)
}

// FinishRotation drops the old root; force leaves behind who has no certificate of the
// next.
func (c *Client) FinishRotation(ctx context.Context, force bool) (t Trust, err error) {
	return t, c.call(ctx, http.MethodDelete, "trust/rotation", forced(force), nil, &t)
}

// RootHolders lists the nodes, and whether each has a certificate of the next root.
func (c *Client) RootHolders(ctx context.Context) iter.Seq2[RootHolder, error] {
	return all[RootHolder](ctx, c, "trust/holders", nil)
}

// JoinTokens lists the join tokens, without their secrets.
func (c *Client) JoinTokens(ctx context.Context) iter.Seq2[meta.JoinToken, error] {
	return all[meta.JoinToken](ctx, c, "join-tokens", nil)
}

// RevokeJoinToken ends the join token whose id begins so.
func (c *Client) RevokeJoinToken(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, join("join-tokens", id), nil, nil, nil)
}

// Whoami returns who the credential stands for.
func (c *Client) Whoami(ctx context.Context) (p Principal, err error) {
	return p, c.call(ctx, http.MethodGet, "whoami", nil, nil, &p)
}

// join escapes each part, also its slashes.
func join(parts ...string) string {
	escaped := make([]string, len(parts))
	for i, part := range parts {
		escaped[i] = url.PathEscape(part)
	}
	return strings.Join(escaped, "/")
}

func repo(ref meta.RepoRef, more ...string) string {
	return join(append([]string{"repositories", string(ref.Tenant), ref.Name}, more...)...)
}

// query takes names and values in turn; empty values are left out.
func query(pairs ...string) url.Values {
	q := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			q.Set(pairs[i], pairs[i+1])
		}
	}
	return q
}

// all walks the pages of a listing.
func all[T any](ctx context.Context, c *Client, path string, q url.Values) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		values := url.Values{"limit": {strconv.Itoa(MaxPage)}}
		for name, v := range q {
			values[name] = v
		}
		for {
			var page Page[T]
			if err := c.call(ctx, http.MethodGet, path, values, nil, &page); err != nil {
				var zero T
				yield(zero, err)
				return
			}
			for _, item := range page.Items {
				if !yield(item, nil) {
					return
				}
			}
			if page.Next == "" {
				return
			}
			values.Set("after", page.Next)
		}
	}
}

// call sends one request. in and out may be nil.
func (c *Client) call(ctx context.Context, method, path string, q url.Values, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode %T: %w", in, err)
		}
		body = bytes.NewReader(b)
	}
	target := strings.TrimSuffix(c.Base, "/") + "/api/v1/" + path
	if len(q) > 0 {
		target += "?" + q.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return fmt.Errorf("%s: %w", c.Base, err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	sender := c.HTTP
	if sender == nil {
		sender = http.DefaultClient
	}
	resp, err := sender.Do(req)
	if err != nil {
		return fmt.Errorf("%w: %w", err, meta.ErrUnavailable)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxReplyBytes+1))
	switch {
	case err != nil:
		return fmt.Errorf("read the answer of %s: %w", req.URL.Path, err)
	case len(b) > maxReplyBytes:
		return fmt.Errorf("the answer of %s is over %d bytes: %w", req.URL.Path, maxReplyBytes, meta.ErrTooLarge)
	case resp.StatusCode >= 300:
		return refusal(resp, b)
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%s does not answer as a shoal gateway: %w", c.Base, errors.Join(err, meta.ErrInvalid))
	}
	return nil
}

// refusal reads the error body; what is not ours is shown as it came.
func refusal(resp *http.Response, b []byte) error {
	var body ErrorBody
	if json.Unmarshal(b, &body) == nil && body.Error.Message != "" {
		return &Error{Status: resp.StatusCode, Kind: body.Error.Kind, Message: body.Error.Message}
	}
	text := strings.TrimSpace(string(b[:min(len(b), 500)]))
	return &Error{Status: resp.StatusCode, Message: strings.TrimSpace(resp.Status + ": " + text)}
}
