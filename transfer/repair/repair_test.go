package repair

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/place"
	"github.com/shoal-registry/shoal/transfer/wait"
	"github.com/shoal-registry/shoal/verify/digest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cluster is the metadata of one region and the contents of its servers, as a Loop
// sees them.
type cluster struct {
	mu       sync.Mutex
	demands  []meta.Replica
	copies   map[digest.CID][]meta.Replica
	changed  []func()
	failed   map[meta.NodeID][]func(digest.CID)
	reports  []meta.Replica
	ensured  []digest.CID
	running  int
	most     int
	ensure   func(ctx context.Context, b meta.Blob) error
	listErr  error
	watchErr error
	report   error
	lists    int
	read     int // demands
	// reporting sees each report under mu.
	reporting func(meta.Replica)
}

func newCluster() *cluster {
	return &cluster{copies: map[digest.CID][]meta.Replica{}, failed: map[meta.NodeID][]func(digest.CID){}}
}

// seat is the cluster as one server, or several with one bucket, see it.
type seat struct {
	*cluster
	self meta.NodeID
}

func (c *cluster) demand(i int, class meta.Class) digest.CID { return c.demandOf("acme", i, class, 10) }

func (c *cluster) demandOf(tenant string, i int, class meta.Class, storedBytes int64) digest.CID {
	root := digest.Sum(fmt.Appendf(nil, "root %d", i))
	c.mu.Lock()
	c.demands = append(c.demands, meta.Replica{
		Root: root, Region: "eu", State: meta.ReplicaPending, Class: class, StoredBytes: storedBytes, Context: tenant,
		Digest: digest.FromBytes(root[:]), Demand: meta.TimeOf(time.Now()),
	})
	changed := slices.Clone(c.changed)
	c.mu.Unlock()
	for _, f := range changed {
		f()
	}
	return root
}

func (c *cluster) Lanes(_ context.Context, region meta.RegionName) (lanes []place.Lane, _ error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lists++
	if c.listErr != nil {
		return nil, c.listErr
	}
	for _, d := range c.demands {
		in := func(l place.Lane) bool { return l.Class == d.Class && l.Tenant == d.Context }
		if d.State != meta.ReplicaVerified && !slices.ContainsFunc(lanes, in) {
			lanes = append(lanes, place.Lane{Class: d.Class, Tenant: d.Context, Weight: 4, Oldest: d.Demand})
		}
	}
	return lanes, nil
}

func (c *cluster) Pending(_ context.Context, region meta.RegionName, lane place.Lane, after *meta.Replica, limit int) ([]meta.Replica, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []meta.Replica
	skip := after != nil
	for _, d := range c.demands {
		if d.Class != lane.Class || d.Context != lane.Tenant {
			continue
		}
		if skip {
			skip = d.Root != after.Root
			continue
		}
		if d.State != meta.ReplicaVerified && len(out) < limit {
			out = append(out, d)
			c.read++
		}
	}
	return out, nil
}

func (c *cluster) Copies(_ context.Context, root digest.CID) ([]meta.Replica, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.copies[root]), nil
}

