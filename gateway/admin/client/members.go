package client

import (
	"context"
	"net/http"
	"strconv"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// ServerState is a server with what is known of its part in the cluster.
type ServerState struct {
	meta.Node
	// Voter and Leader are its part in the Raft group.
	Voter  bool `json:"voter"`
	Leader bool `json:"leader,omitempty"`
	// Answers says that it answered the one that was asked; Level and Behind are known
	// then: the newest cluster level of its build, and how many log entries it lacks.
	Answers bool   `json:"answers"`
	Level   uint32 `json:"level,omitempty"`
	Behind  uint64 `json:"behind,omitempty"`
	// Remains is what a draining server still has that is needed there.
	Remains *Remains `json:"remains,omitempty"`
}

// Remains is what a draining server still has that is needed there: counts, and the
// first by name.
type Remains struct {
	// Counted says that all of it is counted.
	Counted bool `json:"counted"`
	// Last blobs are at no server that stays; of Short ones the server's region has
	// fewer copies than are due. More says that there are others still.
	Last  int  `json:"last"`
	Short int  `json:"short"`
	More  bool `json:"more,omitempty"`
	// Removable says that nothing remains: the server may be removed.
	Removable bool     `json:"removable"`
	Blobs     []Remain `json:"blobs,omitempty"`
}

// Remain is a blob that a draining server is needed for.
type Remain struct {
	Root   digest.CID    `json:"root"`
	Why    string        `json:"why"` // last or short
	Digest digest.Digest `json:"digest,omitempty"`
	// Uses are the first versions that use it.
	Uses []string `json:"uses,omitempty"`
}

// Level is what is known of the cluster level.
type Level struct {
	Level uint32 `json:"level"`
	// Hold is the level above which the cluster is not raised, 0 without one.
	Hold uint32 `json:"hold,omitempty"`
	// Next is the level to which the leader raises it by itself, once all servers know
	// it; Level when there is nothing to raise to. Waiting names those that do not know
	// a higher one, or do not answer.
	Next    uint32        `json:"next"`
	Waiting []meta.NodeID `json:"waiting"`
	Servers []ServerLevel `json:"servers"`
}

// ServerLevel is the newest level that a server's build knows.
type ServerLevel struct {
	ID      meta.NodeID     `json:"id"`
	Region  meta.RegionName `json:"region"`
	Answers bool            `json:"answers"`
	Level   uint32          `json:"level,omitempty"`
}

// LevelChange is the body of PUT /api/v1/cluster/level. Hold 0 lets it go.
type LevelChange struct {
	Hold uint32 `json:"hold"`
}

// RegionRemoval says how a region is to be removed.
type RegionRemoval struct {
	// Home is the new home of the repositories that are at home there, "" to leave that
	// to the caller.
	Home meta.RegionName
	// Agents are removed too.
	Agents bool
	// Force also loses what only the region's servers have.
	Force bool
}

// Servers lists the servers.
func (c *Client) Servers(ctx context.Context) (servers []ServerState, err error) {
	var page Page[ServerState]
	err = c.call(ctx, http.MethodGet, "servers", nil, nil, &page)
	return page.Items, err
}

// ServerRemains says what a draining server is still needed for, the first limit by
// name.
func (c *Client) ServerRemains(ctx context.Context, id meta.NodeID, limit int) (r Remains, err error) {
	return r, c.call(ctx, http.MethodGet, join("servers", string(id), "remains"), query("limit", strconv.Itoa(limit)), nil, &r)
}

// DrainServer begins to empty a server, or with drain false takes that back.
func (c *Client) DrainServer(ctx context.Context, id meta.NodeID, drain bool) (n meta.Node, err error) {
	method := http.MethodPut
	if !drain {
		method = http.MethodDelete
	}
	return n, c.call(ctx, method, join("servers", string(id), "drain"), nil, nil, &n)
}

// KeepRegion takes back that a region is being removed.
func (c *Client) KeepRegion(ctx context.Context, name meta.RegionName) (r meta.Region, err error) {
	return r, c.call(ctx, http.MethodDelete, join("regions", string(name), "removal"), nil, nil, &r)
}

// ClusterLevel says at which level the cluster is, and what keeps it there.
func (c *Client) ClusterLevel(ctx context.Context) (l Level, err error) {
	return l, c.call(ctx, http.MethodGet, "cluster/level", nil, nil, &l)
}

// HoldLevel keeps the cluster level at hold; 0 lets it go.
func (c *Client) HoldLevel(ctx context.Context, hold uint32) (l Level, err error) {
	return l, c.call(ctx, http.MethodPut, "cluster/level", nil, LevelChange{Hold: hold}, &l)
}
