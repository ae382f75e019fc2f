package upstream_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/gateway/upstream/upstreamtest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// proxy is a node with one proxy of one registry.
type proxy struct {
	*upstreamtest.Stack
	*upstreamtest.Registry
	t    testing.TB
	repo meta.Repository
}

func start(t testing.TB, change ...func(*meta.Upstream)) *proxy {
	p := &proxy{Registry: upstreamtest.NewRegistry(t), t: t}
	p.Stack = upstreamtest.New(t, catalogtest.Options{}, func(*catalogtest.Stack, *upstream.Engine) []protocol.Protocol { return nil })
	p.repo = p.Proxy(t, "acme/cache", "npm", p.Registry.URL, change...)
	return p
}

func (p *proxy) fetch(w upstream.Want) (*upstream.Found, error) {
	return p.Engine.Fetch(upstreamtest.Context(p.t), upstreamtest.By(), &p.repo, w)
}

// expect fetches and wants these bytes.
func (p *proxy) expect(w upstream.Want, body string) *upstream.Found {
	p.t.Helper()
	f, err := p.fetch(w)
	if err != nil {
		p.t.Fatalf("fetch %s: %v", w.Path, err)
	}
	if got := p.read(f); got != body {
		p.t.Fatalf("%s is %.80q, want %.80q", w.Path, got, body)
	}
	return f
}

func (p *proxy) read(f *upstream.Found) string {
	p.t.Helper()
	r, err := p.Engine.Open(p.t.Context(), f)
	if err != nil {
		p.t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		p.t.Fatal(err)
	}
	return string(b)
}

// refuse fetches and wants that kind of error.
func (p *proxy) refuse(w upstream.Want, kind error) error {
	p.t.Helper()
	f, err := p.fetch(w)
	if !errors.Is(err, kind) {
		p.t.Fatalf("fetch %s: %+v, %v, want %v", w.Path, f, err, kind)
	}
	return err
}

func (p *proxy) asked(path string, times int) {
	p.t.Helper()
	if n := p.Asked(path); n != times {
		p.t.Fatalf("the registry was asked %d times for %s, want %d", n, path, times)
	}
}

func TestDocumentsAreRevalidated(t *testing.T) {
	p := start(t)
	p.Put("left-pad", []byte("one"), `ETag: "1"`, "Content-Type: application/json; charset=utf-8", "Link: <next>; rel=\"next\"")
	f := p.expect(upstream.Want{Path: "left-pad"}, "one")
	if r := f.Record; r.MediaType != "application/json; charset=utf-8" || r.ETag != `"1"` || r.Link == "" || r.Digest != digest.FromBytes([]byte("one")) || f.AsOf.Index == 0 {
		t.Errorf("%+v", f)
	}
	p.expect(upstream.Want{Path: "left-pad"}, "one")
	p.asked("left-pad", 1)
	p.Later(upstream.DocumentTTL + time.Second)
	p.expect(upstream.Want{Path: "left-pad"}, "one")
	p.asked("left-pad", 2)
	if h := p.Header("left-pad"); h.Get("If-None-Match") != `"1"` {
		t.Errorf("revalidated with %v", h)
	}
	p.Later(upstream.DocumentTTL + time.Second)
	p.Put("left-pad", []byte("two"), `ETag: "2"`)
	p.expect(upstream.Want{Path: "left-pad"}, "two")
	// What the one asks for in another form is another document.
	p.expect(upstream.Want{Path: "left-pad", Accept: "application/vnd.npm.install-v1+json"}, "two")
	if h := p.Header("left-pad"); h.Get("Accept") != "application/vnd.npm.install-v1+json" {
		t.Errorf("asked with %v", h)
	}
}

func TestRepositorySaysHowLong(t *testing.T) {
	p := start(t, func(u *meta.Upstream) { u.DocumentTTL, u.NegativeTTL = time.Hour, 10*time.Minute })
	p.Put("doc", []byte("one"))
	p.expect(upstream.Want{Path: "doc", TTL: time.Second}, "one")
	p.refuse(upstream.Want{Path: "none"}, meta.ErrNotFound)
	p.Later(9 * time.Minute)
	p.expect(upstream.Want{Path: "doc", TTL: time.Second}, "one")
	p.refuse(upstream.Want{Path: "none"}, meta.ErrNotFound)
	p.asked("doc", 1)
	p.asked("none", 1)
	p.Later(2 * time.Minute)
	p.refuse(upstream.Want{Path: "none"}, meta.ErrNotFound)
	p.asked("none", 2)
}

