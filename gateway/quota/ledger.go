package quota

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

const (
	// blockBytes is the most that a server reserves beyond what it needs, and leftPart the
	// part of what is left of the quota: near its end little is kept from other servers.
	blockBytes = 64 << 20
	leftPart   = 32
	// reservedLease is how long what a crashed server had reserved is kept from others.
	reservedLease = time.Minute
	// idleSession is how long an upload that nobody continues keeps what it reserved; one
	// that is continued later reserves anew.
	idleSession = 15 * time.Minute
)

// ledgerCore says what of a server's reservation for a tenant is whose.
type ledgerCore struct {
	granted  int64 // of the state machine
	sessions map[string]*session
	held     int64 // the sum of the sessions
}

type session struct {
	bytes   int64
	touched time.Time
}

// need returns the total that has to be granted so that a session can have bytes; 0 when
// what was granted is enough.
func (c *ledgerCore) need(id string, bytes int64) int64 {
	more := bytes
	if s := c.sessions[id]; s != nil {
		more -= s.bytes
	}
	if more <= 0 || c.held+more <= c.granted {
		return 0
	}
	return c.held + more
}

// take gives a session its bytes, or says that they are not there.
func (c *ledgerCore) take(id string, bytes int64, now time.Time) bool {
	s := c.sessions[id]
	if s == nil {
		s = &session{}
	}
	more := max(0, bytes-s.bytes)
	if c.held+more > c.granted {
		return false
	}
	if c.sessions == nil {
		c.sessions = map[string]*session{}
	}
	s.bytes, s.touched = s.bytes+more, now
	c.held += more
	c.sessions[id] = s
	return true
}

// drop ends a session and returns what it had; spent says that the bytes have arrived,
// and are no longer reserved.
func (c *ledgerCore) drop(id string, spent bool) int64 {
	s := c.sessions[id]
	if s == nil {
		return 0
	}
	delete(c.sessions, id)
	c.held -= s.bytes
	if spent {
		c.granted = max(0, c.granted-s.bytes)
	}
	return s.bytes
}

// sweep drops sessions that nobody continued.
func (c *ledgerCore) sweep(now time.Time) {
	for id, s := range c.sessions {
		if now.Sub(s.touched) > idleSession {
			c.drop(id, false)
		}
	}
}

// Storage reserves room for uploads on a server.
type Storage struct {
	quota *Quota

	mu      sync.Mutex
	tenants map[meta.TenantName]*account
	// told are those for whom the state machine may still have something.
	told map[meta.TenantName]bool
}

type account struct {
	asking sync.Mutex // held while the state machine is asked
	core   ledgerCore // under Storage.mu
	// known says that granted is the state machine's: before, it may have something of
	// this server's former self. Under Storage.mu.
	known bool
}

func (s *Storage) account(tenant meta.TenantName) *account {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.tenants[tenant]
	if a == nil {
		a = &account{}
		s.tenants[tenant] = a
	}
	return a
}

