package gomod

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/mod/module"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/rendered"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

const (
	textType = "text/plain; charset=utf-8"
	jsonType = "application/json"
	zipType  = "application/zip"
)

// info is what the go command asks of a version (go.dev/ref/mod#goproxy-protocol).
type info struct {
	Version string
	Time    time.Time
}

// infoOf says of a hosted version when it was published, to the second.
func infoOf(v *meta.Version) info {
	return info{Version: v.Name, Time: v.PublishTime.Std().UTC().Truncate(time.Second)}
}

// summary is Version.Summary: what is answered without opening the zip.
type summary struct {
	// Mod is the go.mod; nil when it is too long, and a file of the version.
	Mod *string `json:"mod,omitempty"`
	// Sum is the zip's h1, as a go.sum has it.
	Sum string `json:"sum"`
}

// goneError says that a version was here and was deleted.
type goneError struct{ error }

// Unwrap returns what was asked for and not found.
func (e *goneError) Unwrap() error { return e.error }

// file answers what lies below `@v/`.
func (p *Protocol) file(c *protocol.Call) error {
	path, err := modulePath(c.Params.Get("module"))
	if err != nil {
		return absent(err)
	}
	name := c.Params.Get("file")
	if name == "list" {
		return p.list(c, path)
	}
	version, ext, err := versionFile(name)
	if err != nil {
		return absent(err)
	}
	sources, err := p.sources(c, path)
	if err != nil {
		return err
	}
	missing := fmt.Errorf("module %s@%s: %w", path, version, meta.ErrNotFound)
	for i := range sources {
		if sources[i].Kind == meta.KindProxy {
			err = p.fetchFile(c, &sources[i], module.Version{Path: path, Version: version}, ext)
		} else if !canonical(version) {
			// A branch or a part of a version: the go command finds it in the list.
			err = missing
		} else {
			err = p.hostedFile(c, sources[i].Ref, path, version, ext)
		}
		if !errors.Is(err, meta.ErrNotFound) {
			return err
		}
		if _, deleted := errors.AsType[*goneError](err); deleted {
			missing = err
		}
	}
	return missing
}

func (p *Protocol) hostedFile(c *protocol.Call, repo meta.RepoRef, path, version, ext string) error {
	ctx, by := c.R.Context(), caller(c)
	pkg := catalog.Package{Repo: repo, Name: path}
	v, asOf, err := p.catalog.Version(ctx, by, pkg, version)
	if errors.Is(err, meta.ErrNotFound) {
		return p.gone(ctx, by, pkg, version, err)
	}
	if err != nil {
		return err
	}
	c.AsOf(asOf)
	content := protocol.Content{Public: public(c), Modified: v.PublishTime.Std()}
	switch ext {
	case extInfo:
		// The time is another when the same version was deleted and published again.
		content.Cache = protocol.Revalidate
		return serveJSON(c, infoOf(&v), content)
	case extMod:
		content.Cache, content.MediaType = protocol.Immutable, textType
		mod, err := p.mod(ctx, by, &v)
		if err != nil {
			return err
		}
		return protocol.ServeBytes(c.W, c.R, mod, content)
	}
	b, _, err := p.catalog.Blob(ctx, by, repo, v.Digest)
	if err != nil {
		return err
	}
	content.Cache, content.MediaType = protocol.Immutable, zipType
	content.Size, content.ETag = v.Size, protocol.ETag(v.Digest)
	content.Open = func(ctx context.Context) (io.ReadSeekCloser, error) { return p.catalog.Open(ctx, b.Blob) }
	return protocol.Serve(c.W, c.R, content)
}

// gone tells a version that was deleted from one that never was.
func (p *Protocol) gone(ctx context.Context, by catalog.Caller, pkg catalog.Package, version string, missing error) error {
	t, found, err := p.catalog.Tombstone(ctx, by, pkg, version)
	if err != nil || !found {
		return missing
	}
	return &goneError{fmt.Errorf("module %s@%s was deleted on %s: %w", pkg.Name, version, t.At.Std().UTC().Format(time.RFC3339), missing)}
}

// mod returns a hosted version's go.mod.
func (p *Protocol) mod(ctx context.Context, by catalog.Caller, v *meta.Version) ([]byte, error) {
	var s summary
	if err := json.Unmarshal(v.Summary, &s); err != nil {
		return nil, fmt.Errorf("summary of %s@%s: %w: %w", v.Package, v.Name, meta.ErrCorrupt, err)
	}
	if s.Mod != nil {
		return []byte(*s.Mod), nil
	}
	f, _, err := p.catalog.File(ctx, by, catalog.Package{Repo: v.Repo, Name: v.Package}, v.Name, modFile)
	if err != nil {
		return nil, err
	}
	// Of a document the catalog asks where it is and what it hashes to.
	return p.catalog.Document(ctx, by, &meta.Version{Repo: v.Repo, Package: v.Package, Name: v.Name, Digest: f.Digest, Size: f.Size})
}

