// Package rpm serves repositories of RPM packages to dnf and yum.
//
//	/rpm/<tenant>/<repository>/Packages/<file>.rpm   a package, PUT and GET
//	/rpm/<tenant>/<repository>/repodata/repomd.xml    the index of the metadata, .asc its signature
//	/rpm/<tenant>/<repository>/repodata/<sha256>-primary.xml.gz ...   the metadata
//	/rpm/<tenant>/<repository>/key.asc                 the key that signs it
//
// A package is its name, a version `<version>-<release>.<architecture>` without the
// epoch, as the file's name has it. The metadata of a repository is one publication
// (package publication): primary, filelists and other, under names that hold their
// sha256, so that a client with an older repomd.xml finds what that names. What a
// package's header says is turned into its elements of the three documents when it comes
// in, and building puts them together.
//
// Start reading at Routes and put; header.go reads packages, fragment.go turns a header
// into XML, index.go makes the metadata, proxy.go passes on that of another repository
// byte for byte. The package starts no goroutines.
package rpm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/klauspost/compress/gzip"

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
const Format = "rpm"

const mediaType = "application/x-rpm"

// set is the name of a repository's one publication.
const set = "repodata"

// Protocol is dnf's over a catalog. It is safe for concurrent use.
type Protocol struct {
	catalog *catalog.Catalog
	engine  *upstream.Engine
	desk    publication.Desk
}

var _ protocol.Protocol = (*Protocol)(nil)

// New returns the protocol over c, whose proxies ask by e. b builds the metadata; it is
// nil on an agent.
func New(c *catalog.Catalog, e *upstream.Engine, b *publication.Builder) *Protocol {
	return &Protocol{catalog: c, engine: e, desk: publication.Desk{Catalog: c, Builder: b}}
}

// Format implements protocol.Protocol.
func (p *Protocol) Format() string { return Format }

// Routes implements protocol.Protocol.
func (p *Protocol) Routes() []protocol.Route {
	const pattern = "/rpm/{tenant}/{repository}/{path...}"
	return []protocol.Route{
		{Name: "rpm_get", Method: http.MethodGet, Pattern: pattern, Action: access.Pull, Place: protocol.Anywhere, Serve: p.get},
		{Name: "rpm_put", Method: http.MethodPut, Pattern: pattern, Action: access.Push, Place: protocol.AnyServer, Serve: p.put},
	}
}

func (p *Protocol) get(c *protocol.Call) error {
	path := c.Params.Get("path")
	if c.Repository != nil && c.Repository.Kind == meta.KindProxy {
		return upstream.ServeTree(c, p.engine, publication.Caller(c), &tree, path)
	}
	top, rest, _ := strings.Cut(path, "/")
	switch {
	case top == set:
		if d, ok := named(rest); ok {
			return p.desk.ByDigest(c, d)
		}
		return p.desk.Document(c, set, path)
	case top == pool:
		n, err := parseFile(rest)
		if err != nil {
			// A path that nothing can be put under is not there.
			return fmt.Errorf("%w: %w", meta.ErrNotFound, err)
		}
		return p.desk.File(c, n.Name, n.version(), path)
	case path == "key.asc":
		return p.desk.Key(c)
	}
	return fmt.Errorf("%.200q: there is repodata/, Packages/ and key.asc: %w", path, meta.ErrNotFound)
}

// named returns the digest in the name of a document `<sha256>-primary.xml.gz`.
func named(name string) (digest.Digest, bool) {
	hex, _, ok := strings.Cut(name, "-")
	if !ok || len(hex) != 64 {
		return "", false
	}
	d, err := digest.Parse("sha256:" + hex)
	return d, err == nil
}

// pool is the folder that packages are in.
const pool = "Packages"

// parseFile reads the name of a package's file: `hello-2.10-3.fc40.x86_64.rpm`.
func parseFile(name string) (nevra, error) {
	var n nevra
	base, ok := strings.CutSuffix(name, ".rpm")
	dot := strings.LastIndexByte(base, '.')
	if ok && dot > 0 {
		n.Arch, base = base[dot+1:], base[:dot]
		if at := strings.LastIndexByte(base, '-'); at > 0 {
			n.Release, base = base[at+1:], base[:at]
			if at := strings.LastIndexByte(base, '-'); at > 0 {
				n.Version, n.Name = base[at+1:], base[:at]
			}
		}
	}
	if n.check() != nil {
		return n, fmt.Errorf("file %.200q: a package's file is <name>-<version>-<release>.<architecture>.rpm: %w", name, meta.ErrInvalid)
	}
	return n, nil
}