func (c seat) Watch(ctx context.Context, _ meta.RegionName, changed func(), failed func(digest.CID)) error {
	c.mu.Lock()
	err := c.watchErr
	c.watchErr = nil
	if err == nil {
		c.changed = append(c.changed, changed)
		c.failed[c.self] = append(c.failed[c.self], failed)
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

// Report settles demands as the metadata does: two verified copies, or all servers.
func (c *cluster) Report(_ context.Context, replicas []meta.Replica) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.report != nil {
		err := c.report
		c.report = nil
		return err
	}
	if len(replicas) == 0 || len(replicas) > 1000 {
		return meta.ErrInvalid
	}
	for _, r := range replicas {
		c.reports = append(c.reports, r)
		if c.reporting != nil {
			c.reporting(r)
		}
		known := c.copies[r.Root]
		if k := slices.IndexFunc(known, func(o meta.Replica) bool { return o.Server == r.Server }); k >= 0 {
			known[k] = r
		} else {
			c.copies[r.Root] = append(known, r)
		}
		if c.settle(r.Root) {
			for _, f := range c.failed[r.Server] {
				f(r.Root)
			}
		}
	}
	for _, f := range c.changed {
		f()
	}
	return nil
}

// settle reports whether a verified demand is pending again.
func (c *cluster) settle(root digest.CID) (again bool) {
	verified := 0
	for _, r := range c.copies[root] {
		if r.State == meta.ReplicaVerified {
			verified++
		}
	}
	for i := range c.demands {
		if c.demands[i].Root == root {
			again = c.demands[i].State == meta.ReplicaVerified && verified < 2
			c.demands[i].State = meta.ReplicaPending
			if verified >= 2 {
				c.demands[i].State = meta.ReplicaVerified
			}
		}
	}
	return again
}

func (c *cluster) Ensure(ctx context.Context, b meta.Blob) error {
	c.mu.Lock()
	c.ensured = append(c.ensured, b.Root)
	c.running++
	c.most = max(c.most, c.running)
	ensure := c.ensure
	c.mu.Unlock()
	var err error
	if ensure != nil {
		err = ensure(ctx, b)
	}
	c.mu.Lock()
	c.running--
	c.mu.Unlock()
	return err
}

// made returns the roots that were ensured, in order, and how many at most at once.
func (c *cluster) made() ([]digest.CID, int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.ensured), c.most
}

// told returns all reports.
func (c *cluster) told() []meta.Replica {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.reports)
}

func (c *cluster) count(root digest.CID) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, r := range c.ensured {
		if r == root {
			n++
		}
	}
	return n
}

func (c *cluster) reported(root digest.CID) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for _, r := range c.reports {
		if r.Root == root {
			out = append(out, strings.TrimSuffix(fmt.Sprintf("%s %s %s", r.Server, r.State, r.Reason), " "))
		}
	}
	return out
}

var twoServers = []meta.NodeID{"a", "b"}

// start runs a Loop of server self until the test ends.
func start(t *testing.T, c *cluster, self meta.NodeID, all []meta.NodeID, change ...func(*Config)) *Loop {
	t.Helper()
	cfg := Config{
		Self: self, Region: "eu", Demands: seat{c, self}, Reporter: c, Content: c,
		Servers: func() []meta.NodeID { return all }, Metrics: prometheus.NewPedanticRegistry(),
	}
	for _, f := range change {
		f(&cfg)
	}
	l, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return l
}

// after lets virtual time pass.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestMakesCopies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		early := c.demand(1, meta.ClassStandard) // before the Loop starts
		start(t, c, "a", twoServers)
		start(t, c, "b", twoServers)
		after(time.Second)
		late := c.demand(2, meta.ClassCritical)
		after(time.Second) // by news, long before the next listing
		for _, root := range []digest.CID{early, late} {
			got := c.reported(root)
			slices.Sort(got)
			if want := []string{"a verified", "b verified"}; !slices.Equal(got, want) {
				t.Errorf("reported %v, want %v", got, want)
			}
		}
		after(time.Hour) // and then nothing more
		if made, _ := c.made(); len(made) != 4 || len(c.told()) != 4 {
			t.Errorf("%d copies, %d reports", len(made), len(c.told()))
		}
	})
}

// Only the holders fetch, and a copy that somebody else has counts.
func TestOnlyHoldersFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := []meta.NodeID{"a", "b", "c", "d"}
		c := newCluster()
		var roots []digest.CID
		for i := range 50 {
			roots = append(roots, c.demand(i, meta.ClassStandard))
		}
		for _, s := range all {
			start(t, c, s, all)
		}
		after(10 * time.Second)
		for _, root := range roots {
			if n := c.count(root); n != 2 {
				t.Errorf("%d copies of %s", n, root)
			}
			copies, _ := c.Copies(t.Context(), root)
			for _, r := range copies {
				if !slices.Contains(place.Holders(root, all, 2), r.Server) {
					t.Errorf("%s is no holder", r.Server)
				}
			}
		}
	})
}

