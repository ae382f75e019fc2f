package upstream_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

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
		{Path: "h", Accept: "a\nb"}, {Path: "i", Accept: strings.Repeat("a", 2000)},
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

// TestResumedInParts: a server may send less of a range than it was asked for; what is
// kept is the whole all the same.
func TestResumedInParts(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	p := start(t)
	var mu sync.Mutex
	var ranges []string
	p.Handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		ranges = append(ranges, r.Header.Get("Range"))
		n := len(ranges)
		mu.Unlock()
		w.Header().Set("ETag", `"v1"`)
		w.Header().Set("Accept-Ranges", "bytes")
		switch n {
		case 1:
			w.Header().Set("Content-Length", fmt.Sprint(len(big)))
			w.Write(big[:len(big)/2])
			panic(http.ErrAbortHandler)
		case 2:
			var from int
			fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, from+999, len(big)))
			w.WriteHeader(http.StatusPartialContent)
			w.Write(big[from : from+1000])
		default:
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(big))
		}
	}))
	p.expect(upstream.Want{Path: "file", Kind: upstream.File}, string(big))
	if len(ranges) != 3 {
		t.Errorf("ranges %q", ranges)
	}
}

// TestSlowTenants: a tenant whose upstream answers nothing takes neither the places for
// downloads from another, nor the connections to a host that both ask.
func TestSlowTenants(t *testing.T) {
	p := start(t)
	p.Hold()
	ctx, leave := context.WithCancel(t.Context())
	var group sync.WaitGroup
	for i := range 300 {
		group.Go(func() {
			_, _ = p.Engine.Fetch(ctx, upstreamtest.By(), &p.repo, upstream.Want{Path: fmt.Sprint("slow", i)})
		})
	}
	defer group.Wait()
	defer leave()
	for range 24 {
		p.Awaits(t)
	}
	quick := upstreamtest.NewRegistry(t)
	quick.Put("doc", []byte("quick"))
	theirs := p.Proxy(t, "other/cache", "npm", quick.URL)
	if _, err := p.Engine.Fetch(upstreamtest.Context(t), upstreamtest.By(), &theirs, upstream.Want{Path: "doc"}); err != nil {
		t.Error(err)
	}
	theirs = p.Proxy(t, "other/same", "npm", p.Registry.URL)
	group.Go(func() {
		_, _ = p.Engine.Fetch(ctx, upstreamtest.By(), &theirs, upstream.Want{Path: "doc"})
	})
	p.Awaits(t)
}

// TestDownForOneRepository: that a host fails another tenant is no reason to believe what
// is old here.
func TestDownForOneRepository(t *testing.T) {
	p := start(t)
	p.Put("doc", []byte("one"))
	p.expect(upstream.Want{Path: "doc"}, "one")
	p.Later(time.Hour)
	p.Handle(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) }))
	theirs := p.Proxy(t, "other/cache", "npm", p.Registry.URL)
	if _, err := p.Engine.Fetch(upstreamtest.Context(t), upstreamtest.By(), &theirs, upstream.Want{Path: "bad"}); !errors.Is(err, meta.ErrUnavailable) {
		t.Fatal(err)
	}
	if f := p.expect(upstream.Want{Path: "doc"}, "one"); f.Stale {
		t.Error("an upstream that answers is taken to be down")
	}
	p.asked("doc", 2)
}

// TestDocumentsThatWereFiles: that one reader called an address a file does not keep
// another from seeing it change.
func TestDocumentsThatWereFiles(t *testing.T) {
	p := start(t)
	p.Put("doc", []byte("one"))
	p.expect(upstream.Want{Path: "doc", Kind: upstream.File}, "one")
	p.Put("doc", []byte("two"))
	p.Later(time.Hour)
	p.expect(upstream.Want{Path: "doc"}, "two")
}

// TestRawDocuments: an archive that its server calls an encoding stays one, when the
// bytes as they lie there are wanted.
func TestRawDocuments(t *testing.T) {
	p := start(t)
	for _, encoding := range []string{"gzip", "x-gzip"} {
		path := encoding + "/Packages.gz"
		p.Put(path, []byte("not unpacked"), "Content-Encoding: "+encoding)
		p.expect(upstream.Want{Path: path, Raw: true}, "not unpacked")
		if h := p.Header(path); h.Get("Accept-Encoding") != "identity" {
			t.Errorf("asked with %v", h)
		}
	}
}

