package pypi

import (
	"context"
	"fmt"
	"strings"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

var _ protocol.Packages = (*Protocol)(nil)

// ParseReference implements protocol.Packages: `/Project:1.0`, or `/Project==1.0` as pip
// writes it, in any spelling.
func (p *Protocol) ParseReference(s string) (r protocol.Reference, _ error) {
	text, ok := strings.CutPrefix(s, "/")
	name, number, both := strings.Cut(strings.Replace(text, "==", ":", 1), ":")
	if !ok || !both {
		return r, fmt.Errorf("reference %.200q: write tenant/repository/project:version: %w", s, meta.ErrInvalid)
	}
	var err error
	if r.Package, err = normalize(name); err != nil {
		return r, err
	}
	r.Version, err = version(number)
	return r, err
}

// Closure implements protocol.Packages: all files of the version. Which of its wheels a
// host takes is for its pip to say.
func (p *Protocol) Closure(ctx context.Context, who meta.Principal, v meta.Version, _ string) (blobs []meta.Blob, err error) {
	by, pkg := catalog.Caller{Who: who}, catalog.Package{Repo: v.Repo, Name: v.Package}
	seen := map[string]bool{}
	for after := ""; ; {
		files, _, err := p.catalog.Files(ctx, by, pkg, v.Name, catalog.Page{After: after, Limit: filePage})
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			if after = f.Path; seen[string(f.Digest)] {
				continue
			}
			seen[string(f.Digest)] = true
			b, _, err := p.catalog.Blob(ctx, by, v.Repo, f.Digest)
			if err != nil {
				return nil, err
			}
			blobs = append(blobs, b.Blob)
		}
		if len(files) < filePage {
			return blobs, nil
		}
	}
}