func TestFilesAreForEver(t *testing.T) {
	p := start(t)
	p.Put("a/-/a-1.0.0.tgz", []byte("tarball"))
	w := upstream.Want{Path: "a/-/a-1.0.0.tgz", Kind: upstream.File}
	p.expect(w, "tarball")
	if h := p.Header(w.Path); h.Get("Accept-Encoding") != "identity" {
		t.Errorf("asked with %v", h)
	}
	p.Later(1000 * time.Hour)
	p.Cut(true)
	if f := p.expect(w, "tarball"); f.Stale || !f.Record.Immutable {
		t.Errorf("%+v", f)
	}
	p.asked(w.Path, 1)
}

func TestAbsencesAreRemembered(t *testing.T) {
	p := start(t)
	for range 3 {
		p.refuse(upstream.Want{Path: "nobody"}, meta.ErrNotFound)
	}
	p.asked("nobody", 1)
	p.Later(upstream.NegativeTTL + time.Second)
	// What was not there a moment ago is not, rather than unknown, while nobody can say.
	p.Cut(true)
	p.refuse(upstream.Want{Path: "nobody"}, meta.ErrNotFound)
	p.refuse(upstream.Want{Path: "another"}, meta.ErrUnavailable)
	p.Cut(false)
	p.Later(time.Minute)
	p.Put("nobody", []byte("here"))
	p.expect(upstream.Want{Path: "nobody"}, "here")
	p.Remove("nobody")
	p.Later(upstream.DocumentTTL + time.Second)
	p.refuse(upstream.Want{Path: "nobody"}, meta.ErrNotFound)
}

// TestStale: what is known serves when the upstream is cut, is busy or breaks, and says
// so; what is not known is unavailable, with the upstream's own word on when.
func TestStale(t *testing.T) {
	p := start(t)
	p.Put("doc", []byte("one"), `ETag: "1"`)
	w := upstream.Want{Path: "doc"}
	p.expect(w, "one")
	for name, broken := range map[string]func(bool){
		"cut": p.Cut,
		"429": func(on bool) { p.Fail(map[bool]int{true: 429}[on], "120") },
		"503": func(on bool) { p.Fail(map[bool]int{true: 503}[on], "") },
	} {
		p.Later(time.Hour)
		broken(true)
		if f := p.expect(w, "one"); !f.Stale {
			t.Errorf("%s: it is not stale", name)
		}
		before := p.Total()
		if f := p.expect(w, "one"); !f.Stale || p.Total() != before {
			t.Errorf("%s: an upstream that is down was asked again, stale %v", name, f.Stale)
		}
		err := p.refuse(upstream.Want{Path: "unknown-" + name}, meta.ErrUnavailable)
		var later interface{ RetryIn() time.Duration }
		if !errors.As(err, &later) || name == "429" && later.RetryIn() != 120*time.Second {
			t.Errorf("%s: %v says nothing of when", name, err)
		}
		broken(false)
		p.Later(2 * time.Minute)
		if f := p.expect(w, "one"); f.Stale {
			t.Errorf("%s: it is stale though the upstream answers", name)
		}
	}
}

func TestRetries(t *testing.T) {
	p := start(t)
	fails := 2
	p.Handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fails--; fails >= 0 {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		io.WriteString(w, "at last")
	}))
	p.expect(upstream.Want{Path: "doc"}, "at last")
	p.asked("doc", 3)
}

