package npm

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// maxTagBody bounds the body of a tag's PUT: a version as a JSON string.
const maxTagBody = 1 << 10

// noAttachment refuses a tarball where there is none to come.
func noAttachment(name string, _ io.Reader) error {
	return fmt.Errorf("attachment %q: a tarball comes with a publish only: %w", name, meta.ErrInvalid)
}

// tagsOf returns all tags of a hosted package, but for those of versions in quarantine.
func (p *Protocol) tagsOf(ctx context.Context, by catalog.Caller, pkg catalog.Package) (map[string]string, error) {
	tags := map[string]string{}
	for page := (catalog.Page{Limit: pageLimit}); ; {
		some, _, err := p.catalog.Aliases(ctx, by, pkg, page)
		if err != nil {
			return nil, err
		}
		for _, a := range some {
			tags[a.Name] = a.Version
			page.After = a.Name
		}
		if len(some) == 0 || len(tags) >= maxTags {
			return tags, nil
		}
	}
}

// maxTags bounds the tags of a package that a document has.
const maxTags = 10_000

// tagged returns the hosted package that a path of tags names.
func (p *Protocol) tagged(c *protocol.Call, by catalog.Caller, repo meta.RepoRef) (catalog.Package, meta.AsOf, error) {
	t, err := parsePath(c.Params.Get("path"))
	if err != nil {
		return catalog.Package{}, meta.AsOf{}, err
	}
	pkg := catalog.Package{Repo: repo, Name: keyOf(t.name)}
	record, asOf, err := p.catalog.Package(c.R.Context(), by, pkg)
	if err == nil && (spelled(record) != t.name || t.file != "" || t.version != "") {
		err = fmt.Errorf("package %s: %w", t.name, meta.ErrNotFound)
	}
	return pkg, asOf, err
}

func (p *Protocol) tags(c *protocol.Call) error {
	t, err := parsePath(c.Params.Get("path"))
	if err != nil {
		return err
	}
	if t.file != "" || t.version != "" {
		return fmt.Errorf("tags of %s: %w", c.Params.Get("path"), meta.ErrNotFound)
	}
	by := caller(c)
	s, err := p.sourceOf(c, by, t.name)
	if err != nil {
		return err
	}
	tags, asOf, err := s.tags(c.R.Context(), by)
	if err != nil {
		return err
	}
	body, err := json.Marshal(tags)
	if err != nil {
		return fmt.Errorf("render tags: %w", err)
	}
	s.describe(c, asOf)
	return protocol.ServeBytes(c.W, c.R, body, protocol.Content{MediaType: "application/json", Cache: protocol.Revalidate, Public: public(c)})
}

func (p *Protocol) putTag(c *protocol.Call) error {
	tag := c.Params.Get("tag")
	if err := checkTag(tag); err != nil {
		return err
	}
	raw, err := protocol.ReadBody(c.R, maxTagBody)
	if err != nil {
		return err
	}
	var version string
	if err := json.Unmarshal(raw, &version); err != nil {
		return fmt.Errorf("the body of a tag is a version as a JSON string: %w", meta.ErrInvalid)
	}
	repo, err := p.writable(c, meta.ActionPush)
	if err != nil {
		return err
	}
	by := caller(c)
	pkg, _, err := p.tagged(c, by, repo)
	if err != nil {
		return err
	}
	token, err := p.catalog.MoveAlias(c.R.Context(), by, pkg, tag, version)
	if err != nil {
		return err
	}
	return written(c, token, http.StatusCreated, pkg.Name)
}

func (p *Protocol) deleteTag(c *protocol.Call) error {
	tag := c.Params.Get("tag")
	if tag == latest {
		return fmt.Errorf("the tag latest stays: move it to another version: %w", meta.ErrInvalid)
	}
	repo, err := p.writable(c, meta.ActionPush)
	if err != nil {
		return err
	}
	by := caller(c)
	pkg, _, err := p.tagged(c, by, repo)
	if err != nil {
		return err
	}
	token, err := p.catalog.DeleteAlias(c.R.Context(), by, pkg, tag)
	if err != nil {
		return err
	}
	return written(c, token, http.StatusOK, pkg.Name)
}
