package publication

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Desk is what protocols with publications have in common: how they answer with a
// document of a set, with a package's file, with the key, and with an error, and how a
// package comes in.
type Desk struct {
	Catalog *catalog.Catalog
	// Builder is nil on an agent.
	Builder *Builder
}

// Caller is who makes a call, as the catalog wants it.
func Caller(c *protocol.Call) catalog.Caller {
	return catalog.Caller{Who: c.Who, Origin: c.Origin(), After: c.After, Asked: c.Asked, Absent: c.Absent()}
}

func public(c *protocol.Call) bool {
	return c.Repository != nil && c.Repository.Visibility == meta.VisibilityPublic
}

// youth is how long after its creation the documents of a repository are waited for:
// they are being built.
const youth = 30 * time.Second

// young looks something up; what is not there yet in a repository that was only just made
// is waited for a little, unless its documents are built.
func young[A any](c *protocol.Call, built func(context.Context, catalog.Caller) bool, look func(context.Context, catalog.Caller) (A, meta.AsOf, error)) (A, meta.AsOf, error) {
	ctx, by := c.R.Context(), Caller(c)
	a, asOf, err := look(ctx, by)
	if !errors.Is(err, meta.ErrNotFound) || c.Repository == nil || time.Since(c.Repository.Created.Std()).Abs() > youth || built(ctx, by) {
		return a, asOf, err
	}
	waiting, cancel := context.WithTimeout(ctx, AwaitMost)
	defer cancel()
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for {
		select {
		case <-again.C:
		case <-waiting.Done():
			return a, asOf, err
		}
		if b, at, e := look(ctx, by); !errors.Is(e, meta.ErrNotFound) {
			return b, at, e
		}
	}
}

// built reports whether the documents of a repository were built before.
func (d *Desk) built(repo meta.RepoRef) func(context.Context, catalog.Caller) bool {
	return func(ctx context.Context, by catalog.Caller) bool {
		by.Absent = nil
		s, _, err := d.Catalog.Sets(ctx, by, repo)
		return err == nil && s.Built > 0
	}
}

// Document answers with the file of that path in the set that is in place.
//
// Errors: meta.ErrNotFound.
func (d *Desk) Document(c *protocol.Call, set, path string) error {
	p, asOf, err := young(c, d.built(c.Repo), func(ctx context.Context, by catalog.Caller) (meta.Publication, meta.AsOf, error) {
		return d.Catalog.Publication(ctx, by, c.Repo, set)
	})
	if err != nil {
		return err
	}
	at, found := slices.BinarySearchFunc(p.Files, path, func(f meta.File, path string) int { return strings.Compare(f.Path, path) })
	c.AsOf(asOf)
	if !found {
		return fmt.Errorf("%s is not in the documents of %s: %w", path, c.Repo, meta.ErrNotFound)
	}
	f := p.Files[at]
	return d.blob(c, f.Digest, protocol.Content{MediaType: f.MediaType, Cache: protocol.Revalidate, Modified: p.Created.Std()})
}

// ByDigest answers with what the repository has of that digest: a document of a set that
// was replaced, too.
//
// Errors: meta.ErrNotFound.
func (d *Desk) ByDigest(c *protocol.Call, want digest.Digest) error {
	b, asOf, err := d.Catalog.Blob(c.R.Context(), Caller(c), c.Repo, want)
	if err != nil {
		return err
	}
	c.AsOf(asOf)
	return d.serve(c, b.Blob, protocol.Content{Cache: protocol.Immutable})
}

func (d *Desk) blob(c *protocol.Call, want digest.Digest, content protocol.Content) error {
	b, _, err := d.Catalog.Blob(c.R.Context(), Caller(c), c.Repo, want)
	if err != nil {
		return err
	}
	return d.serve(c, b.Blob, content)
}

func (d *Desk) serve(c *protocol.Call, b meta.Blob, content protocol.Content) error {
	content.Public, content.Size, content.ETag = public(c), b.PlainBytes, protocol.ETag(b.Digest)
	content.Open = func(ctx context.Context) (io.ReadSeekCloser, error) { return d.Catalog.Open(ctx, b) }
	return protocol.Serve(c.W, c.R, content)
}

