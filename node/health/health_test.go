package health

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/metatest"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// world is three regions of two servers in virtual time, with the real state machine:
// what is made up is who hears whom, the disks, and what lies on them.
type world struct {
	*testing.T
	store   *metatest.Store
	servers []meta.Node

	mu     sync.Mutex
	died   map[meta.NodeID]time.Time
	cutOff map[meta.NodeID]bool // the leader does not hear it, others do
	disks  map[meta.NodeID]error
	lost   map[digest.CID]bool // on the disk of eu-2
	leads  bool
	unsaid int // reports of what was looked at that get no answer
}

var repoRef = meta.RepoRef{Tenant: "acme", Name: "app"}

func inWorld(t *testing.T, f func(*world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{
			T: t, store: metatest.New(t), died: map[meta.NodeID]time.Time{}, cutOff: map[meta.NodeID]bool{},
			disks: map[meta.NodeID]error{}, lost: map[digest.CID]bool{}, leads: true,
		}
		w.servers = []meta.Node{{ID: "s1", Role: meta.RoleServer, Region: "eu"}}
		for _, s := range []struct {
			id     meta.NodeID
			region meta.RegionName
		}{{"eu-2", "eu"}, {"us-1", "us"}, {"us-2", "us"}, {"ap-1", "ap"}, {"ap-2", "ap"}} {
			n := meta.Node{ID: s.id, Role: meta.RoleServer, Region: s.region, Gateway: "127.0.0.1:5000"}
			w.store.Must(state.PutRegion{Region: meta.Region{Name: s.region, Primary: true}})
			w.store.Admit(n)
			w.servers = append(w.servers, n)
		}
		ctx, stop := context.WithCancel(context.Background())
		var group sync.WaitGroup
		group.Go(func() {
			if err := w.leader().Run(ctx); err != nil {
				t.Error(err)
			}
		})
		for _, n := range w.servers {
			copies := Copies{Server: n.ID, Metadata: w.store, Doer: w.store, Look: func(_ context.Context, root digest.CID) (bool, error) {
				w.mu.Lock()
				defer w.mu.Unlock()
				return n.ID != "eu-2" || !w.lost[root], nil
			}}
			self := NewSelf(SelfConfig{
				Node: n, Metadata: alive{w, n.ID}, Doer: alive{w, n.ID}, Check: copies.Check, Log: slog.New(slog.DiscardHandler),
				Probe: func(context.Context) error {
					w.mu.Lock()
					defer w.mu.Unlock()
					return w.disks[n.ID]
				},
			})
			group.Go(func() {
				if err := self.Run(ctx); err != nil {
					t.Error(err)
				}
			})
		}
		f(w)
		stop()
		group.Wait()
	})
}

// alive is the metadata as a server sees it: one that is dead asks nothing.
type alive struct {
	w  *world
	id meta.NodeID
}

func (a alive) Answer(ctx context.Context, f meta.Freshness, q raftmeta.Request) (meta.AsOf, error) {
	a.w.mu.Lock()
	_, dead := a.w.died[a.id]
	a.w.mu.Unlock()
	if dead {
		return meta.AsOf{}, meta.ErrUnavailable
	}
	return a.w.store.Answer(ctx, f, q)
}

func (a alive) Do(ctx context.Context, o state.Origin, c state.Command) (raftmeta.Receipt, error) {
	a.w.mu.Lock()
	_, checked := c.(state.ReportChecked)
	unsaid := checked && a.id == "eu-2" && a.w.unsaid > 0
	if unsaid {
		a.w.unsaid--
	}
	a.w.mu.Unlock()
	if unsaid {
		return raftmeta.Receipt{}, meta.ErrUnavailable
	}
	return a.w.store.Do(ctx, o, c)
}

