package generic_test

import (
	"strings"
	"testing"

	godigest "github.com/opencontainers/go-digest"

	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// session begins one and returns its path below the repository.
func (f *files) session(path string) string {
	f.t.Helper()
	begun := f.expect(f.do("POST", path+"?uploads", ""), 202)
	at, ok := strings.CutPrefix(begun.Header.Get("Location"), "/generic/acme/files/")
	if !ok || !strings.Contains(at, "/.uploads/") || begun.Header.Get("Upload-Offset") != "0" {
		f.t.Fatalf("a session begins with %v", begun.Header)
	}
	return at
}

func (f *files) offset(a catalogtest.Answer, want string) {
	f.t.Helper()
	if got := a.Header.Get("Upload-Offset"); got != want {
		f.t.Fatalf("%s %s: the offset is %q, want %s", a.Request.Method, a.Request.URL, got, want)
	}
}

func TestSession(t *testing.T) {
	f := start(t, catalogtest.Options{})
	const whole = "one two three"
	d := digest.FromBytes([]byte(whole))
	at := f.session("dir/a b.txt")
	f.offset(f.expect(f.do("PATCH", at, "one ", "Content-Range: 0-3"), 202), "4")
	f.offset(f.expect(f.do("PATCH", at, "two ", "Content-Range: bytes 4-7/13"), 202), "8")
	// A piece that belongs elsewhere is told where to go on.
	for _, header := range []string{"0-3", "9-12"} {
		a := f.expect(f.do("PATCH", at, "xxxx", "Content-Range: "+header), 416)
		f.offset(a, "8")
		if a.Header.Get("Range") != "0-7" || a.Header.Get("Content-Range") != "bytes */8" {
			t.Errorf("416 with %v", a.Header)
		}
	}
	f.expect(f.do("PATCH", at, "xx", "Content-Range: 8-20"), 400)
	f.expect(f.do("PATCH", at, "xx", "Content-Range: nonsense"), 400)
	f.offset(f.expect(f.do("GET", at, ""), 204), "8")
	f.expect(f.do("GET", "dir/a b.txt", ""), 404) // not before it is whole
	f.expect(f.do("PUT", at, ""), 400)
	f.expect(f.do("PUT", at+"?digest=md5:x", ""), 400)
	done := f.expect(f.do("PUT", at+"?digest="+string(d), "three", "Content-Type: text/plain"), 201)
	if done.Header.Get("Location") != "/generic/acme/files/dir/a%20b.txt" || !strings.Contains(done.Text, string(d)) {
		t.Errorf("it ends with %v %s", done.Header, done.Text)
	}
	got := f.expect(f.do("GET", "dir/a b.txt", ""), 200)
	if got.Text != whole || got.Header.Get("Content-Type") != "text/plain" {
		t.Errorf("the file is %q, %v", got.Text, got.Header)
	}
	for _, method := range []string{"GET", "PATCH", "DELETE"} {
		f.expect(f.do(method, at, ""), 404)
	}
}

func TestSessionRefuses(t *testing.T) {
	f := start(t, catalogtest.Options{})
	f.expect(f.do("POST", "a.txt", ""), 405)
	f.expect(f.do("POST", "dir/?uploads", ""), 400)
	f.expect(f.do("POST", "a.txt?uploads&digest-algorithm=md5", ""), 400)
	f.expect(f.do("GET", "a.txt/.uploads/nobody", ""), 404)
	f.expect(f.do("PUT", "a.txt/.uploads/file", "text"), 404)

	// Bytes that are not what the client says end the session, and nothing is stored.
	at := f.session("a.txt")
	f.expect(f.do("PATCH", at, "some"), 202)
	wrong := f.expect(f.do("PUT", at+"?digest="+string(digest.FromBytes([]byte("other"))), ""), 400)
	if !strings.Contains(wrong.Text, string(digest.FromBytes([]byte("some")))) {
		t.Errorf("a wrong digest: %s", wrong.Text)
	}
	f.expect(f.do("GET", "a.txt", ""), 404)
	f.expect(f.do("GET", at, ""), 404)

	at = f.session("a.txt")
	f.expect(f.do("PATCH", at, "some"), 202)
	f.expect(f.do("DELETE", at, ""), 204)
	f.expect(f.do("GET", at, ""), 404)

	// Conditions are those of a PUT.
	f.expect(f.do("PUT", "a.txt", "first"), 201)
	at = f.session("a.txt")
	f.expect(f.do("PUT", at+"?digest="+string(digest.FromBytes([]byte("second"))), "second", "If-None-Match: *"), 412)
	f.offset(f.expect(f.do("GET", at, ""), 204), "0")
	sum := godigest.SHA512.FromString("second")
	f.expect(f.do("PUT", at+"?digest="+string(sum), "second"), 201)
	if got := f.expect(f.do("GET", "a.txt", ""), 200); got.Text != "second" {
		t.Errorf("the file is %q", got.Text)
	}
	// A session is of its repository.
	f.Create(t, meta.Repository{Ref: meta.RepoRef{Tenant: "acme", Name: "others"}, Format: "generic"})
	at = f.session("a.txt")
	f.expect(f.do("GET", "../others/"+at, ""), 404)
}
