package generic_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/protocols/generic"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

var update = flag.Bool("update", false, "write the answers of conversations anew")

// files is a client of a running node.
type files struct {
	*catalogtest.Stack
	t testing.TB
}

func start(t testing.TB, o catalogtest.Options) *files {
	return &files{catalogtest.New(t, o, func(c *catalog.Catalog) []protocol.Protocol { return []protocol.Protocol{generic.New(c, nil)} }), t}
}

// do sends a request about a path below /generic/acme/files/; headers are `Name: value`.
func (f *files) do(method, path, body string, headers ...string) catalogtest.Answer {
	f.t.Helper()
	return f.Ask(f.t, method, "/generic/acme/files/"+path, strings.NewReader(body), headers...)
}

func (f *files) expect(a catalogtest.Answer, status int) catalogtest.Answer {
	f.t.Helper()
	return a.Expect(f.t, status)
}

func TestConversation(t *testing.T) {
	catalogtest.Converse(t, start(t, catalogtest.Options{}).Stack, "testdata/files.txtar", *update, "")
}

func TestConversationImmutable(t *testing.T) {
	f := start(t, catalogtest.Options{Private: true})
	f.Create(t, meta.Repository{Ref: meta.RepoRef{Tenant: "acme", Name: "files"}, Format: "generic", Immutable: true})
	f.Create(t, meta.Repository{Ref: meta.RepoRef{Tenant: "acme", Name: "images"}, Format: "oci"})
	catalogtest.Converse(t, f.Stack, "testdata/immutable.txtar", *update, catalogtest.AdminToken)
}

func TestPutGet(t *testing.T) {
	f := start(t, catalogtest.Options{})
	body := strings.Repeat("0123456789", 100_000)
	d := digest.FromBytes([]byte(body))
	put := f.expect(f.do("PUT", "tools/bin/a.bin", body, "Content-Type: application/x-thing"), 201)
	var stored struct {
		Path, Digest string
		Size         int
	}
	if err := json.Unmarshal([]byte(put.Text), &stored); err != nil || stored.Path != "tools/bin/a.bin" || stored.Digest != string(d) || stored.Size != len(body) {
		t.Errorf("PUT answers %s: %v", put.Text, err)
	}
	if put.Header.Get("Location") != "/generic/acme/files/tools/bin/a.bin" || put.Header.Get("Shoal-Token") == "" {
		t.Errorf("PUT answers %v", put.Header)
	}
	got := f.expect(f.do("GET", "tools/bin/a.bin", "", "Shoal-Token: "+put.Header.Get("Shoal-Token")), 200)
	if got.Text != body || got.Header.Get("Content-Type") != "application/x-thing" || got.Header.Get("Etag") != `"`+string(d)+`"` {
		t.Errorf("GET answers %d bytes, %v", len(got.Text), got.Header)
	}
	if got.Header.Get("Content-Security-Policy") == "" {
		t.Error("a file may act as the registry's own page")
	}
	head := f.expect(f.do("HEAD", "tools/bin/a.bin", ""), 200)
	if head.ContentLength != int64(len(body)) || head.Text != "" {
		t.Errorf("HEAD answers %v", head.Header)
	}
	part := f.expect(f.do("GET", "tools/bin/a.bin", "", "Range: bytes=999990-"), 206)
	if part.Text != "0123456789" {
		t.Errorf("the range has %q", part.Text)
	}
	f.expect(f.do("GET", "tools/bin/a.bin", "", `If-None-Match: "`+string(d)+`"`), 304)
	// The same again changes nothing, other bytes are a new version; the old one
	// stays readable by its digest and for ever.
	f.expect(f.do("PUT", "tools/bin/a.bin", body, "Content-Type: application/x-thing"), 200)
	f.expect(f.do("PUT", "tools/bin/a.bin", "new"), 201)
	if a := f.expect(f.do("GET", "tools/bin/a.bin", ""), 200); a.Text != "new" {
		t.Errorf("the path serves %q", a.Text)
	}
	old := f.expect(f.do("GET", "tools/bin/a.bin?version="+string(d), ""), 200)
	if old.Text != body || !strings.Contains(old.Header.Get("Cache-Control"), "immutable") {
		t.Errorf("the old version: %d bytes, %v", len(old.Text), old.Header)
	}
	// Deleting takes what the path serves; it can come back with the same bytes.
	f.expect(f.do("DELETE", "tools/bin/a.bin", ""), 204)
	f.expect(f.do("GET", "tools/bin/a.bin", ""), 404)
	f.expect(f.do("DELETE", "tools/bin/a.bin", ""), 404)
	f.expect(f.do("GET", "tools/bin/a.bin?version="+string(d), ""), 200)
	f.expect(f.do("PUT", "tools/bin/a.bin", "new"), 201)
	f.expect(f.do("DELETE", "tools/bin/a.bin?version="+string(d), ""), 204)
	f.expect(f.do("GET", "tools/bin/a.bin?version="+string(d), ""), 404)
}

