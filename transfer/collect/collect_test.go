package collect

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/verify/digest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is the metadata's side and a store in memory.
type world struct {
	mu      sync.Mutex
	orders  map[digest.CID]uint64
	blobs   map[digest.CID]store.Info
	busy    map[digest.CID]bool
	unknown map[digest.CID]bool
	spare   map[digest.CID]bool
	asked   time.Time
	fail    error               // of Removed
	broken  map[digest.CID]bool // files that cannot be removed
	removed []digest.CID
	lists   int
	listed  int // of the store
}

func newWorld() *world {
	return &world{
		orders: map[digest.CID]uint64{}, blobs: map[digest.CID]store.Info{}, busy: map[digest.CID]bool{},
		unknown: map[digest.CID]bool{}, spare: map[digest.CID]bool{},
	}
}

func root(i int) digest.CID { return digest.Sum(fmt.Append(nil, i)) }

func (w *world) add(i int, age time.Duration, complete bool) digest.CID {
	r := root(i)
	w.blobs[r] = store.Info{Root: r, StoredBytes: 10, Complete: complete, LastUse: time.Now().Add(-age)}
	return r
}

func sorted[V any](m map[digest.CID]V, after digest.CID, limit int) (out []digest.CID) {
	for r := range m {
		if after.IsZero() || slices.Compare(r[:], after[:]) > 0 {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b digest.CID) int { return slices.Compare(a[:], b[:]) })
	return out[:min(len(out), limit)]
}

type orders struct{ *world }

func (w orders) List(_ context.Context, after digest.CID, limit int) (out []Order, _ error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lists++
	for _, r := range sorted(w.orders, after, limit) {
		out = append(out, Order{Root: r, Index: w.orders[r]})
	}
	return out, nil
}

func (w orders) Stands(_ context.Context, o Order) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.orders[o.Root] == o.Index, nil
}

func (w orders) Removed(_ context.Context, done []Order) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil {
		return w.fail
	}
	for _, o := range done {
		if w.orders[o.Root] == o.Index {
			delete(w.orders, o.Root)
		}
		w.removed = append(w.removed, o.Root)
	}
	return nil
}

type strays struct{ *world }

func (w strays) Unknown(_ context.Context, roots []digest.CID) (unknown, spare []digest.CID, _ error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range roots {
		if w.unknown[r] {
			unknown = append(unknown, r)
		}
		if w.spare[r] {
			spare = append(spare, r)
		}
	}
	return unknown, spare, nil
}

func (w strays) Order(_ context.Context, blobs []store.Info) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, b := range blobs {
		if b.StoredBytes != 10 {
			return fmt.Errorf("stray %+v", b)
		}
		w.orders[b.Root] = 7
	}
	return nil
}

func (w strays) Asked(context.Context) (time.Time, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked, nil
}

type disk struct{ *world }

func (w disk) Collect(_ context.Context, r digest.CID, still func() (bool, error)) (int64, error) {
	w.mu.Lock()
	busy := w.busy[r]
	w.mu.Unlock()
	if busy {
		return 0, meta.ErrConflict
	}
	if ok, err := still(); err != nil || !ok {
		return 0, errors.Join(err, meta.ErrConflict)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken[r] {
		return 0, errors.New("input/output error")
	}
	b := w.blobs[r]
	delete(w.blobs, r)
	return b.StoredBytes, nil
}

func (w disk) List(_ context.Context, after digest.CID, limit int) (out []store.Info, _ error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.listed++
	for _, r := range sorted(w.blobs, after, limit) {
		out = append(out, w.blobs[r])
	}
	return out, nil
}

func (w *world) has(r digest.CID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.blobs[r]
	return ok
}

// pass lets time go by, and all that is due be done.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// run works with w for as long as test takes, in virtual time.
func run(t *testing.T, test func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		l, err := New(Config{Orders: orders{w}, Strays: strays{w}, Store: disk{w}, PerSecond: 100})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.Run(ctx) }()
		test(t, w)
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// What is ordered goes, at the pace that is set; what is in use goes once it is free;
// what is wanted again stays.
func TestOrdersAreCarriedOut(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.mu.Lock()
		for i := range 1200 {
			w.orders[w.add(i, 0, i%2 == 0)] = 3
		}
		w.orders[root(5000)] = 3 // was never here, or went before a crash
		kept, busy := w.add(1300, 0, true), root(7)
		w.busy[busy] = true
		w.mu.Unlock()
		began := time.Now()
		pass(5 * time.Second)
		w.mu.Lock()
		if n := 1201 - len(w.blobs); n < 300 || n > 500 {
			t.Errorf("%d of 1200 gone after 5 s at 100 a second", n)
		}
		w.mu.Unlock()
		pass(30*time.Second - time.Since(began))
		if len(w.orders) != 1 || w.orders[busy] != 3 || !w.has(busy) || !w.has(kept) || len(w.blobs) != 2 {
			t.Fatalf("%d orders and %d blobs are left, want those in use", len(w.orders), len(w.blobs))
		}
		w.mu.Lock()
		lists := w.lists
		w.mu.Unlock()
		pass(10 * time.Minute)
		w.mu.Lock()
		if n := w.lists - lists; n > 60 {
			t.Errorf("%d listings in 10 minutes in which nothing could be done", n)
		}
		w.busy[busy] = false
		w.mu.Unlock()
		pass(2 * idleMost)
		if w.has(busy) || len(w.orders) != 0 {
			t.Error("what was in use is still here")
		}
	})
}

