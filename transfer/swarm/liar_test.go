package swarm_test

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/transfer/swarm"
	"github.com/shoal-registry/shoal/verify/digest"
)

// lying is a store whose chunks are read with one bit changed: what a host with bad
// memory, or a bad host, serves.
func lying() *gate {
	return &gate{Store: store.NewMemory(), read: func(_ int, b []byte) ([]byte, error) {
		bad := bytes.Clone(b)
		bad[len(bad)/2] ^= 1
		return bad, nil
	}}
}

// told collects reports.
type told struct {
	mu  sync.Mutex
	all []report
}

func (r *told) to(c *swarm.Config) {
	c.Report = func(peer meta.NodeID, root digest.CID, i int) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.all = append(r.all, report{peer, root, i})
	}
}

type report struct {
	peer  meta.NodeID
	root  digest.CID
	chunk int
}

// Each wrong chunk is reported with who sent it, and counted where people look.
func TestWrongBytesAreReported(t *testing.T) {
	w := newTown(t)
	content := random(40 * chunk.MinBytes)
	liar, seed := w.add(holding(lying())), w.add(server)
	root := w.put(liar, content)
	w.put(seed, content)
	var wg sync.WaitGroup
	for range 2 {
		r := &told{}
		n := w.add(r.to)
		wg.Go(func() {
			want(t, n, root, content)
			r.mu.Lock()
			defer r.mu.Unlock()
			snapshot := n.Snapshot()
			if int64(len(r.all)) != snapshot.Totals.Bad {
				t.Errorf("%d reports, %d wrong chunks counted", len(r.all), snapshot.Totals.Bad)
			}
			for _, one := range r.all {
				if one.peer != liar.self.ID || one.root != root || one.chunk < 0 || one.chunk >= 40 {
					t.Errorf("reported: %+v", one)
				}
			}
			t.Logf("%d wrong chunks of the liar, none taken; banned %d, %d bytes from honest peers", len(r.all), len(snapshot.Banned), snapshot.Totals.In.Sum()-int64(len(r.all))*chunk.MinBytes)
		})
	}
	wg.Wait()
}

// Who is banned on others' word is served no more, and asked nothing: the gap was
// that nobody ever asks the liar's server for anything, so that it went on.
func TestABannedPeerGetsNothingMore(t *testing.T) {
	w := newTown(t)
	content := random(40 * chunk.MinBytes)
	open, gotSome := make(chan struct{}), make(chan struct{})
	var once sync.Once
	slow := &gate{Store: store.NewMemory(), read: func(i int, b []byte) ([]byte, error) {
		if i >= 4 {
			once.Do(func() { close(gotSome) })
			<-open
		}
		return b, nil
	}}
	seed := w.add(server, holding(slow))
	root := w.put(seed, content)
	liar := w.add()
	hold, err := liar.Fetch(within(t), root, swarm.FetchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	<-gotSome
	seed.Ban(liar.self.ID, time.Minute)
	await(t, "the ban", func() bool { return len(seed.Snapshot().Banned) == 1 && seed.Snapshot().Totals.Links == 0 })
	close(open)
	// An honest agent gets all; while it does the liar tries again and again.
	honest := w.add(func(c *swarm.Config) { c.Finder = awayFinder{c.Finder, liar.self.ID} })
	want(t, honest, root, content)
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	if err := hold.Wait(ctx, 39); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("the liar's fetch: %v", err)
	}
	// What the seed had sent by then may have been counted later: it holds back all but four.
	if got := liar.bytes("received", ""); got > 4*chunk.MinBytes {
		t.Errorf("%d bytes came, of %d before the ban", got, 4*chunk.MinBytes)
	}
	if s := honest.Snapshot(); len(s.Banned) != 1 || s.Banned[0].ID != liar.self.ID {
		t.Errorf("an agent that was told keeps away %+v", s.Banned)
	}
	for _, p := range honest.Snapshot().Peers {
		if p.ID == liar.self.ID {
			t.Error("an agent that was told is connected with it")
		}
	}
	seed.Ban(seed.self.ID, time.Minute) // oneself, and nobody: nothing happens
	seed.Ban("nobody", time.Minute)
	if n := len(seed.Snapshot().Banned); n != 1 {
		t.Errorf("%d are banned", n)
	}
}

// awayFinder adds whom to keep away to what a Finder says.
type awayFinder struct {
	swarm.Finder
	away meta.NodeID
}

func (f awayFinder) Join(ctx context.Context, want swarm.Want) (swarm.Introduction, error) {
	in, err := f.Finder.Join(ctx, want)
	in.Away = []meta.NodeID{f.away}
	return in, err
}

// A snapshot says what happened, over all and by blob and peer, within its bounds,
// and costs the work nothing: it is taken all the time here.
func TestSnapshot(t *testing.T) {
	w := newTown(t)
	content := random(64 * chunk.MinBytes)
	seed := w.add(server)
	root := w.put(seed, content)
	agents := []*node{w.add(), w.add(), w.add()}
	stop := make(chan struct{})
	var looking, reading sync.WaitGroup
	for _, n := range append(agents, seed) {
		looking.Go(func() {
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-stop:
					return
				case <-tick.C:
				}
				s := n.Snapshot()
				for _, r := range s.Roots {
					if r.HaveBytes > r.Bytes || r.Have > r.Chunks || r.Complete > r.Peers || r.Servers > r.Peers || r.Peers > r.Known {
						t.Errorf("impossible: %+v", r)
					}
				}
			}
		})
	}
	for _, n := range agents {
		reading.Go(func() { want(t, n, root, content) })
	}
	reading.Wait()
	close(stop)
	looking.Wait()
	// A chunk is counted where it came from once that has heard of its arrival, and one that
	// was asked for twice may still come.
	await(t, "both ends to have counted", func() bool {
		var in int64
		for _, n := range agents {
			s := n.Snapshot()
			if in += s.Totals.In.Sum(); s.Roots[0].In != s.Totals.In || s.Totals.In.Region != n.bytes("received", "") {
				return false
			}
		}
		out := seed.Snapshot().Totals.Out.Sum()
		for _, n := range agents {
			out += n.Snapshot().Totals.Out.Sum()
		}
		return out >= in
	})
	for _, n := range agents {
		s := n.Snapshot()
		r := s.Roots[0]
		if len(s.Roots) != 1 || r.Root != root || r.Have != r.Chunks || r.HaveBytes != int64(len(content)) || len(s.Peers) == 0 {
			t.Errorf("a reader's snapshot: %+v", s)
		}
		if s.Totals.In.WAN != 0 || s.Totals.ChunksIn < 64 {
			t.Errorf("counted %+v", s.Totals)
		}
	}
	if s := seed.Snapshot(); s.Totals.In.Sum() != 0 || s.Totals.Fetching != 0 {
		t.Errorf("the seed: %+v", s.Totals)
	}
	await(t, "the seed sees who is there", func() bool { r := seed.Snapshot().Roots[0]; return r.Peers == 3 && r.Servers == 0 })
	// What was here before a fetch is local.
	half := w.add(holding(agents[0].store))
	want(t, half, root, content)
	if got := half.Snapshot().Totals; got.In.Sum() != 0 {
		t.Errorf("a whole blob was fetched: %+v", got)
	}
}
