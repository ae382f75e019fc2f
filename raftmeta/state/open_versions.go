package state

import (
	"fmt"
	"regexp"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// An open version gains files until it is closed. It has no digest of its own, for no
// document names all of it; its size is the sum of its files'.

// maxFileSums bounds the checksums of one file.
const maxFileSums = 8

var (
	sumName  = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)
	sumValue = regexp.MustCompile(`^([0-9a-f]{2}){4,64}$`)
)

// checkFileFacts checks what a format says of a file.
func checkFileFacts(f meta.File) error {
	if len(f.Summary) > meta.MaxSummaryBytes {
		return fmt.Errorf("file %s: a summary of %d bytes is over the limit of %d: %w", f.Path, len(f.Summary), meta.MaxSummaryBytes, meta.ErrInvalid)
	}
	if len(f.Sums) > maxFileSums {
		return fmt.Errorf("file %s: %d checksums are over the limit of %d: %w", f.Path, len(f.Sums), maxFileSums, meta.ErrInvalid)
	}
	for name, sum := range f.Sums {
		if !sumName.MatchString(name) || !sumValue.MatchString(sum) {
			return fmt.Errorf("file %s: a checksum is an algorithm in small letters and lower-case hex: %w", f.Path, meta.ErrInvalid)
		}
	}
	return nil
}

// opened notes a new open version.
func (p *publication) opened(v *meta.Version, files []meta.File) {
	if p.level < packagesLevel {
		return
	}
	v.Extended = p.now
	if v.Digest == "" {
		v.Size = 0
		for _, f := range files {
			v.Size += f.Size
		}
	}
}

// grown notes what an open version gained, and takes a newer summary; a closed one keeps
// what it has.
func (p *publication) grown(old *meta.Version, added []meta.File) (changed bool) {
	if len(added) > 0 {
		old.Extended = p.now
		if old.Digest == "" {
			for _, f := range added {
				old.Size += f.Size
			}
		}
	}
	if s := p.version.Summary; len(s) > 0 && string(s) != string(old.Summary) && (len(added) > 0 || len(old.Summary) == 0) {
		old.Summary, changed = s, true
	}
	return changed
}

// CloseVersion closes an open version: it gains no file any more. One that is closed stays
// as it is. Result: meta.Version.
//
// Errors: meta.ErrNotFound; meta.ErrConflict when it is neither open nor closed, or it
// gained a file within Quiet.
type CloseVersion struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
	Version string       `cbor:"3,keyasint,omitempty"`
	// Quiet is how long it must not have gained a file; 0 closes it at once.
	Quiet time.Duration `cbor:"4,keyasint,omitempty"`
}

// Type implements Command.
func (CloseVersion) Type() uint16 { return typeCloseVersion }

// Check implements Command.
func (c CloseVersion) Check() error {
	if c.Quiet < 0 {
		return fmt.Errorf("close a version after %s: %w", c.Quiet, meta.ErrInvalid)
	}
	return checkVersion(c.Repo, c.Package, c.Version)
}

func (c CloseVersion) apply(t *tx) (any, error) {
	v, err := findVersion(t, c.Repo, c.Package, c.Version)
	if err != nil {
		return nil, err
	}
	name := versionName(c.Repo, c.Package, c.Version)
	switch {
	case v.State == meta.StateClosed:
		withoutReferences(v)
		return *v, nil
	case v.State != meta.StateOpen:
		return nil, fmt.Errorf("close %s: it is %s: %w", name, v.State, meta.ErrConflict)
	case c.Quiet > 0 && t.now.Std().Sub(max(v.Extended, v.PublishTime).Std()) < c.Quiet:
		return nil, fmt.Errorf("close %s: it gained a file less than %s ago: %w", name, c.Quiet, meta.ErrConflict)
	}
	waits := keyQuiet(v)
	v.State, v.Revision = meta.StateClosed, t.index
	t.awaitQuiet(waits, v)
	t.put(keyVersion(v.Repo, v.Package, v.Name), v)
	t.emit(feed.Change{Kind: feed.KindVersion, Repo: v.Repo, Package: v.Package, Name: v.Name})
	if err := t.touchPackage(v.Repo, v.Package); err != nil {
		return nil, err
	}
	withoutReferences(v)
	return *v, nil
}
