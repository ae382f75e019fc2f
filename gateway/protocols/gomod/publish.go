package gomod

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"golang.org/x/mod/module"
	modzip "golang.org/x/mod/zip"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// The files of a version; the second only where the summary cannot hold it.
const (
	zipFile = "module.zip"
	modFile = "go.mod"
)

// maxInfoBytes bounds an .info that somebody puts.
const maxInfoBytes = 64 << 10

// put takes a file of `@v/`.
func (p *Protocol) put(c *protocol.Call) error {
	path, err := modulePath(c.Params.Get("module"))
	if err != nil {
		return err
	}
	version, ext, err := versionFile(c.Params.Get("file"))
	if err != nil {
		return fmt.Errorf("put VERSION.zip, the rest is made of it: %w", err)
	}
	m := module.Version{Path: path, Version: version}
	if err := checkVersion(m); err != nil {
		return err
	}
	repo, err := p.catalog.ForPush(c.R.Context(), caller(c), c.Repo, Format, c.Repository)
	if err != nil {
		return err
	}
	if ext != extZip {
		return p.agree(c, repo.Ref, m, ext)
	}
	return p.publish(c, repo.Ref, m)
}

// published is what a PUT answers.
type published struct {
	Module  string        `json:"module"`
	Version string        `json:"version"`
	Digest  digest.Digest `json:"digest"`
	Sum     string        `json:"sum"` // as a go.sum has it
}

// publish takes a module's zip, which is all of a version.
func (p *Protocol) publish(c *protocol.Call, repo meta.RepoRef, m module.Version) error {
	if c.R.ContentLength > modzip.MaxZipFile {
		return fmt.Errorf("the zip has %d bytes, at most %d: %w", c.R.ContentLength, modzip.MaxZipFile, meta.ErrTooLarge)
	}
	ctx, by := c.R.Context(), caller(c)
	up, err := p.catalog.Begin(ctx, by, repo, false)
	if err != nil {
		return err
	}
	defer up.Close()
	stored, err := receive(ctx, c, up)
	if err != nil {
		return err
	}
	has, err := p.look(ctx, m, stored)
	if err != nil {
		return err
	}
	draft := catalog.Draft{
		Version: meta.Version{Package: m.Path, Name: m.Version, MediaType: zipType, State: meta.StateClosed},
		Content: []catalog.StoredFile{{Path: zipFile, MediaType: zipType, Stored: stored}},
	}
	mod := string(has.mod)
	if draft.Version.Summary, err = json.Marshal(summary{Mod: &mod, Sum: has.sum}); err != nil {
		return fmt.Errorf("summary of %s: %w", m, err)
	}
	if len(draft.Version.Summary) > meta.MaxSummaryBytes || !roundTrips(draft.Version.Summary, mod) {
		file, held, err := p.catalog.Ingest(ctx, by, repo, bytes.NewReader(has.mod), "")
		if err != nil {
			return err
		}
		defer held.Close()
		draft.Content = append(draft.Content, catalog.StoredFile{Path: modFile, MediaType: textType, Stored: file})
		if draft.Version.Summary, err = json.Marshal(summary{Sum: has.sum}); err != nil {
			return fmt.Errorf("summary of %s: %w", m, err)
		}
	}
	done, err := p.catalog.Publish(ctx, by, repo, draft)
	if errors.Is(err, meta.ErrExists) {
		return fmt.Errorf("%s is published, or was, with other content, and versions of modules never change: publish the next version: %w", m, err)
	}
	if err != nil {
		return err
	}
	c.Committed(done.Token)
	status := http.StatusOK
	if done.Created {
		c.W.Header().Set("Location", c.R.URL.EscapedPath())
		status = http.StatusCreated
	}
	c.W.Header().Set("Etag", protocol.ETag(done.Version.Digest))
	return protocol.WriteJSON(c.W, status, published{Module: m.Path, Version: m.Version, Digest: done.Version.Digest, Sum: has.sum})
}

// roundTrips reports whether a go.mod comes out of a summary as it went in: one that is
// not UTF-8 does not.
func roundTrips(encoded []byte, mod string) bool {
	var s summary
	return json.Unmarshal(encoded, &s) == nil && s.Mod != nil && *s.Mod == mod
}

