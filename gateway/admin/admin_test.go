package admin_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/admin"
	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/protocol/protocoltest"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
	"github.com/shoal-registry/shoal/verify/trust"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const self meta.NodeID = "server"

var ref = meta.RepoRef{Tenant: "acme", Name: "app"}

// rooted gives the cluster of the tests a trust root.
type rooted struct {
	*catalogtest.Metadata
	root *trust.Root
}

func (m rooted) Answer(ctx context.Context, f meta.Freshness, q raftmeta.Request) (meta.AsOf, error) {
	asOf, err := m.Metadata.Answer(ctx, f, q)
	if c, ok := q.Into().(*meta.Cluster); ok {
		c.Root = m.root.DER()
	}
	return asOf, err
}

// quorum is a Raft group in which others vote too, of whom some are dead.
type quorum struct{ others, dead []meta.NodeID }

func (*quorum) Leader() meta.NodeID     { return self }
func (q *quorum) Voters() []meta.NodeID { return append([]meta.NodeID{self}, q.others...) }
func (q *quorum) Survey(context.Context) []raftmeta.Surveyed {
	answers := []raftmeta.Surveyed{{ID: self, Answered: true, Level: state.Level + 1, Applied: 10}}
	for _, id := range q.others {
		answers = append(answers, raftmeta.Surveyed{ID: id, Answered: !slices.Contains(q.dead, id), Level: state.Level})
	}
	return answers
}

type fixture struct {
	*client.Client
	meta  rooted
	gw    *protocoltest.Gateway
	heard *heard
	votes *quorum
}

// as returns a client with another token.
func (f fixture) as(token string) *client.Client {
	c := *f.Client
	c.Token = token
	return &c
}

