package state

import (
	"fmt"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/audit"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// keyRetention holds the audit.Retention.
var keyRetention = key{spaceAuditLog, 'k'}

// minKeep is the least that entries stay.
const minKeep = time.Hour

// SetAuditRetention changes how long entries stay, or says up to where they were
// exported. Fields that are nil stay. Result: audit.Retention.
//
// Errors: meta.ErrInvalid for an export beyond the end of the log, or behind what was
// said before.
type SetAuditRetention struct {
	Keep     *time.Duration `cbor:"1,keyasint,omitempty"`
	Exported *uint64        `cbor:"2,keyasint,omitempty"`
}

// Type implements Command.
func (SetAuditRetention) Type() uint16 { return typeSetRetention }

// Check implements Command.
func (c SetAuditRetention) Check() error {
	if c.Keep != nil && *c.Keep != 0 && *c.Keep < minKeep {
		return fmt.Errorf("keep audit entries for %s: at least %s, or 0 for ever: %w", *c.Keep, minKeep, meta.ErrInvalid)
	}
	return nil
}

// readsAuditLog implements auditReader.
func (SetAuditRetention) readsAuditLog() {}

func (c SetAuditRetention) apply(t *tx) (any, error) {
	r, err := retention(t)
	if err != nil {
		return nil, err
	}
	if c.Keep != nil {
		r.Keep = *c.Keep
	}
	if c.Exported != nil {
		tree, err := auditTree(t)
		switch {
		case err != nil:
			return nil, err
		case *c.Exported > tree.Size || *c.Exported < r.Exported:
			return nil, fmt.Errorf("audit entries exported up to %d: the log has %d, and %d were exported before: %w", *c.Exported, tree.Size, r.Exported, meta.ErrInvalid)
		}
		r.Exported = *c.Exported
	}
	t.put(keyRetention, r)
	return r, nil
}

func retention(r reader) (audit.Retention, error) {
	a, err := load[audit.Retention](r, keyRetention)
	if err != nil || a == nil {
		return audit.Retention{}, err
	}
	return *a, nil
}

// prunable returns the place below which entries may go now, in whole tiles, whose
// hashes are kept.
func prunable(r reader, now meta.Time) (uint64, audit.Retention, error) {
	a, err := retention(r)
	if err != nil || a.Keep == 0 || a.Exported/audit.TileLeaves*audit.TileLeaves <= a.Pruned {
		return a.Pruned, a, err
	}
	end := a.Exported
	limit := now.Std().Add(-a.Keep)
	young, err := firstEntry(r, func(e *audit.Entry) bool { return e.Time.After(limit) })
	if err != nil {
		return 0, a, err
	}
	if young != nil {
		end = min(end, young.Seq)
	}
	return max(end/audit.TileLeaves*audit.TileLeaves, a.Pruned), a, nil
}

// PruneEntries takes away entries that may go, of up to 16 tiles of 256. The leader
// sends it. Result: audit.Retention, with what is pruned now.
type PruneEntries struct{}

const maxPruneTiles = 16

// Type implements Command.
func (PruneEntries) Type() uint16 { return typePruneEntries }

// Check implements Command.
func (PruneEntries) Check() error { return nil }

// readsAuditLog implements auditReader.
func (PruneEntries) readsAuditLog() {}

func (PruneEntries) apply(t *tx) (any, error) {
	end, a, err := prunable(t, t.now)
	if err != nil || end <= a.Pruned {
		return a, err
	}
	end = min(end, a.Pruned+maxPruneTiles*audit.TileLeaves)
	if err := t.batch.DeleteRange(keyEntry(a.Pruned), keyEntry(end), nil); err != nil {
		return nil, &StorageError{Cause: err}
	}
	a.Pruned = end
	t.put(keyRetention, a)
	return a, nil
}
