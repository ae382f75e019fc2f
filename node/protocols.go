package node

import (
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/protocols/apt"
	"github.com/shoal-registry/shoal/gateway/protocols/cargo"
	"github.com/shoal-registry/shoal/gateway/protocols/generic"
	"github.com/shoal-registry/shoal/gateway/protocols/gomod"
	"github.com/shoal-registry/shoal/gateway/protocols/helm"
	"github.com/shoal-registry/shoal/gateway/protocols/maven"
	"github.com/shoal-registry/shoal/gateway/protocols/npm"
	"github.com/shoal-registry/shoal/gateway/protocols/nuget"
	"github.com/shoal-registry/shoal/gateway/protocols/oci"
	"github.com/shoal-registry/shoal/gateway/protocols/pypi"
	"github.com/shoal-registry/shoal/gateway/protocols/rpm"
	"github.com/shoal-registry/shoal/gateway/publication"
	"github.com/shoal-registry/shoal/gateway/rendered"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// protocols lists what every gateway speaks. A new protocol is a folder of
// gateway/protocols and a line here; pages keeps the documents that they render, proxies
// is for those that have proxies, sets for those that have publications, nil on an agent.
func protocols(names *catalog.Catalog, pages *rendered.Cache, proxies *upstream.Engine, sets *publication.Builder) []protocol.Protocol {
	return []protocol.Protocol{
		oci.New(names, proxies),
		generic.New(names, proxies),
		pypi.New(names, pages, proxies),
		helm.New(names, pages, proxies),
		apt.New(names, proxies, sets),
		rpm.New(names, proxies, sets),
		maven.New(names, pages, proxies),
		npm.New(names, pages, proxies),
		nuget.New(names, pages, proxies),
		gomod.New(names, pages, proxies),
		cargo.New(names, pages, proxies),
	}
}

// pages opens the cache of rendered documents, on a disk of which reserve bytes stay
// free; 0 is what blobs leave free where nothing is configured.
func (n *Node) pages(reserve int64) (*rendered.Cache, error) {
	dir := filepath.Join(n.cfg.Data, "rendered")
	return rendered.New(rendered.Config{Dir: dir, Metrics: n.metrics, Room: func() rendered.Room {
		total, free, err := diskUsage(dir)
		if err != nil {
			return rendered.RoomPlenty // The next write finds out.
		}
		return pageRoom(reserve, total, free, n.cfg.Role)
	}})
}

// pageReserve is what is configured to stay free of the disk of data: what is configured is
// of the disk of blobs, which may be another one.
func pageReserve(data, blobs string, configured int64) int64 {
	var a, b unix.Stat_t
	if unix.Stat(data, &a) == nil && unix.Stat(blobs, &b) == nil && a.Dev != b.Dev {
		return 0
	}
	return configured
}

// pageRoom says what a disk has room for: documents are kept above the reserve of blobs,
// and made for who asks a little below it, which is above that of the metadata still. An
// agent has no such metadata, and its cache fills the disk down to the reserve until the
// next blob makes room: documents may have half of that.
func pageRoom(reserve, total, free int64, role meta.Role) rendered.Room {
	if reserve == 0 {
		reserve = min(total/100, 512<<20)
	}
	if role == meta.RoleAgent {
		reserve /= 2
	}
	switch {
	case free >= reserve:
		return rendered.RoomPlenty
	case free >= reserve/10*9:
		return rendered.RoomPassing
	}
	return rendered.RoomNone
}

// formats names those of them that keep repositories.
func formats() []string {
	var names []string
	for _, p := range protocols(nil, nil, nil, nil) {
		names = append(names, p.Format())
	}
	return names
}

// packages finds those that know what their versions close over.
func packages(speaks []protocol.Protocol) map[string]protocol.Packages {
	known := map[string]protocol.Packages{}
	for _, p := range speaks {
		if k, ok := p.(protocol.Packages); ok {
			known[k.Format()] = k
		}
	}
	return known
}
