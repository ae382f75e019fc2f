package protocol

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// ReadBody reads a request's body of at most maxBytes into memory.
//
// Errors: meta.ErrTooLarge (without reading, when the length is declared);
// meta.ErrInvalid when the body ends before its declared length.
func ReadBody(r *http.Request, maxBytes int64) ([]byte, error) {
	tooLarge := fmt.Errorf("body is over the limit of %d bytes: %w", maxBytes, meta.ErrTooLarge)
	if r.ContentLength > maxBytes {
		return nil, tooLarge
	}
	var buf bytes.Buffer
	if r.ContentLength > 0 {
		buf.Grow(int(r.ContentLength) + bytes.MinRead)
	}
	n, err := buf.ReadFrom(io.LimitReader(r.Body, maxBytes+1))
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return nil, fmt.Errorf("body ended after %d bytes: %w", n, meta.ErrInvalid)
	case err != nil:
		return nil, fmt.Errorf("read body: %w", err)
	case n > maxBytes:
		return nil, tooLarge
	}
	return buf.Bytes(), nil
}

// ReadJSON reads a body of at most maxBytes into v. Unknown fields and trailing
// bytes are errors, so that a typing error is not taken for consent.
//
// Errors: meta.ErrInvalid, meta.ErrTooLarge.
func ReadJSON(r *http.Request, maxBytes int64, v any) error {
	b, err := ReadBody(r, maxBytes)
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("body is not the JSON that is expected: %v: %w", err, meta.ErrInvalid)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("body has more than one JSON value: %w", meta.ErrInvalid)
	}
	return nil
}

// WriteJSON answers with v. Set other headers before.
func WriteJSON(w http.ResponseWriter, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("render %T: %w", v, err)
	}
	b = append(b, '\n')
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(b)))
	h.Set("X-Content-Type-Options", "nosniff")
	if h.Get("Cache-Control") == "" {
		h.Set("Cache-Control", "no-store")
	}
	w.WriteHeader(status)
	_, err = w.Write(b)
	return err
}

// WriteText answers with a line of text, as protocols do whose clients show it to people.
// Set other headers before. That the client has gone changes nothing.
func WriteText(w http.ResponseWriter, status int, line string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(line)+1))
	w.WriteHeader(status)
	_, _ = io.WriteString(w, line+"\n")
}

// ChallengeText answers 401 with a line of text: Basic, the token as the password. The line
// is why the credentials were refused, or help when there were none.
func ChallengeText(w http.ResponseWriter, s Scope, help string) {
	if s.Cause != nil {
		help = s.Cause.Error()
	}
	w.Header().Set("Www-Authenticate", `Basic realm="shoal", charset="UTF-8"`)
	w.Header().Set("Cache-Control", "no-store")
	WriteText(w, http.StatusUnauthorized, help)
}

// PageRequest is the page of a listing that a client asks for.
type PageRequest struct {
	After string
	Limit int
	// Given says that the client named a limit. An OCI tags list with n=0 is empty.
	Given bool
}

// ParsePage reads the limit (of the parameter size) and the start (of after)
// from a query. Without a limit it is standard; above most it is most.
//
// Errors: meta.ErrInvalid when the limit is not a number from 0.
func ParsePage(query url.Values, size, after string, standard, most int) (PageRequest, error) {
	p := PageRequest{After: query.Get(after), Limit: standard}
	if s := query.Get(size); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 {
			return PageRequest{}, fmt.Errorf("parameter %s=%q is not a number from 0: %w", size, s, meta.ErrInvalid)
		}
		p.Limit, p.Given = min(n, most), true
	}
	return p, nil
}

// LinkNext says where a listing goes on: a Link of rel next (RFC 8288) to the
// request's own path, its query with the given parameters set. It is relative,
// so that it holds at whatever gateway the client talks to.
func LinkNext(w http.ResponseWriter, r *http.Request, set url.Values) {
	query := r.URL.Query()
	for name, values := range set {
		query[name] = values
	}
	w.Header().Add("Link", "<"+r.URL.EscapedPath()+"?"+query.Encode()+`>; rel="next"`)
}
