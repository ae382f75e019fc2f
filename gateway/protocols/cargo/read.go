package cargo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/rendered"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

const (
	jsonType = "application/json"
	textType = "text/plain; charset=utf-8"
)

// configuration is the index's config.json.
type configuration struct {
	DL           string `json:"dl"`
	API          string `json:"api,omitempty"`
	AuthRequired bool   `json:"auth-required,omitempty"`
}

// config answers config.json. A token is required of who had to show one to come here:
// cargo asks without one first.
func (p *Protocol) config(c *protocol.Call) error {
	_, asOf, err := p.catalog.Repository(c.R.Context(), caller(c), c.Repo)
	if err != nil {
		return err
	}
	c.AsOf(asOf)
	base := baseURL(c.R, c.Repo.String())
	b, err := json.Marshal(configuration{
		DL: base + "/api/v1/crates", API: base, AuthRequired: c.Who.Name != meta.Anonymous.Name && !public(c),
	})
	if err != nil {
		return fmt.Errorf("render config.json: %w", err)
	}
	return protocol.ServeBytes(c.W, c.R, b, protocol.Content{MediaType: jsonType, Cache: protocol.Revalidate})
}

// sources returns who answers for a crate: hosted repositories, or one proxy. There is at
// least one.
//
// Errors: meta.ErrNotFound.
func (p *Protocol) sources(c *protocol.Call, name string) ([]meta.Repository, error) {
	if c.Repository == nil {
		return nil, fmt.Errorf("repository %s: %w", c.Repo, meta.ErrNotFound)
	}
	if c.Repository.Kind == meta.KindHosted {
		return []meta.Repository{*c.Repository}, nil
	}
	sources, err := p.upstream.Sources(c.R.Context(), caller(c), c.Repository, normalize(name), func(*meta.Repository) upstream.Want { return wantIndex(name) })
	if err == nil && len(sources) == 0 {
		err = missing(name)
	}
	return sources, err
}

func missing(name string) error { return fmt.Errorf("crate %s: %w", name, meta.ErrNotFound) }

// index answers the lines of a crate's versions.
func (p *Protocol) index(c *protocol.Call) error {
	name := c.Params.Get("crate")
	if err := checkName(name); err != nil {
		return fmt.Errorf("%w: %w", meta.ErrNotFound, err)
	}
	if !strings.HasSuffix(c.R.URL.EscapedPath(), "/"+indexPath(name)) {
		return fmt.Errorf("the index has crate %s at %s: %w", name, indexPath(name), meta.ErrNotFound)
	}
	sources, err := p.sources(c, name)
	if err != nil {
		return err
	}
	if sources[0].Kind == meta.KindProxy {
		return p.fetchIndex(c, &sources[0], name)
	}
	ctx, by := c.R.Context(), caller(c)
	key := rendered.Key{Repo: c.Repo, Package: normalize(name), Variant: "index"}
	var oldest *meta.AsOf
	var owners []meta.Repository
	absent := missing(name)
	for i := range sources {
		pkg, asOf, err := p.catalog.Package(ctx, by, catalog.Package{Repo: sources[i].Ref, Name: normalize(name)})
		if err != nil && !errors.Is(err, meta.ErrNotFound) {
			return err
		}
		if err != nil {
			absent = err
			continue
		}
		// Cargo takes the line's name for the crate's: another spelling is another crate.
		if spelling := spelt(&pkg); strings.ToLower(spelling) != name {
			absent = fmt.Errorf("crate %s: it is spelt %s here: %w", name, spelling, meta.ErrNotFound)
			continue
		}
		owners = append(owners, sources[i])
		key.Revisions = append(key.Revisions, uint64(i), pkg.Revision)
		if oldest == nil || asOf.Index < oldest.Index {
			oldest = &asOf
		}
		// The versions are read as of these revisions, or later; without a quorum, as they are.
		if !asOf.Stale && by.After.Index < asOf.Index {
			by.After = meta.Token{Epoch: asOf.Epoch, Index: asOf.Index}
		}
	}
	if oldest == nil {
		return absent
	}
	by.Asked, by.Absent = meta.Freshness{}, nil
	d, err := p.documents.Get(ctx, key, func(w io.Writer) error { return p.renderIndex(ctx, by, owners, normalize(name), w) })
	if err != nil {
		return err
	}
	c.AsOf(*oldest)
	return protocol.Serve(c.W, c.R, protocol.Content{
		Size: d.Size, ETag: d.ETag, MediaType: textType, Cache: protocol.Revalidate, Public: public(c),
		Open: func(context.Context) (io.ReadSeekCloser, error) { return d.Open() },
	})
}

// spelt is a crate's name as its first publisher wrote it.
func spelt(pkg *meta.Package) string {
	if pkg.Spelling != "" {
		return pkg.Spelling
	}
	return pkg.Name
}

