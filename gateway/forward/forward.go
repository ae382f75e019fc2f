// Package forward sends a request on to the server that can serve it, and the
// answer back.
//
// An agent sends every write to a server of its region (Forwarder.Server), a
// server sends a request about an upload session to the session's owner
// (Forwarder.Node). The request goes with the client's own credential; the
// connection is HTTPS with this node's certificate, to the gateway of a server
// of the roster that proves to be it. Bodies stream both ways through one
// buffer of fixed size and are never kept, so a request is tried elsewhere only
// while nothing of it was sent.
//
// Headers: Host stays the client's; X-Forwarded-For, -Proto and -Host tell the
// server what the client sees, so that challenges name the right realm;
// Shoal-Hops lists the nodes passed, so that a loop is refused;
// Shoal-Request-Id keeps the request's name. The gateway of the server believes
// them only from nodes.
//
// A server that stops answering, by a signal or a cut, keeps its connections: while a
// request waits for its answer the server is asked, over a connection of its own, to
// prove that it lives (alive.go). One that does not is left, and comes back when it
// proves it again. Servers of the own region come first, then those of the nearest.
//
// Who else waits for a server says so (Forwarder.Doubt).
//
// Start reading at Forwarder.Server. A Forwarder has one goroutine while a server of
// its region is down, one a server that is doubted, and one a request that waits; Close
// ends the first two, the answer the others. net/http's end with the connection.
package forward

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Headers between nodes.
const (
	HeaderHops  = "Shoal-Hops"
	HeaderFor   = "X-Forwarded-For"
	HeaderProto = "X-Forwarded-Proto"
	HeaderHost  = "X-Forwarded-Host"
)

const (
	// maxHops bounds the nodes that a request may pass: agent, server, owner.
	maxHops = 3
	// maxTries bounds the servers tried for one request.
	maxTries = 4

	dialTimeout      = 2 * time.Second
	handshakeTimeout = 3 * time.Second
	// answerTimeout is how long a server may think once it has the whole request.
	answerTimeout = 2 * time.Minute
	// stallTimeout ends a connection that takes no byte for so long.
	stallTimeout = 60 * time.Second
	// idleTimeout is below the gateway's own, so that a request seldom meets a
	// connection that the server is closing.
	idleTimeout     = 60 * time.Second
	maxIdlePerNode  = 32
	copyBufferBytes = 128 << 10
	// expectAbove is the length above which a body waits for the server's consent.
	expectAbove = 1 << 20
)

// Roster is what the forwarder asks about the cluster.
type Roster interface {
	// Servers lists the servers of all regions.
	Servers(context.Context) ([]meta.Node, error)
	// Node returns a node, or meta.ErrNotFound.
	Node(context.Context, meta.NodeID) (meta.Node, error)
}

// Config is what a Forwarder is made of; all fields but Distance are required.
type Config struct {
	Self   meta.NodeID
	Region meta.RegionName
	Roster Roster
	// TLS dials servers: it shows this node's certificate and takes only servers of
	// the cluster (TLS 1.3).
	TLS *tls.Config
	// Identify returns which node the other side proved to be.
	Identify func(*tls.ConnectionState) (meta.NodeID, error)
	// Distance is the round trip to a region, 0 when unknown; nil knows none. Serves
	// says that a server is recorded to take writes; nil, that all are.
	Distance func(meta.RegionName) time.Duration
	Serves   func(meta.NodeID) bool
	Log      *slog.Logger
}

// Forwarder sends requests on. It is safe for concurrent use.
type Forwarder struct {
	Config
	transport *http.Transport

	mu       sync.Mutex
	sticky   meta.NodeID
	down     map[meta.NodeID]bool // did not prove that it lives; servers of the roster
	checks   map[meta.NodeID]*check
	doubted  map[meta.NodeID]bool                     // it is being found out whether they live
	waiting  map[*context.CancelCauseFunc]meta.NodeID // requests, by what gives them up
	watching bool

	ended   context.Context
	end     context.CancelFunc
	watcher sync.WaitGroup
}

