package maven

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// maxNewestBytes bounds a file that stands for the newest build of a snapshot upstream:
// unlike others it may change, so it is asked for as a document.
const maxNewestBytes = 4 << 30

// probe asks a proxy whether it has a package: any has metadata once one version was
// deployed.
func probe(pkg string) func(*meta.Repository) upstream.Want {
	group, artifact, _ := strings.Cut(pkg, ":")
	path := append(strings.Split(group, "."), artifact, metadataFile)
	want := upstream.Want{Path: escape(path), Kind: upstream.Document, Package: pkg}
	return func(*meta.Repository) upstream.Want { return want }
}

// escape joins the parts of a path as they are sent.
func escape(parts []string) string {
	escaped := make([]string, len(parts))
	for i, part := range parts {
		escaped[i] = url.PathEscape(part)
	}
	return strings.Join(escaped, "/")
}

// proxied serves what an upstream has. Released files and builds of snapshots never
// change there; metadata, and the newest build by the snapshot's own name, do.
func (p *Protocol) proxied(c *protocol.Call, repo *meta.Repository, t *target) error {
	ctx, by := c.R.Context(), caller(c)
	want := upstream.Want{Path: escape(append(t.dir[:len(t.dir):len(t.dir)], t.file)), Kind: upstream.Document}
	content := protocol.Content{Cache: protocol.Revalidate, Public: public(c)}
	switch {
	case t.metadata():
		want.Package, want.MaxBytes = t.metadataOf(), maxMetadataBytes
		content.MediaType = "application/xml"
	default:
		want.Package, want.Version = t.gav.pkg(), t.gav.version
		content.MediaType = mediaType(t.gav.extension)
		if t.gav.version == "" {
			want.Version, want.MaxBytes = t.gav.base, maxNewestBytes
		} else {
			want.Kind = upstream.File
			content.Cache = protocol.Immutable
		}
	}
	if t.sum != "" && !t.metadata() {
		want.Path, want.MaxBytes = want.Path+"."+t.sum, maxSumBytes
		content.MediaType = "text/plain"
	} else if want.Kind == upstream.File {
		sums, err := p.promised(c, repo, want)
		if err != nil {
			return err
		}
		want.Sums = sums
	}
	if !t.metadata() {
		return upstream.ServeFile(c, p.upstream, by, repo, want, content)
	}
	found, err := p.upstream.Fetch(ctx, by, repo, want)
	if errors.Is(err, meta.ErrDenied) {
		// To a client that asks several repositories a refusal is the end, an absence not.
		return fmt.Errorf("%w: %w", meta.ErrNotFound, err)
	}
	if err != nil {
		return err
	}
	if t.sum != "" {
		// The upstream's own would be of another moment than the document that is served.
		return p.sumOf(c, found, t.sum, content)
	}
	return upstream.Serve(c, p.upstream, found, content)
}

// metadataOf names the package that metadata is of, as rules see it.
func (t *target) metadataOf() string {
	if pkg, _, ok := t.snapshotOf(); ok {
		return pkg
	}
	if group, artifact, ok := t.artifactOf(); ok {
		return packageName(group, artifact)
	}
	return ""
}

// promised asks the upstream for its own checksum of a file: sha1, which nearly all
// repositories have, else sha512; none when it has neither.
func (p *Protocol) promised(c *protocol.Call, repo *meta.Repository, of upstream.Want) (map[string]string, error) {
	for _, algorithm := range []string{"sha1", "sha512"} {
		want := of
		want.Path, want.MaxBytes = of.Path+"."+algorithm, maxSumBytes
		found, err := p.upstream.Fetch(c.R.Context(), caller(c), repo, want)
		if errors.Is(err, meta.ErrUnavailable) {
			return nil, err
		}
		if err != nil {
			continue // absent, refused as some stores refuse what is absent, a page of HTML
		}
		body, err := p.upstream.Document(c.R.Context(), found, maxSumBytes)
		if err != nil {
			return nil, err
		}
		// A page that says «not found» with status 200 is no checksum.
		if sum, err := parseSum(body, algorithm); err == nil {
			return map[string]string{algorithm: sum}, nil
		}
	}
	return nil, nil
}

// sumOf serves a checksum of a document of the upstream.
func (p *Protocol) sumOf(c *protocol.Call, found *upstream.Found, algorithm string, content protocol.Content) error {
	r, err := p.upstream.Open(c.R.Context(), found)
	if err != nil {
		return err
	}
	defer r.Close()
	sums := newSums()
	if _, err := io.Copy(sums, r); err != nil {
		return fmt.Errorf("hash %s: %w", found.Record.Path, err)
	}
	sum := sums.hex()[algorithm]
	if algorithm == "sha256" {
		sum = found.Record.Digest.Encoded()
	}
	upstream.Describe(c, found)
	content.MediaType = "text/plain"
	return protocol.ServeBytes(c.W, c.R, []byte(sum), content)
}

// hosted lists the hosted repositories that a repository stands for.
func (p *Protocol) hosted(c *protocol.Call, by catalog.Caller) ([]meta.Repository, error) {
	if c.Repository.Kind == meta.KindHosted {
		return []meta.Repository{*c.Repository}, nil
	}
	members, _, err := p.catalog.Members(c.R.Context(), by, c.Repo)
	if err != nil {
		return nil, err
	}
	var hosted []meta.Repository
	for _, m := range members {
		if m.Kind == meta.KindHosted {
			hosted = append(hosted, m)
		}
	}
	return hosted, nil
}
