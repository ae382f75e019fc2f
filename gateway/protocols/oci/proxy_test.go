package oci_test

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	godigest "github.com/opencontainers/go-digest"

	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/protocols/oci"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/gateway/upstream/upstreamtest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// mirrored is a registry with a proxy of another one.
type mirrored struct {
	*registry                        // speaks about acme/hub/acme/app/api, the proxied acme/app/api
	stack     *upstreamtest.Stack    // of the proxy
	origin    *registry              // speaks about acme/app/api at the upstream
	between   *upstreamtest.Registry // in front of the origin
	protocol  *oci.Protocol
}

func startMirror(t testing.TB, o catalogtest.Options) *mirrored {
	m := &mirrored{origin: start(t, catalogtest.Options{}).at(t, "acme/app/api"), between: upstreamtest.NewRegistry(t)}
	m.between.Handle(m.origin.Handler)
	m.stack = upstreamtest.New(t, o, func(s *catalogtest.Stack, e *upstream.Engine) []protocol.Protocol {
		m.protocol = oci.New(s.Catalog, e)
		return []protocol.Protocol{m.protocol}
	})
	m.stack.Proxy(t, "acme/hub", "oci", m.between.URL)
	m.registry = (&registry{Stack: m.stack.Stack, t: t}).at(t, "acme/hub/acme/app/api")
	return m
}

// pull gets an image as a client does, and checks its bytes.
func (r *registry) pull(i image, reference string) {
	r.t.Helper()
	head := r.expect(r.do("HEAD", "manifests/"+reference, nil, header("Accept", mediaImage)), 200)
	r.header(head, "Docker-Content-Digest", string(i.digest))
	got := r.expect(r.do("GET", "manifests/"+head.Header.Get("Docker-Content-Digest"), nil, header("Accept", mediaImage)), 200)
	r.header(got, "Content-Type", mediaImage)
	if !bytes.Equal(got.body, i.manifest) {
		r.t.Fatalf("the manifest is %s", got.body)
	}
	for d, want := range i.blobs {
		b := r.expect(r.do("GET", "blobs/"+string(d), nil), 200)
		r.header(b, "Docker-Content-Digest", string(d))
		if !bytes.Equal(b.body, want) {
			r.t.Fatalf("blob %s is %.80q", d, b.body)
		}
	}
}

func TestProxyPull(t *testing.T) {
	m := startMirror(t, catalogtest.Options{})
	i := makeImage(t, "proxied", 3, godigest.SHA256, nil)
	m.origin.push(i, "1.0")
	before := m.between.Total()
	m.pull(i, "1.0")
	// A manifest, its config and three layers: each once.
	if asked := m.between.Total() - before; asked != 5 {
		t.Errorf("%d requests to the upstream: %v", asked, m.between.All())
	}
	m.pull(i, "1.0")
	m.pull(i, string(i.digest))
	if asked := m.between.Total() - before; asked != 5 {
		t.Errorf("%d requests after three pulls: %v", asked, m.between.All())
	}

	// The tag moves; what it was stays by its digest. While the upstream is away, all
	// that is known serves, and what is not is unavailable, not unknown.
	next := makeImage(t, "moved", 1, godigest.SHA256, nil)
	m.origin.push(next, "1.0")
	m.stack.Later(2 * time.Minute)
	m.pull(next, "1.0")
	m.between.Cut(true)
	m.stack.Later(time.Hour)
	stale := m.expect(m.do("GET", "manifests/1.0", nil), 200)
	if w := stale.Header.Values("Warning"); len(w) != 2 || !strings.HasPrefix(w[0], "110") || !strings.HasPrefix(w[1], "111") {
		t.Errorf("warnings %q", w)
	}
	m.pull(i, string(i.digest))
	m.expect(m.do("GET", "manifests/2.0", nil), 503)
	m.between.Cut(false)
	m.stack.Later(time.Minute)
	m.fails(m.do("GET", "manifests/2.0", nil), 404, "MANIFEST_UNKNOWN")
	m.fails(m.do("GET", "blobs/"+string(digestOf("nothing")), nil), 404, "BLOB_UNKNOWN")
	// What one image brought is there for others.
	before = m.between.Total()
	other := m.at(t, "acme/hub/other")
	for d := range i.blobs {
		other.expect(other.do("GET", "blobs/"+string(d), nil), 200)
	}
	if m.between.Total() != before {
		t.Error("the upstream was asked for what is here")
	}
	part := m.expect(m.do("GET", "blobs/"+string(digestOf(string(first(i.blobs)))), nil, header("Range", "bytes=1-3")), 206)
	if len(part.body) != 3 {
		t.Errorf("a range has %d bytes", len(part.body))
	}
}

func first[K comparable, V any](m map[K]V) V {
	for _, v := range m {
		return v
	}
	panic("empty")
}

