// Package limit keeps the bytes that a node exchanges with its peers within budgets.
//
// A Budgets holds, for each Direction, a budget of the host, within it one of the
// traffic to other zones and one of that to other regions, one for each tenant and
// one for each Class. Whoever is about to move bytes of a Flow calls Take, which
// waits until a piece fits all budgets of the flow. Between classes the more urgent
// goes first, and the others keep a small floor; flows of one class share evenly; in
// a flow the first to come is served first. Start reading at Budgets, then core.go,
// which decides and knows no clock.
//
// In any window of a second each budget lets through at most 1.04 times its rate, also
// around a change of limits. A Budgets without limits costs an addition per Take.
//
// The package starts no goroutines: a waiter waits in its caller's, and one timer per
// direction, armed only while somebody waits, hands out what has become free. At most
// maxWaiting callers wait. Sources: deficit and start-time fair queueing (Goyal, Vin,
// Cheng: Start-time Fair Queuing, SIGCOMM 1996), hierarchical link sharing (Floyd,
// Jacobson: Link-sharing and Resource Management Models for Packet Networks, 1995).
package limit

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Direction says which way bytes go.
type Direction uint8

// Directions.
const (
	Up   Direction = iota // to a peer
	Down                  // from a peer
)

func (d Direction) String() string { return [...]string{"up", "down"}[d] }

// Class is what bytes are wanted for; the lower value goes first.
type Class uint8

// Classes.
const (
	Urgent  Class = iota // a client reads them
	Bulk                 // copies that a region owes
	Prewarm              // brought before anybody asks

	classes = 3
)

var classNames = [classes]string{"urgent", "bulk", "prewarm"}

func (c Class) String() string {
	if int(c) < len(classNames) {
		return classNames[c]
	}
	return fmt.Sprintf("class(%d)", uint8(c))
}

// ParseClass reads what String writes.
//
// Errors: meta.ErrInvalid.
func ParseClass(s string) (Class, error) {
	for i, name := range classNames {
		if s == name {
			return Class(i), nil
		}
	}
	return 0, fmt.Errorf("class %q: write %s: %w", s, strings.Join(classNames[:], ", "), meta.ErrInvalid)
}

// MarshalText implements encoding.TextMarshaler.
func (c Class) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (c *Class) UnmarshalText(b []byte) (err error) {
	*c, err = ParseClass(string(b))
	return err
}

type classKey struct{}

// WithClass returns a context whose fetches are of class c.
func WithClass(ctx context.Context, c Class) context.Context {
	return context.WithValue(ctx, classKey{}, c)
}

// ClassOf returns the class that WithClass set, Urgent when none was.
func ClassOf(ctx context.Context) Class {
	c, _ := ctx.Value(classKey{}).(Class)
	return c
}

// Flow is what bytes have in common that share alike: budgets are chosen by it.
type Flow struct {
	Direction Direction
	// Zone is the peer's zone when it is another than our own; "" is our own, or unknown.
	Zone string
	// Beyond says that the peer is of another region; Zone then does not count.
	Beyond bool
	// Tenant is whose bytes they are; "" is unknown.
	Tenant string
	Class  Class
}

// Limits are the budgets of a node in bytes per second; 0 is no limit. A tenant's and a
// class's hold for each direction by itself.
type Limits struct {
	// Up and Down are of the host: all that it exchanges with peers.
	Up   int64 `json:"up,omitempty"`
	Down int64 `json:"down,omitempty"`
	// ZoneUp and ZoneDown are of what goes to and comes from other zones of the region.
	ZoneUp   int64 `json:"zone_up,omitempty"`
	ZoneDown int64 `json:"zone_down,omitempty"`
	// WANUp and WANDown are of what goes to and comes from other regions.
	WANUp   int64 `json:"wan_up,omitempty"`
	WANDown int64 `json:"wan_down,omitempty"`

	Tenants map[string]int64 `json:"tenants,omitempty"`
	Classes map[Class]int64  `json:"classes,omitempty"`
}

