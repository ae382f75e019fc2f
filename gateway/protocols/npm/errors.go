package npm

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// failure is the body of an error answer: clients print what error says.
type failure struct {
	Error string `json:"error"`
}

// takenError says that a version cannot be published because its name is taken: by
// other bytes, or by a version that was deleted. It is meta.ErrExists.
type takenError struct {
	version string
	cause   error
}

func (e *takenError) Error() string {
	return fmt.Sprintf("You cannot publish over the previously published versions: %s.", e.version)
}

func (e *takenError) Unwrap() error { return e.cause }

// WriteError implements protocol.Protocol.
func (p *Protocol) WriteError(w http.ResponseWriter, _ *http.Request, err error) {
	status := protocol.Fail(w.Header(), err)
	message := protocol.Message(err)
	var taken *takenError
	if errors.As(err, &taken) {
		message = taken.Error()
	}
	if errors.Is(err, meta.ErrExists) {
		// On a conflict clients take the document again and repeat; this is final.
		status = http.StatusForbidden
	}
	// The answer is an error already; that its client has gone changes nothing.
	_ = protocol.WriteJSON(w, status, failure{message})
}

// Challenge implements protocol.Protocol.
func (p *Protocol) Challenge(w http.ResponseWriter, _ *http.Request, s protocol.Scope) {
	message := "credentials are needed: log in with `npm login --auth-type=legacy`, or set a token"
	if s.Cause != nil {
		message = s.Cause.Error()
	}
	w.Header().Set("Www-Authenticate", `Bearer realm="shoal"`)
	_ = protocol.WriteJSON(w, http.StatusUnauthorized, failure{message})
}
