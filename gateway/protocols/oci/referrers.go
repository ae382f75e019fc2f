package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Bounds of one answer; there is a Link to the rest. A client reads an index of
// at most 4 MiB.
const (
	maxReferrers      = 1000
	maxReferrersBytes = 2 << 20
	maxFallback       = 256 // entries of a fallback tag that are looked at
)

// index is the answer to referrers (spec.md, Listing Referrers).
type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []descriptor `json:"manifests"`
}

var emptyReferrers = index{SchemaVersion: 2, MediaType: typeIndex, Manifests: []descriptor{}}

// isReferrers reports whether r lists referrers.
func isReferrers(r *http.Request) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodHead || !strings.HasPrefix(r.URL.Path, "/v2/") {
		return false
	}
	before, last, _ := cutLast(r.URL.Path)
	return strings.HasSuffix(before, "/referrers") && strings.Contains(last, ":")
}

func cutLast(path string) (before, last string, ok bool) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return "", path, false
	}
	return path[:i], path[i+1:], true
}

// listReferrers answers what has the digest as its subject, be the subject there
// or not.
func (p *Protocol) listReferrers(ctx context.Context, c *call) error {
	subject, err := parseDigest(c.Params.Get("digest"))
	if err != nil {
		return err
	}
	if c.proxied() {
		return p.proxyReferrers(ctx, c, subject)
	}
	query := c.R.URL.Query()
	artifactType, last := query.Get("artifactType"), query.Get("last")
	found, asOf, err := p.catalog.Attachments(ctx, c.by, c.pkg, subject, artifactType, catalog.Page{After: last, Limit: maxReferrers})
	if err != nil {
		return err
	}
	c.answer(asOf)
	answer := emptyReferrers
	bytes := 0
	for i := range found {
		d, err := p.describe(ctx, c, &found[i])
		if err != nil {
			return err
		}
		bytes += 512
		for k, v := range d.Annotations {
			bytes += len(k) + len(v) + 8
		}
		if i > 0 && bytes > maxReferrersBytes {
			found = found[:i]
			protocol.LinkNext(c.W, c.R, url.Values{"last": {found[i-1].Name}})
			break
		}
		answer.Manifests = append(answer.Manifests, d)
	}
	if len(found) == maxReferrers {
		protocol.LinkNext(c.W, c.R, url.Values{"last": {found[maxReferrers-1].Name}})
	}
	if last == "" {
		if err := p.fallback(ctx, c, subject, artifactType, &answer); err != nil {
			return err
		}
	}
	if artifactType != "" {
		c.W.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	return writeReferrers(c.W, c.R, answer)
}

func writeReferrers(w http.ResponseWriter, r *http.Request, answer index) error {
	b, err := json.Marshal(answer)
	if err != nil {
		return fmt.Errorf("render referrers: %w", err)
	}
	return protocol.ServeBytes(w, r, b, protocol.Content{MediaType: typeIndex, Cache: protocol.Revalidate})
}

// describe makes the descriptor of an attachment.
func (p *Protocol) describe(ctx context.Context, c *call, v *meta.Version) (descriptor, error) {
	d := descriptor{
		MediaType: v.MediaType, Digest: digest.Digest(v.Name), Size: v.Size,
		ArtifactType: v.ArtifactType, Annotations: v.Annotations,
	}
	if _, ok := v.Annotations[inDocument]; !ok {
		return d, nil
	}
	body, err := p.catalog.Document(ctx, c.by, v)
	if err != nil {
		return d, err
	}
	var whole document
	if err := json.Unmarshal(body, &whole); err != nil {
		return d, fmt.Errorf("read annotations of %s: %w: %w", v.Name, meta.ErrCorrupt, err)
	}
	d.Annotations = whole.Annotations
	return d, nil
}

// fallback adds what the fallback tag of a subject lists (spec.md, Referrers Tag
// Schema): `sha256-<hex>` is an index that clients kept by hand at registries
// without this API, and that comes along when a repository is copied. What
// refers by its own subject is listed already; what the repository lacks is not
// listed.
func (p *Protocol) fallback(ctx context.Context, c *call, subject digest.Digest, artifactType string, answer *index) error {
	tag := fallbackTag(subject)
	a, _, err := p.catalog.Peek(ctx, c.by, c.pkg, tag)
	_, kept := errors.AsType[*meta.QuarantinedError](err)
	if kept || errors.Is(err, meta.ErrNotFound) || err == nil && a.Version.MediaType != typeIndex {
		return nil
	}
	if err != nil {
		return err
	}
	body, err := p.catalog.Document(ctx, c.by, &a.Version)
	if err != nil {
		return err
	}
	var list document
	if err := json.Unmarshal(body, &list); err != nil {
		return fmt.Errorf("read the index %s of %s: %w: %w", tag, c.name, meta.ErrCorrupt, err)
	}
	if len(list.Manifests) > maxFallback {
		warn(c.W.Header(), fmt.Sprintf("the fallback tag %s lists %d referrers, the first %d were considered", tag, len(list.Manifests), maxFallback))
		list.Manifests = list.Manifests[:maxFallback]
	}
	for _, d := range list.Manifests {
		if artifactType != "" && d.ArtifactType != artifactType {
			continue
		}
		v, _, err := p.catalog.Version(ctx, c.by, c.pkg, string(d.Digest))
		if errors.Is(err, meta.ErrNotFound) || err == nil && v.Subject == subject {
			continue
		}
		if err != nil {
			return err
		}
		d.URLs = nil
		answer.Manifests = append(answer.Manifests, d)
	}
	return nil
}

// fallbackTag is algorithm and hex, cut at 32 and 64 characters.
func fallbackTag(d digest.Digest) string {
	algorithm, hex := string(d.Algorithm()), d.Encoded()
	return algorithm[:min(len(algorithm), 32)] + "-" + hex[:min(len(hex), 64)]
}
