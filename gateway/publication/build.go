package publication

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
	"strings"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Build is one build of the sets of a repository. It is not safe for concurrent use.
type Build struct {
	// Repo is the repository as it is.
	Repo meta.Repository
	// At is the log index of the state that the build began with: everything up to it is
	// in Versions.
	At uint64
	// Signer signs; nil when the format is not signed.
	Signer *Signer
	// Current are the sets that are in place, by name.
	Current map[string]meta.Publication

	members []meta.RepoRef // whose versions these are, in the order of asking
	builder *Builder
	by      catalog.Caller
	uploads []*catalog.Upload
	stored  map[digest.Digest]catalog.Stored
	pending *meta.Publication // the last set, which is committed with the end
	kept    map[string]bool
}

// pageVersions is how many versions are read at a time. A page ends early past 16 MiB.
const pageVersions = 500

// Versions yields all versions that documents show: those that are not in quarantine,
// nor yanked or unlisted. Those of a package in one repository come one after another; of
// a group those of all hosted members, one that several have from the first of them.
func (b *Build) Versions(ctx context.Context) iter.Seq2[*meta.Version, error] {
	return func(yield func(*meta.Version, error) bool) {
		for i, member := range b.members {
			pkg, before := "", []meta.RepoRef(nil)
			q := state.RepositoryVersions{Repo: member, Limit: pageVersions}
			for {
				page, _, err := raftmeta.Ask(ctx, b.builder.cfg.Metadata, meta.Local, q)
				if err != nil {
					yield(nil, fmt.Errorf("versions of %s: %w", member, err))
					return
				}
				for k := range page {
					v := &page[k]
					if v.Package != pkg {
						pkg = v.Package
						if before, err = b.having(ctx, b.members[:i], state.GetPackage{Package: pkg}); err != nil {
							yield(nil, err)
							return
						}
					}
					if v.Quarantine != nil || v.Marks.Yanked != nil || v.Marks.Unlisted != nil {
						continue
					}
					if len(before) > 0 {
						same, err := b.having(ctx, before, state.GetVersion{Package: pkg, Version: v.Name})
						if err != nil {
							yield(nil, err)
							return
						}
						if len(same) > 0 {
							continue
						}
					}
					if !yield(v, nil) {
						return
					}
				}
				if len(page) == 0 {
					break
				}
				last := &page[len(page)-1]
				q.AfterPackage, q.AfterVersion = last.Package, last.Name
			}
		}
	}
}

// having returns those of the members that have what q names, whose Repo is filled in.
func (b *Build) having(ctx context.Context, members []meta.RepoRef, q any) (have []meta.RepoRef, err error) {
	for _, m := range members {
		switch q := q.(type) {
		case state.GetPackage:
			q.Repo = m
			_, _, err = raftmeta.Ask(ctx, b.builder.cfg.Metadata, meta.Local, q)
		case state.GetVersion:
			q.Repo = m
			_, _, err = raftmeta.Ask(ctx, b.builder.cfg.Metadata, meta.Local, q)
		}
		switch {
		case err == nil:
			have = append(have, m)
		case !errors.Is(err, meta.ErrNotFound):
			return nil, fmt.Errorf("look for it in %s: %w", m, err)
		}
	}
	return have, nil
}

// Open opens a file of a version: a summary that was too long to be one.
func (b *Build) Open(ctx context.Context, v *meta.Version, path string) (catalog.Reader, error) {
	f, _, err := raftmeta.Ask(ctx, b.builder.cfg.Metadata, meta.Local, state.GetFile{Repo: v.Repo, Package: v.Package, Version: v.Name, Path: path})
	if err != nil {
		return nil, fmt.Errorf("file %s of %s/%s %s: %w", path, v.Repo, v.Package, v.Name, err)
	}
	blob, _, err := raftmeta.Ask(ctx, b.builder.cfg.Metadata, meta.Local, state.GetBlob{Repo: v.Repo, Digest: f.Digest})
	if err != nil {
		return nil, fmt.Errorf("file %s of %s/%s %s: %w", path, v.Repo, v.Package, v.Name, err)
	}
	return b.builder.cfg.Catalog.Open(ctx, blob.Blob)
}

