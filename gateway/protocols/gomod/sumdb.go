package gomod

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"golang.org/x/mod/module"

	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Bounds of what a checksum database answers: a tile is 8 KiB, of data some more.
const (
	maxTileBytes   = 1 << 20
	maxLookupBytes = 64 << 10
	// latestTTL is how long a signed tree head is passed on: an old one is as good, as long
	// as it has what was looked up.
	latestTTL = time.Minute
)

var (
	databasePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,126}[a-z0-9])?$`)
	tilePattern     = regexp.MustCompile(`^tile/[0-9]{1,2}/([0-9]{1,2}|data)/(x[0-9]{3}/){0,8}[0-9]{3}(\.p/[0-9]{1,3})?$`)
)

// sumdb passes on a checksum database (go.dev/ref/mod#checksum-database) as the upstream
// of a proxy does. It is signed, so that nobody on the way can change it. A group passes on
// that of its first proxy; a look-up of a module that a hosted member owns is refused, so
// that its name is told to nobody. A hosted repository has none, upon which the go command
// asks the database itself.
func (p *Protocol) sumdb(c *protocol.Call) error {
	database, path := c.Params.Get("database"), c.Params.Get("path")
	missing := fmt.Errorf("checksum database %.200q: %w", database+"/"+path, meta.ErrNotFound)
	if !databasePattern.MatchString(database) || c.Repository == nil || c.Repository.Kind == meta.KindHosted {
		return missing
	}
	w := upstream.Want{Path: "sumdb/" + database + "/" + path, MaxBytes: maxLookupBytes}
	content := protocol.Content{MediaType: textType, Public: public(c), Cache: protocol.Revalidate}
	asked, isLookup := strings.CutPrefix(path, "lookup/")
	name := ""
	switch {
	case path == "supported":
	case path == "latest":
		w.TTL = latestTTL
	case tilePattern.MatchString(path):
		w.Kind, w.MaxBytes = upstream.File, maxTileBytes
		content.Cache, content.MediaType = protocol.Immutable, "application/octet-stream"
	case isLookup:
		m, err := lookedUp(asked)
		if err != nil {
			return fmt.Errorf("%w: %v", missing, err)
		}
		// Escaped anew: what the router unescaped may not be sent as it is.
		escaped, err := module.EscapeVersion(m.Version)
		if err != nil {
			return missing
		}
		w.Path = "sumdb/" + database + "/lookup/" + escape(m.Path) + "@" + escaped
		// The rules of the proxy are asked: what is blocked is told to nobody.
		w.Kind, w.Package, w.Version, name = upstream.File, m.Path, m.Version, m.Path
	default:
		return missing
	}
	repo, err := p.database(c, name)
	if err != nil {
		return err
	}
	f, err := p.upstream.Fetch(c.R.Context(), caller(c), repo, w)
	if err != nil {
		return err
	}
	if path == "supported" {
		c.AsOf(f.AsOf)
		return protocol.ServeBytes(c.W, c.R, nil, content)
	}
	return upstream.Serve(c, p.upstream, f, content)
}

// lookedUp reads `module@version`, escaped.
func lookedUp(s string) (m module.Version, err error) {
	path, version, ok := strings.Cut(s, "@")
	if !ok {
		return m, fmt.Errorf("look-up %.200q is not MODULE@VERSION: %w", s, meta.ErrInvalid)
	}
	if m.Path, err = modulePath(path); err != nil {
		return m, err
	}
	m.Version, err = module.UnescapeVersion(version)
	return m, err
}

// database returns the proxy that passes a checksum database on: for a look-up the one
// that has the module.
//
// Errors: meta.ErrNotFound.
func (p *Protocol) database(c *protocol.Call, name string) (*meta.Repository, error) {
	if c.Repository.Kind == meta.KindProxy {
		return c.Repository, nil
	}
	if name == "" {
		return p.firstProxy(c, c.Repository, 2)
	}
	sources, err := p.sources(c, name)
	if err != nil {
		return nil, err
	}
	if sources[0].Kind != meta.KindProxy {
		return nil, fmt.Errorf("module %s is of %s: leave it out with GONOSUMDB=%s: %w", name, sources[0].Ref, name, meta.ErrNotFound)
	}
	return &sources[0], nil
}

// firstProxy returns the first proxy of a group, whose groups are at most depth deep.
//
// Errors: meta.ErrNotFound.
func (p *Protocol) firstProxy(c *protocol.Call, group *meta.Repository, depth int) (*meta.Repository, error) {
	missing := fmt.Errorf("%s has no proxy to pass a checksum database on: %w", group.Ref, meta.ErrNotFound)
	for _, name := range group.Members {
		m, _, err := p.catalog.Repository(c.R.Context(), caller(c), meta.RepoRef{Tenant: group.Ref.Tenant, Name: name})
		found := &m
		if err == nil && m.Kind == meta.KindGroup && depth > 1 {
			found, err = p.firstProxy(c, &m, depth-1)
		}
		switch {
		case errors.Is(err, meta.ErrNotFound):
		case err != nil:
			return nil, err
		case found.Kind == meta.KindProxy:
			return found, nil
		}
	}
	return nil, missing
}
