package upstream

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"strings"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Serve answers a GET or HEAD with what was found. The size, the ETag and the reader of
// content are filled in, and its media type and Last-Modified where it has none.
//
// Errors: as protocol.Serve has them.
func Serve(c *protocol.Call, e *Engine, f *Found, content protocol.Content) error {
	Describe(c, f)
	content.Size = f.Record.Size
	content.ETag = cmp.Or(content.ETag, protocol.ETag(f.Record.Digest))
	content.MediaType = cmp.Or(content.MediaType, f.Record.MediaType)
	if content.Modified.IsZero() {
		// What does not parse is none.
		content.Modified, _ = http.ParseTime(f.Record.LastModified)
	}
	content.Open = func(ctx context.Context) (io.ReadSeekCloser, error) { return e.Open(ctx, f) }
	return protocol.Serve(c.W, c.R, content)
}

// Describe writes what an answer is that was made of f: how old, and a Warning (RFC
// 7234, 5.5) when the upstream could not be asked whether it is still so.
func Describe(c *protocol.Call, f *Found) {
	c.AsOf(f.AsOf)
	if f.Stale {
		c.W.Header().Add("Warning", `110 - "Response is Stale"`)
		c.W.Header().Add("Warning", `111 - "Revalidation Failed"`)
	}
}

// Tree is a foreign repository that clients read as a tree of files, each as its upstream
// has it, so that its own signatures hold: what of its paths a protocol has to know.
type Tree struct {
	// Name sets what the path says of the file: Kind, Digest, Package, Version, MaxBytes. It
	// is asked of paths that meta.CheckPath takes.
	Name func(path string, w *Want)
	// IsPackage matches the names of packages, whatever else the name says; Form is how
	// one must be named for the rules of a repository to know which it is.
	IsPackage *regexp.Regexp
	Form      string
}

// maxIndexBytes bounds an index of a Tree: the Contents of a large Debian archive pass 500
// MB unpacked.
const maxIndexBytes = 1 << 30

// want returns what to ask of the upstream for a path.
//
// Errors: meta.ErrNotFound for what no upstream has there; meta.ErrDenied for a package that
// rules would have to be asked about, and its name does not say which it is.
func (t *Tree) want(repo *meta.Repository, name string) (Want, error) {
	w := Want{Path: (&url.URL{Path: name}).EscapedPath(), MaxBytes: maxIndexBytes, Raw: true}
	if name == "" || strings.HasSuffix(name, "/") || meta.CheckPath(name) != nil {
		return w, fmt.Errorf("%.200q is no file of %s: %w", name, repo.Ref, meta.ErrNotFound)
	}
	t.Name(name, &w)
	if w.Package == "" && t.IsPackage.MatchString(path.Base(name)) {
		return w, unnamed(repo, name, t.Form)
	}
	return w, nil
}

// ServeTree answers a GET or HEAD of a call's repository, a proxy, with the file of that
// name in the tree. A File never changes; all else is asked for anew.
//
// Errors: meta.ErrNotFound; meta.ErrDenied; as Fetch and protocol.Serve have them.
func ServeTree(c *protocol.Call, e *Engine, by catalog.Caller, t *Tree, name string) error {
	w, err := t.want(c.Repository, name)
	if err != nil {
		return err
	}
	content := protocol.Content{Cache: protocol.Revalidate, Public: c.Repository.Visibility == meta.VisibilityPublic}
	if w.Kind == File {
		content.Cache = protocol.Immutable
		return ServeFile(c, e, by, c.Repository, w, content)
	}
	found, err := e.Fetch(c.R.Context(), by, c.Repository, w)
	if err != nil {
		return err
	}
	return Serve(c, e, found, content)
}
