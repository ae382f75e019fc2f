package remote_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/metatest"
	"github.com/shoal-registry/shoal/raftmeta/remote"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// A narrowed node is told of its tenants and of what is public; of the rest it hears the
// same, to the letter, whether it is there or not, and no question is open to it by
// oversight.
func TestNarrowedNodesAreToldOfTheirTenants(t *testing.T) {
	s := metatest.New(t)
	for _, ref := range []meta.RepoRef{{Tenant: "acme", Name: "app"}, {Tenant: "globex", Name: "app"}, {Tenant: "globex", Name: "open"}} {
		_, _ = s.Do(t.Context(), state.Origin{}, state.CreateTenant{Name: ref.Tenant})
		visibility := meta.VisibilityPrivate
		if ref.Name == "open" {
			visibility = meta.VisibilityPublic
		}
		s.Must(state.CreateRepository{Repository: meta.Repository{
			Ref: ref, Format: "generic", Kind: meta.KindHosted, Class: meta.ClassStandard, Home: "eu", Visibility: visibility,
		}})
	}
	path, handler := remote.Handler(s, s)
	mux := http.NewServeMux()
	mux.Handle(path, handler(meta.Node{ID: "a", Role: meta.RoleAgent, Tenants: []string{"acme"}}))
	server := httptest.NewUnstartedServer(mux)
	base, cancel := context.WithCancel(context.Background())
	server.Config.BaseContext = func(net.Listener) context.Context { return base }
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(func() { cancel(); server.Close() })
	c := client(t, server)

	get := func(tenant meta.TenantName, name string) error {
		_, _, err := raftmeta.Ask(t.Context(), c, meta.Bounded, state.GetRepository{Ref: meta.RepoRef{Tenant: tenant, Name: name}})
		return err
	}
	if err := errors.Join(get("acme", "app"), get("globex", "open")); err != nil {
		t.Error(err)
	}
	// Without this its gateway would know no quota of its tenant.
	used := func(tenant meta.TenantName) error {
		_, _, err := raftmeta.Ask(t.Context(), c, meta.Bounded, state.GetUsage{Tenant: tenant})
		return err
	}
	if err := used("acme"); err != nil {
		t.Error(err)
	}
	if err := used("globex"); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("another tenant's usage: %v", err)
	}
	forbidden := get("globex", "app")
	s.Must(state.RemoveRepository{Ref: meta.RepoRef{Tenant: "globex", Name: "app"}})
	absent := get("globex", "app")
	if !errors.Is(forbidden, meta.ErrNotFound) || absent == nil || forbidden.Error() != absent.Error() {
		t.Errorf("forbidden: %v, absent: %v", forbidden, absent)
	}
	open := map[string]bool{
		"GetCluster": true, "GetLevel": true, "GetNode": true, "ListNodes": true, "ListRegions": true, "RegionHealth": true, "GetAccessHead": true,
		"GetTrust": true, // or it would not follow a new root
		// What it watches the audit log by: sizes and hashes.
		"GetAuditLog": true, "ProveContinuation": true,
	}
	for name := range state.Questions {
		q, err := state.DecodeQuestion(name, codec.Encode(struct{}{}))
		if err != nil {
			t.Fatal(err)
		}
		if _, err = c.Answer(t.Context(), meta.Bounded, q); errors.Is(err, meta.ErrDenied) == open[name] {
			t.Errorf("%s without a tenant: %v", name, err)
		}
	}
	heard := map[feed.Kind]int{}
	for change, err := range c.Watch(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if heard[change.Kind]++; change.Repo.Tenant == "globex" || change.Name == "globex" {
			t.Errorf("a narrowed node hears of %+v", change)
		}
		if change.Kind == feed.KindProgress && change.Index > 0 {
			break
		}
	}
	if heard[feed.KindRepository] == 0 {
		t.Error("it hears nothing of its own tenant")
	}
}

// An agent that was taken over must not find out who has which credential, and by that
// what everybody may: its gateway asks for what somebody showed there.
func TestAgentsListNoCredentials(t *testing.T) {
	s := metatest.New(t)
	path, handler := remote.Handler(s, s)
	mux := http.NewServeMux()
	mux.Handle(path, handler(meta.Node{ID: "a", Role: meta.RoleAgent}))
	server := httptest.NewUnstartedServer(mux)
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	c := client(t, server)
	for _, name := range []string{"GetCredential", "ListCredentials", "CredentialsEnded", "GetIssuer", "ListIssuers", "IssuersAt", "ListAccounts", "ListBindings"} {
		q, err := state.DecodeQuestion(name, codec.Encode(struct{}{}))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Answer(t.Context(), meta.Bounded, q); !errors.Is(err, meta.ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