// New builds a Forwarder; Close frees it.
//
// Errors: meta.ErrInvalid for a Config without a field.
func New(c Config) (*Forwarder, error) {
	if c.Self == "" || c.Roster == nil || c.TLS == nil || c.Identify == nil || c.Log == nil {
		return nil, fmt.Errorf("forward: Self, Roster, TLS, Identify and Log are required: %w", meta.ErrInvalid)
	}
	c.TLS = c.TLS.Clone()
	c.TLS.NextProtos = []string{"http/1.1"}
	f := &Forwarder{Config: c, down: map[meta.NodeID]bool{}, checks: map[meta.NodeID]*check{},
		doubted: map[meta.NodeID]bool{}, waiting: map[*context.CancelCauseFunc]meta.NodeID{}}
	f.ended, f.end = context.WithCancel(context.Background())
	protocols := new(http.Protocols)
	// HTTP/1.1 only: a body has its connection for itself, and small requests do
	// not wait behind it.
	protocols.SetHTTP1(true)
	f.transport = &http.Transport{
		DialTLSContext:         f.dial,
		Protocols:              protocols,
		DisableCompression:     true, // what the server sent is what the client gets
		MaxIdleConnsPerHost:    maxIdlePerNode,
		IdleConnTimeout:        idleTimeout,
		ResponseHeaderTimeout:  answerTimeout,
		ExpectContinueTimeout:  answerTimeout, // a server of ours always answers the expectation
		MaxResponseHeaderBytes: 64 << 10,
		WriteBufferSize:        copyBufferBytes,
		ReadBufferSize:         copyBufferBytes,
	}
	return f, nil
}

// Close closes idle connections. Requests under way end by themselves.
func (f *Forwarder) Close() {
	f.mu.Lock() // nobody begins a goroutine after it
	f.end()
	f.mu.Unlock()
	f.watcher.Wait()
	f.transport.CloseIdleConnections()
}

// Server sends r to a server that lives: of the own region, there the one used last,
// else of the nearest region that has one. w gets the answer. What only reads is sent
// to the next when a server stops answering.
//
// Errors: meta.ErrUnavailable when no server could be reached, *BrokenError when
// one broke off, those of r's body, before anything was written to w; *CutError after.
func (f *Forwarder) Server(w http.ResponseWriter, r *http.Request) error {
	servers, err := f.Roster.Servers(r.Context())
	if err != nil {
		return fmt.Errorf("forward: list servers: %w", err)
	}
	tried := 0
	passed := passedBy(r.Header)
	for _, n := range f.order(servers) {
		// Who has passed it on would send it on again.
		if n.ID == f.Self || slices.Contains(passed, string(n.ID)) || len(passed) >= maxHops {
			continue
		}
		sent, err := f.try(w, r, n)
		if err == nil {
			f.worked(n.ID)
			return nil
		}
		broken, _ := errors.AsType[*BrokenError](err)
		if broken != nil && r.Context().Err() == nil { // else it was the client who left
			f.failed(n.ID)
		}
		again := broken != nil && (r.Method == http.MethodGet || r.Method == http.MethodHead) && r.ContentLength == 0
		if sent && !again || r.Context().Err() != nil {
			return err
		}
		if tried++; tried == maxTries {
			break
		}
	}
	return fmt.Errorf("forward: no server could be reached: %w", unreachable)
}

var unreachable = &meta.UnavailableError{Reason: "no_server", RetryAfter: 2 * time.Second}

// Node sends r to one node.
//
// Errors: meta.ErrNotFound when the node is not, or no longer, a server of the
// roster: what it held is gone; otherwise as Server.
func (f *Forwarder) Node(w http.ResponseWriter, r *http.Request, id meta.NodeID) error {
	n, err := f.Roster.Node(r.Context(), id)
	if err == nil && n.Role != meta.RoleServer {
		err = meta.ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("forward: its server %s: %w", id, err)
	}
	sent, err := f.try(w, r, n)
	if err == nil || sent {
		return err
	}
	return fmt.Errorf("forward: its server %s cannot be reached: %w", id, unreachable)
}

