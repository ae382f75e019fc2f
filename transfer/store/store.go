// Package store keeps blobs as opaque, verified chunks.
//
// Store is the contract; Disk keeps it on a local directory and Memory in maps, for
// tests; storetest runs the same suite against both. A blob is named by the root of
// its chunk map and is partial until its last chunk is written. What comes out of
// ReadChunk was checked against the map when it was read from disk or when it
// entered memory. Bytes get in as an Upload (plain content from a client, named by
// its digest at Commit) or chunk by chunk (content from peers, WriteChunk).
//
// Start reading at Store, then disk.go. The files on disk are described in
// transfer/DESIGN.md. Disk.Run owns the only background goroutine.
package store

import (
	"context"
	"io"
	"time"

	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Store keeps blobs. All methods may be called concurrently.
//
// Errors everywhere: meta.ErrNoSpace when the disk is full or its reserve reached;
// then nothing half-written is left and a later try may succeed.
type Store interface {
	// NewUpload starts an upload session.
	//
	// Errors: meta.ErrUnavailable when too many sessions are open.
	NewUpload(ctx context.Context, o UploadOptions) (Upload, error)
	// OpenUpload continues the session id, also one of an earlier process.
	//
	// Errors: meta.ErrNotFound.
	OpenUpload(ctx context.Context, id string) (Upload, error)
	// Create returns the blob of m: the one that is there, complete or partial, else
	// a new partial one to be filled by WriteChunk. A map without chunks is complete.
	Create(ctx context.Context, m *chunk.Map) (Blob, error)
	// Reuse looks for missing chunks of b, which is open, in the store's other blobs.
	// It is nil when it finds none.
	Reuse(ctx context.Context, b Blob) *Reuse
	// Open returns the blob, complete or partial.
	//
	// Errors: meta.ErrNotFound; meta.ErrCorrupt when its map is damaged, in which
	// case the blob has been removed.
	Open(ctx context.Context, root digest.CID) (Blob, error)
	// Remove deletes the blob, complete or partial; of an absent one it returns nil.
	// Who has it open can no longer read it.
	//
	// Errors: meta.ErrConflict while it is pinned.
	Remove(ctx context.Context, root digest.CID) error
	// List returns at most limit blobs with root > after, ascending, complete and partial.
	List(ctx context.Context, after digest.CID, limit int) ([]Info, error)
}

// Blob is an open blob; the caller closes it. All methods may be called
// concurrently; an open blob is not evicted, unless all who have it open yield.
type Blob interface {
	Root() digest.CID
	// Map returns the chunk map, shared and not to be changed.
	Map() *chunk.Map
	// Have returns a copy of the bits of the chunks that are here, verified.
	Have() chunk.Bitmap
	Complete() bool
	// ReadChunk returns the stored bytes of chunk i, verified. It fills dst[:0] when
	// the capacity suffices, but may return memory that is shared with other
	// readers: the result is not to be changed, and is valid until dst is reused.
	//
	// Errors: meta.ErrNotFound when the chunk is not here; meta.ErrCorrupt when the
	// bytes on disk are wrong: the chunk is then no longer here and the blob partial.
	ReadChunk(ctx context.Context, i int, dst []byte) ([]byte, error)
	// WriteChunk checks b against the map and stores it as chunk i; it keeps nothing
	// of b. Writing a chunk that is here does nothing. The last missing chunk makes
	// the blob complete: when WriteChunk returns, it is durable if the store is.
	//
	// Errors: meta.ErrCorrupt when b is not chunk i; meta.ErrNotFound when the blob
	// was removed meanwhile.
	WriteChunk(ctx context.Context, i int, b []byte) error
	// Window returns 0, or for a blob that does not fit the cache how many bytes of it
	// are here at most: what was read makes place for what is written. Such a blob
	// never becomes complete, and ReadChunk may miss what was there before.
	Window() int64
	// Yield says whether this opener does without the blob when room is needed. At
	// first it does not.
	Yield(yes bool)
	Close() error
}

// UploadOptions says what an upload computes besides sha256.
type UploadOptions struct {
	SHA512 bool
}

// Upload is a session that receives plain content in order. One Append, Commit or
// Cancel runs at a time; another meanwhile gets meta.ErrConflict. Closing a handle
// keeps the session, for OpenUpload.
type Upload interface {
	// ID names the session: 32 hex digits.
	ID() string
	// Offset returns how many bytes have been received. After a crash it may be less
	// than before, never more than is really there.
	Offset() int64
	// Append adds r to its end and returns how many bytes it took. When r fails,
	// what came before stays and r's error is returned; when the disk is full
	// the session goes back to where the call began.
	//
	// Errors: of r, ctx's, meta.ErrNoSpace, meta.ErrTooLarge, meta.ErrNotFound when
	// the session ended, meta.ErrConflict.
	Append(ctx context.Context, r io.Reader) (int64, error)
	// Commit ends the session: if the content has the digest want, it becomes a
	// complete blob, durable if the store is, or joins the equal one that is there.
	// An empty want accepts any content.
	//
	// Errors: *digest.MismatchError (the session stays), meta.ErrNotFound,
	// meta.ErrConflict, meta.ErrNoSpace, digest.ErrUnsupported when want is a sha512
	// that the session was not opened for.
	Commit(ctx context.Context, want digest.Digest) (Ingested, error)
	// Cancel ends the session and forgets its bytes.
	Cancel(ctx context.Context) error
	// Close releases the handle. It does not end the session. Until then a Disk does not
	// collect what Commit made.
	Close() error
}

// Ingested is what an upload became.
type Ingested struct {
	Digest digest.Digest // sha256
	SHA512 digest.Digest // "" unless asked for
	Map    *chunk.Map
	Root   digest.CID
	// PlainBytes is the length of the content, StoredBytes of what is on disk.
	PlainBytes, StoredBytes int64
}

// Info is a blob in a listing.
type Info struct {
	Root        digest.CID
	StoredBytes int64
	Complete    bool
	Pinned      bool
	// LastUse is when the blob was last opened or written, to about a minute.
	LastUse time.Time
}