const (
	// MinRate is the least limit, in bytes per second (8 Mbit/s): with less, the pieces
	// of the chunks that two dozen peers send at once take longer than a peer waits.
	MinRate = 1_000_000
	// maxRate is more than any link and small enough that sums do not overflow.
	maxRate = 1 << 50
	// MaxTenants bounds the tenants with a budget of their own.
	MaxTenants = 1024
)

// Check reports the first limit that cannot hold.
//
// Errors: meta.ErrInvalid.
func (l Limits) Check() error {
	if len(l.Tenants) > MaxTenants {
		return fmt.Errorf("limits of %d tenants are more than %d: %w", len(l.Tenants), MaxTenants, meta.ErrInvalid)
	}
	for class := range l.Classes {
		if class >= classes {
			return fmt.Errorf("limit of %v: there is no such class: %w", class, meta.ErrInvalid)
		}
	}
	var checked Limits
	for _, r := range l.List() {
		if err := checked.Put(r); err != nil {
			return err
		}
	}
	return nil
}

// Clone returns a copy that shares nothing with l.
func (l Limits) Clone() Limits {
	l.Tenants, l.Classes = maps.Clone(l.Tenants), maps.Clone(l.Classes)
	return l
}

// Rate is one limit that is set.
type Rate struct {
	Budget      string // up, down, zone_up, zone_down, wan_up, wan_down, classes.NAME, tenants.NAME
	BytesPerSec int64
}

// plain lists the budgets that are neither a tenant's nor a class's.
func (l *Limits) plain() []struct {
	name string
	rate *int64
} {
	return []struct {
		name string
		rate *int64
	}{
		{"up", &l.Up}, {"down", &l.Down}, {"zone_up", &l.ZoneUp}, {"zone_down", &l.ZoneDown},
		{"wan_up", &l.WANUp}, {"wan_down", &l.WANDown},
	}
}

// List returns the limits that are set, in a fixed order.
func (l Limits) List() []Rate {
	var all []Rate
	for _, p := range l.plain() {
		all = append(all, Rate{p.name, *p.rate})
	}
	for class := range Class(classes) {
		all = append(all, Rate{"classes." + class.String(), l.Classes[class]})
	}
	for _, name := range slices.Sorted(maps.Keys(l.Tenants)) {
		all = append(all, Rate{"tenants." + name, l.Tenants[name]})
	}
	return slices.DeleteFunc(all, func(r Rate) bool { return r.BytesPerSec == 0 })
}

// Put sets the limit of the budget that r names as List does.
//
// Errors: meta.ErrInvalid when there is no such budget, or no such rate.
func (l *Limits) Put(r Rate) error {
	if err := r.check(); err != nil {
		return err
	}
	if name, ok := strings.CutPrefix(r.Budget, "tenants."); ok {
		l.Tenants = with(l.Tenants, name, r.BytesPerSec)
		return meta.CheckTenant(meta.TenantName(name))
	}
	if name, ok := strings.CutPrefix(r.Budget, "classes."); ok {
		class, err := ParseClass(name)
		if err == nil {
			l.Classes = with(l.Classes, class, r.BytesPerSec)
		}
		return err
	}
	var names []string
	for _, p := range l.plain() {
		if p.name == r.Budget {
			*p.rate = r.BytesPerSec
			return nil
		}
		names = append(names, p.name)
	}
	return fmt.Errorf("there is no budget %q: write %s, classes.CLASS or tenants.TENANT: %w", r.Budget, strings.Join(names, ", "), meta.ErrInvalid)
}

// with returns a copy of m in which key has the rate, if there is one.
func with[K comparable](m map[K]int64, key K, rate int64) map[K]int64 {
	if m = maps.Clone(m); m == nil {
		m = map[K]int64{}
	}
	if m[key] = rate; rate == 0 {
		delete(m, key)
	}
	return m
}

func (r Rate) check() error {
	if r.BytesPerSec != 0 && (r.BytesPerSec < MinRate || r.BytesPerSec > maxRate) {
		return fmt.Errorf("limit %s of %d bytes/s: the least is %d (1MB/s), 0 is none: %w", r.Budget, r.BytesPerSec, MinRate, meta.ErrInvalid)
	}
	return nil
}
