package cargo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Bounds of what an upstream answers.
const (
	maxConfigBytes = 64 << 10
	maxIndexBytes  = 64 << 20
)

func wantIndex(name string) upstream.Want {
	return upstream.Want{Path: indexPath(name), Package: normalize(name), MaxBytes: maxIndexBytes}
}

// entry is what is read of an upstream's line; the rest of it passes as it is.
type entry struct {
	Name    string `json:"name"`
	Vers    string `json:"vers"`
	Cksum   string `json:"cksum"`
	PubTime string `json:"pubtime"`
}

func minAge(repo *meta.Repository) time.Duration {
	if repo.Upstream == nil {
		return 0
	}
	return repo.Upstream.MinReleaseAge
}

// young says that a version is younger than the proxy's rule wants; one without a time is
// not.
func (e *entry) young(age time.Duration) bool {
	if age == 0 {
		return false
	}
	since, err := time.Parse(time.RFC3339, e.PubTime)
	return err == nil && time.Since(since) < age
}

// fetchIndex passes on the lines of a crate, without those of versions that are too young.
func (p *Protocol) fetchIndex(c *protocol.Call, repo *meta.Repository, name string) error {
	ctx, by := c.R.Context(), caller(c)
	f, err := p.upstream.Fetch(ctx, by, repo, wantIndex(name))
	if err != nil {
		return err
	}
	content := protocol.Content{MediaType: textType, Cache: protocol.Revalidate, Public: public(c)}
	age := minAge(repo)
	if age == 0 {
		return upstream.Serve(c, p.upstream, f, content)
	}
	release, err := p.catalog.Reserve(ctx, f.Record.Size)
	if err != nil {
		return err
	}
	defer release()
	var out bytes.Buffer
	err = p.lines(ctx, f, func(text []byte) (bool, error) {
		var e entry
		if json.Unmarshal(text, &e) == nil && !e.young(age) {
			out.Write(text)
			out.WriteByte('\n')
		}
		return false, nil
	})
	if err != nil {
		return err
	}
	upstream.Describe(c, f)
	return protocol.ServeBytes(c.W, c.R, out.Bytes(), content)
}

// lines reads the lines of an index file, until one is all that was wanted.
func (p *Protocol) lines(ctx context.Context, f *upstream.Found, each func([]byte) (enough bool, err error)) error {
	r, err := p.upstream.Open(ctx, f)
	if err != nil {
		return err
	}
	defer r.Close()
	return scan(r, each)
}

// scan is lines of a reader; blank ones are left out.
func scan(r io.Reader, each func([]byte) (enough bool, err error)) error {
	s := bufio.NewScanner(r)
	s.Buffer(nil, maxLineBytes)
	for s.Scan() {
		if len(bytes.TrimSpace(s.Bytes())) == 0 {
			continue
		}
		if enough, err := each(s.Bytes()); err != nil || enough {
			return err
		}
	}
	if err := s.Err(); errors.Is(err, bufio.ErrTooLong) {
		return fmt.Errorf("the upstream's index has a line of over %d bytes: %w", maxLineBytes, protocol.ErrUpstream)
	} else if err != nil {
		return fmt.Errorf("read the upstream's index: %w", err)
	}
	return nil
}

// fetchCrate passes on a crate, whose checksum is in the upstream's index.
func (p *Protocol) fetchCrate(c *protocol.Call, repo *meta.Repository, name, version string) error {
	ctx, by := c.R.Context(), caller(c)
	e, err := p.entryOf(ctx, by, repo, name, version)
	if err != nil {
		return err
	}
	if e.young(minAge(repo)) {
		return fmt.Errorf("crate %s %s was published on %s, and proxy repository %s has a minimum release age of %s: take an earlier version, or wait: %w",
			name, version, e.PubTime, repo.Ref, minAge(repo), meta.ErrDenied)
	}
	sum, err := digest.Parse("sha256:" + e.Cksum)
	if err != nil {
		return fmt.Errorf("the upstream's index has no checksum of %s %s: %w", name, version, protocol.ErrUpstream)
	}
	at, err := p.downloadPath(ctx, by, repo, e)
	if err != nil {
		return err
	}
	w := upstream.Want{Path: at, Kind: upstream.File, Package: normalize(name), Version: version, Digest: sum, MaxBytes: maxCrateBytes}
	return upstream.ServeFile(c, p.upstream, by, repo, w, protocol.Content{MediaType: crateType, Cache: protocol.Immutable, Public: public(c)})
}

// entryOf finds a version in the upstream's index.
//
// Errors: meta.ErrNotFound; as upstream.Engine.Fetch has them.
func (p *Protocol) entryOf(ctx context.Context, by catalog.Caller, repo *meta.Repository, name, version string) (*entry, error) {
	f, err := p.upstream.Fetch(ctx, by, repo, wantIndex(strings.ToLower(name)))
	if err != nil {
		return nil, err
	}
	var found *entry
	quoted := []byte(`"` + version + `"`)
	err = p.lines(ctx, f, func(text []byte) (bool, error) {
		if !bytes.Contains(text, quoted) {
			return false, nil
		}
		var e entry
		if json.Unmarshal(text, &e) == nil && e.Vers == version && strings.EqualFold(e.Name, name) {
			found = &e
		}
		return found != nil, nil
	})
	if err == nil && found == nil {
		err = fmt.Errorf("crate %s %s: %w", name, version, meta.ErrNotFound)
	}
	return found, err
}

// downloadPath returns where the upstream has a crate, by its config.json.
func (p *Protocol) downloadPath(ctx context.Context, by catalog.Caller, repo *meta.Repository, e *entry) (string, error) {
	f, err := p.upstream.Fetch(ctx, by, repo, upstream.Want{Path: "config.json", MaxBytes: maxConfigBytes})
	if err != nil {
		return "", fmt.Errorf("config.json of the upstream: %w", err)
	}
	b, err := p.upstream.Document(ctx, f, maxConfigBytes)
	if err != nil {
		return "", err
	}
	return expand(b, e)
}

// expand makes the address of a crate of a config.json (the book, «Index Configuration»).
//
// Errors: protocol.ErrUpstream.
func expand(config []byte, e *entry) (string, error) {
	var c configuration
	if err := json.Unmarshal(config, &c); err != nil || c.DL == "" {
		return "", fmt.Errorf("config.json of the upstream says not where crates are: %w", protocol.ErrUpstream)
	}
	prefix := func(name string) string {
		switch len(name) {
		case 1, 2:
			return fmt.Sprint(len(name))
		case 3:
			return "3/" + name[:1]
		}
		return name[:2] + "/" + name[2:4]
	}
	if checkName(e.Name) != nil {
		return "", fmt.Errorf("the upstream's index has a crate named %.100q: %w", e.Name, protocol.ErrUpstream)
	}
	at := strings.NewReplacer(
		"{crate}", e.Name, "{version}", url.PathEscape(e.Vers), "{prefix}", prefix(e.Name), "{lowerprefix}", prefix(strings.ToLower(e.Name)), "{sha256-checksum}", e.Cksum,
	).Replace(c.DL)
	if at == c.DL {
		at = strings.TrimSuffix(c.DL, "/") + "/" + e.Name + "/" + url.PathEscape(e.Vers) + "/download"
	}
	return at, nil
}
