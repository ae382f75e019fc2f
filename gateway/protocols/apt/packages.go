package apt

import (
	"context"
	"fmt"
	"strings"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

var _ protocol.Packages = (*Protocol)(nil)

// ParseReference implements protocol.Packages: `/hello:2.10-3_amd64`.
func (p *Protocol) ParseReference(s string) (r protocol.Reference, _ error) {
	rest, ok := strings.CutPrefix(s, "/")
	pkg, version, isVersion := strings.Cut(rest, ":")
	at := strings.LastIndexByte(version, '_')
	if !ok || !isVersion || !packageName.MatchString(pkg) || at < 1 || !architecture.MatchString(version[at+1:]) {
		return r, fmt.Errorf("reference %q: write tenant/repository/package:version_architecture, without an epoch: %w", s, meta.ErrInvalid)
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

// debianNames are the platforms that Debian calls otherwise.
var debianNames = map[string]string{
	"linux/386": "i386", "linux/arm/v7": "armhf", "linux/arm": "armhf", "linux/arm/v6": "armel", "linux/ppc64le": "ppc64el", "linux/arm64/v8": "arm64",
}

// runsOn reports whether a version is for a platform, `os/arch[/variant]`; "" is all.
func runsOn(version, platform string) bool {
	_, arch, _ := strings.Cut(version, "_") // no version of Debian's has one
	if platform == "" || arch == all {
		return true
	}
	if name, ok := debianNames[platform]; ok {
		return arch == name
	}
	name, ok := strings.CutPrefix(platform, "linux/")
	return ok && arch == name
}
