package gateway

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"runtime/debug"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/credential"
	"github.com/shoal-registry/shoal/gateway/forward"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/uploadid"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// exchange is one request on its way, and what the log and the metrics say of it.
type exchange struct {
	stream   *stream
	r        *http.Request
	protocol protocol.Protocol // who writes errors; nil for paths of nobody
	route    string            // name; "" before one was found
	tenant   meta.TenantName   // of an existing repository
	who      string
	err      error
	left     bool // the client had gone before there was an answer

	// what the trail is told
	call      *protocol.Call
	action    access.Action
	denied    error // the judgement, when it was one against the caller
	forwarded bool

	// caller facts, from the connection or believed from who forwarded
	loopback bool
	node     meta.Node // the node at the other end, when isNode
	isNode   bool
	id       string
	trace    string
}

// Handler returns the gateway as a handler: for the servers of Run, and for tests.
func (g *Gateway) Handler() http.Handler { return http.HandlerFunc(g.serve) }

func (g *Gateway) serve(w http.ResponseWriter, r *http.Request) {
	started := time.Now()
	g.metrics.inFlight.Inc()
	defer g.metrics.inFlight.Dec()
	e := &exchange{stream: newStream(w, r, g.Limits.Stall)}
	// A handler must not change the request it was given; ours is a copy.
	e.r = r.WithContext(r.Context())
	if r.Body != nil && r.Body != http.NoBody {
		e.r.Body = e.stream
	}
	here := r.Context().Err() == nil
	abort := g.guard(e)
	// A read deadline ends the context of a connection too.
	e.left = here && e.err != nil && !e.stream.wrote() && e.stream.cause() == nil &&
		context.Cause(r.Context()) == context.Canceled && !errors.Is(e.err, errStalled)
	if err := e.stream.resume(); err != nil {
		e.err = err
		e.lastOfItsConnection()
	}
	if r.Context().Err() != nil { // also after a client that stalled
		e.lastOfItsConnection()
	}
	if e.err != nil && !abort {
		if e.stream.wrote() {
			// The client must not take half an answer for a whole one.
			abort = true
		} else {
			g.writeError(e)
		}
	}
	received := e.stream.finish()
	g.record(e, received, time.Since(started))
	if abort {
		panic(http.ErrAbortHandler)
	}
}

// lastOfItsConnection has the connection closed with this answer. net/http reads on while
// a request of HTTP/1 is served, to see its client leave, and takes a read deadline for
// that: the context of the connection, and so of each later request on it, is over.
func (e *exchange) lastOfItsConnection() {
	if e.r.ProtoMajor == 1 {
		e.stream.Header().Set("Connection", "close")
	}
}

