package catalog

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// stepPromote is the first of the steps of Promote: behind those of marks.
const stepPromote = stepMark + 1<<16

// Promotee is a version that somebody wants in another repository, and the aliases that
// are to move to it there.
type Promotee struct {
	From    Package
	Version string
	Aliases []string
}

// Promotion is what Promote does: all of it or nothing.
type Promotion struct {
	To     meta.Repository
	Items  []Promotee
	Reason string
}

// Promote makes versions those of another repository of the tenant, by reference and in
// one log entry, each with what it refers to and what is attached to it: the images of an
// index, signatures, SBOMs. Attachments in quarantine stay behind; a version in quarantine
// is refused, and so is one whose name has other content there.
//
// The caller may promote to To, which the gate or the caller of Promote has checked; that
// it may read what it promotes is checked here.
//
// Errors: meta.ErrNotFound, also of what the caller may not read; *meta.QuarantinedError;
// meta.ErrExists; meta.ErrConflict for another format, and for what changed meanwhile;
// meta.ErrInvalid for another tenant; meta.ErrTooLarge; *meta.ReadOnlyError;
// meta.ErrUnavailable.
func (c *Catalog) Promote(ctx context.Context, by Caller, p Promotion) (state.Promoted, meta.Token, error) {
	fail := func(err error) (state.Promoted, meta.Token, error) {
		return state.Promoted{}, meta.Token{}, fmt.Errorf("promote to %s: %w", p.To.Ref, err)
	}
	if err := c.keepsUp(ctx, p.To.Ref.Tenant); err != nil {
		return fail(err)
	}
	to, err := c.ForChange(ctx, by, p.To, p.To.Format, meta.ActionPromote)
	if err != nil {
		return fail(err)
	}
	e := &expansion{catalog: c, by: by.inside(), seen: map[promoted]bool{}}
	for _, item := range p.Items {
		if item.From.Repo.Tenant != to.Ref.Tenant {
			return fail(fmt.Errorf("%s is of another tenant, publish it there anew: %w", item.From, meta.ErrInvalid))
		}
		if err := e.readable(ctx, item.From.Repo); err != nil {
			return fail(err)
		}
		if err := e.add(ctx, item); err != nil {
			return fail(fmt.Errorf("%s %s: %w", item.From, item.Version, err))
		}
	}
	if err := c.secureOf(ctx, by, &to, e); err != nil {
		return fail(err)
	}
	receipt, err := c.do(ctx, by, stepPromote, state.Promote{To: to.Ref, Items: e.items, Reason: p.Reason})
	c.metrics.published(err)
	if err != nil {
		return fail(err)
	}
	done, _ := receipt.Value.(state.Promoted)
	return done, receipt.Token, nil
}

type promoted struct {
	pkg     Package
	version string
}

// expansion collects all that goes with what is promoted: what a version refers to before
// it, what is attached to it behind it.
type expansion struct {
	catalog *Catalog
	by      Caller
	seen    map[promoted]bool
	items   []state.Promotee
	from    []meta.RepoRef // of items
}

// readable refuses a repository that the caller may not read, and makes all later reads
// see what was acknowledged before.
func (e *expansion) readable(ctx context.Context, ref meta.RepoRef) error {
	r, asOf, err := ask(ctx, e.catalog, e.by, meta.Strong, state.GetRepository{Ref: ref})
	if err == nil && !e.catalog.cfg.May(e.by.Who, meta.ActionPull, &r) {
		err = fmt.Errorf("repository %s: %w", ref, meta.ErrNotFound)
	}
	if err == nil {
		e.by.After = meta.Token{Epoch: asOf.Epoch, Index: asOf.Index}
	}
	return err
}