// Reserve makes sure that an upload session has room for bytes in all. It asks nobody for
// a tenant without a storage quota.
//
// Errors: *meta.QuotaError when the quota has no room; meta.ErrUnavailable.
func (s *Storage) Reserve(ctx context.Context, tenant meta.TenantName, id string, bytes int64) error {
	now := time.Now()
	usage := s.quota.usage(ctx, s.quota.tenant(tenant), now)
	quota := usage.Tenant.Limits.StorageBytes
	if quota == 0 || !usage.Counted {
		return nil
	}
	a := s.account(tenant)
	left := quota - usage.Bytes - usage.Reserved
	s.mu.Lock()
	ok := a.core.take(id, bytes, now)
	s.mu.Unlock()
	if ok {
		return nil
	}
	a.asking.Lock()
	defer a.asking.Unlock()
	s.mu.Lock()
	want := a.core.need(id, bytes)
	// What is not there, by what was known a moment ago, is not asked for: a tenant that is
	// full costs the log nothing, however often its clients try.
	hopeless := a.known && want > left+a.core.granted
	s.mu.Unlock()
	if want > 0 && !hopeless {
		want += max(0, min(blockBytes, left/leftPart))
		// Part of a reservation is no use, and is given back by the next renewal.
		granted, err := s.ask(ctx, []state.StorageWant{{Tenant: tenant, Bytes: want}})
		if err != nil {
			return fmt.Errorf("reserve room for an upload: %w", err)
		}
		if g := granted[0]; g.Quota == 0 {
			return nil // It has just been taken away.
		} else {
			usage.Bytes = g.Used
		}
	}
	s.mu.Lock()
	ok = a.core.take(id, bytes, now)
	s.mu.Unlock()
	if ok {
		return nil
	}
	s.quota.metrics.refused.WithLabelValues("storage").Inc()
	return &meta.QuotaError{
		Tenant: tenant, Limit: fmt.Sprintf("storage quota of %s", bytesText(quota)),
		Help: fmt.Sprintf("%s are used, this upload needs room for %s; delete what is not needed or ask for a larger quota", bytesText(usage.Bytes), bytesText(bytes)),
	}
}

// ask sets what this server has reserved, and takes over what it got.
func (s *Storage) ask(ctx context.Context, wants []state.StorageWant) ([]state.StorageGrant, error) {
	receipt, err := s.quota.cfg.Doer.Do(ctx, s.quota.origin(), state.ReserveStorage{Server: s.quota.cfg.Self, Wants: wants, Lease: reservedLease})
	if err != nil {
		return nil, err
	}
	got, _ := receipt.Value.(state.Reservations)
	if len(got.Granted) != len(wants) {
		return nil, fmt.Errorf("%d reservations were answered by %d: %w", len(wants), len(got.Granted), meta.ErrCorrupt)
	}
	for _, g := range got.Granted {
		a := s.account(g.Tenant)
		s.mu.Lock()
		a.core.granted, a.known = g.Bytes, true
		s.told[g.Tenant] = g.Bytes > 0 && g.Quota > 0
		if !s.told[g.Tenant] {
			delete(s.told, g.Tenant)
		}
		s.mu.Unlock()
	}
	return got.Granted, nil
}

// Held returns what a session has reserved, to be settled with what it links.
func (s *Storage) Held(tenant meta.TenantName, id string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.tenants[tenant]; a != nil {
		if held := a.core.sessions[id]; held != nil {
			return held.bytes
		}
	}
	return 0
}

// Settled ends a session whose bytes are linked: what it had reserved is now used.
func (s *Storage) Settled(tenant meta.TenantName, id string) { s.drop(tenant, id, true) }

// Release ends a session that comes to nothing. What it had goes back within seconds.
func (s *Storage) Release(tenant meta.TenantName, id string) { s.drop(tenant, id, false) }

func (s *Storage) drop(tenant meta.TenantName, id string, spent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.tenants[tenant]; a != nil {
		a.core.drop(id, spent)
	}
}

// renew tells the state machine what is still needed.
func (s *Storage) renew(ctx context.Context) error {
	now := time.Now()
	s.mu.Lock()
	var wants []state.StorageWant
	for tenant, a := range s.tenants {
		a.core.sweep(now)
		if a.core.held > 0 || s.told[tenant] {
			wants = append(wants, state.StorageWant{Tenant: tenant, Bytes: a.core.held})
		} else if len(a.core.sessions) == 0 && a.asking.TryLock() {
			a.asking.Unlock()
			delete(s.tenants, tenant)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(wants, func(a, b state.StorageWant) int { return cmp.Compare(a.Tenant, b.Tenant) })
	for some := range slices.Chunk(wants, 256) {
		if _, err := s.ask(ctx, some); err != nil {
			return err
		}
	}
	return nil
}
