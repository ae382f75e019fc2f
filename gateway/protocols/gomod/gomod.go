// Package gomod serves Go modules to the go command (go.dev/ref/mod#goproxy-protocol):
//
//	/go/<tenant>/<repository>/<module>/@v/list            versions, one a line
//	/go/<tenant>/<repository>/<module>/@v/<version>.info  .mod  .zip
//	/go/<tenant>/<repository>/<module>/@latest
//	/go/<tenant>/<repository>/sumdb/<database>/...        a checksum database, passed through
//
// Start reading at Routes; read.go answers what is hosted here, publish.go takes a
// version, zip.go checks it, proxy.go passes on what an upstream has.
//
// The go command cannot publish, so a version is put with any HTTP client as its zip, and
// is complete with it: the go.mod is in the zip, the time is when it was published. A
// package is a module's path with its capitals, a version its canonical name, its document
// the zip; the go.mod is kept in the version's record too, so that the many questions for
// it open nothing. What is yanked or unlisted is out of lists, and served to who names it,
// as a retracted version is (which is said in a later go.mod, and read there by the go
// command itself).
//
// Paths are escaped as the go command does it, capitals as `!` and a small letter. What is
// not there is 404, what was deleted 410: with both the go command goes on to the next
// proxy of its list. What is refused is 403, which ends its search: a rule of a proxy must
// not be gone around.
//
// The package starts no goroutines.
package gomod

import (
	"net/http"

	"golang.org/x/sync/semaphore"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/rendered"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Format is the format of the repositories that this protocol serves.
const Format = "go"

// Protocol is the protocol of Go modules. It is safe for concurrent use.
type Protocol struct {
	catalog   *catalog.Catalog
	documents *rendered.Cache
	upstream  *upstream.Engine
	// reading are the zips that are checked at a time: a list of files and a go.mod at their
	// limits take some 250 MB.
	reading *semaphore.Weighted
}

const maxReading = 4

var _ protocol.Protocol = (*Protocol)(nil)

// New returns the protocol over a catalog; lists are kept in documents, and what proxies
// have comes from the engine.
func New(c *catalog.Catalog, documents *rendered.Cache, engine *upstream.Engine) *Protocol {
	return &Protocol{catalog: c, documents: documents, upstream: engine, reading: semaphore.NewWeighted(maxReading)}
}

// Format implements protocol.Protocol.
func (p *Protocol) Format() string { return Format }

// Routes implements protocol.Protocol.
func (p *Protocol) Routes() []protocol.Route {
	const (
		at   = "/go/{tenant}/{repository}/"
		file = at + "{module...}/@v/{file}"
	)
	return []protocol.Route{
		{Name: "go_file", Method: http.MethodGet, Pattern: file, Action: access.Pull, Place: protocol.Anywhere, Serve: p.file},
		{Name: "go_latest", Method: http.MethodGet, Pattern: at + "{module...}/@latest", Action: access.Pull, Place: protocol.Anywhere, Serve: p.latest},
		{Name: "go_sumdb", Method: http.MethodGet, Pattern: at + "sumdb/{database}/{path...}", Action: access.Pull, Place: protocol.Anywhere, Serve: p.sumdb},
		{Name: "go_put", Method: http.MethodPut, Pattern: file, Action: access.Push, Place: protocol.AnyServer, Serve: p.put},
		{Name: "go_delete", Method: http.MethodDelete, Pattern: file, Action: access.Delete, Place: protocol.AnyServer, Serve: p.delete},
	}
}

func caller(c *protocol.Call) catalog.Caller {
	return catalog.Caller{Who: c.Who, Origin: c.Origin(), After: c.After, Asked: c.Asked, Absent: c.Absent()}
}

func public(c *protocol.Call) bool {
	return c.Repository != nil && c.Repository.Visibility == meta.VisibilityPublic
}