// guard answers, and turns a panic into an error of the exchange. abort says
// that the connection must be dropped.
func (g *Gateway) guard(e *exchange) (abort bool) {
	defer func() {
		switch p := recover(); p {
		case nil:
		case http.ErrAbortHandler:
			abort = true
		default:
			g.metrics.panics.Inc()
			e.err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	e.err = g.answer(e)
	return false
}

// answer takes a request through the gate. An error is still to be written,
// unless the answer has begun.
func (g *Gateway) answer(e *exchange) error {
	h := e.stream.Header()
	protect(h)
	if e.r.Context().Err() != nil {
		// The client of a connection that ended does not read this; that of one whose context
		// alone ended asks again.
		e.lastOfItsConnection()
		return fmt.Errorf("the connection is over: %w", &meta.UnavailableError{Reason: "connection", RetryAfter: time.Second})
	}
	if err := g.identify(e); err != nil {
		// Its certificate has ended, or its root was dropped, since the connection was made:
		// the client shows another on the next.
		h.Set("Connection", "close")
		return err
	}
	h.Set(protocol.HeaderRequestID, e.id)
	if e.r.TLS == nil && (g.TLSOnly || !g.Plain && !isLoopback(e.r.RemoteAddr)) {
		h.Set("Connection", "close")
		writePlain(e.stream, http.StatusBadRequest, plainRefused(g.TLSOnly, e.r.Host))
		return nil
	}
	if err := g.cross.Check(e.r); err != nil {
		return fmt.Errorf("%w: %w", err, meta.ErrDenied)
	}
	if err := g.aim(e); err != nil {
		return err
	}
	match := g.router.Match(e.r.Method, e.r.URL)
	e.protocol = match.Protocol
	if match.Err != nil {
		return match.Err
	}
	e.route = match.Route.Name
	call := &protocol.Call{
		W: e.stream, R: e.r, Params: match.Params,
		RequestID: e.id, Trace: e.trace, Loopback: e.loopback,
	}
	if e.isNode && e.r.Header.Get(forward.HeaderHops) != "" {
		call.Via = e.node.ID
	}
	e.call, e.action = call, match.Route.Action
	var err error
	if call.After, err = meta.ParseToken(e.r.Header.Get(protocol.HeaderToken)); err != nil {
		return err
	}
	if mode := e.r.Header.Get(protocol.HeaderMode); mode != "" && (e.r.Method == http.MethodGet || e.r.Method == http.MethodHead) {
		if call.Asked, err = meta.ParseFreshness(mode); err != nil {
			return err
		}
	}
	if g.Role == meta.RoleAgent && match.Route.Place != protocol.Anywhere {
		if err := g.Gate.CheckTransport(e.r, e.loopback); err != nil {
			return g.challenge(e, call, match.Route, err)
		}
		return g.forward(e, call, match.Route)
	}
	if g.elsewhere(match.Route) {
		if err := g.Gate.CheckTransport(e.r, e.loopback); err != nil {
			return g.challenge(e, call, match.Route, err)
		}
		err := g.forward(e, call, match.Route)
		if none, ok := errors.AsType[*meta.UnavailableError](err); !ok || none.Reason != "no_server" {
			return err
		}
		// Nobody has seen anything of it: this server does what it can.
		e.forwarded = false
	}
	if err := g.admit(e, call, match.Route); err != nil {
		if errors.Is(err, access.ErrChallenge) {
			return g.challenge(e, call, match.Route, nil)
		}
		var bad *access.CredentialsError
		if errors.As(err, &bad) {
			return g.challenge(e, call, match.Route, err)
		}
		return err
	}
	if id := call.Who.Elevation; id != "" {
		h.Set(protocol.HeaderElevation, id)
	}
	if at, err := placeOf(call, match.Route); err != nil {
		return err
	} else if at != "" && at != g.Self {
		return g.forward(e, call, match.Route)
	}
	if g.Writable != nil && match.Route.Action == access.Push {
		if err := g.Writable(); err != nil {
			return err
		}
	}
	defer g.watch(e, call, match.Route)()
	end, err := g.charge(e, call)
	if err != nil {
		return err
	}
	defer end()
	if g.long[match.Route.Name] {
		ctx, cancel := context.WithCancel(call.R.Context())
		defer cancel()
		defer context.AfterFunc(g.draining, cancel)()
		call.R = call.R.WithContext(ctx)
	}
	err = match.Route.Serve(call)
	if errors.Is(err, access.ErrChallenge) && !e.stream.wrote() {
		return g.challenge(e, call, match.Route, nil) // the route judged what the body names
	}
	return err
}

// aim gives a request the path that it means. What is forwarded has it already.
func (g *Gateway) aim(e *exchange) error {
	for _, a := range g.aimers {
		path, err := a.Aim(e.r, func() (meta.Principal, error) { return g.Gate.Authenticate(e.r, e.loopback) })
		if err != nil {
			return err
		}
		if path == "" {
			continue
		}
		u := *e.r.URL
		if u.Path, err = url.PathUnescape(path); err != nil {
			return fmt.Errorf("path %q: %w", path, meta.ErrInvalid)
		}
		u.RawPath = path
		e.r.URL = &u
		return nil
	}
	return nil
}

// admit authenticates and authorises, and fills in the call's Who and Repository.
func (g *Gateway) admit(e *exchange, call *protocol.Call, route *protocol.Route) error {
	switch {
	case route.Action == access.Public:
		call.Who = meta.Anonymous
		return nil
	case route.Action == access.NodeOnly:
		// What a node forwards is a client's, and has no part in the node's rights.
		if e.isNode && e.r.Header.Get(forward.HeaderHops) == "" {
			call.Who = access.NodePrincipal(e.node)
		} else {
			call.Who = meta.Anonymous
		}
	default:
		who, err := g.Gate.Authenticate(e.r, e.loopback)
		if err != nil {
			return err
		}
		call.Who = who
	}
	e.who = call.Who.Name
	var badName error
	if tenant := call.Params.Get(protocol.TenantParam); tenant != "" && call.Params.Get(protocol.RepositoryParam) != "" {
		call.Repo = meta.RepoRef{Tenant: meta.TenantName(tenant), Name: call.Params.Get(protocol.RepositoryParam)}
		badName = call.Repo.Check()
	}
	judge := func(repo *meta.Repository) error {
		d := access.Explain(g.Gate.Policy, call.Who, route.Action, targetOf(call, route, repo))
		call.Who.Elevation = d.Elevation()
		return d.Err
	}
	if call.Repo == (meta.RepoRef{}) {
		if err := e.judged(judge(nil)); err != nil {
			return err
		}
		return g.leased(call, route.Action)
	}
	if badName == nil {
		if err := g.lookUp(e, call, route); err != nil {
			return err
		}
	}
	if err := judge(call.Repository); err != nil {
		if errors.Is(err, meta.ErrNotFound) && judge(&meta.Repository{Ref: call.Repo, Visibility: meta.VisibilityPrivate}) == nil {
			return err // It is just not there.
		}
		return e.judged(err)
	}
	if badName != nil {
		return badName
	}
	if format := e.protocol.Format(); call.Repository != nil && format != "" && call.Repository.Format != format {
		return fmt.Errorf("repository %s is of format %s, not %s: %w", call.Repo, call.Repository.Format, format, meta.ErrInvalid)
	}
	if call.Repository != nil {
		e.tenant = call.Repo.Tenant
	}
	return g.leased(call, route.Action)
}

// lookUp finds the repository's record. That it is absent is confirmed by one
// strong read, but only for a caller for whom it makes a difference: nobody else
// can make the cluster run rounds. For reads, a repository of another format is
// absent.
func (g *Gateway) lookUp(e *exchange, call *protocol.Call, route *protocol.Route) error {
	find := func(f meta.Freshness) error {
		f.After = call.After
		repo, err := g.Repositories.Repository(e.r.Context(), call.Repo, f)
		switch {
		case errors.Is(err, meta.ErrNotFound):
			return nil
		case err != nil:
			return fmt.Errorf("look up repository %s: %w", call.Repo, err)
		}
		if format := e.protocol.Format(); format != "" && repo.Format != format && route.Action != access.Push {
			return nil
		}
		call.Repository = &repo
		return nil
	}
	if err := find(meta.Local); err != nil || call.Repository != nil {
		return err
	}
	if !access.Might(call.Who, route.Action, call.Repo) {
		return nil
	}
	return find(meta.Strong)
}

// elsewhere says that a call needs blobs and this server has none to use, or brings
// some and this server is leaving. What belongs to an upload session is its owner's,
// whatever its state.
func (g *Gateway) elsewhere(route *protocol.Route) bool {
	if g.Leaving != nil && g.Forward != nil && route.Action == access.Push && route.Place == protocol.AnyServer && g.Leaving() {
		return true
	}
	return g.Elsewhere != nil && g.Forward != nil && (route.Action == access.Pull || route.Action == access.Push) &&
		(route.Place == protocol.Anywhere || route.Place == protocol.AnyServer) && g.Elsewhere()
}

// placeOf returns the one node that a call is for, "" when any will do.
func placeOf(call *protocol.Call, route *protocol.Route) (meta.NodeID, error) {
	switch route.Place {
	case protocol.Owner:
		return uploadid.Owner(call.Params.Get(protocol.UploadParam))
	case protocol.Server:
		return meta.NodeID(call.Params.Get(protocol.ServerParam)), nil
	}
	return "", nil
}

// forward sends the call where its place is.
func (g *Gateway) forward(e *exchange, call *protocol.Call, route *protocol.Route) error {
	if g.Forward == nil {
		return fmt.Errorf("it is at another server, and this one does not forward: %w", meta.ErrNotFound)
	}
	e.r.Header.Set(protocol.HeaderRequestID, e.id)
	e.r.Header.Set(headerTrace, e.trace)
	at, err := placeOf(call, route)
	if err != nil {
		return err
	}
	e.forwarded = true
	var w http.ResponseWriter = e.stream
	if g.Wrote != nil {
		w = &tokenNote{stream: e.stream, wrote: g.Wrote}
	}
	if at != "" {
		return g.Forward.Node(w, e.r, at)
	}
	return g.Forward.Server(w, e.r)
}

// challenge lets the protocol ask for credentials.
func (g *Gateway) challenge(e *exchange, call *protocol.Call, route *protocol.Route, cause error) error {
	e.stream.Header().Set("Cache-Control", "no-store")
	call.Refused = cause
	e.protocol.Challenge(e.stream, e.r, protocol.Scope{Action: route.Action, Repo: call.Repo, Params: call.Params, Cause: cause})
	return nil
}

// writeError lets the protocol say what went wrong; nothing was written yet.
func (g *Gateway) writeError(e *exchange) {
	defer func() {
		if p := recover(); p != nil {
			g.metrics.panics.Inc()
			g.Log.Error("an error could not be written", "route", e.route, "panic", p, "stack", string(debug.Stack()))
		}
	}()
	if e.protocol != nil {
		e.protocol.WriteError(e.stream, e.r, e.err)
		return
	}
	writePlain(e.stream, protocol.Fail(e.stream.Header(), e.err), protocol.Message(e.err))
}

// identify finds out whose connection this is, and for whom it speaks. Headers
// that only nodes and trusted proxies may send are taken from others.
func (g *Gateway) identify(e *exchange) error {
	r := e.r
	e.loopback = isLoopback(r.RemoteAddr)
	link := *r.URL
	r.URL = &link
	if r.URL.Scheme = "http"; r.TLS != nil {
		r.URL.Scheme = "https"
	}
	e.id = rand.Text()
	var err error
	if e.node, e.isNode, err = g.Gate.Peer(r); err != nil {
		return err
	}
	if e.isNode {
		g.peers.note(r, e.node.ID)
	}
	header := r.Header.Get
	switch {
	case e.isNode && header(forward.HeaderHops) != "":
		e.loopback = false
		if id := header(protocol.HeaderRequestID); id != "" && len(id) <= 64 {
			e.id = id
		}
		g.believe(r)
	case header(forward.HeaderFor) != "" && g.trusts(r.RemoteAddr):
		e.loopback = false
		g.believe(r)
		r.Header = without(r.Header, forward.HeaderHops)
	case !e.isNode:
		r.Header = without(r.Header, forward.HeaderHops)
	}
	r.Header = without(r.Header, forward.HeaderFor, forward.HeaderProto, forward.HeaderHost, protocol.HeaderRequestID)
	e.trace = traceparent(header(headerTrace))
	return nil
}

// believe takes over what the client sees. Of several addresses the last is the
// one that the forwarder itself saw.
func (g *Gateway) believe(r *http.Request) {
	addresses := strings.Split(r.Header.Get(forward.HeaderFor), ",")
	if ip, err := netip.ParseAddr(strings.TrimSpace(addresses[len(addresses)-1])); err == nil {
		r.RemoteAddr = net.JoinHostPort(ip.String(), "0")
	}
	if host := r.Header.Get(forward.HeaderHost); host != "" {
		if u, err := url.Parse("//" + host); err == nil && u.Host == host {
			r.Host = host
		}
	}
	if proto := r.Header.Get(forward.HeaderProto); proto == "http" || proto == "https" {
		r.URL.Scheme = proto
	}
}

func (g *Gateway) trusts(remote string) bool {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return false
	}
	for _, prefix := range g.TrustedProxies {
		if prefix.Contains(ap.Addr().Unmap()) {
			return true
		}
	}
	return false
}

// without returns h without some headers, copying it only when it has one.
func without(h http.Header, names ...string) http.Header {
	for _, name := range names {
		if _, ok := h[name]; ok {
			h = h.Clone()
			for _, name := range names {
				h.Del(name)
			}
			return h
		}
	}
	return h
}

func isLoopback(remote string) bool {
	ap, err := netip.ParseAddrPort(remote)
	return err == nil && ap.Addr().Unmap().IsLoopback()
}

// record counts and logs an exchange, once.
func (g *Gateway) record(e *exchange, received int64, took time.Duration) {
	status := e.stream.status
	if status == 0 {
		status = http.StatusOK // the server writes it
		if e.err != nil {
			status = http.StatusInternalServerError
		}
	}
	if e.left {
		status = statusLeft
	}
	if e.route == "" {
		e.route = "none"
	}
	g.metrics.observe(e, status, received, took)
	g.take(e, status, took)
	if errors.Is(e.err, errStalled) {
		g.metrics.stalled.Inc()
	}
	level := slog.LevelDebug
	if e.err != nil && (protocol.Status(e.err) == http.StatusInternalServerError || errors.Is(e.err, meta.ErrCorrupt)) {
		var cut *forward.CutError
		if !errors.As(e.err, &cut) && !errors.Is(e.err, errStalled) && e.r.Context().Err() == nil {
			level = slog.LevelError
		}
	}
	ctx := context.Background()
	if !g.Log.Enabled(ctx, level) {
		return
	}
	attributes := []slog.Attr{
		slog.String("request", e.id), slog.String("trace", e.trace), slog.String("route", e.route),
		slog.String("method", e.r.Method), slog.String("path", credential.Hide(e.r.URL.Path)), slog.Int("status", status),
		slog.Duration("took", took), slog.Int64("received_bytes", received), slog.Int64("sent_bytes", e.stream.written),
		slog.String("principal", e.who), slog.String("source", e.r.RemoteAddr), slog.String("agent", e.r.UserAgent()),
	}
	if e.err != nil {
		attributes = append(attributes, slog.String("error", credential.Hide(e.err.Error())))
	}
	g.Log.LogAttrs(ctx, level, "request", attributes...)
}
