package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Quarantine: a version says itself that nobody may read it, its aliases say so too, and
// each link counts how many of its claims are of such versions: a blob that only they
// use is kept from readers with them. Nothing else changes: copies are owed, made and
// repaired as before, and since all claims stay, nothing is collected.

// keyQuarantined is the entry of a version in the list of those in quarantine.
func keyQuarantined(v *meta.Version) key {
	return inRespond(ofQuarantined).part(string(v.Repo.Tenant)).part(v.Repo.Name).part(v.Package).last(v.Name)
}

// claimsOf yields the digests that a version claims, one a use, and stops at an error.
func claimsOf(r reader, v *meta.Version, each func(d digest.Digest) error) error {
	for p, err := range r.scan(within(keyFiles(v.Repo, v.Package, v.Name))) {
		if err != nil {
			return err
		}
		f, err := decode[meta.File](p.key, p.value)
		if err != nil {
			return err
		}
		if err := each(f.Digest); err != nil {
			return err
		}
	}
	for ref, err := range references(r, v) {
		if err == nil && !ref.Version {
			err = each(ref.Digest)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// quarantine keeps a version from all readers, or with nil gives it back. It returns how
// many links it changed.
func (t *tx) quarantine(v *meta.Version, q *meta.Quarantine) (links int, err error) {
	// What is claimed is read before it is written: a scan of a batch that grows is slow.
	uses := map[digest.Digest]uint64{}
	var order []digest.Digest
	err = claimsOf(t, v, func(d digest.Digest) error {
		if uses[d]++; uses[d] == 1 {
			order = append(order, d)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	for _, d := range order {
		if err := t.quarantineLink(v.Repo, d, uses[d], q); err != nil {
			return 0, err
		}
	}
	v.Quarantine, v.Revision = q, t.index
	t.put(keyVersion(v.Repo, v.Package, v.Name), v)
	if q != nil {
		t.mark(keyQuarantined(v))
	} else {
		t.del(keyQuarantined(v))
	}
	aliases, err := aliasesOf(t, v)
	if err != nil {
		return 0, err
	}
	for _, a := range aliases {
		a.Quarantined, a.Revision = q != nil, t.index
		t.put(keyAliases(a.Repo, a.Package).last(a.Name), a)
		t.emit(feed.Change{Kind: feed.KindAlias, Repo: a.Repo, Package: a.Package, Name: a.Name})
	}
	t.emit(feed.Change{Kind: feed.KindVersion, Repo: v.Repo, Package: v.Package, Name: v.Name})
	t.emit(feed.Change{Kind: feed.KindRespond, Repo: v.Repo, Package: v.Package, Name: v.Name, Deleted: q != nil})
	return len(order) + len(aliases), t.touchPackage(v.Repo, v.Package)
}

// quarantineLink counts claims of a link that are of versions in quarantine.
func (t *tx) quarantineLink(repo meta.RepoRef, d digest.Digest, uses uint64, q *meta.Quarantine) error {
	l, err := findLink(t, repo, d)
	if err != nil {
		return err
	}
	if l == nil {
		return &StorageError{Cause: fmt.Errorf("%s in %s is used by a version and not linked", d, repo)}
	}
	if q != nil {
		l.Quarantined += uses
		why := *q
		l.Why = &why
	} else if l.Quarantined -= min(uses, l.Quarantined); l.Quarantined == 0 {
		l.Why = nil
	}
	t.put(keyLink(repo, l.Link.Blob), l)
	return nil
}

// quarantined returns why a blob is kept from readers of the repository, nil when it is
// not: when versions use it, and all of them are in quarantine.
func (l *linkRecord) quarantined() *meta.Quarantine {
	if l.Link.Claims == 0 || l.Quarantined < l.Link.Claims {
		return nil
	}
	return l.Why
}

// aliasesOf returns the live aliases of a version.
func aliasesOf(r reader, v *meta.Version) (out []*meta.Alias, _ error) {
	prefix := keyNamings(v.Repo, v.Package, v.Name)
	for p, err := range r.scan(within(prefix)) {
		if err != nil {
			return nil, err
		}
		a, err := find[meta.Alias](r, keyAliases(v.Repo, v.Package).last(string(p.key[len(prefix):])), "alias of", v.Name)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

// checkReadable refuses a version that is in quarantine, to a command that would spread it.
//
// Errors: *meta.QuarantinedError.
func checkReadable(v *meta.Version) error {
	if v.Quarantine == nil {
		return nil
	}
	return &meta.QuarantinedError{What: "version " + versionName(v.Repo, v.Package, v.Name), Quarantine: *v.Quarantine}
}

// QuarantineVersion keeps a version from all readers until it is released. Result:
// meta.Version.
//
// Errors: meta.ErrNotFound; meta.ErrConflict when it is in quarantine.
type QuarantineVersion struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
	Version string       `cbor:"3,keyasint,omitempty"`
	Reason  string       `cbor:"4,keyasint,omitempty"`
}

// Type implements Command.
func (QuarantineVersion) Type() uint16 { return typeQuarantineVersion }

// Check implements Command.
func (c QuarantineVersion) Check() error {
	if err := checkVersion(c.Repo, c.Package, c.Version); err != nil {
		return err
	}
	return meta.CheckReason(c.Reason)
}

func (c QuarantineVersion) apply(t *tx) (any, error) {
	v, err := findVersion(t, c.Repo, c.Package, c.Version)
	if err != nil {
		return nil, err
	}
	if v.Quarantine != nil {
		return nil, fmt.Errorf("quarantine %s: it is in quarantine since %s: %s: %w",
			versionName(c.Repo, c.Package, c.Version), v.Quarantine.At.Std(), v.Quarantine.Reason, meta.ErrConflict)
	}
	_, err = t.quarantine(v, &meta.Quarantine{Reason: c.Reason, By: t.origin.Principal, At: t.now})
	if err != nil {
		return nil, err
	}
	withoutReferences(v)
	return *v, nil
}

// ReleaseVersion gives a version back to readers. Result: meta.Version.
//
// Errors: meta.ErrNotFound; meta.ErrConflict when it is not in quarantine.
type ReleaseVersion struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
	Version string       `cbor:"3,keyasint,omitempty"`
	Reason  string       `cbor:"4,keyasint,omitempty"`
}

// Type implements Command.
func (ReleaseVersion) Type() uint16 { return typeReleaseVersion }

// Check implements Command.
func (c ReleaseVersion) Check() error {
	if err := checkVersion(c.Repo, c.Package, c.Version); err != nil {
		return err
	}
	return meta.CheckReason(c.Reason)
}

func (c ReleaseVersion) apply(t *tx) (any, error) {
	v, err := findVersion(t, c.Repo, c.Package, c.Version)
	if err != nil {
		return nil, err
	}
	q := v.Quarantine
	if q == nil {
		return nil, fmt.Errorf("release %s: it is not in quarantine: %w", versionName(c.Repo, c.Package, c.Version), meta.ErrConflict)
	}
	if _, err := t.quarantine(v, nil); err != nil {
		return nil, err
	}
	if q.Compromise != "" {
		if err := t.released(q); err != nil {
			return nil, err
		}
	}
	withoutReferences(v)
	return *v, nil
}

// released notes with the finding of a compromise that its version was released.
func (t *tx) released(q *meta.Quarantine) error {
	c, err := load[meta.Compromise](t, keyCompromise(q.Compromise))
	if err != nil || c == nil {
		return err
	}
	f, err := load[meta.Finding](t, keyFinding(c.ID, q.Finding))
	if err != nil || f == nil {
		return err
	}
	f.Released, f.ReleasedBy = t.now, t.origin.Principal
	t.put(keyFinding(c.ID, f.Number), f)
	c.Released++
	t.putCompromise(c)
	return nil
}

// kept reports whether a blob is kept from all readers of a tenant: the tenant's
// repositories link it, and in each only versions in quarantine use it. What cannot be
// told within maxHoldingsRead links is not kept.
func kept(r reader, tenant string, d digest.Digest) bool {
	prefix := keyMentions(meta.TenantName(tenant), d)
	links := 0
	for p, err := range r.scan(within(prefix)) {
		if links++; err != nil || links > maxHoldingsRead {
			return false
		}
		l, err := findLink(r, meta.RepoRef{Tenant: meta.TenantName(tenant), Name: string(p.key[len(prefix):])}, d)
		if err != nil || l == nil || l.quarantined() == nil {
			return false
		}
	}
	return links > 0
}