func start(t *testing.T) fixture {
	t.Helper()
	authority, err := trust.NewAuthority("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	hash := sha256.Sum256([]byte(protocoltest.AdminToken))
	m := rooted{catalogtest.NewMetadata(t, self, "eu", hash[:]), authority.Root()}
	known, votes := &heard{}, &quorum{}
	api, err := admin.New(admin.Config{
		Self: meta.Node{ID: self, Role: meta.RoleServer, Region: "eu"}, Version: "v0", Metadata: m, Doer: m, Quorum: votes,
		Formats: []string{"oci", "generic"}, Packages: map[string]protocol.Packages{"oci": images{}}, Waves: known,
		Backups:  frozenBackups{},
		Promoter: promoter(t, m),
		Reported: func() []client.ReportedPeer { return []client.ReportedPeer{{ID: "liar", By: 2, KeptAway: true}} },
		Nearest: func(_ context.Context, home meta.RegionName) meta.RegionName {
			if home == "eu" {
				return "us"
			}
			return ""
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	gw := protocoltest.Start(t, api, access.Records{Asker: m}, ref)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	c := &client.Client{Base: gw.URL + "/", Token: protocoltest.AdminToken, HTTP: &http.Client{Transport: transport}}
	for _, region := range []meta.RegionName{"us", "ap"} {
		if _, err := c.PutRegion(t.Context(), region, client.RegionChange{Primary: true}); err != nil {
			t.Fatal(err)
		}
	}
	return fixture{c, m, gw, known, votes}
}

// collect reads a whole listing.
func collect[T any](t *testing.T, seq iter.Seq2[T, error]) []T {
	t.Helper()
	var all []T
	for item, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, item)
	}
	return all
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestTenantsAndRepositories(t *testing.T) {
	f, ctx := start(t), t.Context()
	if got := must[meta.Tenant](t)(f.CreateTenant(ctx, "acme")); got.Name != "acme" || got.CreatedBy != "admin:bootstrap" || got.Created == 0 {
		t.Errorf("%+v", got)
	}
	must[meta.Tenant](t)(f.CreateTenant(ctx, "acme"))
	if _, err := f.CreateTenant(ctx, "ACME"); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("bad name: %v", err)
	}
	r := must[meta.Repository](t)(f.CreateRepository(ctx, client.NewRepository{Ref: ref, Format: "oci"}))
	if r.Kind != meta.KindHosted || r.Class != meta.ClassStandard || r.Visibility != meta.VisibilityPrivate || r.Home != "eu" || r.Second != "us" {
		t.Errorf("standards: %+v", r)
	}
	must[meta.Repository](t)(f.CreateRepository(ctx, client.NewRepository{Ref: ref, Format: "oci"}))
	for name, n := range map[string]client.NewRepository{
		"another format": {Ref: ref, Format: "generic"},
		"unknown format": {Ref: meta.RepoRef{Tenant: "acme", Name: "x"}, Format: "zip"},
		"unknown tenant": {Ref: meta.RepoRef{Tenant: "other", Name: "x"}, Format: "oci"},
		"a proxy":        {Ref: meta.RepoRef{Tenant: "acme", Name: "x"}, Format: "oci", Kind: meta.KindProxy},
		"unknown class":  {Ref: meta.RepoRef{Tenant: "acme", Name: "x"}, Format: "oci", Class: "gold"},
		"unknown region": {Ref: meta.RepoRef{Tenant: "acme", Name: "x"}, Format: "oci", Home: "mars"},
		"bad name":       {Ref: meta.RepoRef{Tenant: "acme", Name: "X"}, Format: "oci"},
	} {
		want := meta.ErrInvalid
		switch name {
		case "another format":
			want = meta.ErrExists
		case "unknown tenant", "unknown region":
			want = nil // either kind
		}
		_, err := f.CreateRepository(ctx, n)
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	public, class := meta.VisibilityPublic, meta.ClassCritical
	r = must[meta.Repository](t)(f.SetRepository(ctx, ref, client.RepositoryChange{Visibility: &public, Class: &class}))
	if r.Visibility != public || r.Class != class || r.Format != "oci" {
		t.Errorf("changed: %+v", r)
	}
	must[meta.Repository](t)(f.CreateRepository(ctx, client.NewRepository{Ref: meta.RepoRef{Tenant: "beta", Name: "files"}, Format: "generic", CreateTenant: true}))
	var names []string
	for _, r := range collect(t, f.Repositories(ctx, "")) {
		names = append(names, r.Ref.String())
	}
	if !slices.Equal(names, []string{"acme/app", "beta/files"}) || len(collect(t, f.Repositories(ctx, "beta"))) != 1 || len(collect(t, f.Tenants(ctx))) != 2 {
		t.Errorf("listed %v", names)
	}
	if err := f.RemoveRepository(ctx, ref); err != nil {
		t.Error(err)
	}
	if _, err := f.Repository(ctx, ref); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("removed: %v", err)
	}
	if err := f.RemoveRepository(ctx, ref); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
}

// A repository whose publications are more than one entry takes away is gone all the same.
func TestRemoveManyPublications(t *testing.T) {
	f, ctx := start(t), t.Context()
	must[meta.Repository](t)(f.CreateRepository(ctx, client.NewRepository{Ref: ref, Format: "oci", CreateTenant: true}))
	do := func(c state.Command) {
		t.Helper()
		if _, err := f.meta.Do(ctx, state.Origin{}, c); err != nil {
			t.Fatal(err)
		}
	}
	do(state.SetLevel{Level: state.SetsLevel})
	do(state.OpenSets{Repo: ref})
	do(state.LeaseSets{Repo: ref, Node: self, For: time.Minute})
	content := []byte("Packages")
	d := digest.FromBytes(content)
	do(state.LinkBlob{Repo: ref, Digest: d, Server: self, Blob: meta.Blob{Context: "acme", Digest: d, PlainBytes: 8, StoredBytes: 8, Root: digest.Sum(content)}})
	var files []meta.File
	for i := range meta.MaxSetFiles {
		files = append(files, meta.File{Path: fmt.Sprintf("%03d", i), Digest: d, Size: 8})
	}
	for i := range 10 {
		do(state.CommitSets{Repo: ref, Node: self, Set: &meta.Publication{Repo: ref, Name: fmt.Sprint("dist-", i), From: 1, Files: files}})
	}
	if err := f.RemoveRepository(ctx, ref); err != nil {
		t.Error(err)
	}
	if _, err := f.Repository(ctx, ref); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("removed: %v", err)
	}
}

// Who may what is the gate's; here, that the routes declare it rightly.
func TestRights(t *testing.T) {
	f, ctx := start(t), t.Context()
	other := meta.RepoRef{Tenant: "beta", Name: "files"}
	for _, r := range []meta.RepoRef{ref, other} {
		must[meta.Repository](t)(f.CreateRepository(ctx, client.NewRepository{Ref: r, Format: "oci", CreateTenant: true}))
	}
	reader, writer, nobody := f.as(f.gw.Reader), f.as(f.gw.Writer), f.as("")
	if got := collect(t, reader.Repositories(ctx, "")); len(got) != 1 || got[0].Ref != ref {
		t.Errorf("a reader is shown %+v", got)
	}
	must[meta.Repository](t)(reader.Repository(ctx, ref))
	if _, err := reader.Repository(ctx, other); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("another's repository: %v", err)
	}
	for name, err := range map[string]error{
		"create": second(writer.CreateRepository(ctx, client.NewRepository{Ref: ref, Format: "oci"})),
		"set":    second(writer.SetRepository(ctx, ref, client.RepositoryChange{})),
		"remove": writer.RemoveRepository(ctx, ref),
		"tenant": second(writer.CreateTenant(ctx, "x")),
		"token":  second(writer.CreateJoinToken(ctx, client.NewJoinToken{Role: meta.RoleAgent, Region: "eu"})),
		"status": second(writer.Status(ctx)),
		"node":   writer.RemoveNode(ctx, "x", false),
		"label":  reader.SetLabels(ctx, ref, "_", "", nil),
	} {
		if !errors.Is(err, meta.ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var refused *client.Error
	if _, err := nobody.Status(ctx); !errors.As(err, &refused) || refused.Status != 401 || !strings.Contains(err.Error(), "shoal login") {
		t.Errorf("nobody: %v", err)
	}
	if who := must[client.Principal](t)(f.Whoami(ctx)); who.Name != "admin:bootstrap" || !who.Admin {
		t.Errorf("%+v", who)
	}
	if who := must[client.Principal](t)(reader.Whoami(ctx)); who.Name != "user:reader" || who.Admin {
		t.Errorf("%+v", who)
	}
}

func second[T any](_ T, err error) error { return err }

// publish puts a version with an alias into ref.
func publish(t *testing.T, m raftmeta.Doer, pkg, tag, content string) meta.Version {
	t.Helper()
	d := digest.FromBytes([]byte(content))
	v := meta.Version{Repo: ref, Package: pkg, Name: string(d), Digest: d, Size: int64(len(content)), MediaType: "application/vnd.oci.image.manifest.v1+json", State: meta.StateClosed}
	blob := meta.Blob{Context: "acme", Digest: d, PlainBytes: v.Size, StoredBytes: v.Size, Root: digest.Sum([]byte(content))}
	_, err := m.Do(t.Context(), state.Origin{Principal: "user:ada"}, state.Publish{
		Version: v, Files: []meta.File{{Path: "manifest", Digest: d, Size: v.Size}},
		Blobs:   []state.LinkBlob{{Repo: ref, Digest: d, Blob: blob, Server: self}},
		Aliases: []string{tag},
	})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestWhatIsInARepository(t *testing.T) {
	f, ctx := start(t), t.Context()
	must[meta.Repository](t)(f.CreateRepository(ctx, client.NewRepository{Ref: ref, Format: "oci", CreateTenant: true}))
	const pkg = "team/web app" // a slash and a space
	first, last := publish(t, f.meta, pkg, "latest", "one"), publish(t, f.meta, pkg, "latest", "two")
	c := f.as(f.gw.Reader)
	if got := collect(t, c.Packages(ctx, ref, "team/")); len(got) != 1 || got[0].Name != pkg || got[0].Versions != 2 {
		t.Errorf("packages %+v", got)
	}
	if got := collect(t, c.Packages(ctx, ref, "none")); len(got) != 0 {
		t.Errorf("packages %+v", got)
	}
	if got := collect(t, c.Versions(ctx, ref, pkg)); len(got) != 2 {
		t.Errorf("versions %+v", got)
	}
	if got := must[meta.Version](t)(c.Version(ctx, ref, pkg, first.Name)); got.Digest != first.Digest {
		t.Errorf("version %+v", got)
	}
	if _, err := c.Version(ctx, ref, pkg, "none"); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("no version: %v", err)
	}
	if got := collect(t, c.Aliases(ctx, ref, pkg)); len(got) != 1 || got[0].Version != last.Name || got[0].MovedBy != "user:ada" {
		t.Errorf("aliases %+v", got)
	}
	history := collect(t, c.AliasHistory(ctx, ref, pkg, "latest"))
	if len(history) != 2 || history[0].Version != last.Name || history[1].Version != first.Name {
		t.Errorf("history %+v", history)
	}
	w := f.Client
	if err := w.SetLabels(ctx, ref, pkg, last.Name, meta.Labels{"team": "web"}); err != nil {
		t.Fatal(err)
	}
	if err := w.SetLabels(ctx, ref, pkg, "", meta.Labels{"tier": "1"}); err != nil {
		t.Fatal(err)
	}
	if got := must[meta.Version](t)(c.Version(ctx, ref, pkg, last.Name)); got.Labels["team"] != "web" {
		t.Errorf("labels %+v", got.Labels)
	}
	if got := collect(t, c.Packages(ctx, ref, "")); got[0].Labels["tier"] != "1" {
		t.Errorf("labels %+v", got[0].Labels)
	}
	r := must[client.VersionReplication](t)(c.Replication(ctx, ref, pkg, last.Name))
	if r.Blobs != 1 || !r.Complete || len(r.Regions) == 0 {
		t.Errorf("replication %+v", r)
	}
	if err := f.RemoveRepository(ctx, ref); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("removed with versions: %v", err)
	}
}

func TestPages(t *testing.T) {
	f, ctx := start(t), t.Context()
	for i := range 5 {
		must[meta.Tenant](t)(f.CreateTenant(ctx, meta.TenantName(fmt.Sprintf("t%d", i))))
	}
	var got []string
	after := ""
	for range 10 {
		status, h, body := f.gw.Do(t, protocoltest.Request{Method: "GET", Path: "/api/v1/tenants?limit=2&after=" + after}, protocoltest.AdminToken)
		var page client.Page[meta.Tenant]
		if err := json.Unmarshal(body, &page); err != nil || status != 200 || h.Get(protocol.HeaderMode) != "bounded" {
			t.Fatalf("%d %s %s", status, body, h.Get(protocol.HeaderMode))
		}
		for _, tenant := range page.Items {
			got = append(got, string(tenant.Name))
		}
		if after = page.Next; after == "" {
			break
		}
	}
	if strings.Join(got, " ") != "t0 t1 t2 t3 t4" {
		t.Errorf("%v", got)
	}
	for _, query := range []string{"limit=0", "limit=x", "limit=-1"} {
		if status, _, body := f.gw.Do(t, protocoltest.Request{Method: "GET", Path: "/api/v1/tenants?" + query}, protocoltest.AdminToken); status != 400 {
			t.Errorf("%s: %d %s", query, status, body)
		}
	}
}

func TestCluster(t *testing.T) {
	f, ctx := start(t), t.Context()
	s := must[client.Status](t)(f.Status(ctx))
	if s.Cluster != "test" || !s.QuorumKnown || s.Leader != self || s.Node != self || len(s.Regions) != 3 || len(s.Servers) != 1 || !s.Servers[0].Leader || !s.Servers[0].Voter || s.Index == 0 ||
		len(s.Reported) != 1 || s.Reported[0].By != 2 || !s.Reported[0].KeptAway {
		t.Errorf("%+v", s)
	}
	regions := must[[]client.Region](t)(f.Regions(ctx))
	i := slices.IndexFunc(regions, func(r client.Region) bool { return r.Name == "eu" })
	if len(regions) != 3 || regions[i].Servers != 1 || regions[i].Voters != 1 || regions[i].SafeToLose || !regions[(i+1)%3].SafeToLose {
		t.Errorf("%+v", regions)
	}
	root := must[client.Trust](t)(f.Trust(ctx))
	if hash := f.meta.root.Hash(); root.SHA256 != fmt.Sprintf("%x", hash) || !strings.Contains(root.Certificate, "BEGIN CERTIFICATE") {
		t.Errorf("%+v", root)
	}
	// A region of its own; the answering node itself.
	if _, err := f.RemoveRegion(ctx, "eu", client.RegionRemoval{}); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("own region: %v", err)
	}
	if err := f.RemoveNode(ctx, self, false); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("itself: %v", err)
	}
	admit(t, f, "agent-1", meta.RoleAgent, "ap")
	admit(t, f, "server-2", meta.RoleServer, "ap")
	if got := collect(t, f.Nodes(ctx, meta.RoleAgent, "")); len(got) != 1 || got[0].ID != "agent-1" {
		t.Errorf("agents %+v", got)
	}
	if _, err := f.CreateJoinToken(ctx, client.NewJoinToken{Role: "king", Region: "eu"}); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("role: %v", err)
	}
}

