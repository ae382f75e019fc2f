package client

import (
	"context"
	"iter"
	"net/http"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// NewScrub is the body of POST /api/v1/scrub.
type NewScrub struct {
	// Full reads every byte, else files are only compared with records. Roots reads up
	// to 100 blobs. Servers are who is asked, none is all.
	Full    bool          `json:"full,omitempty"`
	Roots   []digest.CID  `json:"roots,omitempty"`
	Servers []meta.NodeID `json:"servers,omitempty"`
}

// ScrubStatus is what servers say of the bytes that they keep.
type ScrubStatus struct {
	Servers []meta.Audit `json:"servers"`
	// Unrepairable counts blobs in use of which no server has a sound copy, up to 1,000.
	Unrepairable int `json:"unrepairable"`
}

// Answered counts the servers that a request was made to, and those that have done it.
func (s ScrubStatus) Answered(request uint64) (done, of int) {
	for _, a := range s.Servers {
		if a.Wanted.ID == request {
			of++
			if a.Report.Answered >= request {
				done++
			}
		}
	}
	return done, of
}

// Unrepairable is a blob of which no server has a sound copy, with what it is.
type Unrepairable struct {
	meta.LostBlob
	// Uses are at most 100; More says that there are others.
	Uses []meta.Use `json:"uses"`
	More bool       `json:"more,omitempty"`
}

// Scrub returns what each server says of its bytes.
func (c *Client) Scrub(ctx context.Context) (s ScrubStatus, err error) {
	return s, c.call(ctx, http.MethodGet, "scrub", nil, nil, &s)
}

// RunScrub asks servers to look at their bytes now.
func (c *Client) RunScrub(ctx context.Context, n NewScrub) (r meta.AuditRequest, err error) {
	return r, c.call(ctx, http.MethodPost, "scrub", nil, n, &r)
}

// FailedCopies lists copies that are not whole, by root.
func (c *Client) FailedCopies(ctx context.Context) iter.Seq2[meta.Replica, error] {
	return all[meta.Replica](ctx, c, "scrub/failed", nil)
}

// Unrepairable lists the blobs in use of which no server has a sound copy, by root.
func (c *Client) Unrepairable(ctx context.Context) iter.Seq2[Unrepairable, error] {
	return all[Unrepairable](ctx, c, "scrub/unrepairable", nil)
}
