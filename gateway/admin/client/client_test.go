package client

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// What answers may be no shoal at all; the user is told so, not shown a stack of
// JSON errors.
func TestForeignAnswers(t *testing.T) {
	for name, test := range map[string]struct {
		status int
		body   string
		want   string
		kind   error
	}{
		"page of a proxy": {502, "<html>bad gateway</html>", "502", nil},
		"no JSON":         {200, "<html>hello</html>", "does not answer as a shoal gateway", meta.ErrInvalid},
		"too much":        {200, strings.Repeat(" ", maxReplyBytes+1), "over", meta.ErrTooLarge},
		"our refusal":     {409, `{"error":{"kind":"conflict","message":"it still has versions"}}`, "it still has versions", meta.ErrConflict},
		"no credentials":  {401, `{"error":{"kind":"unauthorized","message":"this needs a token"}}`, "SHOAL_TOKEN", nil},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(test.status)
			w.Write([]byte(test.body))
		}))
		c := Client{Base: server.URL}
		_, err := c.Whoami(t.Context())
		if err == nil || !strings.Contains(err.Error(), test.want) || test.kind != nil && !errors.Is(err, test.kind) {
			t.Errorf("%s: %v", name, err)
		}
		server.Close()
		if _, err := c.Whoami(t.Context()); !errors.Is(err, meta.ErrUnavailable) {
			t.Errorf("%s, gone: %v", name, err)
		}
	}
}

func TestNamesAreEscaped(t *testing.T) {
	var path string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { path = r.URL.EscapedPath() }))
	defer server.Close()
	c := Client{Base: server.URL}
	ref := meta.RepoRef{Tenant: "acme", Name: "app"}
	if err := c.SetLabels(t.Context(), ref, "a/b c", "sha256:x", nil); err != nil {
		t.Fatal(err)
	}
	if want := "/api/v1/repositories/acme/app/packages/a%2Fb%20c/versions/sha256:x/labels"; path != want {
		t.Errorf("%s, want %s", path, want)
	}
}
