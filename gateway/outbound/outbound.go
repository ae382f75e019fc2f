// Package outbound makes the requests that this node sends to addresses that
// people named: an issuer's keys, an upstream's packages. Whoever may name one
// must not reach, through us, what only we can reach (server-side request forgery).
//
// Start at Client, which makes an ordinary *http.Client of Rules. Reserved, the
// table of networks that are not the Internet, is in networks.go.
//
// Invariants: what counts is the address that is dialled, after all names were
// resolved, so no DNS answer, redirect or spelling of an address gets past the
// rules; the same check runs for every redirect and every connection; proxies of
// the environment are not used, as they would dial for us; an answer is bounded in
// bytes, in time, and in time without a byte. A refusal names the address and what
// to do, and nothing else of the URL; but net/http's own errors show its query, so
// put no secret there.
//
// The package starts no goroutines but those of net/http's transport; CloseIdle
// ends its idle connections.
package outbound

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"syscall"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Rules say what a client may reach and how much it takes. The zero value takes
// https to the Internet with the standard limits.
type Rules struct {
	// Allow names networks that may be dialled although they are reserved: the
	// operator's list.
	Allow []netip.Prefix
	// Plain allows http, and redirects from https to it.
	Plain bool
	// Roots verify the other side; nil takes the system's.
	Roots *x509.CertPool
	// MaxBytes bounds the body of an answer as it arrives (16 MiB). A longer one
	// ends with an error that is meta.ErrTooLarge.
	MaxBytes int64
	// Timeout bounds an exchange, the reading of its body included (30 s); negative
	// is without bound, for bodies of any length, which Stall then bounds.
	Timeout time.Duration
	// Stall ends an answer of which no byte arrives for so long (30 s).
	Stall time.Duration
	// Redirects that are followed (5); negative is none.
	Redirects int
}

// MaxAnswerBytes is the standard bound of an answer.
const MaxAnswerBytes = 16 << 20

func (r Rules) withStandards() Rules {
	if r.MaxBytes <= 0 {
		r.MaxBytes = MaxAnswerBytes
	}
	if r.Timeout == 0 {
		r.Timeout = 30 * time.Second
	}
	if r.Stall <= 0 {
		r.Stall = 30 * time.Second
	}
	if r.Redirects == 0 {
		r.Redirects = 5
	}
	return r
}

// RefusedError says that a request was not sent because of whom it was for.
type RefusedError struct {
	// Target is the host or address, without anything secret.
	Target string
	Reason string
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("request to %s refused: %s", e.Target, e.Reason)
}

// Unwrap makes it an error of its kind.
func (e *RefusedError) Unwrap() error { return meta.ErrDenied }

// Client returns a client that keeps the rules. It is safe for concurrent use.
func Client(rules Rules) *http.Client {
	rules = rules.withStandards()
	dialer := &net.Dialer{
		Timeout:   10 * time.Second,
		KeepAlive: 30 * time.Second,
		// The last step before connect(2), so what is checked is what is dialled.
		ControlContext: func(_ context.Context, network, address string, _ syscall.RawConn) error {
			return rules.check(network, address)
		},
	}
	transport := &http.Transport{
		DialContext:            dialer.DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: rules.Roots},
		ForceAttemptHTTP2:      true,
		TLSHandshakeTimeout:    10 * time.Second,
		ResponseHeaderTimeout:  rules.Stall,
		IdleConnTimeout:        time.Minute,
		MaxIdleConns:           64,
		MaxIdleConnsPerHost:    8,
		MaxConnsPerHost:        32,
		MaxResponseHeaderBytes: 64 << 10,
		// One connection of HTTP/2 carries all requests to a host. It is found out that it leads
		// nowhere any more before a request on it stalls: the next is made over another.
		HTTP2: &http.HTTP2Config{SendPingTimeout: rules.Stall / 2, PingTimeout: rules.Stall / 3},
	}
	client := &http.Client{
		Transport: &guarded{rules, transport},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if len(via) > rules.Redirects {
				return &RefusedError{r.URL.Host, fmt.Sprintf("more than %d redirects", max(0, rules.Redirects))}
			}
			// A page of one origin must not learn what we ask another for.
			r.Header.Del("Referer")
			return nil
		},
	}
	if rules.Timeout > 0 {
		client.Timeout = rules.Timeout
	}
	return client
}

