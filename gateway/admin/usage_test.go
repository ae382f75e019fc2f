package admin_test

import (
	"errors"
	"testing"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

func TestUsage(t *testing.T) {
	f, ctx := start(t), t.Context()
	must[meta.Repository](t)(f.CreateRepository(ctx, client.NewRepository{Ref: ref, Format: "oci", CreateTenant: true}))
	must[meta.Tenant](t)(f.CreateTenant(ctx, "beta"))
	quota, warn, day := int64(10), int64(50), meta.PerDay
	set := must[meta.Tenant](t)(f.SetTenant(ctx, "acme", client.TenantChange{Limits: &meta.LimitsChange{StorageBytes: &quota, StorageWarn: &warn, EgressBytes: &quota, EgressPeriod: &day}}))
	if set.Limits.StorageBytes != 10 || set.Limits.EgressPeriod != meta.PerDay {
		t.Errorf("set %+v", set.Limits)
	}
	d := digest.FromBytes([]byte("sixsix"))
	f.commit(t,
		state.LinkBlob{Repo: ref, Digest: d, Blob: meta.Blob{Context: "acme", Digest: d, PlainBytes: 6, StoredBytes: 6, Root: digest.Sum([]byte("sixsix"))}, Server: self},
		state.ReportEgress{Sums: []state.EgressSum{{Tenant: "acme", Bytes: 12, Requests: 3}}},
	)
	u := must[client.Usage](t)(f.Usage(ctx, "acme"))
	if u.StorageBytes != 6 || u.Blobs != 1 || !u.Counted || u.Storage != meta.NearQuota || u.EgressBytes != 12 || u.Egress != meta.OverQuota || u.TodayRequests != 3 || u.Rates != nil {
		t.Errorf("usage %+v", u)
	}
	if all := collect(t, f.Usages(ctx)); len(all) != 2 || all[0].Tenant != "acme" || all[1].StorageBytes != 0 {
		t.Errorf("usages %+v", all)
	}
	if repos := collect(t, f.RepositoryUsages(ctx, "acme")); len(repos) != 1 || repos[0] != (client.RepositoryUsage{Repository: "app", Blobs: 1, Bytes: 6}) {
		t.Errorf("repositories %+v", repos)
	}
	if r := must[client.Recount](t)(f.RecountUsage(ctx, "acme")); r.More || r.Bytes != 6 || r.DriftBytes != 0 {
		t.Errorf("recount %+v", r)
	}
	if s := must[client.Status](t)(f.Status(ctx)); len(s.Quotas) != 1 || s.Quotas[0].Tenant != "acme" {
		t.Errorf("status has %+v", s.Quotas)
	}
	none := int64(-1)
	for what, err := range map[string]error{
		"a negative limit": second(f.SetTenant(ctx, "acme", client.TenantChange{Limits: &meta.LimitsChange{StorageBytes: &none}})),
	} {
		if !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := f.Usage(ctx, "nobody"); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("an unknown tenant: %v", err)
	}
	// Who reads and writes a repository sees no usage.
	writer := f.as(f.gw.Writer)
	for what, err := range map[string]error{
		"usage": second(writer.Usage(ctx, "acme")), "recount": second(writer.RecountUsage(ctx, "acme")),
		"limits": second(writer.SetTenant(ctx, "acme", client.TenantChange{Limits: &meta.LimitsChange{StorageBytes: &quota}})),
	} {
		if !errors.Is(err, meta.ErrDenied) && !errors.Is(err, meta.ErrNotFound) {
			t.Errorf("%s for a publisher: %v", what, err)
		}
	}
}
