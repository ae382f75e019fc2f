package upstream

import (
	"errors"
	"testing"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Rules are written as people write names, and hold for what clients ask for.
func TestRulesAreFolded(t *testing.T) {
	for _, c := range []struct {
		format, pattern string
		holds, not      []string
	}{
		{"nuget", "Evil.*", []string{"evil.core", "evil."}, []string{"evilcore"}},
		{"cargo", "Evil_*", []string{"evil-core"}, []string{"evil"}},
		{"pypi", "Evil__Core.*", []string{"evil-core-x", "evil-core-"}, []string{"evilcore-x"}},
		{"pypi", "*-Core", []string{"evil-core"}, []string{"core"}},
		{"npm", "@Evil/*", []string{"@Evil/core"}, []string{"@evil/core"}},
		{"go", "example.com/Evil_*", []string{"example.com/Evil_x"}, []string{"example.com/evil-x"}},
	} {
		blocks := &meta.Repository{Kind: meta.KindProxy, Format: c.format, Upstream: &meta.Upstream{Block: []string{c.pattern}}}
		allows := &meta.Repository{Kind: meta.KindProxy, Format: c.format, Upstream: &meta.Upstream{Allow: []string{c.pattern}}}
		check := func(name string, holds bool) {
			w := &Want{Path: "x", Package: name}
			if err := admits(blocks, w); holds != errors.Is(err, meta.ErrDenied) {
				t.Errorf("%s: block %s of %s: %v", c.format, c.pattern, name, err)
			}
			if err := admits(allows, w); holds != (err == nil) {
				t.Errorf("%s: allow %s of %s: %v", c.format, c.pattern, name, err)
			}
		}
		for _, name := range c.holds {
			check(name, true)
		}
		for _, name := range c.not {
			check(name, false)
		}
		if len(blocks.Upstream.Block) != 1 || blocks.Upstream.Block[0] != c.pattern {
			t.Errorf("the record's rule became %v", blocks.Upstream.Block)
		}
	}
}
