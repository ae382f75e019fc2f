package generic

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	godigest "github.com/opencontainers/go-digest"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Sessions take a file in pieces, over as many connections and days as it needs, in the
// shape of OCI's (distribution spec, Pushing a blob in chunks):
//
//	POST   PATH?uploads            202, Location is the session
//	PATCH  SESSION                 202; Content-Range: START-END is where the piece belongs
//	GET    SESSION                 204, how far it is
//	PUT    SESSION?digest=DIGEST   201, the file is what its path serves; a body is the last piece
//	DELETE SESSION                 204, nothing is left of it
//
// Every answer says how many bytes have come: Upload-Offset, and Range: 0-LAST. A piece
// that begins elsewhere gets 416 with the same. The server that began a session holds it,
// on disk; others pass on what is for it. It ends a day after the last byte.

// uploads is the part of a path before the id of a session. No file has such a path.
const uploads = ".uploads"

// headerOffset is how many bytes of a session have come.
const headerOffset = "Upload-Offset"

func (p *Protocol) beginUpload(c *protocol.Call) error {
	query := c.R.URL.Query()
	if !query.Has("uploads") {
		return &protocol.MethodError{Method: c.R.Method, Allow: []string{http.MethodDelete, http.MethodGet, http.MethodHead, http.MethodPut}}
	}
	if _, err := file(c); err != nil {
		return err
	}
	target, err := p.target(c, meta.ActionPush)
	if err != nil {
		return err
	}
	withSHA512 := false
	switch algorithm := query.Get("digest-algorithm"); algorithm {
	case "", string(godigest.SHA256):
	case string(godigest.SHA512):
		withSHA512 = true
	default:
		return fmt.Errorf("digest-algorithm %q: use sha256 or sha512: %w", algorithm, meta.ErrInvalid)
	}
	up, err := p.catalog.Begin(c.R.Context(), caller(c), target.Ref, withSHA512)
	if err != nil {
		return err
	}
	defer up.Close()
	c.W.Header().Set("Location", fileURL(c)+"/"+uploads+"/"+up.ID())
	progress(c, up, http.StatusAccepted)
	return nil
}

// fileURL returns the address of the file of a call, below which its sessions are.
func fileURL(c *protocol.Call) string {
	path := c.R.URL.EscapedPath()
	if i := strings.LastIndex(path, "/"+uploads+"/"); i >= 0 && c.Params.Get(protocol.UploadParam) != "" {
		return path[:i]
	}
	return path
}

// place says how far a session is.
func place(h http.Header, up *catalog.Upload) {
	h.Set(headerOffset, strconv.FormatInt(up.Offset(), 10))
	// The end is inclusive, so that nothing and one byte look alike.
	h.Set("Range", "0-"+strconv.FormatInt(max(up.Offset()-1, 0), 10))
	h.Set("Cache-Control", "no-store")
}

func progress(c *protocol.Call, up *catalog.Upload, status int) {
	h := c.W.Header()
	place(h, up)
	if status != http.StatusNoContent {
		h.Set("Content-Length", "0")
	}
	c.W.WriteHeader(status)
}

// resume opens the session of the path, and says what it goes into. Its id is of the
// principal and the repository that it was begun for.
func (p *Protocol) resume(c *protocol.Call) (*catalog.Upload, meta.Repository, error) {
	target, err := p.target(c, meta.ActionPush)
	if err != nil {
		return nil, target, err
	}
	up, err := p.catalog.Resume(c.R.Context(), caller(c), target.Ref, c.Params.Get(protocol.UploadParam))
	return up, target, err
}

func (p *Protocol) uploadStatus(c *protocol.Call) error {
	up, _, err := p.resume(c)
	if err != nil {
		return err
	}
	defer up.Close()
	progress(c, up, http.StatusNoContent)
	return nil
}

func (p *Protocol) cancelUpload(c *protocol.Call) error {
	up, _, err := p.resume(c)
	if err != nil {
		return err
	}
	defer up.Close()
	if err := up.Cancel(c.R.Context()); err != nil {
		return err
	}
	c.W.WriteHeader(http.StatusNoContent)
	return nil
}

func (p *Protocol) appendUpload(c *protocol.Call) error {
	up, _, err := p.resume(c)
	if err != nil {
		return err
	}
	defer up.Close()
	if err := appendPiece(c, up); err != nil {
		return err
	}
	progress(c, up, http.StatusAccepted)
	return nil
}

// appendPiece adds the body to a session. Where it belongs is the client's to say
// (Content-Range) or left open: then it goes where the session ends.
func appendPiece(c *protocol.Call, up *catalog.Upload) error {
	body, length := protocol.Body(c.R), int64(-1)
	if header := c.R.Header.Get("Content-Range"); header != "" {
		start, end, err := protocol.ParseContentRange(header)
		if err != nil {
			return err
		}
		if start != up.Offset() {
			place(c.W.Header(), up)
			return fmt.Errorf("the piece begins at byte %d: %w", start, &protocol.RangeError{Size: up.Offset(), Reason: "go on where the session ends"})
		}
		length = end - start + 1
		if c.R.ContentLength >= 0 && c.R.ContentLength != length {
			return fmt.Errorf("Content-Range has %d bytes, the body %d: %w", length, c.R.ContentLength, meta.ErrInvalid) //nolint:staticcheck // a header's name
		}
		body = io.LimitReader(body, length)
	}
	if c.R.ContentLength == 0 {
		return nil
	}
	n, err := up.Append(c.R.Context(), body)
	if err != nil {
		return err
	}
	if length >= 0 && n != length {
		return fmt.Errorf("Content-Range has %d bytes and %d came; ask the session how far it is and go on there: %w", length, n, meta.ErrInvalid) //nolint:staticcheck // a header's name
	}
	return nil
}

func (p *Protocol) commitUpload(c *protocol.Call) error {
	pkg, err := file(c)
	if err != nil {
		return err
	}
	want, err := digest.Parse(c.R.URL.Query().Get("digest"))
	if err != nil {
		return fmt.Errorf("a session ends with ?digest=, sha256 or sha512 of the whole file: %w: %w", meta.ErrInvalid, err)
	}
	ctx, by := c.R.Context(), caller(c)
	up, target, err := p.resume(c)
	if err != nil {
		return err
	}
	defer up.Close()
	pkg.Repo = target.Ref
	base, err := p.base(ctx, by, pkg, c.R)
	if err != nil {
		return err
	}
	if err := appendPiece(c, up); err != nil {
		return err
	}
	content, err := up.Store(ctx, want)
	if errors.Is(err, meta.ErrNotFound) {
		return fmt.Errorf("the session has ended: %w", err)
	}
	if err != nil {
		return err
	}
	return p.publish(c, target, pkg, base, content)
}