// admit lets a node in with a token of the API.
func admit(t *testing.T, f fixture, id meta.NodeID, role meta.Role, region meta.RegionName) {
	t.Helper()
	issued := must[client.JoinToken](t)(f.CreateJoinToken(t.Context(), client.NewJoinToken{Role: role, Region: region, TTLSeconds: 60}))
	token, err := trust.ParseJoinToken(issued.Token)
	if err != nil {
		t.Fatal(err)
	}
	if token.SecretHash() != issued.ID || token.RootHash != f.meta.root.Hash() || issued.Uses != 1 || time.Until(issued.Expires) > time.Minute {
		t.Errorf("%+v", issued)
	}
	key, err := trust.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.meta.Do(t.Context(), state.Origin{}, state.AdmitNode{TokenSecretHash: issued.ID, Node: meta.Node{
		ID: id, Role: role, Region: region, Gateway: "127.0.0.1:1", Swarm: []string{"/ip4/127.0.0.1/tcp/1"}, Raft: []string{"/ip4/127.0.0.1/tcp/2"}, Seal: key.Recipient(),
	}})
	if err != nil {
		t.Fatal(err)
	}
}

func TestJoinTokenBounds(t *testing.T) {
	f, ctx := start(t), t.Context()
	for name, n := range map[string]client.NewJoinToken{
		"too long":           {Role: meta.RoleAgent, Region: "eu", TTLSeconds: 1 << 62},
		"in the past":        {Role: meta.RoleAgent, Region: "eu", TTLSeconds: -1},
		"too many":           {Role: meta.RoleAgent, Region: "eu", Uses: 1 << 40},
		"patterns of server": {Role: meta.RoleServer, Region: "eu", Read: []string{"*"}},
		"bad pattern":        {Role: meta.RoleAgent, Region: "eu", Read: []string{"acme"}},
		"bad region":         {Role: meta.RoleAgent, Region: "EU"},
	} {
		if _, err := f.CreateJoinToken(ctx, n); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	got := must[client.JoinToken](t)(f.CreateJoinToken(ctx, client.NewJoinToken{Role: meta.RoleAgent, Region: "eu", Uses: 100, Read: []string{"acme/*"}}))
	if left := time.Until(got.Expires); got.Uses != 100 || left > 10*time.Minute || left < 9*time.Minute {
		t.Errorf("%+v", got)
	}
}

// Without a quorum an operator still reads, and is told how old it is; writes
// say that they can be tried again.
func TestNoQuorum(t *testing.T) {
	f, ctx := start(t), t.Context()
	must[meta.Tenant](t)(f.CreateTenant(ctx, "acme"))
	f.meta.Break(func(mode meta.Mode) error {
		if mode == meta.ModeLocal {
			return nil
		}
		return &meta.UnavailableError{Reason: "no_quorum", RetryAfter: time.Second}
	})
	must[client.Status](t)(f.Status(ctx))
	status, h, _ := f.gw.Do(t, protocoltest.Request{Method: "GET", Path: "/api/v1/tenants"}, protocoltest.AdminToken)
	if status != 200 || h.Get(protocol.HeaderMode) != "local" {
		t.Errorf("%d %s", status, h.Get(protocol.HeaderMode))
	}
	after := protocoltest.Request{Method: "GET", Path: "/api/v1/tenants", Header: http.Header{protocol.HeaderToken: {"1.1"}}}
	if status, h, _ := f.gw.Do(t, after, protocoltest.AdminToken); status != 503 || h.Get("Retry-After") == "" {
		t.Errorf("a read after a write: %d", status)
	}
	if _, err := f.CreateTenant(ctx, "beta"); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("write: %v", err)
	}
}

