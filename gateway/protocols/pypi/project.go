package pypi

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"strconv"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/rendered"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

func isAbsent(err error) bool { return errors.Is(err, meta.ErrNotFound) }

// negotiate says which form of a page the client wants (PEP 691).
func negotiate(c *protocol.Call) (media string, isJSON bool) {
	c.W.Header().Set("Vary", "Accept")
	media = protocol.ParseAccept(c.R.Header).Best(mediaHTML, mediaV1HTML, mediaV1JSON, mediaLatestHTML, mediaLatestJSON)
	switch media {
	case mediaV1JSON, mediaLatestJSON:
		return mediaV1JSON, true
	case mediaV1HTML, mediaLatestHTML:
		return mediaV1HTML, false
	}
	return mediaHTML + "; charset=utf-8", false // also for who takes nothing of it
}

// serve answers a rendered page.
func (p *Protocol) serve(c *protocol.Call, doc *rendered.Document, media string) error {
	c.W.Header().Set("Content-Security-Policy", "default-src 'none'")
	return protocol.Serve(c.W, c.R, protocol.Content{
		Size: doc.Size, MediaType: media, ETag: doc.ETag, Cache: protocol.Revalidate, Public: public(c),
		Open: func(context.Context) (io.ReadSeekCloser, error) { return doc.Open() },
	})
}

// project answers the page of a project.
func (p *Protocol) project(c *protocol.Call) error {
	ctx, by := c.R.Context(), caller(c)
	asked := c.Params.Get("package")
	name, err := normalize(asked)
	if err != nil {
		return fmt.Errorf("%w: %w", meta.ErrNotFound, err)
	}
	if name != asked {
		return redirect("../" + name + "/")(c)
	}
	sources, err := p.sources(ctx, by, c.Repository, name)
	if err != nil {
		return err
	}
	if sources[0].Kind == meta.KindProxy {
		return p.proxied(c, &sources[0], name)
	}
	media, isJSON := negotiate(c)
	for range attempts {
		revisions, asOf, err := p.revisions(ctx, by, sources, name)
		if err != nil {
			return err
		}
		key := rendered.Key{Repo: c.Repo, Package: name, Revision: revisions, Variant: variant(isJSON)}
		doc, err := p.pages.Get(ctx, key, func(w io.Writer) error {
			at := read(by, asOf)
			if err := write(w, name, p.filesOf(ctx, at, sources, name), isJSON, true); err != nil {
				return err
			}
			// Revisions only grow: what was read up to the last page is of these ones, if
			// they are the same there.
			now, _, err := p.revisions(ctx, at.by, sources, name)
			if err == nil && now != revisions || isAbsent(err) {
				err = errMoved
			}
			return err
		})
		switch {
		case errors.Is(err, errMoved):
			continue
		case err != nil:
			return fmt.Errorf("page of %s: %w", name, err)
		}
		c.AsOf(asOf)
		return p.serve(c, doc, media)
	}
	return fmt.Errorf("the files of %s change while its page is made: %w", name, &meta.UnavailableError{Reason: "changing"})
}

// reading reads many pages of one listing: none of them older than those before, and from
// what this node knows, since an answer of another one might be.
type reading struct{ by catalog.Caller }

// read begins a reading at what an answer was of.
func read(by catalog.Caller, asOf meta.AsOf) *reading {
	by.Asked, by.After, by.Absent = meta.Local, meta.Token{Epoch: asOf.Epoch, Index: asOf.Index}, nil
	return &reading{by}
}

// saw goes on from an answer.
func (r *reading) saw(asOf meta.AsOf) {
	if at := (meta.Token{Epoch: asOf.Epoch, Index: asOf.Index}); at.Epoch == r.by.After.Epoch && at.Index > r.by.After.Index {
		r.by.After = at
	}
}

// attempts bounds how often a page is begun anew because its package changed meanwhile.
const attempts = 8

var errMoved = errors.New("the package changed")

func variant(isJSON bool) string {
	if isJSON {
		return "json"
	}
	return "html"
}

func write(w io.Writer, name string, files entries, isJSON, sorted bool) error {
	if isJSON {
		return writeJSON(w, name, files, sorted)
	}
	return writeHTML(w, name, files)
}

// revisions names what the page of a project is made of: the revisions of the package in
// all its sources.
//
// Errors: meta.ErrNotFound when none has a version.
func (p *Protocol) revisions(ctx context.Context, by catalog.Caller, sources []meta.Repository, name string) (revisions string, asOf meta.AsOf, err error) {
	found := false
	for i := range sources {
		pkg, at, e := p.catalog.Package(ctx, by, catalog.Package{Repo: sources[i].Ref, Name: name})
		if e != nil && !isAbsent(e) {
			return "", at, e
		}
		if e != nil {
			err = e
		} else {
			found = true
		}
		if i == 0 || at.Index < asOf.Index {
			asOf = at
		}
		revisions += sources[i].Ref.Name + "@" + strconv.FormatUint(pkg.Revision, 10) + ","
	}
	if found {
		err = nil
	}
	return revisions, asOf, err
}

