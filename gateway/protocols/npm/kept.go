package npm

import (
	"context"
	"io"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/rendered"
)

// document returns the packument of the source, rendered or kept.
func (s *source) document(ctx context.Context, by catalog.Caller, v view) (*rendered.Document, error) {
	return s.kept(ctx, rendered.Key{Variant: v.String(), Base: v.base}, func(w io.Writer) error {
		if s.found != nil {
			return s.renderUpstream(ctx, w, v)
		}
		return s.render(ctx, s.rendering(by), w, v)
	})
}

// kept returns what render writes of the source, which is a function of what the key
// says: beside the variant that k names, the revisions of hosted packages, or the
// upstream's document and how old a version has to be.
func (s *source) kept(ctx context.Context, k rendered.Key, render func(io.Writer) error) (*rendered.Document, error) {
	k.Package = s.name
	if s.found != nil {
		k.Repo = s.proxy.Ref
		k.Revision = string(s.found.Record.Digest) + " " + settled(s.proxy, time.Now()).String()
	}
	for i := range s.hosted {
		k.Repo = s.hosted[0].Ref
		k.Variant += " " + s.hosted[i].Ref.String()
		k.Revisions = append(k.Revisions, s.records[i].Revision)
	}
	return s.p.pages.Get(ctx, k, render)
}
