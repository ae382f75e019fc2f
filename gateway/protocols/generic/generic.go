// Package generic serves plain files: what curl, wget and aria2 can put and get.
//
//	/generic/<tenant>/<repository>/<path>     a file
//	/generic/<tenant>/<repository>/<path>/    a listing
//	/generic/<tenant>/<repository>/<path>/.uploads/<upload>    a session that fills it
//
// It is the smallest protocol, and shows what one has to do: declare routes and
// their actions (Routes), turn uploads into a draft version (put), render
// listings (list.go), and map errors (errors.go). A package is a path, at most
// 255 bytes; a version is the sha256 of its bytes; the alias `current` says which
// version the path serves, and moves with every PUT unless the repository is
// immutable. Older versions stay readable by `?version=<digest>`, the moves of
// the path by `?history`. What is too large for one request comes in pieces
// (uploads.go).
//
// Conditions follow RFC 9110 (If-Match, If-None-Match with `*` for «only if it is
// not there»), ranges too; checksums are taken from and given in Repr-Digest,
// Content-Digest (RFC 9530), Digest (RFC 3230) and X-Checksum-Sha256. The package
// starts no goroutines.
package generic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"path"
	"strings"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Format is the format of the repositories that this protocol serves.
const Format = "generic"

// current is the alias of what a path serves.
const current = "current"

// Protocol is the generic protocol over a catalog. It is safe for concurrent use.
type Protocol struct {
	catalog *catalog.Catalog
	proxies *upstream.Engine
}

var _ protocol.Protocol = (*Protocol)(nil)

// New returns the protocol over c; proxies gets what upstreams have.
func New(c *catalog.Catalog, proxies *upstream.Engine) *Protocol {
	return &Protocol{catalog: c, proxies: proxies}
}

// Format implements protocol.Protocol.
func (p *Protocol) Format() string { return Format }

// Routes implements protocol.Protocol. The route for GET serves HEAD too.
func (p *Protocol) Routes() []protocol.Route {
	const pattern = "/generic/{tenant}/{repository}/{path...}"
	const session = pattern + "/" + uploads + "/{upload}"
	return []protocol.Route{
		{Name: "generic_get", Method: http.MethodGet, Pattern: pattern, Action: access.Pull, Place: protocol.Anywhere, Serve: p.get},
		{Name: "generic_put", Method: http.MethodPut, Pattern: pattern, Action: access.Push, Place: protocol.AnyServer, Serve: p.put},
		{Name: "generic_upload_begin", Method: http.MethodPost, Pattern: pattern, Action: access.Push, Place: protocol.AnyServer, Serve: p.beginUpload},
		{Name: "generic_upload_status", Method: http.MethodGet, Pattern: session, Action: access.Push, Place: protocol.Owner, Serve: p.uploadStatus},
		{Name: "generic_upload_append", Method: http.MethodPatch, Pattern: session, Action: access.Push, Place: protocol.Owner, Serve: p.appendUpload},
		{Name: "generic_upload_commit", Method: http.MethodPut, Pattern: session, Action: access.Push, Place: protocol.Owner, Serve: p.commitUpload},
		{Name: "generic_upload_cancel", Method: http.MethodDelete, Pattern: session, Action: access.Push, Place: protocol.Owner, Serve: p.cancelUpload},
		{Name: "generic_delete", Method: http.MethodDelete, Pattern: pattern, Action: access.Delete, Place: protocol.AnyServer, Serve: p.delete},
	}
}

func caller(c *protocol.Call) catalog.Caller {
	return catalog.Caller{Who: c.Who, Origin: c.Origin(), After: c.After, Asked: c.Asked, Absent: c.Absent()}
}

// file returns the package of a file's path.
//
// Errors: meta.ErrInvalid.
func file(c *protocol.Call) (catalog.Package, error) {
	name := c.Params.Get("path")
	if name == "" || strings.HasSuffix(name, "/") {
		return catalog.Package{}, fmt.Errorf("%q is a directory, name a file: %w", name, meta.ErrInvalid)
	}
	if err := meta.CheckPath(name); err != nil {
		return catalog.Package{}, err
	}
	return catalog.Package{Repo: c.Repo, Name: name}, meta.CheckPackage(name)
}

