package node

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/metatest"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// responding is a cluster's metadata with servers that respond, one of which leads.
type responding struct {
	*metatest.Store
	leader atomic.Pointer[meta.NodeID]
	bytes  map[digest.Digest][]byte // what reading a blob gives
}

func newResponding(t *testing.T) *responding {
	r := &responding{Store: metatest.New(t), bytes: map[digest.Digest][]byte{}}
	r.leads("s1")
	r.Must(state.CreateRepository{CreateTenant: true, Repository: meta.Repository{
		Ref: meta.RepoRef{Tenant: "acme", Name: "app"}, Format: "oci", Kind: meta.KindHosted, Class: meta.ClassStandard, Home: "eu", Visibility: meta.VisibilityPrivate,
	}})
	return r
}

// leads makes a server the leader.
func (r *responding) leads(id meta.NodeID) { r.leader.Store(&id) }

// server returns what a server does, and its log.
func (r *responding) server(id meta.NodeID) (*responder, *bytes.Buffer) {
	var log bytes.Buffer
	s := &responder{
		metadata: r, doer: r, self: id, every: time.Second, log: slog.New(slog.NewTextHandler(&log, nil)),
		leads: func() bool { return *r.leader.Load() == id },
		open: func(_ context.Context, b meta.Blob) (io.ReadCloser, error) {
			body, ok := r.bytes[b.Digest]
			if !ok {
				return nil, fmt.Errorf("no copy is in reach: %w", meta.ErrUnavailable)
			}
			return io.NopCloser(bytes.NewReader(body)), nil
		},
	}
	s.measure(prometheus.NewRegistry())
	return s, &log
}

