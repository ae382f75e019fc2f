package nuget

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// headerWarning is what clients print of an answer, whatever its status; of the body they
// print nothing (NuGet.Client, ServerWarningLogHandler).
const headerWarning = "X-NuGet-Warning"

// failure is the body of an error answer, for people with curl.
type failure struct {
	Error string `json:"error"`
}

// WriteError implements protocol.Protocol. The protocol knows statuses only: 409 is a
// version that exists, which `nuget push -SkipDuplicate` looks for.
func (p *Protocol) WriteError(w http.ResponseWriter, r *http.Request, err error) {
	h := w.Header()
	h.Del("Content-Encoding")
	status := protocol.Fail(h, err)
	if errors.Is(err, meta.ErrExists) {
		status = http.StatusConflict
	}
	message := protocol.Message(err)
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set(headerWarning, headerText(message))
	}
	// The answer is an error already; that its client has gone changes nothing.
	_ = protocol.WriteJSON(w, status, failure{message})
}

// Challenge implements protocol.Protocol: Basic, which clients answer with what
// nuget.config has for the source; any user, the token as password.
func (p *Protocol) Challenge(w http.ResponseWriter, r *http.Request, s protocol.Scope) {
	message := "credentials are needed: any user, a token as the password; or the token as API key"
	if s.Cause != nil {
		message = s.Cause.Error()
	}
	h := w.Header()
	h.Set("Www-Authenticate", `Basic realm="shoal", charset="UTF-8"`)
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set(headerWarning, headerText(message))
	}
	_ = protocol.WriteJSON(w, http.StatusUnauthorized, failure{message})
}

// headerText makes a sentence fit for a header.
func headerText(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f {
			return '?'
		}
		return r
	}, s)
	return s[:min(len(s), 500)]
}

// writeDocument answers with v as JSON, revalidated by its ETag.
func writeDocument(c *protocol.Call, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("render %T: %w", v, err)
	}
	return protocol.ServeBytes(c.W, c.R, b, document(c))
}

// document is what all JSON documents are served as.
func document(c *protocol.Call) protocol.Content {
	return protocol.Content{MediaType: "application/json; charset=utf-8", Cache: protocol.Revalidate, Public: public(c)}
}