// longSummary is the path of fragments that are too long for a summary.
const longSummary = "fragments.gz"

// put publishes a package.
func (p *Protocol) put(c *protocol.Call) (err error) {
	name := strings.TrimPrefix(c.Params.Get("path"), pool+"/")
	if _, err := parseFile(name); err != nil {
		return fmt.Errorf("put to Packages/<file>.rpm: %w", err)
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
	path := pool + "/" + name
	n, packed, err := p.inspect(ctx, r, stored.Blob, path)
	if err != nil {
		return err
	}
	draft := catalog.Draft{
		Version: meta.Version{Package: n.Name, Name: n.version(), MediaType: mediaType, State: meta.StateClosed, Summary: packed},
		Content: []catalog.StoredFile{{Path: path, MediaType: mediaType, Stored: stored}},
	}
	if len(packed) > meta.MaxSummaryBytes {
		long, up, err := p.catalog.Ingest(ctx, by, repo.Ref, bytes.NewReader(packed), "")
		if err != nil {
			return err
		}
		defer up.Close()
		draft.Version.Summary = nil
		draft.Content = append(draft.Content, catalog.StoredFile{Path: longSummary, MediaType: "application/gzip", Stored: long})
	}
	published, err := p.catalog.Publish(ctx, by, repo.Ref, draft)
	if errors.Is(err, meta.ErrExists) {
		return fmt.Errorf("%s %s is in %s already, or was, with other bytes: build it with a new version or release: %w", n.Name, n.version(), repo.Ref, err)
	}
	if err != nil {
		return err
	}
	return p.desk.Done(c, repo.Ref, published, publication.Uploaded{
		Package: n.Name, Version: n.Version + "-" + n.Release, Architecture: n.Arch, Path: path, Digest: stored.Blob.Digest, Size: stored.Blob.PlainBytes,
	})
}

// inspect reads an .rpm that is to be at path, and returns what it is called and the
// summary of its fragments.
//
// Errors: meta.ErrInvalid; of r.
func (p *Protocol) inspect(ctx context.Context, r io.Reader, b meta.Blob, path string) (n nevra, packed []byte, _ error) {
	release := func() {}
	defer func() { release() }()
	f, err := readRPM(r, b.PlainBytes, func(bytes int64) error {
		// What is read is turned into about as much again, a few times.
		done, err := p.catalog.Reserve(ctx, outgrown*bytes)
		if err == nil {
			release = done
		}
		return err
	})
	if err != nil {
		return n, nil, err
	}
	if n, err = f.names(); err != nil {
		return n, nil, err
	}
	if name := strings.TrimPrefix(path, pool+"/"); name != n.fileName() {
		return n, nil, fmt.Errorf("file %s holds %s, which belongs into %s: %w", name, n.Name, n.fileName(), meta.ErrInvalid)
	}
	parts, err := f.render(n, b.Digest, path)
	if err != nil {
		return n, nil, err
	}
	packed, err = pack(parts)
	return n, packed, err
}

// pack makes a summary of fragments.
func pack(f fragments) ([]byte, error) {
	b, err := codec.Marshal(f)
	if err != nil {
		return nil, fmt.Errorf("pack the metadata of a package: %w", err)
	}
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	if _, err := z.Write(b); err != nil {
		return nil, fmt.Errorf("pack the metadata of a package: %w", err)
	}
	if err := z.Close(); err != nil {
		return nil, fmt.Errorf("pack the metadata of a package: %w", err)
	}
	return buf.Bytes(), nil
}

// unpack reads what pack made.
//
// Errors: meta.ErrCorrupt.
func unpack(r io.Reader) (f fragments, _ error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return f, fmt.Errorf("metadata of a package: %w: %w", meta.ErrCorrupt, err)
	}
	b, err := io.ReadAll(io.LimitReader(z, 3*maxFragments+1024))
	if err != nil {
		return f, fmt.Errorf("metadata of a package: %w: %w", meta.ErrCorrupt, err)
	}
	if err := codec.Unmarshal(b, &f); err != nil {
		return f, fmt.Errorf("metadata of a package: %w: %w", meta.ErrCorrupt, err)
	}
	return f, nil
}

// WriteError implements protocol.Protocol: a line of text.
func (p *Protocol) WriteError(w http.ResponseWriter, _ *http.Request, err error) {
	publication.WriteError(w, err)
}

// Challenge implements protocol.Protocol: Basic.
func (p *Protocol) Challenge(w http.ResponseWriter, _ *http.Request, s protocol.Scope) {
	publication.Challenge(w, s)
}