// order puts servers in the order of trying: those that live and serve, of the own
// region, then of the others by distance, then those that do not. Equal ones are spread
// by rendezvous of this node and the server, so that agents do not all choose the same.
func (f *Forwarder) order(servers []meta.Node) []meta.Node {
	f.mu.Lock()
	defer f.mu.Unlock()
	type rank struct {
		class  int
		away   time.Duration
		sticky bool
		spread uint64
	}
	ranks := make(map[meta.NodeID]rank, len(servers))
	for _, n := range servers {
		r := rank{sticky: n.ID == f.sticky}
		if n.Region != f.Region {
			r.class = 1
			if f.Distance != nil {
				r.away = f.Distance(n.Region)
			}
			if r.away <= 0 {
				r.away = time.Hour
			}
		}
		if f.Serves != nil && !f.Serves(n.ID) {
			r.class = 2
		}
		if f.down[n.ID] {
			r.class = 3
		}
		h := fnv.New64a()
		io.WriteString(h, string(f.Self)+"/"+string(n.ID))
		r.spread = h.Sum64()
		ranks[n.ID] = r
	}
	sorted := slices.Clone(servers)
	slices.SortFunc(sorted, func(a, b meta.Node) int {
		x, y := ranks[a.ID], ranks[b.ID]
		if x.sticky != y.sticky && x.class == y.class && x.class != 3 {
			// Distances waver: a server that does well is kept while none of the own
			// region does.
			if x.sticky {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(x.class, y.class), cmp.Compare(x.away, y.away), cmp.Compare(x.spread, y.spread), cmp.Compare(a.ID, b.ID))
	})
	return sorted
}

func (f *Forwarder) worked(id meta.NodeID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sticky = id
	delete(f.down, id)
}

// CutError says that an answer broke off after its header was passed on.
type CutError struct{ Cause error }

func (e *CutError) Error() string { return "the forwarded answer broke off: " + e.Cause.Error() }

// Unwrap returns the cause.
func (e *CutError) Unwrap() error { return e.Cause }

// try sends r to n. sent says that n may have seen some of it, or w some of the
// answer: then it must not be tried elsewhere.
func (f *Forwarder) try(w http.ResponseWriter, r *http.Request, n meta.Node) (sent bool, err error) {
	hops, err := f.hops(r.Header)
	if err != nil {
		return true, err
	}
	var touched atomic.Bool
	alive, giveUp := context.WithCancelCause(r.Context())
	defer giveUp(nil)
	go f.guard(alive, n.ID, giveUp)
	ctx := httptrace.WithClientTrace(alive, &httptrace.ClientTrace{
		WroteHeaderField: func(string, []string) { touched.Store(true) },
	})
	out := r.Clone(ctx)
	out.RequestURI = ""
	out.URL.Scheme, out.URL.Host, out.URL.User = "https", string(n.ID), nil
	out.Close = false
	body := &watchedBody{body: r.Body, touched: &touched}
	defer body.Close()
	if out.Body = body; r.ContentLength == 0 {
		out.Body = http.NoBody
	}
	removeHopByHop(out.Header)
	scheme := "http"
	if base, _, ok := strings.Cut(protocol.BaseURL(r), "://"); ok {
		scheme = base
	}
	out.Header.Set(HeaderProto, scheme)
	out.Header.Set(HeaderHost, r.Host)
	out.Header.Set(HeaderFor, addressOf(r.RemoteAddr))
	out.Header.Set(HeaderHops, hops)
	if _, ok := out.Header["User-Agent"]; !ok {
		out.Header.Set("User-Agent", "") // the client named none; net/http must not either
	}

	if r.ContentLength < 0 || r.ContentLength > expectAbove {
		// Ask before sending: what the server refuses need not be sent.
		out.Header.Set("Expect", "100-continue")
	}

	resp, err := f.transport.RoundTrip(out)
	if cause := body.failure.Load(); err != nil && cause != nil {
		// It was the client: the server has done nothing wrong.
		err = fmt.Errorf("forward: read the request's body: %w", *cause)
		if !errors.Is(err, os.ErrDeadlineExceeded) { // which is no fault of the body
			err = fmt.Errorf("%w: %w", err, meta.ErrInvalid)
		}
		return true, err
	}
	if err != nil {
		if cause := context.Cause(alive); cause != nil && r.Context().Err() == nil {
			err = cause
		}
		f.Log.Debug("forwarding failed", "node", n.ID, "gateway", n.Gateway, "sent", touched.Load(), "error", err)
		return touched.Load(), &BrokenError{err}
	}
	defer resp.Body.Close()
	removeHopByHop(resp.Header)
	h := w.Header()
	for name, values := range resp.Header {
		h[name] = values
	}
	w.WriteHeader(resp.StatusCode)
	if err := copyBody(w, resp); err != nil {
		return true, &CutError{err}
	}
	return true, nil
}

// BrokenError says that a server stopped answering while it had some of the
// request: what it did is not known. It is meta.ErrUnavailable. Its text leaves
// out the cause, which names addresses that are no client's business.
type BrokenError struct{ Cause error }

func (e *BrokenError) Error() string {
	return "the server that had the request stopped answering, try again"
}

// Unwrap returns meta.ErrUnavailable and the cause.
func (e *BrokenError) Unwrap() []error { return []error{meta.ErrUnavailable, e.Cause} }

// hops returns the header to send.
//
// Errors: meta.ErrUnavailable when the request was here before or has passed too
// many nodes: the roster and the nodes do not agree.
func (f *Forwarder) hops(h http.Header) (string, error) {
	passed := passedBy(h)
	if slices.Contains(passed, string(f.Self)) || len(passed) >= maxHops {
		return "", fmt.Errorf("forward: the request goes in circles (%s): %w", strings.Join(passed, ", "), meta.ErrUnavailable)
	}
	return strings.Join(append(passed, string(f.Self)), ","), nil
}

// passedBy returns the nodes that a request has passed.
func passedBy(h http.Header) []string {
	if s := h.Get(HeaderHops); s != "" {
		return strings.Split(s, ",")
	}
	return nil
}

var buffers = sync.Pool{New: func() any { b := make([]byte, copyBufferBytes); return &b }}

// copyBody passes the answer on; one of unknown length piece by piece as it comes.
func copyBody(w http.ResponseWriter, resp *http.Response) error {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	var flush func() error
	if resp.ContentLength < 0 {
		flush = http.NewResponseController(w).Flush
		if err := flush(); err != nil {
			return err
		}
	}
	for {
		n, err := resp.Body.Read(*buf)
		if n > 0 {
			if _, err := w.Write((*buf)[:n]); err != nil {
				return err
			}
			if flush != nil {
				if err := flush(); err != nil {
					return err
				}
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// watchedBody notices that the body was read. Close ends the reading but leaves
// the body open: the transport closes what it could not send, and the next
// server still needs it; the gateway's server closes it after the handler.
type watchedBody struct {
	body    io.Reader
	touched *atomic.Bool
	closed  atomic.Bool
	failure atomic.Pointer[error] // why it could not be read to its end
}

func (b *watchedBody) Read(p []byte) (int, error) {
	if b.closed.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	b.touched.Store(true)
	n, err := b.body.Read(p)
	if err != nil && err != io.EOF {
		b.failure.Store(&err)
	}
	return n, err
}

func (b *watchedBody) Close() error {
	b.closed.Store(true)
	return nil
}

// hopByHop are headers of one connection (RFC 9110 section 7.6.1). Expect stays:
// the transport asks the server before it reads the body, and reading is what
// tells the client to go on.
var hopByHop = []string{"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings"}

func removeHopByHop(h http.Header) {
	for _, line := range h["Connection"] {
		for name := range strings.SplitSeq(line, ",") {
			h.Del(strings.TrimSpace(name))
		}
	}
	for _, name := range hopByHop {
		h.Del(name)
	}
}

func addressOf(remote string) string {
	if ap, err := netip.ParseAddrPort(remote); err == nil {
		return ap.Addr().Unmap().String()
	}
	return remote
}

// dial connects to the gateway of the node whose id the URL's host is, and makes
// sure that it is that node.
func (f *Forwarder) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	n, err := f.Roster.Node(ctx, meta.NodeID(host))
	if err != nil {
		return nil, err
	}
	dialer := net.Dialer{Timeout: dialTimeout, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 4}}
	raw, err := dialer.DialContext(ctx, network, n.Gateway)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(&stallConn{raw}, f.TLS)
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("TLS with %s: %w", n.Gateway, err)
	}
	state := conn.ConnectionState()
	if id, err := f.Identify(&state); err != nil || id != n.ID {
		raw.Close()
		return nil, fmt.Errorf("the gateway at %s is %q, not %s: %w", n.Gateway, id, n.ID, errors.Join(err, meta.ErrDenied))
	}
	return conn, nil
}

// stallConn gives each write its own deadline: a body may take as long as it
// moves. Reads are guarded by keep-alives and answerTimeout.
type stallConn struct{ net.Conn }

func (c *stallConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(stallTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}
