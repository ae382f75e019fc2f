package npm

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/rendered"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// documentOf is what to ask an upstream for a package: the full document, since only
// that has the times of the versions.
func documentOf(name string) upstream.Want {
	return upstream.Want{Path: url.PathEscape(name), Kind: upstream.Document, Package: name, Accept: fullType}
}

// maxTimesBytes bounds the times of an upstream's document.
const maxTimesBytes = 16 << 20

// settled returns the instant before which a version must have been released for a
// proxy to show it, in whole hours so that one document serves for that long; the zero
// time when all are shown.
func settled(repo *meta.Repository, now time.Time) time.Time {
	if repo.Upstream == nil || repo.Upstream.MinReleaseAge <= 0 {
		return time.Time{}
	}
	return now.Truncate(time.Hour).Add(-repo.Upstream.MinReleaseAge)
}

// upstreamHead is what an upstream's document says beside its versions.
type upstreamHead struct {
	tags  map[string]string
	times map[string]string
}

// head reads it.
func (s *source) head(ctx context.Context) (h upstreamHead, _ error) {
	err := s.walk(ctx, func(sc *scanner, key string) error {
		into, limit := any(&h.tags), maxTagsBytes
		switch key {
		case "dist-tags":
		case "time":
			into, limit = &h.times, maxTimesBytes
		default:
			return sc.skip()
		}
		raw, err := sc.value(limit)
		if err != nil {
			return err
		}
		// A time that is no text (of unpublished packages) is none.
		if err := json.Unmarshal(raw, into); err != nil && key != "time" {
			return malformed("%s: %v", key, err)
		}
		return nil
	})
	return h, err
}

// walk goes through the fields of the upstream's document.
func (s *source) walk(ctx context.Context, field func(*scanner, string) error) error {
	r, err := s.p.proxies.Open(ctx, s.found)
	if err != nil {
		return err
	}
	defer r.Close()
	sc := newScanner(r)
	if err = sc.object(func(key string) error { return field(sc, key) }); err == nil {
		err = sc.end()
	}
	if errors.Is(err, meta.ErrInvalid) || errors.Is(err, meta.ErrTooLarge) {
		return fmt.Errorf("the upstream's document of %s: %w: %w", s.name, protocol.ErrUpstream, err)
	}
	return err
}

// upstreamVersions goes through the versions that the proxy shows.
func (s *source) upstreamVersions(ctx context.Context, h upstreamHead, each func(version string, m fields) error) error {
	before := settled(s.proxy, time.Now())
	return s.walk(ctx, func(sc *scanner, key string) error {
		if key != "versions" {
			return sc.skip()
		}
		return sc.object(func(version string) error {
			raw, err := sc.value(maxManifestBytes)
			if err != nil {
				return err
			}
			if !before.IsZero() && !released(h.times[version], before) {
				return nil
			}
			m, err := parseFields(raw)
			if err != nil {
				return fmt.Errorf("version %s: %w", version, err)
			}
			return each(version, m)
		})
	})
}

// released reports whether a version was out before an instant. One without a time is not.
func released(at string, before time.Time) bool {
	t, ok := parseStamp(at)
	return ok && !t.After(before)
}

// renderUpstream writes the upstream's document with the tarballs' URLs those of the
// repository that is asked.
func (s *source) renderUpstream(ctx context.Context, w io.Writer, v view) error {
	h, err := s.head(ctx)
	if err != nil {
		return err
	}
	d, err := newWriter(w, s.name, h.tags, v)
	if err != nil {
		return err
	}
	err = s.upstreamVersions(ctx, h, func(version string, m fields) error {
		if err := s.rewrite(m, v.base, version); err != nil {
			return err
		}
		return d.version(version, m, h.times[version])
	})
	if err != nil {
		return err
	}
	return d.end("", h.times["created"], h.times["modified"])
}

// rewrite points a manifest's tarball at the repository that is asked; all else that
// dist says, signatures too, stays.
func (s *source) rewrite(m fields, base, version string) error {
	dist, err := parseFields(m["dist"])
	if err != nil {
		dist = fields{}
	}
	if err := dist.set("tarball", tarballURL(base, s.name, version)); err != nil {
		return err
	}
	return m.set("dist", dist)
}

// balls is the view of an upstream's document in which tarballs are looked up: a line of
// JSON for each version.
const ballsView = "tarballs"

// ball is where an upstream has a tarball, and what its bytes must be.
type ball struct {
	Version   string `json:"v"`
	URL       string `json:"u"`
	Integrity string `json:"i,omitempty"`
	Shasum    string `json:"s,omitempty"`
}

