package cargo

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// names implements upstream.Names: config.json and the line of a version say together
// where its crate is.
func (p *Protocol) names(ctx context.Context, by catalog.Caller, repo *meta.Repository, w *upstream.Want) (bool, error) {
	for _, name := range spellings(w.Path, w.Package) {
		e, err := p.entryOf(ctx, by, repo, name, w.Version)
		if errors.Is(err, meta.ErrNotFound) {
			continue
		}
		if err != nil {
			return false, err
		}
		at, err := p.downloadPath(ctx, by, repo, e)
		if err != nil || at == w.Path {
			return err == nil, err
		}
	}
	return false, nil
}

// maxSpellings bounds how many ways to write a crate's name are looked up.
const maxSpellings = 4

// spellings are the ways to write a crate's name, of which only the normalized one is
// known: as the address does, which is how the index has it, or else all of one kind, for
// addresses that are checksums. Small letters, as the index is asked in those.
func spellings(at, normalized string) []string {
	if normalized == "" {
		return nil
	}
	var all []string
	for i := 0; i+len(normalized) <= len(at) && len(all) < maxSpellings; i++ {
		s := strings.ToLower(at[i : i+len(normalized)])
		if normalize(s) == normalized && !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	for _, s := range []string{normalized, strings.ReplaceAll(normalized, "-", "_")} {
		if !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	return all
}
