package state

import (
	"fmt"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// HoldBackup says that a backup is being taken: until its lease ends nothing that a
// version used since it was opened may be collected (OpenBackups). Renew prolongs it.
// Result: meta.Backup.
//
// Errors: meta.ErrExists for an id that is open, meta.ErrConflict when too many are,
// or when what is renewed has ended: then something may be gone already.
type HoldBackup struct {
	ID    string        `cbor:"1,keyasint,omitempty"`
	Lease time.Duration `cbor:"2,keyasint,omitempty"` // from the leader's time on
	Renew bool          `cbor:"3,keyasint,omitempty"`
}

// Type implements Command.
func (HoldBackup) Type() uint16 { return typeHoldBackup }

// Check implements Command.
func (c HoldBackup) Check() error {
	if err := checkBackupID(c.ID); err != nil {
		return err
	}
	if c.Lease < meta.MinBackupLease || c.Lease > meta.MaxBackupLease {
		return fmt.Errorf("hold backup %s: lease of %v, use %v to %v: %w", c.ID, c.Lease, meta.MinBackupLease, meta.MaxBackupLease, meta.ErrInvalid)
	}
	return nil
}

func checkBackupID(id string) error {
	if id == "" || len(id) > meta.MaxBackupID {
		return fmt.Errorf("a backup's id has 1 to %d bytes, %q has %d: %w", meta.MaxBackupID, id, len(id), meta.ErrInvalid)
	}
	return nil
}

func (c HoldBackup) apply(t *tx) (any, error) {
	open, err := openBackups(t, t.now)
	if err != nil {
		return nil, err
	}
	var mine *meta.Backup
	for i := range open {
		if open[i].ID == c.ID {
			mine = &open[i]
		}
	}
	switch {
	case c.Renew && mine == nil:
		return nil, fmt.Errorf("backup %s is not open any more, what it still needs may have been collected; begin it anew: %w", c.ID, meta.ErrConflict)
	case !c.Renew && mine != nil:
		return nil, fmt.Errorf("backup %s is open already: %w", c.ID, meta.ErrExists)
	case !c.Renew && len(open) >= meta.MaxBackups:
		return nil, fmt.Errorf("%d backups are open, the first is %s; close one or wait for its lease to end: %w", len(open), open[0].ID, meta.ErrConflict)
	case mine == nil:
		// The ended ones, of which there are at most as many, go with the next.
		if err := t.forgetBackups(); err != nil {
			return nil, err
		}
		mine = &meta.Backup{ID: c.ID, Opened: t.now, By: t.origin.Principal}
	}
	mine.Until = max(mine.Until, t.now+meta.Time(c.Lease))
	t.put(keyBackup(c.ID), *mine)
	return *mine, nil
}

// forgetBackups drops those whose lease has ended.
func (t *tx) forgetBackups() error {
	all, err := openBackups(t, 0)
	if err != nil {
		return err
	}
	for _, b := range all {
		if b.Until <= t.now {
			t.del(keyBackup(b.ID))
		}
	}
	return nil
}

// openBackups returns the backups whose lease holds at now, by id.
func openBackups(r reader, now meta.Time) (open []meta.Backup, _ error) {
	for p, err := range r.scan(within(key{spaceBackups})) {
		if err != nil {
			return nil, err
		}
		b, err := decode[meta.Backup](p.key, p.value)
		if err != nil {
			return nil, err
		}
		if b.Until > now {
			open = append(open, *b)
		}
	}
	return open, nil
}

// CloseBackup ends the hold of a backup; of one that has ended it does nothing.
type CloseBackup struct {
	ID string `cbor:"1,keyasint,omitempty"`
}

// Type implements Command.
func (CloseBackup) Type() uint16 { return typeCloseBackup }

// Check implements Command.
func (c CloseBackup) Check() error { return checkBackupID(c.ID) }

func (c CloseBackup) apply(t *tx) (any, error) {
	t.del(keyBackup(c.ID))
	return nil, nil
}

// OpenBackups lists the backups whose lease holds at Now, by id; Now 0 lists the ended
// too. While there is one, nothing is collected.
type OpenBackups struct {
	Now meta.Time `cbor:"1,keyasint,omitempty"`
}

// Answer implements Question.
func (q OpenBackups) Answer(v *View) ([]meta.Backup, error) { return openBackups(v, q.Now) }

// backupOpen reports whether a backup is open as the command applies: nothing is
// collected then.
func (t *tx) backupOpen() (bool, error) {
	open, err := openBackups(t, t.now)
	return len(open) > 0, err
}