// TestBrokenBodiesResume: a file that breaks off goes on where it stopped, when the
// upstream names its bytes, else begins anew; either way it is whole.
func TestBrokenBodiesResume(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	for name, etag := range map[string]string{"resumes": `"v1"`, "begins anew": ""} {
		t.Run(name, func(t *testing.T) {
			p := start(t)
			var mu sync.Mutex
			var ranges []string
			p.Handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				ranges = append(ranges, r.Header.Get("Range"))
				first := len(ranges) == 1
				mu.Unlock()
				if etag != "" {
					w.Header().Set("ETag", etag)
					w.Header().Set("Accept-Ranges", "bytes")
				}
				if first {
					w.Header().Set("Content-Length", fmt.Sprint(len(big)))
					w.Write(big[:len(big)/2])
					panic(http.ErrAbortHandler)
				}
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(big))
			}))
			p.expect(upstream.Want{Path: "file", Kind: upstream.File, Digest: digest.FromBytes(big)}, string(big))
			if len(ranges) != 2 || (ranges[1] != "") != (etag != "") {
				t.Errorf("ranges %q", ranges)
			}
		})
	}
}

func TestPromises(t *testing.T) {
	p := start(t)
	p.Put("file", []byte("hello"))
	good := map[string]string{
		"md5": "5d41402abc4b2a76b9719d911017c592", "sha1": "aaf4c61ddcc5e8a2dabede0f3b482cd9aea9434d",
		"sha256": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824", "blake2b_256": "not checked",
	}
	bad := func(algorithm string) map[string]string {
		return map[string]string{algorithm: strings.Repeat("0", len(good[algorithm]))}
	}
	var integrity *upstream.IntegrityError
	for algorithm := range good {
		if algorithm == "blake2b_256" {
			continue
		}
		err := p.refuse(upstream.Want{Path: "file", Kind: upstream.File, Sums: bad(algorithm)}, protocol.ErrUpstream)
		if !errors.As(err, &integrity) || protocol.Status(err) != http.StatusBadGateway {
			t.Errorf("%s: %v, status %d", algorithm, err, protocol.Status(err))
		}
	}
	for _, wrong := range []digest.Digest{digest.FromBytes([]byte("other")), digest.Digest("sha512:" + strings.Repeat("0", 128))} {
		if err := p.refuse(upstream.Want{Path: "file", Kind: upstream.File, Digest: wrong}, meta.ErrCorrupt); !errors.As(err, &integrity) {
			t.Error(err)
		}
	}
	if kept := p.kept(); len(kept) != 0 {
		t.Fatalf("of false promises %v is kept", kept)
	}
	p.expect(upstream.Want{Path: "file", Kind: upstream.File, Sums: good, Digest: digest.FromBytes([]byte("hello"))}, "hello")
	// A document that names another digest later is not answered with the old bytes.
	p.refuse(upstream.Want{Path: "file", Kind: upstream.File, Digest: digest.FromBytes([]byte("other"))}, protocol.ErrUpstream)
	p.Put("file", []byte("other"))
	p.expect(upstream.Want{Path: "file", Kind: upstream.File, Digest: digest.FromBytes([]byte("other"))}, "other")
}

// kept lists what the repository has of its upstream.
func (p *proxy) kept() (paths []string) {
	p.t.Helper()
	var q state.Posed[[]meta.Fetched]
	q.Question = state.ListFetched{Repo: p.repo.Ref, Page: state.Page{Limit: 1000}}
	if _, err := p.Metadata.Answer(p.t.Context(), meta.Local, &q); err != nil {
		p.t.Fatal(err)
	}
	for _, f := range q.Result {
		paths = append(paths, f.Path)
	}
	return paths
}

func TestLimits(t *testing.T) {
	p := start(t)
	p.Put("big", bytes.Repeat([]byte("x"), 1<<20))
	p.refuse(upstream.Want{Path: "big", MaxBytes: 1 << 19}, meta.ErrTooLarge)
	p.Handle(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { // without a length
		for range 64 {
			w.Write(bytes.Repeat([]byte("x"), 32<<10))
			w.(http.Flusher).Flush()
		}
	}))
	p.refuse(upstream.Want{Path: "endless", Kind: upstream.File, MaxBytes: 1 << 20}, meta.ErrTooLarge)
	if kept := p.kept(); len(kept) != 0 {
		t.Errorf("%v is kept", kept)
	}
	p.expect(upstream.Want{Path: "big", MaxBytes: 1 << 20}, strings.Repeat("x", 1<<20))
}

