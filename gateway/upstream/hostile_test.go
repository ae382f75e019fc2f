package upstream_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/gateway/upstream/upstreamtest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// TestWantsThatMakeNoSense: what another node may say of a Want is refused before anybody
// works with it.
func TestWantsThatMakeNoSense(t *testing.T) {
	p := start(t)
	p.Handle(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { // without a length
		w.(http.Flusher).Flush()
		io.WriteString(w, "x")
	}))
	many := map[string]string{}
	for i := range 100 {
		many[fmt.Sprint("sum", i)] = "0"
	}
	for _, w := range []upstream.Want{
		{Path: "a", Digest: "x"}, {Path: "b", Digest: digest.Digest("sha1:" + strings.Repeat("0", 40))}, {Path: "c", MaxBytes: -1}, {Path: "d", MaxBytes: -5},
		{Path: "e", Kind: 7}, {Path: "f", TTL: -1}, {Path: "g", Sums: many},
	} {
		if f, err := p.fetch(w); err == nil {
			t.Errorf("%+v is found: %+v", w, f)
		}
	}
	if n := p.Total(); n != 0 {
		t.Errorf("the upstream was asked %d times", n)
	}
}

// TestChallengesOfOtherHosts: who a redirect leads to has no say in where credentials go.
func TestChallengesOfOtherHosts(t *testing.T) {
	thief, other, registry := upstreamtest.NewRegistry(t), upstreamtest.NewRegistry(t), upstreamtest.NewRegistry(t)
	thief.Put("token", []byte(`{"token":"t"}`))
	other.Handle(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+thief.URL+`/token"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	s := upstreamtest.NewWith(t, catalogtest.Options{}, upstream.Config{
		Secrets: func(context.Context, *meta.Repository) (upstream.Credential, error) {
			return upstream.Credential{User: "ada", Secret: "pw"}, nil
		},
	}, func(*catalogtest.Stack, *upstream.Engine) []protocol.Protocol { return nil })
	p := &proxy{Registry: registry, Stack: s, t: t}
	p.repo = s.Proxy(t, "acme/cache", "npm", registry.URL, func(u *meta.Upstream) { u.Credential = meta.SealedUpstream })
	p.Handle(http.RedirectHandler(other.URL+"/file", http.StatusFound))
	p.refuse(upstream.Want{Path: "moved"}, protocol.ErrUpstream)
	if n := other.Asked("file"); n != 1 {
		t.Errorf("the other host was asked %d times", n)
	}
	for path := range thief.All() {
		t.Errorf("a stranger was asked for %s with %q", path, thief.Header(path).Get("Authorization"))
	}
}
