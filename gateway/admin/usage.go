package admin

import (
	"context"
	"net/http"
	"time"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// recountLimit is how many links one call counts: a few milliseconds of every server.
const recountLimit = 500

// ratesWait bounds how long the leader is asked for rates.
const ratesWait = 2 * time.Second

// rates asks for rates; nil without an answer.
func (a *API) rates(c *protocol.Call) map[meta.TenantName][]float64 {
	if a.Rates == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(c.R.Context(), ratesWait)
	defer cancel()
	rates, err := a.Rates(ctx)
	if err != nil {
		return nil
	}
	return rates
}

func usageOf(u state.TenantUsage, rates map[meta.TenantName][]float64) client.Usage {
	now := meta.TimeOf(time.Now())
	l, e := u.Tenant.Limits, u.Egress
	out := client.Usage{
		Tenant: u.Tenant.Name, Limits: l,
		StorageBytes: u.Bytes, Blobs: u.Blobs, Counted: u.Counted, ReservedBytes: u.Reserved, Storage: u.Storage,
		DriftBytes: u.Drift, Checked: u.Checked, EgressBytes: e.In(l.EgressPeriod, now), LastMonthBytes: e.LastMonthBytes,
	}
	out.Egress = meta.ThresholdOf(out.EgressBytes, l.EgressBytes, l.EgressWarn)
	if e.Day == meta.PerDay.Of(now) {
		out.TodayBytes, out.TodayRequests = e.DayBytes, e.DayRequests
	}
	if e.Month == meta.PerMonth.Of(now) {
		out.MonthBytes, out.MonthRequests = e.MonthBytes, e.MonthRequests
	} else {
		out.LastMonthBytes = e.MonthBytes
	}
	if rates != nil {
		out.Rates = &client.Rates{}
		if r := rates[u.Tenant.Name]; len(r) >= 5 {
			*out.Rates = client.Rates{PublishBytes: r[0], PublishRequests: r[1], DownloadBytes: r[2], DownloadRequests: r[3], Uploads: r[4]}
		}
	}
	return out
}

// maySee lets pass who manages the tenant, and who sees the cluster.
func (a *API) maySee(c *protocol.Call, tenant meta.TenantName) error {
	if a.judge(c, access.Observe, access.Target{}) == nil {
		return nil
	}
	return a.judge(c, access.Manage, access.Target{Tenant: tenant})
}

func (a *API) usage(c *protocol.Call) error {
	if err := a.maySee(c, tenantOf(c)); err != nil {
		return err
	}
	u, err := ask(a, c, state.GetUsage{Tenant: tenantOf(c)})
	if err != nil {
		return err
	}
	return protocol.WriteJSON(c.W, http.StatusOK, usageOf(u, a.rates(c)))
}

func (a *API) usages(c *protocol.Call) error {
	p, err := pageOf(c)
	if err != nil {
		return err
	}
	all, err := ask(a, c, state.ListUsage{Page: p})
	if err != nil {
		return err
	}
	rates := a.rates(c)
	page := client.Page[client.Usage]{Items: make([]client.Usage, len(all))}
	for i, u := range all {
		page.Items[i] = usageOf(u, rates)
	}
	if len(all) == p.Limit {
		page.Next = string(all[len(all)-1].Tenant.Name)
	}
	return protocol.WriteJSON(c.W, http.StatusOK, page)
}

func (a *API) repositoryUsage(c *protocol.Call) error {
	p, err := pageOf(c)
	if err != nil {
		return err
	}
	tenant := tenantOf(c)
	if err := a.maySee(c, tenant); err != nil {
		return err
	}
	if _, err := ask(a, c, state.GetTenant{Name: tenant}); err != nil {
		return err
	}
	all, err := ask(a, c, state.ListRepositoryUsage{Tenant: tenant, Page: p})
	if err != nil {
		return err
	}
	page := client.Page[client.RepositoryUsage]{Items: make([]client.RepositoryUsage, len(all))}
	for i, u := range all {
		page.Items[i] = client.RepositoryUsage(u)
	}
	if len(all) == p.Limit {
		page.Next = all[len(all)-1].Repository
	}
	return protocol.WriteJSON(c.W, http.StatusOK, page)
}

func (a *API) recount(c *protocol.Call) error {
	value, err := a.do(c, 0, state.RecountUsage{Tenant: tenantOf(c), Limit: recountLimit})
	if err != nil {
		return err
	}
	r, _ := value.(state.RecountResult)
	return protocol.WriteJSON(c.W, http.StatusOK, client.Recount{More: r.More, Blobs: r.Blobs, Bytes: r.Bytes, DriftBytes: r.Drift})
}

// atQuota lists tenants that have passed a threshold, looking at the first thousand.
func (a *API) atQuota(c *protocol.Call) (at []client.Usage, _ error) {
	const most = 100
	all, err := ask(a, c, state.ListUsage{})
	if err != nil {
		return nil, err
	}
	for _, u := range all {
		out := usageOf(u, nil)
		if max(out.Storage, out.Egress) > meta.BelowQuota && len(at) < most {
			at = append(at, out)
		}
	}
	return at, nil
}