// Spool returns a file without a name, for what is being written. The caller closes it,
// and that is its end.
func (b *Build) Spool() (*os.File, error) {
	f, err := os.CreateTemp(b.builder.cfg.Dir, "set-*")
	if err != nil {
		return nil, fmt.Errorf("spool a document: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(fmt.Errorf("spool a document: %w", err), f.Close())
	}
	return f, nil
}

// Write stores what r has and returns it as a file of that path.
func (b *Build) Write(ctx context.Context, path, mediaType string, r io.Reader) (meta.File, error) {
	s, up, err := b.builder.cfg.Catalog.IngestSet(ctx, b.by, b.Repo.Ref, r)
	if err != nil {
		return meta.File{}, fmt.Errorf("document %s of %s: %w", path, b.Repo.Ref, err)
	}
	b.uploads = append(b.uploads, up)
	b.stored[s.Blob.Digest] = s
	return meta.File{Path: path, Digest: s.Blob.Digest, Size: s.Blob.PlainBytes, MediaType: mediaType}, nil
}

// Render stores what render writes, by way of a file on disk.
func (b *Build) Render(ctx context.Context, path, mediaType string, render func(io.Writer) error) (_ meta.File, err error) {
	spool, err := b.Spool()
	if err != nil {
		return meta.File{}, err
	}
	defer func() { err = errors.Join(err, spool.Close()) }()
	w := bufio.NewWriterSize(spool, 64<<10)
	if err := render(w); err != nil {
		return meta.File{}, fmt.Errorf("document %s of %s: %w", path, b.Repo.Ref, err)
	}
	if err := w.Flush(); err != nil {
		return meta.File{}, fmt.Errorf("document %s of %s: %w", path, b.Repo.Ref, err)
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return meta.File{}, fmt.Errorf("document %s of %s: %w", path, b.Repo.Ref, err)
	}
	return b.Write(ctx, path, mediaType, spool)
}

// Warn tells the operator of a set that is not made, and why.
func (b *Build) Warn(set string, why error) {
	b.builder.cfg.Log.Warn("documents of a repository stay as they are", "repository", b.Repo.Ref.String(), "set", set, "error", why)
}

// Keep leaves the set of that name as it is.
func (b *Build) Keep(name string) { b.kept[name] = true }

// Commit puts a set in place: Name, Sum and Files are given, in any order, and each file
// is one that Write returned, or one of the set that is there.
func (b *Build) Commit(ctx context.Context, p meta.Publication) error {
	if err := b.flush(ctx, 0, nil); err != nil {
		return err
	}
	p.Repo, p.From = b.Repo.Ref, b.At
	slices.SortFunc(p.Files, func(x, y meta.File) int { return strings.Compare(x.Path, y.Path) })
	b.kept[p.Name] = true
	b.pending = &p
	return nil
}

// flush commits the set that waits, with the end of the build where through says so.
func (b *Build) flush(ctx context.Context, through uint64, drop []string) error {
	if b.pending == nil && through == 0 {
		return nil
	}
	// Names go a few at a time, and the end comes with the last.
	const most = 16
	for len(drop) > most {
		cmd := state.CommitSets{Repo: b.Repo.Ref, Node: b.builder.cfg.Self, Drop: drop[:most]}
		if _, err := b.builder.cfg.Catalog.CommitSets(ctx, b.by, cmd, nil); err != nil {
			return err
		}
		drop = drop[most:]
	}
	cmd := state.CommitSets{Repo: b.Repo.Ref, Node: b.builder.cfg.Self, Set: b.pending, Drop: drop, Through: through}
	if through > 0 {
		cmd.Format = b.builder.rules(b.Repo.Format)
	}
	var content []catalog.Stored
	if b.pending != nil {
		seen := map[digest.Digest]bool{}
		for _, f := range b.pending.Files {
			if s, ok := b.stored[f.Digest]; ok && !seen[f.Digest] {
				seen[f.Digest] = true
				content = append(content, s)
			}
		}
	}
	_, err := b.builder.cfg.Catalog.CommitSets(ctx, b.by, cmd, content)
	if err != nil {
		return err
	}
	b.pending = nil
	return nil
}

// finish commits what waits, drops sets that nobody named, and says how far the sets
// have come.
func (b *Build) finish(ctx context.Context) error {
	var drop []string
	for name := range b.Current {
		if !b.kept[name] {
			drop = append(drop, name)
		}
	}
	slices.Sort(drop)
	return b.flush(ctx, b.At, drop)
}

// close lets go of what was stored.
func (b *Build) close() error {
	var errs []error
	for _, up := range b.uploads {
		errs = append(errs, up.Close())
	}
	return errors.Join(errs...)
}