func (p *Protocol) renderIndex(ctx context.Context, by catalog.Caller, repos []meta.Repository, pkg string, w io.Writer) error {
	var out bytes.Buffer
	for v, err := range p.catalog.VersionsOf(ctx, by, repos, pkg) {
		if err != nil {
			return err
		}
		kept, err := p.line(ctx, by, &v)
		if err != nil {
			return err
		}
		out.Reset()
		if err := withYanked(&out, kept, v.Marks.Yanked != nil || v.Marks.Unlisted != nil); err != nil {
			return fmt.Errorf("%s %s: %w", v.Package, v.Name, err)
		}
		if _, err := w.Write(out.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

// line returns a version's line of the index as it is kept.
func (p *Protocol) line(ctx context.Context, by catalog.Caller, v *meta.Version) ([]byte, error) {
	if len(v.Summary) > 0 {
		return v.Summary, nil
	}
	f, _, err := p.catalog.File(ctx, by, catalog.Package{Repo: v.Repo, Name: v.Package}, v.Name, lineFile)
	if err != nil {
		return nil, err
	}
	// Of a document the catalog asks where it is and what it hashes to.
	return p.catalog.Document(ctx, by, &meta.Version{Repo: v.Repo, Package: v.Package, Name: v.Name, Digest: f.Digest, Size: f.Size})
}

// download answers a crate.
func (p *Protocol) download(c *protocol.Call) error {
	name, version, err := params(c)
	if err != nil {
		return err
	}
	sources, err := p.sources(c, name)
	if err != nil {
		return err
	}
	if sources[0].Kind == meta.KindProxy {
		return p.fetchCrate(c, &sources[0], name, c.Params.Get("version"))
	}
	ctx, by := c.R.Context(), caller(c)
	for i := range sources {
		v, asOf, e := p.catalog.Version(ctx, by, catalog.Package{Repo: sources[i].Ref, Name: normalize(name)}, version)
		if err = e; errors.Is(err, meta.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		b, _, err := p.catalog.Blob(ctx, by, v.Repo, v.Digest)
		if err != nil {
			return err
		}
		c.AsOf(asOf)
		return protocol.Serve(c.W, c.R, protocol.Content{
			Size: v.Size, ETag: protocol.ETag(v.Digest), MediaType: crateType, Cache: protocol.Immutable, Public: public(c), Modified: v.PublishTime.Std(),
			Open: func(ctx context.Context) (io.ReadSeekCloser, error) { return p.catalog.Open(ctx, b.Blob) },
		})
	}
	return err
}

// owner is somebody who published a version, as cargo shows owners.
type owner struct {
	ID    int    `json:"id"`
	Login string `json:"login"`
	Name  string `json:"name"`
}

// ownersAt is how many versions are looked at for their publishers.
const ownersAt = 1000

// owners answers who published a crate. Who may publish it the roles of its repository
// say, which cargo cannot change.
func (p *Protocol) owners(c *protocol.Call) error {
	name := c.Params.Get("crate")
	if err := checkName(name); err != nil {
		return fmt.Errorf("%w: %w", meta.ErrNotFound, err)
	}
	sources, err := p.sources(c, name)
	if err != nil {
		return err
	}
	ctx, by := c.R.Context(), caller(c)
	users, seen := []owner{}, map[string]bool{}
	for i := range sources {
		if sources[i].Kind == meta.KindProxy {
			continue
		}
		pkg := catalog.Package{Repo: sources[i].Ref, Name: normalize(name)}
		if _, _, err = p.catalog.Package(ctx, by, pkg); errors.Is(err, meta.ErrNotFound) {
			continue
		}
		versions, asOf, err := p.catalog.Versions(ctx, by, pkg, catalog.Page{Limit: ownersAt})
		if err != nil {
			return err
		}
		c.AsOf(asOf)
		for _, v := range versions {
			if !seen[v.CreatedBy] {
				seen[v.CreatedBy] = true
				users = append(users, owner{ID: len(users) + 1, Login: v.CreatedBy})
			}
		}
	}
	if len(users) == 0 {
		return missing(name)
	}
	return serveJSON(c, map[string]any{"users": users})
}

// setOwners refuses: the right to publish is of a repository, not of a crate.
func setOwners(c *protocol.Call) error {
	return fmt.Errorf("who may publish crates of %s its roles say, give one with `shoal binding add`: %w", c.Repo, meta.ErrInvalid)
}

func serveJSON(c *protocol.Call, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("render %T: %w", v, err)
	}
	return protocol.ServeBytes(c.W, c.R, b, protocol.Content{MediaType: jsonType, Cache: protocol.Revalidate, Public: public(c)})
}