// receive stores the body.
func receive(ctx context.Context, c *protocol.Call, up *catalog.Upload) (catalog.Stored, error) {
	cancel := func(err error) error { return errors.Join(err, up.Cancel(context.WithoutCancel(ctx))) }
	n, err := up.Append(ctx, io.LimitReader(body{c.R.Body}, modzip.MaxZipFile+1))
	if err == nil && n > modzip.MaxZipFile {
		err = fmt.Errorf("the zip has over %d bytes: %w", modzip.MaxZipFile, meta.ErrTooLarge)
	}
	if err != nil {
		return catalog.Stored{}, cancel(err)
	}
	s, err := up.Store(ctx, "")
	if err != nil {
		return s, cancel(err)
	}
	return s, nil
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

// look checks what has been stored, a few modules at a time.
func (p *Protocol) look(ctx context.Context, m module.Version, s catalog.Stored) (*contents, error) {
	if err := p.reading.Acquire(ctx, 1); err != nil {
		return nil, fmt.Errorf("wait for memory to read a module: %w: %w", meta.ErrUnavailable, err)
	}
	defer p.reading.Release(1)
	r, err := p.catalog.Open(ctx, s.Blob)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return checkZip(m, r, s.Blob.PlainBytes)
}

// agree takes a .mod or an .info, which follow from the zip, if it says the same: tools
// that put a module put all three. Of an .info that is the version; its time is when the
// version was published, whatever the tool thinks.
func (p *Protocol) agree(c *protocol.Call, repo meta.RepoRef, m module.Version, ext string) error {
	ctx, by := c.R.Context(), caller(c)
	v, _, err := p.catalog.Version(ctx, by, catalog.Package{Repo: repo, Name: m.Path}, m.Version)
	if errors.Is(err, meta.ErrNotFound) {
		return fmt.Errorf("put %s.zip first, its .mod and .info are made of it: %w", m.Version, meta.ErrConflict)
	}
	if err != nil {
		return err
	}
	limit := int64(maxInfoBytes)
	if ext == extMod {
		limit = maxModBytes
	}
	arrived, err := p.catalog.Arrive(ctx, by, repo, c.R.Body, c.R.ContentLength, limit)
	if err != nil {
		return err
	}
	defer arrived.Close()
	sent, release, err := arrived.Read(ctx)
	if err != nil {
		return err
	}
	defer release()
	if ext == extMod {
		mod, err := p.mod(ctx, by, &v)
		if err != nil {
			return err
		}
		if !bytes.Equal(mod, sent) {
			return fmt.Errorf("%s.mod is not the go.mod of the zip: %w", m.Version, meta.ErrExists)
		}
	} else {
		var i struct{ Version string }
		if err := json.Unmarshal(sent, &i); err != nil {
			return fmt.Errorf("%s.info is not JSON: %w", m.Version, meta.ErrInvalid)
		}
		if i.Version != m.Version {
			return fmt.Errorf("%s.info is of version %.300q: %w", m.Version, i.Version, meta.ErrExists)
		}
	}
	c.W.WriteHeader(http.StatusNoContent)
	return nil
}

// delete takes a version away, by any of its files.
func (p *Protocol) delete(c *protocol.Call) error {
	path, err := modulePath(c.Params.Get("module"))
	if err != nil {
		return absent(err)
	}
	version, _, err := versionFile(c.Params.Get("file"))
	if err != nil {
		return absent(err)
	}
	if c.Repository == nil {
		return fmt.Errorf("repository %s: %w", c.Repo, meta.ErrNotFound)
	}
	repo, err := p.catalog.ForChange(c.R.Context(), caller(c), *c.Repository, Format, access.Delete)
	if err != nil {
		return err
	}
	token, err := p.catalog.DeleteVersion(c.R.Context(), caller(c), catalog.Package{Repo: repo.Ref, Name: path}, version)
	if err != nil {
		return err
	}
	c.Committed(token)
	c.W.WriteHeader(http.StatusNoContent)
	return nil
}
