package client

import (
	"context"
	"iter"
	"net/http"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// NewWave is the body of POST /api/v1/waves.
type NewWave struct {
	// Refs are references as people write them: acme/app/api:1, acme/app/api@sha256:...,
	// acme/files/path/of/file. They are resolved when the wave is created.
	Refs    []string          `json:"refs"`
	Name    string            `json:"name,omitempty"`
	Targets []meta.WaveTarget `json:"targets,omitempty"` // none is all agents
	// NotBefore is when it begins, 0 at once; InSeconds counts from now instead.
	NotBefore   meta.Time       `json:"not_before,omitempty"`
	InSeconds   int64           `json:"in_seconds,omitempty"`
	MaxParallel uint32          `json:"max_parallel,omitempty"`
	Abort       *meta.WaveAbort `json:"abort,omitempty"`
	Platform    string          `json:"platform,omitempty"`
	// PinSeconds is for how long after its start hosts keep it, and those that join
	// get it; 0 is a day.
	PinSeconds int64 `json:"pin_seconds,omitempty"`
}

// WaveHosts counts the hosts that a wave is for, now. Waiting ones were heard from or
// not; Silent are those of them, and of the fetching ones, that were not lately.
type WaveHosts struct {
	Targeted int `json:"targeted"`
	Waiting  int `json:"waiting"`
	Fetching int `json:"fetching"`
	Done     int `json:"done"`
	Skipped  int `json:"skipped"`
	Failed   int `json:"failed"`
	Lost     int `json:"lost"`
	Silent   int `json:"silent"`
}

// WaveRegion is a region's part in a wave.
type WaveRegion struct {
	Region meta.RegionName `json:"region"`
	Hosts  WaveHosts       `json:"hosts"`
	// Bytes is what its hosts hold, of TotalBytes when all are done; 0 while nobody
	// knows how much that is.
	Bytes      int64 `json:"bytes"`
	TotalBytes int64 `json:"total_bytes"`
	// BytesPerSec is since the wave's start, EtaSeconds until all are done at that
	// rate; negative when that cannot be said.
	BytesPerSec float64 `json:"bytes_per_sec"`
	EtaSeconds  float64 `json:"eta_seconds"`
}

// WaveStatus is a wave with its live progress; the sums are of all regions.
type WaveStatus struct {
	Wave        meta.Wave    `json:"wave"`
	Hosts       WaveHosts    `json:"hosts"`
	Bytes       int64        `json:"bytes"`
	TotalBytes  int64        `json:"total_bytes"`
	BytesPerSec float64      `json:"bytes_per_sec"`
	EtaSeconds  float64      `json:"eta_seconds"`
	Regions     []WaveRegion `json:"regions"`
	// Unreached are servers that did not say what they heard: waiting and fetching
	// hosts that stand at them count as silent.
	Unreached []meta.NodeID `json:"unreached,omitempty"`
	// LeftOutHosts counts the hosts that the wave aims at and that may not hold what
	// belongs to the tenants of its references; LeftOut names the first ones.
	LeftOutHosts int           `json:"left_out_hosts,omitempty"`
	LeftOut      []meta.NodeID `json:"left_out,omitempty"`
}

// MaxLeftOut bounds WaveStatus.LeftOut.
const MaxLeftOut = 100

// Over reports whether nothing more is to be expected of the wave, but for hosts that
// join.
func (s *WaveStatus) Over() bool {
	return s.Wave.State != meta.WavePlanned && s.Wave.State != meta.WaveRunning
}

// CreateWave plans a wave.
func (c *Client) CreateWave(ctx context.Context, n NewWave) (w meta.Wave, err error) {
	return w, c.call(ctx, http.MethodPost, "waves", nil, n, &w)
}

// Waves lists the waves whose repositories the caller may read, newest first; open
// only those that are not over.
func (c *Client) Waves(ctx context.Context, open bool) iter.Seq2[meta.Wave, error] {
	q := query()
	if open {
		q = query("open", "true")
	}
	return all[meta.Wave](ctx, c, "waves", q)
}

// Wave returns a wave with its progress.
func (c *Client) Wave(ctx context.Context, id string) (s WaveStatus, err error) {
	return s, c.call(ctx, http.MethodGet, join("waves", id), nil, nil, &s)
}

// WaveHosts lists the hosts that took part in a wave; of one state when it is set.
func (c *Client) WaveHosts(ctx context.Context, id string, state meta.HostState) iter.Seq2[meta.WaveHost, error] {
	return all[meta.WaveHost](ctx, c, join("waves", id, "hosts"), query("state", string(state)))
}

// CancelWave ends a wave. Errors: meta.ErrConflict for one that is over otherwise.
func (c *Client) CancelWave(ctx context.Context, id, reason string) (w meta.Wave, err error) {
	return w, c.call(ctx, http.MethodDelete, join("waves", id), query("reason", reason), nil, &w)
}
