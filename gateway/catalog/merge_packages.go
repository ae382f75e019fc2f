package catalog

import (
	"context"
	"iter"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// packagesPage is how many packages of a repository are read at a time.
const packagesPage = 250

// PackagesOf walks the packages of several repositories that have a version, in byte order
// of their names, for documents that name them all. A name that several have is the first
// one's. One page of each repository is in memory at a time. The walk ends with the first
// error.
//
// Errors: as Packages has them.
func (c *Catalog) PackagesOf(ctx context.Context, by Caller, repos []meta.Repository) iter.Seq2[meta.Package, error] {
	return func(yield func(meta.Package, error) bool) {
		after := ""
		pages, done := make([][]meta.Package, len(repos)), make([]bool, len(repos))
		for {
			var first *meta.Package
			for i := range repos {
				if len(pages[i]) == 0 && !done[i] {
					page, _, err := c.Packages(ctx, by, repos[i].Ref, "", Page{After: after, Limit: packagesPage})
					if err != nil {
						yield(meta.Package{}, err)
						return
					}
					pages[i], done[i] = page, len(page) == 0
				}
				if len(pages[i]) > 0 && (first == nil || pages[i][0].Name < first.Name) {
					first = &pages[i][0]
				}
			}
			if first == nil {
				return
			}
			after = first.Name
			for i := range pages {
				if len(pages[i]) > 0 && pages[i][0].Name == after {
					pages[i] = pages[i][1:]
				}
			}
			if first.Versions > 0 && !yield(*first, nil) {
				return
			}
		}
	}
}
