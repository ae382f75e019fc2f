// Package cargo serves crates to cargo: a sparse registry (the Cargo book, «Registry
// Index», «Web API», «Registry Authentication»).
//
//	sparse+http://HOST/cargo/<tenant>/<repository>/        the index: config.json, de/mo/demo
//	/cargo/<tenant>/<repository>/api/v1/crates/...         publish, yank, owners, search, download
//
// Start reading at Routes; frame.go reads what cargo publishes, crate.go the archive in
// it, line.go makes the index's line of it and compares both, read.go answers the index
// and downloads, proxy.go passes on what an upstream has.
//
// A package is a crate's name with small letters and `-` for `_`, which people and cargo
// take for one another; how its first publisher spelt it is kept, and who spells it
// otherwise is refused. A version is without build metadata, by which versions do not
// differ. Its document is the crate, its summary the index's line without `yanked`, which
// is a mark. The index of a crate is rendered from those of all versions when it is asked
// for, and kept until the package changes.
//
// cargo sends a token as it is, without a scheme, when config.json says auth-required or
// a 401 names `Cargo`. The package starts no goroutines.
package cargo

import (
	"net/http"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/rendered"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Format is the format of the repositories that this protocol serves.
const Format = "cargo"

// Protocol is a sparse registry over a catalog. It is safe for concurrent use.
type Protocol struct {
	catalog   *catalog.Catalog
	documents *rendered.Cache
	upstream  *upstream.Engine
}

var _ protocol.Protocol = (*Protocol)(nil)

// New returns the protocol over a catalog; the index is kept in documents, and what
// proxies have comes from the engine.
func New(c *catalog.Catalog, documents *rendered.Cache, engine *upstream.Engine) *Protocol {
	p := &Protocol{catalog: c, documents: documents, upstream: engine}
	engine.NamedBy(Format, p.names)
	return p
}

// Format implements protocol.Protocol.
func (p *Protocol) Format() string { return Format }

// Routes implements protocol.Protocol.
func (p *Protocol) Routes() []protocol.Route {
	const (
		at     = "/cargo/{tenant}/{repository}/"
		crates = at + "api/v1/crates"
	)
	read := func(name, pattern string, serve func(*protocol.Call) error) protocol.Route {
		return protocol.Route{Name: "cargo_" + name, Method: http.MethodGet, Pattern: pattern, Action: access.Pull, Place: protocol.Anywhere, Serve: serve}
	}
	write := func(name, method, pattern string, serve func(*protocol.Call) error) protocol.Route {
		return protocol.Route{Name: "cargo_" + name, Method: method, Pattern: pattern, Action: access.Push, Place: protocol.AnyServer, Serve: serve}
	}
	return []protocol.Route{
		read("config", at+"config.json", p.config),
		read("index_1", at+"1/{crate}", p.index),
		read("index_2", at+"2/{crate}", p.index),
		read("index_3", at+"3/{one}/{crate}", p.index),
		read("index", at+"{one}/{two}/{crate}", p.index),
		read("download", crates+"/{crate}/{version}/download", p.download),
		read("search", crates, p.search),
		read("owners", crates+"/{crate}/owners", p.owners),
		write("publish", http.MethodPut, crates+"/new", p.publish),
		write("yank", http.MethodDelete, crates+"/{crate}/{version}/yank", p.yank),
		write("unyank", http.MethodPut, crates+"/{crate}/{version}/unyank", p.unyank),
		write("owners_add", http.MethodPut, crates+"/{crate}/owners", setOwners),
		write("owners_remove", http.MethodDelete, crates+"/{crate}/owners", setOwners),
		// Where cargo sends people who need a token; it says nothing of the repository.
		{Name: "cargo_me", Method: http.MethodGet, Pattern: "/cargo/{owner}/{name}/me", Action: access.Public, Place: protocol.Anywhere, Serve: me},
	}
}

func caller(c *protocol.Call) catalog.Caller {
	return catalog.Caller{Who: c.Who, Origin: c.Origin(), After: c.After, Asked: c.Asked, Absent: c.Absent()}
}

func public(c *protocol.Call) bool {
	return c.Repository != nil && c.Repository.Visibility == meta.VisibilityPublic
}

// baseURL is the repository as the client sees it.
func baseURL(r *http.Request, repo string) string {
	return protocol.BaseURL(r) + "/cargo/" + repo
}