func (p *Protocol) get(c *protocol.Call) error {
	name := c.Params.Get("path")
	if name == "" || strings.HasSuffix(name, "/") {
		return p.list(c, name)
	}
	pkg, err := file(c)
	if err != nil {
		// A path that nothing can be put under is not there.
		return fmt.Errorf("%w: %w", meta.ErrNotFound, err)
	}
	sources, err := p.sources(c, pkg.Name)
	if err != nil {
		return err
	}
	for i := range sources {
		if sources[i].Kind == meta.KindProxy {
			return p.proxied(c, &sources[i], pkg.Name)
		}
		pkg.Repo = sources[i].Ref
		if err = p.hosted(c, pkg); !errors.Is(err, meta.ErrNotFound) {
			return err
		}
	}
	return err
}

// hosted answers with what is published under a path.
func (p *Protocol) hosted(c *protocol.Call, pkg catalog.Package) error {
	query := c.R.URL.Query()
	if query.Has("history") {
		return p.history(c, pkg)
	}
	ctx, by := c.R.Context(), caller(c)
	var v meta.Version
	var asOf meta.AsOf
	var err error
	content := protocol.Content{Cache: protocol.Revalidate, Public: public(c)}
	if want := query.Get("version"); want != "" {
		content.Cache = protocol.Immutable
		v, asOf, err = p.catalog.Version(ctx, by, pkg, want)
		content.Modified = v.PublishTime.Std()
	} else {
		a, at, e := p.catalog.Resolve(ctx, by, pkg, current)
		v, asOf, err = a.Version, at, e
		content.Modified = a.Alias.MovedAt.Std()
	}
	if err != nil {
		return err
	}
	b, _, err := p.catalog.Blob(ctx, by, pkg.Repo, v.Digest)
	if err != nil {
		return err
	}
	c.AsOf(asOf)
	h := c.W.Header()
	setChecksums(h, v.Digest)
	guard(c)
	content.Size, content.MediaType, content.ETag = v.Size, v.MediaType, protocol.ETag(v.Digest)
	content.Open = func(ctx context.Context) (io.ReadSeekCloser, error) { return p.catalog.Open(ctx, b.Blob) }
	return protocol.Serve(c.W, c.R, content)
}

// stored is what a PUT answers.
type stored struct {
	Path      string        `json:"path"`
	Digest    digest.Digest `json:"digest"`
	Size      int64         `json:"size"`
	MediaType string        `json:"media_type,omitempty"`
}

func (p *Protocol) put(c *protocol.Call) error {
	pkg, err := file(c)
	if err != nil {
		return err
	}
	sums, err := checksums(c.R.Header)
	if err != nil {
		return err
	}
	ctx, by := c.R.Context(), caller(c)
	target, err := p.target(c, meta.ActionPush)
	if err != nil {
		return err
	}
	pkg.Repo = target.Ref
	// Conditions are judged before the body is asked for, and hold when it has come:
	// the publish is refused if the path changed in between.
	base, err := p.base(ctx, by, pkg, c.R)
	if err != nil {
		return err
	}
	up, err := p.catalog.Begin(ctx, by, target.Ref, sums.sha512 != "")
	if err != nil {
		return err
	}
	defer up.Close()
	content, err := receive(ctx, c, up, sums)
	if err != nil {
		return err
	}
	return p.publish(c, target, pkg, base, content)
}

