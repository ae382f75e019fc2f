package meta

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/shoal-registry/shoal/verify/digest"
)

// Fetched is what a proxy repository knows of one address of its upstream: the bytes
// that were there, or that nothing was. From cluster level 6.
type Fetched struct {
	Repo RepoRef `cbor:"1,keyasint,omitempty" json:"repo"`
	// Path is what was asked for: below the upstream's base URL, escaped, with its query;
	// or an absolute URL that a document of the upstream named.
	Path string `cbor:"2,keyasint,omitempty" json:"path"`
	// Accept are the media types that were asked for, "" for any; with Path it is the key.
	Accept string `cbor:"3,keyasint,omitempty" json:"accept,omitempty"`
	// Digest is the sha256 of the bytes, "" when nothing was there.
	Digest    digest.Digest `cbor:"4,keyasint,omitempty" json:"digest,omitempty"`
	Size      int64         `cbor:"5,keyasint,omitempty" json:"size"`
	MediaType string        `cbor:"6,keyasint,omitempty" json:"media_type,omitempty"`
	// ETag, LastModified and Link are the upstream's, as it sent them.
	ETag         string `cbor:"7,keyasint,omitempty" json:"etag,omitempty"`
	LastModified string `cbor:"8,keyasint,omitempty" json:"last_modified,omitempty"`
	Link         string `cbor:"9,keyasint,omitempty" json:"link,omitempty"`
	// Immutable says that the bytes never change, so that nobody asks again.
	Immutable bool `cbor:"10,keyasint,omitempty" json:"immutable,omitempty"`
	// Status is the upstream's when nothing was there (404, 410), else 0.
	Status int `cbor:"11,keyasint,omitempty" json:"status,omitempty"`
	// Package and Version are what it belongs to, as far as the format said.
	Package string `cbor:"12,keyasint,omitempty" json:"package,omitempty"`
	Version string `cbor:"13,keyasint,omitempty" json:"version,omitempty"`
	// Stored is when the bytes came, Checked when the upstream last said that it is so.
	// Stamped by the command.
	Stored  Time `cbor:"14,keyasint,omitempty" json:"stored"`
	Checked Time `cbor:"15,keyasint,omitempty" json:"checked"`
	// Revision is the log index at which the bytes last changed.
	Revision uint64 `cbor:"16,keyasint,omitempty" json:"revision"`
	// Upstream names the upstream that was asked for a path below its base URL, so that it
	// is not taken for what another has there.
	Upstream string `cbor:"17,keyasint,omitempty" json:"upstream,omitempty"`
}

// Absent reports whether nothing was there.
func (f *Fetched) Absent() bool { return f.Status != 0 }

// MaxFetchedPath bounds Fetched.Path, and maxFetchedText its other texts.
const (
	MaxFetchedPath = 2048
	maxFetchedText = 1024
)

// CheckFetchedPath checks a path or absolute URL of an upstream: no dots that climb, no
// control bytes, no credentials.
//
// Errors: ErrInvalid.
func CheckFetchedPath(path string) error {
	fail := func(why string) error { return fmt.Errorf("upstream path %.200q: %s: %w", path, why, ErrInvalid) }
	if len(path) > MaxFetchedPath {
		return fail(fmt.Sprintf("%d bytes, at most %d", len(path), MaxFetchedPath))
	}
	if strings.ContainsFunc(path, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '#' }) {
		return fail("blanks, control bytes and fragments are escaped or left out")
	}
	u, err := url.Parse(path)
	if err != nil {
		return fail("it does not parse")
	}
	switch {
	case u.Scheme != "" && u.Scheme != "http" && u.Scheme != "https":
		return fail("use https")
	case u.Scheme != "" && u.Host == "", u.Scheme == "" && u.Host != "", u.Opaque != "":
		return fail("it is neither a path nor an absolute URL")
	case u.User != nil:
		return fail("it carries credentials")
	}
	for part := range strings.SplitSeq(u.Path, "/") {
		if part == "." || part == ".." {
			return fail("a segment of dots")
		}
	}
	return nil
}

// Check checks what a server has to say of an address.
//
// Errors: ErrInvalid.
func (f *Fetched) Check() error {
	if err := f.Repo.Check(); err != nil {
		return err
	}
	if err := CheckFetchedPath(f.Path); err != nil {
		return err
	}
	fail := func(why string) error { return fmt.Errorf("fetched %.200q: %s: %w", f.Path, why, ErrInvalid) }
	for _, text := range []string{f.Accept, f.MediaType, f.ETag, f.LastModified, f.Link, f.Package, f.Version, f.Upstream} {
		if len(text) > maxFetchedText || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return fail(fmt.Sprintf("a text of %d bytes, at most %d and without control bytes", len(text), maxFetchedText))
		}
	}
	switch {
	case f.Status != 0 && f.Status != http.StatusNotFound && f.Status != http.StatusGone:
		return fail(fmt.Sprintf("status %d", f.Status))
	case f.Size < 0:
		return fail(fmt.Sprintf("size %d", f.Size))
	case (f.Digest == "") != (f.Status != 0):
		return fail("either bytes or a status")
	case f.Digest != "" && f.Digest.Algorithm() != "sha256":
		return fail("bytes are named by their sha256")
	}
	if f.Digest == "" {
		return nil
	}
	if _, err := digest.Parse(string(f.Digest)); err != nil {
		return fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	return nil
}
