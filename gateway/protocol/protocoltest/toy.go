package protocoltest

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Toy is the smallest protocol that passes the suite: documents in memory under
// /toy/<tenant>/<repository>/<path>. Tests of the gateway serve it; a new
// protocol can start from its shape.
type Toy struct {
	mu   sync.Mutex
	docs map[string][]byte
	// Extra are further routes.
	Extra []protocol.Route
}

// Put stores a document.
func (p *Toy) Put(ref meta.RepoRef, path, doc string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.docs == nil {
		p.docs = map[string][]byte{}
	}
	p.docs[ref.String()+"/"+path] = []byte(doc)
}

// Format implements protocol.Protocol.
func (p *Toy) Format() string { return "toy" }

// Routes implements protocol.Protocol.
func (p *Toy) Routes() []protocol.Route {
	const doc = "/toy/{tenant}/{repository}/{path...}"
	return append([]protocol.Route{
		{Name: "toy_ping", Method: http.MethodGet, Pattern: "/toy/", Action: access.Login, Serve: func(c *protocol.Call) error {
			return protocol.ServeBytes(c.W, c.R, []byte(c.Who.Name), protocol.Content{MediaType: "text/plain"})
		}},
		{Name: "toy_get", Method: http.MethodGet, Pattern: doc, Action: access.Pull, Serve: p.get},
		{Name: "toy_put", Method: http.MethodPut, Pattern: doc, Action: access.Push, Place: protocol.AnyServer, Serve: p.put},
	}, p.Extra...)
}

func (p *Toy) get(c *protocol.Call) error {
	p.mu.Lock()
	doc, ok := p.docs[c.Repo.String()+"/"+c.Params.Get("path")]
	p.mu.Unlock()
	if !ok {
		return fmt.Errorf("document: %w", meta.ErrNotFound)
	}
	c.AsOf(meta.AsOf{Index: 1, Mode: meta.ModeBounded})
	return protocol.ServeBytes(c.W, c.R, doc, protocol.Content{MediaType: "text/plain; charset=utf-8", Cache: protocol.Revalidate})
}

func (p *Toy) put(c *protocol.Call) error {
	// The body is counted, not kept: tests send more than memory may hold.
	head, err := io.ReadAll(io.LimitReader(c.R.Body, 4096))
	if err != nil {
		return fmt.Errorf("read document: %w", err)
	}
	rest, err := io.Copy(io.Discard, c.R.Body)
	if err != nil {
		return fmt.Errorf("read document: %w", err)
	}
	p.Put(c.Repo, c.Params.Get("path"), string(head))
	c.Committed(meta.Token{Epoch: 1, Index: 2})
	c.W.Header().Set("Location", c.R.URL.EscapedPath())
	c.W.WriteHeader(http.StatusCreated)
	_, err = fmt.Fprintf(c.W, "%d bytes", int64(len(head))+rest)
	return err
}

// WriteError implements protocol.Protocol.
func (p *Toy) WriteError(w http.ResponseWriter, r *http.Request, err error) {
	status := protocol.Fail(w.Header(), err)
	w.Header().Set("Content-Type", "text/plain")
	w.WriteHeader(status)
	fmt.Fprintf(w, "toy error: %s", protocol.Message(err))
}

// Challenge implements protocol.Protocol.
func (p *Toy) Challenge(w http.ResponseWriter, r *http.Request, s protocol.Scope) {
	w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="%s"`, protocol.BaseURL(r), access.Service))
	w.Header().Set("Content-Type", "text/plain")
	w.WriteHeader(http.StatusUnauthorized)
	cause := "credentials are needed"
	if s.Cause != nil {
		cause = s.Cause.Error()
	}
	fmt.Fprintf(w, "toy error: %s", cause)
}

// CheckToyError checks that a refusal has the toy's own body.
func CheckToyError(status int, h http.Header, body []byte) error {
	if !strings.HasPrefix(string(body), "toy error: ") {
		return fmt.Errorf("body %q", body)
	}
	return nil
}
