package oci

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Mirrors. A client that is told that this registry mirrors another (containerd's
// hosts.toml) asks for names of that one, and says with `?ns=` which it is. Such a call
// means the proxy of that upstream: the one that the node is configured with, else the
// first, by name, that the caller may read, public ones last.

const (
	// mirrorTime is how long it is remembered which proxies there are.
	mirrorTime = 5 * time.Second
	// maxLooked bounds the repositories that are looked at.
	maxLooked = 20_000
)

// mirrors remembers the proxies of upstreams, of all at once: clients name what upstreams
// they like, and none makes the repositories be looked at once more.
type mirrors struct {
	mu    sync.Mutex
	fixed map[string]meta.RepoRef

	looks chan struct{} // holds a token while somebody looks at what is below
	known map[string][]meta.Repository
	until time.Time
}

func newMirrors() *mirrors { return &mirrors{looks: make(chan struct{}, 1)} }

// Mirror has calls for an upstream, by its host, mean a proxy, whoever calls. It is to be
// called before the protocol serves.
func (p *Protocol) Mirror(host string, proxy meta.RepoRef) {
	p.mirrors.mu.Lock()
	defer p.mirrors.mu.Unlock()
	if p.mirrors.fixed == nil {
		p.mirrors.fixed = map[string]meta.RepoRef{}
	}
	p.mirrors.fixed[upstreamName(host)] = proxy
}

// upstreamName makes one of the names of docker's hub.
func upstreamName(host string) string {
	if host = strings.ToLower(host); upstream.HubHost(host) {
		return "docker.io"
	}
	return host
}

var _ protocol.Aimer = (*Protocol)(nil)

// Aim implements protocol.Aimer.
func (p *Protocol) Aim(r *http.Request, who func() (meta.Principal, error)) (string, error) {
	rest, ok := strings.CutPrefix(r.URL.EscapedPath(), "/v2/")
	if !ok || rest == "" || r.Method != http.MethodGet && r.Method != http.MethodHead || !strings.Contains(r.URL.RawQuery, "ns=") {
		return "", nil
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	ns := query.Get("ns")
	if err != nil || ns == "" || len(ns) > maxNameBytes {
		return "", nil
	}
	name := upstreamName(ns)
	p.mirrors.mu.Lock()
	proxy, found := p.mirrors.fixed[name]
	p.mirrors.mu.Unlock()
	if !found {
		principal, err := who()
		if err != nil {
			return "", nil // the gate says what is wrong with it
		}
		if proxy, found, err = p.mirrorOf(r.Context(), principal, name); err != nil || !found {
			return "", err
		}
	}
	at := string(proxy.Tenant) + "/" + proxy.Name + "/"
	if strings.HasPrefix(rest, at) {
		return "", nil // another node has aimed it
	}
	return "/v2/" + at + rest, nil
}

// mirrorOf returns the first proxy of an upstream that a caller may read.
func (p *Protocol) mirrorOf(ctx context.Context, who meta.Principal, name string) (proxy meta.RepoRef, found bool, _ error) {
	known, err := p.mirrored(ctx)
	if err != nil {
		return proxy, false, err
	}
	proxy, found = choice(known[name], func(r *meta.Repository) bool { return p.catalog.Readable(who, r) })
	return proxy, found, nil
}

// choice returns the first proxy that a caller may read by a right of its own, else the
// first that everybody may: another tenant's public one comes last, whatever its name.
func choice(proxies []meta.Repository, may func(*meta.Repository) bool) (proxy meta.RepoRef, found bool) {
	for _, r := range proxies {
		if r.Visibility = meta.VisibilityPrivate; may(&r) {
			return r.Ref, true
		}
	}
	for i := range proxies {
		if may(&proxies[i]) {
			return proxies[i].Ref, true
		}
	}
	return proxy, false
}

// mirrored returns the proxies by the names of their upstreams.
func (p *Protocol) mirrored(ctx context.Context) (map[string][]meta.Repository, error) {
	m := p.mirrors
	select {
	case m.looks <- struct{}{}:
		defer func() { <-m.looks }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if time.Now().Before(m.until) {
		return m.known, nil
	}
	known, err := p.allProxies(ctx)
	// A node that is narrowed to some tenants is not told of all.
	if err != nil && !errors.Is(err, meta.ErrDenied) && !errors.Is(err, meta.ErrNotFound) {
		return nil, err
	}
	m.known, m.until = known, time.Now().Add(mirrorTime)
	return known, nil
}

// allProxies lists the proxies, in order, by the names of their upstreams.
func (p *Protocol) allProxies(ctx context.Context) (map[string][]meta.Repository, error) {
	proxies := map[string][]meta.Repository{}
	looked := 0
	for after := ""; looked < maxLooked; {
		page, _, err := p.catalog.AllRepositories(ctx, catalog.Page{After: after, Limit: 1000})
		if err != nil {
			return nil, err
		}
		for i := range page {
			r := &page[i]
			if r.Format != Format || r.Kind != meta.KindProxy || r.Upstream == nil {
				continue
			}
			// One of a part of a registry has other names than the registry.
			if u, err := url.Parse(r.Upstream.URL); err == nil && strings.Trim(u.Path, "/") == "" {
				name := upstreamName(u.Host)
				proxies[name] = append(proxies[name], *r)
			}
		}
		if len(page) < 1000 {
			break
		}
		looked += len(page)
		after = page[len(page)-1].Ref.String()
	}
	return proxies, nil
}
