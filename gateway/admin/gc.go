package admin

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// Of one call of gc/run: how many commands it proposes, and how much each reads.
const (
	gcCommands = 20
	gcLimit    = 300
)

func (a *API) gc(c *protocol.Call) error {
	s, err := ask(a, c, state.GetGC{})
	if err != nil {
		return err
	}
	g := client.GC{
		GraceSeconds: int64(s.Grace / time.Second), LastRun: s.LastRun, Walking: s.Walking,
		Tenants: make([]client.GCTenant, len(s.Contexts)), Servers: make([]client.GCServer, len(s.Servers)),
	}
	if s.Held.Std().After(time.Now()) {
		g.HeldUntil = s.Held
	}
	for i, t := range s.Contexts {
		g.Tenants[i] = client.GCTenant{
			Tenant: t.Context, Blobs: t.Blobs, Bytes: t.Bytes, Released: t.Released, ReleasedBytes: t.ReleasedBytes,
			Garbage: t.Garbage, GarbageBytes: t.GarbageBytes, Collected: t.Collected, CollectedBytes: t.CollectedBytes,
		}
		g.Released, g.ReleasedBytes = g.Released+t.Released, g.ReleasedBytes+t.ReleasedBytes
		g.Garbage, g.GarbageBytes = g.Garbage+t.Garbage, g.GarbageBytes+t.GarbageBytes
		g.Collected, g.CollectedBytes = g.Collected+t.Collected, g.CollectedBytes+t.CollectedBytes
	}
	for i, server := range s.Servers {
		g.Servers[i] = client.GCServer(server)
	}
	return protocol.WriteJSON(c.W, http.StatusOK, g)
}

func (a *API) setGC(c *protocol.Call) error {
	var body client.GCSettings
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return err
	}
	grace, err := duration(body.GraceSeconds)
	if err != nil {
		return err
	}
	value, err := a.do(c, 0, state.SetGC{Grace: grace})
	if err != nil {
		return err
	}
	set, _ := value.(state.GCSettings)
	s := int64(set.Grace / time.Second)
	return protocol.WriteJSON(c.W, http.StatusOK, client.GCSettings{GraceSeconds: &s})
}

// duration reads seconds; nil stays nil. Errors: meta.ErrInvalid.
func duration(seconds *int64) (*time.Duration, error) {
	const most = 10 * 366 * 24 * 3600
	if seconds == nil {
		return nil, nil
	}
	if *seconds < 0 || *seconds > most {
		return nil, fmt.Errorf("a grace period of %d seconds, use 0 to %d: %w", *seconds, most, meta.ErrInvalid)
	}
	d := time.Duration(*seconds) * time.Second
	return &d, nil
}

// runGC proposes a bounded number of commands.
func (a *API) runGC(c *protocol.Call) error {
	var body client.GCRun
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return err
	}
	grace, err := duration(body.GraceSeconds)
	if err != nil {
		return err
	}
	s, err := ask(a, c, state.GetGC{})
	if err != nil {
		return err
	}
	if grace != nil && *grace < s.Grace && !body.Force {
		return fmt.Errorf("a grace of %v is shorter than the cluster's %v: what was deleted could not be pushed again without its bytes; say --force if that is meant: %w",
			*grace, s.Grace, meta.ErrInvalid)
	}
	var sum client.GCRunResult
	for n := range gcCommands {
		value, err := a.do(c, n, state.CollectBlobs{Limit: gcLimit, Grace: grace, Strays: body.Strays && n == 0})
		if err != nil {
			return err
		}
		r, _ := value.(state.CollectResult)
		sum.Links, sum.Collected, sum.Bytes = sum.Links+uint64(r.Links), sum.Collected+uint64(r.Collected), sum.Bytes+r.Bytes
		sum.More, sum.Held = r.More, r.Held
		if !r.More {
			break
		}
	}
	return protocol.WriteJSON(c.W, http.StatusOK, sum)
}

// garbage lists what waits.
func (a *API) garbage(c *protocol.Call) error {
	page, err := pageOf(c)
	if err != nil {
		return err
	}
	s, err := ask(a, c, state.GetGC{})
	if err != nil {
		return err
	}
	q := state.ListGarbage{Page: page}
	query := c.R.URL.Query()
	grace, within := s.Grace, query.Get("due") == "true"
	if text := query.Get("grace_seconds"); text != "" {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return fmt.Errorf("grace_seconds=%s: %w", text, meta.ErrInvalid)
		}
		d, err := duration(&n)
		if err != nil {
			return err
		}
		grace, within = *d, true
	}
	if within {
		q.Before = meta.TimeOf(time.Now().Add(-grace)) + 1
	}
	listed, err := ask(a, c, q)
	if err != nil {
		return err
	}
	answer := client.Page[client.Garbage]{Items: make([]client.Garbage, len(listed))}
	for i, g := range listed {
		answer.Items[i] = client.Garbage{
			Root: g.Root, Digest: g.Digest, Tenant: g.Context, Repo: g.Repo, Released: g.Released,
			Since: g.Since, By: g.By, Bytes: g.StoredBytes, Kept: g.Others,
		}
	}
	if len(listed) == page.Limit {
		answer.Next = listed[len(listed)-1].After
	}
	return protocol.WriteJSON(c.W, http.StatusOK, answer)
}
