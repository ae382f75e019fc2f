package admin_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// images is a format of which a reference is `/package:tag` or `/package@version`.
type images struct{}

func (images) Format() string { return "oci" }

func (images) ParseReference(s string) (r protocol.Reference, _ error) {
	s, ok := strings.CutPrefix(s, "/")
	if !ok {
		return r, fmt.Errorf("%q: %w", s, meta.ErrInvalid)
	}
	if name, version, ok := strings.Cut(s, "@"); ok {
		return protocol.Reference{Package: name, Version: version}, nil
	}
	name, tag, _ := strings.Cut(s, ":")
	return protocol.Reference{Package: name, Alias: tag}, nil
}

func (images) Closure(context.Context, meta.Principal, meta.Version, string) ([]meta.Blob, error) {
	return nil, nil
}

// heard is what servers know of waves.
type heard struct {
	matching  map[meta.RegionName]int
	live      []meta.WaveProgress
	unreached []meta.NodeID
	left      []meta.NodeID
}

func (h *heard) Matching(*meta.Wave) map[meta.RegionName]int { return h.matching }

func (h *heard) LeftOut(*meta.Wave) []meta.NodeID { return h.left }

func (h *heard) Progress(context.Context, string) ([]meta.WaveProgress, []meta.NodeID) {
	return h.live, h.unreached
}

// waveHosts returns the first page's first error.
func (f fixture) waveHosts(ctx context.Context, id string, state meta.HostState) (h meta.WaveHost, err error) {
	for h, err = range f.WaveHosts(ctx, id, state) {
		break
	}
	return h, err
}

// agents puts hosts of a region into the roster.
func (f fixture) agents(t *testing.T, region meta.RegionName, ids ...meta.NodeID) {
	t.Helper()
	for _, id := range ids {
		issued := must[client.JoinToken](t)(f.CreateJoinToken(t.Context(), client.NewJoinToken{Role: meta.RoleAgent, Region: region}))
		if _, err := f.meta.Do(t.Context(), state.Origin{}, state.AdmitNode{TokenSecretHash: issued.ID, Node: meta.Node{ID: id, Role: meta.RoleAgent, Region: region}}); err != nil {
			t.Fatal(err)
		}
	}
}

func (f fixture) do(t *testing.T, c state.Command) {
	t.Helper()
	if _, err := f.meta.Do(t.Context(), state.Origin{}, c); err != nil {
		t.Fatal(err)
	}
}

