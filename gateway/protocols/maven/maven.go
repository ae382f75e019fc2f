// Package maven serves Maven 2 repositories: what mvn and gradle resolve from and deploy to.
//
//	/maven/<tenant>/<repository>/org/example/demo/1.0/demo-1.0.jar
//	/maven/<tenant>/<repository>/org/example/demo/maven-metadata.xml
//
// A package is `group:artifact`; a version is what its folder says, and of a snapshot
// each timestamped build is one. Start reading at parsePath (path.go), which says what a
// path means; put.go takes files, read.go gives them, metadata.go renders the documents
// that say what there is, order.go compares versions as Maven does; proxy.go asks an
// upstream, packages.go is what waves need.
//
// Clients send a version file by file, and its metadata last. So a version is open while
// files arrive: each can be read by its path at once, and is never replaced; no document
// names the version before it is closed. The metadata that a client sends closes it, or
// Quiet without a new file. Behind that no file is added, not even a signature: sign
// before, as maven-gpg-plugin and gradle's signing do, which send .asc files with the
// rest; a file that anybody could add to a finished release later would be one that
// nobody who looked at the release has seen.
//
// What clients send as maven-metadata.xml and as checksums is not stored: two that deploy
// at a time would overwrite each other's. Metadata is rendered from the packages, in
// every place the same for one revision, and checksums are of what is stored. A checksum
// that is not that of the stored file is refused, so that the client's deploy fails.
//
// Memory is bounded: files stream, POMs up to 4 MiB pass through the catalog's budget,
// metadata is read as a stream and rendered into gateway/rendered. The package starts no
// goroutines.
package maven

import (
	"net/http"
	"time"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/rendered"
	"github.com/shoal-registry/shoal/gateway/upstream"
)

// Format is the format of the repositories that this protocol serves.
const Format = "maven"

// Quiet is how long a version stays open without a new file.
const Quiet = 10 * time.Minute

// Protocol is the Maven protocol over a catalog. It is safe for concurrent use.
type Protocol struct {
	catalog   *catalog.Catalog
	upstream  *upstream.Engine
	documents *rendered.Cache
}

var _ protocol.Protocol = (*Protocol)(nil)

// New returns the protocol over c; d keeps what it renders, e answers for proxies and
// groups.
func New(c *catalog.Catalog, d *rendered.Cache, e *upstream.Engine) *Protocol {
	return &Protocol{catalog: c, upstream: e, documents: d}
}

// Format implements protocol.Protocol.
func (p *Protocol) Format() string { return Format }

// Routes implements protocol.Protocol. The route for GET serves HEAD too.
func (p *Protocol) Routes() []protocol.Route {
	const pattern = "/maven/{tenant}/{repository}/{path...}"
	return []protocol.Route{
		{Name: "maven_get", Method: http.MethodGet, Pattern: pattern, Action: access.Pull, Place: protocol.Anywhere, Serve: p.get},
		{Name: "maven_put", Method: http.MethodPut, Pattern: pattern, Action: access.Push, Place: protocol.AnyServer, Serve: p.put},
	}
}

func caller(c *protocol.Call) catalog.Caller {
	return catalog.Caller{Who: c.Who, Origin: c.Origin(), After: c.After, Asked: c.Asked, Absent: c.Absent()}
}
