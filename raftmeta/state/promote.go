package state

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Promote makes versions of repositories of a tenant versions of another one of its
// repositories, by reference: no bytes move, all of them or none are visible after it, and
// each keeps where it came from. Result: Promoted.
//
// What a version refers to in its package (the images of an index) must be there already or
// come before it. A version that is there with the same content stays as it is, its aliases
// move; a promoted open version stays open, and gains what it lacks when it is promoted
// again.
//
// Errors: meta.ErrNotFound; *meta.QuarantinedError; meta.ErrConflict for a version that is
// no longer at the revision, staged, or in a repository of another format;
// meta.ErrExists for other content under a name, or an alias that may not move;
// meta.ErrInvalid when it lacks what it refers to; meta.ErrTooLarge;
// *meta.ReadOnlyError; meta.ErrUnavailable as Publish.
type Promote struct {
	To     meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Items  []Promotee   `cbor:"2,keyasint,omitempty"` // 1 to MaxPromoted
	Reason string       `cbor:"3,keyasint,omitempty"`
}

// Promotee is a version to promote, as somebody has seen it.
type Promotee struct {
	From    string `cbor:"1,keyasint,omitempty"` // name of a repository of the tenant
	Package string `cbor:"2,keyasint,omitempty"`
	Version string `cbor:"3,keyasint,omitempty"`
	// Revision is the version's, 0 for whatever it is by now.
	Revision uint64   `cbor:"4,keyasint,omitempty"`
	Aliases  []string `cbor:"5,keyasint,omitempty"` // moved to the version
}

// Bounds of one promotion; maxPromotedUses of the files and references of all. It is one
// entry, and nothing else is applied meanwhile: at 40 µs each (BenchmarkPromote) a tenth
// of a second.
const (
	MaxPromoted     = 256
	maxPromotedUses = 2500
)

// Promoted says what a promotion did, in the order of its Items.
type Promoted struct {
	Versions []PromotedVersion `cbor:"1,keyasint,omitempty" json:"versions"`
}

// PromotedVersion is one version of it. Created is false when it was there already.
type PromotedVersion struct {
	Package string        `cbor:"1,keyasint,omitempty" json:"package"`
	Version string        `cbor:"2,keyasint,omitempty" json:"version"`
	Digest  digest.Digest `cbor:"3,keyasint,omitempty" json:"digest,omitempty"`
	Created bool          `cbor:"4,keyasint,omitempty" json:"created"`
}

// Type implements Command.
func (Promote) Type() uint16 { return typePromote }

