package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Client speaks the OCI distribution protocol to one registry, strictly: any status
// that the specification does not ask for is an error, and nothing is retried.
type Client struct {
	Base  string       // e.g. http://127.0.0.1:5000
	HTTP  *http.Client // nil is http.DefaultClient
	Token string       // sent as Bearer when not empty
}

// StatusError is an answer with another status than was asked for.
type StatusError struct {
	Method, URL string
	Status      int
	Body        string // at most 4 KiB of it
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("%s %s: %d: %s", e.Method, e.URL, e.Status, strings.TrimSpace(e.Body))
}

// StatusOf returns the status of a StatusError in err, else 0.
func StatusOf(err error) int {
	var status *StatusError
	if errors.As(err, &status) {
		return status.Status
	}
	return 0
}

// Do sends a request for path, which is a path, or a full URL as a Location may be.
//
// The caller closes the body. A status that is not one of want is a *StatusError.
func (c *Client) Do(ctx context.Context, method, path string, header http.Header, body io.Reader, length int64, want ...int) (*http.Response, error) {
	target := path
	if strings.HasPrefix(path, "/") {
		target = c.Base + path
	}
	request, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, err
	}
	if header != nil {
		request.Header = header.Clone()
	}
	if body != nil {
		request.ContentLength = length
	}
	if c.Token != "" {
		request.Header.Set("Authorization", "Bearer "+c.Token)
	}
	client := c.HTTP
	if client == nil {
		client = http.DefaultClient
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	for _, status := range want {
		if response.StatusCode == status {
			return response, nil
		}
	}
	text, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
	response.Body.Close()
	return nil, &StatusError{Method: method, URL: target, Status: response.StatusCode, Body: string(text)}
}

func (c *Client) discard(ctx context.Context, method, path string, header http.Header, body io.Reader, length int64, want ...int) (http.Header, error) {
	response, err := c.Do(ctx, method, path, header, body, length, want...)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return response.Header, err
}

// PushBlob uploads a blob in one PUT after the POST that opens the session, unless
// the repository has it.
func (c *Client) PushBlob(ctx context.Context, repository string, b Blob) error {
	if _, err := c.discard(ctx, http.MethodHead, "/v2/"+repository+"/blobs/"+b.Digest, nil, nil, 0, http.StatusOK); err == nil {
		return nil
	} else if StatusOf(err) != http.StatusNotFound {
		return err
	}
	header, err := c.discard(ctx, http.MethodPost, "/v2/"+repository+"/blobs/uploads/", nil, http.NoBody, 0, http.StatusAccepted)
	if err != nil {
		return err
	}
	location, err := withDigest(header.Get("Location"), b.Digest)
	if err != nil {
		return err
	}
	_, err = c.discard(ctx, http.MethodPut, location, http.Header{"Content-Type": {"application/octet-stream"}},
		b.Open(), b.Size, http.StatusCreated)
	return err
}

func withDigest(location, digest string) (string, error) {
	u, err := url.Parse(location)
	if err != nil || location == "" {
		return "", fmt.Errorf("upload location %q: %w", location, err)
	}
	query := u.Query()
	query.Set("digest", digest)
	u.RawQuery = query.Encode()
	return u.String(), nil
}

// PutManifest stores a manifest under a tag or its digest.
func (c *Client) PutManifest(ctx context.Context, repository, reference string, manifest []byte) error {
	_, err := c.discard(ctx, http.MethodPut, "/v2/"+repository+"/manifests/"+reference,
		http.Header{"Content-Type": {ManifestType}}, bytes.NewReader(manifest), int64(len(manifest)), http.StatusCreated)
	return err
}

// Push uploads an image's blobs, then its manifest under tag.
func (c *Client) Push(ctx context.Context, repository, tag string, img *Image) error {
	for _, b := range img.Blobs() {
		if err := c.PushBlob(ctx, repository, b); err != nil {
			return fmt.Errorf("push %s:%s: %w", repository, tag, err)
		}
	}
	if err := c.PutManifest(ctx, repository, tag, img.Manifest); err != nil {
		return fmt.Errorf("push %s:%s: %w", repository, tag, err)
	}
	return nil
}