// A word that does not arrive is said again, and removes nothing twice.
func TestWordsAreSaidAgain(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.mu.Lock()
		gone := w.add(1, 0, true)
		w.orders[gone] = 4
		w.fail = errors.New("no quorum")
		w.mu.Unlock()
		pass(time.Minute)
		if w.has(gone) || len(w.removed) != 0 {
			t.Fatalf("here %v, said %v", w.has(gone), w.removed)
		}
		w.mu.Lock()
		w.fail = nil
		w.mu.Unlock()
		pass(time.Minute)
		if !slices.Equal(w.removed, []digest.CID{gone}) {
			t.Errorf("said %v", w.removed)
		}
	})
}

// A blob whose files cannot be removed keeps no other one.
func TestWhatCannotBeRemovedHoldsUpNothing(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.mu.Lock()
		w.broken = map[digest.CID]bool{}
		for i := range 10 {
			w.orders[w.add(i, 0, true)] = 3
			w.spare[w.add(100+i, 48*time.Hour, false)] = true
		}
		for _, least := range []digest.CID{sorted(w.orders, digest.CID{}, 1)[0], sorted(w.spare, digest.CID{}, 1)[0]} {
			w.broken[least] = true // what comes first
		}
		w.mu.Unlock()
		pass(2 * time.Hour)
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.blobs) != 2 || len(w.orders) != 1 {
			t.Errorf("%d blobs are here, %d orders are left", len(w.blobs), len(w.orders))
		}
	})
}

// Old blobs that nobody knows are named to the metadata, and go by its order; parts of
// blobs that are not needed go without; all else stays.
func TestStraysGo(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.mu.Lock()
		known, fresh := w.add(1, time.Hour, true), w.add(2, time.Second, true)
		stray, part := w.add(3, time.Hour, true), w.add(4, 48*time.Hour, false)
		late, spare := w.add(5, time.Hour, false), w.add(6, 48*time.Hour, true)
		pinned := w.add(7, time.Hour, true)
		b := w.blobs[pinned]
		b.Pinned = true
		w.blobs[pinned] = b
		w.unknown[fresh], w.unknown[stray], w.unknown[pinned] = true, true, true
		w.spare[part], w.spare[late], w.spare[spare] = true, true, true
		w.mu.Unlock()
		pass(61 * time.Minute)
		if w.has(stray) || w.has(part) {
			t.Error("a stray or a part that is not needed is still here")
		}
		// What was fresh is not any more: it goes with the pass that is asked for.
		if !w.has(known) || !w.has(late) || !w.has(spare) || !w.has(pinned) {
			t.Error("a blob that is known was removed")
		}
		listed := w.listed
		pass(time.Hour)
		if w.listed != listed {
			t.Error("the store was looked through again within a day")
		}
		w.mu.Lock()
		w.asked = time.Now()
		w.mu.Unlock()
		pass(10 * time.Second)
		if w.listed == listed || w.has(fresh) {
			t.Error("the pass that was asked for did not come")
		}
		pass(27 * time.Hour)
		if w.has(late) {
			t.Error("a part that is not needed is still here a day later")
		}
	})
}