func TestErrorsAreJSON(t *testing.T) {
	f := start(t)
	for _, test := range []struct {
		method, path, body string
		status             int
		kind               string
	}{
		{"GET", "/api/v1/nothing", "", 404, "not_found"},
		{"PUT", "/api/v1/tenants", "", 405, "method_not_allowed"},
		{"POST", "/api/v1/tenants", "{", 400, "invalid"},
		{"POST", "/api/v1/tenants", `{"nmae":"x"}`, 400, "invalid"},
		{"POST", "/api/v1/tenants", `{"name":"` + strings.Repeat("x", 300<<10) + `"}`, 413, "too_large"},
		{"GET", "/api/v1/repositories/acme/none", "", 404, "not_found"},
		{"GET", "/api/v1/nodes?role=king", "", 400, "invalid"},
	} {
		status, _, body := f.gw.Do(t, protocoltest.Request{Method: test.method, Path: test.path, Body: []byte(test.body)}, protocoltest.AdminToken)
		var refusal client.ErrorBody
		if err := json.Unmarshal(body, &refusal); err != nil || status != test.status || refusal.Error.Kind != test.kind || refusal.Error.Message == "" {
			t.Errorf("%s %s: %d %s", test.method, test.path, status, body)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := admin.New(admin.Config{}); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("%v", err)
	}
}