// GetManifest returns a manifest's bytes, checked against the digest that the
// registry states and, when reference is one, against it.
func (c *Client) GetManifest(ctx context.Context, repository, reference string) ([]byte, error) {
	response, err := c.Do(ctx, http.MethodGet, "/v2/"+repository+"/manifests/"+reference,
		http.Header{"Accept": {ManifestType}}, nil, 0, http.StatusOK)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	manifest, err := io.ReadAll(io.LimitReader(response.Body, 4<<20+1))
	if err != nil {
		return nil, err
	}
	digest := DigestOf(manifest)
	if stated := response.Header.Get("Docker-Content-Digest"); stated != "" && stated != digest {
		return nil, fmt.Errorf("manifest %s:%s: stated digest %s, bytes have %s", repository, reference, stated, digest)
	}
	if strings.HasPrefix(reference, "sha256:") && reference != digest {
		return nil, fmt.Errorf("manifest %s@%s: bytes have digest %s", repository, reference, digest)
	}
	return manifest, nil
}

// Pulled says what a pull brought and when.
type Pulled struct {
	Manifest  []byte
	Bytes     int64         // of manifest and blobs
	FirstByte time.Duration // from the call to the first byte of the first layer
	Total     time.Duration // from the call to the last byte, checked
	// LongestGap is the longest time without a byte of a layer after FirstByte.
	LongestGap time.Duration
}

// Pull reads an image's manifest and then, as clients do, its config and its layers one
// after another, checks every digest and length, and keeps nothing but the manifest.
func (c *Client) Pull(ctx context.Context, repository, reference string) (Pulled, error) {
	start := time.Now()
	var p Pulled
	var err error
	if p.Manifest, err = c.GetManifest(ctx, repository, reference); err != nil {
		return p, err
	}
	p.Bytes = int64(len(p.Manifest))
	var parsed Manifest
	if err := json.Unmarshal(p.Manifest, &parsed); err != nil {
		return p, fmt.Errorf("manifest %s:%s: %w", repository, reference, err)
	}
	if err := c.PullBlob(ctx, repository, parsed.Config, nil); err != nil {
		return p, err
	}
	p.Bytes += parsed.Config.Size
	var last time.Duration
	for _, d := range parsed.Layers {
		if err := c.PullBlob(ctx, repository, d, func() {
			now := time.Since(start)
			if p.FirstByte == 0 {
				p.FirstByte, last = now, now
			}
			p.LongestGap, last = max(p.LongestGap, now-last), now
		}); err != nil {
			return p, err
		}
		p.Bytes += d.Size
	}
	p.Total = time.Since(start)
	return p, nil
}

// PullBlob reads a blob and checks its length and digest; came, when not nil, is called
// whenever bytes have come.
func (c *Client) PullBlob(ctx context.Context, repository string, d Descriptor, came func()) error {
	response, err := c.Do(ctx, http.MethodGet, "/v2/"+repository+"/blobs/"+d.Digest, nil, nil, 0, http.StatusOK)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	return check(response.Body, d, came)
}

// PullRange reads part of a blob, from offset on as many bytes as part has, and checks
// that they have part's digest.
func (c *Client) PullRange(ctx context.Context, repository, blob string, offset int64, part Descriptor) error {
	response, err := c.Do(ctx, http.MethodGet, "/v2/"+repository+"/blobs/"+blob,
		http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", offset, offset+part.Size-1)}}, nil, 0, http.StatusPartialContent)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if err := check(response.Body, part, nil); err != nil {
		return fmt.Errorf("%s from byte %d: %w", blob, offset, err)
	}
	return nil
}

// check reads body to its end and compares it with what d says of it.
func check(body io.Reader, d Descriptor, came func()) error {
	h := sha256.New()
	var total int64
	buffer := make([]byte, 256<<10)
	for {
		n, err := body.Read(buffer)
		if n > 0 && came != nil {
			came()
		}
		h.Write(buffer[:n])
		total += int64(n)
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("blob %s after %d of %d bytes: %w", d.Digest, total, d.Size, err)
		}
	}
	if got := "sha256:" + hex.EncodeToString(h.Sum(nil)); got != d.Digest || total != d.Size {
		return fmt.Errorf("blob %s of %d bytes: got %d bytes with digest %s", d.Digest, d.Size, total, got)
	}
	return nil
}
