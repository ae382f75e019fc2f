package upstream

import (
	"fmt"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// rulesOf returns the rules of a proxy with its patterns folded as the format folds the
// names of packages, which is what they are compared with: people write Newtonsoft.* and
// serde_*, and mean what a client asks for.
func rulesOf(repo *meta.Repository) meta.Upstream {
	u := *repo.Upstream
	if fold := folds[repo.Format]; fold != nil {
		u.Allow, u.Block = each(u.Allow, fold), each(u.Block, fold)
	}
	return u
}

// folds are of the formats that take names for one another.
var folds = map[string]func(string) string{
	"nuget": strings.ToLower,
	"cargo": func(s string) string { return strings.ReplaceAll(strings.ToLower(s), "_", "-") },
	"pypi": func(s string) string { // PEP 503: a run of these is one -
		parts := strings.FieldsFunc(strings.ToLower(s), func(r rune) bool { return r == '-' || r == '_' || r == '.' })
		return strings.Join(parts, "-")
	},
}

func each(all []string, f func(string) string) []string {
	out := make([]string, len(all))
	for i, s := range all {
		out[i] = f(s)
	}
	return out
}

// unnamed refuses a package of a proxy whose file's name does not say which it is, where
// rules would have to be asked: they must not be gone around by a name. form is what says
// it.
//
// Errors: meta.ErrDenied; nil where there are no rules.
func unnamed(repo *meta.Repository, path, form string) error {
	if repo.Upstream == nil || len(repo.Upstream.Allow)+len(repo.Upstream.Block) == 0 {
		return nil
	}
	return fmt.Errorf("file %.200q is not named %s, so the rules of proxy repository %s cannot say whether it may be fetched: %w", path, form, repo.Ref, meta.ErrDenied)
}
