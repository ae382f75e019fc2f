package gateway

import (
	"errors"
	"net/http"
	"time"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/credential"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Trail takes down what leaves no command in the log: what clients were refused, and
// what they read. It is told of each once, by the node that serves the call; what is
// forwarded is told where it ends. Its methods must not wait and are safe for
// concurrent use. A request without credentials that is challenged is not a denial.
type Trail interface {
	// Denied says that the caller may not do it; absent and forbidden are both here.
	Denied(f CallFacts, reason string)
	// LoginFailed says that the caller's credentials do not hold.
	LoginFailed(f CallFacts, reason string)
	// Pulled says that the caller was given bytes of a repository.
	Pulled(f CallFacts, bytes int64)
	// Minted says that the caller got a token that is not a record: of /token.
	Minted(f CallFacts)
}

// CallFacts say which call it was. Texts of clients are as they came and may be long.
type CallFacts struct {
	Time time.Time
	// Request and Trace (a W3C traceparent) are what the log of requests says.
	Request, Trace string
	Principal      string // "" when it is not known
	Credential     string // id of the credential
	Elevation      string // of break-glass
	Source         string // client address, with a port
	Agent          string // User-Agent
	Route          string // name of the route
	Action         string
	Method, Path   string // the path without its query
	Tenant         meta.TenantName
	Repository     string // tenant/name
	Status         int
	Took           time.Duration
}

// judged notes a judgement against the caller; a challenge is none.
func (e *exchange) judged(err error) error {
	if err != nil && !errors.Is(err, access.ErrChallenge) {
		e.denied = err
	}
	return err
}

// take tells the trail of an exchange that is over.
func (g *Gateway) take(e *exchange, status int, took time.Duration) {
	if g.Trail == nil || e.call == nil || e.forwarded {
		return
	}
	c := e.call
	f := CallFacts{
		Time: time.Now(), Request: e.id, Trace: e.trace, Principal: c.Who.Name, Credential: c.Who.Token, Elevation: c.Who.Elevation,
		Source: e.r.RemoteAddr, Agent: e.r.UserAgent(), Route: e.route, Action: string(e.action), Method: e.r.Method, Path: credential.Hide(e.r.URL.Path),
		Tenant: c.Repo.Tenant, Status: status, Took: took,
	}
	if c.Repo != (meta.RepoRef{}) {
		f.Repository = c.Repo.String()
	}
	var bad *access.CredentialsError
	switch refused := c.Refused; {
	case refused != nil:
		g.Trail.LoginFailed(f, refused.Error())
	case errors.As(e.err, &bad):
		g.Trail.LoginFailed(f, bad.Error())
	case e.denied != nil:
		g.Trail.Denied(f, e.denied.Error())
	case errors.Is(e.err, meta.ErrDenied):
		g.Trail.Denied(f, protocol.Message(e.err))
	case c.Minted:
		g.Trail.Minted(f)
	case e.action == access.Pull && e.r.Method != http.MethodHead && (status == http.StatusOK || status == http.StatusPartialContent):
		g.Trail.Pulled(f, e.stream.written)
	}
}