func TestChecksums(t *testing.T) {
	f := start(t, catalogtest.Options{})
	const body = "the bytes"
	raw, err := hex.DecodeString(digest.FromBytes([]byte(body)).Encoded())
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.StdEncoding.EncodeToString(raw)
	hasher := digest.NewHasher(true)
	hasher.Write([]byte(body))
	h512 := hasher.SHA512().Encoded()
	wrong := strings.Repeat("0", 64)
	for i, test := range []struct {
		status  int
		headers []string
	}{
		{201, []string{"Digest: SHA-256=" + b64}},
		{201, []string{"Digest: md5=whatever, sha-256=" + b64}},
		{201, []string{"Repr-Digest: sha-256=:" + b64 + ":"}},
		{201, []string{"Content-Digest: sha-256=:" + b64 + ":, unixsum=:AA==:"}},
		{201, []string{"X-Checksum-Sha256: " + strings.ToUpper(hex.EncodeToString(raw))}},
		{201, []string{"X-Checksum-Sha512: " + h512, "Digest: sha-256=" + b64}},
		{400, []string{"X-Checksum-Sha256: " + wrong}},
		{400, []string{"X-Checksum-Sha512: " + wrong + wrong}},
		{400, []string{"X-Checksum-Sha256: abc"}},
		{400, []string{"Repr-Digest: sha-256=" + b64}},
		{400, []string{"Digest: sha-256=AAAA"}},
		{400, []string{"Digest: sha-256=" + b64, "X-Checksum-Sha256: " + wrong}},
	} {
		path := "sums/" + strconv.Itoa(i)
		a := f.expect(f.do("PUT", path, body, test.headers...), test.status)
		if test.status != 201 {
			f.expect(f.do("GET", path, ""), 404)
			continue
		}
		if a.Header.Get("X-Checksum-Sha256") != hex.EncodeToString(raw) || a.Header.Get("Repr-Digest") != "sha-256=:"+b64+":" {
			t.Errorf("checksums of the answer: %v", a.Header)
		}
	}
}

func TestConditions(t *testing.T) {
	f := start(t, catalogtest.Options{})
	etag := func(s string) string { return `"` + string(digest.FromBytes([]byte(s))) + `"` }
	f.expect(f.do("PUT", "c", "one", "If-Match: "+etag("one")), 412)
	f.expect(f.do("PUT", "c", "one", "If-None-Match: *"), 201)
	f.expect(f.do("PUT", "c", "two", "If-None-Match: *"), 412)
	f.expect(f.do("PUT", "c", "two", "If-Match: "+etag("other")), 412)
	f.expect(f.do("PUT", "c", "two", "If-Match: "+etag("one")), 201)
	f.expect(f.do("DELETE", "c", "", "If-Match: "+etag("one")), 412)
	f.expect(f.do("DELETE", "c", "", "If-Match: "+etag("two")), 204)
	f.expect(f.do("PUT", "c", "three", "If-None-Match: *"), 201)
	// Of many that want to be first, one is.
	var wg sync.WaitGroup
	created := make([]bool, 8)
	for i := range created {
		wg.Go(func() {
			created[i] = f.do("PUT", "race", fmt.Sprint("writer ", i), "If-None-Match: *").StatusCode == 201
		})
	}
	wg.Wait()
	if n := len(slices.DeleteFunc(created, func(b bool) bool { return !b })); n != 1 {
		t.Errorf("%d writers were first", n)
	}
}

