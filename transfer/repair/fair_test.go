package repair

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// wire is a link that concurrent copies share evenly, a piece at a time.
type wire struct {
	turn        chan struct{}
	bytesPerSec float64
}

func newWire(bytesPerSec float64) *wire { return &wire{make(chan struct{}, 1), bytesPerSec} }

func (w *wire) ensure(ctx context.Context, b meta.Blob) error {
	for left := b.StoredBytes; left > 0; {
		piece := min(left, 64<<10)
		left -= piece
		select {
		case w.turn <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		time.Sleep(time.Duration(float64(piece) / w.bytesPerSec * 1e9))
		<-w.turn
	}
	return nil
}

// lagsOf runs a server with a link of 100 Mbit/s for three minutes. Four tenants
// publish blobs of 1 MiB at random times, three of them a fifth of what the link carries,
// the first its share, a quarter, or a multiple of it. It returns the lags of the three
// from the demand to the report, sorted, and what part of its share the first got.
func lagsOf(t *testing.T, noise int) (lags []time.Duration, got float64) {
	synctest.Test(t, func(t *testing.T) {
		const bytesPerSec, blob, length = 12.5e6, 1 << 20, 3 * time.Minute
		c := newCluster()
		c.ensure = newWire(bytesPerSec).ensure
		born := map[digest.CID]time.Time{}
		c.reporting = func(r meta.Replica) {
			if at, calm := born[r.Root]; calm {
				lags = append(lags, time.Since(at))
			} else {
				got += blob / (bytesPerSec / 4 * length.Seconds())
			}
		}
		start(t, c, "a", []meta.NodeID{"a"})
		type event struct {
			at     time.Duration
			tenant int
		}
		var events []event
		random := rand.New(rand.NewPCG(1, 2))
		for tenant := range 4 {
			perSec := bytesPerSec / 5 / blob
			if tenant == 0 {
				perSec = bytesPerSec / 4 / blob * float64(noise)
			}
			for at := time.Duration(0); at < length; {
				at += time.Duration(random.ExpFloat64() / perSec * 1e9)
				events = append(events, event{at, tenant})
			}
		}
		slices.SortFunc(events, func(a, b event) int { return int(a.at - b.at) })
		begin := time.Now()
		for i, e := range events {
			time.Sleep(time.Until(begin.Add(e.at)))
			root := digest.Sum(fmt.Appendf(nil, "root %d", i))
			if e.tenant > 0 {
				c.mu.Lock()
				born[root] = time.Now()
				c.mu.Unlock()
			}
			c.demandOf(fmt.Sprint("tenant-", e.tenant), i, meta.ClassStandard, blob)
		}
		after(30 * time.Second)
		if len(lags) != len(born) {
			t.Errorf("%d of %d blobs of the calm tenants are there", len(lags), len(born))
		}
	})
	slices.Sort(lags)
	return lags, got
}

// One tenant at ten times its share moves the others' lag by at most a fifth.
func TestANoisyTenantMovesNobody(t *testing.T) {
	calm, _ := lagsOf(t, 1)
	loud, got := lagsOf(t, 10)
	mean := func(lags []time.Duration) (sum time.Duration) {
		for _, l := range lags {
			sum += l
		}
		return sum / time.Duration(len(lags))
	}
	at := func(lags []time.Duration, part float64) time.Duration { return lags[int(part*float64(len(lags)-1))] }
	for _, of := range []struct {
		name string
		lags []time.Duration
	}{{"at its share", calm}, {"at ten times its share", loud}} {
		t.Logf("lag of the other three tenants, the first %s: mean %v, median %v, 95th percentile %v, longest %v",
			of.name, mean(of.lags).Round(time.Millisecond), at(of.lags, 0.5).Round(time.Millisecond), at(of.lags, 0.95).Round(time.Millisecond), at(of.lags, 1).Round(time.Millisecond))
	}
	t.Logf("the first got %.2f of its share at ten times of it", got)
	if got < 1 {
		t.Errorf("the noisy tenant got %.2f of its share", got)
	}
	if m := float64(mean(loud)) / float64(mean(calm)); m > 1.2 {
		t.Errorf("the mean lag of the others is %.2f of what it was", m)
	}
	if m := float64(at(loud, 0.95)) / float64(at(calm, 0.95)); m > 1.2 {
		t.Errorf("the 95th percentile of the others' lag is %.2f of what it was", m)
	}
}

// What waits for other servers is not read again for each new demand.
func TestALongFrontIsPassed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		const n = 5_000
		for i := range n {
			root := c.demand(i, meta.ClassStandard)
			c.copies[root] = []meta.Replica{{Root: root, Region: "eu", Server: "a", State: meta.ReplicaVerified}}
		}
		start(t, c, "a", twoServers, func(cfg *Config) { cfg.Workers = 64 }) // b is down: all stay pending
		after(5 * time.Minute)
		c.mu.Lock()
		c.read = 0
		c.mu.Unlock()
		for i := range 10 {
			root := c.demandOf("other", n+i, meta.ClassStandard, 10)
			after(time.Second)
			if got := c.reported(root); len(got) != 1 {
				t.Errorf("%v after it was demanded, copy %d is %v", time.Second, i, got)
			}
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		// All are read once in relistEvery, and once more when what is known of them ages.
		if most := 3 * n; c.read > most {
			t.Errorf("%d demands were read for 10 new ones", c.read)
		}
	})
}

