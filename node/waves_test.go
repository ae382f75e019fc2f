package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	stdmaps "maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/metatest"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/transfer/wave"
	"github.com/shoal-registry/shoal/verify/digest"
)

// fleet is desks and agents around the real arbiter, in virtual time: what is made up
// is the network between them, and how long a host takes to fetch.
type fleet struct {
	t     *testing.T
	store *metatest.Store
	ctx   context.Context
	group sync.WaitGroup
	stops []context.CancelFunc
	takes time.Duration // a fetch

	mu      sync.Mutex
	desks   []*wave.Desk // nil: down
	nodes   map[meta.NodeID]meta.Node
	hosts   map[meta.NodeID]*fakeHost
	running map[meta.NodeID]bool
	most    int // hosts that ran at one time
	asked   int // calls of Sync
}

// fakeHost is a host's content and its run.
type fakeHost struct {
	fleet *fleet
	id    meta.NodeID
	fails bool
	lags  bool // its server knows no waves yet, but for what it is told to have heard of
	stop  context.CancelFunc
	news  chan uint64

	mu    sync.Mutex
	held  map[digest.CID]bool
	pins  map[string][]digest.CID
	start time.Time // of the last fetch
}

var waveRef = meta.RepoRef{Tenant: "acme", Name: "app"}

const waveVersion = "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"

// inFleet runs f with a cluster of so many servers, in virtual time.
func inFleet(t *testing.T, servers int, f func(*fleet)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(context.Background())
		c := &fleet{
			t: t, store: metatest.New(t), ctx: ctx, takes: 3 * time.Second,
			nodes: map[meta.NodeID]meta.Node{}, hosts: map[meta.NodeID]*fakeHost{}, running: map[meta.NodeID]bool{},
		}
		b := []byte("foo")
		c.store.Must(state.CreateRepository{CreateTenant: true, Repository: meta.Repository{
			Ref: waveRef, Format: "generic", Kind: meta.KindHosted, Class: meta.ClassCold, Home: "eu", Visibility: meta.VisibilityPublic,
		}})
		c.store.Must(state.Publish{
			Version: meta.Version{Repo: waveRef, Package: "foo", Name: waveVersion, Digest: waveVersion, State: meta.StateClosed, Size: 3},
			Files:   []meta.File{{Path: "foo", Digest: waveVersion, Size: 3}},
			Blobs: []state.LinkBlob{{Repo: waveRef, Digest: waveVersion, Server: "s1", Blob: meta.Blob{
				Context: "acme", Digest: waveVersion, PlainBytes: 3, StoredBytes: 3, Root: digest.Sum(b),
			}}},
		})
		for range servers {
			c.desks = append(c.desks, nil)
			c.stops = append(c.stops, nil)
			c.up(len(c.desks) - 1)
		}
		defer func() {
			stop()
			c.group.Wait()
		}()
		c.group.Go(c.tell)
		f(c)
	})
}