func (r *responding) publish(t *testing.T, principal, token, content string) {
	t.Helper()
	ref := meta.RepoRef{Tenant: "acme", Name: "app"}
	d := digest.FromBytes([]byte(content))
	r.bytes[d] = []byte(content)
	_, err := r.Do(t.Context(), state.Origin{Principal: principal, TokenID: token}, state.Publish{
		Version: meta.Version{Repo: ref, Package: "api", Name: string(d), Digest: d, State: meta.StateClosed, Size: int64(len(content))},
		Files:   []meta.File{{Path: "manifest.json", Digest: d, Size: int64(len(content))}},
		Blobs: []state.LinkBlob{{Repo: ref, Digest: d, Server: "s1", Blob: meta.Blob{
			Context: "acme", Digest: d, PlainBytes: int64(len(content)), StoredBytes: int64(len(content)), Root: digest.Sum([]byte(content)),
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
}

func askOf[A any](t *testing.T, r *responding, q state.Question[A]) A {
	t.Helper()
	a, _, err := raftmeta.Ask(t.Context(), r, meta.Local, q)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestRespondersContain: one leader begins, another goes on, and each file is read again
// once; what has other bytes, or cannot be read, is said.
func TestRespondersContain(t *testing.T) {
	r := newResponding(t)
	const many = 2*advanceLimit + 7
	for i := range many {
		r.publish(t, "robot:acme/ci", "stolen", fmt.Sprint("stolen ", i))
		if i%10 == 0 {
			r.publish(t, "robot:acme/ci", "sound", fmt.Sprint("sound ", i))
		}
	}
	other, lost := digest.FromBytes([]byte("stolen 5")), digest.FromBytes([]byte("stolen 6"))
	r.bytes[other] = []byte("tampered")
	delete(r.bytes, lost)
	r.Must(state.OpenCompromise{ID: "c", Credential: "stolen", Reason: "stolen"})

	first, _ := r.server("s1")
	second, log := r.server("s2")
	steps := 0
	first.leads = func() bool { steps++; return steps < 4 } // and loses it in the middle
	if err := first.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := askOf(t, r, state.GetCompromise{ID: "c"})
	if c.State != meta.CompromiseContaining || c.Findings == 0 || c.Findings >= many {
		t.Fatalf("the first leader came to %+v", c)
	}
	if err := second.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now := askOf(t, r, state.GetCompromise{ID: "c"}); now.Revision != c.Revision {
		t.Errorf("a server that does not lead came to %+v", now)
	}
	r.leads("s2")
	for range 2 { // the second time there is nothing to do
		if err := second.look(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := second.recheckAll(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	c = askOf(t, r, state.GetCompromise{ID: "c"})
	if c.State != meta.CompromiseContained || c.Quarantined != many || c.Rechecked != many || c.Bad != 2 || c.Findings != many {
		t.Errorf("contained as %+v", c)
	}
	if text := log.String(); strings.Count(text, "a compromise is contained") != 1 {
		t.Errorf("the log says %s", text)
	}
	for _, f := range askOf(t, r, state.ListFindings{ID: "c"}) {
		bad := f.Act.Name == string(other) || f.Act.Name == string(lost)
		if f.Check == nil || f.Check.Node != "s2" || f.Check.Files != 1 || (len(f.Check.Bad) > 0) != bad {
			t.Errorf("finding %+v was read again as %+v", f, f.Check)
		}
	}
}

// TestElevationsEndByThemselves: by the clock of whoever leads, also when the leader
// that granted one is gone; all servers say so.
func TestElevationsEndByThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newResponding(t)
		do := func(principal string, c state.Command) {
			t.Helper()
			if _, err := r.Do(t.Context(), state.Origin{Principal: principal}, c); err != nil {
				t.Fatal(err)
			}
		}
		do("user:bob", state.CreateAccount{Name: "user:ada"})
		do("user:ada", state.RequestElevation{ID: "e", Role: "curator", Scope: "acme/*", Reason: "prod is down", TTL: 10 * time.Minute})
		do("user:ada", state.RequestElevation{ID: "late", Role: "curator", Scope: "acme/*", Reason: "prod is down", TTL: 10 * time.Minute})
		do("user:bob", state.DecideElevation{ID: "e", Word: state.ElevationApprove})
		first, _ := r.server("s1")
		second, log := r.server("s2")
		ctx, stop := context.WithCancel(t.Context())
		gone, dies := context.WithCancel(ctx)
		ended := make(chan error, 2)
		go func() { ended <- first.run(gone) }()
		go func() { ended <- second.run(ctx) }()

		caller := func() []meta.Right { return askOf(t, r, state.GetCaller{Principal: "user:ada"}).Rights }
		time.Sleep(9 * time.Minute)
		if rights := caller(); len(rights) != 1 || !rights[0].Elevated || rights[0].Binding != "elevation:e" {
			t.Errorf("before its time is over the rights are %+v", rights)
		}
		dies() // the leader, killed
		time.Sleep(2 * time.Minute)
		if e := askOf(t, r, state.GetElevation{ID: "e"}); e.State != meta.ElevationActive || e.Expires.Std().After(time.Now()) {
			t.Errorf("without a leader it is %+v", e)
		}
		// No leader wrote it down, and yet nothing is done under it any more.
		_, err := r.Do(t.Context(), state.Origin{Principal: "user:ada", Elevation: "e"}, state.CreateTenant{Name: "late"})
		if err == nil || meta.KindOf(err) != "denied" {
			t.Errorf("a command after the time is over: %v", err)
		}
		r.leads("s2")
		time.Sleep(2 * time.Second)
		if e := askOf(t, r, state.GetElevation{ID: "e"}); e.State != meta.ElevationExpired || e.Ended != e.Expires || !e.Unreviewed() {
			t.Errorf("with a new leader it is %+v", e)
		}
		if rights := caller(); len(rights) != 0 {
			t.Errorf("after its time the rights are %+v", rights)
		}
		time.Sleep(time.Hour)
		if e := askOf(t, r, state.GetElevation{ID: "late"}); e.State != meta.ElevationLapsed {
			t.Errorf("what nobody approved is %+v", e)
		}
		stop()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		for _, words := range []string{"an elevation is active", "prod is down", "an elevation is over"} {
			if !strings.Contains(log.String(), words) {
				t.Errorf("the log does not say %q: %s", words, log)
			}
		}
	})
}

// TestRecheckNotes: a note that is cut still is one, or the report of it is refused for
// ever.
func TestRecheckNotes(t *testing.T) {
	for shift := range 4 {
		note := noteOf("sha256:0", fmt.Errorf("%s%s", strings.Repeat("x", shift), strings.Repeat("ü€", meta.MaxReasonBytes)))
		if err := meta.CheckReason(note); err != nil || len(note) < meta.MaxReasonBytes-4 {
			t.Errorf("shift %d: a note of %d bytes: %v", shift, len(note), err)
		}
	}
}
