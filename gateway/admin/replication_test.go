package admin_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

func TestReplicationStatus(t *testing.T) {
	f, ctx := start(t), t.Context()
	must[meta.Tenant](t)(f.NewTenant(ctx, client.NewTenant{Name: "acme", Tier: meta.TierPremium}))
	r := must[meta.Repository](t)(f.CreateRepository(ctx, client.NewRepository{
		Ref: ref, Format: "oci", Class: meta.ClassCritical, Regions: []meta.RegionName{"us", "eu", "us"}, CopiesBeforeAck: 1,
	}))
	if !slices.Equal(r.Regions, []meta.RegionName{"eu", "us"}) || r.CopiesBeforeAck != 1 {
		t.Errorf("%+v", r)
	}
	b := meta.Blob{Context: "acme", Digest: digest.FromBytes([]byte("x")), PlainBytes: 1, StoredBytes: 10, Root: digest.Sum([]byte("x"))}
	link := state.LinkBlob{Repo: ref, Digest: b.Digest, Blob: b, Server: self}
	_, err := f.meta.Do(ctx, state.Origin{}, state.Publish{
		Version: meta.Version{Repo: ref, Package: "api", Name: "1", State: meta.StateClosed}, Blobs: []state.LinkBlob{link},
		Files: []meta.File{{Path: "f", Digest: b.Digest}},
	})
	if err != nil {
		t.Fatal(err)
	}
	s := must[client.ReplicationStatus](t)(f.ReplicationStatus(ctx))
	at := func(region meta.RegionName) client.ClassReplication {
		i := slices.IndexFunc(s.Classes, func(c client.ClassReplication) bool { return c.Region == region && c.Class == meta.ClassCritical })
		if i < 0 {
			t.Fatalf("%s has nothing: %+v", region, s)
		}
		return s.Classes[i]
	}
	if eu := at("eu"); eu.DemandedBytes != 10 || eu.VerifiedBlobs != 1 || eu.Progress != 1 || eu.LagSeconds != 0 {
		t.Errorf("eu: %+v", eu)
	}
	if us := at("us"); us.MissingBlobs != 1 || us.WaitingBytes != 10 || us.Progress != 0 || us.LagSeconds <= 0 || us.Tenants != 1 {
		t.Errorf("us: %+v", us)
	}
	lanes := collect(t, f.Backlogs(ctx, "us"))
	if len(lanes) != 1 || lanes[0].Tenant != "acme" || lanes[0].Tier != meta.TierPremium || lanes[0].Bytes != 10 || lanes[0].Oldest.IsZero() {
		t.Errorf("lanes: %+v", lanes)
	}
	basic, none, two := meta.TierBasic, []meta.RegionName{}, uint32(2)
	if got := must[meta.Tenant](t)(f.SetTenant(ctx, "acme", client.TenantChange{Tier: &basic})); got.Tier != basic {
		t.Errorf("%+v", got)
	}
	if _, err := f.SetTenant(ctx, "nobody", client.TenantChange{}); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("an unknown tenant: %v", err)
	}
	if r = must[meta.Repository](t)(f.SetRepository(ctx, ref, client.RepositoryChange{Regions: &none, CopiesBeforeAck: &two})); r.Regions != nil || r.CopiesBeforeAck != 2 {
		t.Errorf("%+v", r)
	}
	for name, call := range map[string]func(*client.Client) error{
		"status":   func(c *client.Client) error { _, err := c.ReplicationStatus(ctx); return err },
		"set tier": func(c *client.Client) error { _, err := c.SetTenant(ctx, "acme", client.TenantChange{}); return err },
	} {
		if err := call(f.as("")); err == nil {
			t.Errorf("%s without a token", name)
		}
	}
}
