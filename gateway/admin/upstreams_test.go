package admin_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/trust"
)

// TestUpstreamCredential: what a proxy asks its upstream with is sealed to the servers,
// and nobody reads it again; a server can.
func TestUpstreamCredential(t *testing.T) {
	f, ctx := start(t), t.Context()
	key, err := trust.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	const second meta.NodeID = "second"
	for _, c := range []state.Command{
		state.CreateJoinToken{Token: meta.JoinToken{ID: "t", Role: meta.RoleServer, Region: "eu", Uses: 1, Expires: meta.TimeOf(time.Now().Add(time.Hour))}},
		state.AdmitNode{TokenSecretHash: "t", Node: meta.Node{
			ID: second, Role: meta.RoleServer, Region: "eu", Swarm: []string{"/ip4/127.0.0.1/tcp/7072"}, Gateway: "127.0.0.1:5001", Seal: key.Recipient(),
		}},
	} {
		if _, err := f.meta.Do(ctx, state.Origin{}, c); err != nil {
			t.Fatal(err)
		}
	}
	proxy := meta.RepoRef{Tenant: "acme", Name: "hub"}
	n := client.NewRepository{Ref: proxy, Format: "oci", Kind: meta.KindProxy, CreateTenant: true, Upstream: &meta.Upstream{URL: "https://registry.example/x"}}
	must[meta.Repository](t)(f.CreateRepository(ctx, n))
	n.Ref, n.Kind, n.Upstream = ref, meta.KindHosted, nil
	must[meta.Repository](t)(f.CreateRepository(ctx, n))

	r := must[meta.Repository](t)(f.SetUpstreamCredential(ctx, proxy, client.UpstreamCredential{User: "ada", Secret: "hunter2"}))
	if r.Upstream.Credential != meta.SealedUpstream {
		t.Errorf("%+v", r.Upstream)
	}
	secret, _, err := raftmeta.Ask(ctx, f.meta, meta.Local, state.GetSealed{Repo: proxy, Name: meta.SealedUpstream})
	if err != nil || string(secret.Public) != "ada" || strings.Contains(string(secret.Seals[second]), "hunter2") {
		t.Fatalf("%+v, %v", secret, err)
	}
	plain, err := key.Open(secret.Seals[second])
	if err != nil {
		t.Fatal(err)
	}
	c, err := upstream.OpenCredential(&r, plain, secret.Version)
	if err != nil || c.User != "ada" || c.Secret.Reveal() != "hunter2" {
		t.Errorf("%v, %v", c, err)
	}
	// The audit log names who and what, and not the secret.
	entries, _, err := raftmeta.Ask(ctx, f.meta, meta.Local, state.ListEntries{Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	said := false
	for _, line := range entries.Lines {
		said = said || strings.Contains(string(line), "PutSealed")
		if strings.Contains(string(line), "hunter2") {
			t.Errorf("an entry tells the secret: %s", line)
		}
	}
	if !said {
		t.Error("no entry says that a credential was set")
	}

	for name, bad := range map[string]client.UpstreamCredential{
		"nothing": {}, "two lines": {Secret: "a\nb"}, "a colon": {User: "a:b", Secret: "c"}, "long": {Secret: strings.Repeat("x", 10<<10)},
	} {
		if _, err := f.SetUpstreamCredential(ctx, proxy, bad); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := f.SetUpstreamCredential(ctx, ref, client.UpstreamCredential{Secret: "x"}); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("of a hosted repository: %v", err)
	}
	if r = must[meta.Repository](t)(f.RemoveUpstreamCredential(ctx, proxy)); r.Upstream.Credential != "" {
		t.Errorf("%+v", r.Upstream)
	}
	if _, err := f.RemoveUpstreamCredential(ctx, proxy); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
}

// TestForget: what a proxy has is forgotten in pages, and is no reason to keep the proxy.
func TestForget(t *testing.T) {
	f, ctx := start(t), t.Context()
	proxy := meta.RepoRef{Tenant: "acme", Name: "hub"}
	must[meta.Repository](t)(f.CreateRepository(ctx, client.NewRepository{
		Ref: proxy, Format: "oci", Kind: meta.KindProxy, CreateTenant: true, Upstream: &meta.Upstream{URL: "https://registry.example"},
	}))
	record := func(path string) {
		t.Helper()
		if _, err := f.meta.Do(ctx, state.Origin{Principal: "node:x"}, state.RecordFetched{Fetched: meta.Fetched{Repo: proxy, Path: path, Status: 404}}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 600 {
		record(strings.Repeat("x", i+1))
	}
	if n := must[client.Forgotten](t)(f.ForgetFetched(ctx, proxy, client.Forget{Path: "xx"})); n.Records != 1 {
		t.Errorf("one path: %d", n.Records)
	}
	if n := must[client.Forgotten](t)(f.ForgetFetched(ctx, proxy, client.Forget{})); n.Records != 599 {
		t.Errorf("all: %d", n.Records)
	}
	record("again")
	// One that stays, because a group has it, keeps what it has.
	group := client.NewRepository{Ref: meta.RepoRef{Tenant: "acme", Name: "all"}, Format: "oci", Kind: meta.KindGroup, Members: []string{"hub"}}
	must[meta.Repository](t)(f.CreateRepository(ctx, group))
	if err := f.RemoveRepository(ctx, proxy); !errors.Is(err, meta.ErrConflict) || !strings.Contains(err.Error(), "acme/all") {
		t.Errorf("a member: %v", err)
	}
	if kept, _, err := raftmeta.Ask(ctx, f.meta, meta.Local, state.ListFetched{Repo: proxy}); err != nil || len(kept) != 1 {
		t.Errorf("it keeps %d records: %v", len(kept), err)
	}
	if err := f.RemoveRepository(ctx, group.Ref); err != nil {
		t.Error(err)
	}
	if err := f.RemoveRepository(ctx, proxy); err != nil {
		t.Error(err)
	}
}
