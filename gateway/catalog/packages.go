package catalog

import (
	"context"
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// stepMark is the first of the steps of MarkAll: behind all of Publish's.
const stepMark = stepSecure + 1<<16

// Sources looks up where the packages of a name come from: which hosted members of a
// group own it, with their package records, or which of its proxies it was taken from
// before. Of a repository that is no group, it is the only one.
//
// Errors: meta.ErrNotFound for the repository, confirmed; meta.ErrUnavailable.
func (c *Catalog) Sources(ctx context.Context, by Caller, repo meta.RepoRef, pkg string) (state.SourcesAnswer, meta.AsOf, error) {
	a, asOf, err := ask(ctx, c, by, meta.Bounded, state.GetSources{Repo: repo, Package: pkg})
	if err != nil {
		return a, asOf, about(err, "sources of %s in %s", pkg, repo)
	}
	return a, asOf, nil
}

// Members lists the hosted repositories and proxies that a group stands for, in order; of
// another repository itself.
//
// Errors: meta.ErrNotFound for the repository, confirmed; meta.ErrUnavailable.
func (c *Catalog) Members(ctx context.Context, by Caller, repo meta.RepoRef) ([]meta.Repository, meta.AsOf, error) {
	a, asOf, err := ask(ctx, c, by, meta.Bounded, state.Members{Repo: repo})
	if err != nil {
		return nil, asOf, about(err, "members of %s", repo)
	}
	return a, asOf, nil
}

// PackageFiles lists the files of all versions of a package that readers may have, a
// version's files together; none is no error. A page goes on behind the After of its last
// file.
func (c *Catalog) PackageFiles(ctx context.Context, by Caller, pkg Package, page Page) ([]state.PackageFile, meta.AsOf, error) {
	return list(ctx, c, by, "files of "+pkg.String(), state.ListPackageFiles{Repo: pkg.Repo, Package: pkg.Name, Page: page})
}

// File looks up a file of a version.
//
// Errors: meta.ErrNotFound, confirmed; *meta.QuarantinedError; meta.ErrUnavailable.
func (c *Catalog) File(ctx context.Context, by Caller, pkg Package, version, path string) (meta.File, meta.AsOf, error) {
	if _, asOf, err := c.Version(ctx, by, pkg, version); err != nil {
		return meta.File{}, asOf, err
	}
	f, asOf, err := ask(ctx, c, by, meta.Local, state.GetFile{Repo: pkg.Repo, Package: pkg.Name, Version: version, Path: path})
	if err != nil {
		return f, asOf, about(err, "file %s of version %s of %s", path, version, pkg)
	}
	return f, asOf, nil
}

// Files lists the files of a version by path.
//
// Errors: meta.ErrNotFound for the version, confirmed; *meta.QuarantinedError;
// meta.ErrUnavailable.
func (c *Catalog) Files(ctx context.Context, by Caller, pkg Package, version string, page Page) ([]meta.File, meta.AsOf, error) {
	if _, asOf, err := c.Version(ctx, by, pkg, version); err != nil {
		return nil, asOf, err
	}
	return list(ctx, c, by, fmt.Sprintf("files of version %s of %s", version, pkg), state.ListFiles{Repo: pkg.Repo, Package: pkg.Name, Version: version, Page: page})
}

// Close closes an open version: it gains no file any more.
//
// Errors: meta.ErrNotFound; meta.ErrConflict; meta.ErrUnavailable.
func (c *Catalog) Close(ctx context.Context, by Caller, pkg Package, version string) (meta.Token, error) {
	receipt, err := c.do(ctx, by, stepClose, state.CloseVersion{Repo: pkg.Repo, Package: pkg.Name, Version: version})
	if err != nil {
		return meta.Token{}, fmt.Errorf("close version %s of %s: %w", version, pkg, err)
	}
	return receipt.Token, nil
}

// Mark sets or takes away marks of a version: yanked, unlisted, deprecated.
//
// Errors: meta.ErrNotFound; meta.ErrInvalid; meta.ErrUnavailable.
func (c *Catalog) Mark(ctx context.Context, by Caller, pkg Package, version string, m meta.Marking) (meta.Token, error) {
	return c.MarkAll(ctx, by, pkg, []string{version}, m)
}

// MarkAll is Mark of several versions, all or none of up to state.MaxMarked at a time: of
// more, those before the ones that are refused are marked.
func (c *Catalog) MarkAll(ctx context.Context, by Caller, pkg Package, versions []string, m meta.Marking) (token meta.Token, err error) {
	for step := 0; len(versions) > 0; step++ {
		some := versions[:min(len(versions), state.MaxMarked)]
		receipt, err := c.do(ctx, by, stepMark+step, state.MarkVersions{Repo: pkg.Repo, Package: pkg.Name, Versions: some, Marking: m})
		if err != nil {
			return token, fmt.Errorf("mark versions of %s: %w", pkg, err)
		}
		token, versions = receipt.Token, versions[len(some):]
	}
	return token, nil
}