func TestProxySHA512(t *testing.T) {
	m := startMirror(t, catalogtest.Options{})
	i := makeImage(t, "long", 1, godigest.SHA512, nil)
	m.origin.push(i, "")
	got := m.expect(m.do("GET", "manifests/"+string(i.digest), nil), 200)
	m.header(got, "Docker-Content-Digest", string(i.digest))
	for d, want := range i.blobs {
		if b := m.expect(m.do("GET", "blobs/"+string(d), nil), 200); !bytes.Equal(b.body, want) {
			t.Errorf("%s is %q", d, b.body)
		}
	}
}

// TestProxyLies: bytes that are not what their digest says reach nobody and are not kept.
func TestProxyLies(t *testing.T) {
	m := startMirror(t, catalogtest.Options{})
	d := digestOf("true")
	for _, path := range []string{"blobs/", "manifests/"} {
		m.between.Put("v2/acme/app/api/"+path+string(d), []byte("false"))
		m.expect(m.do("GET", path+string(d), nil), 502)
	}
	m.between.Put("v2/acme/app/api/blobs/"+string(d), []byte("true"))
	if b := m.expect(m.do("GET", "blobs/"+string(d), nil), 200); string(b.body) != "true" {
		t.Errorf("%q", b.body)
	}
}

func TestProxyLists(t *testing.T) {
	m := startMirror(t, catalogtest.Options{})
	i := makeImage(t, "listed", 1, godigest.SHA256, nil)
	for _, tag := range []string{"a", "b", "c"} {
		m.origin.push(i, tag)
	}
	if tags := m.tags(); strings.Join(tags, "") != "abc" {
		t.Errorf("tags %v", tags)
	}
	page := m.expect(m.do("GET", "tags/list?n=2", nil), 200)
	target := linkNext(page)
	if !strings.Contains(string(page.body), `["a","b"]`) || target == "" {
		t.Fatalf("%s, next %q", page.body, page.Header.Get("Link"))
	}
	if rest := m.expect(m.do("GET", target, nil), 200); !strings.Contains(string(rest.body), `["c"]`) || !strings.Contains(string(rest.body), m.name) {
		t.Errorf("the rest is %s", rest.body)
	}
	signature := makeImage(t, "signature", 1, godigest.SHA256, obj{"artifactType": "application/x-signature", "subject": i.descriptor()})
	m.origin.push(signature, "")
	if list, _ := m.referrers(i.digest); !has(list, signature.digest) {
		t.Errorf("referrers %v", list)
	}
	if list, a := m.referrers(i.digest, query("artifactType", "application/x-other")); len(list) != 0 {
		t.Errorf("referrers %v, %s", list, a.Header.Get("OCI-Filters-Applied"))
	}
	if list, _ := m.referrers(digestOf("nobody")); len(list) != 0 {
		t.Errorf("referrers of nothing: %v", list)
	}
}

func TestProxyTakesNoPush(t *testing.T) {
	m := startMirror(t, catalogtest.Options{})
	i := makeImage(t, "refused", 1, godigest.SHA256, nil)
	m.expect(m.do("POST", "blobs/uploads/", nil), 405)
	m.expect(m.do("PUT", "manifests/1.0", i.manifest, header("Content-Type", mediaImage)), 405)
	m.expect(m.do("DELETE", "manifests/"+string(i.digest), nil), 405)
	m.expect(m.at(t, "acme/hub").do("GET", "manifests/1.0", nil), 404)
}

func TestProxyRules(t *testing.T) {
	m := startMirror(t, catalogtest.Options{})
	m.stack.Proxy(t, "acme/some", "oci", m.between.URL, func(u *meta.Upstream) { u.Allow = []string{"acme/*"}; u.Block = []string{"acme/evil"} })
	i := makeImage(t, "ruled", 1, godigest.SHA256, nil)
	m.origin.push(i, "1.0")
	m.at(t, "acme/some/acme/app/api").pull(i, "1.0")
	for _, name := range []string{"acme/some/acme/evil", "acme/some/other/app"} {
		r := m.at(t, name)
		r.fails(r.do("GET", "manifests/1.0", nil), 403, "DENIED")
		r.fails(r.do("GET", "manifests/"+string(i.digest), nil), 403, "DENIED")
		for d := range i.blobs {
			r.fails(r.do("GET", "blobs/"+string(d), nil), 403, "DENIED")
		}
	}
}

