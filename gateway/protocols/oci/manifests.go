package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// manifestPath is the path of a manifest in its version.
const manifestPath = "manifest.json"

// maxTags bounds the tags of one push, one in the path and the rest in `?tag=`.
const maxTags = 64

// find resolves a tag or digest to its version.
func (p *Protocol) find(ctx context.Context, c *call, ref reference) (v meta.Version, asOf meta.AsOf, err error) {
	if ref.tag != "" {
		a, asOf, err := p.catalog.Resolve(ctx, c.by, c.pkg, ref.tag)
		return a.Version, asOf, p.unknown(ctx, c, ref, asOf, err)
	}
	v, asOf, err = p.catalog.Version(ctx, c.by, c.pkg, string(ref.digest))
	return v, asOf, p.unknown(ctx, c, ref, asOf, err)
}

// unknown tells an unknown manifest from an unknown name; at is when it was so.
func (p *Protocol) unknown(ctx context.Context, c *call, ref reference, at meta.AsOf, err error) error {
	if !errors.Is(err, meta.ErrNotFound) {
		return err
	}
	if !p.catalog.Known(ctx, c.by, c.pkg, at) {
		return nameUnknown(c.name)
	}
	return &problem{code: codeManifestUnknown, detail: map[string]string{"name": c.name, "reference": ref.String()},
		err: fmt.Errorf("manifest %s of %s is unknown: %w", ref, c.name, meta.ErrNotFound)}
}

func (p *Protocol) getManifest(ctx context.Context, c *call) error {
	ref, err := parseReference(c.Params.Get("reference"))
	if err != nil {
		return err
	}
	if c.proxied() {
		return p.proxyManifest(ctx, c, ref)
	}
	v, asOf, err := p.find(ctx, c, ref)
	if err != nil {
		return err
	}
	c.answer(asOf)
	h := c.W.Header()
	h.Set("Docker-Content-Digest", v.Name)
	if !accepted(c.R.Header, v.MediaType) {
		// Clients that list what they know of get what there is, as registries do; a
		// 406 would be news to most of them.
		warn(h, "the manifest is "+v.MediaType+", which the Accept header does not list")
	}
	content := protocol.Content{
		Size: v.Size, MediaType: v.MediaType, ETag: `"` + v.Name + `"`, Public: c.public(), Cache: protocol.Immutable,
		Open: func(ctx context.Context) (io.ReadSeekCloser, error) {
			body, err := p.catalog.Document(ctx, c.by, &v)
			if err != nil {
				return nil, err
			}
			return memory{bytes.NewReader(body)}, nil
		},
	}
	if ref.tag != "" {
		content.Cache = protocol.Revalidate
	}
	return protocol.Serve(c.W, c.R, content)
}

// memory is a document to be read; there is nothing to close.
type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }

// accepted reports whether a client lists the media type. Nearly all do so
// literally, which is seen without parsing.
func accepted(h http.Header, mediaType string) bool {
	lines := h.Values("Accept")
	if len(lines) == 0 {
		return true
	}
	for _, line := range lines {
		if line == "*/*" || strings.Contains(line, mediaType) {
			return true
		}
	}
	return protocol.ParseAccept(h).Allows(mediaType)
}

func (p *Protocol) putManifest(ctx context.Context, c *call) error {
	ref, err := parseReference(c.Params.Get("reference"))
	if err != nil {
		return err
	}
	tags, err := pushedTags(ref, c.R.URL.Query())
	if err != nil {
		return err
	}
	if _, err := p.catalog.ForPush(ctx, c.by, c.Repo, Format, c.Repository); err != nil {
		return coded(err, meta.ErrNotFound, codeNameUnknown, map[string]string{"name": c.name})
	}
	body, release, err := p.readManifest(ctx, c)
	if err != nil {
		return err
	}
	defer release()
	name := ref.digest
	if name == "" {
		name = digest.FromBytes(body)
	} else if got := name.Algorithm().FromBytes(body); got != name {
		return &digest.MismatchError{Want: name, Got: got}
	}
	m, err := parseManifest(body, c.R.Header.Get("Content-Type"))
	if err != nil {
		return err
	}
	published, err := p.catalog.Publish(ctx, c.by, c.Repo, catalog.Draft{
		Version: meta.Version{
			Package: c.pkg.Name, Name: string(name), MediaType: m.mediaType, State: meta.StateClosed,
			Subject: m.subject, ArtifactType: m.artifactType, Annotations: m.kept(), References: m.references,
		},
		Documents: []catalog.Document{{Path: manifestPath, MediaType: m.mediaType, Name: name, Body: body}},
		Optional:  m.elsewhere,
		Aliases:   tags,
	})
	if err != nil {
		return refusedPush(c, tags, err)
	}
	h := c.W.Header()
	for _, w := range m.warnings {
		warn(h, w)
	}
	if missing := len(m.elsewhere) - kept(m.elsewhere, published.Version.References); missing > 0 {
		warn(h, fmt.Sprintf("%d non-distributable layers are not stored here, whoever pulls needs their own URLs", missing))
	}
	c.Committed(published.Token)
	h.Set("Location", "/v2/"+c.name+"/manifests/"+string(name))
	h.Set("Docker-Content-Digest", string(name))
	if m.subject != "" {
		h.Set("OCI-Subject", string(m.subject))
	}
	for _, tag := range tags {
		h.Add("OCI-Tag", tag)
	}
	h.Set("Content-Length", "0")
	c.W.WriteHeader(http.StatusCreated)
	return nil
}

