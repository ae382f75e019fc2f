package generic

import (
	"context"
	"errors"
	"fmt"
	"html/template"
	"net/url"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// maxEntries is how many entries one listing has at most, and has when the
// client does not say.
const maxEntries = 1000

// afterAll sorts after every name in a directory: U+10FFFF is no character.
const afterAll = "\U0010FFFF"

// listing is a directory, as JSON and for the template.
type listing struct {
	Path    string  `json:"path"` // "" or ending in /
	Entries []entry `json:"entries"`
}

// entry is a file, or a directory, whose name ends in /.
type entry struct {
	Name      string        `json:"name"`
	Size      *int64        `json:"size,omitempty"`
	Digest    digest.Digest `json:"digest,omitempty"`
	MediaType string        `json:"media_type,omitempty"`
	Modified  *time.Time    `json:"modified,omitempty"`
}

// Href is the entry's address relative to its directory. The ./ keeps a colon
// in a name from looking like a scheme.
func (e entry) Href() string { return "./" + (&url.URL{Path: e.Name}).EscapedPath() }

// list answers a directory: names in byte order, paged by n and last.
func (p *Protocol) list(c *protocol.Call, dir string) error {
	page, err := protocol.ParsePage(c.R.URL.Query(), "n", "last", maxEntries, maxEntries)
	if err != nil {
		return err
	}
	if dir != "" {
		if err := meta.CheckPath(strings.TrimSuffix(dir, "/")); err != nil {
			return fmt.Errorf("%w: %w", meta.ErrNotFound, err)
		}
	}
	l := listing{Path: dir, Entries: []entry{}}
	accept := protocol.ParseAccept(c.R.Header).Best("application/json", "text/html")
	all := []meta.Repository{record(c)}
	switch all[0].Kind {
	case meta.KindProxy:
		return p.proxiedListing(c, &all[0], dir, accept)
	case meta.KindGroup:
		if all, _, err = p.catalog.Members(c.R.Context(), caller(c), c.Repo); err != nil {
			return err
		}
	}
	asOf, more, err := p.merged(c.R.Context(), caller(c), all, page, &l)
	if err != nil {
		return err
	}
	if len(l.Entries) == 0 && dir != "" && page.After == "" && page.Limit > 0 {
		return fmt.Errorf("directory %s of %s: %w", dir, c.Repo, meta.ErrNotFound)
	}
	c.AsOf(asOf)
	if more {
		set := url.Values{"last": {l.Entries[len(l.Entries)-1].Name}}
		protocol.LinkNext(c.W, c.R, set)
	}
	h := c.W.Header()
	h.Set("Vary", "Accept")
	if accept != "text/html" {
		return writeJSON(c, l, public(c))
	}
	var b strings.Builder
	if err := listingPage.Execute(&b, l); err != nil {
		return fmt.Errorf("render the listing of %s: %w", dir, err)
	}
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	return protocol.ServeBytes(c.W, c.R, []byte(b.String()), protocol.Content{
		MediaType: "text/html; charset=utf-8", Cache: protocol.Revalidate, Public: public(c),
	})
}

// entries fills the listing. Packages come in byte order of their whole paths,
// so a subdirectory is one run of them: of each run only the first page is read.
func (p *Protocol) entries(ctx context.Context, by catalog.Caller, repo meta.RepoRef, page protocol.PageRequest, l *listing) (asOf meta.AsOf, more bool, err error) {
	after := ""
	if page.After != "" {
		after = l.Path + page.After
		if strings.HasSuffix(after, "/") {
			after += afterAll
		}
	}
	for page.Limit > 0 {
		ask := catalog.Page{After: after, Limit: maxEntries}
		packages, a, err := p.catalog.Packages(ctx, by, repo, l.Path, ask)
		if err != nil {
			return a, false, err
		}
		asOf = a
		for _, pkg := range packages {
			after = pkg.Name
			name, _, inside := strings.Cut(strings.TrimPrefix(pkg.Name, l.Path), "/")
			e := entry{Name: name}
			if inside {
				e.Name += "/"
				after = l.Path + e.Name + afterAll
				if n := len(l.Entries); n > 0 && l.Entries[n-1].Name == e.Name {
					continue
				}
			}
			if pkg.Versions == 0 {
				continue
			}
			if !inside {
				ok, err := p.describe(ctx, by, catalog.Package{Repo: repo, Name: pkg.Name}, &e)
				if err != nil {
					return asOf, false, err
				}
				if !ok {
					continue
				}
			}
			if len(l.Entries) == page.Limit {
				return asOf, true, nil
			}
			l.Entries = append(l.Entries, e)
		}
		if len(packages) < ask.Limit {
			break
		}
	}
	return asOf, false, nil
}

// describe fills in what a path serves; false when it serves nothing.
func (p *Protocol) describe(ctx context.Context, by catalog.Caller, pkg catalog.Package, e *entry) (bool, error) {
	a, _, err := p.catalog.Peek(ctx, by, pkg, current)
	_, kept := errors.AsType[*meta.QuarantinedError](err)
	if kept || errors.Is(err, meta.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	modified := a.Alias.MovedAt.Std()
	e.Size, e.Digest, e.MediaType, e.Modified = &a.Version.Size, a.Version.Digest, a.Version.MediaType, &modified
	return true, nil
}

// move is one step in the history of a path.
type move struct {
	Digest  digest.Digest `json:"digest,omitempty"`
	At      time.Time     `json:"at"`
	By      string        `json:"by"`
	Deleted bool          `json:"deleted,omitempty"`
}

// history answers the moves of a path, newest first.
func (p *Protocol) history(c *protocol.Call, pkg catalog.Package) error {
	page, err := protocol.ParsePage(c.R.URL.Query(), "n", "last", maxEntries, maxEntries)
	if err != nil {
		return err
	}
	moves := []move{}
	if page.Limit > 0 {
		as, asOf, err := p.catalog.History(c.R.Context(), caller(c), pkg, current, catalog.Page{After: page.After, Limit: page.Limit})
		if err != nil {
			return err
		}
		if len(as) == 0 && page.After == "" {
			return fmt.Errorf("file %s: %w", pkg, meta.ErrNotFound)
		}
		c.AsOf(asOf)
		for _, a := range as {
			moves = append(moves, move{Digest: a.Digest, At: a.MovedAt.Std(), By: a.MovedBy, Deleted: a.Deleted})
		}
		if len(as) == page.Limit {
			protocol.LinkNext(c.W, c.R, url.Values{"last": {fmt.Sprint(as[len(as)-1].Move)}})
		}
	}
	return writeJSON(c, map[string]any{"path": pkg.Name, "moves": moves}, false)
}

var listingPage = template.Must(template.New("listing").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>/{{.Path}}</title>
<style>body{font:15px system-ui;margin:2em}td{padding:.15em 1.5em .15em 0}td+td{text-align:right;font-variant-numeric:tabular-nums}</style></head>
<body><h1>/{{.Path}}</h1><table>
{{if .Path}}<tr><td><a href="../">../</a></td></tr>
{{end}}{{range .Entries}}<tr><td><a href="{{.Href}}">{{.Name}}</a></td>{{if .Size}}<td>{{.Size}}</td><td>{{.Modified.Format "2006-01-02 15:04:05"}}</td>{{end}}</tr>
{{end}}</table></body></html>
`))

func writeJSON(c *protocol.Call, v any, public bool) error {
	b, err := marshal(v)
	if err != nil {
		return err
	}
	return protocol.ServeBytes(c.W, c.R, b, protocol.Content{MediaType: "application/json", Cache: protocol.Revalidate, Public: public})
}
