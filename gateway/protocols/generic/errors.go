package generic

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// failure is the body of an error answer. Code is a word for programs: the kind
// of error as nodes tell it each other, or precondition, method, range.
type failure struct {
	Code    string `json:"code"`
	Message string `json:"error"`
}

// WriteError implements protocol.Protocol.
func (p *Protocol) WriteError(w http.ResponseWriter, _ *http.Request, err error) {
	h := w.Header()
	for _, name := range []string{"Repr-Digest", "X-Checksum-Sha256", "Content-Security-Policy"} {
		h.Del(name) // those of the file
	}
	status := protocol.Fail(h, err)
	f := failure{Code: meta.KindOf(err), Message: protocol.Message(err)}
	var mismatch *digest.MismatchError
	if errors.As(err, &mismatch) {
		f.Message = mismatch.Error()
	}
	switch status {
	case http.StatusPreconditionFailed:
		f.Code = "precondition"
	case http.StatusMethodNotAllowed:
		f.Code = "method"
	case http.StatusRequestedRangeNotSatisfiable:
		f.Code = "range"
	case http.StatusNotFound:
		f.Code = "not_found"
	case http.StatusBadRequest:
		f.Code = "invalid"
	}
	if f.Code == "" {
		f.Code = "internal"
	}
	// The answer is an error already; that its client has gone changes nothing.
	_ = protocol.WriteJSON(w, status, f)
}

// Challenge implements protocol.Protocol: Basic, which curl and wget send when
// they are given a user, the token as password.
func (p *Protocol) Challenge(w http.ResponseWriter, _ *http.Request, s protocol.Scope) {
	message := "credentials are needed: any user, a token as the password"
	if s.Cause != nil {
		message = s.Cause.Error()
	}
	w.Header().Set("Www-Authenticate", `Basic realm="shoal", charset="UTF-8"`)
	_ = protocol.WriteJSON(w, http.StatusUnauthorized, failure{Code: "unauthorized", Message: message})
}

// marshal renders v with a final newline, for terminals.
func marshal(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("render %T: %w", v, err)
	}
	return append(b, '\n'), nil
}
