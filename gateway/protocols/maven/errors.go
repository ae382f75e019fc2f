package maven

import (
	"errors"
	"net/http"
	"strconv"

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
	writeText(w, status, message)
}

// Challenge implements protocol.Protocol: Basic, the token as password. mvn asks without
// credentials first when it reads, and sends them at once when it writes.
func (p *Protocol) Challenge(w http.ResponseWriter, _ *http.Request, s protocol.Scope) {
	message := "credentials are needed: any username, a token as the password, in <server> of settings.xml"
	if s.Cause != nil {
		message = s.Cause.Error()
	}
	w.Header().Set("Www-Authenticate", `Basic realm="shoal", charset="UTF-8"`)
	w.Header().Set("Cache-Control", "no-store")
	writeText(w, http.StatusUnauthorized, message)
}

func writeText(w http.ResponseWriter, status int, message string) {
	body := message + "\n"
	h := w.Header()
	h.Del("Content-Security-Policy")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	// The answer is an error already; that its client has gone changes nothing.
	_, _ = w.Write([]byte(body))
}
