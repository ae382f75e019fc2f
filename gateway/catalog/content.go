package catalog

import (
	"context"
	"io"

	godigest "github.com/opencontainers/go-digest"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Content is what the catalog asks of the transfer room.
type Content interface {
	// Open returns a reader of b's verified plain bytes, wherever they are.
	Open(ctx context.Context, b meta.Blob) (Reader, error)
	// NewUpload starts a durable session; withSHA512 computes the second name too.
	NewUpload(ctx context.Context, withSHA512 bool) (Session, error)
	// OpenUpload returns a session by the id that the store gave it; meta.ErrNotFound.
	OpenUpload(ctx context.Context, id string) (Session, error)
}

// Reader reads a blob. Seek is cheap; WriteTo copies in large pieces.
type Reader interface {
	io.ReadSeekCloser
	io.WriterTo
}

// Session is an upload as the store keeps it. Close lets go of it, so that it
// can be opened again; Commit and Cancel end it.
type Session interface {
	ID() string
	Offset() int64
	// Append adds what r has and returns how much that was, also on an error.
	Append(ctx context.Context, r io.Reader) (int64, error)
	// Commit checks the bytes against want and makes them a durable blob.
	Commit(ctx context.Context, want digest.Digest) (Ingested, error)
	Cancel(ctx context.Context) error
	Close() error
}

// Ingested is what an upload became.
type Ingested struct {
	Digest, SHA512          digest.Digest
	Root                    digest.CID
	PlainBytes, StoredBytes int64
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
