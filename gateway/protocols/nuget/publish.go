package nuget

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"

	"github.com/shoal-registry/shoal/gateway/archive"
	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Media types of a version's files.
const (
	packageType  = "application/octet-stream"
	manifestType = "application/xml"
)

// publish takes a package: a form with the file in its first part, or the bare file.
func (p *Protocol) publish(c *protocol.Call) error {
	ctx, by := c.R.Context(), caller(c)
	target, err := p.catalog.ForPush(ctx, by, c.Repo, Format, c.Repository)
	if err != nil {
		return err
	}
	body, err := uploaded(c.R)
	if err != nil {
		return err
	}
	up, err := p.catalog.Begin(ctx, by, target.Ref, true)
	if err != nil {
		return err
	}
	defer up.Close()
	cancel := func(err error) error { return errors.Join(err, up.Cancel(context.WithoutCancel(ctx))) }
	if _, err := up.Append(ctx, body); err != nil {
		return cancel(err)
	}
	stored, err := up.Store(ctx, "")
	if err != nil {
		return cancel(err)
	}
	o, err := p.inspect(ctx, stored.Blob)
	if err != nil {
		return err
	}
	published, err := p.admit(ctx, by, target.Ref, stored, o)
	if err != nil {
		return err
	}
	c.Committed(published.Token)
	if !published.Created {
		// The very same bytes: the protocol has 409 for that too.
		return &sameError{o.manifest.ID, published.Version.Name}
	}
	c.W.Header().Set("Location", linksOf(c).packageContent(published.Version.Package, published.Version.Name))
	c.W.WriteHeader(http.StatusCreated)
	return nil
}

// sameError says that a version is published already, with the same bytes. It is
// meta.ErrExists.
type sameError struct{ id, version string }

func (e *sameError) Error() string {
	return fmt.Sprintf("%s %s is published already, with this very content", e.id, e.version)
}

// Is implements errors.Is.
func (e *sameError) Is(err error) bool { return err == meta.ErrExists }

// inspect reads the archive that was stored.
func (p *Protocol) inspect(ctx context.Context, b meta.Blob) (opened, error) {
	r, err := p.catalog.Open(ctx, b)
	if err != nil {
		return opened{}, err
	}
	defer r.Close()
	return openPackage(archive.ReaderAt(r), b.PlainBytes)
}

// admit publishes a package that was inspected.
func (p *Protocol) admit(ctx context.Context, by catalog.Caller, repo meta.RepoRef, stored catalog.Stored, o opened) (catalog.Published, error) {
	id, err := parseID(o.manifest.ID)
	if err != nil {
		return catalog.Published{}, err
	}
	v, err := parseVersion(o.manifest.Version)
	if err != nil {
		return catalog.Published{}, err
	}
	summary, err := summarize(o.manifest)
	if err != nil {
		return catalog.Published{}, err
	}
	nuspec, up, err := p.catalog.Ingest(ctx, by, repo, bytes.NewReader(o.nuspec), "")
	if err != nil {
		return catalog.Published{}, err
	}
	defer up.Close()
	published, err := p.catalog.Publish(ctx, by, repo, catalog.Draft{
		Version: meta.Version{Package: id, Name: v.key(), MediaType: packageType, State: meta.StateClosed, Summary: summary},
		Content: []catalog.StoredFile{
			{Path: packageFile(id, v.key()), MediaType: packageType, Stored: stored},
			{Path: manifestFile(id), MediaType: manifestType, Stored: nuspec},
		},
		Spelling: o.manifest.ID,
	})
	if errors.Is(err, meta.ErrExists) {
		err = fmt.Errorf("%s %s cannot be published: %w", o.manifest.ID, v.normal(), err)
	}
	return published, err
}

// summarize renders a version's Summary. Dependencies that are too many for it stay in
// the .nuspec.
func summarize(m manifest) ([]byte, error) {
	b, err := json.Marshal(m)
	if err == nil && len(b) > meta.MaxSummaryBytes {
		m.Groups, m.Long = nil, true
		b, err = json.Marshal(m)
	}
	if err != nil {
		return nil, fmt.Errorf("summary of %s: %w", m.ID, err)
	}
	if len(b) > meta.MaxSummaryBytes {
		m.Description, m.Summary, m.Tags = m.Description[:0], m.Summary[:0], nil
		if b, err = json.Marshal(m); err != nil {
			return nil, fmt.Errorf("summary of %s: %w", m.ID, err)
		}
	}
	if len(b) > meta.MaxSummaryBytes {
		return nil, fmt.Errorf("the .nuspec of %s: its texts are too long: %w", m.ID, meta.ErrInvalid)
	}
	return b, nil
}

// uploaded returns the file in a request's body, as a stream.
//
// Errors: meta.ErrInvalid.
func uploaded(r *http.Request) (io.Reader, error) {
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/form-data" {
		return brokenOff{r.Body}, nil
	}
	form := multipart.NewReader(r.Body, params["boundary"])
	part, err := form.NextPart()
	if err != nil {
		return nil, fmt.Errorf("the form has no file: %w: %w", err, meta.ErrInvalid)
	}
	return brokenOff{part}, nil
}

// brokenOff tells a body that breaks off from a disk that does.
type brokenOff struct{ io.Reader }

// Read implements io.Reader.
func (b brokenOff) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("the body broke off: %w: %w", meta.ErrInvalid, err)
	}
	return n, err
}

func (p *Protocol) unlist(c *protocol.Call) error { return p.mark(c, true, http.StatusNoContent) }
func (p *Protocol) relist(c *protocol.Call) error { return p.mark(c, false, http.StatusOK) }

// mark lists or unlists a version. Clients send the id and version as their user wrote
// them. It stays installable by its version (learn.microsoft.com/nuget/api/package-publish-resource).
func (p *Protocol) mark(c *protocol.Call, unlisted bool, status int) error {
	id, err := idOf(c)
	if err != nil {
		return err
	}
	version, err := versionOf(c.Params.Get("version"))
	if err != nil {
		return err
	}
	ctx, by := c.R.Context(), caller(c)
	if c.Repository == nil {
		return fmt.Errorf("repository %s: %w", c.Repo, meta.ErrNotFound)
	}
	target, err := p.catalog.ForPush(ctx, by, c.Repo, Format, c.Repository)
	if err != nil {
		return err
	}
	token, err := p.catalog.Mark(ctx, by, catalog.Package{Repo: target.Ref, Name: id}, version, meta.Marking{Unlisted: &unlisted})
	if err != nil {
		return err
	}
	c.Committed(token)
	c.W.WriteHeader(status)
	return nil
}
