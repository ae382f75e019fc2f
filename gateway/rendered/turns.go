package rendered

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Renders at a time. Each has a CPU, memory and maybe a file; a tenant leaves some to
// others, whose documents may take no more than a read.
const (
	maxRenders       = 8
	maxTenantRenders = 6
	// turnWait is how long a document waits until it may be rendered, turnRetry when its
	// reader is told to come again.
	turnWait  = 30 * time.Second
	turnRetry = 5 * time.Second
)

// turns says who renders now.
type turns struct {
	all chan struct{}

	mu      sync.Mutex // guards below
	tenants map[meta.TenantName]*tenantTurns
}

// tenantTurns is of a tenant that renders or waits; the last of them takes it away.
type tenantTurns struct {
	taken chan struct{}
	users int
}

func newTurns() *turns {
	return &turns{all: make(chan struct{}, maxRenders), tenants: map[meta.TenantName]*tenantTurns{}}
}

// take waits for a turn, which the caller gives back.
//
// Errors: *meta.UnavailableError after turnWait; of ctx.
func (t *turns) take(ctx context.Context, tenant meta.TenantName) (give func(), err error) {
	t.mu.Lock()
	own := t.tenants[tenant]
	if own == nil {
		own = &tenantTurns{taken: make(chan struct{}, maxTenantRenders)}
		t.tenants[tenant] = own
	}
	own.users++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if own.users--; own.users == 0 {
			delete(t.tenants, tenant)
		}
	}
	timer := time.NewTimer(turnWait)
	defer timer.Stop()
	// Its tenant's first: who waits for that keeps nobody else waiting.
	places := []chan struct{}{own.taken, t.all}
	for i, place := range places {
		select {
		case place <- struct{}{}:
			continue
		case <-ctx.Done():
			err = fmt.Errorf("rendered document: %w", context.Cause(ctx))
		case <-timer.C:
			err = fmt.Errorf("rendered document: too many are rendered here at a time: %w", &meta.UnavailableError{Reason: "busy", RetryAfter: turnRetry})
		}
		for _, taken := range places[:i] {
			<-taken
		}
		leave()
		return nil, err
	}
	return func() {
		<-t.all
		<-own.taken
		leave()
	}, nil
}
