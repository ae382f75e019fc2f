// Package apt serves Debian archives to apt, as deb822 and the Debian repository format
// describe them.
//
//	/apt/<tenant>/<repository>/pool/<distribution>/<component>/<file>.deb   a package, PUT and GET
//	/apt/<tenant>/<repository>/dists/<distribution>/InRelease ...            the indexes
//	/apt/<tenant>/<repository>/key.asc                                        the key that signs them
//
// A package is its name in the control file, a version `<version>_<architecture>`
// without the epoch, as the file's name has it; so one that differs in its epoch alone is
// the same. The indexes of a distribution are one publication of that name (package
// publication): Release, signed inside and out, and Packages for each component and
// architecture, plain, as gzip and, up to a size, as xz, all to be had by-hash as well.
// Packages of all architectures are in each index and in binary-all.
//
// Start reading at Routes and put; deb.go reads packages, index.go makes the indexes,
// proxy.go passes on those of another archive, byte for byte, so that its own signature
// holds. The package starts no goroutines.
package apt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"golang.org/x/sync/semaphore"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/publication"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Format is the format of the repositories that this protocol serves.
const Format = "apt"

// mediaType is that of a .deb.
const mediaType = "application/vnd.debian.binary-package"

// Protocol is apt's over a catalog. It is safe for concurrent use.
type Protocol struct {
	catalog *catalog.Catalog
	engine  *upstream.Engine
	desk    publication.Desk
	// reading are the packages that are taken apart at a time: each holds a dictionary of up
	// to maxDictionary.
	reading *semaphore.Weighted
}

const maxReading = 2

var _ protocol.Protocol = (*Protocol)(nil)

// New returns the protocol over c, whose proxies ask by e. b builds the indexes; it is
// nil on an agent.
func New(c *catalog.Catalog, e *upstream.Engine, b *publication.Builder) *Protocol {
	return &Protocol{catalog: c, engine: e, desk: publication.Desk{Catalog: c, Builder: b}, reading: semaphore.NewWeighted(maxReading)}
}

// Format implements protocol.Protocol.
func (p *Protocol) Format() string { return Format }

// Routes implements protocol.Protocol.
func (p *Protocol) Routes() []protocol.Route {
	const root = "/apt/{tenant}/{repository}"
	return []protocol.Route{
		{Name: "apt_get", Method: http.MethodGet, Pattern: root + "/{path...}", Action: access.Pull, Place: protocol.Anywhere, Serve: p.get},
		{Name: "apt_put", Method: http.MethodPut, Pattern: root + "/{path...}", Action: access.Push, Place: protocol.AnyServer, Serve: p.put},
	}
}

// get answers with a document, a package or the key.
func (p *Protocol) get(c *protocol.Call) error {
	path := c.Params.Get("path")
	if c.Repository != nil && c.Repository.Kind == meta.KindProxy {
		return upstream.ServeTree(c, p.engine, publication.Caller(c), &tree, path)
	}
	top, rest, _ := strings.Cut(path, "/")
	switch top {
	case "dists":
		return p.document(c, path, rest)
	case "pool":
		return p.file(c, path, rest)
	case "key.asc":
		if rest == "" {
			return p.desk.Key(c)
		}
	}
	return fmt.Errorf("%.200q: there is dists/, pool/ and key.asc: %w", path, meta.ErrNotFound)
}

// document answers with a file below dists/.
func (p *Protocol) document(c *protocol.Call, path, rest string) error {
	if d, ok := byHash(path); ok {
		return p.desk.ByDigest(c, d)
	}
	dist, _, _ := strings.Cut(rest, "/")
	if !placeName.MatchString(dist) {
		return fmt.Errorf("distribution %.80q of %s: %w", dist, c.Repo, meta.ErrNotFound)
	}
	return p.desk.Document(c, dist, path)
}

// byHash returns the digest that a path `.../by-hash/SHA256/<hex>` names.
func byHash(path string) (digest.Digest, bool) {
	_, hex, ok := strings.Cut(path, "/by-hash/SHA256/")
	if !ok {
		return "", false
	}
	d, err := digest.Parse("sha256:" + hex)
	return d, err == nil
}

// file answers with a package of the pool.
func (p *Protocol) file(c *protocol.Call, path, rest string) error {
	_, name, err := parsePool(rest)
	if err != nil {
		// A path that nothing can be put under is not there.
		return fmt.Errorf("%w: %w", meta.ErrNotFound, err)
	}
	pkg, version, err := parseFile(name)
	if err != nil {
		return fmt.Errorf("%w: %w", meta.ErrNotFound, err)
	}
	return p.desk.File(c, pkg, version, path)
}

// summary is what the indexes show of a version.
type summary struct {
	Dist      string `cbor:"1,keyasint,omitempty"`
	Component string `cbor:"2,keyasint,omitempty"`
	// Control is the stanza of the package; "" when it is the version's file controlFile.
	Control string `cbor:"3,keyasint,omitempty"`
	// Architecture and Version are those of the control file.
	Architecture string `cbor:"4,keyasint,omitempty"`
	Version      string `cbor:"5,keyasint,omitempty"`
}

// controlFile is the path of a stanza that is too long for a summary.
const controlFile = "control"

