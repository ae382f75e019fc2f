// Package protocol is the contract between the gateway and an ecosystem's
// protocol, with the HTTP helpers that protocols share.
//
// A protocol is one folder under gateway/protocols: it declares its routes
// (Route: pattern, action, place), parses and renders, maps errors in one
// function, and never touches raft, blobs or credentials. The gateway matches a
// request (Router), authenticates and authorises it, and hands over a Call.
// Start reading at Protocol, Route and Call; pattern.go has the pattern
// language, content.go serves bytes with ranges and conditions. Every protocol
// runs the suite in protocoltest.
//
// The package starts no goroutines.
package protocol

import (
	"net/http"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Protocol is one ecosystem's way to talk to the registry.
type Protocol interface {
	// Format is the format of the repositories that it serves: oci, generic, npm.
	// "" serves no repositories (the admin API).
	Format() string
	// Routes lists all routes; it is called once.
	Routes() []Route
	// WriteError maps err to a status and the protocol's own body. It is called
	// before anything else was written; errors of routing (*MethodError, ErrNoRoute)
	// and of the gate (meta.ErrNotFound, meta.ErrDenied) come here too. A body
	// for a HEAD request is dropped by the server.
	WriteError(w http.ResponseWriter, r *http.Request, err error)
	// Challenge answers 401 with the protocol's own WWW-Authenticate and body.
	Challenge(w http.ResponseWriter, r *http.Request, s Scope)
}

// Aimer is a protocol whose clients may mean another path than they send.
type Aimer interface {
	// Aim returns the escaped path that a request means, "" for the one that it has. who
	// finds out who calls, as the gate does; its error is no reason to refuse the request,
	// which the gate judges. It is called for every request, before it is matched.
	Aim(r *http.Request, who func() (meta.Principal, error)) (string, error)
}

// Place is where a route can be served.
type Place uint8

// Places. An agent serves Anywhere and forwards the rest to a server; a server
// forwards Owner to the node that the upload id names, and Server to the one that the
// path names.
const (
	// Anywhere is for reads.
	Anywhere Place = iota
	// AnyServer is for writes.
	AnyServer
	// Owner is for upload sessions; the pattern has a parameter {upload}.
	Owner
	// Server is for what one server has; the pattern has a parameter {server}.
	Server
)

// Names of parameters with a meaning for the gateway.
const (
	TenantParam     = "tenant"
	RepositoryParam = "repository"
	UploadParam     = "upload"
	ServerParam     = "server"
)

// Route binds a method and a pattern to what serves it.
type Route struct {
	// Name is unique, short and constant: the label of metrics and logs,
	// `oci_manifest_get`.
	Name string
	// Method is an HTTP method; GET serves HEAD too, unless another route has it.
	Method string
	// Pattern is described in pattern.go.
	Pattern string
	Action  access.Action
	Place   Place
	// Serve answers. An error goes to WriteError when nothing was written yet, and
	// ends the connection otherwise, so that no client takes half for whole.
	Serve func(*Call) error
}

// Scope is what a challenge is for.
type Scope struct {
	Action access.Action
	// Repo and Params are of the route; zero when it names no repository.
	Repo   meta.RepoRef
	Params Params
	// Cause says what was wrong with the credentials; nil when there were none.
	Cause error
}

// Call is one authenticated and authorised request.
type Call struct {
	W http.ResponseWriter
	R *http.Request
	// Who calls.
	Who    meta.Principal
	Params Params
	// Repo names the repository of the route, zero when it has none; Repository is
	// its record, nil when absent. Only Push reaches Serve with a nil record.
	Repo       meta.RepoRef
	Repository *meta.Repository
	// After is the point that reads must include: the Shoal-Token of the request.
	After meta.Token
	// Asked is how fresh the client wants the answer of a read: its Shoal-Mode. The
	// zero Mode leaves it to the route.
	Asked meta.Freshness
	// RequestID is unique to the request (also across the forwarding of it);
	// Trace is its W3C traceparent.
	RequestID, Trace string
	// Loopback says that the connection itself is from this machine.
	Loopback bool
	// Via is the node that forwarded the call, "" when the client is at the other end.
	Via meta.NodeID
	// Degraded says that the read goes on without a server that says whether its right
	// still holds: the answer is Stale.
	Degraded bool
	// Refused and Minted are for the trail, said by who serves: why the credentials were
	// refused, that a token was issued.
	Refused error
	Minted  bool
}

// Params are the values of a pattern's parameters, unescaped.
type Params []Param

// Param is one of them.
type Param struct{ Name, Value string }

// Get returns the value of a parameter, "" when there is none.
func (p Params) Get(name string) string {
	for i := range p {
		if p[i].Name == name {
			return p[i].Value
		}
	}
	return ""
}
