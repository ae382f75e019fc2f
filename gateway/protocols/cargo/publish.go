package cargo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// The files of a version; the second only where the summary cannot hold it.
const (
	crateType = "application/gzip"
	lineFile  = "index.json"
)

// maxAnnotationBytes bounds what is kept of a text that only people read.
const maxAnnotationBytes = 512

// publish takes a crate: metadata and archive, each behind its length.
func (p *Protocol) publish(c *protocol.Call) error {
	ctx, by := c.R.Context(), caller(c)
	repo, err := p.catalog.ForPush(ctx, by, c.Repo, Format, c.Repository)
	if err != nil {
		return err
	}
	sent := body{c.R.Body}
	n, err := frame(sent, "metadata", maxMetadataBytes)
	if err != nil {
		return err
	}
	about, err := p.catalog.Arrive(ctx, by, repo.Ref, io.LimitReader(sent, n), n, maxMetadataBytes)
	if err != nil {
		return err
	}
	defer about.Close()
	// Read twice, as it is not held in memory while the crate is on its way.
	_, _, release, err := p.metadata(ctx, about)
	if err != nil {
		return err
	}
	release()
	crate, err := readCrate(sent)
	if err != nil {
		return err
	}
	up, err := p.catalog.Begin(ctx, by, repo.Ref, false)
	if err != nil {
		return err
	}
	defer up.Close()
	stored, err := receive(ctx, up, crate)
	if err != nil {
		return err
	}
	m, version, release, err := p.metadata(ctx, about)
	if err != nil {
		return err
	}
	defer release()
	if err := p.look(ctx, m, stored); err != nil {
		return err
	}
	l, err := newLine(m, stored.Blob.Digest.Encoded())
	if err != nil {
		return err
	}
	encoded, err := l.encode()
	if err != nil {
		return err
	}
	draft := catalog.Draft{
		Version: meta.Version{
			Package: normalize(m.Name), Name: version, MediaType: crateType, State: meta.StateClosed, Annotations: annotations(m), Summary: encoded,
		},
		Content:  []catalog.StoredFile{{Path: m.Name + "-" + m.Vers + ".crate", MediaType: crateType, Stored: stored}},
		Spelling: m.Name,
	}
	if len(encoded) > meta.MaxSummaryBytes {
		file, held, err := p.catalog.Ingest(ctx, by, repo.Ref, bytes.NewReader(encoded), "")
		if err != nil {
			return err
		}
		defer held.Close()
		draft.Version.Summary = nil
		draft.Content = append(draft.Content, catalog.StoredFile{Path: lineFile, MediaType: "application/json", Stored: file})
	}
	done, err := p.catalog.Publish(ctx, by, repo.Ref, draft)
	if errors.Is(err, meta.ErrExists) {
		return fmt.Errorf("crate %s %s cannot be published, it already exists: %w", m.Name, m.Vers, err)
	}
	if err != nil {
		return err
	}
	c.Committed(done.Token)
	return protocol.WriteJSON(c.W, http.StatusOK, map[string]any{
		"warnings": map[string][]string{"invalid_categories": {}, "invalid_badges": {}, "other": {}},
	})
}

// metadata reads the metadata of a publish, and the name of its version; release gives
// back the memory that they take.
//
// Errors: meta.ErrInvalid; of reading it.
func (p *Protocol) metadata(ctx context.Context, about *catalog.Arrived) (m *metadata, version string, release func(), err error) {
	b, release, err := about.Read(ctx)
	if err != nil {
		return nil, "", nil, err
	}
	if m, err = parseMetadata(b); err == nil {
		err = checkName(m.Name)
	}
	if err == nil {
		version, err = versionName(m.Vers)
	}
	if err != nil {
		release()
		return nil, "", nil, err
	}
	return m, version, release, nil
}

// annotations are what searches show.
func annotations(m *metadata) map[string]string {
	a := map[string]string{}
	for key, value := range map[string]string{
		"description": m.Description, "license": m.License, "homepage": m.Homepage, "repository": m.Repository, "keywords": strings.Join(m.Keywords, ","),
	} {
		value = strings.Join(strings.Fields(strings.ToValidUTF8(value, "")), " ")
		if len(value) > maxAnnotationBytes {
			value = strings.ToValidUTF8(value[:maxAnnotationBytes], "")
		}
		if value != "" {
			a[key] = value
		}
	}
	return a
}

// receive stores the crate.
func receive(ctx context.Context, up *catalog.Upload, r io.Reader) (catalog.Stored, error) {
	cancel := func(err error) error { return errors.Join(err, up.Cancel(context.WithoutCancel(ctx))) }
	if _, err := up.Append(ctx, r); err != nil {
		return catalog.Stored{}, cancel(err)
	}
	s, err := up.Store(ctx, "")
	if err != nil {
		return s, cancel(err)
	}
	return s, nil
}

// look checks what has been stored.
func (p *Protocol) look(ctx context.Context, m *metadata, s catalog.Stored) error {
	r, err := p.catalog.Open(ctx, s.Blob)
	if err != nil {
		return err
	}
	defer r.Close()
	file, err := checkCrate(m.Name, m.Vers, r, s.Blob.PlainBytes)
	if err != nil {
		return err
	}
	return m.check(file)
}

// body tells a request's body that breaks off from a disk that does.
type body struct{ io.Reader }

// Read implements io.Reader.
func (b body) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("the body broke off: %w: %w", meta.ErrInvalid, err)
	}
	return n, err
}

func (p *Protocol) yank(c *protocol.Call) error   { return p.setYanked(c, true) }
func (p *Protocol) unyank(c *protocol.Call) error { return p.setYanked(c, false) }

func (p *Protocol) setYanked(c *protocol.Call, yanked bool) error {
	ctx, by := c.R.Context(), caller(c)
	name, version, err := params(c)
	if err != nil {
		return err
	}
	if c.Repository == nil {
		return fmt.Errorf("repository %s: %w", c.Repo, meta.ErrNotFound)
	}
	repo, err := p.catalog.ForChange(ctx, by, *c.Repository, Format, access.Push)
	if err != nil {
		return err
	}
	token, err := p.catalog.Mark(ctx, by, catalog.Package{Repo: repo.Ref, Name: normalize(name)}, version, meta.Marking{Yanked: &yanked})
	if err != nil {
		return err
	}
	c.Committed(token)
	return protocol.WriteJSON(c.W, http.StatusOK, map[string]bool{"ok": true})
}

// params reads the crate and version that an address names.
//
// Errors: meta.ErrNotFound.
func params(c *protocol.Call) (name, version string, err error) {
	name = c.Params.Get("crate")
	if err = checkName(name); err == nil {
		version, err = versionName(c.Params.Get("version"))
	}
	if err != nil {
		return "", "", fmt.Errorf("%w: %w", meta.ErrNotFound, err)
	}
	return name, version, nil
}
