// Package npm serves packages to npm, pnpm and yarn: hosted ones, those of an upstream
// through a proxy, and groups of both.
//
//	/npm/<tenant>/<repository>/<name>                    a package's document (the packument)
//	/npm/<tenant>/<repository>/<name>/-/<file>.tgz       a tarball
//	/npm/<tenant>/<repository>/-/...                     tags, search, audit, keys, ping
//
// A version is kept as its tarball, byte for byte, with its manifest as the version's
// summary; a dist-tag is an alias. Documents are rendered from these, in pages, once a
// revision of the package (package rendered), so that publishing costs the same however
// many versions there are.
//
// Start reading at Protocol and Routes. names.go has the rules of names and paths,
// document.go reads what clients PUT as it arrives, tarball.go and manifest.go judge what
// is published, publish.go and change.go write, packument.go, serve.go and search.go
// read, proxy.go and group.go ask upstreams and members. Logging in is npmlogin's.
//
// Invariants: a tarball is never in memory; what is refused leaves nothing behind; what a
// client says of a tarball counts only where the tarball says the same; two names that
// differ in case or separators only are one package.
//
// Sources: npm's registry documentation (REGISTRY-API, package-metadata),
// validate-npm-package-name, libnpmpublish, npm-registry-fetch. The package starts one
// goroutine for each tarball that comes in, which ends before the answer.
package npm

import (
	"net/http"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/rendered"
	"github.com/shoal-registry/shoal/gateway/upstream"
)

// Format is the format of the repositories that this protocol serves.
const Format = "npm"

// latest is the tag that clients take without another.
const latest = "latest"

// Protocol is npm's over a catalog. It is safe for concurrent use.
type Protocol struct {
	catalog *catalog.Catalog
	pages   *rendered.Cache
	proxies *upstream.Engine
}

var _ protocol.Protocol = (*Protocol)(nil)

// New returns the protocol over c, with pages for its documents and proxies for what
// others have.
func New(c *catalog.Catalog, pages *rendered.Cache, proxies *upstream.Engine) *Protocol {
	p := &Protocol{catalog: c, pages: pages, proxies: proxies}
	proxies.NamedBy(Format, p.names)
	return p
}

// Format implements protocol.Protocol.
func (p *Protocol) Format() string { return Format }

// Routes implements protocol.Protocol. The names of packages have slashes, escaped or
// not, so most routes take the rest of a path, which parsePath reads.
func (p *Protocol) Routes() []protocol.Route {
	const repo = "/npm/{tenant}/{repository}/"
	const tags = repo + "-/package/{path...}/dist-tags"
	return []protocol.Route{
		{Name: "npm_get", Method: http.MethodGet, Pattern: repo + "{path...}", Action: access.Pull, Place: protocol.Anywhere, Serve: p.get},
		{Name: "npm_publish", Method: http.MethodPut, Pattern: repo + "{path...}", Action: access.Push, Place: protocol.AnyServer, Serve: p.put},
		{Name: "npm_rewrite", Method: http.MethodPut, Pattern: repo + "{path...}/-rev/{rev}", Action: access.Delete, Place: protocol.AnyServer, Serve: p.rewrite},
		{Name: "npm_unpublish", Method: http.MethodDelete, Pattern: repo + "{path...}/-rev/{rev}", Action: access.Delete, Place: protocol.AnyServer, Serve: p.unpublish},
		{Name: "npm_tags", Method: http.MethodGet, Pattern: tags, Action: access.Pull, Place: protocol.Anywhere, Serve: p.tags},
		{Name: "npm_tag_put", Method: http.MethodPut, Pattern: tags + "/{tag}", Action: access.Push, Place: protocol.AnyServer, Serve: p.putTag},
		{Name: "npm_tag_delete", Method: http.MethodDelete, Pattern: tags + "/{tag}", Action: access.Push, Place: protocol.AnyServer, Serve: p.deleteTag},
		{Name: "npm_search", Method: http.MethodGet, Pattern: repo + "-/v1/search", Action: access.Pull, Place: protocol.AnyServer, Serve: p.search},
		{Name: "npm_ping", Method: http.MethodGet, Pattern: repo + "-/ping", Action: access.Pull, Place: protocol.Anywhere, Serve: p.ping},
		{Name: "npm_keys", Method: http.MethodGet, Pattern: repo + "-/npm/v1/keys", Action: access.Pull, Place: protocol.Anywhere, Serve: p.keys},
		{Name: "npm_advisories", Method: http.MethodPost, Pattern: repo + "-/npm/v1/security/advisories/bulk", Action: access.Pull, Place: protocol.AnyServer, Serve: p.advisories},
		{Name: "npm_audit_quick", Method: http.MethodPost, Pattern: repo + "-/npm/v1/security/audits/quick", Action: access.Pull, Place: protocol.AnyServer, Serve: p.audit},
		{Name: "npm_audit", Method: http.MethodPost, Pattern: repo + "-/npm/v1/security/audits", Action: access.Pull, Place: protocol.AnyServer, Serve: p.audit},
	}
}

func caller(c *protocol.Call) catalog.Caller {
	return catalog.Caller{Who: c.Who, Origin: c.Origin(), After: c.After, Asked: c.Asked, Absent: c.Absent()}
}
