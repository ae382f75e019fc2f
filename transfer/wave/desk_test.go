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

func (b *book) Report(context.Context, string, []meta.WaveHost) error { return nil }
func (b *book) End(context.Context, string) error                     { return nil }
func (b *book) Forget(context.Context, time.Time) error               { return nil }

// A host whose call ends while its admission is decided asks again, and hears at once
// that it may begin: it need not wait until the server's answer is due.
func TestAdmittedBetweenTwoCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := &book{
			wave: meta.Wave{
				ID: "w", State: meta.WaveRunning, MaxParallel: 1, Expires: meta.TimeOf(time.Now().Add(time.Hour)),
				Regions: []meta.WaveRegion{{Region: "r1"}}, Targets: []meta.WaveTarget{{Region: "r1"}},
			},
			hosts:     make(map[meta.NodeID]meta.WaveHost),
			admitting: make(chan struct{}), decide: make(chan struct{}),
		}
		host := meta.Node{ID: "a", Role: meta.RoleAgent, Region: "r1"}
		desk, err := NewDesk(DeskConfig{
			Plans: b, Arbiter: b, Leads: func() bool { return false },
			Node: func(meta.NodeID) (meta.Node, bool) { return host, true }, Agents: func() []meta.Node { return []meta.Node{host} },
		})
		if err != nil {
			t.Fatal(err)
		}
		var group sync.WaitGroup
		group.Go(func() { _ = desk.Run(ctx) })
		defer group.Wait()
		defer cancel()

		call, end := context.WithCancel(ctx)
		group.Go(func() { _, _ = desk.Sync(call, host.ID, meta.WaveWord{}, hold) })
		<-b.admitting
		end()
		synctest.Wait()
		asked := time.Now()
		var orders meta.WaveOrders
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
