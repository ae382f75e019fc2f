package upstream

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

func TestJudge(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	of := func(age time.Duration, change ...func(*state.FetchedAnswer)) *state.FetchedAnswer {
		a := &state.FetchedAnswer{Fetched: meta.Fetched{Digest: "sha256:a", Checked: meta.TimeOf(now.Add(-age))}, Blob: meta.Blob{Digest: "sha256:a", SHA512: "sha512:b"}}
		for _, c := range change {
			c(a)
		}
		return a
	}
	nothing := func(a *state.FetchedAnswer) { a.Fetched.Digest, a.Fetched.Status, a.Blob = "", 404, meta.Blob{} }
	lost := func(a *state.FetchedAnswer) { a.Lost = true }
	immutable := func(a *state.FetchedAnswer) { a.Fetched.Immutable = true }
	for _, test := range []struct {
		name  string
		known *state.FetchedAnswer
		want  Want
		rules meta.Upstream
		is    verdict
	}{
		{"nothing is known", nil, Want{}, meta.Upstream{}, askAnew},
		{"young", of(DocumentTTL - 1), Want{}, meta.Upstream{}, serveKnown},
		{"old", of(DocumentTTL), Want{}, meta.Upstream{}, revalidate},
		{"a clock that is ahead", of(-time.Hour), Want{}, meta.Upstream{}, serveKnown},
		{"the format says how long", of(2 * time.Second), Want{TTL: time.Second}, meta.Upstream{}, revalidate},
		{"the repository says how long", of(2 * time.Second), Want{TTL: time.Second}, meta.Upstream{DocumentTTL: time.Minute}, serveKnown},
		{"a file", of(1000 * time.Hour), Want{Kind: File}, meta.Upstream{}, serveKnown},
		{"what somebody called a file", of(1000*time.Hour, immutable), Want{}, meta.Upstream{}, revalidate},
		{"lost", of(0, lost), Want{Kind: File}, meta.Upstream{}, askAnew},
		{"its digest", of(0), Want{Kind: File, Digest: "sha256:a"}, meta.Upstream{}, serveKnown},
		{"its other digest", of(0), Want{Kind: File, Digest: "sha512:b"}, meta.Upstream{}, serveKnown},
		{"another digest", of(0), Want{Kind: File, Digest: "sha256:c"}, meta.Upstream{}, askAnew},
		{"its checksums", of(0), Want{Kind: File, Sums: map[string]string{"sha256": "A", "sha512": "b", "sha1": "c"}}, meta.Upstream{}, serveKnown},
		{"another sha256", of(0), Want{Kind: File, Sums: map[string]string{"sha256": "b"}}, meta.Upstream{}, askAnew},
		{"another sha512", of(0), Want{Kind: File, Sums: map[string]string{"sha512": "c"}}, meta.Upstream{}, askAnew},
		{"absent", of(NegativeTTL-1, nothing), Want{}, meta.Upstream{}, sayAbsent},
		{"absent, of a digest", of(NegativeTTL-1, nothing), Want{Digest: "sha256:a"}, meta.Upstream{}, sayAbsent},
		{"absent long ago", of(NegativeTTL, nothing), Want{Kind: File}, meta.Upstream{}, revalidate},
		{"absent, as long as the repository says", of(NegativeTTL, nothing), Want{}, meta.Upstream{NegativeTTL: time.Hour}, sayAbsent},
	} {
		if got := judge(test.known, &test.want, &test.rules, now); got != test.is {
			t.Errorf("%s: %d, want %d", test.name, got, test.is)
		}
	}
}

func TestMeaning(t *testing.T) {
	for status, want := range map[int]outcome{
		200: hasBytes, 404: hasNone, 410: hasNone, 451: withholds, 304: unusable, 204: unusable, 206: unusable, 302: unusable, 400: unusable, 418: unusable,
		408: failing, 429: failing, 500: failing, 502: failing, 503: failing, 504: failing, 401: refuses, 403: refuses,
	} {
		if got := meaning(status, false, false); got != want {
			t.Errorf("%d is %d, want %d", status, got, want)
		}
	}
	if meaning(304, true, false) != unchanged || meaning(401, false, true) != hasNone || meaning(403, false, true) != hasNone || meaning(451, false, true) != withholds {
		t.Error("304 to a condition, or a registry that is mute")
	}
}

func TestPauses(t *testing.T) {
	var all time.Duration
	for attempt := 1; ; attempt++ {
		p, again := pause(attempt, 0)
		if !again {
			if attempt != maxAttempts {
				t.Errorf("%d attempts", attempt)
			}
			break
		}
		all += p
	}
	if all > 5*time.Second {
		t.Errorf("a client waits %s for an upstream that fails", all)
	}
	if p, again := pause(1, 3*time.Second); !again || p != 3*time.Second {
		t.Errorf("what the upstream asks for is %s, %v", p, again)
	}
	if _, again := pause(1, time.Hour); again {
		t.Error("it waits for an hour")
	}
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, " 7 ": 7 * time.Second, "-1": 0, "soon": 0, "Sun, 22 Nov 2026 12:00:30 GMT": 30 * time.Second, "Sun, 22 Nov 2026 11:00:30 GMT": 0,
		"99999999999999": 0,
	} {
		if got := retryAfter(http.Header{"Retry-After": {text}}, now); got != want {
			t.Errorf("%q is %s, want %s", text, got, want)
		}
	}
}

