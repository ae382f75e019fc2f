package nuget

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"

	"github.com/shoal-registry/shoal/gateway/archive"
	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/rendered"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// maxCensus bounds the versions of a package that documents name; a line of the census
// has about 40 bytes, and all are sorted in memory when it is made.
const maxCensus = 500_000

// census is the list of a package's versions in their order, as of one revision of the
// package in each repository. It is kept like any rendered document: one line a version.
type census struct {
	id     string
	hosted []meta.Repository
	key    rendered.Key // of the package; the variant is for who renders
	by     catalog.Caller
	asOf   meta.AsOf
	doc    *rendered.Document
}

// line is one version of a census.
type line struct {
	key     string // names the version
	full    string // as it was published, normalized
	listed  bool
	semVer2 bool
	repo    int // index into census.hosted
}

// takeCensus lists a package.
//
// Errors: meta.ErrNotFound when no repository has a version of it.
func (p *Protocol) takeCensus(c *protocol.Call, by catalog.Caller, hosted []meta.Repository, id string) (*census, error) {
	ctx := c.R.Context()
	s := &census{id: id, hosted: hosted, key: rendered.Key{Repo: c.Repo, Package: id}}
	var absent error
	for i, r := range hosted {
		pkg, asOf, err := p.catalog.Package(ctx, by, catalog.Package{Repo: r.Ref, Name: id})
		if err != nil && !errors.Is(err, meta.ErrNotFound) {
			return nil, err
		}
		if err != nil {
			absent = err
		}
		s.key.Revisions = append(s.key.Revisions, pkg.Revision)
		if i == 0 || asOf.Index < s.asOf.Index {
			s.asOf = asOf
		}
	}
	if !slices.ContainsFunc(s.key.Revisions, func(r uint64) bool { return r != 0 }) {
		return nil, absent
	}
	// What is listed now is of this point or a later one, whoever answers.
	s.by = by
	s.by.Absent = nil
	s.by.Asked = meta.Local
	s.by.After = meta.Token{Epoch: s.asOf.Epoch, Index: s.asOf.Index}
	key := s.key
	key.Variant = "census"
	doc, err := p.rendered.Get(ctx, key, func(w io.Writer) error { return p.count(ctx, s, w) })
	if err != nil {
		return nil, err
	}
	s.doc = doc
	return s, nil
}

// count writes a census.
func (p *Protocol) count(ctx context.Context, s *census, w io.Writer) error {
	type counted struct {
		line
		version version
	}
	var all []counted
	for v, err := range p.catalog.VersionsOf(ctx, s.by, s.hosted, s.id) {
		if err != nil {
			return err
		}
		n, ok := scanVersion(v.Name)
		if !ok {
			continue // nothing that this protocol has published
		}
		if len(all) == maxCensus {
			return fmt.Errorf("package %s of %s has more than %d versions: %w", s.id, v.Repo, maxCensus, meta.ErrTooLarge)
		}
		var m struct {
			Version string `json:"version"`
			SemVer2 bool   `json:"semVer2"`
		}
		if err := json.Unmarshal(v.Summary, &m); err != nil {
			return fmt.Errorf("summary of %s %s: %w: %w", s.id, v.Name, meta.ErrCorrupt, err)
		}
		all = append(all, counted{version: n, line: line{
			key: v.Name, full: m.Version, semVer2: m.SemVer2,
			listed: v.Marks.Unlisted == nil && v.Marks.Yanked == nil,
			repo:   slices.IndexFunc(s.hosted, func(r meta.Repository) bool { return r.Ref == v.Repo }),
		}})
	}
	slices.SortFunc(all, func(a, b counted) int { return a.version.compare(b.version) })
	out := bufio.NewWriter(w)
	for _, l := range all {
		// A version has no blank (version.go).
		fmt.Fprintf(out, "%s %s %t %t %d\n", l.key, l.full, l.listed, l.semVer2, l.repo)
	}
	return out.Flush()
}

// lines goes through a census in ascending order of versions. It ends with the first error.
func (s *census) lines() iter.Seq2[line, error] {
	return func(yield func(line, error) bool) {
		r, err := s.doc.Open()
		if err != nil {
			yield(line{}, err)
			return
		}
		defer r.Close()
		in := bufio.NewScanner(r)
		for in.Scan() {
			f := strings.Fields(in.Text())
			if len(f) != 5 {
				yield(line{}, fmt.Errorf("census of %s: %w", s.id, meta.ErrCorrupt))
				return
			}
			repo, err := strconv.Atoi(f[4])
			if err != nil || repo < 0 || repo >= len(s.hosted) {
				yield(line{}, fmt.Errorf("census of %s: %w", s.id, meta.ErrCorrupt))
				return
			}
			if !yield(line{key: f[0], full: f[1], listed: f[2] == "true", semVer2: f[3] == "true", repo: repo}, nil) {
				return
			}
		}
		if err := in.Err(); err != nil {
			yield(line{}, fmt.Errorf("census of %s: %w", s.id, err))
		}
	}
}

// described is a version as documents describe it.
type described struct {
	line
	meta.Version
	manifest manifest
}

// describe looks up what a line is of; ok is false when it has gone meanwhile.
func (p *Protocol) describe(ctx context.Context, s *census, l line) (d described, ok bool, _ error) {
	v, _, err := p.catalog.Version(ctx, s.by, catalog.Package{Repo: s.hosted[l.repo].Ref, Name: s.id}, l.key)
	if _, kept := errors.AsType[*meta.QuarantinedError](err); kept || errors.Is(err, meta.ErrNotFound) {
		return d, false, nil
	}
	if err != nil {
		return d, false, err
	}
	m, err := p.manifestOf(ctx, s.by, &v)
	if err != nil {
		return d, false, err
	}
	return described{line: l, Version: v, manifest: m}, true, nil
}

// manifestOf reads a version's manifest: from its summary, and what did not fit into that
// from the .nuspec.
func (p *Protocol) manifestOf(ctx context.Context, by catalog.Caller, v *meta.Version) (manifest, error) {
	var m manifest
	if err := json.Unmarshal(v.Summary, &m); err != nil {
		return m, fmt.Errorf("summary of %s %s: %w: %w", v.Package, v.Name, meta.ErrCorrupt, err)
	}
	if !m.Long {
		return m, nil
	}
	f, _, err := p.catalog.File(ctx, by, catalog.Package{Repo: v.Repo, Name: v.Package}, v.Name, manifestFile(v.Package))
	if err != nil {
		return m, err
	}
	release, err := p.catalog.Reserve(ctx, f.Size)
	if err != nil {
		return m, err
	}
	defer release()
	b, _, err := p.catalog.Blob(ctx, by, v.Repo, f.Digest)
	if err != nil {
		return m, err
	}
	r, err := p.catalog.Open(ctx, b.Blob)
	if err != nil {
		return m, err
	}
	defer r.Close()
	raw := make([]byte, min(f.Size, maxManifestBytes))
	if _, err := archive.ReaderAt(r).ReadAt(raw, 0); err != nil {
		return m, fmt.Errorf("read the .nuspec of %s %s: %w", v.Package, v.Name, err)
	}
	return parseManifest(raw)
}
