package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// blobUnknown says that a blob is not there; other errors pass.
func (c *call) blobUnknown(err error, d digest.Digest) error {
	if !errors.Is(err, meta.ErrNotFound) {
		return err
	}
	return &problem{code: codeBlobUnknown, detail: map[string]string{"digest": string(d)},
		err: fmt.Errorf("blob %s is not in %s: %w", d, c.Repo, meta.ErrNotFound)}
}

func (p *Protocol) getBlob(ctx context.Context, c *call) error {
	d, err := parseDigest(c.Params.Get("digest"))
	if err != nil {
		return err
	}
	if c.proxied() {
		return p.proxyBlob(ctx, c, d)
	}
	look := p.catalog.Blob
	if c.R.Method == http.MethodHead {
		look = p.catalog.Offer // who asks may leave out the upload
	}
	b, asOf, err := look(ctx, c.by, c.Repo, d)
	if err != nil {
		return c.blobUnknown(err, d)
	}
	if err := backwards(c.R.Header.Get("Range"), b.Blob.PlainBytes); err != nil {
		return err
	}
	c.answer(asOf)
	c.W.Header().Set("Docker-Content-Digest", string(d))
	return protocol.Serve(c.W, c.R, protocol.Content{
		Size: b.Blob.PlainBytes, ETag: protocol.ETag(d), Cache: protocol.Immutable, Public: c.public(),
		Open: func(ctx context.Context) (io.ReadSeekCloser, error) { return p.catalog.Open(ctx, b.Blob) },
	})
}

// backwards refuses a range that ends before it begins. HTTP lets a server ignore
// it, but then a client that asked for nothing gets a whole layer.
func backwards(header string, size int64) error {
	spec, ok := strings.CutPrefix(header, "bytes=")
	if !ok {
		return nil
	}
	from, to, _ := strings.Cut(spec, "-")
	start, err1 := strconv.ParseInt(from, 10, 64)
	end, err2 := strconv.ParseInt(to, 10, 64)
	if err1 == nil && err2 == nil && end < start {
		return &protocol.RangeError{Size: size, Reason: header + " ends before it begins"}
	}
	return nil
}

func (p *Protocol) deleteBlob(ctx context.Context, c *call) error {
	d, err := parseDigest(c.Params.Get("digest"))
	if err != nil {
		return err
	}
	token, err := p.catalog.Unlink(ctx, c.by, c.Repo, d)
	if errors.Is(err, meta.ErrConflict) {
		// 405 is what clients take for «not this one»; the specification has no
		// other word for it.
		return &problem{code: codeUnsupported, status: http.StatusMethodNotAllowed, detail: map[string]string{"digest": string(d)},
			err: fmt.Errorf("blob %s is part of a manifest, delete that first: %w", d, meta.ErrConflict)}
	}
	if err != nil {
		return c.blobUnknown(err, d)
	}
	c.Committed(token)
	c.W.Header().Set("Content-Length", "0")
	c.W.WriteHeader(http.StatusAccepted)
	return nil
}
