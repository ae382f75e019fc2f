package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Proxies and groups. A proxy asks its upstream for /v2/<image>/... with the image part
// of the name that it is asked for; what has a digest is kept for ever, whatever image
// named it, tags and lists are revalidated. A group answers for an image from the hosted
// members that own the name, else from the one proxy that has it.

// acceptManifests is what upstreams are asked for: one form, so that one document is kept
// for all clients.
const acceptManifests = typeImage + ", " + typeIndex + ", " + typeDockerImage + ", " + typeDockerList + ", " + typeArtifact

// tagTTL is how long a tag or a list of an upstream is believed where the repository does
// not say; listTTL how long it is that an image is there.
const (
	tagTTL  = time.Minute
	listTTL = time.Hour
)

// routed serves a call where its repository's kind sends it: a group's by its members.
func (p *Protocol) routed(ctx context.Context, c *call, action access.Action, serve func(context.Context, *call) error) error {
	r := c.Repository
	if r == nil || r.Kind == meta.KindHosted {
		return serve(ctx, c)
	}
	switch action {
	case access.Push:
		target, err := p.catalog.ForPush(ctx, c.by, c.Repo, Format, r)
		if err != nil {
			return err
		}
		return serve(ctx, c.at(&target))
	case access.Pull:
		if p.proxies == nil || r.Kind == meta.KindProxy && r.Upstream == nil { // the latter is from before level 6
			return fmt.Errorf("repository %s is a %s: %w", r.Ref, r.Kind, &meta.UnavailableError{Reason: "no_upstream"})
		}
	default:
		return &meta.ReadOnlyError{Repo: r.Ref, Kind: r.Kind}
	}
	if r.Kind == meta.KindProxy {
		return serve(ctx, c)
	}
	sources, err := p.proxies.Sources(ctx, c.by, r, c.pkg.Name, func(member *meta.Repository) upstream.Want {
		w := c.want(member, "tags/list?n=1")
		w.TTL = listTTL
		return w
	})
	if errors.Is(err, meta.ErrNotFound) {
		return nameUnknown(c.name)
	}
	if err != nil {
		return err
	}
	for i := range sources {
		if err = serve(ctx, c.at(&sources[i])); !errors.Is(err, meta.ErrNotFound) {
			return err
		}
	}
	return err
}

// at is the call about another repository. Its name stays what the client called it.
func (c *call) at(r *meta.Repository) *call {
	inner := *c.Call
	inner.Repo, inner.Repository = r.Ref, r
	out := *c
	out.Call, out.pkg.Repo = &inner, r.Ref
	return &out
}

func (c *call) proxied() bool { return c.Repository != nil && c.Repository.Kind == meta.KindProxy }

// want is what to ask a proxy's upstream of the call's image.
func (c *call) want(r *meta.Repository, rest string) upstream.Want {
	image := upstreamImage(r, c.pkg.Name)
	return upstream.Want{Path: "v2/" + image + "/" + rest, Package: c.pkg.Name}
}

// upstreamImage is what an upstream calls an image: docker's hub keeps those of one part
// under `library`.
func upstreamImage(r *meta.Repository, image string) string {
	if r.Upstream != nil && !strings.Contains(image, "/") && upstream.HubHost(hostOf(r.Upstream.URL)) {
		return "library/" + image
	}
	return image
}

func hostOf(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	return u.Host
}

// absentUpstream tells that a proxy has nothing there as this protocol does.
func (c *call) absentUpstream(err error, ref string) error {
	if !errors.Is(err, meta.ErrNotFound) {
		return err
	}
	return &problem{code: codeManifestUnknown, detail: map[string]string{"name": c.name, "reference": ref},
		err: fmt.Errorf("%s of %s is unknown: %w", ref, c.name, err)}
}

// fetch gets w for a call that answers with something made of it.
func (p *Protocol) fetch(ctx context.Context, c *call, w upstream.Want) (*upstream.Found, error) {
	f, err := p.proxies.Fetch(ctx, c.by, c.Repository, w)
	if err == nil {
		upstream.Describe(c.Call, f)
	}
	return f, err
}

// proxyManifest answers with a manifest of the upstream.
func (p *Protocol) proxyManifest(ctx context.Context, c *call, ref reference) error {
	if c.pkg.Name == rootPackage {
		return nameUnknown(c.name)
	}
	w := c.want(c.Repository, "manifests/"+ref.String())
	w.Accept, w.MaxBytes = acceptManifests, MaxManifestBytes
	if ref.tag != "" {
		w.TTL = tagTTL
	} else {
		w.Kind, w.Digest = upstream.File, ref.digest
		// A tag that was pulled has brought it already.
		known, err := p.knownManifest(ctx, c, ref.digest)
		if known || err != nil {
			return err
		}
	}
	f, err := p.proxies.Fetch(ctx, c.by, c.Repository, w)
	if err != nil {
		return c.absentUpstream(err, ref.String())
	}
	name := ref.digest
	if name == "" {
		name = f.Record.Digest
	}
	content := protocol.Content{ETag: protocol.ETag(name), Cache: protocol.Immutable, Public: c.public()}
	if ref.tag != "" {
		content.Cache = protocol.Revalidate
	}
	c.W.Header().Set("Docker-Content-Digest", string(name))
	return upstream.Serve(c.Call, p.proxies, f, content)
}

