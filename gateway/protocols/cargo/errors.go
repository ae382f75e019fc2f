package cargo

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/verify/digest"
)

// failure is the body of an error, which cargo shows.
type failure struct {
	Errors []detail `json:"errors"`
}

type detail struct {
	Detail string `json:"detail"`
}

// WriteError implements protocol.Protocol.
func (p *Protocol) WriteError(w http.ResponseWriter, _ *http.Request, err error) {
	status := protocol.Fail(w.Header(), err)
	message := protocol.Message(err)
	var mismatch *digest.MismatchError
	if errors.As(err, &mismatch) {
		message = mismatch.Error()
	}
	// The answer is an error already; that its client has gone changes nothing.
	_ = protocol.WriteJSON(w, status, failure{[]detail{{message}}})
}

// Challenge implements protocol.Protocol: upon it cargo asks again with its token.
func (p *Protocol) Challenge(w http.ResponseWriter, r *http.Request, s protocol.Scope) {
	message := "a token is needed: `cargo login --registry NAME`"
	if s.Cause != nil {
		message = s.Cause.Error()
	}
	login := protocol.BaseURL(r)
	if parts := strings.SplitN(r.URL.EscapedPath(), "/", 5); len(parts) == 5 {
		login += strings.Join(parts[:4], "/") + "/me"
	}
	w.Header().Set("Www-Authenticate", `Cargo login_url="`+login+`"`)
	_ = protocol.WriteJSON(w, http.StatusUnauthorized, failure{[]detail{{message}}})
}

const loginHelp = `Make a token with

    shoal token create --note cargo

and give it to cargo with

    cargo login --registry NAME

NAME is that of the registry in .cargo/config.toml.
`

// me is the page of a 401's login_url.
func me(c *protocol.Call) error {
	h := c.W.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(loginHelp)))
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	_, err := io.WriteString(c.W, loginHelp)
	return err
}