func (w *world) leader() Leader {
	rtt := map[string]time.Duration{"eu us": 80, "eu ap": 60, "us ap": 120, "us eu": 80, "ap eu": 60, "ap us": 120}
	return Leader{
		Self: "s1", Timing: Timings["site"], Metadata: w.store, Doer: w.store, Log: slog.New(slog.DiscardHandler),
		Leads: func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.leads
		},
		Servers: func() []meta.Node { return w.servers },
		Sights: func(context.Context) (all []Sight) {
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, by := range w.servers {
				if _, dead := w.died[by.ID]; dead || by.ID != "s1" && w.cutOff[by.ID] {
					continue
				}
				for _, of := range w.servers {
					if of.ID == by.ID {
						continue
					}
					s := Sight{By: by.ID, Of: of.ID, RTT: rtt[string(by.Region+" "+of.Region)] * time.Millisecond}
					if at, dead := w.died[of.ID]; dead {
						s.Ago = time.Since(at)
					} else if by.ID == "s1" && w.cutOff[of.ID] {
						s.Ago = -1
					}
					all = append(all, s)
				}
			}
			return all
		},
	}
}

func (w *world) kill(ids ...meta.NodeID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range ids {
		w.died[id] = time.Now()
	}
}

func (w *world) revive(ids ...meta.NodeID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range ids {
		delete(w.died, id)
	}
}

func (w *world) disk(id meta.NodeID, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.disks[id] = err
}

func (w *world) health(region meta.RegionName) meta.RegionHealth {
	w.Helper()
	h, _, err := raftmeta.Ask(w.Context(), w.store, meta.Local, state.RegionHealth{Region: region})
	if err != nil {
		w.Fatal(err)
	}
	return h[0]
}

// within waits until the region is in a state, and returns after how long.
func (w *world) within(limit time.Duration, region meta.RegionName, want meta.HealthState) time.Duration {
	w.Helper()
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		if h := w.health(region); h.State == want {
			return time.Since(began)
		} else if time.Since(began) > limit {
			w.Fatalf("after %v region %s is %+v, not %s", limit, region, h, want)
		}
	}
}

// stays holds that nothing is recorded for a while.
func (w *world) stays(d time.Duration, region meta.RegionName, want meta.HealthState) {
	w.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if h := w.health(region); h.State != want {
			w.Fatalf("region %s turned %s (%s), it was to stay %s", region, h.State, h.Why, want)
		}
	}
}

func (w *world) incidents(region meta.RegionName) []meta.Incident {
	w.Helper()
	all, _, err := raftmeta.Ask(w.Context(), w.store, meta.Local, state.ListIncidents{Region: region})
	if err != nil {
		w.Fatal(err)
	}
	return all
}

func timeline(i meta.Incident) string {
	var out []string
	for _, e := range i.Events {
		text := string(e.Kind)
		if e.Server != "" {
			text += " " + string(e.Server)
		}
		if e.Region != "" {
			text += " " + string(e.Region)
		}
		if e.Kind == meta.EventChecked {
			text += fmt.Sprintf(" %d/%d", e.Missing, e.Copies)
		}
		out = append(out, text)
	}
	return strings.Join(out, "; ")
}