// knownManifest answers with a manifest that the proxy has by its digest; known is false,
// and nothing written, when it has none.
func (p *Protocol) knownManifest(ctx context.Context, c *call, d digest.Digest) (known bool, _ error) {
	if ok, _ := c.Repository.Upstream.Admits(c.pkg.Name); !ok {
		return false, nil // Fetch says so
	}
	b, asOf, err := p.catalog.KnownBlob(ctx, c.by, c.Repo, d)
	if errors.Is(err, meta.ErrNotFound) || errors.Is(err, meta.ErrUnavailable) || err == nil && b.Blob.PlainBytes > MaxManifestBytes {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	release, err := p.catalog.Reserve(ctx, b.Blob.PlainBytes)
	if err != nil {
		return false, err
	}
	defer release()
	body, err := p.read(ctx, b)
	if err != nil {
		return false, err
	}
	m, err := parseManifest(body, "")
	if err != nil {
		return false, nil // it is a layer that is asked for as a manifest: the upstream says what that is
	}
	c.answer(asOf)
	c.W.Header().Set("Docker-Content-Digest", string(d))
	return true, protocol.ServeBytes(c.W, c.R, body, protocol.Content{
		MediaType: m.mediaType, ETag: protocol.ETag(d), Cache: protocol.Immutable, Public: c.public(),
	})
}

// read returns a small blob's bytes.
func (p *Protocol) read(ctx context.Context, b state.BlobAnswer) ([]byte, error) {
	r, err := p.catalog.Open(ctx, b.Blob)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	body := make([]byte, b.Blob.PlainBytes)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", b.Blob.Digest, err)
	}
	return body, nil
}

// proxyBlob answers with a blob of the upstream. One that another image brought is there.
func (p *Protocol) proxyBlob(ctx context.Context, c *call, d digest.Digest) error {
	if c.pkg.Name == rootPackage {
		return nameUnknown(c.name)
	}
	c.W.Header().Set("Docker-Content-Digest", string(d))
	content := protocol.Content{ETag: protocol.ETag(d), MediaType: "application/octet-stream", Cache: protocol.Immutable, Public: c.public()}
	if ok, _ := c.Repository.Upstream.Admits(c.pkg.Name); ok {
		b, asOf, err := p.catalog.KnownBlob(ctx, c.by, c.Repo, d)
		switch {
		case err == nil:
			if err := backwards(c.R.Header.Get("Range"), b.Blob.PlainBytes); err != nil {
				return err
			}
			c.answer(asOf)
			content.Size = b.Blob.PlainBytes
			content.Open = func(ctx context.Context) (io.ReadSeekCloser, error) { return p.catalog.Open(ctx, b.Blob) }
			return protocol.Serve(c.W, c.R, content)
		case !errors.Is(err, meta.ErrNotFound) && !errors.Is(err, meta.ErrUnavailable):
			return err
		}
	}
	w := c.want(c.Repository, "blobs/"+string(d))
	w.Kind, w.Digest = upstream.File, d
	if c.R.Header.Get("Range") == "" {
		if err := upstream.ServeFile(c.Call, p.proxies, c.by, c.Repository, w, content); err != nil {
			return c.blobUnknown(err, d)
		}
		return nil
	}
	f, err := p.proxies.Fetch(ctx, c.by, c.Repository, w)
	if err != nil {
		return c.blobUnknown(err, d)
	}
	if err := backwards(c.R.Header.Get("Range"), f.Record.Size); err != nil {
		return err
	}
	return upstream.Serve(c.Call, p.proxies, f, content)
}

// maxTagsBytes bounds an upstream's answer that lists tags.
const maxTagsBytes = 8 << 20

// What one byte of an upstream's list may cost when it is decoded: an empty tag has three
// and a string of sixteen, an empty descriptor three and a struct of forty times that.
const (
	tagsCost      = 8
	referrersCost = 44
)

