package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// DeleteVersion removes a version with its files and aliases, releases what it
// claimed and leaves a tombstone: only the same digest with the same files comes
// back under the name.
//
// Errors: meta.ErrNotFound.
type DeleteVersion struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
	Version string       `cbor:"3,keyasint,omitempty"`
}

// Type implements Command.
func (DeleteVersion) Type() uint16 { return typeDeleteVersion }

// Check implements Command.
func (c DeleteVersion) Check() error { return checkVersion(c.Repo, c.Package, c.Version) }

// grave is the tombstone of a version.
type grave struct {
	Digest    digest.Digest `cbor:"1,keyasint,omitempty"`
	DeletedBy string        `cbor:"2,keyasint,omitempty"`
	DeletedAt meta.Time     `cbor:"3,keyasint,omitempty"`
	Revision  uint64        `cbor:"4,keyasint,omitempty"`
	// Files is filesSum of its files.
	Files digest.CID `cbor:"5,keyasint,omitzero"`
}

// filesSum covers those files, which come by path, that the version's digest does not
// name already; zero when there are none, as of all that is one document, and of a
// version without a digest, which never comes back.
func filesSum(version digest.Digest, files []meta.File) (sum digest.CID) {
	var b key
	for _, f := range files {
		if version != "" && f.Digest != version {
			b = b.part(f.Path).part(string(f.Digest))
		}
	}
	if len(b) > 0 {
		sum = digest.Sum(b)
	}
	return sum
}

func (c DeleteVersion) apply(t *tx) (any, error) {
	v, err := findVersion(t, c.Repo, c.Package, c.Version)
	if err != nil {
		return nil, err
	}
	if err := checkReadable(v); err != nil {
		return nil, fmt.Errorf("delete %s, which is evidence until it is released: %w", versionName(c.Repo, c.Package, c.Version), err)
	}
	var files []meta.File
	for p, err := range t.scan(within(keyFiles(c.Repo, c.Package, c.Version))) {
		if err != nil {
			return nil, err
		}
		f, err := decode[meta.File](p.key, p.value)
		if err != nil {
			return nil, err
		}
		if err := t.release(c.Repo, f.Digest); err != nil {
			return nil, err
		}
		t.del(p.key)
		files = append(files, *f)
	}
	for ref, err := range references(t, v) {
		if err == nil && !ref.Version {
			err = t.release(c.Repo, ref.Digest)
		}
		if err != nil {
			return nil, err
		}
	}
	if v.Draft != "" {
		if err := t.dropDraft(c.Repo, v.Draft); err != nil {
			return nil, err
		}
	}
	names := keyNamings(c.Repo, c.Package, c.Version)
	for p, err := range t.scan(within(names)) {
		if err != nil {
			return nil, err
		}
		a, err := find[meta.Alias](t, keyAliases(c.Repo, c.Package).last(string(p.key[len(names):])), "alias of", v.Name)
		if err != nil {
			return nil, err
		}
		if err := t.deleteAlias(a); err != nil {
			return nil, err
		}
	}
	if v.Subject != "" {
		t.del(keyAttachments(c.Repo, c.Package, v.Subject).last(c.Version))
	}
	t.awaitQuiet(keyQuiet(v), nil)
	t.del(keyVersion(c.Repo, c.Package, c.Version))
	t.unpromote(v)
	t.put(keyGrave(c.Repo, c.Package, c.Version), grave{
		Digest: v.Digest, DeletedBy: t.origin.Principal, DeletedAt: t.now, Revision: t.index, Files: filesSum(v.Digest, files),
	})
	t.emit(feed.Change{Kind: feed.KindVersion, Repo: c.Repo, Package: c.Package, Name: c.Version, Deleted: true})

	pkg, err := findPackage(t, c.Repo, c.Package)
	if err != nil {
		return nil, err
	}
	pkg.Versions--
	t.putPackage(pkg)
	return nil, t.did(meta.Act{Kind: meta.ActDeletedVersion, Repo: c.Repo, Package: c.Package, Name: c.Version, Detail: string(v.Digest)})
}

func findPackage(r reader, repo meta.RepoRef, name string) (*meta.Package, error) {
	return find[meta.Package](r, keyPackage(repo, name), "package", repo.String()+"/"+name)
}

// putPackage stores a changed package; one without versions goes, and from level 6 on
// its name stays taken.
func (t *tx) putPackage(p *meta.Package) {
	p.Revision = t.index
	if p.Versions == 0 {
		t.keepName(p)
		t.del(keyPackage(p.Repo, p.Name))
		return
	}
	t.put(keyPackage(p.Repo, p.Name), p)
}

// touchPackage gives the package a new revision.
func (t *tx) touchPackage(repo meta.RepoRef, name string) error {
	p, err := findPackage(t, repo, name)
	if err != nil {
		return err
	}
	t.putPackage(p)
	return nil
}
