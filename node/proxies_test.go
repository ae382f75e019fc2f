package node

import (
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/trust"
)

// TestSecretsReachNewServers: what was sealed before a server joined is sealed to it by
// one of those that can open it, and by one only; a secret that is set anew is not mixed
// with the old one.
func TestSecretsReachNewServers(t *testing.T) {
	m := catalogtest.NewMetadata(t, "a", "eu", nil)
	keys := map[meta.NodeID]*trust.Key{}
	do := func(c state.Command) {
		t.Helper()
		if _, err := m.Do(t.Context(), state.Origin{Principal: "user:ada"}, c); err != nil {
			t.Fatal(err)
		}
	}
	join := func(id meta.NodeID) {
		t.Helper()
		key, err := trust.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		keys[id] = key
		do(state.CreateJoinToken{Token: meta.JoinToken{ID: string(id), Role: meta.RoleServer, Region: "eu", Uses: 1, Expires: meta.TimeOf(time.Now().Add(time.Hour))}})
		do(state.AdmitNode{TokenSecretHash: string(id), Node: meta.Node{
			ID: id, Role: meta.RoleServer, Region: "eu", Swarm: []string{"/ip4/127.0.0.1/tcp/7072"}, Gateway: "127.0.0.1:5001", Seal: key.Recipient(),
		}})
	}
	away := map[meta.NodeID]bool{}
	at := func(id meta.NodeID) sealer {
		return sealer{
			sealed: sealed{metadata: m, self: id, key: keys[id]}, doer: m, log: slog.New(slog.DiscardHandler),
			serves: func(id meta.NodeID) bool { return !away[id] },
		}
	}
	repo := meta.Repository{
		Ref: meta.RepoRef{Tenant: "acme", Name: "cache"}, Format: "npm", Kind: meta.KindProxy, Class: meta.ClassStandard, Home: "eu", Visibility: meta.VisibilityPrivate,
		Upstream: &meta.Upstream{URL: "https://registry.example", Credential: meta.SealedUpstream},
	}
	do(state.CreateRepository{Repository: repo, CreateTenant: true})
	set := func(password trust.Secret) {
		t.Helper()
		seals, err := upstream.SealCredential(t.Context(), m, repo.Upstream, upstream.Credential{User: "ada", Secret: password})
		if err != nil {
			t.Fatal(err)
		}
		// As if the server that the bench bootstraps had none: its key is not the test's.
		delete(seals, "a")
		do(state.PutSealed{Sealed: meta.Sealed{Repo: repo.Ref, Name: meta.SealedUpstream, Seals: seals}})
	}
	expect := func(id meta.NodeID, password string) {
		t.Helper()
		c, err := at(id).credential(t.Context(), &repo)
		if err != nil || c.Secret.Reveal() != password {
			t.Errorf("%s opens %v, %v", id, c.User, err)
		}
	}
	join("b")
	set("first")
	expect("b", "first")
	join("c")
	join("d")
	if _, err := at("c").credential(t.Context(), &repo); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("a server that cannot open it yet: %v", err)
	}
	// Those that cannot open it, or are not the first that can, leave it alone.
	before := version(t, m, repo.Ref)
	for _, id := range []meta.NodeID{"c", "d"} {
		if err := at(id).pass(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if now := version(t, m, repo.Ref); len(now.Seals) != len(before.Seals) {
		t.Errorf("%d seals", len(now.Seals))
	}
	if err := at("b").pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now := version(t, m, repo.Ref); len(now.Seals) != 4 || now.Version != before.Version {
		t.Errorf("%d seals of version %d", len(now.Seals), now.Version)
	}
	// While the first are away the next one does it.
	away["a"], away["b"] = true, true
	join("e")
	for _, id := range []meta.NodeID{"d", "c"} {
		if err := at(id).pass(t.Context()); err != nil {
			t.Error(err)
		}
	}
	for _, id := range []meta.NodeID{"b", "c", "d", "e"} {
		expect(id, "first")
	}
	set("second")
	for _, id := range []meta.NodeID{"b", "c", "d"} {
		expect(id, "second")
	}
	repo.Upstream.URL = "https://evil.example"
	if c, err := at("b").credential(t.Context(), &repo); !errors.Is(err, meta.ErrDenied) || c.Secret != "" {
		t.Errorf("another host: %v", err)
	}
}

func version(t *testing.T, m raftmeta.Asker, repo meta.RepoRef) meta.Sealed {
	t.Helper()
	s, _, err := raftmeta.Ask(t.Context(), m, meta.Local, state.GetSealed{Repo: repo, Name: meta.SealedUpstream})
	if err != nil {
		t.Fatal(err)
	}
	return s
}
