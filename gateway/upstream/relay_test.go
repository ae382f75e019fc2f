package upstream_test

import (
	"errors"
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
)

// TestRelay: a question goes to the upstream as it is, each time, and its answer is kept
// by nobody.
func TestRelay(t *testing.T) {
	registry := upstreamtest.NewRegistry(t)
	registry.Handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Method != http.MethodPost {
			http.NotFound(w, r)
			return
		}
		fmt.Fprintf(w, "%s %s %s", r.URL, r.Header.Get("Content-Type"), body)
	}))
	s := upstreamtest.New(t, catalogtest.Options{Content: catalogtest.NewMemory()}, func(*catalogtest.Stack, *upstream.Engine) []protocol.Protocol { return nil })
	proxy := s.Proxy(t, "acme/proxy", "npm", registry.URL+"/base")
	hosted := s.Hosted(t, "acme/hosted", "npm")
	ask := func(repo *meta.Repository, q upstream.Relayed) (string, error) {
		b, err := s.Engine.Relay(upstreamtest.Context(t), repo, q)
		return string(b), err
	}
	post := upstream.Relayed{Method: http.MethodPost, Path: "-/audit?x=1", ContentType: "application/json", Body: []byte("{}"), MaxBytes: 1000}
	for range 2 {
		if got, err := ask(&proxy, post); err != nil || got != "/base/-/audit?x=1 application/json {}" {
			t.Fatalf("answered is %q, %v", got, err)
		}
	}
	if n := registry.Asked("base/-/audit?x=1"); n != 2 {
		t.Errorf("asked %d times, want twice", n)
	}
	if _, err := ask(&hosted, post); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("a hosted repository: %v", err)
	}
	get := post
	get.Method, get.Body = http.MethodGet, nil
	if _, err := ask(&proxy, get); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("what is not there: %v", err)
	}
	small := post
	small.MaxBytes = 5
	if _, err := ask(&proxy, small); !errors.Is(err, meta.ErrTooLarge) {
		t.Errorf("a long answer: %v", err)
	}
	for _, status := range []int{429, 503} {
		registry.Fail(status, "7")
		if _, err := ask(&proxy, post); !errors.Is(err, meta.ErrUnavailable) || !strings.Contains(err.Error(), fmt.Sprint(status)) {
			t.Errorf("%d: %v", status, err)
		}
	}
	registry.Fail(418, "")
	if _, err := ask(&proxy, post); !errors.Is(err, protocol.ErrUpstream) {
		t.Errorf("418: %v", err)
	}
	registry.Fail(0, "")
	registry.Cut(true)
	if _, err := ask(&proxy, post); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("cut off: %v", err)
	}
}
