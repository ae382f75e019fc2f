package client

import (
	"context"
	"net/http"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// NewPromotion is the body of POST /api/v1/promotions: what References name becomes
// visible in To, all of it or nothing. References are of the tenant of To, and of its
// format. The alias by which a reference names a version moves there, and so do Aliases.
type NewPromotion struct {
	References []string     `json:"references"`
	To         meta.RepoRef `json:"to"`
	Aliases    []string     `json:"aliases,omitempty"`
	Reason     string       `json:"reason,omitempty"`
}

// Promotion is what it did, in order: what a version refers to comes before it, what is
// attached to it behind it.
type Promotion struct {
	Versions []PromotedVersion `json:"versions"`
}

// PromotedVersion is one version of it. Created is false when it was there already.
type PromotedVersion struct {
	Package string        `json:"package"`
	Version string        `json:"version"`
	Digest  digest.Digest `json:"digest,omitempty"`
	Created bool          `json:"created"`
}

// Promote makes versions those of another repository. Errors: meta.ErrExists,
// meta.ErrConflict.
func (c *Client) Promote(ctx context.Context, n NewPromotion) (p Promotion, err error) {
	return p, c.call(ctx, http.MethodPost, "promotions", nil, n, &p)
}