func (e *expansion) add(ctx context.Context, item Promotee) error {
	key := promoted{item.From, item.Version}
	if e.seen[key] {
		if len(item.Aliases) > 0 {
			i := slices.IndexFunc(e.items, func(s state.Promotee) bool {
				return s.From == item.From.Repo.Name && s.Package == item.From.Name && s.Version == item.Version
			})
			if i >= 0 {
				e.items[i].Aliases = append(e.items[i].Aliases, item.Aliases...)
			}
		}
		return nil
	}
	e.seen[key] = true
	if len(e.seen) > state.MaxPromoted {
		return fmt.Errorf("over %d versions with what they refer to and what is attached; promote fewer at a time: %w", state.MaxPromoted, meta.ErrTooLarge)
	}
	v, _, err := ask(ctx, e.catalog, e.by, meta.Local, state.GetVersion{Repo: item.From.Repo, Package: item.From.Name, Version: item.Version})
	if err == nil {
		err = readable(item.From, &v)
	}
	if err != nil {
		return err
	}
	for ref, err := range e.references(ctx, &v) {
		if err == nil && ref.Version {
			err = e.add(ctx, Promotee{From: item.From, Version: string(ref.Digest)})
		}
		if err != nil {
			return err
		}
	}
	e.items = append(e.items, state.Promotee{From: item.From.Repo.Name, Package: item.From.Name, Version: v.Name, Revision: v.Revision, Aliases: item.Aliases})
	e.from = append(e.from, item.From.Repo)
	return e.attachments(ctx, item.From, v.Digest)
}

// references yields what a version refers to, staged or not.
func (e *expansion) references(ctx context.Context, v *meta.Version) func(yield func(meta.Reference, error) bool) {
	return func(yield func(meta.Reference, error) bool) {
		if v.Draft == "" {
			for _, ref := range v.References {
				if !yield(ref, nil) {
					return
				}
			}
			return
		}
		seen := 0
		for {
			page, _, err := ask(ctx, e.catalog, e.by, meta.Local, state.ListReferences{Repo: v.Repo, Package: v.Package, Version: v.Name, Page: Page{After: fmt.Sprint(seen), Limit: 10_000}})
			if err != nil {
				yield(meta.Reference{}, err)
				return
			}
			for _, ref := range page {
				if !yield(ref, nil) {
					return
				}
			}
			if seen += len(page); len(page) == 0 {
				return
			}
		}
	}
}

// attachments adds what is attached to a digest, but for what is in quarantine.
func (e *expansion) attachments(ctx context.Context, pkg Package, subject digest.Digest) error {
	if subject == "" {
		return nil
	}
	for after := ""; ; {
		page, _, err := ask(ctx, e.catalog, e.by, meta.Local, state.Attachments{
			Repo: pkg.Repo, Package: pkg.Name, Subject: subject, Readable: true, Page: Page{After: after, Limit: state.MaxPromoted},
		})
		if err != nil {
			return err
		}
		for _, v := range page {
			if err := e.add(ctx, Promotee{From: pkg, Version: v.Name}); err != nil {
				return fmt.Errorf("attachment %s: %w", v.Name, err)
			}
		}
		if len(page) == 0 {
			return nil
		}
		after = page[len(page)-1].Name
	}
}

// secureOf waits for second copies of all that is promoted where the target wants them
// before it acknowledges.
func (c *Catalog) secureOf(ctx context.Context, by Caller, to *meta.Repository, e *expansion) error {
	if to.CopiesBeforeAck < 2 {
		return nil
	}
	var files []meta.File
	var refs []meta.Reference
	step := stepPromote + 1
	mounted := map[digest.Digest]bool{}
	mount := func(from meta.RepoRef, d digest.Digest) error {
		if mounted[d] {
			return nil
		}
		mounted[d] = true
		receipt, err := c.do(ctx, by, step, state.MountBlob{From: from, To: to.Ref, Digest: d})
		step++
		by.After = receipt.Token
		return err
	}
	for i, item := range e.items {
		v, _, err := raftmeta.Ask(ctx, c.cfg.Metadata, meta.Local, state.GetVersion{Repo: e.from[i], Package: item.Package, Version: item.Version})
		if err != nil {
			return err
		}
		for after := ""; ; {
			page, _, err := raftmeta.Ask(ctx, c.cfg.Metadata, meta.Local, state.ListFiles{Repo: e.from[i], Package: item.Package, Version: item.Version, Page: Page{After: after, Limit: 1000}})
			if err != nil {
				return err
			}
			for _, f := range page {
				if err := mount(e.from[i], f.Digest); err != nil {
					return err
				}
			}
			if files = append(files, page...); len(page) == 0 {
				break
			}
			after = page[len(page)-1].Path
		}
		for ref, err := range e.references(ctx, &v) {
			if err == nil && !ref.Version {
				refs = append(refs, ref)
				err = mount(e.from[i], ref.Digest)
			}
			if err != nil {
				return err
			}
		}
	}
	err := c.secure(ctx, by, to.Ref, nil, files, refs)
	if errors.Is(err, meta.ErrUnavailable) {
		return fmt.Errorf("nothing was promoted: %w", err)
	}
	return err
}
