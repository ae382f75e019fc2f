package pypi

import (
	"errors"
	"net/http"

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
	w.Header().Del("Vary")
	w.Header().Del("Content-Security-Policy")
	protocol.WriteText(w, status, message)
}

// Challenge implements protocol.Protocol: Basic, any user with the token as password.
func (p *Protocol) Challenge(w http.ResponseWriter, _ *http.Request, s protocol.Scope) {
	w.Header().Del("Vary")
	w.Header().Del("Content-Security-Policy")
	protocol.ChallengeText(w, s, "credentials are needed: any user (__token__), a token as the password")
}