// When a holder does not come, the next server stands in for it.
func TestStandsIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := []meta.NodeID{"a", "b", "c"}
		c := newCluster()
		root := c.demand(1, meta.ClassStandard)
		ranked := place.Rank(root, all)
		start(t, c, ranked[0], all)
		start(t, c, ranked[2], all) // ranked[1] is down
		after(119 * time.Second)
		if n := c.count(root); n != 1 {
			t.Errorf("%d copies before the stand-in time", n)
		}
		after(2 * time.Second)
		if n := c.count(root); n != 2 {
			t.Errorf("%d copies after the stand-in time", n)
		}
	})
}

func TestCriticalFirstAndBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		c.ensure = func(ctx context.Context, _ meta.Blob) error {
			time.Sleep(time.Second)
			return nil
		}
		for i := range 20 {
			c.demand(i, meta.ClassCold)
		}
		start(t, c, "a", []meta.NodeID{"a"}, func(cfg *Config) { cfg.Workers = 4 })
		after(1500 * time.Millisecond)
		urgent := c.demand(100, meta.ClassCritical) // overtakes what waits
		after(2 * time.Second)
		made, _ := c.made()
		if k := slices.Index(made, urgent); k < 0 || k > 6 {
			t.Errorf("the critical one came at place %d", k)
		}
		after(20 * time.Second)
		if made, most := c.made(); len(made) != 21 || most != 3 { // two cold ones and it
			t.Errorf("%d copies, at most %d at once", len(made), most)
		}
	})
}

// Many copies whose source is out of reach do not hold up what is pushed now.
func TestUnreachableSourcesHoldUpNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		lost := map[digest.CID]bool{}
		for i := range 40 {
			lost[c.demand(i, meta.ClassCritical)] = true
		}
		c.ensure = func(ctx context.Context, b meta.Blob) error {
			if lost[b.Root] {
				wait.For(ctx, 30*time.Second)
				return meta.ErrUnavailable
			}
			wait.For(ctx, 100*time.Millisecond)
			return nil
		}
		start(t, c, "a", twoServers)
		after(10 * time.Second)
		for i := range 20 {
			root := c.demand(100+i, meta.ClassCritical)
			after(5 * time.Second)
			if c.count(root) == 0 {
				t.Fatalf("the copy of push %d does not begin within 5 s", i)
			}
		}
		if _, most := c.made(); most > 8 {
			t.Errorf("%d at once", most)
		}
	})
}

func TestRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		var failing error = &meta.UnavailableError{Reason: "no_server"}
		c.ensure = func(context.Context, meta.Blob) error {
			c.mu.Lock()
			defer c.mu.Unlock()
			return failing
		}
		root := c.demand(1, meta.ClassStandard)
		start(t, c, "a", []meta.NodeID{"a"})
		after(300 * time.Millisecond)
		if got := c.reported(root); len(got) != 0 {
			t.Errorf("reported at once: %v", got)
		}
		after(time.Hour)
		if got := c.reported(root); len(got) != 1 || !strings.HasPrefix(got[0], "a failed no server has a verified copy: unavailable") {
			t.Errorf("reported %v, want one failure", got)
		}
		// Back off, to a bound: about 12 + 60/5 attempts in an hour, not thousands.
		if n := c.count(root); n < 15 || n > 45 {
			t.Errorf("%d attempts in an hour", n)
		}
		c.mu.Lock()
		failing = nil
		c.mu.Unlock()
		after(retryMost + time.Second)
		if got := c.reported(root); len(got) != 2 || got[1] != "a verified" {
			t.Errorf("reported %v", got)
		}
	})
}

