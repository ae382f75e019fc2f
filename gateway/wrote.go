package gateway

import (
	"net/http"

	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// tokenNote takes the token out of a forwarded answer before the client has any of
// it: a read that the client sends next finds it noted.
type tokenNote struct {
	*stream
	wrote func(meta.Token)
}

// WriteHeader implements http.ResponseWriter.
func (w *tokenNote) WriteHeader(status int) {
	if t, err := meta.ParseToken(w.Header().Get(protocol.HeaderToken)); err == nil && t != (meta.Token{}) {
		w.wrote(t)
	}
	w.stream.WriteHeader(status)
}

// Unwrap lets http.ResponseController flush through the stream.
func (w *tokenNote) Unwrap() http.ResponseWriter { return w.stream }
