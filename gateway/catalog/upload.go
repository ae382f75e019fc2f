package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Upload is a session in which a client sends a blob, in one piece or many. It
// survives a restart of the node. It is not safe for concurrent use; two
// requests that open one session at a time are the store's to refuse.
type Upload struct {
	catalog *Catalog
	by      Caller
	repo    meta.RepoRef
	id      string
	session store.Upload
	ended   bool
	// document says that what comes is part of a publish, which is judged by what it adds:
	// nothing is reserved.
	document bool
}

// Begin starts an upload into repo. withSHA512 says that the client will name
// the blob by sha512.
//
// Errors: meta.ErrNoSpace, meta.ErrUnavailable; *meta.QuotaError when the tenant has used
// its storage quota.
func (c *Catalog) Begin(ctx context.Context, by Caller, repo meta.RepoRef, withSHA512 bool) (*Upload, error) {
	u, err := c.begin(ctx, by, repo, withSHA512, false)
	if err != nil {
		return nil, err
	}
	if err := u.reserve(ctx, 1); err != nil {
		return nil, errors.Join(fmt.Errorf("begin an upload into %s: %w", repo, err), u.Cancel(context.WithoutCancel(ctx)), u.Close())
	}
	return u, nil
}

func (c *Catalog) begin(ctx context.Context, by Caller, repo meta.RepoRef, withSHA512, document bool) (*Upload, error) {
	if c.cfg.Commands == nil {
		return nil, fmt.Errorf("begin an upload on an agent: %w", &meta.UnavailableError{Reason: "no_server"})
	}
	if err := c.keepsUp(ctx, repo.Tenant); err != nil {
		return nil, fmt.Errorf("begin an upload into %s: %w", repo, err)
	}
	s, err := c.cfg.Content.NewUpload(ctx, store.UploadOptions{SHA512: withSHA512})
	if err != nil {
		return nil, fmt.Errorf("begin an upload into %s: %w", repo, err)
	}
	return &Upload{catalog: c, by: by, repo: repo, id: c.cfg.IDs.New(s.ID(), by.Who.Name, repo), session: s, document: document}, nil
}

// Resume opens an upload by its public id.
//
// Errors: meta.ErrNotFound when there is none, it is of another repository or of
// another principal.
func (c *Catalog) Resume(ctx context.Context, by Caller, repo meta.RepoRef, id string) (*Upload, error) {
	if c.cfg.IDs == nil {
		return nil, fmt.Errorf("resume an upload on an agent: %w", &meta.UnavailableError{Reason: "no_server"})
	}
	name, err := c.cfg.IDs.Session(id, by.Who.Name, repo)
	if err != nil {
		return nil, fmt.Errorf("upload %s: %w", id, err)
	}
	s, err := c.cfg.Content.OpenUpload(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("upload %s: %w", id, err)
	}
	return &Upload{catalog: c, by: by, repo: repo, id: id, session: s}, nil
}

// ID returns the id that a client continues the upload with.
func (u *Upload) ID() string { return u.id }

// Offset returns the bytes that the session holds.
func (u *Upload) Offset() int64 { return u.session.Offset() }

// Append streams r to the end of the session and returns how much came, also
// when r broke off: what came stays.
//
// Errors: of r; meta.ErrNoSpace; meta.ErrConflict when another request appends;
// *meta.QuotaError, after which the session is over.
func (u *Upload) Append(ctx context.Context, r io.Reader) (int64, error) {
	n, err := u.session.Append(ctx, &reserving{ctx: ctx, up: u, r: r, at: u.Offset()})
	if err != nil {
		if overQuota(err) {
			err = errors.Join(err, u.Cancel(context.WithoutCancel(ctx)))
		}
		return n, fmt.Errorf("append to upload %s at byte %d: %w", u.id, u.Offset(), err)
	}
	return n, nil
}

// Store ends the session: its bytes, checked against want ("" takes what came),
// are durable on this node, but visible to nobody until a Link or a Draft
// carries them. That has to happen before Close, after which they may be collected.
//
// Errors: *digest.MismatchError, after which the session is over.
func (u *Upload) Store(ctx context.Context, want digest.Digest) (Stored, error) {
	s, err := u.store(ctx, want)
	if err != nil {
		var mismatch *digest.MismatchError
		if errors.As(err, &mismatch) {
			// Bytes only ever get added: these will never be the right ones.
			err = errors.Join(err, u.Cancel(context.WithoutCancel(ctx)))
		}
		return Stored{}, fmt.Errorf("close upload %s: %w", u.id, err)
	}
	u.ended = true
	if s.seen, err = u.catalog.vouch(ctx, s.Blob.Root); err != nil {
		return Stored{}, fmt.Errorf("close upload %s: %w", u.id, err)
	}
	return s, nil
}

func (u *Upload) store(ctx context.Context, want digest.Digest) (Stored, error) {
	in, err := u.session.Commit(ctx, want)
	late := errors.Is(err, digest.ErrUnsupported) && isSHA512(want)
	if late {
		in, err = u.session.Commit(ctx, "")
		u.ended = err == nil
	}
	if err != nil {
		return Stored{}, err
	}
	name := want
	if name == "" {
		name = in.Digest
	}
	s := Stored{Name: name, session: u.session.ID(), reserved: u.catalog.cfg.Storage.Held(u.repo.Tenant, u.session.ID()), Blob: meta.Blob{
		Context: string(u.repo.Tenant), Digest: in.Digest, SHA512: in.SHA512,
		PlainBytes: in.PlainBytes, StoredBytes: in.StoredBytes, Root: in.Root,
	}}
	if late {
		return s, u.nameBySHA512(ctx, &s.Blob, want)
	}
	return s, nil
}

