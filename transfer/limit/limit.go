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
	"cmp"
	"context"
	"errors"
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
	// MinRate is the least limit, in bytes per second (1 Mbit/s): with less, pieces on
	// two dozen streams take longer than peers wait for them.
	MinRate = 125_000
	// maxRate is more than any link and small enough that sums do not overflow.
	maxRate = 1 << 50
	// MaxTenants bounds the tenants with a budget of their own.
	MaxTenants = 1024
)

// Check reports the first limit that cannot hold.
//
// Errors: meta.ErrInvalid.
func (l Limits) Check() error {
	check := func(what string, rate int64) error {
		if rate != 0 && (rate < MinRate || rate > maxRate) {
			return fmt.Errorf("limit %s of %d bytes/s: write 0 for none, or at least %d bytes/s (1mbit): %w", what, rate, MinRate, meta.ErrInvalid)
		}
		return nil
	}
	err := cmp.Or(check("up", l.Up), check("down", l.Down), check("zone_up", l.ZoneUp), check("zone_down", l.ZoneDown),
		check("wan_up", l.WANUp), check("wan_down", l.WANDown))
	if len(l.Tenants) > MaxTenants {
		err = errors.Join(err, fmt.Errorf("limits of %d tenants are more than %d: %w", len(l.Tenants), MaxTenants, meta.ErrInvalid))
	}
	for name, rate := range l.Tenants {
		if tenantErr := meta.CheckTenant(meta.TenantName(name)); tenantErr != nil {
			err = errors.Join(err, tenantErr)
		}
		err = errors.Join(err, check("of tenant "+name, rate))
	}
	for class, rate := range l.Classes {
		if class >= classes {
			err = errors.Join(err, fmt.Errorf("limit of %v: %w", class, meta.ErrInvalid))
		}
		err = errors.Join(err, check("of class "+class.String(), rate))
	}
	return err
}

// Clone returns a copy that shares nothing with l.
func (l Limits) Clone() Limits {
	l.Tenants, l.Classes = maps.Clone(l.Tenants), maps.Clone(l.Classes)
	return l
}

// Rate is one limit that is set.
type Rate struct {
	Budget      string // up, down, zone_up ... tenants.NAME, classes.NAME
	BytesPerSec int64
}

// List returns the limits that are set, in a fixed order.
func (l Limits) List() []Rate {
	all := []Rate{
		{"up", l.Up}, {"down", l.Down}, {"zone_up", l.ZoneUp}, {"zone_down", l.ZoneDown}, {"wan_up", l.WANUp}, {"wan_down", l.WANDown},
	}
	for class := range Class(classes) {
		all = append(all, Rate{"classes." + class.String(), l.Classes[class]})
	}
	for _, name := range slices.Sorted(maps.Keys(l.Tenants)) {
		all = append(all, Rate{"tenants." + name, l.Tenants[name]})
	}
	return slices.DeleteFunc(all, func(r Rate) bool { return r.BytesPerSec == 0 })
}