// proxyTags answers with the upstream's tags, under the name that the client asked for.
func (p *Protocol) proxyTags(ctx context.Context, c *call, page protocol.PageRequest) error {
	if c.pkg.Name == rootPackage {
		return nameUnknown(c.name)
	}
	query := url.Values{}
	if page.Given {
		query.Set("n", strconv.Itoa(page.Limit))
	}
	if page.After != "" {
		query.Set("last", page.After)
	}
	rest := "tags/list"
	if len(query) > 0 {
		rest += "?" + query.Encode()
	}
	w := c.want(c.Repository, rest)
	w.TTL, w.MaxBytes, w.Passing = tagTTL, maxTagsBytes, len(query) > 0
	f, err := p.fetch(ctx, c, w)
	if errors.Is(err, meta.ErrNotFound) {
		return nameUnknown(c.name)
	}
	if err != nil {
		return err
	}
	release, err := p.catalog.Reserve(ctx, tagsCost*f.Record.Size)
	if err != nil {
		return err
	}
	defer release()
	body, err := p.proxies.Document(ctx, f, maxTagsBytes)
	if err != nil {
		return err
	}
	answer := struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{}
	if err := json.Unmarshal(body, &answer); err != nil {
		return fmt.Errorf("tags of %s: the upstream's list does not parse: %w", c.name, protocol.ErrUpstream)
	}
	if answer.Name = c.name; answer.Tags == nil {
		answer.Tags = []string{}
	}
	if last := lastOfLink(f.Record.Link); last != "" {
		next(c.W, c.R, page, last)
	}
	rendered, err := json.Marshal(answer)
	if err != nil {
		return fmt.Errorf("render tags: %w", err)
	}
	return protocol.ServeBytes(c.W, c.R, append(rendered, '\n'), protocol.Content{MediaType: "application/json", Cache: protocol.Revalidate, Public: c.public()})
}

// lastOfLink returns where a Link to the next page goes on, "" when there is none.
func lastOfLink(link string) string {
	target, params, ok := strings.Cut(link, ">")
	if !ok || !strings.HasPrefix(target, "<") || !strings.Contains(strings.ToLower(params), "next") {
		return ""
	}
	u, err := url.Parse(target[1:])
	if err != nil {
		return ""
	}
	return u.Query().Get("last")
}

// isManifest reports whether the upstream has a manifest. Referrers are asked for of those
// only: it lists none for any digest that a client makes up, and each list would be kept.
func (p *Protocol) isManifest(ctx context.Context, c *call, d digest.Digest) (bool, error) {
	if ok, _ := c.Repository.Upstream.Admits(c.pkg.Name); ok {
		if _, _, err := p.catalog.KnownBlob(ctx, c.by, c.Repo, d); err == nil {
			return true, nil
		}
	}
	w := c.want(c.Repository, "manifests/"+string(d))
	w.Kind, w.Digest, w.Accept, w.MaxBytes = upstream.File, d, acceptManifests, MaxManifestBytes
	_, err := p.proxies.Fetch(ctx, c.by, c.Repository, w)
	if errors.Is(err, meta.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// proxyReferrers answers with what refers to a digest at the upstream: by its list, or by
// the tag that clients keep where there is none.
func (p *Protocol) proxyReferrers(ctx context.Context, c *call, subject digest.Digest) error {
	if c.pkg.Name == rootPackage {
		return nameUnknown(c.name)
	}
	if there, err := p.isManifest(ctx, c, subject); err != nil {
		return err
	} else if !there {
		return writeReferrers(c.W, c.R, emptyReferrers)
	}
	// The type is looked for here, so that one list is kept, whatever clients look for.
	artifactType := c.R.URL.Query().Get("artifactType")
	w := c.want(c.Repository, "referrers/"+string(subject))
	w.Accept, w.MaxBytes, w.TTL = typeIndex, MaxManifestBytes, tagTTL
	f, err := p.fetch(ctx, c, w)
	if errors.Is(err, meta.ErrNotFound) {
		w = c.want(c.Repository, "manifests/"+fallbackTag(subject))
		w.Accept, w.MaxBytes, w.TTL = acceptManifests, MaxManifestBytes, tagTTL
		f, err = p.fetch(ctx, c, w)
	}
	if errors.Is(err, meta.ErrNotFound) {
		return writeReferrers(c.W, c.R, emptyReferrers)
	}
	if err != nil {
		return err
	}
	release, err := p.catalog.Reserve(ctx, referrersCost*f.Record.Size)
	if err != nil {
		return err
	}
	defer release()
	body, err := p.proxies.Document(ctx, f, MaxManifestBytes)
	if err != nil {
		return err
	}
	var list index
	if depth(body) > maxDepth || json.Unmarshal(bytes.TrimSpace(body), &list) != nil {
		return fmt.Errorf("referrers of %s: the upstream's list does not parse: %w", subject, protocol.ErrUpstream)
	}
	answer := emptyReferrers
	for _, d := range list.Manifests {
		if artifactType == "" || d.ArtifactType == artifactType {
			d.URLs = nil
			answer.Manifests = append(answer.Manifests, d)
		}
	}
	if artifactType != "" {
		c.W.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	return writeReferrers(c.W, c.R, answer)
}