// check judges one address that is about to be dialled.
func (r Rules) check(network, address string) error {
	if network != "tcp4" && network != "tcp6" {
		return &RefusedError{address, "only TCP is dialled"}
	}
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return &RefusedError{address, "it is no address"}
	}
	return r.Judge(at.Addr())
}

// Judge says whether an address may be dialled.
//
// Errors: *RefusedError.
func (r Rules) Judge(addr netip.Addr) error {
	name, reserved := Reserved(addr)
	if !reserved {
		return nil
	}
	plain := addr.WithZone("").Unmap()
	for _, p := range r.Allow {
		if p.Contains(plain) || p.Contains(addr.WithZone("")) {
			return nil
		}
	}
	return &RefusedError{addr.String(), fmt.Sprintf(
		"it is %s, which requests that people may direct do not reach; an operator allows it with --outgoing-allow %s", name, netip.PrefixFrom(plain, plain.BitLen()))}
}

// guarded is the transport with what a dialler cannot see.
type guarded struct {
	rules Rules
	inner *http.Transport
}

// CloseIdleConnections is what http.Client calls by that name.
func (g *guarded) CloseIdleConnections() { g.inner.CloseIdleConnections() }

// RoundTrip implements http.RoundTripper. It is called for each redirect too.
func (g *guarded) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := g.rules.checkURL(r.URL); err != nil {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	res, err := g.inner.RoundTrip(r.WithContext(ctx))
	if err != nil {
		cancel(nil)
		return nil, err
	}
	if res.ContentLength > g.rules.MaxBytes {
		res.Body.Close()
		cancel(nil)
		return nil, tooLarge(r.URL, g.rules.MaxBytes)
	}
	res.Body = &boundedBody{
		body: res.Body, left: g.rules.MaxBytes, max: g.rules.MaxBytes, stall: g.rules.Stall, url: r.URL, ctx: ctx, cancel: cancel,
	}
	return res, nil
}

// checkURL judges what shows before a name is resolved.
func (r Rules) checkURL(u *url.URL) error {
	switch {
	case u.Scheme != "https" && !(u.Scheme == "http" && r.Plain):
		return &RefusedError{u.Host, fmt.Sprintf("scheme %q: use https", u.Scheme)}
	case u.Hostname() == "":
		return &RefusedError{u.Host, "it names no host"}
	case u.User != nil:
		return &RefusedError{u.Host, "a URL carries no credentials: errors and logs would show them"}
	}
	return nil
}

func tooLarge(u *url.URL, limit int64) error {
	return fmt.Errorf("answer of %s is over the limit of %d bytes: %w", u.Host, limit, meta.ErrTooLarge)
}

// errStalled ends an answer that stands still.
var errStalled = errors.New("no byte arrived in time")

// boundedBody bounds a body in bytes and in time without a byte. Its timer runs
// only while somebody reads: a slow reader is not the other side's fault.
type boundedBody struct {
	body   io.ReadCloser
	left   int64
	max    int64
	stall  time.Duration
	url    *url.URL
	ctx    context.Context
	cancel context.CancelCauseFunc
	close  sync.Once
}

// Read implements io.Reader.
func (b *boundedBody) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if int64(len(p)) > b.left+1 { // one more byte shows that there are more
		p = p[:b.left+1]
	}
	timer := time.AfterFunc(b.stall, func() { b.cancel(errStalled) })
	n, err := b.body.Read(p)
	timer.Stop()
	if int64(n) > b.left {
		n = int(b.left)
		err = tooLarge(b.url, b.max)
	}
	b.left -= int64(n)
	if err != nil && errors.Is(context.Cause(b.ctx), errStalled) {
		err = fmt.Errorf("answer of %s: %w within %s: %w", b.url.Host, errStalled, b.stall, meta.ErrUnavailable)
	}
	return n, err
}

// Close implements io.Closer.
func (b *boundedBody) Close() (err error) {
	b.close.Do(func() {
		err = b.body.Close()
		b.cancel(nil)
	})
	return err
}