// list answers the versions of a module, but for pseudo-versions, which the go command
// makes up of commits; a module that has no others has an empty list.
func (p *Protocol) list(c *protocol.Call, path string) error {
	sources, err := p.sources(c, path)
	if err != nil {
		return err
	}
	if sources[0].Kind == meta.KindProxy {
		return p.fetchList(c, &sources[0], path)
	}
	return p.render(c, sources, path, "list", textType, func(ctx context.Context, by catalog.Caller, w io.Writer) error {
		out := bufio.NewWriter(w)
		for v, err := range p.catalog.VersionsOf(ctx, by, sources, path) {
			if err != nil {
				return err
			}
			if !listed(&v) || module.IsPseudoVersion(v.Name) {
				continue
			}
			// An error stays with the writer until Flush.
			_, _ = out.WriteString(v.Name)
			_ = out.WriteByte('\n')
		}
		return out.Flush()
	})
}

// listed reports whether a version is to be chosen by who does not name it.
func listed(v *meta.Version) bool {
	return v.Marks.Yanked == nil && v.Marks.Unlisted == nil
}

// latest answers the info of the version that is taken when the list has none.
func (p *Protocol) latest(c *protocol.Call) error {
	path, err := modulePath(c.Params.Get("module"))
	if err != nil {
		return absent(err)
	}
	sources, err := p.sources(c, path)
	if err != nil {
		return err
	}
	if sources[0].Kind == meta.KindProxy {
		return p.fetchLatest(c, &sources[0], path)
	}
	return p.render(c, sources, path, "latest", jsonType, func(ctx context.Context, by catalog.Caller, w io.Writer) error {
		var best info
		for v, err := range p.catalog.VersionsOf(ctx, by, sources, path) {
			if err != nil {
				return err
			}
			if listed(&v) && later(v.Name, best.Version) {
				best = infoOf(&v)
			}
		}
		if best.Version == "" {
			return fmt.Errorf("module %s has no version to choose: %w", path, meta.ErrNotFound)
		}
		b, err := json.Marshal(best)
		if err == nil {
			_, err = w.Write(b)
		}
		return err
	})
}

// render answers a document of all versions of a module in hosted repositories, which is
// kept for as long as none of them changes.
//
// Errors: meta.ErrNotFound when none has the module.
func (p *Protocol) render(c *protocol.Call, sources []meta.Repository, path, variant, mediaType string, write func(context.Context, catalog.Caller, io.Writer) error) error {
	ctx, by := c.R.Context(), caller(c)
	key := rendered.Key{Repo: c.Repo, Package: path, Variant: variant}
	var oldest *meta.AsOf
	missing := fmt.Errorf("module %s: %w", path, meta.ErrNotFound)
	for i := range sources {
		pkg, asOf, err := p.catalog.Package(ctx, by, catalog.Package{Repo: sources[i].Ref, Name: path})
		if err != nil && !errors.Is(err, meta.ErrNotFound) {
			return err
		}
		key.Revisions = append(key.Revisions, pkg.Revision) // 0 for none
		if err != nil {
			missing = err
			continue
		}
		if oldest == nil || asOf.Index < oldest.Index {
			oldest = &asOf
		}
		// The versions are read as of these revisions, or later; without a quorum, as they are.
		if !asOf.Stale && by.After.Index < asOf.Index {
			by.After = meta.Token{Epoch: asOf.Epoch, Index: asOf.Index}
		}
	}
	if oldest == nil {
		return missing
	}
	inside := by
	inside.Asked, inside.Absent = meta.Freshness{}, nil
	d, err := p.documents.Get(ctx, key, func(w io.Writer) error { return write(ctx, inside, w) })
	if err != nil {
		return err
	}
	c.AsOf(*oldest)
	return protocol.Serve(c.W, c.R, protocol.Content{
		Size: d.Size, ETag: d.ETag, MediaType: mediaType, Cache: protocol.Revalidate, Public: public(c),
		Open: func(context.Context) (io.ReadSeekCloser, error) { return d.Open() },
	})
}

func serveJSON(c *protocol.Call, v any, content protocol.Content) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("render %T: %w", v, err)
	}
	content.MediaType = jsonType
	return protocol.ServeBytes(c.W, c.R, b, content)
}
