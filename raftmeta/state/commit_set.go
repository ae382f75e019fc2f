package state

import (
	"fmt"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// LeaseSets makes a server the one that builds the publications of a repository, or
// lengthens its time. It is a courtesy that saves work: what two built at once comes out
// right as well, since a set is never replaced by one of an older state. Result:
// meta.Sets.
//
// Errors: meta.ErrNotFound when there are none; meta.ErrConflict while another builds.
type LeaseSets struct {
	Repo meta.RepoRef  `cbor:"1,keyasint,omitempty"`
	Node meta.NodeID   `cbor:"2,keyasint,omitempty"`
	For  time.Duration `cbor:"3,keyasint,omitempty"`
}

// maxSetsLease bounds LeaseSets.For.
const maxSetsLease = 10 * time.Minute

// Type implements Command.
func (LeaseSets) Type() uint16 { return typeLeaseSets }

// Check implements Command.
func (c LeaseSets) Check() error {
	if err := c.Repo.Check(); err != nil {
		return err
	}
	if c.Node == "" || c.For <= 0 || c.For > maxSetsLease {
		return fmt.Errorf("lease the publications of %s to %q for %s, at most %s: %w", c.Repo, c.Node, c.For, maxSetsLease, meta.ErrInvalid)
	}
	return nil
}

func (c LeaseSets) apply(t *tx) (any, error) {
	head, err := findSets(t, c.Repo)
	if err != nil {
		return nil, err
	}
	if head.Builder != c.Node && head.Until > t.now {
		return nil, fmt.Errorf("publications of %s: %s builds them: %w", c.Repo, head.Builder, meta.ErrConflict)
	}
	head.Builder, head.Until = c.Node, t.now+meta.Time(c.For)
	t.put(keySets(c.Repo), head)
	return *head, nil
}

// CommitSets puts publications of one repository in place: one set, those that are no
// more, or how far all of them have come.
//
// Errors: meta.ErrNotFound when the repository has none open; meta.ErrConflict when Node
// does not build them, or when what is in place was made from a later state; meta.ErrInvalid
// for a file whose content is not in the repository.
type CommitSets struct {
	Repo meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Node meta.NodeID  `cbor:"2,keyasint,omitempty"`
	// Set, when given, replaces the set of its name.
	Set *meta.Publication `cbor:"3,keyasint,omitempty"`
	// Blobs is what the set brings with it, linked in the same entry.
	Blobs []LinkBlob `cbor:"4,keyasint,omitempty"`
	// Drop names sets that are no more.
	Drop []string `cbor:"5,keyasint,omitempty"`
	// Through, when not 0, says that all sets contain all changes up to it, as Format
	// makes them.
	Through uint64 `cbor:"6,keyasint,omitempty"`
	Format  uint32 `cbor:"7,keyasint,omitempty"`
}

// maxDroppedSets bounds CommitSets.Drop.
const maxDroppedSets = 16

// Type implements Command.
func (CommitSets) Type() uint16 { return typeCommitSets }

// Check implements Command.
func (c CommitSets) Check() error {
	if err := c.Repo.Check(); err != nil {
		return err
	}
	fail := func(format string, args ...any) error {
		return fmt.Errorf("commit publications of %s: %s: %w", c.Repo, fmt.Sprintf(format, args...), meta.ErrInvalid)
	}
	if c.Node == "" || c.Set == nil && len(c.Drop) == 0 && c.Through == 0 {
		return fail("nobody, or nothing")
	}
	if len(c.Drop) > maxDroppedSets {
		return fail("%d to drop, at most %d", len(c.Drop), maxDroppedSets)
	}
	for _, name := range c.Drop {
		if err := checkSetName(name); err != nil {
			return err
		}
	}
	for _, b := range c.Blobs {
		if c.Set == nil || b.Repo != c.Repo {
			return fail("blob %s is for %s", b.Digest, b.Repo)
		}
		if err := b.Check(); err != nil {
			return err
		}
	}
	if c.Set == nil {
		return nil
	}
	if err := checkSetName(c.Set.Name); err != nil {
		return err
	}
	if n := len(c.Set.Files); n == 0 || n > meta.MaxSetFiles || c.Set.Repo != c.Repo || c.Set.From == 0 || len(c.Set.Sum) > meta.MaxSetSum {
		return fail("set %s of %s has %d files, 1 to %d, and says what it was made from", c.Set.Name, c.Set.Repo, n, meta.MaxSetFiles)
	}
	for i, f := range c.Set.Files {
		if err := meta.CheckPath(f.Path); err != nil {
			return err
		}
		if err := checkDigest(f.Digest); err != nil {
			return fmt.Errorf("file %s: %w", f.Path, err)
		}
		if i > 0 && f.Path <= c.Set.Files[i-1].Path {
			return fail("set %s: give each path once, sorted", c.Set.Name)
		}
	}
	return nil
}

func (c CommitSets) apply(t *tx) (any, error) {
	repo, err := findRepository(t, c.Repo)
	if err != nil {
		return nil, err
	}
	head, err := findSets(t, c.Repo)
	if err != nil {
		return nil, err
	}
	if head.Builder != c.Node || head.Until <= t.now {
		return nil, fmt.Errorf("publications of %s: %s does not build them: %w", c.Repo, c.Node, meta.ErrConflict)
	}
	if c.Set != nil {
		if err := t.putPublication(repo, *c.Set, c.Blobs, c.Node); err != nil {
			return nil, err
		}
	}
	for _, name := range c.Drop {
		k := keyCurrentSets(c.Repo).last(name)
		old, err := load[meta.Publication](t, k)
		if err != nil {
			return nil, err
		}
		if old == nil {
			continue
		}
		t.del(k)
		t.retire(old)
		t.emit(feed.Change{Kind: feed.KindSets, Repo: c.Repo, Name: name, Deleted: true})
	}
	if c.Through > 0 && (c.Through > head.Built || c.Format != head.Format) {
		head.Built, head.Format = c.Through, c.Format
		t.putSets(head)
	}
	return nil, nil
}

// putPublication puts a set in the place of the one of its name.
func (t *tx) putPublication(repo *meta.Repository, p meta.Publication, blobs []LinkBlob, by meta.NodeID) error {
	k := keyCurrentSets(repo.Ref).last(p.Name)
	old, err := load[meta.Publication](t, k)
	if err != nil {
		return err
	}
	if old != nil && old.From > p.From {
		return fmt.Errorf("publication %s %s of state %d, that in place is of %d: %w", repo.Ref, p.Name, p.From, old.From, meta.ErrConflict)
	}
	for _, b := range blobs {
		if _, err := t.linkBlob(repo.Ref, b); err != nil {
			return err
		}
	}
	user := t.setUser(repo, p.Name)
	for _, f := range p.Files {
		if err := user.use(f.Digest, "file "+f.Path); err != nil {
			return err
		}
	}
	// Documents are made for the tenant and replaced by their like: what readers need
	// to see of a full tenant's repository is not held against it.
	if u := t.usages[repo.Ref.Tenant]; u != nil {
		u.before = max(u.before, u.Held.Bytes)
	}
	if old != nil {
		t.retire(old)
	}
	if err := t.dropOldSets(repo.Ref, p.Name); err != nil {
		return err
	}
	p.Created, p.By, p.Revision, p.Replaced = t.now, by, t.index, 0
	t.put(k, p)
	t.emit(feed.Change{Kind: feed.KindSets, Repo: repo.Ref, Name: p.Name})
	return nil
}
