package catalog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Page is where a listing goes on: names after After in byte order, at most
// Limit of them, 1 to 10,000.
type Page = state.Page

// readable refuses a version that is in quarantine. The answer that says so may be kept,
// on an agent's disk too: a later one without servers is refused all the same.
func readable(pkg Package, v *meta.Version) error {
	if v.Quarantine == nil {
		return nil
	}
	return &meta.QuarantinedError{What: "version " + v.Name + " of " + pkg.String(), Quarantine: *v.Quarantine}
}

// about wraps err with what was asked. That something is not found the answer
// says itself, by name.
func about(err error, format string, args ...any) error {
	if errors.Is(err, meta.ErrNotFound) {
		return err
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}

// Resolve follows an alias to its version.
//
// Errors: meta.ErrNotFound, confirmed; *meta.QuarantinedError; meta.ErrUnavailable.
func (c *Catalog) Resolve(ctx context.Context, by Caller, pkg Package, alias string) (state.ResolveAnswer, meta.AsOf, error) {
	a, asOf, err := ask(ctx, c, by, meta.Bounded, state.Resolve{Repo: pkg.Repo, Package: pkg.Name, Alias: alias})
	if err != nil {
		return a, asOf, about(err, "resolve %s:%s", pkg, alias)
	}
	return a, asOf, readable(pkg, &a.Version)
}

// Head returns what a package's alias leads to now and the package's revision, by
// a strong round, for who is about to change it: a Draft with that Base is
// refused once anything in the package has changed. found is false, with
// revision 0, for a package or alias that is not there.
func (c *Catalog) Head(ctx context.Context, by Caller, pkg Package, alias string) (a state.ResolveAnswer, revision uint64, found bool, err error) {
	by = by.inside()
	p, asOf, err := ask(ctx, c, by, meta.Strong, state.GetPackage{Repo: pkg.Repo, Package: pkg.Name})
	if errors.Is(err, meta.ErrNotFound) {
		return a, 0, false, nil
	}
	if err != nil {
		return a, 0, false, fmt.Errorf("package %s: %w", pkg, err)
	}
	// Later than the revision is as good: then the change is refused.
	by.After = meta.Token{Epoch: asOf.Epoch, Index: asOf.Index}
	a, _, err = askOnce(ctx, c, by, meta.Local, state.Resolve{Repo: pkg.Repo, Package: pkg.Name, Alias: alias})
	if errors.Is(err, meta.ErrNotFound) {
		return a, p.Revision, false, nil
	}
	if err != nil {
		return a, 0, false, fmt.Errorf("resolve %s:%s: %w", pkg, alias, err)
	}
	return a, p.Revision, true, nil
}

// Peek is Resolve for who can do without: that nothing is there is not confirmed.
func (c *Catalog) Peek(ctx context.Context, by Caller, pkg Package, alias string) (state.ResolveAnswer, meta.AsOf, error) {
	a, asOf, err := askOnce(ctx, c, by, meta.Bounded, state.Resolve{Repo: pkg.Repo, Package: pkg.Name, Alias: alias})
	if err == nil {
		err = readable(pkg, &a.Version)
	}
	return a, asOf, err
}

// Version looks up a version by its name.
//
// Errors: meta.ErrNotFound, confirmed, also for a deleted one; *meta.QuarantinedError;
// meta.ErrUnavailable.
func (c *Catalog) Version(ctx context.Context, by Caller, pkg Package, name string) (meta.Version, meta.AsOf, error) {
	v, asOf, err := ask(ctx, c, by, meta.Local, state.GetVersion{Repo: pkg.Repo, Package: pkg.Name, Version: name})
	if err != nil {
		return v, asOf, about(err, "version %s of %s", name, pkg)
	}
	return v, asOf, readable(pkg, &v)
}

// Package looks up a package's record: its revision, labels, number of versions.
//
// Errors: meta.ErrNotFound, confirmed; meta.ErrUnavailable.
func (c *Catalog) Package(ctx context.Context, by Caller, pkg Package) (meta.Package, meta.AsOf, error) {
	p, asOf, err := ask(ctx, c, by, meta.Bounded, state.GetPackage{Repo: pkg.Repo, Package: pkg.Name})
	if err != nil {
		return p, asOf, about(err, "package %s", pkg)
	}
	return p, asOf, nil
}

// Known reports whether a package is there, as of an answer that the caller has:
// to explain a miss, which has had its strong round, without another one. When it
// cannot tell, it says yes.
func (c *Catalog) Known(ctx context.Context, by Caller, pkg Package, at meta.AsOf) bool {
	by = by.inside()
	by.After = meta.Token{Epoch: at.Epoch, Index: at.Index}
	_, _, err := askOnce(ctx, c, by, meta.Local, state.GetPackage{Repo: pkg.Repo, Package: pkg.Name})
	return !errors.Is(err, meta.ErrNotFound)
}

// Aliases lists the live aliases of a package in byte order, but for those that lead to
// a version in quarantine; none is no error.
func (c *Catalog) Aliases(ctx context.Context, by Caller, pkg Package, page Page) ([]meta.Alias, meta.AsOf, error) {
	return list(ctx, c, by, "aliases of "+pkg.String(), state.ListAliases{Repo: pkg.Repo, Package: pkg.Name, Page: page, Readable: true})
}

// History lists the moves of an alias, newest first; none is no error.
func (c *Catalog) History(ctx context.Context, by Caller, pkg Package, alias string, page Page) ([]meta.Alias, meta.AsOf, error) {
	return list(ctx, c, by, "history of "+pkg.String()+":"+alias, state.AliasHistory{Repo: pkg.Repo, Package: pkg.Name, Alias: alias, Page: page})
}

// Versions lists the live versions of a package, also those that their Quarantine keeps
// from readers; none is no error.
func (c *Catalog) Versions(ctx context.Context, by Caller, pkg Package, page Page) ([]meta.Version, meta.AsOf, error) {
	return list(ctx, c, by, "versions of "+pkg.String(), state.ListVersions{Repo: pkg.Repo, Package: pkg.Name, Page: page})
}

// Packages lists packages whose names begin with prefix; none is no error.
func (c *Catalog) Packages(ctx context.Context, by Caller, repo meta.RepoRef, prefix string, page Page) ([]meta.Package, meta.AsOf, error) {
	return list(ctx, c, by, "packages of "+repo.String(), state.ListPackages{Repo: repo, Prefix: prefix, Page: page})
}

// Attachments lists the versions whose subject is d, of one artifact type when
// that is not empty, but for those in quarantine; none is no error, and the subject need
// not exist.
func (c *Catalog) Attachments(ctx context.Context, by Caller, pkg Package, d digest.Digest, artifactType string, page Page) ([]meta.Version, meta.AsOf, error) {
	return list(ctx, c, by, "attachments of "+d.String(), state.Attachments{
		Repo: pkg.Repo, Package: pkg.Name, Subject: d, ArtifactType: artifactType, Page: page, Readable: true,
	})
}

// Repositories lists the repositories of a tenant, "" for all, that the caller
// may list: of the page's Limit looked at, those; next is where to go on, ""
// when that was the last.
func (c *Catalog) Repositories(ctx context.Context, by Caller, tenant meta.TenantName, page Page) (rs []meta.Repository, next string, asOf meta.AsOf, err error) {
	all, asOf, err := list(ctx, c, by, "repositories", state.ListRepositories{Tenant: tenant, Page: page})
	if err != nil {
		return nil, "", asOf, err
	}
	for i := range all {
		if c.Listed(by.Who, &all[i]) {
			rs = append(rs, all[i])
		}
	}
	if len(all) == page.Limit {
		next = all[len(all)-1].Ref.String()
	}
	return rs, next, asOf, nil
}

// list asks bounded; that nothing is there is an answer like any other.
func list[A any](ctx context.Context, c *Catalog, by Caller, what string, q state.Question[[]A]) ([]A, meta.AsOf, error) {
	as, asOf, err := ask(ctx, c, by, meta.Bounded, q)
	if errors.Is(err, meta.ErrNotFound) {
		return nil, asOf, nil
	}
	if err != nil {
		return nil, asOf, fmt.Errorf("list %s: %w", what, err)
	}
	return as, asOf, nil
}

// Blob looks up a blob that the repository links, by sha256 or sha512.
//
// Errors: meta.ErrNotFound, confirmed; *meta.QuarantinedError when only versions in
// quarantine use it; meta.ErrUnavailable.
func (c *Catalog) Blob(ctx context.Context, by Caller, repo meta.RepoRef, d digest.Digest) (state.BlobAnswer, meta.AsOf, error) {
	b, asOf, err := ask(ctx, c, by, meta.Local, state.GetBlob{Repo: repo, Digest: d})
	if err != nil {
		return b, asOf, about(err, "blob %s of %s", d, repo)
	}
	if b.Quarantine != nil {
		return b, asOf, &meta.QuarantinedError{What: "blob " + string(d) + " of " + repo.String(), Quarantine: *b.Quarantine}
	}
	if c.cfg.Asked != nil {
		c.cfg.Asked(b.Blob, repo, d)
	}
	return b, asOf, nil
}

// VersionBlobs returns the blobs that a version is made of: its own, and those of the named
// files, of which a version need not have each.
//
// Errors: as Blob and File have them.
func (c *Catalog) VersionBlobs(ctx context.Context, by Caller, v meta.Version, files ...string) ([]meta.Blob, error) {
	own, _, err := c.Blob(ctx, by, v.Repo, v.Digest)
	if err != nil {
		return nil, err
	}
	blobs := []meta.Blob{own.Blob}
	for _, path := range files {
		f, _, err := c.File(ctx, by, Package{Repo: v.Repo, Name: v.Package}, v.Name, path)
		if errors.Is(err, meta.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		b, _, err := c.Blob(ctx, by, v.Repo, f.Digest)
		if err != nil {
			return nil, err
		}
		blobs = append(blobs, b.Blob)
	}
	return blobs, nil
}

// Open returns a reader of a blob that Blob has answered. The reader may deliver
// while the bytes still arrive; it never delivers unverified ones.
//
// Errors: meta.ErrUnavailable when nobody who has it can be reached.
func (c *Catalog) Open(ctx context.Context, b meta.Blob) (Reader, error) {
	r, err := c.cfg.Content.Open(ctx, b)
	if errors.Is(err, meta.ErrNotFound) {
		// Metadata has it, so it exists: it is the copies that are out of reach.
		return nil, fmt.Errorf("open %s: no copy is in reach: %w", b.Digest, &meta.UnavailableError{Reason: "no_copy", RetryAfter: time.Second})
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", b.Digest, err)
	}
	return r, nil
}

// Document returns the bytes of a version's own document, up to 4 MiB of them,
// from memory when it was read lately. The caller must not change them.
//
// Errors: meta.ErrTooLarge when the version is no document; meta.ErrCorrupt when
// the bytes are not what the version says; else as Blob and Open have them.
func (c *Catalog) Document(ctx context.Context, by Caller, v *meta.Version) ([]byte, error) {
	key := documentKey{string(v.Repo.Tenant), v.Digest}
	if c.cfg.Served != nil {
		c.cfg.Served(v)
	}
	for {
		if body, ok := c.documents.get(key); ok {
			c.metrics.hits.Inc()
			return body, nil
		}
		end, wait := c.documents.begin(key)
		if end != nil {
			c.metrics.misses.Inc()
			body, err := c.load(ctx, by, v, key)
			end()
			return body, err
		}
		select {
		case <-wait: // and look again: the other may have failed by its own caller's leaving
		case <-ctx.Done():
			return nil, fmt.Errorf("document %s: %w", v.Digest, context.Cause(ctx))
		}
	}
}

func (c *Catalog) load(ctx context.Context, by Caller, v *meta.Version, key documentKey) ([]byte, error) {
	if v.Size > verify.MaxDocumentBytes {
		return nil, fmt.Errorf("document %s has %d bytes: %w", v.Digest, v.Size, meta.ErrTooLarge)
	}
	release, err := c.Reserve(ctx, v.Size)
	if err != nil {
		return nil, err
	}
	defer release()
	b, _, err := c.Blob(ctx, by, v.Repo, v.Digest)
	if err != nil {
		return nil, err
	}
	r, err := c.Open(ctx, b.Blob)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	body := make([]byte, v.Size)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, fmt.Errorf("read document %s: %w", v.Digest, err)
	}
	if got := digest.FromBytes(body); got != v.Digest {
		return nil, fmt.Errorf("document %s: %w: %w", v.Digest, meta.ErrCorrupt, &digest.MismatchError{Want: v.Digest, Got: got})
	}
	c.documents.put(key, body)
	return body, nil
}
