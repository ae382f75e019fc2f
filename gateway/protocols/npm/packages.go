package npm

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

var _ protocol.Packages = (*Protocol)(nil)

// ParseReference implements protocol.Packages: `/name@1.2.3`, `/@scope/name@beta`; a
// colon does for the second @. Without either it is the tag latest.
func (p *Protocol) ParseReference(s string) (r protocol.Reference, _ error) {
	name, ok := strings.CutPrefix(s, "/")
	if !ok || name == "" {
		return r, fmt.Errorf("reference %q: write tenant/repository/name@version: %w", s, meta.ErrInvalid)
	}
	what := latest
	if at := strings.LastIndexAny(name, "@:"); at > 0 {
		name, what = name[:at], name[at+1:]
	}
	t, err := parsePath(name)
	if err != nil || t.file != "" || t.version != "" {
		return r, fmt.Errorf("reference %q: %q is no name of a package: %w", s, name, meta.ErrInvalid)
	}
	r.Package = keyOf(t.name)
	if isVersion(what) {
		r.Version = what
		return r, meta.CheckVersion(what)
	}
	r.Alias = what
	return r, checkTag(what)
}

// Closure implements protocol.Packages: a version's tarball, and what is kept beside it,
// are for all platforms.
func (p *Protocol) Closure(ctx context.Context, who meta.Principal, v meta.Version, _ string) ([]meta.Blob, error) {
	by := catalog.Caller{Who: who}
	b, _, err := p.catalog.Blob(ctx, by, v.Repo, v.Digest)
	if err != nil {
		return nil, err
	}
	blobs := []meta.Blob{b.Blob}
	if len(v.Summary) == 0 {
		f, _, err := p.catalog.File(ctx, by, catalog.Package{Repo: v.Repo, Name: v.Package}, v.Name, manifestFile)
		if err != nil {
			return nil, err
		}
		if b, _, err = p.catalog.Blob(ctx, by, v.Repo, f.Digest); err != nil {
			return nil, err
		}
		blobs = append(blobs, b.Blob)
	}
	return blobs, nil
}

// marshal renders v.
func marshal(v any) ([]byte, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("render %T: %w", v, err)
	}
	return raw, nil
}
