package client

import (
	"context"
	"iter"
	"net/http"
	"strconv"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// GC is how the collection of garbage stands.
type GC struct {
	// GraceSeconds is how long what no version uses any more is kept.
	GraceSeconds int64 `json:"grace_seconds"`
	// Released are links that no version uses since one was deleted, Garbage are blobs
	// that nothing links; both wait for the end of their grace.
	Released       uint64 `json:"released"`
	ReleasedBytes  int64  `json:"released_bytes"`
	Garbage        uint64 `json:"garbage"`
	GarbageBytes   int64  `json:"garbage_bytes"`
	Collected      uint64 `json:"collected"` // ever
	CollectedBytes int64  `json:"collected_bytes"`

	LastRun meta.Time `json:"last_run,omitempty"`
	// HeldUntil is set while backups are open: nothing is collected.
	HeldUntil meta.Time `json:"held_until,omitempty"`
	// Walking says that the blobs of before cluster level 4 are still being looked
	// through, and the counts are not whole.
	Walking bool `json:"walking,omitempty"`

	Tenants []GCTenant `json:"tenants"`
	Servers []GCServer `json:"servers"`
}

// GCTenant is the part of one tenant. Blobs are those that its repositories link, each
// counted once.
type GCTenant struct {
	Tenant         string `json:"tenant"`
	Blobs          uint64 `json:"blobs"`
	Bytes          int64  `json:"bytes"`
	Released       uint64 `json:"released"`
	ReleasedBytes  int64  `json:"released_bytes"`
	Garbage        uint64 `json:"garbage"`
	GarbageBytes   int64  `json:"garbage_bytes"`
	Collected      uint64 `json:"collected"`
	CollectedBytes int64  `json:"collected_bytes"`
}

// GCServer is what a server removed, and is still to remove.
type GCServer struct {
	Server         meta.NodeID `json:"server"`
	Ordered        uint64      `json:"ordered"`
	OrderedBytes   int64       `json:"ordered_bytes"`
	Reclaimed      uint64      `json:"reclaimed"`
	ReclaimedBytes int64       `json:"reclaimed_bytes"`
	Last           meta.Time   `json:"last,omitempty"`
}

// Garbage is a blob that waits for the end of its grace.
type Garbage struct {
	Root   digest.CID    `json:"root"`
	Digest digest.Digest `json:"digest"`
	Tenant string        `json:"tenant"`
	// Repo links it still (Released), or was the last that did.
	Repo     meta.RepoRef `json:"repo"`
	Released bool         `json:"released"`
	Since    meta.Time    `json:"since"`
	By       string       `json:"by,omitempty"` // who deleted the last use
	Bytes    int64        `json:"bytes"`
	// Kept says that something else uses the blob: only the link goes.
	Kept bool `json:"kept,omitempty"`
}

// GCRun is the body of POST /api/v1/gc/run. GraceSeconds, when set, is used instead of
// the cluster's; a shorter one needs Force.
type GCRun struct {
	GraceSeconds *int64 `json:"grace_seconds,omitempty"`
	Force        bool   `json:"force,omitempty"`
	// Strays asks the servers to look through their stores, too.
	Strays bool `json:"strays,omitempty"`
}

// GCRunResult is what one call did; More says that another has more to do.
type GCRunResult struct {
	Links     uint64 `json:"links"`
	Collected uint64 `json:"collected"`
	Bytes     int64  `json:"bytes"`
	More      bool   `json:"more"`
	Held      bool   `json:"held,omitempty"`
}

// GCSettings is the body of PUT /api/v1/gc; without GraceSeconds the default holds.
type GCSettings struct {
	GraceSeconds *int64 `json:"grace_seconds"`
}

// GC returns how the collection of garbage stands.
func (c *Client) GC(ctx context.Context) (g GC, err error) {
	return g, c.call(ctx, http.MethodGet, "gc", nil, nil, &g)
}

// SetGC sets the grace period; nil is the default.
func (c *Client) SetGC(ctx context.Context, grace *time.Duration) (g GCSettings, err error) {
	return g, c.call(ctx, http.MethodPut, "gc", nil, GCSettings{GraceSeconds: seconds(grace)}, &g)
}

func seconds(d *time.Duration) *int64 {
	if d == nil {
		return nil
	}
	s := int64(*d / time.Second)
	return &s
}

// RunGC collects what is due now, a bounded part of it.
func (c *Client) RunGC(ctx context.Context, r GCRun) (res GCRunResult, err error) {
	return res, c.call(ctx, http.MethodPost, "gc/run", nil, r, &res)
}

// Garbage lists what waits; with grace only what is older than that, and with due what
// is older than the cluster's grace.
func (c *Client) Garbage(ctx context.Context, due bool, grace *time.Duration) iter.Seq2[Garbage, error] {
	q := query()
	if due {
		q.Set("due", "true")
	}
	if s := seconds(grace); s != nil {
		q.Set("grace_seconds", strconv.FormatInt(*s, 10))
	}
	return all[Garbage](ctx, c, "gc/garbage", q)
}