// put publishes a package.
func (p *Protocol) put(c *protocol.Call) (err error) {
	at, name, err := target(c)
	if err != nil {
		return err
	}
	ctx, by := c.R.Context(), publication.Caller(c)
	repo, err := p.catalog.ForPush(ctx, by, c.Repo, Format, c.Repository)
	if err != nil {
		return err
	}
	stored, up, r, err := p.desk.Receive(c, repo.Ref)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, up.Close()) }()
	defer r.Close()
	text, err := p.read(ctx, r, stored.Blob.PlainBytes)
	if err != nil {
		return err
	}
	pkg, err := parseControl(text)
	if err != nil {
		return err
	}
	if name != pkg.fileName() {
		return fmt.Errorf("file %s holds %s %s for %s, which belongs into %s: %w", name, pkg.Package, pkg.Version, pkg.Architecture, pkg.fileName(), meta.ErrInvalid)
	}
	draft := catalog.Draft{
		Version: meta.Version{Package: pkg.Package, Name: pkg.plainVersion() + "_" + pkg.Architecture, MediaType: mediaType, State: meta.StateClosed},
		Content: []catalog.StoredFile{{Path: at.pool(name), MediaType: mediaType, Stored: stored}},
	}
	s := summary{Dist: at.Dist, Component: at.Component, Control: pkg.stanza, Architecture: pkg.Architecture, Version: pkg.Version}
	if draft.Version.Summary, err = codec.Marshal(s); err != nil {
		return fmt.Errorf("summary of %s: %w", name, err)
	}
	if len(draft.Version.Summary) > meta.MaxSummaryBytes {
		long, up, err := p.catalog.Ingest(ctx, by, repo.Ref, strings.NewReader(pkg.stanza), "")
		if err != nil {
			return err
		}
		defer up.Close()
		draft.Content = append(draft.Content, catalog.StoredFile{Path: controlFile, MediaType: "text/plain; charset=utf-8", Stored: long})
		s.Control = ""
		if draft.Version.Summary, err = codec.Marshal(s); err != nil {
			return fmt.Errorf("summary of %s: %w", name, err)
		}
	}
	published, err := p.catalog.Publish(ctx, by, repo.Ref, draft)
	if errors.Is(err, meta.ErrExists) {
		return fmt.Errorf("%s %s for %s is in %s already, or was, with other bytes or in another distribution: build it with a new version: %w",
			pkg.Package, pkg.Version, pkg.Architecture, repo.Ref, err)
	}
	if err != nil {
		return err
	}
	return p.desk.Done(c, repo.Ref, published, publication.Uploaded{
		Package: pkg.Package, Version: pkg.Version, Architecture: pkg.Architecture, Path: at.pool(name), Digest: stored.Blob.Digest, Size: stored.Blob.PlainBytes,
	})
}

// read is readDeb, of a few packages at a time.
func (p *Protocol) read(ctx context.Context, r io.ReadSeeker, size int64) ([]byte, error) {
	if err := p.reading.Acquire(ctx, 1); err != nil {
		return nil, fmt.Errorf("wait for memory to read a package: %w: %w", meta.ErrUnavailable, err)
	}
	defer p.reading.Release(1)
	return readDeb(r, size)
}

// target returns where an upload goes: pool/<dist>/<component>/<file>, or <file> and the
// rest in the query.
func target(c *protocol.Call) (place, string, error) {
	path := c.Params.Get("path")
	if rest, ok := strings.CutPrefix(path, "pool/"); ok && strings.Contains(rest, "/") {
		at, name, err := parsePool(rest)
		return at, name, errors.Join(err, checkFile(name))
	}
	name := strings.TrimPrefix(path, "pool/")
	query := c.R.URL.Query()
	at := place{query.Get("dist"), query.Get("component")}
	return at, name, errors.Join(checkFile(name), at.check())
}

func checkFile(name string) error {
	_, _, err := parseFile(name)
	return err
}

// readSummary returns what the indexes show of a version.
func readSummary(v *meta.Version, open func(path string) (io.ReadCloser, error)) (s summary, _ error) {
	fail := func(err error) error {
		return fmt.Errorf("summary of %s/%s %s: %w: %w", v.Repo, v.Package, v.Name, meta.ErrCorrupt, err)
	}
	if err := codec.Unmarshal(v.Summary, &s); err != nil {
		return s, fail(err)
	}
	if err := (place{s.Dist, s.Component}).check(); err != nil {
		return s, fail(err)
	}
	if s.Control != "" {
		return s, nil
	}
	r, err := open(controlFile)
	if err != nil {
		return s, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxControl))
	if err != nil {
		return s, fmt.Errorf("summary of %s/%s %s: %w", v.Repo, v.Package, v.Name, err)
	}
	s.Control = string(b)
	return s, nil
}

// WriteError implements protocol.Protocol: a line of text.
func (p *Protocol) WriteError(w http.ResponseWriter, _ *http.Request, err error) {
	publication.WriteError(w, err)
}

// Challenge implements protocol.Protocol: Basic.
func (p *Protocol) Challenge(w http.ResponseWriter, _ *http.Request, s protocol.Scope) {
	publication.Challenge(w, s)
}