// Check implements Command.
func (c Promote) Check() error {
	if err := c.To.Check(); err != nil {
		return err
	}
	if len(c.Items) == 0 || len(c.Items) > MaxPromoted {
		return fmt.Errorf("promote %d versions to %s, use 1 to %d: %w", len(c.Items), c.To, MaxPromoted, meta.ErrInvalid)
	}
	if len(c.Reason) > meta.MaxReasonBytes || !utf8.ValidString(c.Reason) {
		return fmt.Errorf("promote to %s: the reason must be UTF-8 of at most %d bytes: %w", c.To, meta.MaxReasonBytes, meta.ErrInvalid)
	}
	for _, item := range c.Items {
		from := meta.RepoRef{Tenant: c.To.Tenant, Name: item.From}
		if err := checkVersion(from, item.Package, item.Version); err != nil {
			return err
		}
		if from == c.To {
			return fmt.Errorf("promote %s to its own repository: %w", versionName(from, item.Package, item.Version), meta.ErrInvalid)
		}
		if len(item.Aliases) > maxAliases {
			return fmt.Errorf("promote %s: %d aliases, at most %d: %w", versionName(from, item.Package, item.Version), len(item.Aliases), maxAliases, meta.ErrInvalid)
		}
		for _, a := range item.Aliases {
			if err := meta.CheckAlias(a); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c Promote) apply(t *tx) (any, error) {
	to, err := findRepository(t, c.To)
	if err != nil {
		return nil, err
	}
	if to.Kind != meta.KindHosted {
		return nil, fmt.Errorf("promote to %s: %w", c.To, &meta.ReadOnlyError{Repo: c.To, Kind: to.Kind})
	}
	var out Promoted
	uses := 0
	for i, item := range c.Items {
		from, err := findRepository(t, meta.RepoRef{Tenant: c.To.Tenant, Name: item.From})
		if err != nil {
			return nil, err
		}
		p := &promotion{publication: publication{tx: t, repo: to}, item: item, number: i, reason: strings.TrimSpace(c.Reason)}
		if from.Format != to.Format {
			return nil, fmt.Errorf("promote %s: %s holds %s, and %s holds %s: %w", p.name(from.Ref), from.Ref, from.Format, to.Ref, to.Format, meta.ErrConflict)
		}
		done, err := p.promote(from, &uses)
		if err != nil {
			return nil, fmt.Errorf("promote %s to %s: %w", p.name(from.Ref), to.Ref, err)
		}
		out.Versions = append(out.Versions, done)
	}
	return out, nil
}

// promotion is a version on its way from one repository into another.
type promotion struct {
	publication
	item   Promotee
	number int // of the item
	reason string
}

func (p *promotion) name(repo meta.RepoRef) string {
	return versionName(repo, p.item.Package, p.item.Version)
}

func (p *promotion) promote(from *meta.Repository, uses *int) (done PromotedVersion, err error) {
	source, err := findVersion(p, from.Ref, p.item.Package, p.item.Version)
	if err != nil {
		return done, err
	}
	if err := checkReadable(source); err != nil {
		return done, err
	}
	switch {
	case source.State != meta.StateOpen && source.State != meta.StateClosed:
		return done, fmt.Errorf("it is %s: %w", source.State, meta.ErrConflict)
	case p.item.Revision != 0 && p.item.Revision != source.Revision:
		return done, fmt.Errorf("it changed since it was looked at; look again and retry: %w", meta.ErrConflict)
	}
	files, err := p.linkAll(source, uses)
	if err != nil {
		return done, err
	}
	v := *source
	v.Repo, p.version = p.repo.Ref, &v
	pkg, err := p.promotePackage(from.Ref)
	if err != nil {
		return done, err
	}
	old, err := load[meta.Version](p, keyVersion(v.Repo, v.Package, v.Name))
	if err != nil {
		return done, err
	}
	changed := old == nil
	if old == nil {
		if err := p.checkGrave(files); err != nil {
			return done, err
		}
		if err := p.copyDraft(source); err != nil {
			return done, err
		}
		p.promoted = &meta.Promotion{
			From: from.Ref, Revision: source.Revision, CreatedBy: source.CreatedBy, PublishTime: source.PublishTime,
			By: p.origin.Principal, At: p.now, Reason: p.reason,
		}
		p.marks = source.Marks
		if err := p.create(files); err != nil {
			return done, err
		}
		p.mark(keyPromotions(source).last(p.repo.Ref.Name))
		pkg.Versions++
	} else {
		if err := p.checkSame(old); err != nil {
			return done, err
		}
		if err := checkReadable(old); err != nil {
			return done, err
		}
		if changed, err = p.extend(old, files); err != nil {
			return done, err
		}
	}
	for _, name := range p.item.Aliases {
		_, moved, err := p.moveAlias(p.repo, name, p.version)
		if err != nil {
			return done, err
		}
		changed = changed || moved
	}
	if changed {
		p.putPackage(pkg)
	}
	return PromotedVersion{Package: v.Package, Version: v.Name, Digest: v.Digest, Created: old == nil}, nil
}

// promotePackage returns the package at the target, spelled as at the source when it is new.
func (p *promotion) promotePackage(from meta.RepoRef) (*meta.Package, error) {
	pkg, err := load[meta.Package](p, keyPackage(p.repo.Ref, p.item.Package))
	if err != nil || pkg != nil {
		return pkg, err
	}
	pkg = &meta.Package{Repo: p.repo.Ref, Name: p.item.Package, Created: p.now}
	if err := p.takeName(pkg); err != nil {
		return nil, err
	}
	source, err := findPackage(p, from, p.item.Package)
	if err == nil && pkg.Spelling == "" {
		pkg.Spelling = source.Spelling
	}
	return pkg, err
}

// linkAll links all content of a version into the target, and returns its files.
func (p *promotion) linkAll(source *meta.Version, uses *int) (files []meta.File, err error) {
	link := func(d digest.Digest) error {
		if *uses++; *uses > maxPromotedUses {
			return fmt.Errorf("the promotion has over %d files and references by here; promote fewer versions at a time, and publish one that has more by itself in the other repository: %w",
				maxPromotedUses, meta.ErrTooLarge)
		}
		l, err := findLink(p, source.Repo, d)
		if err != nil {
			return err
		}
		if l == nil {
			return &StorageError{Cause: fmt.Errorf("%s in %s is used by a version and not linked", d, source.Repo)}
		}
		record, err := blobOf(p, l)
		if err != nil {
			return err
		}
		return p.link(p.repo.Ref, record)
	}
	for pair, err := range p.scan(within(keyFiles(source.Repo, source.Package, source.Name))) {
		if err != nil {
			return nil, err
		}
		f, err := decode[meta.File](pair.key, pair.value)
		if err != nil {
			return nil, err
		}
		files = append(files, *f)
		if len(files) > maxPromotedUses {
			break // link refuses them
		}
	}
	// What is read is read before it is written: a scan of a batch that grows is slow.
	var blobs []digest.Digest
	for ref, err := range references(p, source) {
		if err != nil {
			return nil, err
		}
		if !ref.Version {
			blobs = append(blobs, ref.Digest)
		}
	}
	for _, f := range files {
		if err := link(f.Digest); err != nil {
			return nil, err
		}
	}
	for _, d := range blobs {
		if err := link(d); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// copyDraft gives the version a reference list of its own, when the source's was staged.
func (p *promotion) copyDraft(source *meta.Version) error {
	if source.Draft == "" {
		return nil
	}
	head, err := find[draftRecord](p, keyDraft(source.Repo, source.Draft), "draft", source.Draft)
	if err != nil {
		return err
	}
	// No other entry has the index.
	name := fmt.Sprintf("promoted %d.%d", p.index, p.number)
	for part := range head.Parts {
		b, err := p.get(keyDraft(source.Repo, source.Draft).u32(part))
		if err != nil {
			return err
		}
		p.set(keyDraft(p.repo.Ref, name).u32(part), b)
	}
	copied := draftRecord{Parts: head.Parts, References: head.References, Since: p.now}
	p.put(keyDraft(p.repo.Ref, name), copied)
	p.version.Draft = name
	return nil
}

// keyPromotions begins the list of the repositories that a version was promoted to.
func keyPromotions(v *meta.Version) key {
	return append(below(string(v.Repo.Tenant), inNames), ofPromotions).part(v.Repo.Name).part(v.Package).part(v.Name)
}

// unpromote takes a promoted version that goes off the list of its source.
func (t *tx) unpromote(v *meta.Version) {
	if v.Promotion == nil {
		return
	}
	source := *v
	source.Repo = v.Promotion.From
	t.del(keyPromotions(&source).last(v.Repo.Name))
}

// promotionsOf returns what became of a version in the repositories that it was promoted
// to, and of those that were promoted from there: each once.
func promotionsOf(r reader, v *meta.Version) (out []*meta.Version, _ error) {
	seen := map[meta.RepoRef]bool{v.Repo: true}
	for queue := []*meta.Version{v}; len(queue) > 0; queue = queue[1:] {
		prefix := keyPromotions(queue[0])
		for p, err := range r.scan(within(prefix)) {
			if err != nil {
				return nil, err
			}
			ref := meta.RepoRef{Tenant: v.Repo.Tenant, Name: string(p.key[len(prefix):])}
			if seen[ref] {
				continue
			}
			seen[ref] = true
			copied, err := load[meta.Version](r, keyVersion(ref, v.Package, v.Name))
			if err != nil {
				return nil, err
			}
			if copied != nil {
				out = append(out, copied)
				queue = append(queue, copied)
			}
		}
	}
	return out, nil
}