// TestManyAskOnce: five hundred that want a file make one request; those that leave do
// not take it from the others.
func TestManyAskOnce(t *testing.T) {
	p := start(t)
	p.Put("file", []byte("for all"))
	p.Hold()
	const readers = 500
	var group sync.WaitGroup
	errs := make(chan error, readers)
	ctx, leave := context.WithCancel(t.Context())
	for i := range readers {
		if i == 1 {
			p.Awaits(t) // the download begins for one who stays
		}
		group.Go(func() {
			ctx := ctx
			if i%5 != 4 {
				ctx = t.Context()
			}
			f, err := p.Engine.Fetch(ctx, upstreamtest.By(), &p.repo, upstream.Want{Path: "file", Kind: upstream.File})
			if i%5 == 4 && errors.Is(err, context.Canceled) {
				err = nil
			} else if err == nil && f.Record.Size != 7 {
				err = fmt.Errorf("%+v", f)
			}
			errs <- err
		})
	}
	leave()
	p.Release()
	group.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	p.asked("file", 1)
}

// TestNobodyWaits: a download for which nobody waits ends, and the next one begins anew.
func TestNobodyWaits(t *testing.T) {
	p := start(t)
	p.Put("file", []byte("bytes"))
	p.Hold()
	ctx, leave := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := p.Engine.Fetch(ctx, upstreamtest.By(), &p.repo, upstream.Want{Path: "file"})
		done <- err
	}()
	p.Awaits(t)
	leave()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	p.Release()
	p.expect(upstream.Want{Path: "file"}, "bytes")
}

func TestRules(t *testing.T) {
	p := start(t, func(u *meta.Upstream) { u.Allow, u.Block = []string{"@acme/*", "left-*"}, []string{"left-evil"} })
	p.Put("x", []byte("x"))
	var blocked *upstream.BlockedError
	for _, pkg := range []string{"left-evil", "right-pad"} {
		if err := p.refuse(upstream.Want{Path: "x", Package: pkg}, meta.ErrDenied); !errors.As(err, &blocked) || !strings.Contains(err.Error(), pkg) {
			t.Errorf("%s: %v", pkg, err)
		}
	}
	p.asked("x", 0)
	p.expect(upstream.Want{Path: "x", Package: "left-pad"}, "x")
	p.refuse(upstream.Want{Path: "x", Package: "left-evil"}, meta.ErrDenied) // also when it is here
	p.expect(upstream.Want{Path: "x"}, "x")
}

// TestWhatIsDialled: the rules of outgoing requests hold, also behind a redirect.
func TestWhatIsDialled(t *testing.T) {
	p := start(t)
	for _, url := range []string{"http://169.254.169.254/latest", "http://10.0.0.1/x", "http://[fd00::1]/x"} {
		p.refuse(upstream.Want{Path: url}, meta.ErrDenied)
	}
	p.Handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://169.254.169.254/latest/meta-data", http.StatusFound)
	}))
	err := p.refuse(upstream.Want{Path: "redirect"}, meta.ErrDenied)
	if !strings.Contains(err.Error(), "--outgoing-allow") {
		t.Errorf("%v does not say what to do", err)
	}
	for _, path := range []string{"../secret", "a/../../b", "ftp://x/y", "a\nb"} {
		p.refuse(upstream.Want{Path: path}, meta.ErrNotFound)
	}
}

// TestCredentialsStayHome: what the upstream is asked with is for its own host, whatever
// documents and redirects name.
func TestCredentialsStayHome(t *testing.T) {
	other := upstreamtest.NewRegistry(t)
	other.Put("file", []byte("elsewhere"))
	for _, c := range []upstream.Credential{{User: "ada", Secret: "pw"}, {Secret: "token"}} {
		registry := upstreamtest.NewRegistry(t)
		s := upstreamtest.NewWith(t, catalogtest.Options{}, upstream.Config{
			Secrets: func(context.Context, *meta.Repository) (upstream.Credential, error) { return c, nil },
		}, func(*catalogtest.Stack, *upstream.Engine) []protocol.Protocol { return nil })
		p := &proxy{Registry: registry, Stack: s, t: t}
		p.repo = s.Proxy(t, "acme/cache", "npm", registry.URL, func(u *meta.Upstream) { u.Credential = meta.SealedUpstream })
		p.Put("mine", []byte("mine"))
		p.expect(upstream.Want{Path: "mine"}, "mine")
		want := "Basic YWRhOnB3"
		if c.User == "" {
			want = "Bearer token"
		}
		if got := p.Header("mine").Get("Authorization"); got != want {
			t.Errorf("the upstream was asked with %q", got)
		}
		p.Handle(http.RedirectHandler(other.URL+"/file", http.StatusFound))
		p.expect(upstream.Want{Path: "moved"}, "elsewhere")
		if got := other.Header("file").Get("Authorization"); got != "" {
			t.Errorf("a redirect carries %q", got)
		}
		p.expect(upstream.Want{Path: other.URL + "/file"}, "elsewhere")
		if got := other.Header("file").Get("Authorization"); got != "" {
			t.Errorf("another host was asked with %q", got)
		}
		p.Fail(http.StatusUnauthorized, "")
		err := p.refuse(upstream.Want{Path: "new"}, protocol.ErrUpstream)
		if strings.Contains(err.Error(), "pw") || strings.Contains(err.Error(), "token ") || !strings.Contains(err.Error(), "--upstream-user") {
			t.Errorf("%v", err)
		}
	}
}