func TestARegionIsLostAndReturns(t *testing.T) {
	inWorld(t, func(w *world) {
		w.stays(time.Minute, "eu", meta.HealthHealthy)
		// A restart is no incident.
		w.kill("ap-1")
		time.Sleep(3 * time.Second)
		w.revive("ap-1")
		w.stays(time.Minute, "ap", meta.HealthHealthy)

		w.kill("us-1", "us-2")
		t.Log("down after", w.within(6*time.Second, "us", meta.HealthDown))
		h := w.health("us")
		if !slices.Equal(h.Backups, []meta.RegionName{"eu", "ap"}) || h.Kind != meta.IncidentDown || h.Incident == 0 || !h.Severe() {
			t.Errorf("us is %+v, want its writes at eu, which is nearer than ap", h)
		}
		if eu := w.health("eu"); eu.State != meta.HealthHealthy || eu.Incident != 0 {
			t.Errorf("eu is %+v", eu)
		}
		w.stays(time.Minute, "us", meta.HealthDown)
		if got := w.health("us").Revision; got != h.Revision {
			t.Errorf("the record was written again, at %d and %d", h.Revision, got)
		}
		// The next leader goes on from the records.
		w.mu.Lock()
		w.leads = false
		w.mu.Unlock()
		time.Sleep(5 * time.Second)
		w.mu.Lock()
		w.leads = true
		w.mu.Unlock()
		w.stays(10*time.Second, "us", meta.HealthDown)

		w.revive("us-1")
		t.Log("degraded after", w.within(6*time.Second, "us", meta.HealthDegraded))
		if h := w.health("us"); len(h.Backups) != 0 || h.Incident == 0 {
			t.Errorf("with one server back us is %+v", h)
		}
		w.revive("us-2")
		t.Log("healthy after", w.within(15*time.Second, "us", meta.HealthHealthy))
		h = w.health("us")
		for _, s := range h.Servers {
			if !s.Counts() || s.Checked == 0 {
				t.Errorf("us is healthy and %+v", s)
			}
		}
		all := w.incidents("us")
		if len(all) != 1 || all[0].Closed == 0 || all[0].Kind != meta.IncidentDown {
			t.Fatalf("incidents are %+v", all)
		}
		got := timeline(all[0])
		t.Log(got)
		for _, want := range []string{
			"opened; server_silent us-1; server_silent us-2; writes_moved eu", "server_heard us-1", "writes_returned us",
			"copies_checked us-1 0/0", "server_heard us-2", "copies_checked us-2 0/0", "closed",
		} {
			if !strings.Contains(got, want) {
				t.Errorf("the timeline has no %q", want)
			}
		}
		if !strings.HasSuffix(got, "closed") {
			t.Errorf("the timeline ends otherwise")
		}
	})
}

func TestARegionThatComesAndGoesIsTrustedLess(t *testing.T) {
	inWorld(t, func(w *world) {
		w.stays(10*time.Second, "ap", meta.HealthHealthy)
		var took []time.Duration
		for range 4 {
			w.kill("ap-1")
			w.within(6*time.Second, "ap", meta.HealthDegraded)
			w.revive("ap-1")
			took = append(took, w.within(time.Minute, "ap", meta.HealthHealthy))
		}
		t.Log("healthy again after", took)
		if took[3] < 3*took[0] {
			t.Errorf("a region that was lost four times is trusted as soon as one that was once: %v", took)
		}
		time.Sleep(11 * time.Minute)
		w.kill("ap-1")
		w.within(6*time.Second, "ap", meta.HealthDegraded)
		w.revive("ap-1")
		if again := w.within(time.Minute, "ap", meta.HealthHealthy); again > took[0]+time.Second {
			t.Errorf("what was long ago counts still: %v, at first %v", again, took[0])
		}
	})
}

// A server that only the leader does not hear is not lost.
func TestTheLeadersViewIsNotAll(t *testing.T) {
	inWorld(t, func(w *world) {
		w.stays(5*time.Second, "us", meta.HealthHealthy)
		w.mu.Lock()
		w.cutOff["us-1"], w.cutOff["us-2"] = true, true
		w.mu.Unlock()
		w.stays(time.Minute, "us", meta.HealthHealthy)
	})
}

