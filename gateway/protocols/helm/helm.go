// Package helm serves classic chart repositories: an index, charts and their provenance,
// and the uploads of ChartMuseum. Charts as OCI artifacts are the oci protocol's.
//
//	/helm/<tenant>/<repository>/index.yaml
//	/helm/<tenant>/<repository>/charts/<name>-<version>.tgz    behind it .prov
//	/helm/<tenant>/<repository>/api/charts                     POST, and lists
//	/helm/<tenant>/<repository>/api/charts/<name>/<version>    DELETE
//
// Start reading at Protocol.Routes: upload.go takes charts, chart.go looks into them,
// index.go renders the index, foreign.go reads that of an upstream.
//
// A package is the chart's name, a version the chart's version as Chart.yaml writes it,
// and closes with its upload: the chart, and its provenance when that comes along. What
// the index says of a chart is kept with the version, so that no archive is opened to
// render it. The index is a function of the revisions of all charts; it is written and
// read one chart at a time, whatever their number, in YAML that is JSON from the third
// level on, as all readers of YAML take it.
//
// Sources: the Helm documentation (The Chart Repository Guide, Charts, Helm Provenance
// and Integrity), ChartMuseum's API. The package starts no goroutines.
package helm

import (
	"context"
	"errors"
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
const Format = "helm"

// Suffixes of the files of a version.
const (
	chartSuffix      = ".tgz"
	provenanceSuffix = ".prov"
)

// Media types of them.
const (
	mediaChart      = "application/gzip"
	mediaProvenance = "text/plain; charset=utf-8"
)

// Protocol is the protocol over a catalog. It is safe for concurrent use.
type Protocol struct {
	catalog *catalog.Catalog
	engine  *upstream.Engine
	pages   *rendered.Cache
}

var _ protocol.Protocol = (*Protocol)(nil)

// New returns the protocol over c, with indexes kept in pages and proxies by e.
func New(c *catalog.Catalog, pages *rendered.Cache, e *upstream.Engine) *Protocol {
	p := &Protocol{catalog: c, engine: e, pages: pages}
	e.NamedBy(Format, p.names)
	return p
}

// Format implements protocol.Protocol.
func (p *Protocol) Format() string { return Format }

// Routes implements protocol.Protocol.
func (p *Protocol) Routes() []protocol.Route {
	const base = "/helm/{tenant}/{repository}/"
	read := func(name, pattern string, serve func(*protocol.Call) error) protocol.Route {
		return protocol.Route{Name: name, Method: http.MethodGet, Pattern: base + pattern, Action: access.Pull, Place: protocol.Anywhere, Serve: serve}
	}
	return []protocol.Route{
		read("helm_index", "index.yaml", p.index),
		read("helm_chart", "charts/{file}", p.file),
		read("helm_list", "api/charts", p.list),
		read("helm_versions", "api/charts/{chart}", p.versions),
		read("helm_version", "api/charts/{chart}/{version}", p.version),
		{Name: "helm_upload", Method: http.MethodPost, Pattern: base + "api/charts", Action: access.Push, Place: protocol.AnyServer, Serve: p.upload},
		{Name: "helm_delete", Method: http.MethodDelete, Pattern: base + "api/charts/{chart}/{version}", Action: access.Delete, Place: protocol.AnyServer, Serve: p.delete},
	}
}

func caller(c *protocol.Call) catalog.Caller {
	return catalog.Caller{Who: c.Who, Origin: c.Origin(), After: c.After, Asked: c.Asked, Absent: c.Absent()}
}

func public(c *protocol.Call) bool {
	return c.Repository != nil && c.Repository.Visibility == meta.VisibilityPublic
}

func isAbsent(err error) bool { return errors.Is(err, meta.ErrNotFound) }

// fileName is the chart's file.
func fileName(name, version string) string { return name + "-" + version + chartSuffix }

// coordinate is a chart and its version.
type coordinate struct{ name, version string }

// maxCoordinates bounds how many ways to read a file name are tried.
const maxCoordinates = 8

// coordinates are the ways to read NAME-VERSION, the shortest name first: both may have
// dashes, but a version begins with a digit.
func coordinates(stem string) (all []coordinate) {
	for i := 1; i < len(stem)-1 && len(all) < maxCoordinates; i++ {
		if stem[i] != '-' {
			continue
		}
		c := coordinate{stem[:i], stem[i+1:]}
		if checkName(c.name) == nil && checkVersion(c.version) == nil {
			all = append(all, c)
		}
	}
	return all
}

// file answers a chart or its provenance.
func (p *Protocol) file(c *protocol.Call) error {
	ctx, by := c.R.Context(), caller(c)
	name := c.Params.Get("file")
	stem, isChart := strings.CutSuffix(strings.TrimSuffix(name, provenanceSuffix), chartSuffix)
	if !isChart || c.Repository == nil {
		return fmt.Errorf("chart %.200q of %s: %w", name, c.Repo, meta.ErrNotFound)
	}
	missing := fmt.Errorf("chart %.200q of %s: %w", name, c.Repo, meta.ErrNotFound)
	by.Absent = nil
	members, _, err := p.catalog.Members(ctx, by, c.Repo)
	if err != nil {
		return err
	}
	var hosted, proxies []meta.Repository
	for _, m := range members {
		if m.Kind == meta.KindHosted {
			hosted = append(hosted, m)
		} else {
			proxies = append(proxies, m)
		}
	}
	// What is owned here comes first, however a name upstream would make the same address.
	type way struct {
		coordinate
		from string
	}
	var foreign []way
	for _, at := range coordinates(stem) {
		owned, from, err := p.source(ctx, by, c.Repo, at.name)
		if err != nil {
			return err
		}
		if !owned && len(proxies) > 0 {
			foreign = append(foreign, way{at, from})
			continue
		}
		// A name that is owned here never comes from upstream.
		if err = p.stored(c, hosted, at, name); err == nil || !isAbsent(err) {
			return err
		}
		missing = err
	}
	for _, w := range foreign {
		err := p.foreignFile(c, proxies, w.coordinate, w.from, name)
		if err == nil || !isAbsent(err) {
			return err
		}
		missing = err
	}
	return missing
}

// source says who answers for a name: hosted repositories that own it, or the proxy from
// which it was taken before, "" when it was from none.
func (p *Protocol) source(ctx context.Context, by catalog.Caller, repo meta.RepoRef, name string) (owned bool, from string, err error) {
	a, _, err := p.catalog.Sources(ctx, by, repo, name)
	return len(a.Owners) > 0, a.Remembered, err
}

// foreignFile answers a file of the proxy that a chart was taken from before, else of the
// first whose index has its name, which is remembered. A proxy that cannot be asked is not
// passed over: the name might be another's in the next.
func (p *Protocol) foreignFile(c *protocol.Call, proxies []meta.Repository, at coordinate, from, name string) error {
	ctx, by := c.R.Context(), caller(c)
	missing := fmt.Errorf("chart %.200q of %s: %w", name, c.Repo, meta.ErrNotFound)
	for i := range proxies {
		if from != "" && from != proxies[i].Ref.Name {
			continue
		}
		f, err := p.foreignOf(ctx, by, proxies[i])
		if isAbsent(err) {
			continue
		}
		if err != nil {
			return err
		}
		of, found, err := p.find(ctx, &f, at)
		if err != nil {
			return err
		}
		if !found {
			continue
		}
		if len(proxies) > 1 && from == "" {
			held, err := p.engine.Remember(ctx, c.Repo, &proxies[i], at.name, wantIndex())
			switch {
			case errors.Is(err, meta.ErrConflict):
				return fmt.Errorf("chart %s of %s is published here just now: %w", at.name, c.Repo, &meta.UnavailableError{Reason: "busy"})
			case err == nil && held != proxies[i].Ref.Name:
				return p.foreignFile(c, proxies, at, held, name)
			}
		}
		if of.Name == "" {
			return missing
		}
		return p.fetched(c, &f, of, name)
	}
	return missing
}

// stored answers a file of the first hosted repository that has it.
func (p *Protocol) stored(c *protocol.Call, sources []meta.Repository, at coordinate, name string) (err error) {
	ctx, by := c.R.Context(), caller(c)
	err = fmt.Errorf("chart %s of %s: %w", name, c.Repo, meta.ErrNotFound)
	for i := range sources {
		pkg := catalog.Package{Repo: sources[i].Ref, Name: at.name}
		f, asOf, e := p.catalog.File(ctx, by, pkg, at.version, name)
		if e != nil {
			if err = e; !isAbsent(e) {
				return e
			}
			continue
		}
		b, _, err := p.catalog.Blob(ctx, by, pkg.Repo, f.Digest)
		if err != nil {
			return err
		}
		c.AsOf(asOf)
		c.W.Header().Set("Content-Security-Policy", "sandbox; default-src 'none'")
		return protocol.Serve(c.W, c.R, protocol.Content{
			Size: f.Size, MediaType: f.MediaType, ETag: protocol.ETag(f.Digest), Modified: f.Uploaded.Std(),
			Cache: protocol.Immutable, Public: public(c),
			Open: func(ctx context.Context) (io.ReadSeekCloser, error) { return p.catalog.Open(ctx, b.Blob) },
		})
	}
	return err
}

// delete takes a version away, as ChartMuseum does; its name never takes other bytes.
func (p *Protocol) delete(c *protocol.Call) error {
	ctx, by := c.R.Context(), caller(c)
	at, err := coordinateOf(c)
	if err != nil {
		return err
	}
	if c.Repository == nil {
		return fmt.Errorf("chart %s of %s: %w", at.name, c.Repo, meta.ErrNotFound)
	}
	repo, err := p.catalog.ForChange(ctx, by, *c.Repository, Format, meta.ActionDelete)
	if err != nil {
		return err
	}
	token, err := p.catalog.DeleteVersion(ctx, by, catalog.Package{Repo: repo.Ref, Name: at.name}, at.version)
	if err != nil {
		return err
	}
	c.Committed(token)
	return protocol.WriteJSON(c.W, http.StatusOK, map[string]bool{"deleted": true})
}

// coordinateOf reads a chart and version of a path; what can be neither is not there.
func coordinateOf(c *protocol.Call) (coordinate, error) {
	at := coordinate{c.Params.Get("chart"), c.Params.Get("version")}
	if err := errors.Join(checkName(at.name), checkVersion(at.version)); err != nil {
		return at, fmt.Errorf("%w: %w", meta.ErrNotFound, err)
	}
	return at, nil
}
