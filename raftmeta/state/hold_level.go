package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// HoldLevel keeps the cluster level from being raised above Level, so that an update
// of the servers can still be taken back; 0 lets it go.
//
// Errors: meta.ErrConflict below the level that the cluster has.
type HoldLevel struct {
	Level uint32 `cbor:"1,keyasint,omitempty"`
}

// Type implements Command.
func (HoldLevel) Type() uint16 { return typeHoldLevel }

// Check implements Command.
func (c HoldLevel) Check() error { return nil }

func (c HoldLevel) apply(t *tx) (any, error) {
	level, err := levelOf(t)
	switch {
	case err != nil:
		return nil, err
	case c.Level == 0:
		t.del(keyHold)
	case c.Level < level:
		return nil, fmt.Errorf("hold level %d: the cluster is at %d and does not go back: %w", c.Level, level, meta.ErrConflict)
	default:
		t.setNumber(keyHold, uint64(c.Level))
	}
	t.emit(feed.Change{Kind: feed.KindCluster})
	return nil, nil
}