// up starts desk i.
func (c *fleet) up(i int) {
	d, err := wave.NewDesk(wave.DeskConfig{
		Plans: wavePlans{c.store}, Arbiter: waveArbiter{c.store, meta.NodeID(fmt.Sprint("s", i))},
		Node: func(id meta.NodeID) (meta.Node, bool) {
			c.mu.Lock()
			defer c.mu.Unlock()
			n, ok := c.nodes[id]
			return n, ok
		},
		Agents: func() []meta.Node {
			c.mu.Lock()
			defer c.mu.Unlock()
			return slices.Collect(stdmaps.Values(c.nodes))
		},
		Leads: func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return slices.IndexFunc(c.desks, func(d *wave.Desk) bool { return d != nil }) == i
		},
		Log: slog.New(slog.NewTextHandler(c.t.Output(), nil)),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(c.ctx)
	c.group.Go(func() {
		if err := d.Run(ctx); err != nil {
			c.t.Error(err)
		}
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.desks[i], c.stops[i] = d, stop
}

// down kills desk i.
func (c *fleet) down(i int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stops[i]()
	c.desks[i] = nil
}

// tell passes the news on to the agents, as their feed does.
func (c *fleet) tell() {
	for change, err := range c.store.Watch(c.ctx, 0) {
		if err != nil {
			return
		}
		if change.Kind != feed.KindWave {
			continue
		}
		c.mu.Lock()
		for _, h := range c.hosts {
			select {
			case <-h.news:
			default:
			}
			h.news <- change.Index
		}
		c.mu.Unlock()
	}
}

// Sync asks the first server that is up, of those in this host's order.
func (h *fakeHost) Sync(ctx context.Context, said meta.WaveWord, wait time.Duration) (meta.WaveOrders, error) {
	c := h.fleet
	if h.lags && said.After == 0 {
		return meta.WaveOrders{}, nil
	}
	first := int(h.id[len(h.id)-1])
	for i := range c.desks {
		c.mu.Lock()
		c.asked++
		at := (first + i) % len(c.desks)
		d := c.desks[at]
		c.mu.Unlock()
		if d == nil {
			continue
		}
		call, leave := context.WithCancel(ctx)
		gone := make(chan struct{})
		c.group.Go(func() {
			// Who is killed does not answer.
			defer close(gone)
			for range time.Tick(100 * time.Millisecond) {
				c.mu.Lock()
				dead := c.desks[at] != d
				c.mu.Unlock()
				if dead {
					leave()
				}
				if call.Err() != nil {
					return
				}
			}
		})
		orders, err := d.Sync(call, h.id, said, wait)
		broken := call.Err() != nil && ctx.Err() == nil
		leave()
		<-gone
		if !broken {
			return orders, err
		}
	}
	return meta.WaveOrders{}, &meta.UnavailableError{Reason: "no_server"}
}

// Expand implements wave.Expander: all of it is one blob.
func (h *fakeHost) Expand(_ context.Context, ref meta.WaveRef, platform string) ([]meta.Blob, error) {
	if platform != "linux/amd64" {
		return nil, nil
	}
	return []meta.Blob{{Root: digest.Sum([]byte("foo")), StoredBytes: 3, Digest: ref.Digest}}, nil
}

// Ensure implements wave.Content.
func (h *fakeHost) Ensure(ctx context.Context, b meta.Blob) error {
	c := h.fleet
	c.mu.Lock()
	c.running[h.id] = true
	c.most = max(c.most, len(c.running))
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.running, h.id)
		c.mu.Unlock()
	}()
	h.mu.Lock()
	h.start = time.Now()
	fails := h.fails
	h.mu.Unlock()
	select {
	case <-time.After(c.takes):
	case <-ctx.Done():
		return ctx.Err()
	}
	if fails {
		return fmt.Errorf("the disk is full: %w", meta.ErrNoSpace)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held[b.Root] = true
	return nil
}

// Held implements wave.Content.
func (h *fakeHost) Held(_ context.Context, root digest.CID) int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.held[root] {
		return 3
	}
	return 0
}

// Pin, Unpin and Owned implement wave.Pins.
func (h *fakeHost) Pin(root digest.CID, owner string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pins[owner] = []digest.CID{root}
	return nil
}

func (h *fakeHost) Unpin(_ digest.CID, owner string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.pins, owner)
	return nil
}

func (h *fakeHost) Owned(prefix string) map[string][]digest.CID {
	h.mu.Lock()
	defer h.mu.Unlock()
	return stdmaps.Clone(h.pins)
}

// began returns when its last fetch did, zero when there was none.
func (h *fakeHost) began() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.start
}

func (h *fakeHost) pinned() int { return len(h.Owned("")) }

// join adds n hosts of a region to the roster and starts them.
func (c *fleet) join(region meta.RegionName, n int) (ids []meta.NodeID) {
	for range n {
		c.mu.Lock()
		id := meta.NodeID(fmt.Sprintf("%s-%04d", region, len(c.hosts)))
		c.mu.Unlock()
		node := meta.Node{ID: id, Role: meta.RoleAgent, Region: region}
		c.store.Admit(node)
		h := &fakeHost{fleet: c, id: id, held: map[digest.CID]bool{}, pins: map[string][]digest.CID{}, news: make(chan uint64, 1)}
		c.mu.Lock()
		c.nodes[id], c.hosts[id] = node, h
		c.mu.Unlock()
		c.start(id)
		ids = append(ids, id)
	}
	return ids
}

func (c *fleet) start(id meta.NodeID) {
	c.mu.Lock()
	h := c.hosts[id]
	c.mu.Unlock()
	a, err := wave.NewAgent(wave.AgentConfig{
		Servers: h, News: h.news, Expander: h, Content: h, Platform: "linux/amd64",
	})
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(c.ctx)
	h.stop = stop
	c.group.Go(func() {
		// The feed begins with the index as of which the roster was listed.
		time.Sleep(time.Second)
		select {
		case h.news <- last(c):
		default:
		}
	})
	c.group.Go(func() {
		if err := a.Run(ctx); err != nil {
			c.t.Error(err)
		}
	})
}

