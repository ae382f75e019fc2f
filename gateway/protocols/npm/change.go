package npm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// maxChanges bounds the versions that one document changes.
const maxChanges = 10_000

// pageLimit is how many versions are looked at at a time.
const pageLimit = 500

// revisionOf writes the revision of a package as couchdb's clients carry it.
func revisionOf(revision uint64) string { return strconv.FormatUint(revision, 10) }

// Limits of what is kept of a document's versions while it is compared.
const (
	maxIntegrityBytes = 1 << 10
	maxReasonsBytes   = 32 << 20 // of all texts that differ
)

// claims are what a document says of the versions of a package.
type claims struct {
	list    []claim
	reasons map[string]string // so that one text for all versions is held once
	bytes   int               // of reasons
}

// claim is what it says of one.
type claim struct {
	version           string
	deprecated        string
	shasum, integrity string
}

func (cs *claims) add(version string, manifest []byte) error {
	var m struct {
		Deprecated json.RawMessage `json:"deprecated"`
		Dist       dist            `json:"dist"`
	}
	if err := json.Unmarshal(manifest, &m); err != nil {
		return fmt.Errorf("version %q: %v: %w", version, err, meta.ErrInvalid)
	}
	one := claim{version: version, shasum: m.Dist.Shasum, integrity: m.Dist.Integrity}
	// `false` is how some clients take a deprecation back.
	if m.Deprecated != nil && json.Unmarshal(m.Deprecated, &one.deprecated) != nil && string(m.Deprecated) == "true" {
		one.deprecated = "this version is deprecated"
	}
	switch {
	case len(version) > meta.MaxVersionBytes:
		return fmt.Errorf("a version has %d bytes: %w", len(version), meta.ErrInvalid)
	case len(one.shasum)+len(one.integrity) > maxIntegrityBytes:
		return fmt.Errorf("version %q: dist has checksums of over %d bytes: %w", version, maxIntegrityBytes, meta.ErrInvalid)
	case len(one.deprecated) > meta.MaxMarkReasonBytes:
		return fmt.Errorf("version %q: deprecated is over %d bytes: %w", version, meta.MaxMarkReasonBytes, meta.ErrInvalid)
	}
	if cs.reasons == nil {
		cs.reasons = map[string]string{}
	}
	if same, ok := cs.reasons[one.deprecated]; ok {
		one.deprecated = same
	} else {
		if cs.bytes += len(one.deprecated); cs.bytes > maxReasonsBytes {
			return fmt.Errorf("the texts of the deprecated versions are over %d bytes: %w", maxReasonsBytes, meta.ErrTooLarge)
		}
		cs.reasons[one.deprecated] = one.deprecated
	}
	cs.list = append(cs.list, one)
	return nil
}

// changes is what a document asks for, compared with what is there.
type changes struct {
	deleted []string
	// deprecated are versions by the new text, "" to take it back.
	deprecated map[string][]string
	moved      map[string]string // tag -> version
	untagged   []string
	count      int
}

// held is what is there of a version.
type held struct {
	version, deprecated string
	dist                dist
}

// differ compares a document with what is there, version by version.
type differ struct {
	claims map[string]claim
	tags   map[string]string // of the document, nil when it has none
	changes
}

func newDiffer(cs claims, tags map[string]string) (*differ, error) {
	d := &differ{claims: make(map[string]claim, len(cs.list)), tags: tags, changes: changes{deprecated: map[string][]string{}, moved: map[string]string{}}}
	for _, c := range cs.list {
		if _, twice := d.claims[c.version]; twice {
			return nil, fmt.Errorf("version %q comes twice: %w", c.version, meta.ErrInvalid)
		}
		d.claims[c.version] = c
	}
	return d, nil
}

// version compares one that is there.
//
// Errors: meta.ErrInvalid when the document has another tarball for it.
func (d *differ) version(h held) error {
	c, ok := d.claims[h.version]
	delete(d.claims, h.version)
	switch {
	case !ok:
		d.deleted = append(d.deleted, h.version)
	case c.integrity != h.dist.Integrity || c.shasum != h.dist.Shasum:
		return fmt.Errorf("the document has another tarball for %s: what was published does not change, publish a new version: %w", h.version, meta.ErrInvalid)
	case c.deprecated != h.deprecated:
		d.deprecated[c.deprecated] = append(d.deprecated[c.deprecated], h.version)
	default:
		return nil
	}
	if d.count++; d.count > maxChanges {
		return fmt.Errorf("over %d versions are changed at once: do it in several steps: %w", maxChanges, meta.ErrTooLarge)
	}
	return nil
}