// TestTokenServer: the dance of image registries, for strangers and for users.
func TestTokenServer(t *testing.T) {
	for _, c := range []upstream.Credential{{}, {User: "ada", Secret: "pw"}} {
		tokens := upstreamtest.NewRegistry(t)
		given := 0
		tokens.Handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			user, pw, _ := r.BasicAuth()
			if user != c.User || pw != c.Secret.Reveal() || r.URL.Query().Get("scope") != "repository:library/alpine:pull" || r.URL.Query().Get("service") != `a "registry"` {
				w.WriteHeader(http.StatusForbidden)
				return
			}
			given++
			fmt.Fprintf(w, `{"token":"t%d","expires_in":300}`, given)
		}))
		registry := upstreamtest.NewRegistry(t)
		s := upstreamtest.NewWith(t, catalogtest.Options{}, upstream.Config{
			Secrets: func(context.Context, *meta.Repository) (upstream.Credential, error) { return c, nil },
		}, func(*catalogtest.Stack, *upstream.Engine) []protocol.Protocol { return nil })
		p := &proxy{Registry: registry, Stack: s, t: t}
		p.repo = s.Proxy(t, "acme/cache", "oci", registry.URL, func(u *meta.Upstream) {
			if c.Secret != "" {
				u.Credential = meta.SealedUpstream
			}
		})
		valid := "t1"
		p.Handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "Bearer "+valid {
				w.Header().Set("WWW-Authenticate", `Bearer realm="`+tokens.URL+`/token",service="a \"registry\"",scope="repository:library/alpine:pull"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			io.WriteString(w, r.URL.Path)
		}))
		w := upstream.Want{Path: "v2/library/alpine/manifests/a", Package: "library/alpine"}
		p.expect(w, "/v2/library/alpine/manifests/a")
		w.Path = "v2/library/alpine/manifests/b"
		p.expect(w, "/v2/library/alpine/manifests/b")
		if given != 1 || p.Asked(w.Path) != 1 {
			t.Errorf("%d tokens for one name", given)
		}
		valid = "t2" // the first was taken back
		w.Path = "v2/library/alpine/manifests/c"
		p.expect(w, "/v2/library/alpine/manifests/c")
		valid = "none"
		w.Path = "v2/library/alpine/manifests/d"
		kind := meta.ErrNotFound
		if c.Secret != "" {
			kind = protocol.ErrUpstream
		}
		p.refuse(w, kind)
	}
}

func TestEncodings(t *testing.T) {
	p := start(t)
	p.Put("file.gz", []byte("not unpacked"), "Content-Encoding: gzip")
	p.expect(upstream.Want{Path: "file.gz", Kind: upstream.File}, "not unpacked")
	p.Put("doc", []byte("odd"), "Content-Encoding: br")
	p.refuse(upstream.Want{Path: "doc"}, protocol.ErrUpstream)
	// Bytes of the tenant that another proxy has are one blob.
	other := p.Proxy(t, "acme/other", "npm", p.Registry.URL)
	if _, err := p.Engine.Fetch(t.Context(), upstreamtest.By(), &other, upstream.Want{Path: "file.gz", Kind: upstream.File}); err != nil {
		t.Fatal(err)
	}
}
