package pypi

import (
	"errors"
	"net/http"
	"strconv"

	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// WriteError implements protocol.Protocol: a sentence as plain text, which is what clients
// print. A file that is there already is a 400 as on PyPI, which twine looks for.
func (p *Protocol) WriteError(w http.ResponseWriter, _ *http.Request, err error) {
	status := protocol.Fail(w.Header(), err)
	message := protocol.Message(err)
	var mismatch *digest.MismatchError
	if errors.As(err, &mismatch) {
		message = "the file is not what the form says: " + mismatch.Error()
	}
	if errors.Is(err, meta.ErrExists) {
		status = http.StatusBadRequest
	}
	plain(w, status, message)
}

// Challenge implements protocol.Protocol: Basic, any user with the token as password.
func (p *Protocol) Challenge(w http.ResponseWriter, _ *http.Request, s protocol.Scope) {
	message := "credentials are needed: any user (__token__), a token as the password"
	if s.Cause != nil {
		message = s.Cause.Error()
	}
	w.Header().Set("Www-Authenticate", `Basic realm="shoal", charset="UTF-8"`)
	w.Header().Set("Cache-Control", "no-store")
	plain(w, http.StatusUnauthorized, message)
}

func plain(w http.ResponseWriter, status int, message string) {
	h := w.Header()
	h.Del("Vary")
	h.Del("Content-Security-Policy")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(message)+1))
	w.WriteHeader(status)
	// The answer is an error already; that its client has gone changes nothing.
	_, _ = w.Write([]byte(message + "\n"))
}
