package forward

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

const (
	// guardAfter is how long a request may be without an end before its server is asked
	// whether it lives, and how long between two such questions.
	guardAfter = 750 * time.Millisecond
	// proofTime is how long a proof may take. A server that fails two in a row is given
	// up: one may get lost where the machine is busy.
	proofTime = time.Second
	// watchEvery is how often servers that are down are tried again; watchLater, after
	// the first watchTurns turns.
	watchEvery = time.Second
	watchLater = 5 * time.Second
	watchTurns = 60
	// maxWatched bounds the servers tried in one turn.
	maxWatched = 64
)

// check is a proof under way; who wants one of the same server waits for it.
type check struct {
	done chan struct{}
	err  error
}

// prove asks a server to prove that its process lives and is itself: a new connection
// with a TLS handshake. A stopped process accepts connections, but does not answer.
func (f *Forwarder) prove(id meta.NodeID) error {
	f.mu.Lock()
	c := f.checks[id]
	mine := c == nil
	if mine {
		c = &check{done: make(chan struct{})}
		f.checks[id] = c
	}
	f.mu.Unlock()
	if !mine {
		<-c.done // within proofTime, or at the end
		return c.err
	}
	limited, cancel := context.WithTimeout(f.ended, proofTime)
	defer cancel()
	conn, err := f.dial(limited, "tcp", string(id)+":443")
	if err == nil {
		err = conn.Close()
	}
	c.err = err
	f.mu.Lock()
	delete(f.checks, id)
	f.mu.Unlock()
	close(c.done)
	return err
}

// Doubt has a server asked whether it lives, because it lets somebody wait. It returns
// at once. If the server does not, all requests that it has are given up and the next
// go elsewhere.
func (f *Forwarder) Doubt(id meta.NodeID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.doubted[id] || f.ended.Err() != nil {
		return
	}
	f.doubted[id] = true
	f.watcher.Go(func() {
		err := f.prove(id)
		if err != nil {
			err = f.prove(id)
		}
		f.mu.Lock()
		delete(f.doubted, id)
		var has []context.CancelCauseFunc
		for giveUp, at := range f.waiting {
			if at == id && err != nil {
				has = append(has, *giveUp)
			}
		}
		f.mu.Unlock()
		if err == nil || f.ended.Err() != nil {
			return
		}
		f.failed(id)
		for _, giveUp := range has {
			giveUp(fmt.Errorf("it does not answer: %w", err))
		}
	})
}

// guard gives a request up when its server does not live any more. It ends with ctx.
func (f *Forwarder) guard(ctx context.Context, id meta.NodeID, giveUp context.CancelCauseFunc) {
	f.mu.Lock()
	f.waiting[&giveUp] = id
	f.mu.Unlock()
	tick := time.NewTicker(guardAfter)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			f.Doubt(id)
		case <-ctx.Done():
			f.mu.Lock()
			delete(f.waiting, &giveUp)
			f.mu.Unlock()
			return
		}
	}
}

// failed notes a server that could not be reached, or stopped answering, and has its
// region watched until it is back.
func (f *Forwarder) failed(id meta.NodeID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sticky == id {
		f.sticky = ""
	}
	f.down[id] = true
	if !f.watching && f.ended.Err() == nil {
		f.watching = true
		f.watcher.Go(f.watch)
	}
}

// watch tries the servers of the own region, and all that are down, until each of them
// lives. So one that is back is used again without a request having to try it, and the
// neighbours of a dead one, which may have died with it, are known to be dead as well.
func (f *Forwarder) watch() {
	for turn := 0; ; turn++ {
		servers, err := f.Roster.Servers(f.ended)
		if err != nil {
			servers = nil
		}
		f.mu.Lock()
		known := map[meta.NodeID]bool{}
		var tried []meta.Node
		for _, n := range servers {
			known[n.ID] = true
			if n.ID != f.Self && (n.Region == f.Region || f.down[n.ID]) && len(tried) < maxWatched {
				tried = append(tried, n)
			}
		}
		for id := range f.down {
			if !known[id] {
				delete(f.down, id)
			}
		}
		f.mu.Unlock()
		var group sync.WaitGroup
		for _, n := range tried {
			group.Go(func() {
				err := f.prove(n.ID)
				f.mu.Lock()
				defer f.mu.Unlock()
				if err != nil {
					f.down[n.ID] = true
				} else {
					delete(f.down, n.ID)
				}
			})
		}
		group.Wait()
		f.mu.Lock()
		if len(f.down) == 0 || f.ended.Err() != nil {
			f.watching = false
			f.mu.Unlock()
			return
		}
		f.mu.Unlock()
		pause := watchEvery
		if turn >= watchTurns {
			pause = watchLater
		}
		select {
		case <-f.ended.Done():
		case <-time.After(pause):
		}
	}
}
