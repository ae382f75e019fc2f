package npm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Media types of documents.
const (
	fullType  = "application/json"
	shortType = "application/vnd.npm.install-v1+json"
)

// get answers for everything below the name of a package.
func (p *Protocol) get(c *protocol.Call) error {
	t, err := parsePath(c.Params.Get("path"))
	if err != nil {
		return err
	}
	switch {
	case t.file != "":
		return p.tarball(c, t)
	case t.version != "":
		return p.one(c, t)
	}
	return p.packument(c, t.name)
}

func (p *Protocol) packument(c *protocol.Call, name string) error {
	by := caller(c)
	s, err := p.sourceOf(c, by, name)
	if err != nil {
		return err
	}
	v := view{base: baseOf(c), all: c.R.URL.Query().Get("write") == "true"}
	mediaType := protocol.ParseAccept(c.R.Header).Best(fullType, shortType)
	if v.short = mediaType == shortType && !v.all; !v.short {
		mediaType = fullType
	}
	doc, err := s.document(c.R.Context(), by, v)
	if err != nil {
		return err
	}
	s.describe(c, s.asOf)
	c.W.Header().Set("Vary", "Accept")
	return protocol.Serve(c.W, c.R, protocol.Content{
		Size: doc.Size, ETag: doc.ETag, MediaType: mediaType, Cache: protocol.Revalidate, Public: public(c),
		Open: func(context.Context) (io.ReadSeekCloser, error) { return doc.Open() },
	})
}

// one serves the manifest of a version, or of what a tag names.
func (p *Protocol) one(c *protocol.Call, t target) error {
	by := caller(c)
	ctx := c.R.Context()
	s, err := p.sourceOf(c, by, t.name)
	if err != nil {
		return err
	}
	none := fmt.Errorf("version %s of %s: %w", t.version, t.name, meta.ErrNotFound)
	if s.found != nil {
		return s.upstreamVersion(c, t.version)
	}
	if !isVersion(t.version) {
		tags, _, err := s.tags(ctx, by)
		if err != nil {
			return err
		}
		tag := t.version
		if t.version = tags[tag]; t.version == "" && tag == latest {
			if t.version, err = s.newest(ctx, by); err != nil {
				return err
			}
		}
		if t.version == "" {
			return none
		}
	}
	v, asOf, err := s.version(ctx, by, t.version)
	if err != nil {
		return err
	}
	m, err := p.shown(ctx, by, t.name, baseOf(c), &v)
	if err != nil {
		return err
	}
	raw, err := marshal(m)
	if err != nil {
		return err
	}
	c.AsOf(asOf)
	return protocol.ServeBytes(c.W, c.R, raw, protocol.Content{MediaType: fullType, Cache: protocol.Revalidate, Public: public(c)})
}

// newest returns the version that is latest where no tag says so: the package came by
// promotion, or lost it. It is "" when there is none to be had.
func (s *source) newest(ctx context.Context, by catalog.Caller) (version string, _ error) {
	for v, err := range s.p.catalog.VersionsOf(ctx, by, s.hosted, keyOf(s.name)) {
		if err != nil {
			return "", err
		}
		if v.State == meta.StateClosed && !hidden(&v) && higher(v.Name, version) {
			version = v.Name
		}
	}
	return version, nil
}

// version finds a version of a hosted package in the first repository that has it.
func (s *source) version(ctx context.Context, by catalog.Caller, version string) (v meta.Version, asOf meta.AsOf, err error) {
	for i := range s.hosted {
		v, asOf, err = s.p.catalog.Version(ctx, by, catalog.Package{Repo: s.hosted[i].Ref, Name: keyOf(s.name)}, version)
		if err == nil && v.State != meta.StateClosed {
			err = fmt.Errorf("version %s of %s: %w", version, s.name, meta.ErrNotFound)
		}
		if !errors.Is(err, meta.ErrNotFound) {
			break
		}
	}
	return v, asOf, err
}

func (p *Protocol) tarball(c *protocol.Call, t target) error {
	by, ctx := caller(c), c.R.Context()
	version, ok := versionOf(t.name, t.file)
	if !ok {
		return fmt.Errorf("file %s of %s: %w", t.file, t.name, meta.ErrNotFound)
	}
	s, err := p.sourceOf(c, by, t.name)
	if err != nil {
		return err
	}
	if s.found != nil {
		return s.upstreamTarball(c, by, version)
	}
	v, asOf, err := s.version(ctx, by, version)
	if err != nil {
		return err
	}
	b, _, err := p.catalog.Blob(ctx, by, v.Repo, v.Digest)
	if err != nil {
		return err
	}
	c.AsOf(asOf)
	return protocol.Serve(c.W, c.R, protocol.Content{
		Size: v.Size, MediaType: tarballType, ETag: protocol.ETag(v.Digest), Modified: v.PublishTime.Std(), Cache: protocol.Immutable, Public: public(c),
		Open: func(ctx context.Context) (io.ReadSeekCloser, error) { return p.catalog.Open(ctx, b.Blob) },
	})
}

// ping answers that the repository is there, for who may read it.
func (p *Protocol) ping(c *protocol.Call) error {
	_, asOf, err := p.catalog.Repository(c.R.Context(), caller(c), c.Repo)
	if err != nil {
		return err
	}
	c.AsOf(asOf)
	return protocol.WriteJSON(c.W, http.StatusOK, struct{}{})
}
