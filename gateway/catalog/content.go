package catalog

import (
	"context"
	"io"

	godigest "github.com/opencontainers/go-digest"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Content is what the catalog asks of the transfer room.
type Content interface {
	transfer.Uploads
	// Open returns a reader of b's verified plain bytes, wherever they are.
	Open(ctx context.Context, b meta.Blob) (Reader, error)
}

// Reader reads a blob. Seek is cheap; WriteTo copies in large pieces.
type Reader interface {
	io.ReadSeekCloser
	io.WriterTo
}

// FromTransfer returns c as the catalog's Content.
func FromTransfer(c *transfer.Content) Content { return content{c.Uploads(), c} }

type content struct {
	transfer.Uploads
	open *transfer.Content
}

func (c content) Open(ctx context.Context, b meta.Blob) (Reader, error) {
	r, err := c.open.Open(ctx, b)
	if err != nil {
		return nil, err // and not a Reader that is a nil *transfer.Reader
	}
	return r, nil
}

// UploadIDs makes the ids that clients see of the store's: they name the node
// that owns the session, and are bound to repository and principal by a MAC, so
// that nobody else can continue it. It is a *uploadid.Minter.
type UploadIDs interface {
	New(session, principal string, repo meta.RepoRef) string
	// Session errors: meta.ErrNotFound for an id of another node, repository or
	// principal.
	Session(id, principal string, repo meta.RepoRef) (string, error)
}

func isSHA512(d digest.Digest) bool { return d != "" && d.Algorithm() == godigest.SHA512 }
