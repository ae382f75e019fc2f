package catalog

import (
	"context"
	"iter"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// mergePage is how many versions are read at a time: each may have a summary of 24 KiB.
const mergePage = 256

// mergeLast is up to how many versions a page is the last one: a longer one may have ended
// early, past 16 MiB of records, which so few do not have.
const mergeLast = mergePage / 2

// VersionsOf walks the live versions of a package over several repositories in byte order
// of their names, for documents that name them all. A name that several have is the first
// one's; what is in quarantine is left out, and shows no other's in its place. One page of
// each repository is in memory at a time. The walk ends with the first error.
//
// Errors: as Versions has them.
func (c *Catalog) VersionsOf(ctx context.Context, by Caller, repos []meta.Repository, pkg string) iter.Seq2[meta.Version, error] {
	return func(yield func(meta.Version, error) bool) {
		heads := make([]*head, len(repos))
		for i := range repos {
			heads[i] = &head{catalog: c, pkg: Package{Repo: repos[i].Ref, Name: pkg}}
		}
		for {
			var first *head
			for _, h := range heads {
				if err := h.fill(ctx, by); err != nil {
					yield(meta.Version{}, err)
					return
				}
				if !h.ended && (first == nil || h.page[0].Name < first.page[0].Name) {
					first = h
				}
			}
			if first == nil {
				return
			}
			v := first.page[0]
			for _, h := range heads {
				if !h.ended && h.page[0].Name == v.Name {
					h.page = h.page[1:]
				}
			}
			if v.Quarantine == nil && !yield(v, nil) {
				return
			}
		}
	}
}

// head is where a walk stands in one repository.
type head struct {
	catalog *Catalog
	pkg     Package
	page    []meta.Version
	after   string
	last    bool // there is no page behind this one
	ended   bool
}

// fill makes the page hold something, unless there is nothing more.
func (h *head) fill(ctx context.Context, by Caller) error {
	if len(h.page) > 0 || h.ended {
		return nil
	}
	if h.last {
		h.ended = true
		return nil
	}
	page, _, err := h.catalog.Versions(ctx, by, h.pkg, Page{After: h.after, Limit: mergePage})
	if err != nil {
		return err
	}
	h.page, h.last, h.ended = page, len(page) < mergeLast, len(page) == 0
	if len(page) > 0 {
		h.after = page[len(page)-1].Name
	}
	return nil
}