func TestAddresses(t *testing.T) {
	repo := func(format, url string) *meta.Repository {
		return &meta.Repository{Format: format, Upstream: &meta.Upstream{URL: url}}
	}
	for _, test := range []struct {
		repo *meta.Repository
		path string
		want string
		own  bool
	}{
		{repo("npm", "https://registry.npmjs.org"), "@acme%2fdemo", "https://registry.npmjs.org/@acme%2fdemo", true},
		{repo("npm", "https://h/npm/"), "/a?b=c%20d", "https://h/npm/a?b=c%20d", true},
		{repo("go", "https://proxy.golang.org"), "%21acme/x/@v/list", "https://proxy.golang.org/%21acme/x/@v/list", true},
		{repo("pypi", "https://pypi.org"), "https://files.pythonhosted.org/a.whl", "https://files.pythonhosted.org/a.whl", false},
		{repo("pypi", "https://pypi.org"), "https://pypi.org/a.whl", "https://pypi.org/a.whl", true},
		{repo("pypi", "https://pypi.org"), "http://pypi.org/a.whl", "http://pypi.org/a.whl", false},
		{repo("oci", "https://docker.io"), "v2/library/alpine/tags/list", "https://registry-1.docker.io/v2/library/alpine/tags/list", true},
		{repo("oci", "https://ghcr.io"), "v2/a/b/tags/list", "https://ghcr.io/v2/a/b/tags/list", true},
	} {
		u, own, err := address(baseURL(test.repo), test.path)
		if err != nil || u.String() != test.want || own != test.own {
			t.Errorf("%s of %s is %v, %v, %v", test.path, test.repo.Upstream.URL, u, own, err)
		}
	}
}

func TestCredentialIsForOneHost(t *testing.T) {
	repo := meta.Repository{Ref: meta.RepoRef{Tenant: "acme", Name: "cache"}, Upstream: &meta.Upstream{URL: "https://a.example/npm"}}
	secret := []byte(`{"user":"ada","secret":"pw","for":"https://a.example"}`)
	c, err := OpenCredential(&repo, secret, 3)
	if err != nil || c.User != "ada" || c.Secret.Reveal() != "pw" || c.Version != 3 {
		t.Errorf("%+v, %v", c, err)
	}
	for _, url := range []string{"https://evil.example", "http://a.example", "https://a.example:444"} {
		repo.Upstream.URL = url
		if c, err := OpenCredential(&repo, secret, 3); err == nil || c.Secret != "" || strings.Contains(err.Error(), "pw") {
			t.Errorf("%s gets %v, %v", url, c, err)
		}
	}
}

func TestSums(t *testing.T) {
	want := map[string]string{"md5": "900150983CD24FB0D6963F7D28E17F72", "sha384": "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7", "crc32": "0"}
	s := newSums(want)
	fmt.Fprint(s, "a")
	fmt.Fprint(s, "bc")
	if m := s.check(); m != nil || s.size != 3 {
		t.Errorf("%v, %d bytes", m, s.size)
	}
	fmt.Fprint(s, "d")
	if m := s.check(); m == nil {
		t.Error("other bytes have the same sums")
	}
	if m := newSums(map[string]string{"sha1": ""}).check(); m == nil {
		t.Error("an empty sum fits")
	}
}

// TestPromisesAreNotMixed: no promise is written so that it is taken for another, of which
// more is checked.
func TestPromisesAreNotMixed(t *testing.T) {
	repo := &meta.Repository{Format: "npm", Upstream: &meta.Upstream{URL: "https://h"}}
	honest := keyOf(repo, &Want{Sums: map[string]string{"blake2b": "a", "sha256": "b"}})
	for _, sums := range []map[string]string{{"blake2b": "a sha256:b"}, {"blake2b": `a" "sha256":"b`}, {"blake2b:a sha256": "b"}} {
		if keyOf(repo, &Want{Sums: sums}) == honest {
			t.Errorf("%q waits for the same download", sums)
		}
	}
	if keyOf(repo, &Want{Digest: " sha256:b"}) == keyOf(repo, &Want{Sums: map[string]string{"sha256": "b"}}) {
		t.Error("a digest is taken for a checksum")
	}
}

func FuzzChallenge(f *testing.F) {
	for _, seed := range []string{
		`Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/alpine:pull"`,
		`bearer realm=x , scope = "a \"b\"",`, `Basic realm="x"`, "Bearer", "Bearer =", `Bearer realm="`, `Bearer a="b\`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		for name, value := range parseChallenge([]string{line}) {
			if len(name)+len(value) > len(line) {
				t.Errorf("%q is longer than %q", name+value, line)
			}
		}
	})
}

func FuzzFrame(f *testing.F) {
	var b bytes.Buffer
	_ = writeFrame(&b, frame{})
	_ = writeFrame(&b, frame{Err: &meta.WireError{Kind: "not_found", Message: "no"}, Retry: time.Second})
	f.Add(b.Bytes())
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		for {
			got, err := readFrame(r)
			if err != nil {
				return
			}
			if got.Err != nil && got.err() == nil {
				t.Error("an error that is none")
			}
		}
	})
}