func TestABlobStoreIsLost(t *testing.T) {
	inWorld(t, func(w *world) {
		w.store.Must(state.CreateRepository{CreateTenant: true, Repository: meta.Repository{
			Ref: repoRef, Format: "generic", Kind: meta.KindHosted, Class: meta.ClassCold, Home: "eu", Visibility: meta.VisibilityPublic,
		}})
		var roots []digest.CID
		for i := range 1200 { // more than a page
			b := []byte(fmt.Sprint("blob ", i))
			sum := digest.FromBytes(b)
			roots = append(roots, digest.Sum(b))
			w.store.Must(state.LinkBlob{Repo: repoRef, Digest: sum, Server: "eu-2", Blob: meta.Blob{
				Context: "acme", Digest: sum, PlainBytes: int64(len(b)), StoredBytes: int64(len(b)), Root: digest.Sum(b),
			}})
		}
		w.stays(5*time.Second, "eu", meta.HealthHealthy)

		w.disk("eu-2", errors.New("open blobs: no such file or directory"))
		w.within(6*time.Second, "eu", meta.HealthDegraded)
		h := w.health("eu")
		if h.Kind != meta.IncidentBlobsLost || !strings.Contains(h.Why, "no such file") || !strings.HasPrefix(h.Why, "blobs: ") {
			t.Errorf("eu is %+v", h)
		}
		if s := h.Server("eu-2"); s.Serves() || s.Counts() {
			t.Errorf("eu-2 counts: %+v", s)
		}
		if len(h.Backups) != 0 {
			t.Errorf("eu has another server, and its writes go to %v", h.Backups)
		}
		w.disk("s1", errors.New("read-only file system"))
		for began := time.Now(); len(w.health("eu").Backups) == 0; time.Sleep(100 * time.Millisecond) {
			if time.Since(began) > 6*time.Second {
				t.Fatalf("no server of eu has a store, and it is %+v", w.health("eu"))
			}
		}
		w.disk("s1", nil)

		// It comes back without a part of what it had, of which its first word is lost.
		w.mu.Lock()
		w.unsaid = 1
		for _, root := range roots[:700] {
			w.lost[root] = true
		}
		w.mu.Unlock()
		w.disk("eu-2", nil)
		w.within(20*time.Second, "eu", meta.HealthHealthy)
		if s := w.health("eu").Server("eu-2"); s.Copies != 1200 || s.Missing != 700 || !s.Counts() {
			t.Errorf("eu-2 is %+v", s)
		}
		for i, root := range roots {
			all, _, err := raftmeta.Ask(t.Context(), w.store, meta.Local, state.Replicas{Root: root})
			if err != nil {
				t.Fatal(err)
			}
			want := meta.ReplicaVerified
			if i < 700 {
				want = meta.ReplicaFailed
			}
			for _, r := range all {
				if r.Server == "eu-2" && r.State != want {
					t.Fatalf("copy %d is %s, want %s", i, r.State, want)
				}
			}
		}
		t.Log(timeline(w.incidents("eu")[0]))
	})
}

func TestNoRoomForBlobs(t *testing.T) {
	inWorld(t, func(w *world) {
		w.disk("ap-1", fmt.Errorf("12 MiB are left: %w", meta.ErrNoSpace))
		w.within(6*time.Second, "ap", meta.HealthDegraded)
		if h := w.health("ap"); h.Kind != meta.IncidentBlobsLow || h.Severe() || len(h.Backups) > 0 || !h.Server("ap-1").Counts() {
			t.Errorf("ap is %+v: what is low has what it has", h)
		}
		w.disk("ap-1", nil)
		w.within(15*time.Second, "ap", meta.HealthHealthy)
	})
}

// TestTries: one failure is none, a state ends when three probes say so.
func TestTries(t *testing.T) {
	bad, full := errors.New("bad"), meta.ErrNoSpace
	for _, c := range []struct {
		probes []error
		want   meta.BlobsState
	}{
		{nil, meta.BlobsOK},
		{[]error{bad}, meta.BlobsOK},
		{[]error{bad, nil, bad, nil, bad}, meta.BlobsOK},
		{[]error{bad, bad}, meta.BlobsFailing},
		{[]error{full, full}, meta.BlobsLow},
		{[]error{full, full, bad, bad}, meta.BlobsFailing},
		{[]error{bad, bad, full, full}, meta.BlobsFailing},
		{[]error{bad, bad, full, full, full}, meta.BlobsLow},
		{[]error{bad, bad, nil, nil, bad, nil, nil}, meta.BlobsFailing},
		{[]error{bad, bad, nil, nil, nil}, meta.BlobsOK},
		{[]error{bad, full, bad, full}, meta.BlobsOK},
	} {
		var tr tries
		for _, err := range c.probes {
			tr.note(err)
		}
		if tr.state != c.want {
			t.Errorf("after %v: %q, want %q", c.probes, tr.state, c.want)
		}
		if (tr.state == meta.BlobsOK) != (tr.why == "") {
			t.Errorf("after %v: %q because of %q", c.probes, tr.state, tr.why)
		}
	}
}
