package apt

import (
	"fmt"
	"net/url"
	"path"
	"regexp"
	"strings"

	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/publication"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// maxUpstreamIndex bounds an index of another archive: Contents of a large one passes
// 500 MB unpacked.
const maxUpstreamIndex = 1 << 30

// isPackage tells a file that is a package, whatever else its name says of it.
var isPackage = regexp.MustCompile(`(?i)\.[ud]?deb([^a-z0-9]|$)`)

// proxy answers with a file of another archive, as that has it.
func (p *Protocol) proxy(c *protocol.Call, name string) error {
	want, err := wanted(name)
	if err == nil && want.Package == "" && isPackage.MatchString(path.Base(name)) {
		err = upstream.Unnamed(c.Repository, name, "<package>_<version>_<architecture>.deb")
	}
	if err != nil {
		return err
	}
	by := publication.Caller(c)
	content := protocol.Content{Cache: protocol.Revalidate, Public: c.Repository.Visibility == meta.VisibilityPublic}
	if want.Kind == upstream.File {
		content.Cache = protocol.Immutable
		return upstream.ServeFile(c, p.engine, by, c.Repository, want, content)
	}
	found, err := p.engine.Fetch(c.R.Context(), by, c.Repository, want)
	if err != nil {
		return err
	}
	return upstream.Serve(c, p.engine, found, content)
}

// wanted returns what to ask of the other archive for a path. What is below dists/ may
// change, but for what a hash names; a file of the pool never does, and is of a package.
//
// Errors: meta.ErrNotFound for what no archive has there.
func wanted(name string) (upstream.Want, error) {
	w := upstream.Want{Path: (&url.URL{Path: name}).EscapedPath(), MaxBytes: maxUpstreamIndex, Raw: true}
	if name == "" || strings.HasSuffix(name, "/") || meta.CheckPath(name) != nil {
		return w, fmt.Errorf("%.200q is no file of an archive: %w", name, meta.ErrNotFound)
	}
	if d, ok := byHash(name); ok {
		w.Kind, w.Digest = upstream.File, d
		return w, nil
	}
	if pkg, version, err := parseFile(path.Base(name)); err == nil {
		w.Kind, w.Package, w.Version, w.MaxBytes = upstream.File, pkg, version, 0
		return w, nil
	}
	if top, _, _ := strings.Cut(name, "/"); top == "pool" { // sources, and files of installers
		w.Kind, w.MaxBytes = upstream.File, 0
	}
	return w, nil
}
