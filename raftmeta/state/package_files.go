package state

import (
	"fmt"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// ListPackageFiles lists the files of all versions of a package that readers may have, in
// the order of their keys: a version's files lie together. Page.After is what
// PackageFile.After says.
type ListPackageFiles struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
	Page    Page         `cbor:"3,keyasint,omitempty"`
}

// PackageFile is a file with its version's name, state and marks.
type PackageFile struct {
	Version string            `cbor:"1,keyasint,omitempty" json:"version"`
	State   meta.VersionState `cbor:"2,keyasint,omitempty" json:"state"`
	Marks   meta.Marks        `cbor:"3,keyasint,omitzero" json:"marks,omitzero"`
	File    meta.File         `cbor:"4,keyasint,omitempty" json:"file"`
}

// After is where a listing goes on behind the file.
func (f PackageFile) After() string { return f.Version + "\x00" + f.File.Path }

// cutAfter takes a Page.After of two names apart. No name has a NUL.
func cutAfter(after string) (first, second string, err error) {
	first, second, ok := strings.Cut(after, "\x00")
	if !ok {
		return "", "", fmt.Errorf("a listing goes on after two names with a NUL between, not %q: %w", after, meta.ErrInvalid)
	}
	return first, second, nil
}

// Answer implements Question.
func (q ListPackageFiles) Answer(v *View) (a []PackageFile, _ error) {
	if _, err := findPackage(v, q.Repo, q.Package); err != nil {
		return nil, err
	}
	limit, err := q.Page.limit()
	if err != nil {
		return nil, err
	}
	prefix := inRepo(inFiles, q.Repo).part(q.Package)
	s := within(prefix)
	if q.Page.After != "" {
		version, path, err := cutAfter(q.Page.After)
		if err != nil {
			return nil, err
		}
		s.lower = append(keyFiles(q.Repo, q.Package, version).last(path), 0)
	}
	bytes := 0
	var of *meta.Version
	for p, err := range v.scan(s) {
		if err != nil {
			return nil, err
		}
		name, _, ok := cutPart(p.key[len(prefix):])
		if !ok {
			return nil, &StorageError{Cause: fmt.Errorf("key %x is no file", p.key)}
		}
		if of == nil || of.Name != name {
			if of, err = findVersion(v, q.Repo, q.Package, name); err != nil {
				return nil, err
			}
		}
		if of.Quarantine != nil {
			continue
		}
		f, err := decode[meta.File](p.key, p.value)
		if err != nil {
			return nil, err
		}
		a = append(a, PackageFile{Version: name, State: of.State, Marks: of.Marks, File: *f})
		if bytes += len(p.value); len(a) == limit || bytes > pageBytes {
			break
		}
	}
	return a, nil
}
