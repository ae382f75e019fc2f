package gomod

import (
	"errors"
	"net/http"

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
	protocol.WriteText(w, status, message)
}

// Challenge implements protocol.Protocol: Basic, the token as the password. The go command
// takes it from .netrc, and sends it over TLS only.
func (p *Protocol) Challenge(w http.ResponseWriter, _ *http.Request, s protocol.Scope) {
	protocol.ChallengeText(w, s, "credentials are needed: any user, a token as the password; the go command reads them from .netrc, for https only")
}
