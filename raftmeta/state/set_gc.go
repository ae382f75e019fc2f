package state

import (
	"fmt"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// SetGC sets how long what was deleted is kept; nil is the default. Result:
// GCSettings.
type SetGC struct {
	Grace *time.Duration `cbor:"1,keyasint,omitempty"`
}

// GCSettings is what is set.
type GCSettings struct {
	Grace time.Duration `cbor:"1,keyasint,omitempty"`
}

// maxGrace bounds the grace period.
const maxGrace = 10 * 366 * 24 * time.Hour

// Type implements Command.
func (SetGC) Type() uint16 { return typeSetGC }

// Check implements Command.
func (c SetGC) Check() error {
	if c.Grace == nil {
		return nil
	}
	return checkGrace(*c.Grace)
}

func checkGrace(d time.Duration) error {
	if d < 0 || d > maxGrace {
		return fmt.Errorf("a grace period of %v, use 0s to %v: %w", d, maxGrace, meta.ErrInvalid)
	}
	return nil
}

func (c SetGC) apply(t *tx) (any, error) {
	g, err := loadGC(t)
	if err != nil {
		return nil, err
	}
	g.Grace = c.Grace
	t.put(inGarbage(ofSettings), g)
	return GCSettings{Grace: g.grace()}, nil
}
