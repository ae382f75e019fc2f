package admin

import (
	"net/http"
	"time"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// lag is how long something waits that was demanded at t, in seconds.
func lag(t meta.Time) float64 {
	if t == 0 {
		return 0
	}
	return max(time.Since(t.Std()).Seconds(), 0)
}

func (a *API) replicationStatus(c *protocol.Call) error {
	r, err := ask(a, c, state.Replication{})
	if err != nil {
		return err
	}
	answer := client.ReplicationStatus{Counted: r.Counted, Classes: make([]client.ClassReplication, len(r.Classes)), Settlements: r.Settlements}
	for i, s := range r.Classes {
		answer.Classes[i] = client.ClassReplication{
			Region: s.Region, Class: s.Class,
			DemandedBlobs: s.DemandedBlobs, DemandedBytes: s.DemandedBytes,
			VerifiedBlobs: s.DemandedBlobs - s.WaitingBlobs, VerifiedBytes: s.DemandedBytes - s.WaitingBytes,
			WaitingBlobs: s.WaitingBlobs, WaitingBytes: s.WaitingBytes, MissingBlobs: s.MissingBlobs, MissingBytes: s.MissingBytes,
			LagSeconds: lag(s.Oldest), Progress: 1, Tenants: s.Tenants,
		}
		if s.DemandedBytes > 0 {
			answer.Classes[i].Progress = 1 - float64(s.WaitingBytes)/float64(s.DemandedBytes)
		}
	}
	if s := r.Settlement; s != nil {
		answer.Settlement = &client.Settling{Phase: s.Phase, Part: s.Part, Backfills: s.Links, Read: s.Read, Owed: s.Owed}
		if s.Repo != (meta.RepoRef{}) {
			answer.Settlement.Repository = s.Repo.String()
		}
	}
	return protocol.WriteJSON(c.W, http.StatusOK, answer)
}

func (a *API) backlogs(c *protocol.Call) error {
	p, err := pageOf(c)
	if err != nil {
		return err
	}
	all, err := ask(a, c, state.ListBacklogs{Region: meta.RegionName(c.Params.Get("region")), Page: p})
	if err != nil {
		return err
	}
	page := client.Page[client.Backlog]{Items: make([]client.Backlog, len(all))}
	for i, b := range all {
		page.Items[i] = client.Backlog{
			Region: b.Region, Class: b.Class, Tenant: b.Tenant, Tier: b.Tier, Blobs: b.Blobs, Bytes: b.Bytes,
			MissingBlobs: b.MissingBlobs, MissingBytes: b.MissingBytes, Oldest: b.Oldest.Std(), LagSeconds: lag(b.Oldest),
		}
	}
	if len(all) == p.Limit {
		page.Next = state.BacklogAfter(all[len(all)-1])
	}
	return protocol.WriteJSON(c.W, http.StatusOK, page)
}

func (a *API) setTenant(c *protocol.Call) error {
	var body client.TenantChange
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return err
	}
	value, err := a.do(c, 0, state.SetTenant{Name: meta.TenantName(c.Params.Get("tenant")), Tier: body.Tier, Limits: body.Limits})
	if err != nil {
		return err
	}
	return reply[meta.Tenant](c, http.StatusOK, value)
}
