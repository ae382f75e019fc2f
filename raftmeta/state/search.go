package state

import (
	"fmt"
	"slices"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Search looks for packages of a repository, or, when a Digest or a Publisher is asked
// for, for versions; unlisted ones are found by a digest only. It looks at names in byte
// order, and at some 20,000 records at most, so an answer may have nothing and still not
// be the last.
type Search struct {
	Repo meta.RepoRef `cbor:"1,keyasint,omitempty"`
	// Prefix begins the package's name, Contains is part of it or of its spelling,
	// whatever the case of letters.
	Prefix   string `cbor:"2,keyasint,omitempty"`
	Contains string `cbor:"3,keyasint,omitempty"`
	// Labels are all on the package, or on the version; an empty value is any.
	Labels meta.Labels `cbor:"4,keyasint,omitempty"`
	// Digest is of something in the version: its document, a file, what it refers to.
	Digest digest.Digest `cbor:"5,keyasint,omitempty"`
	// Publisher is who published the version.
	Publisher string `cbor:"6,keyasint,omitempty"`
	// After is the After of the answer before; Limit is 1 to 10,000, 0 is 1,000.
	After string `cbor:"7,keyasint,omitempty"`
	Limit int    `cbor:"8,keyasint,omitempty"`
}

// Match is one thing that a Search found.
type Match struct {
	Package meta.Package `cbor:"1,keyasint,omitempty"`
	// Version is set when versions were looked for, without its references and summary.
	Version *meta.Version `cbor:"2,keyasint,omitempty"`
	// Path is the file that has the digest, "" when it is the version itself or what that
	// refers to.
	Path string `cbor:"3,keyasint,omitempty"`
}

// SearchAnswer is what one Search found.
type SearchAnswer struct {
	Matches []Match `cbor:"1,keyasint,omitempty"`
	// After is where to go on, "" when all was looked at.
	After string `cbor:"2,keyasint,omitempty"`
	// Read is how many records were looked at.
	Read int `cbor:"3,keyasint,omitempty"`
}

// searchMost bounds the records of one answer.
const searchMost = 20_000

// Answer implements Question.
func (q Search) Answer(v *View) (a SearchAnswer, _ error) {
	limit, err := Page{Limit: q.Limit}.limit()
	if err != nil {
		return a, err
	}
	if _, err := findRepository(v, q.Repo); err != nil {
		return a, err
	}
	names, here, err := q.names(v)
	if err != nil || !here {
		return a, err
	}
	// A page goes on behind a package, or behind one of its versions.
	inside, behind := "", ""
	prefix := inRepo(inPackages, q.Repo)
	s := within(slices.Clone(prefix).last(q.Prefix))
	if q.After != "" {
		if inside, behind, err = cutAfter(q.After); err != nil {
			return a, err
		}
		s.lower = slices.Clone(prefix).last(inside)
		if behind == "" {
			s.lower = append(s.lower, 0)
		}
	}
	contains := strings.ToLower(q.Contains)
	for p, err := range v.scan(s) {
		if err != nil {
			return a, err
		}
		if a.Read >= searchMost || len(a.Matches) >= limit {
			return a, nil
		}
		a.Read++
		pkg, err := decode[meta.Package](p.key, p.value)
		if err != nil {
			return a, err
		}
		after := ""
		if pkg.Name == inside {
			after = behind
		}
		if pkg.Versions > 0 && (strings.Contains(strings.ToLower(pkg.Name), contains) || strings.Contains(strings.ToLower(pkg.Spelling), contains)) {
			done, err := q.look(v, &a, pkg, names, after, limit)
			if err != nil || !done {
				return a, err
			}
		}
		a.After = pkg.Name + "\x00"
	}
	a.After = ""
	return a, nil
}

// names returns what the blob of the digest is called, and whether the repository has it.
func (q Search) names(v *View) (names []digest.Digest, here bool, _ error) {
	if q.Digest == "" {
		return nil, true, nil
	}
	l, err := findLink(v, q.Repo, q.Digest)
	if err != nil || l == nil {
		return nil, false, err
	}
	record, err := blobOf(v, l)
	if err != nil {
		return nil, false, err
	}
	names = []digest.Digest{record.Blob.Digest}
	if record.Blob.SHA512 != "" {
		names = append(names, record.Blob.SHA512)
	}
	return names, true, nil
}

// look adds a package, or its versions behind after; done says that it was all of them.
func (q Search) look(v *View, a *SearchAnswer, pkg *meta.Package, names []digest.Digest, after string, limit int) (done bool, _ error) {
	if q.Digest == "" && q.Publisher == "" {
		if labelled(pkg.Labels, q.Labels) {
			a.Matches = append(a.Matches, Match{Package: *pkg})
		}
		return true, nil
	}
	prefix := inRepo(inVersions, q.Repo).part(pkg.Name)
	for p, err := range v.scan(within(prefix).behind(prefix, after)) {
		if err != nil {
			return false, err
		}
		if a.Read >= searchMost || len(a.Matches) >= limit {
			return false, nil
		}
		a.Read++
		version, err := decode[meta.Version](p.key, p.value)
		if err != nil {
			return false, err
		}
		a.After = pkg.Name + "\x00" + version.Name
		if version.Marks.Unlisted != nil && q.Digest == "" {
			continue
		}
		if q.Publisher != "" && version.CreatedBy != q.Publisher || !labelled(pkg.Labels, q.Labels) && !labelled(version.Labels, q.Labels) {
			continue
		}
		m := Match{Package: *pkg, Version: version}
		if q.Digest != "" {
			uses, read, err := usesIn(v, version, names)
			a.Read += read
			if err != nil {
				return false, err
			}
			if len(uses) == 0 {
				continue
			}
			m.Path = uses[0].Path
		}
		version.References, version.Summary = nil, nil
		a.Matches = append(a.Matches, m)
	}
	return true, nil
}

// labelled reports whether labels have all that are wanted.
func labelled(have, want meta.Labels) bool {
	for name, value := range want {
		if got, ok := have[name]; !ok || value != "" && got != value {
			return false
		}
	}
	return true
}

// Check refuses what no search can find.
//
// Errors: meta.ErrInvalid.
func (q Search) Check() error {
	if len(q.Prefix) > meta.MaxPackageBytes || len(q.Contains) > meta.MaxPackageBytes {
		return fmt.Errorf("a name has at most %d bytes: %w", meta.MaxPackageBytes, meta.ErrInvalid)
	}
	if q.Digest != "" {
		if _, err := digest.Parse(string(q.Digest)); err != nil {
			return fmt.Errorf("digest %q: %w: %w", q.Digest, err, meta.ErrInvalid)
		}
	}
	return nil
}
