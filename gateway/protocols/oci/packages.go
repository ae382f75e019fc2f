package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

var _ protocol.Packages = (*Protocol)(nil)

// ParseReference implements protocol.Packages: `[/image][:tag][@digest]`, of which
// the digest counts; without either the tag is latest.
func (p *Protocol) ParseReference(s string) (r protocol.Reference, _ error) {
	name, hash, pinned := strings.Cut(s, "@")
	image, tag := name, ""
	if at := strings.LastIndex(name, ":"); at > strings.LastIndex(name, "/") {
		image, tag = name[:at], name[at+1:]
		if !validTag(tag) {
			return r, fmt.Errorf("reference %q: tag %q: %w", s, tag, meta.ErrInvalid)
		}
	}
	r.Package = rootPackage
	if image != "" {
		r.Package = strings.TrimPrefix(image, "/")
		for part := range strings.SplitSeq(r.Package, "/") {
			if !validComponent(part) {
				return r, fmt.Errorf("reference %q: name part %q: write tenant/repository/image:tag: %w", s, part, meta.ErrInvalid)
			}
		}
	}
	if !pinned {
		if r.Alias = tag; tag == "" {
			r.Alias = "latest"
		}
		return r, nil
	}
	d, err := digest.Parse(hash)
	if err != nil {
		return r, fmt.Errorf("reference %q: %w: %w", s, err, meta.ErrInvalid)
	}
	r.Version = string(d)
	return r, nil
}

// maxClosure bounds the manifests that one closure goes through: an index of indexes
// must not make a host walk for ever.
const maxClosure = 256

// Closure implements protocol.Packages: of an image the manifest, the config and the
// layers; of an index itself and that of each of its manifests for the platform, as
// a client pulls it. Layers that are not stored here are left out.
func (p *Protocol) Closure(ctx context.Context, who meta.Principal, v meta.Version, platform string) ([]meta.Blob, error) {
	w := walk{p: p, by: catalog.Caller{Who: who}, platform: platform, seen: map[digest.Digest]bool{}}
	some, err := w.version(ctx, v)
	if err != nil || !some {
		return nil, err
	}
	return w.blobs, nil
}

// walk gathers a closure.
type walk struct {
	p         *Protocol
	by        catalog.Caller
	platform  string
	seen      map[digest.Digest]bool
	manifests int
	blobs     []meta.Blob
}

// version takes a manifest in; some says that something of it is for the platform.
func (w *walk) version(ctx context.Context, v meta.Version) (some bool, _ error) {
	if w.manifests++; w.manifests > maxClosure {
		return false, fmt.Errorf("%s closes over more than %d manifests: %w", v.Name, maxClosure, meta.ErrTooLarge)
	}
	body, err := w.p.catalog.Document(ctx, w.by, &v)
	if err != nil {
		return false, err
	}
	var d struct {
		Config    *descriptor  `json:"config"`
		Layers    []descriptor `json:"layers"`
		Blobs     []descriptor `json:"blobs"`
		Manifests []struct {
			descriptor
			Platform *platform `json:"platform"`
		} `json:"manifests"`
	}
	if err := json.Unmarshal(body, &d); err != nil {
		return false, fmt.Errorf("manifest %s: %w: %w", v.Name, err, meta.ErrCorrupt)
	}
	some = len(d.Manifests) == 0
	for _, m := range d.Manifests {
		if !m.Platform.suits(w.platform) {
			continue
		}
		if !isManifestType(m.MediaType) {
			some = true
			if err := w.blob(ctx, v, m.descriptor); err != nil {
				return false, err
			}
			continue
		}
		image, _, err := w.p.catalog.Version(ctx, w.by, catalog.Package{Repo: v.Repo, Name: v.Package}, string(m.Digest))
		if err != nil {
			return false, err
		}
		its, err := w.version(ctx, image)
		if err != nil {
			return false, err
		}
		some = some || its
	}
	if !some {
		return false, nil
	}
	content := append(d.Layers, d.Blobs...)
	if d.Config != nil {
		content = append(content, *d.Config)
	}
	for _, c := range content {
		if err := w.blob(ctx, v, c); err != nil {
			return false, err
		}
	}
	return true, w.blob(ctx, v, descriptor{Digest: v.Digest})
}

func (w *walk) blob(ctx context.Context, v meta.Version, d descriptor) error {
	if w.seen[d.Digest] {
		return nil
	}
	w.seen[d.Digest] = true
	b, _, err := w.p.catalog.Blob(ctx, w.by, v.Repo, d.Digest)
	if errors.Is(err, meta.ErrNotFound) && nonDistributable(d.MediaType) {
		return nil
	}
	if err != nil {
		return err
	}
	w.blobs = append(w.blobs, b.Blob)
	return nil
}

// platform is what an index says of an entry (image-spec image-index.md).
type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Variant      string `json:"variant"`
}

// suits reports whether an entry is for a host of `os/arch[/variant]`. An entry that
// names no platform is for all; one of an unknown platform is an attestation, which
// who pulls does not fetch. A variant counts when both sides name one; that of
// arm64 is v8 where none is named.
func (p *platform) suits(host string) bool {
	if host == "" || p == nil || p.OS == "" && p.Architecture == "" {
		return true
	}
	os, rest, _ := strings.Cut(host, "/")
	arch, variant, _ := strings.Cut(rest, "/")
	own := p.Variant
	if arch == "arm64" {
		const standard = "v8"
		if variant == "" {
			variant = standard
		}
		if own == "" {
			own = standard
		}
	}
	return p.OS == os && p.Architecture == arch && (variant == "" || own == "" || variant == own)
}
