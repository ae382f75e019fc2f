package rpm

import (
	"context"
	"fmt"
	"strings"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

var _ protocol.Packages = (*Protocol)(nil)

// ParseReference implements protocol.Packages: `/hello:2.10-3.fc40.x86_64`.
func (p *Protocol) ParseReference(s string) (r protocol.Reference, _ error) {
	rest, ok := strings.CutPrefix(s, "/")
	pkg, version, isVersion := strings.Cut(rest, ":")
	n, err := parseFile(pkg + "-" + version + ".rpm")
	if !ok || !isVersion || err != nil || n.Name != pkg {
		return r, fmt.Errorf("reference %q: write tenant/repository/name:version-release.architecture, without an epoch: %w", s, meta.ErrInvalid)
	}
	return protocol.Reference{Package: pkg, Version: version}, meta.CheckVersion(version)
}

// Closure implements protocol.Packages: a version is one file, of one architecture.
func (p *Protocol) Closure(ctx context.Context, who meta.Principal, v meta.Version, platform string) ([]meta.Blob, error) {
	if !runsOn(v.Name, platform) {
		return nil, nil
	}
	return p.catalog.VersionBlobs(ctx, catalog.Caller{Who: who}, v)
}

// rpmNames are the architectures that rpm calls otherwise than platforms do.
var rpmNames = map[string][]string{
	"amd64": {"x86_64"}, "386": {"i386", "i486", "i586", "i686"}, "arm64": {"aarch64"}, "arm": {"armv7hl", "armv6hl", "armv7l"},
}

// runsOn reports whether a version is for a platform, `os/arch[/variant]`; "" is all.
func runsOn(version, platform string) bool {
	arch := version[strings.LastIndexByte(version, '.')+1:]
	if platform == "" || arch == "noarch" {
		return true
	}
	rest, ok := strings.CutPrefix(platform, "linux/")
	name, _, _ := strings.Cut(rest, "/")
	if !ok {
		return false
	}
	for _, known := range rpmNames[name] {
		if arch == known {
			return true
		}
	}
	return arch == name
}