func TestWaves(t *testing.T) {
	f, ctx := start(t), t.Context()
	must[meta.Repository](t)(f.CreateRepository(ctx, client.NewRepository{Ref: ref, Format: "oci", CreateTenant: true}))
	old, v := publish(t, f.meta, "api", "1", "one"), publish(t, f.meta, "api", "1", "two")
	f.heard.matching = map[meta.RegionName]int{"eu": 3, "us": 2}
	f.agents(t, "eu", "a1", "a2")
	f.agents(t, "us", "b1")

	writer, reader := f.as(f.gw.Writer), f.as(f.gw.Reader)
	begin := time.Now()
	w := must[meta.Wave](t)(writer.CreateWave(ctx, client.NewWave{
		Refs: []string{"acme/app/api:1", "acme/app/api@" + old.Name}, Name: "launch", InSeconds: 600, MaxParallel: 2, PinSeconds: 3600,
		Targets: []meta.WaveTarget{{Region: "eu"}, {Zone: "z1"}}, Abort: &meta.WaveAbort{Above: 5, Percent: true}, Platform: "linux/amd64",
	}))
	if w.Refs[0].Version != v.Name || w.Refs[0].Alias != "1" || w.Refs[1].Version != old.Name || w.Refs[1].Digest != old.Digest ||
		w.Expected != 5 || w.State != meta.WavePlanned || w.CreatedBy != "user:writer" {
		t.Errorf("planned %+v", w)
	}
	if in := w.NotBefore.Std().Sub(begin); in < 9*time.Minute || in > 11*time.Minute || w.Expires-w.NotBefore != meta.Time(time.Hour) {
		t.Errorf("it begins in %v and ends %v later", in, w.Expires-w.NotBefore)
	}
	now := must[meta.Wave](t)(f.CreateWave(ctx, client.NewWave{Refs: []string{"acme/app/api:1"}}))
	if now.Expires-now.NotBefore != meta.Time(24*time.Hour) || now.ID <= w.ID[:7] {
		t.Errorf("planned %+v", now)
	}
	f.do(t, state.AdmitHosts{Wave: now.ID, Hosts: []meta.NodeID{"a1", "a2", "b1"}})
	f.do(t, state.ReportHosts{Wave: now.ID, Hosts: []meta.WaveHost{
		{Node: "a1", State: meta.HostDone, Bytes: 100}, {Node: "b1", State: meta.HostFailed, Reason: "no space"},
	}})
	f.heard.live = []meta.WaveProgress{{Region: "eu", Waiting: 1, Fetching: 1, Bytes: 40, HostBytes: 100}}
	f.heard.unreached = []meta.NodeID{"s2"}
	s := must[client.WaveStatus](t)(reader.Wave(ctx, now.ID))
	if want := (client.WaveHosts{Targeted: 5, Waiting: 2, Fetching: 1, Done: 1, Failed: 1, Silent: 1}); s.Hosts != want {
		t.Errorf("hosts are %+v, want %+v", s.Hosts, want)
	}
	if s.Bytes != 140 || s.TotalBytes != 400 || len(s.Regions) != 2 || s.Regions[0].Bytes != 140 || s.Regions[0].TotalBytes != 300 ||
		s.Wave.Failures[0].Reason != "no space" || len(s.Unreached) != 1 || s.Over() {
		t.Errorf("status is %+v", s)
	}
	if got := collect(t, reader.WaveHosts(ctx, now.ID, meta.HostFailed)); len(got) != 1 || got[0].Node != "b1" {
		t.Errorf("failed are %+v", got)
	}
	if got := collect(t, reader.Waves(ctx, false)); len(got) != 2 || !slices.ContainsFunc(got, func(x meta.Wave) bool { return x.ID == w.ID }) {
		t.Errorf("waves are %+v", got)
	}
	f.heard.left = []meta.NodeID{"n1"}
	if s := must[client.WaveStatus](t)(reader.Wave(ctx, now.ID)); s.LeftOutHosts != 1 || !slices.Equal(s.LeftOut, f.heard.left) {
		t.Errorf("left out are %d: %v", s.LeftOutHosts, s.LeftOut)
	}
	f.heard.matching = nil // and now nobody else is there
	if _, err := writer.CreateWave(ctx, client.NewWave{Refs: []string{"acme/app/api:1"}}); !errors.Is(err, meta.ErrInvalid) || !strings.Contains(err.Error(), "n1") {
		t.Errorf("a wave for narrowed hosts only: %v", err)
	}
	if got := must[meta.Wave](t)(writer.CancelWave(ctx, now.ID, "")); got.State != meta.WaveCancelled || got.Reason != "by user:writer" {
		t.Errorf("cancelled: %+v", got)
	}
	s = must[client.WaveStatus](t)(reader.Wave(ctx, now.ID))
	if want := (client.WaveHosts{Targeted: 3, Done: 1, Failed: 1, Lost: 1}); s.Hosts != want || !s.Over() {
		t.Errorf("over, hosts are %+v, want %+v", s.Hosts, want)
	}
	if got := collect(t, reader.Waves(ctx, true)); len(got) != 1 || got[0].ID != w.ID {
		t.Errorf("open are %+v", got)
	}
}

