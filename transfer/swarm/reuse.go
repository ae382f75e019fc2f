package swarm

import (
	"context"
	"sync"
	"time"

	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/transfer/swarm/core"
)

// What other blobs here have of a new one is copied before anybody is asked: the core
// starts when the copies are done. It starts at once when a reader waits for a chunk
// that is not being copied, and at the latest after copyFirst, for copying from a slow
// disk must not keep the network idle. What peers send meanwhile may then come twice.

// copyFirst is how long copying may keep a swarm from being asked: time for some 3 GiB
// in memory, 300 MiB from a spinning disk.
const copyFirst = 2 * time.Second

// local is the copying of a blob's chunks from others here.
type local struct {
	reuse *store.Reuse
	once  sync.Once
	hurry chan struct{} // closed when the core is to start
}

// wants hears that a reader goes on from chunk i, and whether it waits for it. A nil
// local has nothing to copy.
func (l *local) wants(i int, waits bool) {
	switch {
	case l == nil:
	case l.reuse.Has(i):
		l.reuse.Prefer(i)
	case waits:
		l.start()
	}
}

func (l *local) start() { l.once.Do(func() { close(l.hurry) }) }

// begin takes over blob, which may lack chunks: others here may have them.
func (m *membership) begin(ctx context.Context, blob store.Blob) {
	reuse := m.s.cfg.Store.Reuse(ctx, blob)
	if reuse == nil {
		if !m.post(func() { m.open(blob) }) {
			closeBlob(blob)
		}
		return
	}
	m.mu.Lock()
	if m.closed || m.blob != nil { // or somebody was faster
		m.mu.Unlock()
		reuse.Close()
		closeBlob(blob)
		return
	}
	m.local = &local{reuse: reuse, hurry: make(chan struct{})}
	m.show(blob)
	m.io.Add(1)
	m.mu.Unlock()
	if !m.s.spawn(func(ctx context.Context) { m.copyLocal(ctx, blob, m.local) }) {
		reuse.Close()
		m.io.Done()
	}
}

// show gives the blob to the readers. Caller holds mu.
func (m *membership) show(blob store.Blob) {
	m.blob, m.have, m.passing = blob, blob.Have(), blob.Window() > 0
	blob.Yield(len(m.sessions) == 0)
	for i, waiting := range m.waiters {
		if m.have.Has(i) {
			wakeAll(waiting)
			delete(m.waiters, i)
		} else {
			m.local.wants(i, true)
		}
	}
	close(m.opened)
}

// copyLocal copies what l finds and hands blob to the owner in time.
func (m *membership) copyLocal(ctx context.Context, blob store.Blob, l *local) {
	defer m.io.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		l.reuse.Run(ctx, func(i int, err error) { m.copied(l, i, err) })
	}()
	timer := time.NewTimer(copyFirst)
	defer timer.Stop()
	select {
	case <-copied:
	case <-l.hurry:
	case <-timer.C:
	case <-m.quit:
	}
	m.post(func() { m.open(blob) })
	select {
	case <-copied:
	case <-m.quit:
		cancel()
		<-copied
	}
}

// copied notes that chunk i came from another blob, or will not.
func (m *membership) copied(l *local, i int, err error) {
	if err != nil {
		m.s.log.Debug("a local chunk is not reused", "error", err)
		l.start() // it has to be fetched
		return
	}
	m.wrote(i)
	m.post(func() {
		// Before the core starts there is nobody to tell: it will see for itself.
		if m.core != nil && !m.core.Has(i) {
			m.foundBytes(int64(m.blob.Map().Chunks[i].Stored))
			m.step(core.Event{Kind: core.Arrived, Peer: ^core.Peer(0), Chunk: i})
		}
	})
}

// slid tells the core which chunks of a passing blob made place for others. Of such a
// blob peers are told nothing, and servers are asked for what the readers need next:
// a chunk of a server's choice would be gone before it is read.
func (m *membership) slid() {
	m.mu.Lock()
	if !m.passing {
		m.mu.Unlock()
		return
	}
	var gone []int
	have := m.blob.Have()
	for i := range m.have.Len() {
		if m.have.Has(i) && !have.Has(i) {
			m.have.Clear(i)
			gone = append(gone, i)
		}
	}
	m.mu.Unlock()
	if len(gone) > 0 {
		m.post(func() {
			for _, i := range gone {
				m.step(core.Event{Kind: core.Lost, Chunk: i})
			}
		})
	}
}

// shown reports whether the map is known, though the core may not have started.
func (m *membership) shown() bool {
	select {
	case <-m.opened:
		return true
	default:
		return false
	}
}
