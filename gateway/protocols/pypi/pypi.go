// Package pypi serves Python packages to pip, twine and their like.
//
//	/pypi/<tenant>/<repository>/simple/                  all projects
//	/pypi/<tenant>/<repository>/simple/<project>/        the files of one
//	/pypi/<tenant>/<repository>/files/<project>/<file>   a file; behind it .metadata
//	/pypi/<tenant>/<repository>/legacy/                  uploads
//
// Start reading at Protocol.Routes: project.go answers the index, page.go renders it,
// upload.go takes files, metadata.go looks into them, names.go knows names, versions and
// file names, upstreampage.go reads the pages of an upstream.
//
// A package is the normalized name (PEP 503); how its first publisher wrote it is kept. A
// version is one of PEP 440 in its normal form, and stays open for ever: files may come at
// any time. The name of a file says which version it is of, so it is unique in the
// repository, for ever: other bytes never come under it, also when it was deleted. What
// is taken is a whole wheel or source distribution whose core metadata say the same name
// and version as the file name and the form; a wheel's METADATA is kept beside it (PEP
// 658). Pages are functions of the revisions of the package in the repositories that
// answer for it, with relative addresses: the same bytes at every gateway.
//
// Sources: the specifications at packaging.python.org (simple repository API 1.4, binary
// distribution format, core metadata, version specifiers), PEP 503, 592, 658, 691, 700,
// 714. The package starts no goroutines.
package pypi

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/rendered"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Format is the format of the repositories that this protocol serves.
const Format = "pypi"

// metadataSuffix makes the name of a file that of its core metadata.
const metadataSuffix = ".metadata"

// Protocol is the PyPI protocol over a catalog. It is safe for concurrent use.
type Protocol struct {
	catalog *catalog.Catalog
	engine  *upstream.Engine
	pages   *rendered.Cache
}

var _ protocol.Protocol = (*Protocol)(nil)

// New returns the protocol over c, with pages kept in pages and proxies by e.
func New(c *catalog.Catalog, pages *rendered.Cache, e *upstream.Engine) *Protocol {
	p := &Protocol{catalog: c, engine: e, pages: pages}
	e.NamedBy(Format, p.names)
	return p
}

// Format implements protocol.Protocol.
func (p *Protocol) Format() string { return Format }

// Routes implements protocol.Protocol.
func (p *Protocol) Routes() []protocol.Route {
	const base = "/pypi/{tenant}/{repository}/"
	read := func(name, pattern string, serve func(*protocol.Call) error) protocol.Route {
		return protocol.Route{Name: name, Method: http.MethodGet, Pattern: base + pattern, Action: access.Pull, Place: protocol.Anywhere, Serve: serve}
	}
	write := func(name, pattern string) protocol.Route {
		return protocol.Route{Name: name, Method: http.MethodPost, Pattern: base + pattern, Action: access.Push, Place: protocol.AnyServer, Serve: p.upload}
	}
	return []protocol.Route{
		read("pypi_projects", "simple/", p.projects),
		read("pypi_projects_bare", "simple", redirect("simple/")),
		read("pypi_project", "simple/{package}/", p.project),
		read("pypi_project_bare", "simple/{package}", p.bare),
		read("pypi_file", "files/{package}/{file}", p.file),
		write("pypi_upload", "legacy/"),
		write("pypi_upload_bare", "legacy"),
	}
}

func caller(c *protocol.Call) catalog.Caller {
	return catalog.Caller{Who: c.Who, Origin: c.Origin(), After: c.After, Asked: c.Asked, Absent: c.Absent()}
}

func public(c *protocol.Call) bool {
	return c.Repository != nil && c.Repository.Visibility == meta.VisibilityPublic
}

// redirect sends to an address relative to the request's.
func redirect(to string) func(*protocol.Call) error {
	return func(c *protocol.Call) error {
		h, location := c.W.Header(), to
		if query := c.R.URL.RawQuery; query != "" {
			location += "?" + query
		}
		h.Set("Location", location)
		h.Set("Cache-Control", "no-store")
		h.Set("Content-Length", "0")
		c.W.WriteHeader(http.StatusMovedPermanently)
		return nil
	}
}

// bare sends a project without the slash to its page (PEP 503).
func (p *Protocol) bare(c *protocol.Call) error {
	name, err := normalize(c.Params.Get("package"))
	if err != nil {
		return fmt.Errorf("%w: %w", meta.ErrNotFound, err)
	}
	return redirect(name + "/")(c)
}

// sources are the repositories that answer for a project.
func (p *Protocol) sources(ctx context.Context, by catalog.Caller, repo *meta.Repository, name string) ([]meta.Repository, error) {
	if repo == nil {
		return nil, fmt.Errorf("project %s: %w", name, meta.ErrNotFound)
	}
	return p.engine.Sources(ctx, by, repo, name, func(member *meta.Repository) upstream.Want { return wantPage(member, name) })
}

// file answers a file or its metadata.
func (p *Protocol) file(c *protocol.Call) error {
	ctx, by := c.R.Context(), caller(c)
	project, name := c.Params.Get("package"), c.Params.Get("file")
	if normal, err := normalize(project); err != nil || normal != project {
		return fmt.Errorf("project %.100q: %w", project, meta.ErrNotFound)
	}
	sources, err := p.sources(ctx, by, c.Repository, project)
	if err != nil {
		return err
	}
	c.W.Header().Set("Content-Security-Policy", "sandbox; default-src 'none'")
	if sources[0].Kind == meta.KindProxy {
		return p.fetched(c, &sources[0], project, name)
	}
	f, err := parseFilename(strings.TrimSuffix(name, metadataSuffix))
	if err != nil || f.project != project {
		return fmt.Errorf("file %.200q of %s: %w", name, project, meta.ErrNotFound)
	}
	for i := range sources {
		pkg := catalog.Package{Repo: sources[i].Ref, Name: project}
		file, asOf, e := p.catalog.File(ctx, by, pkg, f.version, name)
		if e != nil {
			if err = e; !isAbsent(e) {
				return e
			}
			continue
		}
		b, _, err := p.catalog.Blob(ctx, by, pkg.Repo, file.Digest)
		if err != nil {
			return err
		}
		c.AsOf(asOf)
		return protocol.Serve(c.W, c.R, protocol.Content{
			Size: file.Size, MediaType: file.MediaType, ETag: protocol.ETag(file.Digest), Modified: file.Uploaded.Std(),
			Cache: protocol.Immutable, Public: public(c),
			Open: func(ctx context.Context) (io.ReadSeekCloser, error) { return p.catalog.Open(ctx, b.Blob) },
		})
	}
	return err
}
