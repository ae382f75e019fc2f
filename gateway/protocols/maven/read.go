package maven

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/rendered"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// pageSize is how many records one question asks for.
const pageSize = 1000

// maxPlugins bounds the plugins that one group's metadata names.
const maxPlugins = 1000

func (p *Protocol) get(c *protocol.Call) error {
	t, err := parsePath(c.Params.Get("path"))
	if err != nil {
		// A path that nothing can be put under is not there.
		return fmt.Errorf("%w: %w", meta.ErrNotFound, err)
	}
	// What people uploaded is shown to people; it must not act as this origin.
	c.W.Header().Set("Content-Security-Policy", "sandbox; default-src 'none'")
	if t.metadata() {
		return p.metadata(c, t)
	}
	members, err := p.members(c, t.gav.pkg())
	if err != nil {
		return err
	}
	if members[0].Kind == meta.KindProxy {
		return p.proxied(c, &members[0], t)
	}
	if t.gav.version == "" {
		repo, version, err := p.newest(c, members, t.gav)
		if err != nil {
			return err
		}
		return p.file(c, repo, t, version, protocol.Revalidate)
	}
	for i := range members {
		if err = p.file(c, members[i].Ref, t, t.gav.version, protocol.Immutable); !errors.Is(err, meta.ErrNotFound) {
			return err
		}
	}
	return err
}

func public(c *protocol.Call) bool {
	return c.Repository != nil && c.Repository.Visibility == meta.VisibilityPublic
}

// members returns who answers for a package: the repository itself, or those of a group,
// hosted ones or one proxy.
func (p *Protocol) members(c *protocol.Call, pkg string) ([]meta.Repository, error) {
	if c.Repository.Kind != meta.KindGroup {
		return []meta.Repository{*c.Repository}, nil
	}
	return p.upstream.Sources(c.R.Context(), caller(c), c.Repository, pkg, probe(pkg))
}

// file serves a file of a version of a hosted repository, or its checksum.
func (p *Protocol) file(c *protocol.Call, repo meta.RepoRef, t *target, version string, cache protocol.Cache) error {
	ctx, by := c.R.Context(), caller(c)
	pkg, name := catalog.Package{Repo: repo, Name: t.gav.pkg()}, t.file
	if t.gav.version == "" {
		name = t.gav.fileOf(version)
	}
	content := protocol.Content{Cache: cache, Public: public(c)}
	f, asOf, err := p.catalog.File(ctx, by, pkg, version, name)
	if err != nil {
		return err
	}
	if t.sum != "" {
		sum := f.Sums[t.sum]
		if t.sum == "sha256" {
			sum = f.Digest.Encoded()
		}
		if sum == "" {
			return fmt.Errorf("%s of %s: %w", t.sum, t.file, meta.ErrNotFound)
		}
		c.AsOf(asOf)
		content.MediaType = "text/plain"
		return protocol.ServeBytes(c.W, c.R, []byte(sum), content)
	}
	b, _, err := p.catalog.Blob(ctx, by, repo, f.Digest)
	if err != nil {
		return err
	}
	c.AsOf(asOf)
	content.Size, content.MediaType, content.ETag, content.Modified = f.Size, f.MediaType, protocol.ETag(f.Digest), f.Uploaded.Std()
	content.Open = func(ctx context.Context) (io.ReadSeekCloser, error) { return p.catalog.Open(ctx, b.Blob) }
	return protocol.Serve(c.W, c.R, content)
}

// edition is what a rendered document is a function of.
type edition struct {
	repo     meta.RepoRef // whose name the document goes by
	name     string       // the package or group
	revision string
	oldest   meta.AsOf  // what the answer is
	newest   meta.Token // what the rendering has to include
}

func (e *edition) saw(asOf meta.AsOf) {
	if e.oldest == (meta.AsOf{}) || asOf.Index < e.oldest.Index {
		e.oldest = asOf
	}
	if asOf.Index >= e.newest.Index {
		e.newest = meta.Token{Epoch: asOf.Epoch, Index: asOf.Index}
	}
}