// File answers with a version's own file, which has that path in it: of a group, with
// that of the first hosted member that has the version.
//
// Errors: meta.ErrNotFound, also when the version's file is elsewhere.
func (d *Desk) File(c *protocol.Call, pkg, version, path string) error {
	ctx, by := c.R.Context(), Caller(c)
	repos := []meta.RepoRef{c.Repo}
	if c.Repository != nil && c.Repository.Kind == meta.KindGroup {
		members, _, err := d.Catalog.Members(ctx, by, c.Repo)
		if err != nil {
			return err
		}
		repos = nil
		for _, m := range members {
			if m.Kind == meta.KindHosted {
				repos = append(repos, m.Ref)
			}
		}
	}
	missing := fmt.Errorf("file %s of %s: %w", path, c.Repo, meta.ErrNotFound)
	for _, repo := range repos {
		of := catalog.Package{Repo: repo, Name: pkg}
		v, asOf, err := d.Catalog.Version(ctx, by, of, version)
		if errors.Is(err, meta.ErrNotFound) {
			missing = err
			continue
		}
		if err != nil {
			return err
		}
		f, _, err := d.Catalog.File(ctx, by, of, version, path)
		if err != nil {
			return err
		}
		b, _, err := d.Catalog.Blob(ctx, by, repo, f.Digest)
		if err != nil {
			return err
		}
		c.AsOf(asOf)
		return d.serve(c, b.Blob, protocol.Content{MediaType: f.MediaType, Cache: protocol.Revalidate, Modified: v.PublishTime.Std()})
	}
	return missing
}

// Key answers with the public key that documents are signed with.
//
// Errors: meta.ErrNotFound while there is none.
func (d *Desk) Key(c *protocol.Call) error {
	s, asOf, err := young(c, d.built(c.Repo), func(ctx context.Context, by catalog.Caller) (meta.Sets, meta.AsOf, error) {
		return d.Catalog.Sets(ctx, by, c.Repo)
	})
	if err != nil {
		return err
	}
	c.AsOf(asOf)
	if s.Key == nil {
		return fmt.Errorf("repository %s has no signing key: %w", c.Repo, meta.ErrNotFound)
	}
	return protocol.ServeBytes(c.W, c.R, []byte(s.Key.Public), protocol.Content{
		MediaType: "application/pgp-keys", Cache: protocol.Revalidate, Public: public(c),
	})
}

// Receive stores the body of a call, and returns it with a reader of it. The upload and
// the reader are to be closed when the package is published.
//
// Errors: meta.ErrInvalid when the body breaks off; *meta.QuotaError and the like.
func (d *Desk) Receive(c *protocol.Call, repo meta.RepoRef) (catalog.Stored, *catalog.Upload, catalog.Reader, error) {
	ctx := c.R.Context()
	stored, up, err := d.Catalog.Ingest(ctx, Caller(c), repo, bodyOf{c.R.Body}, "")
	if err != nil {
		return stored, nil, nil, err
	}
	r, err := d.Catalog.Open(ctx, stored.Blob)
	if err != nil {
		return stored, nil, nil, errors.Join(err, up.Close())
	}
	return stored, up, r, nil
}

// bodyOf tells a request's body that breaks off from a disk that does.
type bodyOf struct{ io.Reader }

// Read implements io.Reader.
func (b bodyOf) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("the body broke off: %w: %w", meta.ErrInvalid, err)
	}
	return n, err
}

// Uploaded is what a package's upload answers.
type Uploaded struct {
	Package      string        `json:"package"`
	Version      string        `json:"version"`
	Architecture string        `json:"architecture"`
	Path         string        `json:"path"`
	Digest       digest.Digest `json:"digest"`
	Size         int64         `json:"size"`
}

// Done waits until the documents show what was published, a little, and answers the
// upload of it.
func (d *Desk) Done(c *protocol.Call, repo meta.RepoRef, p catalog.Published, u Uploaded) error {
	token := d.Builder.Await(c.R.Context(), repo, p.Token)
	if repo != c.Repo { // through a group
		token = d.Builder.Await(c.R.Context(), c.Repo, token)
	}
	c.Committed(token)
	c.W.Header().Set("Etag", protocol.ETag(u.Digest))
	status := http.StatusOK
	if p.Created {
		status = http.StatusCreated
	}
	return protocol.WriteJSON(c.W, status, u)
}

// WriteError answers an error as a line of text, which curl and the package managers
// show.
func WriteError(w http.ResponseWriter, err error) {
	status := protocol.Fail(w.Header(), err)
	message := protocol.Message(err)
	if mismatch, ok := errors.AsType[*digest.MismatchError](err); ok {
		message = mismatch.Error()
	}
	protocol.WriteText(w, status, message)
}

// Challenge answers 401: Basic, with a token as the password, which apt and dnf send
// when they are given a user.
func Challenge(w http.ResponseWriter, s protocol.Scope) {
	protocol.ChallengeText(w, s, "credentials are needed: any user, a token as the password")
}
