package oci

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Mirrors. A client that is told that this registry mirrors another (containerd's
// hosts.toml) asks for names of that one, and says with `?ns=` which it is. Such a call
// means the proxy of that upstream: the one that the node is configured with, else the
// first, by name, that the caller may read.

const (
	// maxMirrors bounds the upstreams of which it is remembered which proxies they have,
	// for mirrorTime.
	maxMirrors = 256
	mirrorTime = 5 * time.Second
	// maxLooked bounds the repositories that are looked at for one upstream.
	maxLooked = 20_000
)

// mirrors remembers the proxies of upstreams.
type mirrors struct {
	mu    sync.Mutex
	fixed map[string]meta.RepoRef
	known *lru.Cache[string, mirror]
}

type mirror struct {
	proxies []meta.Repository
	until   time.Time
}

func newMirrors() *mirrors {
	known, _ := lru.New[string, mirror](maxMirrors) // fails for a size below 1 only
	return &mirrors{known: known}
}

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
	m, ok := p.mirrors.known.Get(name)
	if !ok || time.Now().After(m.until) {
		var err error
		if m.proxies, err = p.proxiesOf(ctx, name); err != nil {
			if errors.Is(err, meta.ErrDenied) || errors.Is(err, meta.ErrNotFound) {
				return proxy, false, nil // a node that is narrowed to some tenants is not told of all
			}
			return proxy, false, err
		}
		m.until = time.Now().Add(mirrorTime)
		p.mirrors.known.Add(name, m)
	}
	for i := range m.proxies {
		if p.catalog.Readable(who, &m.proxies[i]) {
			return m.proxies[i].Ref, true, nil
		}
	}
	return proxy, false, nil
}

// proxiesOf lists the proxies of an upstream by name.
func (p *Protocol) proxiesOf(ctx context.Context, name string) (proxies []meta.Repository, _ error) {
	looked := 0
	for after := ""; looked < maxLooked; {
		page, _, err := p.catalog.AllRepositories(ctx, catalog.Page{After: after, Limit: 1000})
		if err != nil {
			return nil, err
		}
		for i := range page {
			r := &page[i]
			if r.Format == Format && r.Kind == meta.KindProxy && r.Upstream != nil && upstreamName(hostOf(r.Upstream.URL)) == name {
				proxies = append(proxies, *r)
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
