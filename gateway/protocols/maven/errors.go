package maven

import (
	"errors"
	"net/http"

	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/verify/digest"
)

// WriteError implements protocol.Protocol: one line of text, since mvn shows the status
// alone and people read the rest with curl.
func (p *Protocol) WriteError(w http.ResponseWriter, _ *http.Request, err error) {
	status := protocol.Fail(w.Header(), err)
	message := protocol.Message(err)
	if mismatch, ok := errors.AsType[*digest.MismatchError](err); ok {
		message = mismatch.Error()
	}
	w.Header().Del("Content-Security-Policy")
	protocol.WriteText(w, status, message)
}

// Challenge implements protocol.Protocol: Basic, the token as password. mvn asks without
// credentials first when it reads, and sends them at once when it writes.
func (p *Protocol) Challenge(w http.ResponseWriter, _ *http.Request, s protocol.Scope) {
	w.Header().Del("Content-Security-Policy")
	protocol.ChallengeText(w, s, "credentials are needed: any username, a token as the password, in <server> of settings.xml")
}