// plan creates a wave for an hour.
func (c *fleet) plan(id string, change func(*meta.Wave)) {
	w := meta.Wave{ID: id, Refs: []meta.WaveRef{{Repo: waveRef, Package: "foo", Version: waveVersion}}}
	if change != nil {
		change(&w)
	}
	c.store.Must(state.CreateWave{Wave: w, Life: time.Hour})
}

func (c *fleet) wave(id string) meta.Wave {
	c.t.Helper()
	v, err := c.store.View()
	if err != nil {
		c.t.Fatal(err)
	}
	defer v.Close()
	w, err := state.GetWave{ID: id}.Answer(v)
	if err != nil {
		c.t.Fatal(err)
	}
	return w
}

// until waits, at most for so long, until the wave is as it should be, and returns it.
func (c *fleet) until(id string, most time.Duration, done func(meta.Wave) bool) meta.Wave {
	c.t.Helper()
	began := time.Now()
	for {
		w := c.wave(id)
		if done(w) {
			return w
		}
		if time.Since(began) > most {
			c.t.Fatalf("after %v the wave is %s %q: %+v, %d hosts run", most, w.State, w.Reason, w.Total(), c.runs())
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (c *fleet) runs() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.running)
}

func is(s meta.WaveState) func(meta.Wave) bool {
	return func(w meta.Wave) bool { return w.State == s }
}

func (c *fleet) fail(ids []meta.NodeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ids {
		h := c.hosts[id]
		h.mu.Lock()
		h.fails = true
		h.mu.Unlock()
	}
}

// A wave reaches every host it is for in about the time of one fetch, and no other;
// hosts keep it until the wave expires, and those that join later get it, too.
func TestWaveReachesEverybody(t *testing.T) {
	inFleet(t, 3, func(c *fleet) {
		c.store.Must(state.PutRegion{Region: meta.Region{Name: "us"}})
		eu, us := c.join("eu", 20), c.join("us", 5)
		began := time.Now()
		c.plan("w1", func(w *meta.Wave) { w.Targets = []meta.WaveTarget{{Region: "eu"}} })
		w := c.until("w1", 10*time.Second, is(meta.WaveDone))
		if total := w.Total(); total.Done != 20 || total.Bytes != 60 {
			t.Errorf("it counts %+v", total)
		}
		t.Logf("20 hosts that fetch for %v: done after %v, recognised after %v", c.takes, w.Finished.Std().Sub(began), time.Since(began))
		for _, id := range us {
			if c.hosts[id].pinned() != 0 {
				t.Errorf("%s took part", id)
			}
		}
		late := c.join("eu", 1)
		c.until("w1", 10*time.Second, func(w meta.Wave) bool { return w.Total().Done == 21 })
		c.hosts[eu[0]].stop()
		c.start(eu[0]) // It knows nothing of its own.
		time.Sleep(time.Minute)
		for _, id := range append(eu, late...) {
			if c.hosts[id].pinned() != 1 {
				t.Errorf("%s does not keep it", id)
			}
		}
		if again := c.hosts[eu[0]].began(); time.Since(again) < time.Minute {
			t.Errorf("a host that had it fetches again")
		}
		// An hour later nobody keeps it any more, one that was off meanwhile as well.
		c.hosts[eu[1]].stop()
		c.until("w1", time.Hour, func(w meta.Wave) bool { return w.Ended != 0 })
		c.start(eu[1])
		time.Sleep(2 * time.Second)
		for _, id := range append(eu, late...) {
			if c.hosts[id].pinned() != 0 {
				t.Errorf("%s keeps it", id)
			}
		}
	})
}

func TestWaveBeginsInTime(t *testing.T) {
	inFleet(t, 2, func(c *fleet) {
		ids := c.join("eu", 5)
		start := time.Now().Add(10 * time.Minute)
		c.plan("w1", func(w *meta.Wave) { w.NotBefore = meta.TimeOf(start) })
		w := c.until("w1", 20*time.Minute, is(meta.WaveDone))
		for _, id := range ids {
			if late := c.hosts[id].began().Sub(start); late < 0 || late > time.Second {
				t.Errorf("%s begins %v after the start", id, late)
			}
		}
		if w.Started.Std().Before(start) {
			t.Errorf("started at %v", w.Started.Std())
		}
	})
}

// Never do more hosts fetch than may, and there are few when there is room.
func TestWaveMaxParallel(t *testing.T) {
	inFleet(t, 3, func(c *fleet) {
		c.join("eu", 60)
		began := time.Now()
		c.plan("w1", func(w *meta.Wave) { w.MaxParallel = 7 })
		w := c.until("w1", 5*time.Minute, is(meta.WaveDone))
		took := w.Finished.Std().Sub(began)
		t.Logf("60 hosts, 7 at a time, 3 s each: %v (bound 27 s), %d log entries, %d calls", took, last(c), c.asked)
		if c.most > 7 {
			t.Errorf("%d hosts fetched at one time", c.most)
		}
		if took > 40*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

func last(c *fleet) uint64 {
	index, _ := c.store.Applied()
	return index
}

// A host that dies gives its slot back when its lease ends; fetches that take longer
// than a lease go on, also when the server that they stand at dies.
func TestWaveLeases(t *testing.T) {
	inFleet(t, 3, func(c *fleet) {
		c.takes = 5 * time.Minute
		ids := c.join("eu", 2)
		began := time.Now()
		c.plan("w1", func(w *meta.Wave) { w.MaxParallel = 1 })
		c.until("w1", 10*time.Second, func(w meta.Wave) bool { return w.Total().Fetching == 1 })
		time.Sleep(time.Minute)
		dead, alive := ids[0], ids[1]
		if c.hosts[dead].began().IsZero() {
			dead, alive = alive, dead
		}
		c.down(int(alive[len(alive)-1]) % 3)
		c.hosts[dead].stop()
		died := time.Now()
		c.until("w1", 2*meta.WaveLease, func(w meta.Wave) bool { return w.Total().Lost == 1 })
		c.until("w1", 10*time.Second, func(w meta.Wave) bool { return w.Total().Fetching == 1 })
		t.Logf("the slot came back %v after its host died", time.Since(died))
		c.until("w1", 6*time.Minute, func(w meta.Wave) bool { return w.Total().Done == 1 })
		if started := c.hosts[alive].began(); time.Since(started) > 5*time.Minute+10*time.Second {
			t.Errorf("its fetch was interrupted")
		}
		// The dead one comes back and catches up.
		c.start(dead)
		c.until("w1", 6*time.Minute, is(meta.WaveDone))
		t.Logf("2 hosts of 5 min, one of which died: %v, %d log entries", time.Since(began), last(c))
	})
}

// While no server can be reached, hosts under a lease stop before others could be let
// in, and go on afterwards.
func TestWaveWithoutServers(t *testing.T) {
	inFleet(t, 2, func(c *fleet) {
		c.takes = 4 * time.Minute
		c.join("eu", 6)
		c.plan("w1", func(w *meta.Wave) { w.MaxParallel = 3 })
		c.until("w1", 10*time.Second, func(w meta.Wave) bool { return w.Total().Fetching == 3 })
		c.down(0)
		c.down(1)
		time.Sleep(meta.WaveLease + time.Second)
		if n := c.runs(); n != 0 {
			t.Errorf("%d hosts fetch without a lease", n)
		}
		c.up(0)
		c.until("w1", time.Hour/2, is(meta.WaveDone))
		if c.most > 3 {
			t.Errorf("%d hosts fetched at one time", c.most)
		}
	})
}

// Killing servers one after another, the leading one among them, stops no wave.
func TestWaveOutlivesServers(t *testing.T) {
	inFleet(t, 3, func(c *fleet) {
		c.join("eu", 40)
		c.plan("w1", func(w *meta.Wave) { w.MaxParallel = 5 })
		c.until("w1", time.Minute, func(w meta.Wave) bool { return w.Total().Done > 5 })
		c.down(0)
		c.until("w1", time.Minute, func(w meta.Wave) bool { return w.Total().Done > 15 })
		c.down(1)
		c.until("w1", 5*time.Minute, is(meta.WaveDone))
		c.up(0)
		if total := c.wave("w1").Total(); total.Done != 40 || c.most > 5 {
			t.Errorf("it counts %+v, %d at one time", total, c.most)
		}
	})
}

// When too many fail, the others stop, and those that wait never begin.
func TestWaveAborts(t *testing.T) {
	inFleet(t, 2, func(c *fleet) {
		ids := c.join("eu", 50)
		c.fail(ids)
		c.plan("w1", func(w *meta.Wave) {
			w.MaxParallel, w.Expected, w.Abort = 5, 50, &meta.WaveAbort{Above: 10, Percent: true}
		})
		w := c.until("w1", time.Minute, is(meta.WaveAborted))
		if total := w.Total(); total.Failed < 6 || total.Failed > 10 || !strings.Contains(w.Reason, "disk is full") || len(w.Failures) == 0 {
			t.Errorf("it counts %+v, %+v", total, w.Failures)
		}
		time.Sleep(time.Second)
		if n := c.runs(); n != 0 {
			t.Errorf("%d hosts fetch", n)
		}
		for _, id := range ids {
			if c.hosts[id].pinned() != 0 {
				t.Errorf("%s keeps something", id)
			}
		}
	})
}

func TestWaveCancelled(t *testing.T) {
	inFleet(t, 2, func(c *fleet) {
		c.takes = time.Hour
		ids := c.join("eu", 10)
		c.plan("w1", func(w *meta.Wave) { w.MaxParallel = 4 })
		c.plan("w2", nil)
		c.until("w2", 10*time.Second, func(w meta.Wave) bool { return w.Total().Fetching == 10 })
		c.store.Must(state.CancelWave{ID: "w2"})
		c.store.Must(state.CancelWave{ID: "w1"})
		time.Sleep(time.Second)
		if n := c.runs(); n != 0 {
			t.Errorf("a second later %d hosts fetch", n)
		}
		for _, id := range ids {
			if c.hosts[id].pinned() != 0 {
				t.Errorf("%s keeps something", id)
			}
		}
	})
}

// A host that fetches for one wave is let into the next at once.
func TestWavesSideBySide(t *testing.T) {
	inFleet(t, 1, func(c *fleet) {
		c.takes = time.Minute
		c.join("eu", 5)
		c.plan("w1", nil)
		c.until("w1", 2*time.Second, func(w meta.Wave) bool { return w.Total().Fetching == 5 })
		time.Sleep(10 * time.Second)
		c.plan("w2", nil)
		c.until("w2", 2*time.Second, func(w meta.Wave) bool { return w.Total().Fetching == 5 })
		c.until("w1", 2*time.Minute, is(meta.WaveDone))
		c.until("w2", 2*time.Minute, is(meta.WaveDone))
	})
}

// A narrowed host gets nothing of a wave of another tenant, and is not waited for; nor
// does one that is narrowed before the wave begins.
func TestWaveLeavesOutNarrowedHosts(t *testing.T) {
	inFleet(t, 1, func(c *fleet) {
		ids := c.join("eu", 4)
		narrow := func(id meta.NodeID, tenants ...string) {
			c.store.Must(state.NarrowNode{ID: id, Tenants: tenants})
			c.mu.Lock()
			defer c.mu.Unlock()
			n := c.nodes[id]
			n.Tenants = tenants
			c.nodes[id] = n
		}
		narrow(ids[0], "other-*")
		narrow(ids[1], "other-*", string(waveRef.Tenant))
		c.plan("w1", func(w *meta.Wave) { w.NotBefore = meta.TimeOf(time.Now().Add(time.Minute)) })
		time.Sleep(10 * time.Second)
		narrow(ids[2], "other-*") // it has heard of the wave by then
		c.until("w1", 5*time.Minute, is(meta.WaveDone))
		if total := c.wave("w1").Total(); total.Done != 2 || total.Settled() != 2 {
			t.Errorf("it counts %+v", total)
		}
		for i, id := range ids {
			if pinned, want := c.hosts[id].pinned() > 0, i == 1 || i == 3; pinned != want {
				t.Errorf("host %d: pinned %v", i, pinned)
			}
		}
		// The arbiter refuses it too, whatever a desk says.
		c.plan("w2", nil)
		c.store.Must(state.AdmitHosts{Wave: "w2", Hosts: ids[:1]})
		if total := c.wave("w2").Total(); total.Fetching != 0 {
			t.Errorf("a narrowed host is admitted: %+v", total)
		}
	})
}

// A host of another platform than the wave has takes no bytes, and is no failure.
func TestWaveOfAnotherPlatform(t *testing.T) {
	inFleet(t, 1, func(c *fleet) {
		c.join("eu", 3)
		c.plan("w1", func(w *meta.Wave) { w.Platform, w.Abort = "linux/arm64", &meta.WaveAbort{} })
		if total := c.until("w1", 10*time.Second, is(meta.WaveDone)).Total(); total.Skipped != 3 || total.Bytes != 0 {
			t.Errorf("it counts %+v", total)
		}
	})
}

// The log grows with batches, not with hosts and time.
func TestWaveWritesTheLogSeldom(t *testing.T) {
	if testing.Short() {
		t.Skip("1,000 hosts")
	}
	inFleet(t, 3, func(c *fleet) {
		c.takes = time.Minute
		const hosts = 1000
		c.join("eu", hosts)
		before, asked := last(c), c.asked
		c.plan("w1", nil)
		w := c.until("w1", time.Hour, is(meta.WaveDone))
		t.Logf("%d hosts that fetch for %v: %d log entries, %d calls, all admitted by %v after the start",
			hosts, c.takes, last(c)-before, c.asked-asked, w.Finished.Std().Sub(w.Started.Std())-c.takes)
		if n := last(c) - before; n > 30 {
			t.Errorf("%d log entries", n)
		}
	})
}

// What one host says wrongly is refused, and the others' word is recorded all the same:
// it would be in one command with theirs.
func TestWaveRefusesWrongWords(t *testing.T) {
	inFleet(t, 1, func(c *fleet) {
		c.join("eu", 3)
		liar := meta.Node{ID: "eu-liar", Role: meta.RoleAgent, Region: "eu"}
		c.store.Admit(liar)
		c.mu.Lock()
		c.nodes[liar.ID] = liar
		desk := c.desks[0]
		c.mu.Unlock()
		c.plan("w1", nil)
		say := func(p meta.WavePart) error {
			ctx, cancel := context.WithTimeout(c.ctx, 10*time.Second)
			defer cancel()
			p.Wave = "w1"
			_, err := desk.Sync(ctx, liar.ID, meta.WaveWord{After: last(c), Parts: []meta.WavePart{p}}, time.Second)
			return err
		}
		if err := say(meta.WavePart{}); err != nil {
			t.Fatal(err)
		}
		for name, p := range map[string]meta.WavePart{
			"reason":      {State: meta.HostFailed, Reason: strings.Repeat("x", meta.MaxWaveReason+1)},
			"letters":     {State: meta.HostFailed, Reason: "\xff"},
			"bytes":       {State: meta.HostDone, Bytes: -1},
			"total":       {State: meta.HostFetching, TotalBytes: -1},
			"many bytes":  {State: meta.HostDone, Bytes: 1 << 62},
			"state":       {State: "asleep"},
			"lost itself": {State: meta.HostLost},
		} {
			if err := say(p); !errors.Is(err, meta.ErrInvalid) {
				t.Errorf("%s: got %v", name, err)
			}
		}
		c.until("w1", 10*time.Second, func(w meta.Wave) bool { return w.Total().Done == 3 })
	})
}

// A host that starts again keeps what waves brought, also when the first server that it
// asks was down when they were planned.
func TestWaveKeptBesideALaggingServer(t *testing.T) {
	inFleet(t, 1, func(c *fleet) {
		id := c.join("eu", 1)[0]
		c.plan("w1", nil)
		c.until("w1", 10*time.Second, is(meta.WaveDone))
		c.hosts[id].stop()
		c.hosts[id].lags = true
		c.start(id)
		for range 20 {
			time.Sleep(500 * time.Millisecond)
			if c.hosts[id].pinned() != 1 {
				t.Fatal("it is no longer pinned")
			}
		}
	})
}

// A host that claims to have heard of what is far ahead waits alone, and not for ever.
func TestWaveHostAheadOfTheLog(t *testing.T) {
	inFleet(t, 1, func(c *fleet) {
		liar := meta.Node{ID: "eu-liar", Role: meta.RoleAgent, Region: "eu"}
		c.store.Admit(liar)
		c.mu.Lock()
		c.nodes[liar.ID] = liar
		desk := c.desks[0]
		c.mu.Unlock()
		answered := make(chan error, 1)
		c.group.Go(func() {
			_, err := desk.Sync(c.ctx, liar.ID, meta.WaveWord{After: 1 << 60}, time.Second)
			answered <- err
		})
		time.Sleep(time.Second)
		c.join("eu", 3)
		c.plan("w1", nil)
		c.until("w1", c.takes+time.Second, func(w meta.Wave) bool { return w.Total().Done == 3 })
		if err := <-answered; !errors.Is(err, meta.ErrUnavailable) {
			t.Errorf("got %v", err)
		}
	})
}
