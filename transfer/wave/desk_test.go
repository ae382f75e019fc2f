package wave

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// book is the metadata of one wave with room for one host; it decides when it is let.
type book struct {
	mu    sync.Mutex
	wave  meta.Wave
	hosts map[meta.NodeID]meta.WaveHost

	admitting chan struct{} // gets a token when an admission has arrived
	decide    chan struct{} // has a token for each that may be decided
}

func (b *book) Reach(context.Context, uint64) error { return nil }

func (b *book) Open(context.Context) ([]meta.Wave, uint64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return []meta.Wave{b.wave}, 1, nil
}

func (b *book) Hosts(_ context.Context, _ string, ids []meta.NodeID) (meta.Wave, []meta.WaveHost, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	hosts := make([]meta.WaveHost, len(ids))
	for i, id := range ids {
		hosts[i] = b.hosts[id]
		hosts[i].Node = id
	}
	return b.wave, hosts, nil
}

func (b *book) Took(context.Context, string, meta.NodeID, int) ([]meta.WaveHost, error) {
	return nil, nil
}

func (b *book) Watch(ctx context.Context, _ func()) error {
	<-ctx.Done()
	return nil
}

func (b *book) Admit(_ context.Context, _ string, hosts []meta.NodeID) error {
	b.admitting <- struct{}{}
	<-b.decide
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, id := range hosts {
		if region := &b.wave.Regions[0]; region.Fetching < b.wave.MaxParallel {
			region.Fetching++
			b.hosts[id] = meta.WaveHost{Node: id, Region: region.Region, State: meta.HostFetching}
		}
	}
	return nil
}

func (b *book) Report(_ context.Context, _ string, hosts []meta.WaveHost) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, h := range hosts {
		b.hosts[h.Node] = h
	}
	return nil
}

func (b *book) End(context.Context, string) error       { return nil }
func (b *book) Forget(context.Context, time.Time) error { return nil }

// newBook returns a wave with room for one host, and that host.
func newBook() (*book, meta.Node) {
	return &book{
		wave: meta.Wave{
			ID: "w", State: meta.WaveRunning, MaxParallel: 1, Expires: meta.TimeOf(time.Now().Add(time.Hour)),
			Regions: []meta.WaveRegion{{Region: "r1"}}, Targets: []meta.WaveTarget{{Region: "r1"}},
		},
		hosts:     make(map[meta.NodeID]meta.WaveHost),
		admitting: make(chan struct{}), decide: make(chan struct{}),
	}, meta.Node{ID: "a", Role: meta.RoleAgent, Region: "r1"}
}

// open runs a desk over b until ctx ends, which group waits for.
func (b *book) open(ctx context.Context, t *testing.T, group *sync.WaitGroup, host meta.Node) *Desk {
	desk, err := NewDesk(DeskConfig{
		Plans: b, Arbiter: b, Leads: func() bool { return false },
		Node: func(meta.NodeID) (meta.Node, bool) { return host, true }, Agents: func() []meta.Node { return []meta.Node{host} },
	})
	if err != nil {
		t.Fatal(err)
	}
	group.Go(func() { _ = desk.Run(ctx) })
	return desk
}

// A host that is done may be heard by a server which has not heard yet that it was
// admitted, as after the one that did was killed. It is told to come back, and its word is
// recorded then.
func TestDoneBeforeItsAdmissionIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b, host := newBook()
		var group sync.WaitGroup
		desk := b.open(ctx, t, &group, host)
		defer group.Wait()
		defer cancel()
		done := meta.WaveWord{Parts: []meta.WavePart{{Wave: "w", State: meta.HostDone, Bytes: 5, TotalBytes: 5}}}
		orders, err := desk.Sync(ctx, host.ID, done, hold)
		if err != nil || len(orders.Orders) != 1 || orders.Orders[0].State.Settled() || orders.Again != comeBack {
			t.Fatalf("it is told %+v, %v", orders, err)
		}
		b.mu.Lock()
		b.hosts[host.ID] = meta.WaveHost{Node: host.ID, Region: "r1", State: meta.HostFetching}
		b.mu.Unlock()
		orders, err = desk.Sync(ctx, host.ID, done, hold)
		if err != nil || len(orders.Orders) != 1 || orders.Orders[0].State != meta.HostDone {
			t.Errorf("when its admission is known it is told %+v, %v", orders, err)
		}
	})
}

// A host whose call ends while its admission is decided asks again, and hears at once
// that it may begin: it need not wait until the server's answer is due.
func TestAdmittedBetweenTwoCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b, host := newBook()
		var group sync.WaitGroup
		desk := b.open(ctx, t, &group, host)
		defer group.Wait()
		defer cancel()

		call, end := context.WithCancel(ctx)
		group.Go(func() { _, _ = desk.Sync(call, host.ID, meta.WaveWord{}, hold) })
		<-b.admitting
		end()
		synctest.Wait()
		asked := time.Now()
		var orders meta.WaveOrders
		var err error
		answered := make(chan struct{})
		group.Go(func() {
			defer close(answered)
			orders, err = desk.Sync(ctx, host.ID, meta.WaveWord{}, hold)
		})
		synctest.Wait()
		b.decide <- struct{}{}
		<-answered
		if err != nil || len(orders.Orders) != 1 || orders.Orders[0].State != meta.HostFetching {
			t.Fatalf("it is told %+v, %v", orders, err)
		}
		if took := time.Since(asked); took > time.Second {
			t.Errorf("it was told after %v", took)
		}
		if lease := orders.Orders[0].Lease; lease < meta.WaveLease/2 {
			t.Errorf("its lease is %v", lease)
		}
	})
}
