package gateway

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/shoal-registry/shoal/gateway/protocol"
)

// HTTP makes a Mount's Serve of a handler that needs no more than HTTP.
func HTTP(h http.Handler) func(*protocol.Call) error {
	return func(c *protocol.Call) error {
		h.ServeHTTP(c.W, c.R)
		return nil
	}
}

// mounted makes one protocol of the mounted services.
type mounted []Mount

func mountName(m Mount, method string) string {
	if len(m.Methods) == 1 {
		return m.Name
	}
	return m.Name + "_" + strings.ToLower(method)
}

// Format implements protocol.Protocol.
func (m mounted) Format() string { return "" }

// Routes implements protocol.Protocol.
func (m mounted) Routes() []protocol.Route {
	var routes []protocol.Route
	for _, mount := range m {
		route := protocol.Route{Name: mount.Name, Pattern: mount.Pattern, Action: mount.Action, Serve: mount.Serve}
		if len(mount.Methods) == 0 {
			routes = append(routes, route) // the router refuses it by name
		}
		for _, method := range mount.Methods {
			route.Name, route.Method = mountName(mount, method), method
			routes = append(routes, route)
		}
	}
	return routes
}

// WriteError implements protocol.Protocol.
func (m mounted) WriteError(w http.ResponseWriter, r *http.Request, err error) {
	writePlain(w, protocol.Fail(w.Header(), err), protocol.Message(err))
}

// Challenge implements protocol.Protocol.
func (m mounted) Challenge(w http.ResponseWriter, r *http.Request, s protocol.Scope) {
	w.Header().Set("WWW-Authenticate", `Bearer realm="shoal"`)
	writePlain(w, http.StatusUnauthorized, challengeText(s))
}

// challengeText says what to do next.
func challengeText(s protocol.Scope) string {
	if s.Cause != nil {
		return s.Cause.Error()
	}
	return "credentials are needed"
}

func writePlain(w http.ResponseWriter, status int, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	fmt.Fprintln(w, text)
}
