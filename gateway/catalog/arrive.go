package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// arrivingBytes is what a request holds in memory of a document that is still on its way:
// about as much as its connection does.
const arrivingBytes = 64 << 10

// Arrived is a document that a client has sent, all of it. It is for one goroutine, and to
// be closed.
type Arrived struct {
	catalog *Catalog
	size    int64
	head    []byte    // all of it, up to arrivingBytes
	up      *Upload   // else it is here
	blob    meta.Blob // and this
}

// Arrive reads a document that is to be published in repo from its client, who may take its
// time: until it is here and read it takes none of the budget for documents in flight. What
// is longer than 64 KiB waits in an upload session, which nobody else sees.
//
// size is the length in bytes that the client says, below 0 when it says none; maxBytes is
// what it may be.
//
// Errors: meta.ErrTooLarge; meta.ErrInvalid when it ends early; of r; as Begin and Append
// have them, but for quotas: a publish is judged by what it adds.
func (c *Catalog) Arrive(ctx context.Context, by Caller, repo meta.RepoRef, r io.Reader, size, maxBytes int64) (*Arrived, error) {
	tooLarge := fmt.Errorf("body is over the limit of %d bytes: %w", maxBytes, meta.ErrTooLarge)
	if size > maxBytes {
		return nil, tooLarge
	}
	a := &Arrived{catalog: c}
	r = io.LimitReader(client{r}, maxBytes+1)
	var head bytes.Buffer
	n, err := head.ReadFrom(io.LimitReader(r, arrivingBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read the body: %w", err)
	}
	a.head, a.size = head.Bytes(), n
	if n > arrivingBytes {
		if err := a.store(ctx, by, repo, r); err != nil {
			return nil, errors.Join(err, a.Close())
		}
	}
	switch {
	case a.size > maxBytes:
		return nil, errors.Join(tooLarge, a.Close())
	case a.size < size:
		return nil, errors.Join(fmt.Errorf("body ended after %d of %d bytes: %w", a.size, size, meta.ErrInvalid), a.Close())
	}
	return a, nil
}

// store puts what has come and the rest of it, r, into an upload.
func (a *Arrived) store(ctx context.Context, by Caller, repo meta.RepoRef, r io.Reader) (err error) {
	if a.up, err = a.catalog.begin(ctx, by, repo, false, true); err != nil {
		return err
	}
	if _, err = a.up.Append(ctx, bytes.NewReader(a.head)); err != nil {
		return err
	}
	a.head = nil
	if _, err = a.up.Append(ctx, r); err != nil {
		return err
	}
	s, err := a.up.store(ctx, "")
	if err != nil {
		return fmt.Errorf("close upload %s: %w", a.up.id, err)
	}
	a.up.ended, a.blob, a.size = true, s.Blob, s.Blob.PlainBytes
	return nil
}

// Read returns the document, in as much of the budget for documents in flight as it is
// long, for which it waits. release gives that back, and the document with it.
//
// Errors: meta.ErrUnavailable when ctx ends first; of the store.
func (a *Arrived) Read(ctx context.Context) (body []byte, release func(), err error) {
	if release, err = a.catalog.Reserve(ctx, a.size); err != nil {
		return nil, nil, err
	}
	if a.up == nil {
		return a.head, release, nil
	}
	if body, err = a.stored(ctx); err != nil {
		release()
		return nil, nil, err
	}
	return body, release, nil
}

func (a *Arrived) stored(ctx context.Context) ([]byte, error) {
	r, err := a.catalog.Open(ctx, a.blob)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	body := make([]byte, a.size)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, fmt.Errorf("read what was sent: %w", err)
	}
	return body, nil
}

// Close lets go of the document. What was stored of it is collected.
func (a *Arrived) Close() error {
	if a.up == nil {
		return nil
	}
	return errors.Join(a.up.Cancel(context.Background()), a.up.Close())
}

// client is a body whose early end is the client's.
type client struct{ io.Reader }

// Read implements io.Reader.
func (c client) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("it ended early: %w: %w", err, meta.ErrInvalid)
	}
	return n, err
}