// pushedTags returns the tags of a push: that of the path, and those of `?tag=`
// beside a digest (spec.md of the main branch, Pushing Manifests).
func pushedTags(ref reference, query url.Values) ([]string, error) {
	var tags []string
	if ref.tag != "" {
		tags = append(tags, ref.tag)
	}
	for _, t := range query["tag"] {
		if !validTag(t) {
			return nil, invalid(codeTagInvalid, "tag %q: use 1 to 128 of letters, digits, _ . and -, not . or - first", t)
		}
		if !slices.Contains(tags, t) {
			tags = append(tags, t)
		}
		if len(tags) > maxTags {
			return nil, &problem{code: codeTagInvalid, status: http.StatusRequestURITooLong,
				err: fmt.Errorf("more than %d tags in one push: %w", maxTags, meta.ErrInvalid)}
		}
	}
	return tags, nil
}

// readManifest reads the body, and once it has come holds it within the budget for
// documents.
func (p *Protocol) readManifest(ctx context.Context, c *call) (body []byte, release func(), err error) {
	sent, err := p.catalog.Arrive(ctx, c.by, c.Repo, c.R.Body, c.R.ContentLength, MaxManifestBytes)
	if err != nil {
		return nil, nil, coded(coded(err, meta.ErrTooLarge, codeSizeInvalid, nil), meta.ErrInvalid, codeManifestInvalid, nil)
	}
	defer sent.Close()
	return sent.Read(ctx)
}

// refusedPush explains why a manifest was not published.
func refusedPush(c *call, tags []string, err error) error {
	var refused *catalog.RefusedError
	switch {
	case errors.As(err, &refused):
		return err
	case errors.Is(err, meta.ErrExists) && c.Repository != nil && c.Repository.Immutable && len(tags) > 0:
		return &problem{code: codeDenied, status: http.StatusConflict, detail: map[string]any{"name": c.name, "tags": tags},
			err: fmt.Errorf("%s is immutable and has the tag %s for another manifest: push under a new tag: %w", c.Repo, strings.Join(tags, ", "), meta.ErrExists)}
	case errors.Is(err, meta.ErrInvalid):
		// Content that was there when the manifest was checked, and no longer is.
		return coded(err, meta.ErrInvalid, codeManifestBlobUnknown, nil)
	}
	return err
}

// kept counts the references that are among all.
func kept(some, all []meta.Reference) int {
	n := 0
	for _, r := range some {
		if slices.ContainsFunc(all, func(x meta.Reference) bool { return x.Digest == r.Digest }) {
			n++
		}
	}
	return n
}

func (p *Protocol) deleteManifest(ctx context.Context, c *call) error {
	ref, err := parseReference(c.Params.Get("reference"))
	if err != nil {
		return err
	}
	var token meta.Token
	if ref.tag != "" {
		token, err = p.catalog.DeleteAlias(ctx, c.by, c.pkg, ref.tag)
	} else {
		token, err = p.catalog.DeleteVersion(ctx, c.by, c.pkg, string(ref.digest))
	}
	if err != nil {
		return p.unknown(ctx, c, ref, meta.AsOf{}, err)
	}
	c.Committed(token)
	c.W.Header().Set("Content-Length", "0")
	c.W.WriteHeader(http.StatusAccepted)
	return nil
}
