package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	godigest "github.com/opencontainers/go-digest"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// chunkMinBytes is what a client that sends chunks is asked to send at least:
// each costs a request and a sync to disk. Smaller ones are taken too.
const chunkMinBytes = 1 << 20

func (p *Protocol) beginUpload(ctx context.Context, c *call) error {
	query := c.R.URL.Query()
	if _, err := p.catalog.ForPush(ctx, c.by, c.Repo, Format, c.Repository); err != nil {
		return coded(err, meta.ErrNotFound, codeNameUnknown, map[string]string{"name": c.name})
	}
	if query.Has("mount") {
		done, err := p.mount(ctx, c, query.Get("mount"), query.Get("from"))
		if done || err != nil {
			return err
		}
	}
	var want digest.Digest
	if s := query.Get("digest"); s != "" {
		var err error
		if want, err = parseDigest(s); err != nil {
			return err
		}
	}
	withSHA512 := want != "" && want.Algorithm() == godigest.SHA512
	switch algorithm := query.Get("digest-algorithm"); algorithm {
	case "", "sha256":
	case "sha512":
		withSHA512 = true
	default:
		return invalid(codeDigestInvalid, "digest-algorithm %q: %v", algorithm, digest.ErrUnsupported)
	}
	up, err := p.catalog.Begin(ctx, c.by, c.Repo, withSHA512)
	if err != nil {
		return err
	}
	defer up.Close()
	// A POST that names a digest but brings nothing only begins, unless it names the
	// digest of nothing.
	if want != "" && (c.R.ContentLength != 0 || want == want.Algorithm().FromBytes(nil)) {
		// All in one request: nobody learns the id, so nothing may stay behind.
		if err := p.finish(ctx, c, up, want); err != nil {
			return errors.Join(err, up.Cancel(context.WithoutCancel(ctx)))
		}
		return nil
	}
	c.W.Header().Set("OCI-Chunk-Min-Length", strconv.Itoa(chunkMinBytes))
	c.progress(up, http.StatusAccepted)
	return nil
}

// mount answers with the blob of another repository when it can; otherwise the
// client uploads, as if it had not asked.
func (p *Protocol) mount(ctx context.Context, c *call, mount, from string) (done bool, err error) {
	d, err := parseDigest(mount)
	if err != nil {
		return false, err
	}
	var source *meta.RepoRef
	if from != "" {
		// A name that cannot be has no blobs; the catalog finds none there.
		repo, _, _ := splitName(from)
		source = &repo
	}
	token, err := p.catalog.Mount(ctx, c.by, c.Repo, source, d)
	switch {
	case errors.Is(err, meta.ErrNotFound), errors.Is(err, meta.ErrDenied):
		return false, nil
	case err != nil:
		return false, err
	}
	if token != (meta.Token{}) {
		c.Committed(token)
	}
	c.created(d)
	return true, nil
}

// created answers 201 with the place of a blob.
func (c *call) created(d digest.Digest) {
	h := c.W.Header()
	h.Set("Location", "/v2/"+c.name+"/blobs/"+string(d))
	h.Set("Docker-Content-Digest", string(d))
	h.Set("Content-Length", "0")
	c.W.WriteHeader(http.StatusCreated)
}

// place sets the headers that say where an upload is and how far.
func (c *call) place(up *catalog.Upload) {
	h := c.W.Header()
	h.Set("Location", "/v2/"+c.name+"/blobs/uploads/"+up.ID())
	h.Set("Docker-Upload-Uuid", up.ID())
	// The end is inclusive, so that nothing and one byte look alike; docker's habit
	// for nothing is 0-0.
	h.Set("Range", "0-"+strconv.FormatInt(max(up.Offset()-1, 0), 10))
	h.Set("Cache-Control", "no-store")
}

func (c *call) progress(up *catalog.Upload, status int) {
	c.place(up)
	if status != http.StatusNoContent {
		c.W.Header().Set("Content-Length", "0")
	}
	c.W.WriteHeader(status)
}

