package gomod

import (
	"errors"
	"io"
	"net/http"
	"strconv"

	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/verify/digest"
)

// WriteError implements protocol.Protocol: a line of text, which the go command shows
// behind «server response».
func (p *Protocol) WriteError(w http.ResponseWriter, _ *http.Request, err error) {
	status := protocol.Fail(w.Header(), err)
	message := protocol.Message(err)
	var gone *goneError
	if errors.As(err, &gone) {
		status = http.StatusGone
	}
	var mismatch *digest.MismatchError
	if errors.As(err, &mismatch) {
		message = mismatch.Error()
	}
	answer(w, status, message)
}

// Challenge implements protocol.Protocol: Basic, the token as the password. The go command
// takes it from .netrc, and sends it over TLS only.
func (p *Protocol) Challenge(w http.ResponseWriter, _ *http.Request, s protocol.Scope) {
	message := "credentials are needed: any user, a token as the password; the go command reads them from .netrc, for https only"
	if s.Cause != nil {
		message = s.Cause.Error()
	}
	w.Header().Set("Www-Authenticate", `Basic realm="shoal", charset="UTF-8"`)
	w.Header().Set("Cache-Control", "no-store")
	answer(w, http.StatusUnauthorized, message)
}

func answer(w http.ResponseWriter, status int, message string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(message)+1))
	w.WriteHeader(status)
	// The answer is an error already; that its client has gone changes nothing.
	_, _ = io.WriteString(w, message+"\n")
}
