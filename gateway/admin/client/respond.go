package client

import (
	"context"
	"iter"
	"net/http"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// NewCompromise opens a compromise: of a token, by its id, or of all that a principal has.
type NewCompromise struct {
	Token     string `json:"token,omitempty"`
	Principal string `json:"principal,omitempty"`
	// Since and Until bound what is gone through; zero is all, and until now.
	Since  time.Time `json:"since,omitzero"`
	Until  time.Time `json:"until,omitzero"`
	Reason string    `json:"reason"`
	// RestoreAliases takes aliases back to what they named before.
	RestoreAliases bool `json:"restore_aliases,omitempty"`
}

// Reasoned is the body of what needs nothing but a reason or a note.
type Reasoned struct {
	Reason string `json:"reason"`
}

// NewElevation asks for break-glass.
type NewElevation struct {
	Role        string `json:"role"`
	Scope       string `json:"scope"`
	Environment string `json:"environment,omitempty"`
	Reason      string `json:"reason"`
	TTLSeconds  int64  `json:"ttl_seconds"`
}

// ElevationPolicy is what the cluster wants of elevations.
type ElevationPolicy struct {
	// Approvers must approve beside who asks.
	Approvers     uint32 `json:"approvers"`
	MaxTTLSeconds int64  `json:"max_ttl_seconds"`
}

// OpenCompromise revokes, and puts what was published into quarantine; the cluster goes on
// with what the answer does not count yet.
func (c *Client) OpenCompromise(ctx context.Context, n NewCompromise) (m meta.Compromise, err error) {
	return m, c.call(ctx, http.MethodPost, "compromises", nil, n, &m)
}

// Compromises lists them, the newest first.
func (c *Client) Compromises(ctx context.Context) iter.Seq2[meta.Compromise, error] {
	return all[meta.Compromise](ctx, c, "compromises", nil)
}

// Compromise returns one.
func (c *Client) Compromise(ctx context.Context, id string) (m meta.Compromise, err error) {
	return m, c.call(ctx, http.MethodGet, join("compromises", id), nil, nil, &m)
}

// Findings lists what was found of a compromise.
func (c *Client) Findings(ctx context.Context, id string) iter.Seq2[meta.Finding, error] {
	return all[meta.Finding](ctx, c, join("compromises", id, "findings"), nil)
}

// CloseCompromise ends the work on one. Errors: meta.ErrConflict.
func (c *Client) CloseCompromise(ctx context.Context, id, note string) (m meta.Compromise, err error) {
	return m, c.call(ctx, http.MethodPost, join("compromises", id, "close"), nil, Reasoned{note}, &m)
}

// QuarantineVersion keeps a version from all readers.
func (c *Client) QuarantineVersion(ctx context.Context, r meta.VersionRef, reason string) (v meta.Version, err error) {
	return v, c.call(ctx, http.MethodPost, repo(r.Repo, "packages", r.Package, "versions", r.Version, "quarantine"), nil, Reasoned{reason}, &v)
}

// ReleaseVersion gives one back to readers.
func (c *Client) ReleaseVersion(ctx context.Context, r meta.VersionRef, reason string) (v meta.Version, err error) {
	return v, c.call(ctx, http.MethodPost, repo(r.Repo, "packages", r.Package, "versions", r.Version, "release"), nil, Reasoned{reason}, &v)
}

// RequestElevation asks for break-glass.
func (c *Client) RequestElevation(ctx context.Context, n NewElevation) (e meta.Elevation, err error) {
	return e, c.call(ctx, http.MethodPost, "elevations", nil, n, &e)
}

// Elevations lists those that the caller may see: all, the newest first, those that are
// asked for or active (open), or those that nobody has reviewed (unreviewed).
func (c *Client) Elevations(ctx context.Context, which string) iter.Seq2[meta.Elevation, error] {
	return all[meta.Elevation](ctx, c, "elevations", query("which", which))
}

// DecideElevation says a word on one: approve, refuse, end, review.
func (c *Client) DecideElevation(ctx context.Context, id, word, note string) (e meta.Elevation, err error) {
	return e, c.call(ctx, http.MethodPost, join("elevations", id, word), nil, Reasoned{note}, &e)
}

// ElevationPolicy returns what the cluster wants of elevations.
func (c *Client) ElevationPolicy(ctx context.Context) (p ElevationPolicy, err error) {
	return p, c.call(ctx, http.MethodGet, "elevation-policy", nil, nil, &p)
}

// SetElevationPolicy changes it.
func (c *Client) SetElevationPolicy(ctx context.Context, p ElevationPolicy) (now ElevationPolicy, err error) {
	return now, c.call(ctx, http.MethodPut, "elevation-policy", nil, p, &now)
}
