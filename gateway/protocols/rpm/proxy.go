package rpm

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

// maxUpstreamDocument bounds metadata of another repository.
const maxUpstreamDocument = 1 << 30

// isPackage tells a file that is a package, whatever else its name says of it.
var isPackage = regexp.MustCompile(`(?i)\.d?rpm([^a-z0-9]|$)`)

// proxy answers with a file of another repository, as that has it.
func (p *Protocol) proxy(c *protocol.Call, name string) error {
	want, err := wanted(name)
	if err == nil && want.Package == "" && isPackage.MatchString(path.Base(name)) {
		err = upstream.Unnamed(c.Repository, name, "<name>-<version>-<release>.<architecture>.rpm")
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

// wanted returns what to ask of the other repository for a path: metadata whose name
// holds its digest, and packages, never change, all else may.
//
// Errors: meta.ErrNotFound for what no repository has there.
func wanted(name string) (upstream.Want, error) {
	w := upstream.Want{Path: (&url.URL{Path: name}).EscapedPath(), MaxBytes: maxUpstreamDocument, Raw: true}
	if name == "" || strings.HasSuffix(name, "/") || meta.CheckPath(name) != nil {
		return w, fmt.Errorf("%.200q is no file of a repository: %w", name, meta.ErrNotFound)
	}
	base := path.Base(name)
	if d, ok := named(base); ok {
		w.Kind, w.Digest = upstream.File, d
		return w, nil
	}
	if n, err := parseFile(base); err == nil {
		w.Kind, w.Package, w.Version, w.MaxBytes = upstream.File, n.Name, n.version(), 0
	}
	return w, nil
}