// include adds the revisions of a package in those hosted repositories that have it.
//
// Errors: meta.ErrNotFound when none has.
func (p *Protocol) include(ctx context.Context, by catalog.Caller, e *edition, of []meta.Repository, name string) error {
	missing := fmt.Errorf("package %s: %w", name, meta.ErrNotFound)
	for i := range of {
		pkg, asOf, err := p.catalog.Package(ctx, by, catalog.Package{Repo: of[i].Ref, Name: name})
		if errors.Is(err, meta.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		e.saw(asOf)
		e.revision += fmt.Sprintf(" %s/%s@%d", of[i].Ref, name, pkg.Revision)
		missing = nil
	}
	return missing
}

// rendering asks for what an edition is of: the state here, once it has come that far.
// Another server could be behind the revision that the document is kept under.
func (e *edition) rendering(by catalog.Caller) catalog.Caller {
	by.Asked, by.After, by.Absent = meta.Local, e.newest, nil
	return by
}

// document renders one variant of an edition, once.
func (p *Protocol) document(ctx context.Context, e *edition, variant string, render func(io.Writer) error) (*rendered.Document, error) {
	sum := sha256.Sum256([]byte(e.revision))
	return p.documents.Get(ctx, rendered.Key{Repo: e.repo, Package: e.name, Revision: hex.EncodeToString(sum[:]), Variant: variant}, render)
}

// versions walks the versions of a package in hosted repositories that readers may
// choose from: closed, not withdrawn, each name once.
func (p *Protocol) versions(ctx context.Context, by catalog.Caller, of []meta.Repository, name string, visit func(*meta.Version)) error {
	for v, err := range p.catalog.VersionsOf(ctx, by, of, name) {
		if err != nil {
			return err
		}
		if v.State == meta.StateClosed && v.Marks.Yanked == nil && v.Marks.Unlisted == nil {
			visit(&v)
		}
	}
	return nil
}

// metadata serves a maven-metadata.xml, or its checksum.
func (p *Protocol) metadata(c *protocol.Call, t *target) error {
	if pkg, base, ok := t.snapshotOf(); ok {
		members, err := p.members(c, pkg)
		if err != nil {
			return err
		}
		if members[0].Kind == meta.KindProxy {
			return p.proxied(c, &members[0], t)
		}
		return p.snapshotMetadata(c, t, members, pkg, base)
	}
	if c.Repository.Kind == meta.KindProxy {
		return p.proxied(c, c.Repository, t)
	}
	return p.artifactMetadata(c, t)
}

// artifactMetadata serves what hosted repositories have under the name of an artifact,
// and of a group of plugins: both may lie at one path. A group without either asks its
// proxies.
func (p *Protocol) artifactMetadata(c *protocol.Call, t *target) error {
	ctx, by := c.R.Context(), caller(c)
	hosted, err := p.hosted(c, by)
	if err != nil {
		return err
	}
	e := edition{repo: c.Repo, name: t.groupOf()}
	plugins, err := p.pluginPackages(ctx, by, &e, hosted, t.groupOf())
	if err != nil {
		return err
	}
	var of []meta.Repository
	group, artifact, ok := t.artifactOf()
	name := packageName(group, artifact)
	if ok {
		of, err = p.members(c, name)
		switch {
		case errors.Is(err, meta.ErrNotFound):
		case err != nil:
			return err
		case of[0].Kind == meta.KindProxy && len(plugins) == 0:
			return p.proxied(c, &of[0], t)
		case of[0].Kind == meta.KindProxy:
			of = nil // what is hosted here hides what a stranger has there
		}
	}
	err = p.include(ctx, by, &e, of, name)
	switch {
	case errors.Is(err, meta.ErrNotFound) && len(plugins) == 0:
		return err
	case errors.Is(err, meta.ErrNotFound):
		artifact = ""
	case err != nil:
		return err
	}
	return p.serve(c, t, &e, "metadata", func(w io.Writer) error {
		d := artifactDocument{group: group, artifact: artifact}
		by := e.rendering(by)
		if artifact != "" {
			if err := p.gather(ctx, by, of, name, &d); err != nil {
				return err
			}
		}
		if err := p.describePlugins(ctx, by, plugins, &d); err != nil {
			return err
		}
		if len(d.versions) == 0 {
			d.artifact = "" // all that there is is still open
		}
		if d.artifact == "" && len(d.plugins) == 0 {
			return fmt.Errorf("metadata of %s: nothing is complete: %w", strings.Join(t.dir, "/"), meta.ErrNotFound)
		}
		return d.write(w)
	})
}

// gather lists what a document says of an artifact. The names of 100,000 versions take a
// few MiB, out of the catalog's budget.
func (p *Protocol) gather(ctx context.Context, by catalog.Caller, of []meta.Repository, name string, d *artifactDocument) error {
	bases := map[string]bool{}
	return p.versions(ctx, by, of, name, func(v *meta.Version) {
		d.updated = max(d.updated, v.Extended, v.PublishTime)
		base, _, ok := baseOf(v.Name)
		if !ok {
			d.versions = append(d.versions, v.Name)
		} else if !bases[base] {
			bases[base] = true
			d.versions = append(d.versions, base)
		}
	})
}

// pluginPackages lists the packages of a group that may be plugins: those that are
// named like one, as Maven asks for.
func (p *Protocol) pluginPackages(ctx context.Context, by catalog.Caller, e *edition, hosted []meta.Repository, group string) (plugins []meta.Package, _ error) {
	for i := range hosted {
		page := catalog.Page{Limit: pageSize}
		for {
			packages, at, err := p.catalog.Packages(ctx, by, hosted[i].Ref, group+":", page)
			if err != nil {
				return nil, err
			}
			e.saw(at)
			for _, pkg := range packages {
				if strings.Contains(pkg.Name, "plugin") && pkg.Versions > 0 && len(plugins) < maxPlugins {
					plugins = append(plugins, pkg)
					e.revision += fmt.Sprintf(" %s/%s@%d", pkg.Repo, pkg.Name, pkg.Revision)
				}
			}
			if len(packages) < page.Limit {
				break
			}
			page.After = packages[len(packages)-1].Name
		}
	}
	return plugins, nil
}

// describePlugins says of each plugin what its newest version's POM does.
func (p *Protocol) describePlugins(ctx context.Context, by catalog.Caller, plugins []meta.Package, d *artifactDocument) error {
	for _, pkg := range plugins {
		_, artifact, _ := strings.Cut(pkg.Name, ":")
		if slices.ContainsFunc(d.plugins, func(have plugin) bool { return have.artifact == artifact }) {
			continue // of the member before
		}
		var newest meta.Version
		err := p.versions(ctx, by, []meta.Repository{{Ref: pkg.Repo}}, pkg.Name, func(v *meta.Version) {
			if newest.Name == "" || compareVersions(v.Name, newest.Name) > 0 {
				newest = *v
			}
		})
		if err != nil {
			return err
		}
		var s summary
		if len(newest.Summary) == 0 || json.Unmarshal(newest.Summary, &s) != nil || s.Prefix == "" {
			continue
		}
		if s.Name == "" {
			s.Name = artifact
		}
		d.plugins = append(d.plugins, plugin{name: s.Name, prefix: s.Prefix, artifact: artifact})
	}
	return nil
}

// newest returns the newest closed build of a snapshot, and the repository that has it.
func (p *Protocol) newest(c *protocol.Call, of []meta.Repository, g *gav) (repo meta.RepoRef, version string, _ error) {
	ctx, by := c.R.Context(), caller(c)
	e := edition{repo: c.Repo, name: g.pkg()}
	if err := p.include(ctx, by, &e, of, g.pkg()); err != nil {
		return repo, "", err
	}
	d, err := p.document(ctx, &e, "newest "+g.base, func(w io.Writer) error {
		v, err := p.newestOf(ctx, e.rendering(by), of, g.pkg(), g.base)
		if err == nil {
			_, err = io.WriteString(w, v.Repo.String()+" "+v.Name)
		}
		return err
	})
	if err != nil {
		return repo, "", err
	}
	r, err := d.Open()
	if err != nil {
		return repo, "", err
	}
	defer r.Close()
	text, err := io.ReadAll(io.LimitReader(r, d.Size))
	if err != nil {
		return repo, "", fmt.Errorf("read the newest build of %s: %w", g.base, err)
	}
	name, version, _ := strings.Cut(string(text), " ")
	repo, err = meta.ParseRepoRef(name)
	return repo, version, err
}

// newestOf reads all versions of the package for newest.
//
// Errors: meta.ErrNotFound.
func (p *Protocol) newestOf(ctx context.Context, by catalog.Caller, of []meta.Repository, name, base string) (newest meta.Version, _ error) {
	err := p.versions(ctx, by, of, name, func(v *meta.Version) {
		b, _, ok := baseOf(v.Name)
		if ok && b == base && (newest.Name == "" || newerBuild(v.Name, newest.Name) > 0) {
			newest = *v
		}
	})
	if err == nil && newest.Name == "" {
		err = fmt.Errorf("%s:%s has no build that is complete: %w", name, base, meta.ErrNotFound)
	}
	return newest, err
}

// snapshotMetadata serves the metadata of a snapshot.
func (p *Protocol) snapshotMetadata(c *protocol.Call, t *target, of []meta.Repository, pkg, base string) error {
	ctx, by := c.R.Context(), caller(c)
	e := edition{repo: c.Repo, name: pkg}
	if err := p.include(ctx, by, &e, of, pkg); err != nil {
		return err
	}
	return p.serve(c, t, &e, "metadata "+base, func(w io.Writer) error {
		by := e.rendering(by)
		v, err := p.newestOf(ctx, by, of, pkg, base)
		if err != nil {
			return err
		}
		d := snapshotDocument{base: base, build: v.Name, updated: max(v.Extended, v.PublishTime)}
		d.group, d.artifact, _ = strings.Cut(pkg, ":")
		page := catalog.Page{Limit: pageSize}
		for {
			files, _, err := p.catalog.Files(ctx, by, catalog.Package{Repo: v.Repo, Name: pkg}, v.Name, page)
			if err != nil {
				return err
			}
			for _, f := range files {
				path := strings.Join(t.dir, "/") + "/" + f.Path
				if file, err := parsePath(path); err == nil && file.gav != nil {
					d.files = append(d.files, file.gav)
				}
			}
			if len(files) < page.Limit {
				return d.write(w)
			}
			page.After = files[len(files)-1].Path
		}
	})
}

// serve answers with a rendered document, or its checksum.
func (p *Protocol) serve(c *protocol.Call, t *target, e *edition, variant string, render func(io.Writer) error) error {
	ctx := c.R.Context()
	c.AsOf(e.oldest)
	d, err := p.document(ctx, e, variant, render)
	if err != nil {
		return err
	}
	content := protocol.Content{MediaType: "application/xml", Cache: protocol.Revalidate, Public: public(c)}
	if t.sum != "" {
		document := d
		if d, err = p.document(ctx, e, variant+" "+t.sum, func(w io.Writer) error { return writeSum(w, document, t.sum) }); err != nil {
			return err
		}
		content.MediaType = "text/plain"
	}
	content.Size, content.ETag = d.Size, d.ETag
	content.Open = func(context.Context) (io.ReadSeekCloser, error) { return d.Open() }
	return protocol.Serve(c.W, c.R, content)
}

// writeSum writes a checksum of a document.
func writeSum(w io.Writer, d *rendered.Document, algorithm string) error {
	r, err := d.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	sums, plain := newSums(), sha256.New()
	if _, err := io.Copy(io.MultiWriter(sums, plain), r); err != nil {
		return fmt.Errorf("hash a document: %w", err)
	}
	sum := sums.hex()[algorithm]
	if algorithm == "sha256" {
		sum = hex.EncodeToString(plain.Sum(nil))
	}
	_, err = io.WriteString(w, sum)
	return err
}
