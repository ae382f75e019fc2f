package npm

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// source is who answers for a package in the repository of a call: hosted repositories
// that own its name, in order, or one proxy.
type source struct {
	p    *Protocol
	name string
	// hosted are the repositories that have versions, records their packages.
	hosted  []meta.Repository
	records []meta.Package
	asOf    meta.AsOf
	// atLeast is what a rendering has to include.
	atLeast meta.Token
	// proxy has found, the upstream's document.
	proxy *meta.Repository
	found *upstream.Found
}

// sourceOf finds who answers for a package.
//
// Errors: meta.ErrNotFound when nobody has it; of the upstream.
func (p *Protocol) sourceOf(c *protocol.Call, by catalog.Caller, name string) (*source, error) {
	ctx := c.R.Context()
	s := &source{p: p, name: name}
	repos := []meta.Repository{*c.Repository}
	if c.Repository.Kind == meta.KindGroup {
		var err error
		repos, err = p.proxies.Sources(ctx, by, c.Repository, keyOf(name), func(*meta.Repository) upstream.Want { return documentOf(name) })
		if err != nil {
			return nil, err
		}
	}
	for i := range repos {
		repo := &repos[i]
		if repo.Kind == meta.KindProxy {
			found, err := p.proxies.Fetch(ctx, by, repo, documentOf(name))
			if err != nil {
				return nil, err
			}
			s.proxy, s.found = repo, found
			return s, nil
		}
		record, asOf, err := p.catalog.Package(ctx, by, catalog.Package{Repo: repo.Ref, Name: keyOf(name)})
		if s.asOf == (meta.AsOf{}) || asOf.Age > s.asOf.Age {
			s.asOf = asOf
		}
		if asOf.Index >= s.atLeast.Index {
			s.atLeast = meta.Token{Epoch: asOf.Epoch, Index: asOf.Index}
		}
		switch {
		case err == nil && spelled(record) == name:
			s.hosted, s.records = append(s.hosted, *repo), append(s.records, record)
		case err != nil && protocol.Status(err) != 404:
			return nil, err
		}
	}
	if len(s.hosted) == 0 {
		return nil, fmt.Errorf("package %s is not in %s: %w", name, c.Repo, meta.ErrNotFound)
	}
	return s, nil
}

// rendering asks for what a document is of: the state here, once it has come as far as the
// revisions that the document is kept under. Another server could be behind them.
func (s *source) rendering(by catalog.Caller) catalog.Caller {
	by.Asked, by.After, by.Absent = meta.Local, s.atLeast, nil
	return by
}

// describe writes what an answer is that was made of the source.
func (s *source) describe(c *protocol.Call, asOf meta.AsOf) {
	if s.found != nil {
		upstream.Describe(c, s.found)
		return
	}
	c.AsOf(asOf)
}

// public reports whether anybody may read the repository of a call.
func public(c *protocol.Call) bool {
	return c.Repository != nil && c.Repository.Visibility == meta.VisibilityPublic
}

// tags returns the tags of the package. The first repository's count before later ones'.
func (s *source) tags(ctx context.Context, by catalog.Caller) (map[string]string, meta.AsOf, error) {
	if s.found != nil {
		return s.upstreamTags(ctx)
	}
	all := map[string]string{}
	for i := range s.hosted {
		tags, err := s.p.tagsOf(ctx, by, catalog.Package{Repo: s.hosted[i].Ref, Name: keyOf(s.name)})
		if err != nil {
			return nil, s.asOf, err
		}
		for tag, version := range tags {
			if all[tag] == "" {
				all[tag] = version
			}
		}
	}
	return all, s.asOf, nil
}

// versions walks the versions of a hosted package in byte order, all that are there.
func (p *Protocol) versions(ctx context.Context, by catalog.Caller, pkg catalog.Package) iter.Seq2[meta.Version, error] {
	return func(yield func(meta.Version, error) bool) {
		for page := (catalog.Page{Limit: pageLimit}); ; {
			some, _, err := p.catalog.Versions(ctx, by, pkg, page)
			if err != nil {
				yield(meta.Version{}, err)
				return
			}
			for i := range some {
				if !yield(some[i], nil) {
					return
				}
				page.After = some[i].Name
			}
			if len(some) == 0 {
				return
			}
		}
	}
}

// maxStoredManifest bounds a manifest that is a file: what came in one is at most that.
const maxStoredManifest = 2*maxManifestBytes + maxPackageJSON

// manifest returns what is kept of a version's manifest.
func (p *Protocol) manifest(ctx context.Context, by catalog.Caller, v *meta.Version) (fields, error) {
	raw := v.Summary
	if len(raw) == 0 {
		pkg := catalog.Package{Repo: v.Repo, Name: v.Package}
		f, _, err := p.catalog.File(ctx, by, pkg, v.Name, manifestFile)
		if err != nil {
			return nil, fmt.Errorf("manifest of %s of %s: %w", v.Name, pkg, err)
		}
		b, _, err := p.catalog.Blob(ctx, by, v.Repo, f.Digest)
		if err != nil {
			return nil, err
		}
		r, err := p.catalog.Open(ctx, b.Blob)
		if err != nil {
			return nil, err
		}
		defer r.Close()
		if raw, err = io.ReadAll(io.LimitReader(r, maxStoredManifest)); err != nil {
			return nil, fmt.Errorf("manifest of %s of %s: %w", v.Name, pkg, err)
		}
	}
	f, err := parseFields(raw)
	if err != nil {
		return nil, fmt.Errorf("manifest of version %s of %s/%s: %w", v.Name, v.Repo, v.Package, meta.ErrCorrupt)
	}
	return f, nil
}

// dist returns what a manifest says of the tarball.
func (f fields) dist() (d dist) {
	_ = json.Unmarshal(f["dist"], &d) // one that is none says nothing
	return d
}

// shown returns a version as documents have it: its manifest with what the registry says.
func (p *Protocol) shown(ctx context.Context, by catalog.Caller, name, base string, v *meta.Version) (fields, error) {
	m, err := p.manifest(ctx, by, v)
	if err != nil {
		return nil, err
	}
	d := m.dist()
	d.Tarball = tarballURL(base, name, v.Name)
	if err := m.set("dist", d); err != nil {
		return nil, err
	}
	if v.Marks.Deprecated != nil {
		if err := m.set("deprecated", v.Marks.Deprecated.Reason); err != nil {
			return nil, err
		}
	}
	// Clients show an address; there is none.
	return m, m.set("_npmUser", map[string]string{"name": strings.TrimPrefix(v.CreatedBy, meta.KindUser+":"), "email": ""})
}

// baseOf returns the URL of a call's repository, as its client writes it.
func baseOf(c *protocol.Call) string {
	return protocol.BaseURL(c.R) + "/npm/" + c.Repo.String() + "/"
}

func tarballURL(base, name, version string) string {
	return base + pathOf(name) + "/-/" + fileOf(name, version)
}

// stamp writes a time as JavaScript does.
func stamp(t meta.Time) string { return t.Std().Format("2006-01-02T15:04:05.000Z") }

// parseStamp reads such a time, or any of RFC 3339.
func parseStamp(s string) (time.Time, bool) {
	t, err := time.Parse(time.RFC3339, s)
	return t, err == nil
}