func TestList(t *testing.T) {
	f := start(t, catalogtest.Options{Content: catalogtest.NewMemory()})
	for _, p := range []string{"a.txt", "b/1", "b/2", "b/c/3", "b-x", "d/e/f", "z.txt"} {
		f.expect(f.do("PUT", p, p), 201)
	}
	f.expect(f.do("PUT", "gone", "x"), 201)
	f.expect(f.do("DELETE", "gone", ""), 204)
	names := func(path string) (names []string, next string) {
		t.Helper()
		a := f.expect(f.do("GET", path, ""), 200)
		var l struct {
			Entries []struct {
				Name string
				Size *int64
			}
		}
		if err := json.Unmarshal([]byte(a.Text), &l); err != nil {
			t.Fatal(err)
		}
		for _, e := range l.Entries {
			names = append(names, e.Name)
			if (e.Size == nil) != strings.HasSuffix(e.Name, "/") {
				t.Errorf("entry %+v", e)
			}
		}
		link, _, _ := strings.Cut(strings.TrimPrefix(a.Header.Get("Link"), "</generic/acme/files/"), ">")
		return names, link
	}
	for path, want := range map[string][]string{
		"":                 {"a.txt", "b-x", "b/", "d/", "z.txt"},
		"b/":               {"1", "2", "c/"},
		"b/c/":             {"3"},
		"?last=b/":         {"d/", "z.txt"},
		"?last=b-x":        {"b/", "d/", "z.txt"},
		"b/?last=1&n=1":    {"2"},
		"d/":               {"e/"},
		"?n=0":             nil,
		"?last=z.txt":      nil,
		"b/c/?last=3&n=10": nil,
	} {
		if got, _ := names(path); !slices.Equal(got, want) {
			t.Errorf("%q lists %v, want %v", path, got, want)
		}
	}
	var got []string
	for next := "?n=2"; next != ""; {
		var page []string
		page, next = names(next)
		got = append(got, page...)
	}
	if want := []string{"a.txt", "b-x", "b/", "d/", "z.txt"}; !slices.Equal(got, want) {
		t.Errorf("pages have %v, want %v", got, want)
	}
	f.expect(f.do("GET", "none/", ""), 404)
	html := f.expect(f.do("GET", "", "", "Accept: text/html,application/xhtml+xml,*/*;q=0.8"), 200)
	if !strings.Contains(html.Text, `<a href="./b/">b/</a>`) || !strings.HasPrefix(html.Header.Get("Content-Type"), "text/html") {
		t.Errorf("the page is %s", html.Text)
	}
}

// A name is shown as it is, and never as markup or another address.
func TestListEscapes(t *testing.T) {
	f := start(t, catalogtest.Options{})
	f.expect(f.do("PUT", "js:alert(1)%3Cb%3E%20%22", "x"), 201)
	html := f.expect(f.do("GET", "", "", "Accept: text/html"), 200)
	if strings.Contains(html.Text, "<b>") || strings.Contains(html.Text, `href="js:`) {
		t.Errorf("the page is %s", html.Text)
	}
	a := f.expect(f.do("GET", "js:alert(1)%3Cb%3E%20%22", ""), 200)
	if a.Text != "x" {
		t.Errorf("the file has %q", a.Text)
	}
}

// A directory of more entries than one look-up brings is listed in time that
// follows its own entries, whole and once.
func TestListLarge(t *testing.T) {
	f := start(t, catalogtest.Options{Content: catalogtest.NewMemory()})
	for i := range 1100 {
		f.expect(f.do("PUT", fmt.Sprintf("big/%04d", i), "x"), 201)
	}
	f.expect(f.do("PUT", "after", "x"), 201)
	f.expect(f.do("PUT", "zz", "x"), 201)
	a := f.expect(f.do("GET", "", ""), 200)
	if n := strings.Count(a.Text, `"name"`); n != 3 {
		t.Errorf("%d entries: %s", n, a.Text)
	}
	a = f.expect(f.do("GET", "big/", ""), 200)
	if n := strings.Count(a.Text, `"name"`); n != 1000 || a.Header.Get("Link") == "" {
		t.Errorf("%d entries, Link %q", n, a.Header.Get("Link"))
	}
}

func TestFullDiskAndBreak(t *testing.T) {
	content := catalogtest.NewMemory()
	f := start(t, catalogtest.Options{Content: content})
	content.Fill(true)
	f.expect(f.do("PUT", "x", "y"), 507)
	content.Fill(false)
	f.expect(f.do("PUT", "x", "y"), 201)
	// A body that breaks off leaves nothing.
	r, w := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), "PUT", f.URL+"/generic/acme/files/broken", r)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		w.Write(bytes.Repeat([]byte("x"), 1000))
		w.CloseWithError(io.ErrUnexpectedEOF)
	}()
	if resp, err := f.Client.Do(req); err == nil {
		resp.Body.Close()
		t.Errorf("a broken upload answers %d", resp.StatusCode)
	}
	f.expect(f.do("GET", "broken", ""), 404)
}

func FuzzChecksums(f *testing.F) {
	s := start(f, catalogtest.Options{Content: catalogtest.NewMemory()})
	f.Add("sha-256=:AAAA:", "abc")
	f.Add(",,=,sha-512=::", strings.Repeat("0", 64))
	f.Fuzz(func(t *testing.T, line, hexed string) {
		req, err := http.NewRequest("PUT", "/generic/acme/files/fuzz", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		req.RemoteAddr, req.Host = "127.0.0.1:1", "127.0.0.1"
		req.Header["Repr-Digest"], req.Header["X-Checksum-Sha256"] = []string{line}, []string{hexed}
		w := recorder{header: http.Header{}}
		s.Handler.ServeHTTP(&w, req)
		if w.status >= 500 {
			t.Errorf("%q, %q: status %d", line, hexed, w.status)
		}
	})
}

type recorder struct {
	header http.Header
	status int
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(status int)      { r.status = status }
func (r *recorder) Write(p []byte) (int, error) { return len(p), nil }
