package quota

import (
	"context"
	"sync"
	"time"
)

// places bounds what goes on at one time; who comes too many waits in line, first come
// first served.
type places struct {
	mu    sync.Mutex
	most  int // 0 is without bound
	taken int
	line  []chan struct{}
}

// maxLine bounds those who wait, for each place.
const maxLine = 4

// set changes the bound.
func (p *places) set(most int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.most = most
	p.serve()
}

// serve gives free places to who waits. It holds mu.
func (p *places) serve() {
	for len(p.line) > 0 && (p.most == 0 || p.taken < p.most) {
		close(p.line[0])
		p.line = p.line[1:]
		p.taken++
	}
}

// take waits at most most for a place; false when there was none.
//
// Errors: of ctx.
func (p *places) take(ctx context.Context, most time.Duration) (bool, error) {
	p.mu.Lock()
	if p.most == 0 || p.taken < p.most && len(p.line) == 0 {
		p.taken++
		p.mu.Unlock()
		return true, nil
	}
	if len(p.line) >= maxLine*p.most {
		p.mu.Unlock()
		return false, nil
	}
	mine := make(chan struct{})
	p.line = append(p.line, mine)
	p.mu.Unlock()
	timer := time.NewTimer(most)
	defer timer.Stop()
	var err error
	select {
	case <-mine:
		return true, nil
	case <-timer.C:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, other := range p.line {
		if other == mine {
			p.line = append(p.line[:i], p.line[i+1:]...)
			return false, err
		}
	}
	return true, nil // It came at the last moment.
}

func (p *places) free() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken--
	p.serve()
}

// use returns how many places are taken, and how many more are waited for.
func (p *places) use() (taken, waiting int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.taken, len(p.line)
}
