// Package oci speaks the OCI distribution protocol: images, indexes, artifacts
// and what refers to them, for docker, containerd, podman, skopeo, crane, oras
// and regctl.
//
// It is complete per the OCI distribution specification 1.1 (spec.md), with the
// multi-tag push (`?tag=`, OCI-Tag) and the `digest-algorithm` hint of its main
// branch, and keeps to docker's habits where the specification leaves room
// (distribution docs/content/spec/api.md). Start reading at Routes; manifest.go
// parses what is pushed, manifests.go, blobs.go, uploads.go, lists.go and
// referrers.go serve, errors.go maps kinds of error to codes: the only place that
// chooses a status.
//
// Names: /v2/acme/app/api is package `api` of repository `acme/app`, /v2/acme/app
// is its package `_`. A version is a manifest under the digest that its client
// used (sha256 or sha512), a tag is an alias. Blobs are visible by repository.
// Locations and Links are relative, upload ids opaque. Everything streams; the
// only bodies in memory are manifests, at most 4 MiB each, within the catalog's
// budget. The package starts no goroutines.
package oci

import (
	"context"
	"net/http"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Format is the format of the repositories that this protocol serves.
const Format = "oci"

// MaxManifestBytes is the largest manifest that can be pushed (spec.md, Pushing
// Manifests: clients should not exceed 4 MiB).
const MaxManifestBytes = 4 << 20

// Protocol is the OCI distribution protocol over a catalog. It is safe for
// concurrent use.
type Protocol struct {
	catalog *catalog.Catalog
	proxies *upstream.Engine
	mirrors *mirrors
}

var _ protocol.Protocol = (*Protocol)(nil)

// New returns the protocol over c; proxies may be nil where there are none.
func New(c *catalog.Catalog, proxies *upstream.Engine) *Protocol {
	return &Protocol{catalog: c, proxies: proxies, mirrors: newMirrors()}
}

// Format implements protocol.Protocol.
func (p *Protocol) Format() string { return Format }

// Routes implements protocol.Protocol. A route for GET serves HEAD too.
func (p *Protocol) Routes() []protocol.Route {
	const name = "/v2/{tenant}/{repository}/{image...}"
	type route struct {
		name, method, pattern string
		action                access.Action
		place                 protocol.Place
		serve                 func(context.Context, *call) error
	}
	var routes []protocol.Route
	for _, r := range []route{
		{"oci_manifest_get", http.MethodGet, name + "/manifests/{reference}", access.Pull, protocol.Anywhere, p.getManifest},
		{"oci_manifest_put", http.MethodPut, name + "/manifests/{reference}", access.Push, protocol.AnyServer, p.putManifest},
		{"oci_manifest_delete", http.MethodDelete, name + "/manifests/{reference}", access.Delete, protocol.AnyServer, p.deleteManifest},
		{"oci_blob_get", http.MethodGet, name + "/blobs/{digest}", access.Pull, protocol.Anywhere, p.getBlob},
		{"oci_blob_delete", http.MethodDelete, name + "/blobs/{digest}", access.Delete, protocol.AnyServer, p.deleteBlob},
		{"oci_upload_begin", http.MethodPost, name + "/blobs/uploads/", access.Push, protocol.AnyServer, p.beginUpload},
		{"oci_upload_begin_bare", http.MethodPost, name + "/blobs/uploads", access.Push, protocol.AnyServer, p.beginUpload},
		{"oci_upload_status", http.MethodGet, name + "/blobs/uploads/{upload}", access.Push, protocol.Owner, p.uploadStatus},
		{"oci_upload_append", http.MethodPatch, name + "/blobs/uploads/{upload}", access.Push, protocol.Owner, p.appendUpload},
		{"oci_upload_commit", http.MethodPut, name + "/blobs/uploads/{upload}", access.Push, protocol.Owner, p.commitUpload},
		{"oci_upload_cancel", http.MethodDelete, name + "/blobs/uploads/{upload}", access.Push, protocol.Owner, p.cancelUpload},
		{"oci_tags", http.MethodGet, name + "/tags/list", access.Pull, protocol.Anywhere, p.listTags},
		{"oci_referrers", http.MethodGet, name + "/referrers/{digest}", access.Pull, protocol.Anywhere, p.listReferrers},
	} {
		routes = append(routes, protocol.Route{
			Name: r.name, Method: r.method, Pattern: r.pattern, Action: r.action, Place: r.place,
			Serve: func(c *protocol.Call) error { return p.serve(c, r.action, r.serve) },
		})
	}
	return append(routes,
		protocol.Route{Name: "oci_ping", Method: http.MethodGet, Pattern: "/v2/", Action: access.Login, Place: protocol.Anywhere, Serve: p.ping},
		protocol.Route{Name: "oci_ping_bare", Method: http.MethodGet, Pattern: "/v2", Action: access.Login, Place: protocol.Anywhere, Serve: p.ping},
		protocol.Route{Name: "oci_catalog", Method: http.MethodGet, Pattern: "/v2/_catalog", Action: access.List, Place: protocol.Anywhere, Serve: p.listRepositories},
	)
}

// call is a request about a package.
type call struct {
	*protocol.Call
	by   catalog.Caller
	pkg  catalog.Package
	name string // as in the URL: tenant/repository[/image]
}

// serve checks the name and hands over.
func (p *Protocol) serve(pc *protocol.Call, action access.Action, serve func(context.Context, *call) error) error {
	image := pc.Params.Get("image")
	c := &call{Call: pc, by: caller(pc), pkg: catalog.Package{Repo: pc.Repo, Name: image}}
	c.name = string(pc.Repo.Tenant) + "/" + pc.Repo.Name
	if image == "" {
		c.pkg.Name = rootPackage
	} else {
		c.name += "/" + image
	}
	pc.W.Header()[versionHeader] = versionValue
	if err := checkName(pc.Repo, image); err != nil {
		return err
	}
	if r := pc.Repository; r != nil && r.Format != Format && action != access.Push {
		return nameUnknown(c.name)
	}
	return p.routed(pc.R.Context(), c, action, serve)
}

// The header by which old clients know a registry. Values are shared by all
// answers and never written to.
const versionHeader = "Docker-Distribution-Api-Version"

var versionValue = []string{"registry/2.0"}

func caller(c *protocol.Call) catalog.Caller {
	return catalog.Caller{Who: c.Who, Origin: c.Origin(), After: c.After, Asked: c.Asked, Absent: c.Absent()}
}

// public reports whether shared caches may keep what the call answers.
func (c *call) public() bool {
	return c.Repository != nil && c.Repository.Visibility == meta.VisibilityPublic
}

// answer writes what the answer is, and warns when it may be out of date.
func (c *call) answer(a meta.AsOf) {
	c.AsOf(a)
	if a.Stale {
		warn(c.W.Header(), "no quorum is reachable, this is the last known answer and may be out of date")
	}
}

// ping answers the version check: who gets here may talk to the registry.
func (p *Protocol) ping(c *protocol.Call) error {
	c.W.Header()[versionHeader] = versionValue
	return protocol.WriteJSON(c.W, http.StatusOK, struct{}{})
}