// In an incident only critical copies are begun, for a while.
func TestAnIncidentPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		severe, since := true, time.Now()
		l := start(t, c, "a", []meta.NodeID{"a"}, func(cfg *Config) {
			cfg.Incident = func() (time.Time, bool) {
				c.mu.Lock()
				defer c.mu.Unlock()
				return since, severe
			}
		})
		critical, standard := c.demand(1, meta.ClassCritical), c.demand(2, meta.ClassStandard)
		after(time.Minute)
		if len(c.reported(critical)) != 1 || len(c.reported(standard)) != 0 {
			t.Errorf("in an incident: critical %v, standard %v", c.reported(critical), c.reported(standard))
		}
		c.mu.Lock()
		severe = false
		c.mu.Unlock()
		l.changed()
		after(time.Second)
		if len(c.reported(standard)) != 1 {
			t.Errorf("after it: %v", c.reported(standard))
		}
		// One that lasts does not hold up for ever what is owed.
		c.mu.Lock()
		severe, since = true, time.Now()
		c.mu.Unlock()
		late := c.demand(3, meta.ClassCold)
		after(IncidentPause - time.Second)
		if len(c.reported(late)) != 0 {
			t.Errorf("during a long one: %v", c.reported(late))
		}
		after(2 * time.Second)
		if len(c.reported(late)) != 1 {
			t.Errorf("long after it began: %v", c.reported(late))
		}
	})
}

// A tenant whose copies hang, and the cold class, leave a worker to the others.
func TestNobodyTakesAllWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		c.ensure = func(ctx context.Context, b meta.Blob) error {
			if b.Context == "hangs" {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}
		for i := range 50 {
			c.demandOf("hangs", i, meta.ClassStandard, 10)
		}
		start(t, c, "a", []meta.NodeID{"a"})
		after(time.Second)
		other := c.demandOf("acme", 100, meta.ClassStandard, 10)
		after(time.Second)
		if _, most := c.made(); len(c.reported(other)) != 1 || most != 4 {
			t.Errorf("the other's copy is %v, at most %d ran", c.reported(other), most)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		c.ensure = func(ctx context.Context, b meta.Blob) error {
			<-ctx.Done()
			return errors.New("stopped")
		}
		for i := range 50 {
			c.demandOf(fmt.Sprint("tenant-", i%7), i, meta.ClassCold, 10)
		}
		start(t, c, "a", []meta.NodeID{"a"})
		after(time.Second)
		if _, most := c.made(); most != 2 {
			t.Errorf("%d cold copies ran at once", most)
		}
	})
}