// resume opens the upload of the path.
func (p *Protocol) resume(ctx context.Context, c *call) (*catalog.Upload, error) {
	id := c.Params.Get(protocol.UploadParam)
	up, err := p.catalog.Resume(ctx, c.by, c.Repo, id)
	return up, coded(err, meta.ErrNotFound, codeBlobUploadUnknown, map[string]string{"upload": id})
}

func (p *Protocol) uploadStatus(ctx context.Context, c *call) error {
	up, err := p.resume(ctx, c)
	if err != nil {
		return err
	}
	defer up.Close()
	c.progress(up, http.StatusNoContent)
	return nil
}

func (p *Protocol) cancelUpload(ctx context.Context, c *call) error {
	up, err := p.resume(ctx, c)
	if err != nil {
		return err
	}
	defer up.Close()
	if err := up.Cancel(ctx); err != nil {
		return coded(err, meta.ErrNotFound, codeBlobUploadUnknown, nil)
	}
	c.W.WriteHeader(http.StatusNoContent)
	return nil
}

func (p *Protocol) appendUpload(ctx context.Context, c *call) error {
	up, err := p.resume(ctx, c)
	if err != nil {
		return err
	}
	defer up.Close()
	if err := c.append(ctx, up); err != nil {
		return err
	}
	c.progress(up, http.StatusAccepted)
	return nil
}

func (p *Protocol) commitUpload(ctx context.Context, c *call) error {
	s := c.R.URL.Query().Get("digest")
	if s == "" {
		return invalid(codeDigestInvalid, "a PUT that ends an upload needs ?digest=")
	}
	want, err := parseDigest(s)
	if err != nil {
		return err
	}
	up, err := p.resume(ctx, c)
	if err != nil {
		return err
	}
	defer up.Close()
	return p.finish(ctx, c, up, want)
}

// finish appends the body, ends the upload and answers 201.
func (p *Protocol) finish(ctx context.Context, c *call, up *catalog.Upload, want digest.Digest) error {
	if err := c.append(ctx, up); err != nil {
		return err
	}
	_, token, err := up.Commit(ctx, want)
	if err != nil {
		return uploadError(err)
	}
	c.Committed(token)
	c.created(want)
	return nil
}

// append adds the body to an upload. Where it must begin is the client's to say
// (Content-Range) or left open: then it goes where the upload ends.
func (c *call) append(ctx context.Context, up *catalog.Upload) error {
	body := protocol.Body(c.R)
	length := int64(-1)
	if header := c.R.Header.Get("Content-Range"); header != "" {
		start, end, err := protocol.ParseContentRange(header)
		if err != nil {
			return coded(err, meta.ErrInvalid, codeBlobUploadInvalid, nil)
		}
		if start != up.Offset() {
			c.place(up)
			return &problem{code: codeBlobUploadInvalid, status: http.StatusRequestedRangeNotSatisfiable,
				err: fmt.Errorf("chunk begins at byte %d: %w", start, &protocol.RangeError{Size: up.Offset(), Reason: "continue where the upload ends"})}
		}
		length = end - start + 1
		if c.R.ContentLength >= 0 && c.R.ContentLength != length {
			return invalid(codeSizeInvalid, "Content-Range has %d bytes, the body %d", length, c.R.ContentLength)
		}
		body = io.LimitReader(body, length)
	}
	if c.R.ContentLength == 0 {
		return nil
	}
	n, err := up.Append(ctx, body)
	if err != nil {
		return uploadError(err)
	}
	if length >= 0 && n != length {
		return invalid(codeSizeInvalid, "Content-Range has %d bytes, the body %d; ask for the upload's state to go on", length, n)
	}
	return nil
}

func uploadError(err error) error {
	var mismatch *digest.MismatchError
	if errors.As(err, &mismatch) {
		return err
	}
	for _, m := range []struct {
		kind error
		code string
	}{
		{meta.ErrNotFound, codeBlobUploadUnknown},
		{meta.ErrConflict, codeBlobUploadInvalid},
		{meta.ErrTooLarge, codeSizeInvalid},
		{protocol.ErrBroken, codeSizeInvalid},
	} {
		err = coded(err, m.kind, m.code, nil)
	}
	return err
}