// TestMirror: containerd's `?ns=` means the proxy of that upstream, and everything else
// what it says.
func TestMirror(t *testing.T) {
	m := startMirror(t, catalogtest.Options{})
	i := makeImage(t, "mirrored", 2, godigest.SHA256, nil)
	m.origin.push(i, "1.0")
	own := makeImage(t, "own", 1, godigest.SHA256, nil)
	here := m.at(t, "acme/app/api")
	here.push(own, "1.0")
	ns := query("ns", m.between.Host())
	got := here.expect(here.do("GET", "manifests/1.0", nil, ns), 200)
	if !bytes.Equal(got.body, i.manifest) {
		t.Errorf("the mirror answers %s", got.body)
	}
	for d := range i.blobs {
		here.expect(here.do("GET", "blobs/"+string(d), nil, ns), 200)
	}
	// A name of one part, which is none of ours.
	m.between.Put("v2/pause/manifests/3.9", i.manifest, "Content-Type: "+mediaImage)
	one := m.at(t, "pause")
	one.expect(one.do("GET", "manifests/3.9", nil, ns), 200)
	one.expect(one.do("GET", "manifests/3.9", nil), 404)
	// Of a registry that nobody proxies here it is ours.
	if got := here.expect(here.do("GET", "manifests/1.0", nil, query("ns", "registry.example")), 200); !bytes.Equal(got.body, own.manifest) {
		t.Errorf("a mirror of nothing answers %s", got.body)
	}
	m.stack.Proxy(t, "acme/fixed", "oci", m.between.URL, func(u *meta.Upstream) { u.Block = []string{"*"} })
	m.protocol.Mirror(m.between.Host(), upstreamtest.Ref("acme/fixed"))
	here.fails(here.do("GET", "manifests/1.0", nil, ns), 403, "DENIED")
}

// TestMirrorIsForReaders: who may not read the proxy is not led to it.
func TestMirrorIsForReaders(t *testing.T) {
	m := startMirror(t, catalogtest.Options{Private: true})
	i := makeImage(t, "private", 1, godigest.SHA256, nil)
	m.origin.push(i, "1.0")
	ns := query("ns", m.between.Host())
	here := m.at(t, "acme/app/api")
	if a := here.expect(here.do("GET", "manifests/1.0", nil, ns), 401); strings.Contains(a.Header.Get("WWW-Authenticate"), "hub") {
		t.Errorf("the challenge tells of the proxy: %s", a.Header.Get("WWW-Authenticate"))
	}
	here.user = catalogtest.AdminToken
	here.expect(here.do("GET", "manifests/1.0", nil, ns), 200)
}

func TestGroup(t *testing.T) {
	m := startMirror(t, catalogtest.Options{})
	m.stack.Hosted(t, "acme/own", "oci")
	m.stack.Group(t, "acme/all", "oci", "own", "own", "hub")
	group := m.at(t, "acme/all/acme/app/api")
	theirs := makeImage(t, "theirs", 1, godigest.SHA256, nil)
	m.origin.push(theirs, "1.0")
	group.pull(theirs, "1.0")
	group.pull(theirs, string(theirs.digest))
	// A push goes to the hosted member, and owns the name from then on: what the upstream
	// has under it is not there any more.
	ours := makeImage(t, "ours", 1, godigest.SHA256, nil)
	internal := m.at(t, "acme/all/internal/app")
	internal.push(ours, "1.0")
	origin := m.origin.at(t, "internal/app")
	origin.push(theirs, "9.9")
	origin.push(theirs, "1.0")
	internal.pull(ours, "1.0")
	internal.fails(internal.do("GET", "manifests/9.9", nil), 404, "MANIFEST_UNKNOWN")
	for d := range theirs.blobs {
		internal.fails(internal.do("GET", "blobs/"+string(d), nil), 404, "BLOB_UNKNOWN")
	}
	if tags := internal.tags(); strings.Join(tags, "") != "1.0" {
		t.Errorf("tags %v", tags)
	}
	nobody := m.at(t, "acme/all/nobody/app")
	nobody.fails(nobody.do("GET", "manifests/1.0", nil), 404, "NAME_UNKNOWN")
	m.stack.Group(t, "acme/read", "oci", "", "own", "hub")
	reading := m.at(t, "acme/read/internal/app")
	reading.pull(ours, "1.0")
	reading.expect(reading.do("POST", "blobs/uploads/", nil), 405)
}

// TestManyPull: two hundred that pull one image at once make one request a file.
func TestManyPull(t *testing.T) {
	m := startMirror(t, catalogtest.Options{})
	i := makeImage(t, "popular", 3, godigest.SHA256, nil)
	m.origin.push(i, "1.0")
	before := m.between.All()
	var group sync.WaitGroup
	problems := make(chan error, 200)
	for range 200 {
		group.Go(func() {
			get := func(path string) (*http.Response, error) {
				return m.Client.Get(m.URL + "/v2/acme/hub/acme/app/api/" + path)
			}
			paths := []string{"manifests/1.0", "manifests/" + string(i.digest)}
			for d := range i.blobs {
				paths = append(paths, "blobs/"+string(d))
			}
			for _, path := range paths {
				a, err := get(path)
				if err != nil {
					problems <- err
					return
				}
				a.Body.Close()
				if a.StatusCode != 200 {
					problems <- fmt.Errorf("%s: %d", path, a.StatusCode)
					return
				}
			}
		})
	}
	group.Wait()
	close(problems)
	for err := range problems {
		t.Fatal(err)
	}
	for path, times := range m.between.All() {
		if n := times - before[path]; n > 1 {
			t.Errorf("%d requests for %s", n, path)
		}
	}
}