func TestCorruptAndFullAreReportedAtOnce(t *testing.T) {
	for _, kind := range []error{meta.ErrCorrupt, meta.ErrNoSpace} {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster()
			c.ensure = func(context.Context, meta.Blob) error {
				return fmt.Errorf("%s: %w", strings.Repeat("ü", 600), kind)
			}
			root := c.demand(1, meta.ClassStandard)
			start(t, c, "a", []meta.NodeID{"a"})
			after(100 * time.Millisecond)
			got := c.told()
			if len(got) != 1 || got[0].Root != root || got[0].State != meta.ReplicaFailed || len(got[0].Reason) > reasonBytes {
				t.Errorf("%v: reported %v", kind, got)
			}
			if reason := got[0].Reason; strings.ToValidUTF8(reason, "") != reason {
				t.Error("the reason is cut within a letter")
			}
		})
	}
}

// What breaks on the way is tried again: listings, watches, reports.
func TestSurvivesTheMetadata(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		c.listErr, c.watchErr, c.report = errors.New("no quorum"), errors.New("broken"), errors.New("no quorum")
		root := c.demand(1, meta.ClassStandard)
		start(t, c, "a", []meta.NodeID{"a"})
		after(5 * time.Second)
		c.mu.Lock()
		if c.lists > 10 {
			t.Errorf("%d listings in 5 s of trouble", c.lists)
		}
		c.listErr = nil
		c.mu.Unlock()
		after(5 * time.Second)
		if got := c.reported(root); len(got) != 1 || got[0] != "a verified" {
			t.Errorf("reported %v", got)
		}
	})
}

// A damaged copy is reported failed and made again, also when that happens while it
// is being made.
func TestDamaged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		root := c.demand(1, meta.ClassStandard)
		a := start(t, c, "a", twoServers)
		start(t, c, "b", twoServers)
		after(time.Second)
		a.Damaged(root)
		after(time.Second)
		got := slices.DeleteFunc(c.reported(root), func(s string) bool { return strings.HasPrefix(s, "b") })
		if want := []string{"a verified", "a failed a chunk of it did not have its hash", "a verified"}; !slices.Equal(got, want) {
			t.Errorf("reported %v, want %v", got, want)
		}

		held := make(chan struct{})
		c.mu.Lock()
		c.ensure = func(context.Context, meta.Blob) error {
			<-held
			return nil
		}
		c.mu.Unlock()
		other := c.demand(2, meta.ClassStandard)
		after(time.Second)
		a.Damaged(other)
		synctest.Wait()
		close(held)
		after(5 * time.Second)
		got = slices.DeleteFunc(c.reported(other), func(s string) bool { return strings.HasPrefix(s, "b") })
		if len(got) < 3 || got[len(got)-1] != "a verified" || !strings.Contains(got[len(got)-2], "failed") {
			t.Errorf("reported %v", got)
		}
	})
}

// Two servers share a bucket, and so its copies. What one of them finds damaged the other
// has just made, or is making: it is made again at once, by the one whose it is.
func TestDoubtedByAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		root := c.demand(1, meta.ClassStandard)
		start(t, c, "bucket", []meta.NodeID{"bucket", "b"})
		other := start(t, c, "bucket", []meta.NodeID{"bucket", "b"}, func(cfg *Config) {
			cfg.Mine = func(digest.CID) bool { return false }
		})
		start(t, c, "b", []meta.NodeID{"bucket", "b"})
		after(time.Second)
		other.Damaged(root)
		after(time.Second)
		of := func(root digest.CID) []string {
			return slices.DeleteFunc(c.reported(root), func(s string) bool { return strings.HasPrefix(s, "b ") })
		}
		if got, want := of(root), []string{"bucket verified", "bucket failed a chunk of it did not have its hash", "bucket verified"}; !slices.Equal(got, want) {
			t.Errorf("reported %v, want %v", got, want)
		}

		// The news comes while it is being made.
		held := make(chan struct{})
		c.mu.Lock()
		c.ensure = func(context.Context, meta.Blob) error {
			<-held
			return nil
		}
		c.mu.Unlock()
		late := c.demand(2, meta.ClassStandard)
		after(time.Second)
		for _, s := range []meta.NodeID{"bucket", "b"} {
			if err := c.Report(t.Context(), []meta.Replica{{Root: late, Region: "eu", Server: s, State: meta.ReplicaVerified}}); err != nil {
				t.Fatal(err)
			}
		}
		other.Damaged(late)
		after(time.Second)
		close(held)
		after(time.Second)
		// What may be older than the doubt is not reported.
		if got, want := of(late), []string{"bucket verified", "bucket failed a chunk of it did not have its hash", "bucket verified"}; !slices.Equal(got, want) {
			t.Errorf("reported %v, want %v", got, want)
		}
	})
}

