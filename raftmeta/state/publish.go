package state

import (
	"fmt"
	"slices"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Publish makes a version visible: version, files, aliases, attachment, verdict
// and replica demand are one log entry. An identical version is idempotent (its
// aliases still move), and an open one gains files that it did not have. Result:
// PublishResult.
//
// A deleted version comes back only with the very same digest. Who publishes and
// when come from the origin.
//
// Errors: meta.ErrNotFound for the repository; meta.ErrExists for other content
// under the name, or a set alias in an immutable repository; meta.ErrInvalid, with
// the digest, for content that is not in the repository; meta.ErrConflict when the
// package is no longer at Base.
type Publish struct {
	Version meta.Version `cbor:"1,keyasint,omitempty"`
	// Files are at least the document; each must be linked in the repository.
	Files []meta.File `cbor:"2,keyasint,omitempty"`
	// Blobs are documents ingested by the publish itself, linked in the same entry.
	Blobs   []LinkBlob `cbor:"3,keyasint,omitempty"`
	Aliases []string   `cbor:"4,keyasint,omitempty"` // moved to the version
	// Base, when set, must be the package's revision; 0 is a new package.
	Base *uint64 `cbor:"5,keyasint,omitempty"`
}

// PublishResult says what a publish did.
type PublishResult struct {
	// Created is false when the version was there already.
	Created bool `cbor:"1,keyasint,omitempty"`
	// Revision is the package's.
	Revision uint64 `cbor:"2,keyasint,omitempty"`
}

// maxAliases bounds the aliases of one publish.
const maxAliases = 64

// Type implements Command.
func (Publish) Type() uint16 { return typePublish }

// Check implements Command.
func (c Publish) Check() error {
	v := c.Version
	if err := v.Repo.Check(); err != nil {
		return err
	}
	if err := meta.CheckPackage(v.Package); err != nil {
		return err
	}
	if err := meta.CheckVersion(v.Name); err != nil {
		return err
	}
	fail := func(format string, args ...any) error {
		return fmt.Errorf("publish %s/%s:%s: %s: %w", v.Repo, v.Package, v.Name, fmt.Sprintf(format, args...), meta.ErrInvalid)
	}
	if !slices.Contains([]meta.VersionState{meta.StateStaged, meta.StateOpen, meta.StateClosed}, v.State) {
		return fail("state %q: use staged, open or closed", v.State)
	}
	if v.Size < 0 {
		return fail("size %d", v.Size)
	}
	if v.Draft != "" && len(v.References) > 0 {
		return fail("references are both staged and given")
	}
	if v.Draft != "" {
		if err := checkDraft(v.Draft); err != nil {
			return err
		}
	}
	for _, d := range []digest.Digest{v.Digest, v.Subject, v.SHA512} {
		if d == "" {
			continue
		}
		if err := checkDigest(d); err != nil {
			return err
		}
	}
	if err := v.Labels.Check(); err != nil {
		return err
	}
	if err := checkReferences(v.References); err != nil {
		return err
	}
	if len(c.Files) == 0 && v.State == meta.StateClosed {
		return fail("no files")
	}
	paths := make(map[string]bool, len(c.Files))
	for _, f := range c.Files {
		if err := meta.CheckPath(f.Path); err != nil {
			return err
		}
		if err := checkDigest(f.Digest); err != nil {
			return fmt.Errorf("file %s: %w", f.Path, err)
		}
		if paths[f.Path] {
			return fail("path %s comes twice", f.Path)
		}
		paths[f.Path] = true
	}
	for _, b := range c.Blobs {
		if b.Repo != v.Repo {
			return fail("blob %s is for %s", b.Digest, b.Repo)
		}
		if err := b.Check(); err != nil {
			return err
		}
	}
	if len(c.Aliases) > maxAliases {
		return fail("%d aliases, at most %d", len(c.Aliases), maxAliases)
	}
	for _, a := range c.Aliases {
		if err := meta.CheckAlias(a); err != nil {
			return err
		}
	}
	return nil
}
