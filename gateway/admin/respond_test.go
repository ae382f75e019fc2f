package admin_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/gateway/credential"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// person makes an account with a role, and a token of it.
func (f fixture) person(t *testing.T, name, role, pattern string) (*client.Client, string) {
	t.Helper()
	text, token := credential.Mint()
	do := func(c state.Command) {
		t.Helper()
		if _, err := f.meta.Do(t.Context(), state.Origin{Principal: meta.AdminBootstrap}, c); err != nil {
			t.Fatal(err)
		}
	}
	do(state.CreateAccount{Name: name})
	if role != "" {
		do(state.AddBinding{Binding: meta.Binding{Principal: name, Role: role, Repository: pattern}})
	}
	do(state.CreateCredential{Credential: meta.Credential{ID: token.ID, Hash: token.Hash, Principal: name, Kind: meta.CredentialToken}, Life: time.Hour})
	return f.as(string(text)), token.ID
}

func (f fixture) publish(t *testing.T, principal, token, content string) meta.VersionRef {
	t.Helper()
	d := digest.FromBytes([]byte(content))
	_, err := f.meta.Do(t.Context(), state.Origin{Principal: principal, TokenID: token}, state.Publish{
		Version: meta.Version{Repo: ref, Package: "api", Name: string(d), Digest: d, State: meta.StateClosed, Size: int64(len(content))},
		Files:   []meta.File{{Path: "manifest.json", Digest: d, Size: int64(len(content))}},
		Blobs: []state.LinkBlob{{Repo: ref, Digest: d, Server: self, Blob: meta.Blob{
			Context: "acme", Digest: d, PlainBytes: int64(len(content)), StoredBytes: int64(len(content)), Root: digest.Sum([]byte(content)),
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return meta.VersionRef{Repo: ref, Package: "api", Version: string(d)}
}

// TestIncident: a tenant's administrator contains a token of one of its robots with one
// call, and what that token made; another tenant's sees nothing of it.
func TestIncident(t *testing.T) {
	f := start(t)
	ctx := t.Context()
	for _, tenant := range []meta.TenantName{"acme", "other"} {
		if _, err := f.CreateTenant(ctx, tenant); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.CreateRepository(ctx, client.NewRepository{Ref: ref, Format: "oci", Home: "eu"}); err != nil {
		t.Fatal(err)
	}
	tenantAdmin, _ := f.person(t, "user:ada", "tenant-admin", "acme/*")
	stranger, _ := f.person(t, "user:eve", "tenant-admin", "other/*")
	curator, _ := f.person(t, "user:bob", "curator", "acme/*")
	robot, stolen := f.person(t, "robot:acme/ci", "tenant-admin", "acme/*")
	bad := []meta.VersionRef{f.publish(t, "robot:acme/ci", stolen, "bad 1"), f.publish(t, "robot:acme/ci", stolen, "bad 2")}
	honest := f.publish(t, "user:ada", "another", "honest")

	// The thief makes a token, an account and a binding for later.
	made, token := credential.Mint()
	as := state.Origin{Principal: "robot:acme/ci", TokenID: stolen}
	for _, c := range []state.Command{
		state.CreateCredential{Credential: meta.Credential{ID: token.ID, Hash: token.Hash, Principal: "robot:acme/ci", Kind: meta.CredentialToken}, Life: time.Hour},
		state.CreateAccount{Name: "robot:acme/door"},
		state.AddBinding{Binding: meta.Binding{Principal: "robot:acme/door", Role: "publisher", Repository: "acme/*", Tenant: "acme"}},
	} {
		if _, err := f.meta.Do(ctx, as, c); err != nil {
			t.Fatal(err)
		}
	}
	later := f.publish(t, "robot:acme/ci", token.ID, "bad 3, by the child")

	for name, c := range map[string]*client.Client{"another tenant": stranger, "a curator": curator, "the robot's child": f.as("nothing")} {
		if _, err := c.OpenCompromise(ctx, client.NewCompromise{Token: stolen, Reason: "mine"}); err == nil {
			t.Errorf("%s opens it", name)
		}
	}
	m, err := tenantAdmin.OpenCompromise(ctx, client.NewCompromise{Token: stolen, Reason: "the runner was taken over"})
	if err != nil {
		t.Fatal(err)
	}
	if m.State == meta.CompromiseContaining || m.Quarantined != 3 || m.Revoked != 3 || m.OpenedBy != "user:ada" {
		t.Errorf("opened as %+v", m)
	}
	for _, text := range []string{robot.Token, string(made)} {
		if _, err := f.as(text).Whoami(ctx); err == nil {
			t.Error("a token that is contained still counts")
		}
	}
	for _, v := range append(slices.Clone(bad), later) {
		got, err := tenantAdmin.Version(ctx, v.Repo, v.Package, v.Version)
		if err != nil || got.Quarantine == nil || got.Quarantine.Compromise != m.ID {
			t.Errorf("%s is %+v: %v", v, got.Quarantine, err)
		}
	}
	if got, err := tenantAdmin.Version(ctx, honest.Repo, honest.Package, honest.Version); err != nil || got.Quarantine != nil {
		t.Errorf("the honest one is %+v: %v", got.Quarantine, err)
	}
	var items []meta.Finding
	for i, err := range tenantAdmin.Findings(ctx, m.ID) {
		if err != nil {
			t.Fatal(err)
		}
		items = append(items, i)
	}
	outcomes := map[meta.ActKind]meta.Outcome{}
	for _, i := range items {
		outcomes[i.Act.Kind] = i.Outcome
		if i.Act.Audit == 0 {
			t.Errorf("finding %+v has no number in the audit log", i)
		}
	}
	want := map[meta.ActKind]meta.Outcome{
		meta.ActPublished: meta.OutcomeQuarantined, meta.ActCredential: meta.OutcomeRevoked,
		meta.ActAccount: meta.OutcomeDisabled, meta.ActBinding: meta.OutcomeRemoved,
	}
	if len(items) != 6 || len(outcomes) != len(want) {
		t.Errorf("%d findings, %v", len(items), outcomes)
	}
	for kind, outcome := range want {
		if outcomes[kind] != outcome {
			t.Errorf("%s is %s, want %s", kind, outcomes[kind], outcome)
		}
	}
	if _, err := stranger.Compromise(ctx, m.ID); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("another tenant's administrator sees it: %v", err)
	}
	for c, err := range stranger.Compromises(ctx) {
		t.Errorf("another tenant's administrator is shown %+v, %v", c, err)
	}

	if _, err := curator.ReleaseVersion(ctx, bad[0], "built again, byte for byte"); err != nil {
		t.Error(err)
	}
	if _, err := curator.QuarantineVersion(ctx, honest, ""); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("without a reason: %v", err)
	}
	if _, err := curator.QuarantineVersion(ctx, honest, "behaves oddly"); err != nil {
		t.Error(err)
	}
	if _, err := stranger.ReleaseVersion(ctx, honest, "x"); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("another tenant's administrator releases: %v", err)
	}
	if m, err = tenantAdmin.Compromise(ctx, m.ID); err != nil || m.Released != 1 {
		t.Errorf("it is %+v: %v", m, err)
	}
	if _, err := f.OpenCompromise(ctx, client.NewCompromise{Principal: meta.AdminBootstrap, Reason: "x"}); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("the bootstrap administrator: %v", err)
	}
}

// TestBreakGlass: an operator gets for a while what it cannot do, by another's approval,
// and everything it does with it is marked.
func TestBreakGlass(t *testing.T) {
	f := start(t)
	ctx := t.Context()
	for _, tenant := range []meta.TenantName{"acme", "other"} {
		if _, err := f.CreateTenant(ctx, tenant); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.CreateRepository(ctx, client.NewRepository{Ref: ref, Format: "oci", Home: "eu"}); err != nil {
		t.Fatal(err)
	}
	ada, _ := f.person(t, "user:ada", "operator", "*")
	bob, _ := f.person(t, "user:bob", "operator", "*")
	reader, _ := f.person(t, "user:r", "reader", "acme/*")
	robot, _ := f.person(t, "robot:acme/ci", "operator", "*")
	version := f.publish(t, "user:x", "t", "content")
	ask := client.NewElevation{Role: "curator", Scope: "acme/*", Reason: "prod is down", TTLSeconds: 600}

	if _, err := ada.QuarantineVersion(ctx, version, "x"); err == nil {
		t.Error("an operator quarantines without an elevation")
	}
	if _, err := reader.RequestElevation(ctx, ask); err == nil {
		t.Error("a reader may ask")
	}
	if _, err := robot.RequestElevation(ctx, ask); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("a robot asks: %v", err)
	}
	for _, bad := range []client.NewElevation{
		{Role: "curator", Scope: "acme/*", Reason: "", TTLSeconds: 600},
		{Role: "curator", Scope: "acme/*", Reason: "x", TTLSeconds: 3601},
		{Role: "curator", Scope: "acme/*", Reason: "x", TTLSeconds: 0},
		{Role: "curator", Scope: "nonsense", Reason: "x", TTLSeconds: 60},
	} {
		if _, err := ada.RequestElevation(ctx, bad); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	e, err := ada.RequestElevation(ctx, ask)
	if err != nil || e.State != meta.ElevationRequested || e.Need != 1 {
		t.Fatalf("asked for %+v: %v", e, err)
	}
	if _, err := ada.DecideElevation(ctx, e.ID, "approve", ""); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("who asks approves: %v", err)
	}
	if _, err := reader.DecideElevation(ctx, e.ID, "approve", ""); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("a reader approves: %v", err)
	}
	if e, err = bob.DecideElevation(ctx, e.ID, "approve", "go"); err != nil || e.State != meta.ElevationActive {
		t.Fatalf("approved as %+v: %v", e, err)
	}
	if s, err := bob.Status(ctx); err != nil || len(s.Elevations) != 1 || s.Elevations[0].Principal != "user:ada" {
		t.Errorf("status shows %+v: %v", s.Elevations, err)
	}
	v, err := ada.QuarantineVersion(ctx, version, "prod is down because of it")
	if err != nil || v.Quarantine == nil {
		t.Fatalf("under the elevation: %+v, %v", v.Quarantine, err)
	}
	// It is no more than was asked for.
	if err := ada.RemoveRepository(ctx, ref); err == nil {
		t.Error("a curator removes a repository")
	}
	if _, err := ada.RequestElevation(ctx, client.NewElevation{Role: "admin", Scope: "*", Reason: "more", TTLSeconds: 600}); err != nil {
		t.Errorf("with its own right: %v", err)
	}
	var top meta.Elevation
	for x, err := range bob.Elevations(ctx, "open") {
		if err != nil {
			t.Fatal(err)
		}
		if x.Role == "admin" {
			top = x
		}
	}
	if _, err := bob.DecideElevation(ctx, top.ID, "approve", ""); err == nil {
		t.Error("an operator makes an administrator of another")
	}
	if x, err := f.DecideElevation(ctx, top.ID, "refuse", "not for this"); err != nil || x.State != meta.ElevationRefused {
		t.Errorf("refused as %+v: %v", x, err)
	}
	done, _, err := raftmeta.Ask(ctx, f.meta, meta.Local, state.ListActs{Principal: "user:ada"})
	marked := 0
	for _, a := range done.Acts {
		if a.Elevation == e.ID && strings.Contains(a.Name, "QuarantineVersion") {
			marked++
		}
	}
	if err != nil || marked != 1 {
		t.Errorf("acts of ada are %+v: %v", done.Acts, err)
	}
	if e, err = ada.DecideElevation(ctx, e.ID, "end", ""); err != nil || e.State != meta.ElevationEnded || e.Acts == 0 {
		t.Errorf("ended as %+v: %v", e, err)
	}
	if _, err := ada.ReleaseVersion(ctx, version, "x"); err == nil {
		t.Error("it goes on after its end")
	}
	if _, err := ada.DecideElevation(ctx, e.ID, "review", "fine"); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("the holder reviews: %v", err)
	}
	if e, err = bob.DecideElevation(ctx, e.ID, "review", "one version, as asked"); err != nil || e.Review == nil {
		t.Errorf("reviewed as %+v: %v", e, err)
	}

	if p, err := f.SetElevationPolicy(ctx, client.ElevationPolicy{Approvers: 2, MaxTTLSeconds: 300}); err != nil || p.Approvers != 2 {
		t.Errorf("the policy is %+v: %v", p, err)
	}
	if _, err := ada.SetElevationPolicy(ctx, client.ElevationPolicy{Approvers: 1, MaxTTLSeconds: 300}); err == nil {
		t.Error("an operator sets the policy")
	}
	if _, err := ada.RequestElevation(ctx, ask); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("longer than the policy allows: %v", err)
	}
	ask.TTLSeconds = 300
	if e, err = ada.RequestElevation(ctx, ask); err != nil {
		t.Fatal(err)
	}
	if e, err = bob.DecideElevation(ctx, e.ID, "approve", ""); err != nil || e.State != meta.ElevationRequested {
		t.Errorf("with one of two it is %+v: %v", e, err)
	}
	if _, err = bob.DecideElevation(ctx, e.ID, "approve", ""); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("the same person again: %v", err)
	}
	if e, err = f.DecideElevation(ctx, e.ID, "approve", ""); err != nil || e.State != meta.ElevationActive {
		t.Errorf("with two it is %+v: %v", e, err)
	}
}
