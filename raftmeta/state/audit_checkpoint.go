package state

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/shoal-registry/shoal/raftmeta/audit"
	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Numbers of the commands of the audit log.
const (
	typePutCheckpoint = 125
	typeAnchorChains  = 126
	typeSetRetention  = 127
	typePruneEntries  = 128
)

// inCheckpoints is below spaceAuditLog: size-u64 -> audit.Signed.
const inCheckpoints = 'c'

func keyCheckpoint(size uint64) key { return key{spaceAuditLog, inCheckpoints}.u64(size) }

// What is kept of checkpoints: the last ones, of earlier ones the first of each hour.
const (
	keepCheckpoints   = 120
	keepCheckpointFor = 400 * 24 * time.Hour
)

// PutCheckpoint keeps a signed checkpoint of the audit log: the leader's, each minute,
// and what servers of other regions add. Signatures are not checked here, they are
// checked by whoever relies on them; that the checkpoint is one of this log is. Of a
// region one signature is kept. It leaves no entry, or there would be no end.
//
// Errors: meta.ErrConflict for another log, or one that is not as long or has another
// root; meta.ErrInvalid.
type PutCheckpoint struct {
	Checkpoint audit.Signed `cbor:"1,keyasint,omitempty"`
}

// Type implements Command.
func (PutCheckpoint) Type() uint16 { return typePutCheckpoint }

// Check implements Command.
func (c PutCheckpoint) Check() error {
	if _, err := c.Checkpoint.Check(); err != nil {
		return fmt.Errorf("%w: %w", err, meta.ErrInvalid)
	}
	return nil
}

func (c PutCheckpoint) apply(t *tx) (any, error) {
	point, err := c.Checkpoint.Check()
	if err != nil {
		return nil, err
	}
	cluster, err := find[meta.Cluster](t, keyCluster, "cluster", "")
	if err != nil {
		return nil, err
	}
	if point.Cluster != cluster.ID || point.Epoch != cluster.Epoch {
		return nil, fmt.Errorf("checkpoint of cluster %s in epoch %d: this is %s in %d: %w", point.Cluster, point.Epoch, cluster.ID, cluster.Epoch, meta.ErrConflict)
	}
	root, err := auditRootOf(t, point.Size)
	if err != nil {
		return nil, err
	}
	if root != point.Root {
		return nil, fmt.Errorf("checkpoint of %d entries: it has another root: %w", point.Size, meta.ErrConflict)
	}
	kept, err := load[audit.Signed](t, keyCheckpoint(point.Size))
	if err != nil {
		return nil, err
	}
	if kept == nil {
		kept = &audit.Signed{}
		if err := t.thinCheckpoints(); err != nil {
			return nil, err
		}
	} else if same, err := sameCheckpoint(kept, &c.Checkpoint); err != nil || !same {
		return nil, errors.Join(err, fmt.Errorf("checkpoint of %d entries: there is one of another time: %w", point.Size, meta.ErrConflict))
	}
	for _, by := range c.Checkpoint.Signers {
		if slices.ContainsFunc(kept.Signers, func(s audit.Signer) bool { return s.Region == by.Region }) {
			return nil, nil // The region has signed.
		}
	}
	if err := kept.Add(c.Checkpoint); err != nil {
		return nil, err
	}
	if _, err := kept.Check(); err != nil {
		return nil, fmt.Errorf("%w: %w", err, meta.ErrInvalid)
	}
	t.put(keyCheckpoint(point.Size), *kept)
	t.emit(feed.Change{Kind: feed.KindAudit})
	return nil, nil
}

func sameCheckpoint(a, b *audit.Signed) (bool, error) {
	pa, err := a.Check()
	if err != nil {
		return false, err
	}
	pb, err := b.Check()
	return pa.Text() == pb.Text(), err
}

// readsAuditLog implements auditReader.
func (PutCheckpoint) readsAuditLog() {}

// auditRootOf returns the root of the first size entries.
//
// Errors: meta.ErrConflict when there are fewer.
func auditRootOf(r reader, size uint64) (tlog.Hash, error) {
	tree, err := auditTree(r)
	if err != nil {
		return tlog.Hash{}, err
	}
	switch {
	case size > tree.Size:
		return tlog.Hash{}, fmt.Errorf("the audit log has %d entries, not %d: %w", tree.Size, size, meta.ErrConflict)
	case size == tree.Size:
		return rootOfTree(tree)
	}
	hash, err := tlog.TreeHash(int64(size), &audit.Hashes{Source: auditSource{r}})
	return hash, storageUnlessKind(err)
}

func auditTree(r reader) (audit.Tree, error) {
	tree, err := load[audit.Tree](r, keyAuditTree)
	if err != nil || tree == nil {
		return audit.Tree{}, err
	}
	return *tree, nil
}

func rootOfTree(tree audit.Tree) (tlog.Hash, error) {
	root, err := tree.Root()
	if err != nil {
		return root, &StorageError{Cause: err}
	}
	return root, nil
}

// storageUnlessKind makes an error of a library, which can only come from what is
// stored, one of storage.
func storageUnlessKind(err error) error {
	if err == nil || fatal(err) || meta.KindOf(err) != "" {
		return err
	}
	return &StorageError{Cause: err}
}

// thinCheckpoints makes room for one more: of those that are no longer among the last
// it leaves the first of each hour, and those that are too old go.
func (t *tx) thinCheckpoints() error {
	all := within(key{spaceAuditLog, inCheckpoints})
	for p, err := range t.scan(all) {
		if err != nil {
			return err
		}
		at, err := checkpointTime(p)
		if err != nil {
			return err
		}
		if t.now.Std().Sub(at) > keepCheckpointFor {
			t.del(bytes.Clone(p.key))
		}
		break
	}
	all.reverse = true
	n := 0
	var oldest key
	var hour time.Time
	for p, err := range t.scan(all) {
		if err != nil {
			return err
		}
		n++
		if n < keepCheckpoints {
			continue
		}
		at, err := checkpointTime(p)
		if err != nil {
			return err
		}
		if n == keepCheckpoints {
			oldest, hour = bytes.Clone(p.key), at.Truncate(time.Hour)
			continue
		}
		if at.Truncate(time.Hour).Equal(hour) {
			t.del(oldest)
		}
		break
	}
	return nil
}

func checkpointTime(p pair) (time.Time, error) {
	s, err := decode[audit.Signed](p.key, p.value)
	if err != nil {
		return time.Time{}, err
	}
	c, err := s.Check()
	if err != nil {
		return time.Time{}, &StorageError{Cause: err}
	}
	return c.Time, nil
}