// end compares the tags, once all versions were.
//
// Errors: meta.ErrInvalid for versions that are not there.
func (d *differ) end(tags map[string]string) (changes, error) {
	for version := range d.claims {
		return d.changes, fmt.Errorf("version %q has no tarball here, publish it with one: %w", version, meta.ErrInvalid)
	}
	if d.tags == nil {
		return d.changes, nil
	}
	for tag, version := range d.tags {
		if tags[tag] != version {
			d.moved[tag] = version
		}
	}
	for tag, version := range tags {
		// What a version takes with it goes by itself.
		if d.tags[tag] == "" && !slices.Contains(d.deleted, version) && tag != latest {
			d.untagged = append(d.untagged, tag)
		}
	}
	slices.Sort(d.untagged)
	return d.changes, nil
}

// only checks that the changes are those of an unpublish, for which the right to delete is
// enough: versions, with the tags that lead to them, and latest for the next one. tags are
// those that are there.
//
// Errors: meta.ErrDenied.
func (ch *changes) only(tags map[string]string) error {
	for reason, versions := range ch.deprecated {
		return fmt.Errorf("an unpublish that deprecates %s (%.100q): use `npm deprecate`: %w", versions[0], reason, meta.ErrDenied)
	}
	for tag := range ch.moved {
		if !slices.Contains(ch.deleted, tags[tag]) && (tag != latest || tags[tag] != "") {
			return fmt.Errorf("an unpublish that moves tag %s: use `npm dist-tag`: %w", tag, meta.ErrDenied)
		}
	}
	if len(ch.untagged) > 0 {
		return fmt.Errorf("an unpublish that takes tag %s away: use `npm dist-tag`: %w", ch.untagged[0], meta.ErrDenied)
	}
	return nil
}

// change does what a document without a tarball asks for. rev is the revision that the
// path names, "" where it names none: then nothing is deleted.
func (p *Protocol) change(c *protocol.Call, in *incoming, d document, rev string) error {
	pkg := catalog.Package{Repo: in.repo, Name: keyOf(in.name)}
	ctx, by := c.R.Context(), in.by
	by.Asked = meta.Strong // what is compared has to be what is there
	record, _, err := p.catalog.Package(ctx, by, pkg)
	if err == nil && spelled(record) != in.name {
		err = fmt.Errorf("package %s: %w", in.name, meta.ErrNotFound)
	}
	if err != nil {
		return err
	}
	known := rev
	if known == "" {
		known = d.Rev
	}
	if known != "" && known != revisionOf(record.Revision) {
		return fmt.Errorf("package %s has changed meanwhile (it is at %d, not %s), try again: %w", in.name, record.Revision, known, meta.ErrConflict)
	}
	differ, err := newDiffer(in.claims, d.Tags)
	if err != nil {
		return err
	}
	for v, err := range p.versions(ctx, by, pkg) {
		if err != nil {
			return err
		}
		if v.Quarantine != nil || v.State != meta.StateClosed {
			continue // no document shows it
		}
		m, err := p.manifest(ctx, by, &v)
		if err != nil {
			return err
		}
		h := held{version: v.Name, dist: m.dist()}
		if v.Marks.Deprecated != nil {
			h.deprecated = v.Marks.Deprecated.Reason
		}
		if err := differ.version(h); err != nil {
			return err
		}
	}
	tags, err := p.tagsOf(ctx, by, pkg)
	if err != nil {
		return err
	}
	ch, err := differ.end(tags)
	if err != nil {
		return err
	}
	if rev == "" && len(ch.deleted) > 0 {
		return fmt.Errorf("the document leaves %s out: to take versions away use `npm unpublish`: %w", ch.deleted[0], meta.ErrInvalid)
	}
	if rev != "" {
		if err := ch.only(tags); err != nil {
			return err
		}
	}
	if len(ch.deleted)+len(ch.untagged) > 0 {
		if err := p.unmoved(ctx, by, pkg, record.Revision); err != nil {
			return err
		}
	}
	token, err := p.apply(c, in.by, pkg, ch)
	if err != nil {
		return err
	}
	if token == (meta.Token{}) {
		token.Index = record.Revision
		return unchanged(c, in.name, token)
	}
	return written(c, token, http.StatusOK, in.name)
}

// unmoved checks that a package is still what the caller's document is of: what was
// published while its versions were compared is not in the document, and was not left out.
//
// Errors: meta.ErrConflict.
func (p *Protocol) unmoved(ctx context.Context, by catalog.Caller, pkg catalog.Package, revision uint64) error {
	now, _, err := p.catalog.Package(ctx, by, pkg)
	if err == nil && now.Revision != revision {
		err = fmt.Errorf("package %s has changed meanwhile (it is at %d, not %d), try again: %w", spelled(now), now.Revision, revision, meta.ErrConflict)
	}
	return err
}

// unchanged answers a write that had nothing to do.
func unchanged(c *protocol.Call, name string, at meta.Token) error {
	return protocol.WriteJSON(c.W, http.StatusOK, map[string]any{"ok": true, "id": name, "rev": revisionOf(at.Index)})
}

