package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// SetLevel raises the cluster level, which lets newer commands into the log. The
// proposer has made sure that every server knows them. It never falls.
//
// Errors: meta.ErrConflict when it would fall.
type SetLevel struct {
	Level uint32 `cbor:"1,keyasint,omitempty"`
}

// Type implements Command.
func (SetLevel) Type() uint16 { return typeSetLevel }

// Check implements Command.
func (c SetLevel) Check() error {
	if c.Level == 0 || c.Level > Level {
		return fmt.Errorf("set level %d: this build knows levels 1 to %d: %w", c.Level, Level, meta.ErrInvalid)
	}
	return nil
}

func (c SetLevel) apply(t *tx) (any, error) {
	cluster, err := find[meta.Cluster](t, keyCluster, "cluster", "")
	if err != nil {
		return nil, err
	}
	if c.Level < cluster.Level {
		return nil, fmt.Errorf("set level %d: the cluster is at %d and its log may hold commands of it: %w", c.Level, cluster.Level, meta.ErrConflict)
	}
	if hold, err := number(t, keyHold); err != nil {
		return nil, err
	} else if hold != 0 && uint64(c.Level) > hold {
		return nil, fmt.Errorf("set level %d: it is held at %d, let it go with `shoal cluster level --auto`: %w", c.Level, hold, meta.ErrConflict)
	}
	before := cluster.Level
	cluster.Level = c.Level
	t.put(keyCluster, cluster)
	t.setNumber(keyLevel, uint64(c.Level))
	t.emit(feed.Change{Kind: feed.KindCluster})
	if before < GCLevel && c.Level >= GCLevel {
		// What nobody links was not written down.
		t.put(inGarbage(ofSettings), gcRecord{Walk: true})
	}
	if before < settleLevel {
		// What the roster was when the demands were written, nobody knows.
		return nil, t.unsettle(meta.RepoRef{}, true)
	}
	if before < backlogLevel && c.Level >= backlogLevel {
		// All demands are read once, to be counted.
		return nil, t.unsettle(meta.RepoRef{}, false)
	}
	return nil, nil
}
