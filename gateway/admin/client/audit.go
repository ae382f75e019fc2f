package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/audit"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// AuditQuery chooses entries of the audit log; what is empty chooses all.
type AuditQuery struct {
	Principal, Credential, Repository, Action, Request, Outcome, Elevation string
	Tenant                                                                 meta.TenantName
	Since, Until                                                           time.Time
}

// values writes the query for a URL.
func (q AuditQuery) values() url.Values {
	v := url.Values{}
	set := func(name, value string) {
		if value != "" {
			v.Set(name, value)
		}
	}
	set("principal", q.Principal)
	set("credential", q.Credential)
	set("repository", q.Repository)
	set("action", q.Action)
	set("request", q.Request)
	set("outcome", q.Outcome)
	set("elevation", q.Elevation)
	set("tenant", string(q.Tenant))
	if !q.Since.IsZero() {
		set("since", q.Since.UTC().Format(time.RFC3339Nano))
	}
	if !q.Until.IsZero() {
		set("until", q.Until.UTC().Format(time.RFC3339Nano))
	}
	return v
}

// AuditPage is a part of the audit log. The lines are the leaves: they must not be
// encoded anew.
type AuditPage struct {
	Lines []string `json:"lines"`
	// Next is where to go on, Size the end of the log, First the first entry that was
	// not pruned.
	Next  uint64 `json:"next"`
	Size  uint64 `json:"size"`
	First uint64 `json:"first"`
}

// AuditStatus is where the audit log is.
type AuditStatus struct {
	Cluster    string          `json:"cluster"`
	Epoch      uint64          `json:"epoch"`
	Size       uint64          `json:"size"`
	Root       string          `json:"root"` // base64
	Checkpoint *audit.Signed   `json:"checkpoint,omitempty"`
	Retention  audit.Retention `json:"retention"`
}

// AuditLog returns where the log is.
func (c *Client) AuditLog(ctx context.Context) (s AuditStatus, err error) {
	return s, c.call(ctx, http.MethodGet, "audit", nil, nil, &s)
}

// AuditEntries returns entries from a place on, up to 1,000; with last the last limit
// of them instead.
func (c *Client) AuditEntries(ctx context.Context, q AuditQuery, from uint64, limit int, last bool) (p AuditPage, err error) {
	v := q.values()
	v.Set("from", strconv.FormatUint(from, 10))
	v.Set("limit", strconv.Itoa(limit))
	if last {
		v.Set("last", "1")
	}
	return p, c.call(ctx, http.MethodGet, "audit/entries", v, nil, &p)
}

// AuditProof proves that an entry is in the log of the last checkpoint.
func (c *Client) AuditProof(ctx context.Context, seq uint64) (p audit.Proof, err error) {
	return p, c.call(ctx, http.MethodGet, "audit/entries/"+strconv.FormatUint(seq, 10)+"/proof", nil, nil, &p)
}

// AuditCheckpoints lists signed checkpoints of more than after entries, up to 500.
func (c *Client) AuditCheckpoints(ctx context.Context, after uint64) (s []audit.Signed, err error) {
	var page Page[audit.Signed]
	err = c.call(ctx, http.MethodGet, "audit/checkpoints", query("after", strconv.FormatUint(after, 10)), nil, &page)
	return page.Items, err
}

// AuditChains lists the ends of nodes' chains as the log has them, from behind a node.
func (c *Client) AuditChains(ctx context.Context, after meta.NodeID) (s []audit.Chain, err error) {
	var page Page[audit.Chain]
	err = c.call(ctx, http.MethodGet, "audit/chains", query("after", string(after)), nil, &page)
	return page.Items, err
}

// SetAuditRetention changes how long entries stay (0 for ever), or says up to where
// they were exported; nil leaves it.
func (c *Client) SetAuditRetention(ctx context.Context, keep *time.Duration, exported *uint64) (r audit.Retention, err error) {
	return r, c.call(ctx, http.MethodPut, "audit/retention", nil, NewAuditRetention{keep, exported}, &r)
}

// NewAuditRetention is the body of SetAuditRetention.
type NewAuditRetention struct {
	Keep     *time.Duration `json:"keep,omitempty"`
	Exported *uint64        `json:"exported,omitempty"`
}

// AccessPage is a part of the chain of the node that answers.
type AccessPage struct {
	Node  meta.NodeID `json:"node"`
	Lines []string    `json:"lines"`
	// Next is the link to go on at, Head the end of the chain as the node's disk has it.
	Next uint64     `json:"next"`
	Head audit.Head `json:"head"`
}

// AccessLog returns lines of the chain of the node that c speaks to, from a link on.
func (c *Client) AccessLog(ctx context.Context, from uint64, limit int) (p AccessPage, err error) {
	v := url.Values{"from": {strconv.FormatUint(from, 10)}, "limit": {strconv.Itoa(limit)}}
	return p, c.call(ctx, http.MethodGet, "audit/access", v, nil, &p)
}
