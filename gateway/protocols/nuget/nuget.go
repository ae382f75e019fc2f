// Package nuget serves NuGet's protocol, version 3
// (learn.microsoft.com/nuget/api/overview), to nuget.exe, dotnet and Visual Studio.
//
//	/nuget/<tenant>/<repository>/v3/index.json     the service index, which names the rest
//	  flat/<id>/index.json, <version>/<file>       the flat container: versions and files
//	  registrations/<hive>/<id>/...                what each version says of itself
//	  query, autocomplete                          search
//	  package                                      publish, unlist, relist
//
// Start reading at Protocol.Routes; publish.go takes packages (nupkg.go, nuspec.go and
// version.go read them), census.go lists a package's versions in their order, from which
// flat.go, registration.go and search.go make documents; proxy.go rewrites those of an
// upstream.
//
// A package is the id in lower case, its spelling the id as first published; a version is
// the normalized version in lower case, so 1.0 and 1.0.0+build are one. Its summary is the
// manifest (nuspec.go); its files are the .nupkg, which is the version's digest, and the
// .nuspec as it was in it. A version is closed at once, and there only whole: the archive
// is checked to its last byte before anything is visible.
//
// Documents name all versions of a package, so they are rendered once for each revision of
// it and kept in gateway/rendered: in pages of 64 versions, of which one is in memory at a
// time, beside the list of the versions' names. Publishing costs the same however many
// versions there are. The package starts no goroutines.
package nuget

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/rendered"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Format is the format of the repositories that this protocol serves.
const Format = "nuget"

// Protocol is NuGet's protocol over a catalog. It is safe for concurrent use.
type Protocol struct {
	catalog  *catalog.Catalog
	proxies  *upstream.Engine
	rendered *rendered.Cache
	decoded  *decoded
}

var _ protocol.Protocol = (*Protocol)(nil)

// New returns the protocol over c; documents are kept in pages. Proxies and groups ask e,
// which is nil where there are none.
func New(c *catalog.Catalog, pages *rendered.Cache, e *upstream.Engine) *Protocol {
	p := &Protocol{catalog: c, proxies: e, rendered: pages, decoded: newDecoded()}
	e.NamedBy(Format, p.names)
	return p
}

// Format implements protocol.Protocol.
func (p *Protocol) Format() string { return Format }

// Routes implements protocol.Protocol. The routes for GET serve HEAD too. Unlisting takes
// no bytes away and can be taken back, so it needs what publishing needs.
func (p *Protocol) Routes() []protocol.Route {
	const v3 = "/nuget/{tenant}/{repository}/v3/"
	read := func(name, pattern string, serve func(*protocol.Call) error) protocol.Route {
		return protocol.Route{Name: "nuget_" + name, Method: http.MethodGet, Pattern: v3 + pattern, Action: access.Pull, Place: protocol.Anywhere, Serve: serve}
	}
	write := func(name, method, pattern string, serve func(*protocol.Call) error) protocol.Route {
		return protocol.Route{Name: "nuget_" + name, Method: method, Pattern: v3 + pattern, Action: access.Push, Place: protocol.AnyServer, Serve: serve}
	}
	return []protocol.Route{
		// It says nothing of the repository, not even whether it is there: so a first push can
		// make one, and one with an API key needs no other credentials.
		{Name: "nuget_index", Method: http.MethodGet, Pattern: "/nuget/{owner}/{name}/v3/index.json", Action: access.Public, Place: protocol.Anywhere, Serve: p.index},
		read("flat_versions", "flat/{id}/index.json", p.flatVersions),
		read("flat_file", "flat/{id}/{version}/{file}", p.flatFile),
		read("registration", "registrations/{hive}/{id}/index.json", p.registration),
		read("registration_page", "registrations/{hive}/{id}/page/{lower}/{upper}", p.registrationPage),
		read("registration_leaf", "registrations/{hive}/{id}/{leaf}", p.registrationLeaf),
		read("query", "query", p.query),
		read("autocomplete", "autocomplete", p.autocomplete),
		read("vulnerabilities", "vulnerabilities/index.json", p.vulnerabilities),
		read("vulnerabilities_base", "vulnerabilities/base.json", p.vulnerabilitiesBase),
		// nuget.exe adds a slash to the address that it publishes to, dotnet does not.
		write("publish", http.MethodPut, "package", p.publish),
		write("publish_slash", http.MethodPut, "package/", p.publish),
		write("unlist", http.MethodDelete, "package/{id}/{version}", p.unlist),
		write("relist", http.MethodPost, "package/{id}/{version}", p.relist),
	}
}

