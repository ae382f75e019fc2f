package state

import (
	"fmt"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// ReserveStorage sets what a server may still bring into the repositories of tenants:
// not by how much more, but how much in all, so that a repeated one changes nothing.
// Zero gives it back. It runs out by itself, so that a server that crashed holds
// nothing for long. Result: Reservations.
type ReserveStorage struct {
	Server meta.NodeID   `cbor:"1,keyasint,omitempty"`
	Wants  []StorageWant `cbor:"2,keyasint,omitempty"` // at most 256
	Lease  time.Duration `cbor:"3,keyasint,omitempty"` // 1 s to 10 min
}

// StorageWant is what a server wants to reserve for a tenant.
type StorageWant struct {
	Tenant meta.TenantName `cbor:"1,keyasint,omitempty"`
	Bytes  int64           `cbor:"2,keyasint,omitempty"`
}

// Reservations answers each want.
type Reservations struct {
	Granted []StorageGrant `cbor:"1,keyasint,omitempty"`
}

// StorageGrant is what a server got. It is less than it wanted when the quota has no
// more; a tenant without a quota, or that is gone, grants all and keeps nothing.
type StorageGrant struct {
	Tenant meta.TenantName `cbor:"1,keyasint,omitempty"`
	Bytes  int64           `cbor:"2,keyasint,omitempty"`
	// Used and Quota are the tenant's; Quota 0 is none.
	Used  int64 `cbor:"3,keyasint,omitempty"`
	Quota int64 `cbor:"4,keyasint,omitempty"`
}

// Bounds of a ReserveStorage.
const (
	maxWants            = 256
	minReservationLease = time.Second
	maxReservationLease = 10 * time.Minute
)

// Type implements Command.
func (ReserveStorage) Type() uint16 { return typeReserveStorage }

// Check implements Command.
func (c ReserveStorage) Check() error {
	switch {
	case c.Server == "":
		return fmt.Errorf("reserve storage: no server: %w", meta.ErrInvalid)
	case len(c.Wants) == 0 || len(c.Wants) > maxWants:
		return fmt.Errorf("reserve storage: %d wants, use 1 to %d: %w", len(c.Wants), maxWants, meta.ErrInvalid)
	case c.Lease < minReservationLease || c.Lease > maxReservationLease:
		return fmt.Errorf("reserve storage: lease %v, use %v to %v: %w", c.Lease, minReservationLease, maxReservationLease, meta.ErrInvalid)
	}
	seen := map[meta.TenantName]bool{}
	for _, w := range c.Wants {
		if err := meta.CheckTenant(w.Tenant); err != nil {
			return err
		}
		if w.Bytes < 0 || w.Bytes > maxReserved || seen[w.Tenant] {
			return fmt.Errorf("reserve storage: %d bytes for %s: %w", w.Bytes, w.Tenant, meta.ErrInvalid)
		}
		seen[w.Tenant] = true
	}
	return nil
}

// maxReserved keeps sums from overflowing.
const maxReserved = 1 << 58

func (c ReserveStorage) apply(t *tx) (any, error) {
	if n, err := t.get(keyNode(c.Server)); err != nil {
		return nil, err
	} else if n == nil {
		return nil, fmt.Errorf("reserve storage: server %s is not in the roster: %w", c.Server, meta.ErrInvalid)
	}
	var out Reservations
	for _, w := range c.Wants {
		g, err := t.reserve(c, w)
		if err != nil {
			return nil, err
		}
		out.Granted = append(out.Granted, g)
	}
	return out, nil
}

func (t *tx) reserve(c ReserveStorage, w StorageWant) (StorageGrant, error) {
	g := StorageGrant{Tenant: w.Tenant, Bytes: w.Bytes}
	tenant, err := load[meta.Tenant](t, keyTenant(w.Tenant))
	if err != nil {
		return g, err
	}
	u, err := t.usage(w.Tenant)
	if err != nil {
		return g, err
	}
	if err := t.expireReservations(w.Tenant, u); err != nil {
		return g, err
	}
	k := keyReserved(w.Tenant).last(string(c.Server))
	old, err := load[reservation](t, k)
	if err != nil {
		return g, err
	}
	if old != nil {
		u.Reserved -= old.Bytes
		t.del(k)
	}
	g.Used = u.Held.Bytes
	if tenant == nil {
		delete(t.usages, w.Tenant)
		return g, nil
	}
	if g.Quota = tenant.Limits.StorageBytes; g.Quota == 0 || !u.Counted {
		g.Quota = 0
		return g, nil
	}
	if g.Bytes = min(g.Bytes, max(0, g.Quota-u.Held.Bytes-u.Reserved)); g.Bytes > 0 {
		u.Reserved += g.Bytes
		t.put(k, reservation{Bytes: g.Bytes, Until: t.now + meta.Time(c.Lease)})
	}
	return g, nil
}