// renderBalls writes them.
func (s *source) renderBalls(ctx context.Context, w io.Writer) error {
	h, err := s.head(ctx)
	if err != nil {
		return err
	}
	out := json.NewEncoder(w)
	return s.upstreamVersions(ctx, h, func(version string, m fields) error {
		d := m.dist()
		return out.Encode(ball{version, d.Tarball, d.Integrity, d.Shasum})
	})
}

// ball looks one up.
//
// Errors: meta.ErrNotFound, also for what is too young.
func (s *source) ball(ctx context.Context, version string) (b ball, _ error) {
	doc, err := s.kept(ctx, rendered.Key{Variant: ballsView}, func(w io.Writer) error { return s.renderBalls(ctx, w) })
	if err != nil {
		return b, err
	}
	r, err := doc.Open()
	if err != nil {
		return b, err
	}
	defer r.Close()
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxManifestBytes)
	for lines.Scan() {
		b = ball{} // a line that does not say a sum leaves the one before it
		if err := json.Unmarshal(lines.Bytes(), &b); err != nil {
			return b, fmt.Errorf("tarballs of %s: %w", s.name, err)
		}
		if b.Version == version {
			return b, nil
		}
	}
	if err := lines.Err(); err != nil {
		return b, err
	}
	return b, fmt.Errorf("version %s of %s: the upstream has none, or it is younger than the repository allows: %w", version, s.name, meta.ErrNotFound)
}

// want returns what to ask the upstream for a tarball.
func (b ball) want(name, base string) upstream.Want {
	w := upstream.Want{Path: b.URL, Kind: upstream.File, Package: name, Version: b.Version, MaxBytes: maxTarballBytes, Sums: map[string]string{}}
	if rest, ok := strings.CutPrefix(b.URL, strings.TrimSuffix(base, "/")+"/"); ok {
		w.Path = rest
	}
	for _, one := range strings.Fields(b.Integrity) { // Subresource Integrity, section 3.5
		algorithm, encoded, _ := strings.Cut(one, "-")
		encoded, _, _ = strings.Cut(encoded, "?")
		raw, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil || w.Sums[algorithm] != "" {
			continue
		}
		switch algorithm {
		case "sha512", "sha384", "sha256", "sha1":
			w.Sums[algorithm] = hex.EncodeToString(raw)
		}
		if algorithm == "sha512" {
			w.Digest, _ = digest.Parse("sha512:" + hex.EncodeToString(raw)) // malformed is unknown
		}
	}
	if b.Shasum != "" {
		w.Sums["sha1"] = strings.ToLower(b.Shasum)
	}
	return w
}

func (s *source) upstreamTarball(c *protocol.Call, by catalog.Caller, version string) error {
	b, err := s.ball(c.R.Context(), version)
	if err != nil {
		return err
	}
	return upstream.ServeFile(c, s.p.proxies, by, s.proxy, b.want(s.name, s.proxy.Upstream.URL),
		protocol.Content{MediaType: tarballType, Cache: protocol.Immutable, Public: public(c)})
}

func (s *source) upstreamTags(ctx context.Context) (map[string]string, meta.AsOf, error) {
	h, err := s.head(ctx)
	if err != nil {
		return nil, s.found.AsOf, err
	}
	w, err := newWriter(io.Discard, s.name, h.tags, view{})
	if err != nil {
		return nil, s.found.AsOf, err
	}
	if err := s.upstreamVersions(ctx, h, func(version string, m fields) error { return w.version(version, m, "") }); err != nil {
		return nil, s.found.AsOf, err
	}
	return w.present, s.found.AsOf, w.end("", "", "")
}

// upstreamVersion serves the manifest of a version, or of what a tag names.
func (s *source) upstreamVersion(c *protocol.Call, version string) error {
	ctx := c.R.Context()
	h, err := s.head(ctx)
	if err != nil {
		return err
	}
	if !isVersion(version) {
		tags, _, err := s.upstreamTags(ctx)
		if err != nil {
			return err
		}
		version = tags[version]
	}
	var one fields
	err = s.upstreamVersions(ctx, h, func(v string, m fields) error {
		if v == version {
			one = m
		}
		return nil
	})
	if err != nil {
		return err
	}
	if one == nil {
		return fmt.Errorf("version %s of %s: %w", version, s.name, meta.ErrNotFound)
	}
	if err := s.rewrite(one, baseOf(c), version); err != nil {
		return err
	}
	raw, err := marshal(one)
	if err != nil {
		return err
	}
	upstream.Describe(c, s.found)
	return protocol.ServeBytes(c.W, c.R, raw, protocol.Content{MediaType: fullType, Cache: protocol.Revalidate, Public: public(c)})
}