// nameBySHA512 reads the blob once more for a name that the client gave only at
// the end. Hashing every upload twice, just in case, would cost all for the few.
func (u *Upload) nameBySHA512(ctx context.Context, b *meta.Blob, want digest.Digest) error {
	r, err := u.catalog.Open(ctx, *b)
	if err != nil {
		return err
	}
	defer r.Close()
	h := digest.NewHasher(true)
	if _, err := r.WriteTo(h); err != nil {
		return fmt.Errorf("read %s again: %w", b.Digest, err)
	}
	if err := h.Check(want); err != nil {
		return err
	}
	b.SHA512 = want
	return nil
}

// Commit ends the session and makes the blob visible in the repository.
//
// Errors: *digest.MismatchError; meta.ErrUnavailable when metadata is not
// writable.
func (u *Upload) Commit(ctx context.Context, want digest.Digest) (Stored, meta.Token, error) {
	s, err := u.Store(ctx, want)
	if err != nil {
		return Stored{}, meta.Token{}, err
	}
	token, err := u.catalog.Link(ctx, u.by, u.repo, s)
	return s, token, err
}

// Cancel ends the session and drops its bytes; one that has ended is left alone.
func (u *Upload) Cancel(ctx context.Context) error {
	if u.ended {
		return nil
	}
	u.ended = true
	u.catalog.cfg.Storage.Release(u.repo.Tenant, u.session.ID())
	if err := u.session.Cancel(ctx); err != nil {
		return fmt.Errorf("cancel upload %s: %w", u.id, err)
	}
	return nil
}

// Close lets go of the session; it can be resumed unless it has ended.
func (u *Upload) Close() error {
	if u.ended {
		u.catalog.cfg.Storage.Release(u.repo.Tenant, u.session.ID())
	}
	return u.session.Close()
}

// Stored is content that this node holds and that nothing refers to yet.
type Stored struct {
	Name digest.Digest // what the client calls it, sha256 or sha512
	Blob meta.Blob
	seen uint64 // vouch

	session  string // of the upload
	reserved int64  // of the tenant's storage quota
}

// Ingest stores what r has, in one go. The Upload is to be closed once the content is
// linked; it is nil after an error.
//
// Errors: as Append and Store have them.
func (c *Catalog) Ingest(ctx context.Context, by Caller, repo meta.RepoRef, r io.Reader, want digest.Digest) (Stored, *Upload, error) {
	u, err := c.Begin(ctx, by, repo, isSHA512(want))
	if err != nil {
		return Stored{}, nil, err
	}
	return u.ingested(ctx, r, want)
}

// document is Ingest of a part of a publish.
func (c *Catalog) document(ctx context.Context, by Caller, repo meta.RepoRef, body []byte, want digest.Digest) (Stored, *Upload, error) {
	u, err := c.begin(ctx, by, repo, isSHA512(want), true)
	if err != nil {
		return Stored{}, nil, err
	}
	return u.ingested(ctx, bytes.NewReader(body), want)
}

func (u *Upload) ingested(ctx context.Context, r io.Reader, want digest.Digest) (Stored, *Upload, error) {
	s, err := u.ingest(ctx, r, want)
	if err != nil {
		return Stored{}, nil, errors.Join(err, u.Close())
	}
	return s, u, nil
}

func (u *Upload) ingest(ctx context.Context, r io.Reader, want digest.Digest) (Stored, error) {
	if _, err := u.Append(ctx, r); err != nil {
		// The client cannot resume what it has no id of.
		return Stored{}, errors.Join(err, u.Cancel(context.WithoutCancel(ctx)))
	}
	return u.Store(ctx, want)
}

// Link makes stored content visible in a repository.
func (c *Catalog) Link(ctx context.Context, by Caller, repo meta.RepoRef, s Stored) (meta.Token, error) {
	receipt, err := c.again(ctx, by, []*Stored{&s}, func(by Caller) (raftmeta.Receipt, error) {
		return c.do(ctx, by, stepLink, c.link(repo, s))
	})
	if err != nil {
		return meta.Token{}, fmt.Errorf("link %s into %s: %w", s.Name, repo, err)
	}
	c.settled(repo, &s)
	c.bringForward(ctx, by, repo, s.Blob)
	return receipt.Token, nil
}

func (c *Catalog) link(repo meta.RepoRef, s Stored) state.LinkBlob {
	link := state.LinkBlob{Repo: repo, Digest: s.Name, Blob: s.Blob, Server: c.cfg.Holder, Seen: s.seen, Reserved: s.reserved}
	if s.reserved > 0 && c.cfg.Holder != c.cfg.Node {
		link.Reserver = c.cfg.Node
	}
	return link
}

// settled ends the reservations of what is linked.
func (c *Catalog) settled(repo meta.RepoRef, stored ...*Stored) {
	for _, s := range stored {
		c.cfg.Storage.Settled(repo.Tenant, s.session)
	}
}
