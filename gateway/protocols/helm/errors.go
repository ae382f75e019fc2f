package helm

import (
	"net/http"

	"github.com/shoal-registry/shoal/gateway/protocol"
)

// failure is the body of an error answer, as ChartMuseum writes it.
type failure struct {
	Message string `json:"error"`
}

// WriteError implements protocol.Protocol.
func (p *Protocol) WriteError(w http.ResponseWriter, _ *http.Request, err error) {
	h := w.Header()
	h.Del("Content-Security-Policy")
	status := protocol.Fail(h, err)
	// The answer is an error already; that its client has gone changes nothing.
	_ = protocol.WriteJSON(w, status, failure{protocol.Message(err)})
}

// Challenge implements protocol.Protocol: Basic, which helm sends with --username and
// --password.
func (p *Protocol) Challenge(w http.ResponseWriter, _ *http.Request, s protocol.Scope) {
	message := "credentials are needed: any user, a token as the password"
	if s.Cause != nil {
		message = s.Cause.Error()
	}
	w.Header().Set("Www-Authenticate", `Basic realm="shoal", charset="UTF-8"`)
	_ = protocol.WriteJSON(w, http.StatusUnauthorized, failure{message})
}