// TestMirrorsAreLookedUpOnce: strangers that make up registries do not have the
// repositories looked at for each of them.
func TestMirrorsAreLookedUpOnce(t *testing.T) {
	m := startMirror(t, catalogtest.Options{})
	here := m.at(t, "acme/app/api")
	var until time.Time
	for i := range 20 {
		here.expect(here.do("GET", "manifests/1.0", nil, query("ns", fmt.Sprintf("registry%d.example", i))), 404)
		again := m.protocol.LookedUntil()
		if i > 0 && again != until && time.Now().Before(until) {
			t.Fatalf("the repositories were looked at again for the registry number %d", i)
		}
		until = again
	}
	if until.IsZero() {
		t.Error("nobody looked")
	}
}

// TestReferrersLeaveNoTraces: digests and types that strangers make up are not asked of
// the upstream, each of which would be kept.
func TestReferrersLeaveNoTraces(t *testing.T) {
	m := startMirror(t, catalogtest.Options{})
	i := makeImage(t, "referred", 1, godigest.SHA256, nil)
	m.origin.push(i, "1.0")
	signature := makeImage(t, "signature", 1, godigest.SHA256, obj{"artifactType": "application/x-signature", "subject": i.descriptor()})
	m.origin.push(signature, "")
	m.pull(i, "1.0")
	for n := range 5 {
		if list, _ := m.referrers(digestOf(fmt.Sprint("made up ", n))); len(list) != 0 {
			t.Errorf("referrers of nothing: %v", list)
		}
		if list, _ := m.referrers(i.digest, query("artifactType", fmt.Sprint("application/x-", n))); len(list) != 0 {
			t.Errorf("referrers of no such type: %v", list)
		}
	}
	if list, _ := m.referrers(i.digest, query("artifactType", "application/x-signature")); !has(list, signature.digest) {
		t.Errorf("referrers %v", list)
	}
	asked := 0
	for path, times := range m.between.All() {
		if strings.Contains(path, "/referrers/") {
			asked += times
		}
	}
	if asked != 1 {
		t.Errorf("the upstream was asked %d times: %v", asked, m.between.All())
	}
}

// TestMirrorsAreOfWholeRegistries: a proxy of a part of a registry, whose names are others,
// does not stand for all of it.
func TestMirrorsAreOfWholeRegistries(t *testing.T) {
	m := startMirror(t, catalogtest.Options{})
	i := makeImage(t, "whole", 1, godigest.SHA256, nil)
	m.origin.push(i, "1.0")
	part := makeImage(t, "part", 1, godigest.SHA256, nil)
	m.stack.Proxy(t, "aaa/part", "oci", m.between.URL+"/evil")
	m.between.Put("evil/v2/acme/app/api/manifests/1.0", part.manifest, "Content-Type: "+mediaImage)
	here := m.at(t, "acme/app/api")
	if got := here.expect(here.do("GET", "manifests/1.0", nil, query("ns", m.between.Host())), 200); !bytes.Equal(got.body, i.manifest) {
		t.Errorf("the mirror answers %s", got.body)
	}
}

// TestMirrorsOfOthersComeLast: nobody takes another tenant's pulls by a public proxy of an
// early name.
func TestMirrorsOfOthersComeLast(t *testing.T) {
	all := []meta.Repository{
		{Ref: upstreamtest.Ref("aaa/hidden"), Visibility: meta.VisibilityPrivate}, {Ref: upstreamtest.Ref("aaa/hub"), Visibility: meta.VisibilityPublic},
		{Ref: upstreamtest.Ref("zed/hub"), Visibility: meta.VisibilityPublic},
	}
	for tenant, want := range map[meta.TenantName]string{"zed": "zed/hub", "aaa": "aaa/hidden", "other": "aaa/hub"} {
		got, found := oci.Choice(all, func(r *meta.Repository) bool { return r.Visibility == meta.VisibilityPublic || r.Ref.Tenant == tenant })
		if !found || got.String() != want {
			t.Errorf("%s is led to %s", tenant, got)
		}
	}
	if got, found := oci.Choice(all[:1], func(r *meta.Repository) bool { return r.Visibility == meta.VisibilityPublic }); found {
		t.Errorf("a stranger is led to %s", got)
	}
	if all[1].Visibility != meta.VisibilityPublic {
		t.Error("the choice changes what it is made of")
	}
}