// apply sends the commands, those that take away last: tags have moved by then.
func (p *Protocol) apply(c *protocol.Call, by catalog.Caller, pkg catalog.Package, ch changes) (token meta.Token, err error) {
	n := 0
	do := func(f func(by catalog.Caller) (meta.Token, error)) {
		if err == nil {
			n++
			var t meta.Token
			if t, err = f(by.Nth(n)); err == nil {
				token = t
			}
		}
	}
	ctx := c.R.Context()
	for _, reason := range slices.Sorted(maps.Keys(ch.deprecated)) {
		set := reason != ""
		do(func(by catalog.Caller) (meta.Token, error) {
			return p.catalog.MarkAll(ctx, by, pkg, ch.deprecated[reason], meta.Marking{Deprecated: &set, Reason: reason})
		})
	}
	for _, tag := range slices.Sorted(maps.Keys(ch.moved)) {
		do(func(by catalog.Caller) (meta.Token, error) {
			return p.catalog.MoveAlias(ctx, by, pkg, tag, ch.moved[tag])
		})
	}
	for _, tag := range ch.untagged {
		do(func(by catalog.Caller) (meta.Token, error) { return p.catalog.DeleteAlias(ctx, by, pkg, tag) })
	}
	for _, version := range ch.deleted {
		do(func(by catalog.Caller) (meta.Token, error) { return p.catalog.DeleteVersion(ctx, by, pkg, version) })
	}
	return token, err
}

// rewrite takes a document that may leave versions out, which npm unpublish does.
func (p *Protocol) rewrite(c *protocol.Call) error {
	name := c.Params.Get("path")
	repo, err := p.writable(c, meta.ActionDelete)
	if err != nil {
		return refuse(c, err)
	}
	in := &incoming{p: p, ctx: c.R.Context(), by: caller(c), repo: repo, name: name}
	d, err := readDocument(&body{c.R.Body}, receiver{version: in.version, attachment: noAttachment})
	if err == nil {
		err = in.checkNames(d)
	}
	if err != nil {
		return refuse(c, err)
	}
	return p.change(c, in, d, c.Params.Get("rev"))
}

// writable returns the hosted repository that a change of what is there goes to.
func (p *Protocol) writable(c *protocol.Call, action meta.Action) (meta.RepoRef, error) {
	if c.Repository == nil {
		return c.Repo, fmt.Errorf("repository %s: %w", c.Repo, meta.ErrNotFound)
	}
	repo, err := p.catalog.ForChange(c.R.Context(), caller(c), *c.Repository, Format, action)
	return repo.Ref, err
}

// unpublish takes a whole package away, or the version of a tarball.
func (p *Protocol) unpublish(c *protocol.Call) error {
	t, err := parsePath(c.Params.Get("path"))
	if err == nil && t.version != "" {
		err = fmt.Errorf("%s is taken away by its tarball's path, use `npm unpublish`: %w", c.Params.Get("path"), meta.ErrNotFound)
	}
	if err != nil {
		return err
	}
	repo, err := p.writable(c, meta.ActionDelete)
	if err != nil {
		return err
	}
	pkg := catalog.Package{Repo: repo, Name: keyOf(t.name)}
	ctx, by := c.R.Context(), caller(c)
	strong := by
	strong.Asked = meta.Strong
	record, _, err := p.catalog.Package(ctx, strong, pkg)
	if err == nil && spelled(record) != t.name || errors.Is(err, meta.ErrNotFound) {
		if t.file != "" {
			return unchanged(c, t.name, meta.Token{}) // with the last version the package went
		}
		return fmt.Errorf("package %s: %w", t.name, meta.ErrNotFound)
	}
	if err != nil {
		return err
	}
	if rev := c.Params.Get("rev"); rev != revisionOf(record.Revision) {
		return fmt.Errorf("package %s has changed meanwhile (it is at %d, not %s), try again: %w", t.name, record.Revision, rev, meta.ErrConflict)
	}
	var ch changes
	if t.file != "" {
		version, ok := versionOf(t.name, t.file)
		if !ok {
			return fmt.Errorf("file %s of %s: %w", t.file, t.name, meta.ErrNotFound)
		}
		// npm takes the version out of the document first, and then its tarball away.
		if _, _, err := p.catalog.Version(ctx, strong, pkg, version); errors.Is(err, meta.ErrNotFound) {
			return unchanged(c, t.name, meta.Token{Index: record.Revision})
		} else if err != nil {
			return err
		}
		ch.deleted = []string{version}
	} else {
		for v, err := range p.versions(ctx, strong, pkg) {
			if err != nil {
				return err
			}
			if ch.deleted = append(ch.deleted, v.Name); len(ch.deleted) > maxChanges {
				return fmt.Errorf("package %s has over %d versions: take them away in several steps: %w", t.name, maxChanges, meta.ErrTooLarge)
			}
		}
		if err := p.unmoved(ctx, strong, pkg, record.Revision); err != nil {
			return err
		}
	}
	token, err := p.apply(c, by, pkg, ch)
	if err != nil {
		return err
	}
	return written(c, token, http.StatusOK, t.name)
}