// Who may push to all that a wave names may plan and cancel it; who may read all of
// it sees it; to others it is not there.
func TestWaveRights(t *testing.T) {
	f, ctx := start(t), t.Context()
	other := meta.RepoRef{Tenant: "beta", Name: "files"}
	for _, r := range []meta.RepoRef{ref, other} {
		must[meta.Repository](t)(f.CreateRepository(ctx, client.NewRepository{Ref: r, Format: "oci", CreateTenant: true}))
	}
	publish(t, f.meta, "api", "1", "one")
	plan := client.NewWave{Refs: []string{"acme/app/api:1"}}
	w := must[meta.Wave](t)(f.CreateWave(ctx, plan))
	reader, writer, stranger := f.as(f.gw.Reader), f.as(f.gw.Writer), f.as(f.gw.Stranger)
	for name, c := range map[string]struct{ got, want error }{
		"create, reader":           {second(reader.CreateWave(ctx, plan)), meta.ErrDenied},
		"create, stranger":         {second(stranger.CreateWave(ctx, plan)), meta.ErrNotFound},
		"create, of another's too": {second(writer.CreateWave(ctx, client.NewWave{Refs: []string{"acme/app/api:1", "beta/files/x:1"}})), meta.ErrNotFound},
		"cancel, reader":           {second(reader.CancelWave(ctx, w.ID, "")), meta.ErrDenied},
		"cancel, stranger":         {second(stranger.CancelWave(ctx, w.ID, "")), meta.ErrNotFound},
		"status, stranger":         {second(stranger.Wave(ctx, w.ID)), meta.ErrNotFound},
		"unknown tag":              {second(f.CreateWave(ctx, client.NewWave{Refs: []string{"acme/app/api:2"}})), meta.ErrNotFound},
		"unknown repository":       {second(f.CreateWave(ctx, client.NewWave{Refs: []string{"acme/none/api:2"}})), meta.ErrNotFound},
		"unknown wave":             {second(f.Wave(ctx, "none")), meta.ErrNotFound},
		"no references":            {second(f.CreateWave(ctx, client.NewWave{})), meta.ErrInvalid},
		"no reference":             {second(f.CreateWave(ctx, client.NewWave{Refs: []string{"acme"}})), meta.ErrInvalid},
		"no package":               {second(f.CreateWave(ctx, client.NewWave{Refs: []string{"acme/app"}})), meta.ErrInvalid},
		"unknown region":           {second(f.CreateWave(ctx, client.NewWave{Refs: plan.Refs, Targets: []meta.WaveTarget{{Region: "mars"}}})), meta.ErrInvalid},
		"too long":                 {second(f.CreateWave(ctx, client.NewWave{Refs: plan.Refs, PinSeconds: 1 << 40})), meta.ErrInvalid},
		"no such state":            {second(f.waveHosts(ctx, w.ID, "asleep")), meta.ErrInvalid},
		"waiting has no records":   {second(f.waveHosts(ctx, w.ID, meta.HostWaiting)), meta.ErrInvalid},
		"too short":                {second(f.CreateWave(ctx, client.NewWave{Refs: plan.Refs, PinSeconds: 1})), meta.ErrInvalid},
	} {
		if !errors.Is(c.got, c.want) {
			t.Errorf("%s: %v, want %v", name, c.got, c.want)
		}
	}
	if _, err := f.CreateWave(ctx, client.NewWave{Refs: []string{"acme/app/api@9"}}); err == nil || !strings.Contains(err.Error(), "reference acme/app/api@9") {
		t.Errorf("an unknown version: %v", err)
	}
	for _, err := range f.as("").Waves(ctx, false) {
		var refused *client.Error
		if !errors.As(err, &refused) || refused.Status != 401 {
			t.Errorf("nobody: %v", err)
		}
	}
	if status, _, body := f.gw.Do(t, get("/api/v1/waves?limit=1"), f.gw.Stranger); status != 200 || strings.Contains(string(body), "next") {
		t.Errorf("a stranger is told where waves go on: %d %s", status, body)
	}
	if got := collect(t, stranger.Waves(ctx, false)); len(got) != 0 {
		t.Errorf("a stranger is shown %+v", got)
	}
	must[meta.Wave](t)(writer.CancelWave(ctx, w.ID, "enough"))
	if _, err := writer.CancelWave(ctx, w.ID, "again"); err != nil {
		t.Errorf("cancelled twice: %v", err)
	}
}
