package state

import (
	"fmt"
	"slices"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Publish makes a version visible: version, files, aliases, attachment, verdict
// and replica demand are one log entry. An identical version is idempotent (its
// aliases still move), and an open one gains files that it did not have. Result:
// PublishResult.
//
// A deleted version comes back only with the very same digest and files. Who publishes and
// when come from the origin.
//
// Errors: meta.ErrNotFound for the repository; meta.ErrUnavailable while something
// has fewer copies than the repository's CopiesBeforeAck; meta.ErrExists for other content
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
	// Spelling is the package's name as its publisher wrote it, kept with the package at
	// its first publish; later one that is spelled otherwise is refused, unless
	// NewSpelling says that formats take it for the same. From level 6 on.
	Spelling    string `cbor:"6,keyasint,omitempty"`
	NewSpelling bool   `cbor:"7,keyasint,omitempty"`
}

// PublishResult says what a publish did.
type PublishResult struct {
	// Created is false when the version was there already.
	Created bool `cbor:"1,keyasint,omitempty"`
	// Revision is the package's.
	Revision uint64 `cbor:"2,keyasint,omitempty"`
}

func (c Publish) since() uint32 {
	var level uint32
	v := &c.Version
	if c.Spelling != "" || c.NewSpelling || len(v.Summary) > 0 || v.Marks != (meta.Marks{}) || v.Extended != 0 || v.Quiet != 0 || v.Promotion != nil {
		return packagesLevel
	}
	for _, f := range c.Files {
		if len(f.Summary) > 0 || len(f.Sums) > 0 || f.Uploaded != 0 || f.By != "" {
			return packagesLevel
		}
	}
	for _, b := range c.Blobs {
		level = max(level, b.since())
	}
	return level
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
	if len(v.Summary) > meta.MaxSummaryBytes {
		return fail("a summary of %d bytes is over the limit of %d", len(v.Summary), meta.MaxSummaryBytes)
	}
	if err := checkQuiet(&v); err != nil {
		return err
	}
	if c.Spelling != "" {
		if err := meta.CheckPackage(c.Spelling); err != nil {
			return fmt.Errorf("spelling: %w", err)
		}
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
		if err := checkFileFacts(f); err != nil {
			return err
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

func (c Publish) apply(t *tx) (any, error) {
	v := c.Version
	repo, err := findRepository(t, v.Repo)
	if err != nil {
		return nil, err
	}
	pkg, err := load[meta.Package](t, keyPackage(v.Repo, v.Package))
	if err != nil {
		return nil, err
	}
	if repo.Kind != meta.KindHosted && t.level >= packagesLevel {
		return nil, fmt.Errorf("publish %s: %w", versionName(v.Repo, v.Package, v.Name), &meta.ReadOnlyError{Repo: v.Repo, Kind: repo.Kind})
	}
	if pkg == nil {
		pkg = &meta.Package{Repo: v.Repo, Name: v.Package, Created: t.now}
		if err := t.takeName(pkg); err != nil {
			return nil, err
		}
	}
	if err := c.spell(pkg); err != nil {
		return nil, err
	}
	if c.Base != nil && *c.Base != pkg.Revision {
		return nil, fmt.Errorf("publish %s: the package is at revision %d, not %d; read it again and retry: %w",
			versionName(v.Repo, v.Package, v.Name), pkg.Revision, *c.Base, meta.ErrConflict)
	}
	old, err := load[meta.Version](t, keyVersion(v.Repo, v.Package, v.Name))
	if err != nil {
		return nil, err
	}
	p := publication{tx: t, repo: repo, version: &v}
	if old == nil {
		err = p.checkGrave(c.Files)
	} else if err = p.checkSame(old); err == nil {
		err = checkReadable(old)
	}
	if err != nil {
		return nil, err
	}
	for _, b := range c.Blobs {
		if _, err := t.linkBlob(v.Repo, b); err != nil {
			return nil, err
		}
	}
	var changed bool
	if old == nil {
		changed, err = true, p.create(c.Files)
		pkg.Versions++
	} else {
		changed, err = p.extend(old, c.Files)
	}
	if err != nil {
		return nil, err
	}
	for _, name := range c.Aliases {
		_, moved, err := t.moveAlias(repo, name, p.version)
		if err != nil {
			return nil, err
		}
		changed = changed || moved
	}
	if changed {
		t.putPackage(pkg)
	}
	return PublishResult{Created: old == nil, Revision: pkg.Revision}, nil
}

// publication is a version on its way in.
type publication struct {
	*tx
	repo    *meta.Repository
	version *meta.Version
	regions []meta.RegionName // that owe copies, once asked
	// promoted and marks are what a promoted version brings.
	promoted *meta.Promotion
	marks    meta.Marks
}

func (p *publication) refuse(kind error, format string, args ...any) error {
	v := p.version
	return fmt.Errorf("publish %s: %s: %w", versionName(v.Repo, v.Package, v.Name), fmt.Sprintf(format, args...), kind)
}

// checkGrave lets only the very same content come back under a deleted name.
func (p *publication) checkGrave(files []meta.File) error {
	v := p.version
	g, err := load[grave](p, keyGrave(v.Repo, v.Package, v.Name))
	if err != nil || g == nil {
		return err
	}
	byPath := slices.SortedFunc(slices.Values(files), func(a, b meta.File) int { return strings.Compare(a.Path, b.Path) })
	if v.Digest == "" || v.Digest != g.Digest || filesSum(v.Digest, byPath) != g.Files {
		return p.refuse(meta.ErrExists, "the version was deleted and its name never takes other content; use a new one")
	}
	return nil
}

// checkSame compares with the version that has the name. What a reader can see is
// in its document, so the digest decides, with how the document is read.
func (p *publication) checkSame(old *meta.Version) error {
	v := p.version
	if v.Digest != old.Digest || v.MediaType != old.MediaType || v.Subject != old.Subject {
		return p.refuse(meta.ErrExists, "the version is there with digest %s (%s)", old.Digest, old.MediaType)
	}
	return nil
}

func (p *publication) create(files []meta.File) error {
	v := p.version
	for _, f := range files {
		if err := p.addFile(f); err != nil {
			return err
		}
	}
	if v.Draft != "" {
		if err := p.takeDraft(); err != nil {
			return err
		}
	}
	for ref, err := range references(p, v) {
		if err == nil {
			err = p.addReference(ref)
		}
		if err != nil {
			return err
		}
	}
	if v.Subject != "" {
		p.set(keyAttachments(v.Repo, v.Package, v.Subject).last(v.Name), []byte(v.ArtifactType))
	}
	p.del(keyGrave(v.Repo, v.Package, v.Name))
	v.CreatedBy, v.PublishTime = p.origin.Principal, p.now
	v.Credential, v.Quarantine, v.Verdict.Elevation = "", nil, ""
	level, err := levelOf(p)
	if err != nil {
		return err
	}
	if level >= respondLevel {
		v.Credential, v.Verdict.Elevation = p.origin.TokenID, p.origin.Elevation
	}
	v.Marks, v.Extended, v.Promotion = p.marks, 0, p.promoted
	if v.State == meta.StateOpen {
		p.opened(v, files)
	}
	p.awaitQuiet(nil, v)
	p.store(v)
	return p.did(meta.Act{Kind: meta.ActPublished, Repo: v.Repo, Package: v.Package, Name: v.Name})
}

// extend adds to a version that is there what is new, and moves its state forward.
func (p *publication) extend(old *meta.Version, files []meta.File) (changed bool, err error) {
	var added []meta.File
	waits := keyQuiet(old)
	for _, f := range files {
		have, err := load[meta.File](p, keyFiles(old.Repo, old.Package, old.Name).last(f.Path))
		switch {
		case err != nil:
			return false, err
		case have != nil && have.Digest == f.Digest:
			continue
		case have != nil:
			return false, p.refuse(meta.ErrExists, "file %s is there with digest %s", f.Path, have.Digest)
		case old.State == meta.StateClosed:
			return false, p.refuse(meta.ErrExists, "the version is closed and has no file %s", f.Path)
		case old.Quiet > 0 && old.CreatedBy != p.origin.Principal:
			return false, p.refuse(meta.ErrExists, "the version is another's who has not finished it, and has no file %s", f.Path)
		}
		if err := p.addFile(f); err != nil {
			return false, err
		}
		changed = true
		added = append(added, f)
	}
	if progress(p.version.State) > progress(old.State) {
		old.State, changed = p.version.State, true
	}
	if p.level >= packagesLevel {
		changed = p.grown(old, added) || changed
	}
	p.version = old
	if !changed {
		return false, nil
	}
	p.awaitQuiet(waits, old)
	p.store(old)
	return true, p.did(meta.Act{Kind: meta.ActExtended, Repo: old.Repo, Package: old.Package, Name: old.Name})
}

func progress(s meta.VersionState) int {
	return slices.Index([]meta.VersionState{meta.StateStaged, meta.StateOpen, meta.StateClosed}, s)
}

func (p *publication) store(v *meta.Version) {
	v.Revision = p.index
	p.put(keyVersion(v.Repo, v.Package, v.Name), v)
	p.emit(feed.Change{Kind: feed.KindVersion, Repo: v.Repo, Package: v.Package, Name: v.Name})
}

func (p *publication) addFile(f meta.File) error {
	v := p.version
	if err := p.use(f.Digest, "file "+f.Path); err != nil {
		return err
	}
	f.Uploaded, f.By = 0, ""
	if p.level >= packagesLevel {
		f.Uploaded, f.By = p.now, p.origin.Principal
	}
	p.put(keyFiles(v.Repo, v.Package, v.Name).last(f.Path), f)
	return nil
}

func (p *publication) addReference(ref meta.Reference) error {
	if !ref.Version {
		return p.use(ref.Digest, "reference")
	}
	// In an index the digest is the name of the other version.
	other, err := p.get(keyVersion(p.version.Repo, p.version.Package, string(ref.Digest)))
	if err == nil && other == nil {
		err = p.refuse(meta.ErrInvalid, "version %s is not in the package", ref.Digest)
	}
	return err
}

// use claims the link of d and demands its blob where the repository's class wants it.
func (p *publication) use(d digest.Digest, what string) error {
	l, err := findLink(p, p.version.Repo, d)
	if err != nil {
		return err
	}
	if l == nil {
		return p.refuse(meta.ErrInvalid, "%s: %s is not in the repository; upload it first", what, d)
	}
	if err := p.claim(p.version.Repo, l); err != nil {
		return err
	}
	record, err := blobOf(p, l)
	if err != nil {
		return err
	}
	if want := p.repo.CopiesBeforeAck; want > 1 {
		have, err := reliableCopies(p, record.Blob.Root)
		if err != nil {
			return err
		}
		if have < want {
			return p.refuse(meta.ErrUnavailable, "%s: %s has %d verified copies and the repository wants %d before it acknowledges; try again, they are being made", what, d, have, want)
		}
	}
	if p.regions == nil {
		if p.regions, err = p.owedNow(p.repo); err != nil {
			return err
		}
	}
	for _, region := range p.regions {
		if _, err := p.demand(&record.Blob, region, p.repo.Class); err != nil {
			return err
		}
	}
	return nil
}

// takeDraft claims the reference list that was written ahead.
func (p *publication) takeDraft() error {
	v := p.version
	k := keyDraft(v.Repo, v.Draft)
	head, err := load[draftRecord](p, k)
	switch {
	case err != nil:
		return err
	case head == nil:
		return p.refuse(meta.ErrInvalid, "draft %s is unknown or has expired; stage the references again", v.Draft)
	case head.Taken:
		return p.refuse(meta.ErrConflict, "draft %s belongs to another version", v.Draft)
	}
	p.del(upload{Since: head.Since, Repo: v.Repo, Draft: v.Draft}.key())
	head.Taken = true
	p.put(k, head)
	return nil
}