// filePage is how many files of a repository are in memory at a time.
const filePage = 500

// filesOf walks the files of a project over several repositories in the order of versions
// and names; a name that several have is the first one's.
func (p *Protocol) filesOf(ctx context.Context, at *reading, sources []meta.Repository, name string) entries {
	return func(yield func(entry, error) bool) {
		walks := make([]func() (state.PackageFile, error, bool), len(sources))
		heads := make([]*state.PackageFile, len(sources))
		for i := range sources {
			next, stop := iter.Pull2(p.repositoryFiles(ctx, at, catalog.Package{Repo: sources[i].Ref, Name: name}))
			defer stop()
			walks[i] = next
		}
		for {
			var first *state.PackageFile
			for i, next := range walks {
				if heads[i] == nil && next != nil {
					f, err, ok := next()
					if err != nil {
						yield(entry{}, err)
						return
					}
					if !ok {
						walks[i] = nil
						continue
					}
					heads[i] = &f
				}
				if h := heads[i]; h != nil && (first == nil || h.After() < first.After()) {
					first = h
				}
			}
			if first == nil {
				return
			}
			for i, h := range heads {
				if h != nil && h.After() == first.After() {
					heads[i] = nil
				}
			}
			if e, ok := entryOf(first); ok && !yield(e, nil) {
				return
			}
		}
	}
}

// repositoryFiles walks the files of a project in one repository.
func (p *Protocol) repositoryFiles(ctx context.Context, at *reading, pkg catalog.Package) iter.Seq2[state.PackageFile, error] {
	return func(yield func(state.PackageFile, error) bool) {
		for after := ""; ; {
			files, asOf, err := p.catalog.PackageFiles(ctx, at.by, pkg, catalog.Page{After: after, Limit: filePage})
			at.saw(asOf)
			if isAbsent(err) {
				return
			}
			if err != nil {
				yield(state.PackageFile{}, err)
				return
			}
			if len(files) == 0 {
				return
			}
			for _, f := range files {
				if !yield(f, nil) {
					return
				}
			}
			after = files[len(files)-1].After()
		}
	}
}

// entryOf makes a file of the index from its record; false for what is beside a file.
func entryOf(f *state.PackageFile) (entry, bool) {
	if _, err := parseFilename(f.File.Path); err != nil {
		return entry{}, false
	}
	var s summary
	// A record that does not parse says nothing of the file, which is there all the same.
	_ = json.Unmarshal(f.File.Summary, &s)
	e := entry{
		version: f.Version, name: f.File.Path, sha256: f.File.Digest.Encoded(), requires: s.RequiresPython,
		size: f.File.Size, uploaded: f.File.Uploaded.Std(), metadata: s.Metadata != "", metadataSum: s.Metadata,
	}
	if y := f.Marks.Yanked; y != nil {
		e.yanked, e.reason = true, y.Reason
	}
	return e, true
}

// projects answers all projects of the hosted repositories.
func (p *Protocol) projects(c *protocol.Call) error {
	ctx, by := c.R.Context(), caller(c)
	if c.Repository == nil {
		return fmt.Errorf("repository %s: %w", c.Repo, meta.ErrNotFound)
	}
	members, asOf, err := p.catalog.Members(ctx, by, c.Repo)
	if err != nil {
		return err
	}
	var hosted []meta.Repository
	for _, m := range members {
		if m.Kind == meta.KindHosted {
			hosted = append(hosted, m)
		}
	}
	// A listing is of an index of the metadata: nothing smaller changes with each project.
	c.AsOf(asOf)
	media, isJSON := negotiate(c)
	after := read(by, asOf).by
	key := rendered.Key{Repo: c.Repo, Revision: fmt.Sprintf("%d.%d", asOf.Epoch, asOf.Index), Variant: variant(isJSON)}
	doc, err := p.pages.Get(ctx, key, func(w io.Writer) error {
		if isJSON {
			return writeProjectsJSON(w, p.projectsOf(ctx, after, hosted))
		}
		return writeProjectsHTML(w, p.projectsOf(ctx, after, hosted))
	})
	if err != nil {
		return fmt.Errorf("projects of %s: %w", c.Repo, err)
	}
	return p.serve(c, doc, media)
}

// projectsOf walks the projects of several repositories in the order of their names, each
// once.
func (p *Protocol) projectsOf(ctx context.Context, by catalog.Caller, repos []meta.Repository) iter.Seq2[project, error] {
	return func(yield func(project, error) bool) {
		for pkg, err := range p.catalog.PackagesOf(ctx, by, repos) {
			if !yield(project{pkg.Name, cmp.Or(pkg.Spelling, pkg.Name)}, err) {
				return
			}
		}
	}
}