// TestWhatWantsCredentialsIsNotAbsent: an upstream that answers 401 may have the package,
// but for registries of images, which say so of what is not there: a group looks no further.
func TestWhatWantsCredentialsIsNotAbsent(t *testing.T) {
	g := startGroup(t)
	g.second.Put("pkg", []byte("2"))
	for _, challenge := range []string{"", `Basic realm="artifacts"`, `Bearer authorization_uri="https://login.example"`, `Bearer realm="` + g.second.URL + `/token"`} {
		g.first.Handle(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if challenge != "" {
				w.Header().Set("WWW-Authenticate", challenge)
			}
			w.WriteHeader(http.StatusUnauthorized)
		}))
		if got, err := g.sources("pkg"); !errors.Is(err, protocol.ErrUpstream) || !strings.Contains(err.Error(), "--upstream-user") {
			t.Errorf("%q: %v, %v", challenge, got, err)
		}
	}
}

// TestRefusalsAreNotAbsences: an upstream that gives something to nobody says with 403, or
// 451, nothing of whether it is there: a group looks no further, nothing of it is kept, and
// once the upstream gives it out it is there at once.
func TestRefusalsAreNotAbsences(t *testing.T) {
	for status, says := range map[int]string{http.StatusForbidden: "--upstream-user", http.StatusUnavailableForLegalReasons: "legal reasons"} {
		g := startGroup(t)
		first, _, err := g.Catalog.Repository(t.Context(), upstreamtest.By(), upstreamtest.Ref("acme/first"))
		if err != nil {
			t.Fatal(err)
		}
		fetch := func(path string) (*upstream.Found, error) {
			return g.Engine.Fetch(upstreamtest.Context(t), upstreamtest.By(), &first, upstream.Want{Path: path, Package: path})
		}
		g.first.Put("known", []byte("1"))
		if _, err := fetch("known"); err != nil {
			t.Fatal(err)
		}
		g.second.Put("pkg", []byte("2"))
		g.first.Fail(status, "")
		for range 2 {
			got, err := g.sources("pkg")
			if !errors.Is(err, protocol.ErrUpstream) || errors.Is(err, meta.ErrNotFound) || !strings.Contains(err.Error(), says) {
				t.Errorf("%d: %v, %v", status, err, got)
			}
		}
		if _, err := fetch("pkg"); !errors.Is(err, protocol.ErrUpstream) || errors.Is(err, meta.ErrNotFound) {
			t.Errorf("%d: %v", status, err)
		}
		if _, _, err := g.Catalog.Fetched(t.Context(), upstreamtest.By(), first.Ref, "pkg", ""); !errors.Is(err, meta.ErrNotFound) {
			t.Errorf("%d is kept: %v", status, err)
		}
		a, _, err := g.Catalog.Sources(t.Context(), upstreamtest.By(), g.group.Ref, "pkg")
		if err != nil || a.Remembered != "" {
			t.Errorf("%d: remembered is %q, %v", status, a.Remembered, err)
		}
		// What is known serves on, but for what may not be given out any more.
		g.Later(time.Hour)
		f, err := fetch("known")
		if status == http.StatusForbidden && (err != nil || !f.Stale) || status != http.StatusForbidden && !errors.Is(err, protocol.ErrUpstream) {
			t.Errorf("%d to what is known: %+v, %v", status, f, err)
		}
		g.first.Fail(0, "")
		g.first.Put("pkg", []byte("1"))
		g.expect("pkg", "first")
	}
}