func caller(c *protocol.Call) catalog.Caller {
	return catalog.Caller{Who: c.Who, Origin: c.Origin(), After: c.After, Asked: c.Asked, Absent: c.Absent()}
}

// public reports whether anybody may read what is answered.
func public(c *protocol.Call) bool {
	return c.Repository != nil && c.Repository.Visibility == meta.VisibilityPublic
}

// links makes the addresses in documents: below the gateway that the client talks to.
type links struct{ base string }

func linksOf(c *protocol.Call) links { return linksTo(c.R, c.Repo) }

func linksTo(r *http.Request, repo meta.RepoRef) links {
	return links{protocol.BaseURL(r) + "/nuget/" + repo.String() + "/v3/"}
}

func (l links) packageContent(id, version string) string {
	return l.base + "flat/" + id + "/" + version + "/" + packageFile(id, version)
}

func (l links) registration(h hive, id string) string {
	return l.base + "registrations/" + string(h) + "/" + id + "/index.json"
}

func (l links) page(h hive, id, lower, upper string) string {
	return l.base + "registrations/" + string(h) + "/" + id + "/page/" + lower + "/" + upper + ".json"
}

func (l links) leaf(h hive, id, version string) string {
	return l.base + "registrations/" + string(h) + "/" + id + "/" + version + ".json"
}

// packageFile and manifestFile are the names of a version's files.
func packageFile(id, version string) string { return id + "." + version + ".nupkg" }
func manifestFile(id string) string         { return id + ".nuspec" }

// idOf reads the parameter {id}; an id that no package can have is not there.
//
// Errors: meta.ErrNotFound.
func idOf(c *protocol.Call) (string, error) {
	id, err := parseID(c.Params.Get("id"))
	if err != nil {
		return "", fmt.Errorf("%w: %w", meta.ErrNotFound, err)
	}
	return id, nil
}

// versionOf is idOf for a version.
func versionOf(text string) (string, error) {
	v, err := parseVersion(text)
	if err != nil {
		return "", fmt.Errorf("%w: %w", meta.ErrNotFound, err)
	}
	return v.key(), nil
}

// sources are who answers for a package: hosted repositories, earlier ones first, or one
// proxy.
type sources struct {
	hosted []meta.Repository
	proxy  *meta.Repository
}

// sources finds them for the repository of the call.
//
// Errors: meta.ErrNotFound; as upstream.Engine.Sources has them.
func (p *Protocol) sources(c *protocol.Call, id string) (s sources, _ error) {
	if c.Repository.Kind == meta.KindHosted {
		return sources{hosted: []meta.Repository{*c.Repository}}, nil
	}
	if p.proxies == nil {
		return s, fmt.Errorf("repository %s is a %s, and this gateway asks no upstream: %w", c.Repo, c.Repository.Kind, meta.ErrNotFound)
	}
	members, err := p.sourcesOf(c, id)
	if err != nil {
		return s, err
	}
	for i := range members {
		if members[i].Kind == meta.KindProxy {
			return sources{proxy: &members[i]}, nil
		}
	}
	return sources{hosted: members}, nil
}

// hostedVersion looks a version up in the first repository that has it.
func (p *Protocol) hostedVersion(c *protocol.Call, by catalog.Caller, hosted []meta.Repository, id, version string) (v meta.Version, asOf meta.AsOf, err error) {
	for _, r := range hosted {
		v, asOf, err = p.catalog.Version(c.R.Context(), by, catalog.Package{Repo: r.Ref, Name: id}, version)
		if !errors.Is(err, meta.ErrNotFound) {
			break
		}
	}
	return v, asOf, err
}
