package protocol

import (
	"context"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Packages is what a protocol knows of its packages beyond its routes: how people
// name a version, and what a version closes over. Waves ask it; a protocol without
// it has none.
type Packages interface {
	Format() string
	// ParseReference reads what follows `tenant/repository` in a reference: with the
	// slash, `/image:tag`, or whatever the format writes behind a repository.
	//
	// Errors: meta.ErrInvalid.
	ParseReference(s string) (Reference, error)
	// Closure returns the blobs, each once, that whoever uses v on a platform needs
	// (os/arch[/variant]; "" is all); none when nothing of v is for it. The caller has
	// checked that who may read the repository.
	//
	// Errors: meta.ErrNotFound, meta.ErrUnavailable.
	Closure(ctx context.Context, who meta.Principal, v meta.Version, platform string) ([]meta.Blob, error)
}

// Reference names a version by its own name, or else by an alias.
type Reference struct {
	Package, Alias, Version string
}
