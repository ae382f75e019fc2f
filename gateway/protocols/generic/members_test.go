package generic_test

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/protocols/generic"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/gateway/upstream/upstreamtest"
	"github.com/shoal-registry/shoal/verify/digest"
)

// members is a node with a hosted repository, a proxy and a group of both that writes to
// the hosted one.
type members struct {
	*upstreamtest.Stack
	*upstreamtest.Registry
	t *testing.T
}

func startMembers(t *testing.T) *members {
	m := &members{Registry: upstreamtest.NewRegistry(t), t: t}
	m.Stack = upstreamtest.New(t, catalogtest.Options{}, func(s *catalogtest.Stack, e *upstream.Engine) []protocol.Protocol {
		return []protocol.Protocol{generic.New(s.Catalog, e)}
	})
	m.Hosted(t, "acme/own", generic.Format)
	m.Proxy(t, "acme/cache", generic.Format, m.Registry.URL)
	m.Group(t, "acme/all", generic.Format, "own", "own", "cache")
	return m
}

func (m *members) do(method, path, body string, want int) string {
	m.t.Helper()
	return m.Ask(m.t, method, "/generic/acme/"+path, strings.NewReader(body)).Expect(m.t, want).Text
}

func TestProxy(t *testing.T) {
	m := startMembers(t)
	m.Put("dir/a%20file.bin", []byte("theirs"))
	if got := m.do("GET", "cache/dir/a%20file.bin", "", 200); got != "theirs" {
		t.Errorf("got %q", got)
	}
	m.Cut(true)
	if got := m.do("GET", "cache/dir/a%20file.bin", "", 200); got != "theirs" {
		t.Errorf("from the cache %q", got)
	}
	m.Cut(false)
	first := string(digest.FromBytes([]byte("theirs")))
	m.Put("dir/a%20file.bin", []byte("theirs, later"))
	m.Later(upstream.DocumentTTL)
	if got := m.do("GET", "cache/dir/a%20file.bin", "", 200); got != "theirs, later" {
		t.Errorf("after its time %q", got)
	}
	m.do("GET", "cache/dir/a%20file.bin?version="+first, "", 404)
	m.do("GET", "cache/dir/a%20file.bin?version="+string(digest.FromBytes([]byte("theirs, later"))), "", 200)
	m.do("GET", "cache/dir/a%20file.bin?history", "", 404)
	m.do("GET", "cache/none", "", 404)
	m.do("PUT", "cache/mine", "x", 405)
	m.do("POST", "cache/mine?uploads", "", 405)
	m.do("DELETE", "cache/dir/a%20file.bin", "", 405)
	m.Put("dir/", []byte(`{"path":"dir/"}`), "Content-Type: application/json")
	if got := m.do("GET", "cache/dir/", "", 200); got != `{"path":"dir/"}` {
		t.Errorf("the upstream's listing is %q", got)
	}
	// What else a client asks is not passed on: it would be kept for each question.
	m.do("GET", "cache/dir/?made=up", "", 200)
	m.Put("dir/?last=a&n=2", []byte(`{}`))
	m.do("GET", "cache/dir/?n=2&made=up&last=a", "", 200)
}

// What is owned here never comes from the upstream; what is not does, and stays its.
func TestGroup(t *testing.T) {
	m := startMembers(t)
	m.do("PUT", "own/tools/x", "ours", 201)
	m.Put("tools/x", []byte("a stranger's"))
	m.Put("tools/y", []byte("theirs"))
	if got := m.do("GET", "all/tools/x", "", 200); got != "ours" {
		t.Errorf("the group gave %q", got)
	}
	m.do("DELETE", "own/tools/x", "", 204)
	m.do("GET", "all/tools/x", "", 404)
	if got := m.do("GET", "all/tools/y", "", 200); got != "theirs" {
		t.Errorf("the group gave %q", got)
	}
	if n := m.Asked("tools/x"); n != 0 {
		t.Errorf("the upstream was asked %d times for what is owned here", n)
	}
	m.do("PUT", "all/tools/z", "new", 201)
	if got := m.do("GET", "own/tools/z", "", 200); got != "new" {
		t.Errorf("written through the group: %q", got)
	}
	if got := m.do("GET", "all/tools/", "", 200); !strings.Contains(got, `"z"`) || strings.Contains(got, `"x"`) {
		t.Errorf("the group lists %s", got)
	}
	location := func() string {
		r, err := http.NewRequestWithContext(t.Context(), "POST", m.Stack.URL+"/generic/acme/all/big?uploads", nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := m.Client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return strings.TrimPrefix(res.Header.Get("Location"), "/generic/acme/")
	}()
	m.do("PATCH", location, "in pi", 202)
	m.do("PUT", location+"?digest="+string(digest.FromBytes([]byte("in pieces"))), "eces", 201)
	if got := m.do("GET", "own/big", "", 200); got != "in pieces" {
		t.Errorf("in pieces through the group: %q", got)
	}
}

// A large file of an upstream has the right bytes for a client that is the first to ask.
func TestLargeFileOfAProxy(t *testing.T) {
	m := startMembers(t)
	large := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	m.Put("large", large)
	if got := m.do("GET", "cache/large", "", 200); got != string(large) {
		t.Errorf("%d bytes of %d, or others", len(got), len(large))
	}
	if n := m.Asked("large"); n != 1 {
		t.Errorf("the upstream was asked %d times", n)
	}
}

// A version that a client makes up has the upstream compared with, not sent again; an
// archive that its server calls an encoding is not unpacked.
func TestVersionsOfAProxy(t *testing.T) {
	m := startMembers(t)
	m.Put("tools.tar.gz", []byte("packed"), `ETag: "1"`, "Content-Encoding: gzip")
	if got := m.do("GET", "cache/tools.tar.gz", "", 200); got != "packed" {
		t.Errorf("got %q", got)
	}
	m.Later(time.Hour)
	m.do("GET", "cache/tools.tar.gz?version="+string(digest.FromBytes([]byte("made up"))), "", 404)
	if h := m.Header("tools.tar.gz"); h.Get("If-None-Match") != `"1"` {
		t.Errorf("the upstream was asked with %v", h)
	}
	m.do("GET", "cache/tools.tar.gz?version=none", "", 404)
	if got := m.do("GET", "cache/tools.tar.gz?version="+string(digest.FromBytes([]byte("packed"))), "", 200); got != "packed" {
		t.Errorf("got %q", got)
	}
}