// breaking is Demands whose first watch breaks when it is told to.
type breaking struct {
	Demands
	end     chan struct{}
	watched bool
}

func (b *breaking) Watch(ctx context.Context, region meta.RegionName, changed func(), failed func(digest.CID)) error {
	changed()
	if b.watched {
		return b.Demands.Watch(ctx, region, changed, failed)
	}
	b.watched = true
	<-b.end
	return errors.New("broken")
}

// A doubt that came between two watches is learnt with the second.
func TestDoubtedBetweenTwoWatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		end := make(chan struct{})
		servers := []meta.NodeID{"bucket"}
		start(t, c, "bucket", servers, func(cfg *Config) { cfg.Demands = &breaking{Demands: cfg.Demands, end: end} })
		other := start(t, c, "bucket", servers, func(cfg *Config) { cfg.Mine = func(digest.CID) bool { return false } })
		after(time.Second)
		root := c.demand(1, meta.ClassStandard)
		close(end)
		after(500 * time.Millisecond) // it is made
		other.Damaged(root)
		after(10 * time.Second)
		if got, want := c.reported(root), []string{"bucket verified", "bucket failed a chunk of it did not have its hash", "bucket verified"}; !slices.Equal(got, want) {
			t.Errorf("reported %v, want %v", got, want)
		}
	})
}

// A restart finds out what the metadata knows already and does not fetch it again.
func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		var roots []digest.CID
		for i := range 30 {
			root := c.demand(i, meta.ClassStandard)
			roots = append(roots, root)
			c.copies[root] = []meta.Replica{{Root: root, Region: "eu", Server: "a", State: meta.ReplicaVerified}}
		}
		start(t, c, "a", twoServers) // b is down, so all stay pending
		after(10 * time.Minute)
		if made, _ := c.made(); len(made) != 0 || len(c.told()) != 0 {
			t.Errorf("%d copies, %d reports", len(made), len(c.told()))
		}
		start(t, c, "b", twoServers)
		after(10 * time.Second)
		made, _ := c.made()
		slices.SortFunc(made, func(x, y digest.CID) int { return cmp.Compare(x.Hex(), y.Hex()) })
		if n := len(slices.Compact(made)); n != len(roots) {
			t.Errorf("b made %d of %d", n, len(roots))
		}
	})
}

// The copy of a server that has left the region is none: the metadata owes another.
func TestACopyThatLeftDoesNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		root := c.demand(1, meta.ClassStandard)
		for _, s := range []meta.NodeID{"a", "gone"} {
			c.copies[root] = append(c.copies[root], meta.Replica{Root: root, Region: "eu", Server: s, State: meta.ReplicaVerified})
		}
		start(t, c, "b", twoServers)
		after(10 * time.Minute)
		if n := c.count(root); n != 1 {
			t.Errorf("b made %d copies, want 1", n)
		}
	})
}

// More than a page, more than a plan, more than a report.
func TestBacklog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		const n = 3*planMost + 17
		for i := range n {
			c.demand(i, meta.ClassStandard)
		}
		start(t, c, "a", []meta.NodeID{"a"}, func(cfg *Config) { cfg.Workers = 64 })
		after(time.Minute)
		if got := len(c.told()); got != n {
			t.Errorf("%d of %d reported", got, n)
		}
	})
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Config{}); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("err = %v", err)
	}
}
