package nuget

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/rendered"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// flatVersions answers the versions of a package, unlisted ones too
// (learn.microsoft.com/nuget/api/package-base-address-resource).
func (p *Protocol) flatVersions(c *protocol.Call) error {
	id, err := idOf(c)
	if err != nil {
		return err
	}
	from, err := p.sources(c, id)
	if err != nil {
		return err
	}
	if from.proxy != nil {
		return p.proxiedVersions(c, from.proxy, id)
	}
	s, err := p.takeCensus(c, caller(c), from.hosted, id)
	if err != nil {
		return err
	}
	key := s.key
	key.Variant = "flat"
	doc, err := p.rendered.Get(c.R.Context(), key, func(w io.Writer) error {
		out := bufio.NewWriter(w)
		before := `{"versions":["`
		for l, err := range s.lines() {
			if err != nil {
				return err
			}
			out.WriteString(before + l.key)
			before = `","`
		}
		if before != `","` {
			// All of them are gone, or in quarantine.
			return fmt.Errorf("package %s of %s: %w", id, c.Repo, meta.ErrNotFound)
		}
		out.WriteString(`"]}`)
		return out.Flush()
	})
	if err != nil {
		return err
	}
	c.AsOf(s.asOf)
	return serveRendered(c, doc)
}

// serveRendered answers with a document.
func serveRendered(c *protocol.Call, doc *rendered.Document) error {
	content := document(c)
	content.Size, content.ETag = doc.Size, doc.ETag
	content.Open = func(context.Context) (io.ReadSeekCloser, error) { return doc.Open() }
	return protocol.Serve(c.W, c.R, content)
}

// flatFile answers a version's .nupkg or .nuspec.
func (p *Protocol) flatFile(c *protocol.Call) error {
	id, err := idOf(c)
	if err != nil {
		return err
	}
	version, err := versionOf(c.Params.Get("version"))
	if err != nil {
		return err
	}
	file := strings.ToLower(c.Params.Get("file"))
	if file != packageFile(id, version) && file != manifestFile(id) {
		return fmt.Errorf("file %s of %s %s: %w", file, id, version, meta.ErrNotFound)
	}
	from, err := p.sources(c, id)
	if err != nil {
		return err
	}
	if from.proxy != nil {
		return p.proxiedFile(c, from.proxy, id, version, file)
	}
	ctx, by := c.R.Context(), caller(c)
	v, asOf, err := p.hostedVersion(c, by, from.hosted, id, version)
	if err != nil {
		return err
	}
	content := protocol.Content{Size: v.Size, MediaType: packageType, Cache: protocol.Immutable, Public: public(c), Modified: v.PublishTime.Std()}
	d := v.Digest
	if file == manifestFile(id) {
		f, _, err := p.catalog.File(ctx, by, catalog.Package{Repo: v.Repo, Name: id}, v.Name, file)
		if err != nil {
			return err
		}
		content.Size, content.MediaType, d = f.Size, manifestType, f.Digest
	}
	b, _, err := p.catalog.Blob(ctx, by, v.Repo, d)
	if err != nil {
		return err
	}
	c.AsOf(asOf)
	// What people uploaded must not act as this origin.
	c.W.Header().Set("Content-Security-Policy", "sandbox; default-src 'none'")
	content.ETag = protocol.ETag(d)
	content.Open = func(ctx context.Context) (io.ReadSeekCloser, error) { return p.catalog.Open(ctx, b.Blob) }
	return protocol.Serve(c.W, c.R, content)
}