// TestOldAbsencesAreNoReasonToLookElsewhere: what a proxy did not have once, and nobody
// can ask now, a group does not take from the next one.
func TestOldAbsencesAreNoReasonToLookElsewhere(t *testing.T) {
	g := startGroup(t)
	if _, err := g.sources("pkg"); !errors.Is(err, meta.ErrNotFound) {
		t.Fatal(err)
	}
	g.first.Put("pkg", []byte("1"))
	g.second.Put("pkg", []byte("2"))
	g.Later(time.Hour)
	g.first.Cut(true)
	if got, err := g.sources("pkg"); !errors.Is(err, meta.ErrUnavailable) || errors.Is(err, meta.ErrNotFound) {
		t.Errorf("%v, %v", got, err)
	}
	// Nor does one whose node asks the owner.
	serve := g.Engine.Handler(func(meta.NodeID, *meta.Repository) bool { return true })
	owner := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := serve(&protocol.Call{W: w, R: r, Who: meta.Principal{Node: "agent"}}); err != nil {
			t.Error(err)
		}
	}))
	defer owner.Close()
	peers := &servers{order: []meta.NodeID{"owner"}, urls: map[meta.NodeID]string{"owner": owner.URL}}
	agent, err := upstream.New(upstream.Config{Catalog: g.Catalog, Metadata: g.Metadata, Self: "agent", Peers: peers, Now: func() time.Time { return time.Now().Add(time.Hour) }})
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	if got, err := agent.Sources(upstreamtest.Context(t), upstreamtest.By(), &g.group, "pkg", probe("pkg")); !errors.Is(err, meta.ErrUnavailable) || errors.Is(err, meta.ErrNotFound) {
		t.Errorf("%v, %v", got, err)
	}
	g.first.Cut(false)
	g.Later(time.Minute)
	g.expect("pkg", "first")
}

// TestGroupsOfOthers: a node that may have a proxy, but not a group that it is in, does not
// settle where that takes its packages from.
func TestGroupsOfOthers(t *testing.T) {
	g := startGroup(t)
	g.second.Put("any", []byte("2"))
	serve := g.Engine.Handler(func(_ meta.NodeID, r *meta.Repository) bool { return r.Kind == meta.KindProxy })
	owner := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := serve(&protocol.Call{W: w, R: r, Who: meta.Principal{Node: "agent"}}); err != nil {
			t.Error(err)
		}
	}))
	defer owner.Close()
	_, err := upstream.AskServer(upstreamtest.Context(t), http.DefaultClient, owner.URL, upstream.Question{
		Repo: upstreamtest.Ref("acme/second"), Want: upstream.Want{Path: "any", Package: "internal"}, Group: "all",
	}, nil)
	if !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("it is answered: %v", err)
	}
	a, _, err := g.Catalog.Sources(t.Context(), upstreamtest.By(), g.group.Ref, "internal")
	if err != nil || a.Remembered != "" {
		t.Errorf("remembered is %q, %v", a.Remembered, err)
	}
}

// TestAnotherUpstream: what a repository has of the upstream that it had before is not
// what the one has that it has now, unless its digest says so.
func TestAnotherUpstream(t *testing.T) {
	p := start(t)
	p.Put("doc", []byte("old doc"), `ETag: "1"`)
	p.Put("file", []byte("old file"))
	p.Put("same", []byte("same"))
	same := upstream.Want{Path: "same", Kind: upstream.File, Digest: digest.FromBytes([]byte("same"))}
	p.expect(upstream.Want{Path: "doc"}, "old doc")
	p.expect(upstream.Want{Path: "file", Kind: upstream.File}, "old file")
	p.refuse(upstream.Want{Path: "new"}, meta.ErrNotFound)
	p.expect(same, "same")
	next := upstreamtest.NewRegistry(t)
	next.Put("doc", []byte("new doc"), `ETag: "1"`)
	next.Put("file", []byte("new file"))
	next.Put("new", []byte("new"))
	p.repo.Upstream = &meta.Upstream{URL: next.URL + "/"}
	p.expect(upstream.Want{Path: "doc"}, "new doc")
	p.expect(upstream.Want{Path: "file", Kind: upstream.File}, "new file")
	p.expect(upstream.Want{Path: "new"}, "new")
	p.expect(same, "same")
	if n := next.Asked("same"); n != 0 {
		t.Errorf("what is promised was asked for %d times", n)
	}
	p.repo.Upstream.URL = next.URL
	total := next.Total()
	p.expect(upstream.Want{Path: "file", Kind: upstream.File}, "new file")
	p.expect(upstream.Want{Path: "doc"}, "new doc")
	if next.Total() != total {
		t.Error("the same upstream, written otherwise, is another")
	}
}