// publish makes stored content what a path of the target serves, and answers.
func (p *Protocol) publish(c *protocol.Call, target meta.Repository, pkg catalog.Package, base *uint64, content catalog.Stored) error {
	ctx, by := c.R.Context(), caller(c)
	mediaType := mediaTypeOf(c.R.Header.Get("Content-Type"))
	published, err := p.catalog.Publish(ctx, by, target.Ref, catalog.Draft{
		Version: meta.Version{Package: pkg.Name, MediaType: mediaType, State: meta.StateClosed},
		Content: []catalog.StoredFile{{Path: path.Base(pkg.Name), MediaType: mediaType, Stored: content}},
		Aliases: []string{current},
		Base:    base,
	})
	switch {
	case base != nil && errors.Is(err, meta.ErrConflict):
		return fmt.Errorf("%s changed meanwhile: %w", pkg, protocol.ErrPrecondition)
	case errors.Is(err, meta.ErrExists) && target.Immutable:
		return fmt.Errorf("%s has, or had, other bytes and %s is immutable: put the new ones under another path: %w", pkg.Name, target.Ref, meta.ErrExists)
	case err != nil:
		return err
	}
	v := published.Version
	c.Committed(published.Token)
	h := c.W.Header()
	setChecksums(h, v.Digest)
	h.Set("Etag", protocol.ETag(v.Digest))
	status := http.StatusOK
	if published.Created {
		h.Set("Location", fileURL(c))
		status = http.StatusCreated
	}
	return protocol.WriteJSON(c.W, status, stored{Path: pkg.Name, Digest: v.Digest, Size: v.Size, MediaType: v.MediaType})
}

// base judges the conditions of a write and returns the revision that they were
// judged at; nil when there are none.
func (p *Protocol) base(ctx context.Context, by catalog.Caller, pkg catalog.Package, r *http.Request) (*uint64, error) {
	if r.Header.Get("If-None-Match") == "" && r.Header.Get("If-Match") == "" && r.Header.Get("If-Unmodified-Since") == "" {
		return nil, nil
	}
	a, revision, found, err := p.catalog.Head(ctx, by, pkg, current)
	if err != nil {
		return nil, err
	}
	etag := ""
	if found {
		etag = protocol.ETag(a.Version.Digest)
	}
	if _, err := protocol.Preconditions(r, etag, a.Alias.MovedAt.Std()); err != nil {
		return nil, fmt.Errorf("%s: %w", pkg, err)
	}
	return &revision, nil
}

// receive stores the body and checks it against every checksum that was given.
func receive(ctx context.Context, c *protocol.Call, up *catalog.Upload, sums sums) (catalog.Stored, error) {
	cancel := func(err error) error { return errors.Join(err, up.Cancel(context.WithoutCancel(ctx))) }
	if _, err := up.Append(ctx, protocol.Body(c.R)); err != nil {
		return catalog.Stored{}, cancel(err)
	}
	s, err := up.Store(ctx, sums.sha256)
	if err != nil {
		return s, cancel(err)
	}
	if sums.sha512 != "" && s.Blob.SHA512 != sums.sha512 {
		return s, &digest.MismatchError{Want: sums.sha512, Got: s.Blob.SHA512}
	}
	return s, nil
}

func mediaTypeOf(contentType string) string {
	t, params, err := mime.ParseMediaType(contentType)
	if err != nil || strings.Count(t, "/") != 1 || t == "application/x-www-form-urlencoded" {
		return "" // curl -d says that of anything
	}
	return mime.FormatMediaType(t, params)
}

// delete takes the version away that the path serves, or the one of `?version=`.
// Older versions stay until they are deleted by their digests.
func (p *Protocol) delete(c *protocol.Call) error {
	pkg, err := file(c)
	if err != nil {
		return fmt.Errorf("%w: %w", meta.ErrNotFound, err)
	}
	target, err := p.target(c, meta.ActionDelete)
	if err != nil {
		return err
	}
	pkg.Repo = target.Ref
	ctx, by := c.R.Context(), caller(c)
	version := c.R.URL.Query().Get("version")
	if version == "" {
		a, _, found, err := p.catalog.Head(ctx, by, pkg, current)
		if err != nil {
			return err
		}
		if !found {
			return fmt.Errorf("file %s: %w", pkg, meta.ErrNotFound)
		}
		if _, err := protocol.Preconditions(c.R, protocol.ETag(a.Version.Digest), a.Alias.MovedAt.Std()); err != nil {
			return err
		}
		version = a.Version.Name
	}
	token, err := p.catalog.DeleteVersion(ctx, by, pkg, version)
	if err != nil {
		return err
	}
	c.Committed(token)
	c.W.WriteHeader(http.StatusNoContent)
	return nil
}
