package upstream_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/gateway/upstream/upstreamtest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// TestAgentsNameNoAddresses: a stolen agent does not have a server get what it likes into
// a repository of others: only what is below the upstream's URL, and what the documents
// of that upstream name.
func TestAgentsNameNoAddresses(t *testing.T) {
	s := upstreamtest.New(t, catalogtest.Options{Content: catalogtest.NewMemory()}, func(*catalogtest.Stack, *upstream.Engine) []protocol.Protocol { return nil })
	own, other := upstreamtest.NewRegistry(t), upstreamtest.NewRegistry(t)
	repo := s.Proxy(t, "acme/public", "npm", own.URL+"/base/", func(u *meta.Upstream) { u.Block = []string{"evil"} })
	for _, path := range []string{"base/doc", "base/file", "based/secret", "secret"} {
		own.Put(path, []byte("own"))
	}
	other.Put("malware", []byte("malware"))
	other.Put("named", []byte("named"))
	refused := func(at string, w upstream.Want) {
		t.Helper()
		before := own.Total() + other.Total()
		w.Path = at
		err := s.Lie(t, &repo, w)
		if !errors.Is(err, meta.ErrUnavailable) || errors.Is(err, upstream.ErrUnreachable) {
			t.Errorf("%s: %v", at, err)
		}
		if after := own.Total() + other.Total(); after != before {
			t.Errorf("%s was asked for", at)
		}
		if _, _, err := s.Catalog.Fetched(t.Context(), upstreamtest.By(), repo.Ref, at, ""); !errors.Is(err, meta.ErrNotFound) {
			t.Errorf("%s is kept: %v", at, err)
		}
	}
	taken := func(at string, w upstream.Want) {
		t.Helper()
		if w.Path = at; s.Lie(t, &repo, w) != nil {
			t.Errorf("%s: %v", at, s.Lie(t, &repo, w))
		}
	}
	file := upstream.Want{Kind: upstream.File, Package: "demo", Version: "1.0.0"}
	// Without one who knows what documents name.
	for _, at := range []string{other.URL + "/malware", other.URL + "/named", own.URL + "/secret", own.URL + "/based/secret", own.URL, "http://"} {
		if at != "http://" {
			refused(at, file)
		} else if err := s.Lie(t, &repo, upstream.Want{Path: at}); err == nil {
			t.Errorf("%s is answered", at)
		}
	}
	taken("doc", upstream.Want{})
	taken(own.URL+"/base/file", file)
	// With one, what he says.
	s.Engine.NamedBy("npm", func(_ context.Context, by catalog.Caller, r *meta.Repository, w *upstream.Want) (bool, error) {
		if by.Who.Role != meta.RoleServer || r.Ref != repo.Ref {
			t.Errorf("asked as %v about %s", by.Who, r.Ref)
		}
		switch w.Package {
		case "absent":
			return false, meta.ErrNotFound
		case "broken":
			return false, protocol.ErrUpstream
		}
		return w.Path == other.URL+"/named", nil
	})
	refused(other.URL+"/malware", file)
	refused(own.URL+"/secret", file)
	refused(other.URL+"/malware", upstream.Want{Package: "absent"})
	if err := s.Lie(t, &repo, upstream.Want{Path: other.URL + "/malware", Package: "broken"}); !errors.Is(err, protocol.ErrUpstream) {
		t.Errorf("a document that cannot be read: %v", err)
	}
	if err := s.Lie(t, &repo, upstream.Want{Path: other.URL + "/named", Package: "evil"}); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("a blocked package: %v", err)
	}
	taken(other.URL+"/named", file)
	// What is kept is told without another look.
	s.Engine.NamedBy("npm", nil)
	taken(other.URL+"/named", file)
	refused(other.URL+"/malware", file)
	// A server writes the log itself, its word is taken.
	q := upstream.Question{Repo: repo.Ref, Want: upstream.Want{Path: other.URL + "/malware", Kind: upstream.File}}
	if _, err := s.AskAs(upstreamtest.Context(t), t, meta.Principal{Node: "b", Role: meta.RoleServer}, q, nil); err != nil {
		t.Errorf("a server: %v", err)
	}
}

// TestNamesAreLookedUpOnceAtATime: of many agents that want one new file at once only one
// has the document read, which may have many megabytes.
func TestNamesAreLookedUpOnceAtATime(t *testing.T) {
	s := upstreamtest.New(t, catalogtest.Options{Content: catalogtest.NewMemory()}, func(*catalogtest.Stack, *upstream.Engine) []protocol.Protocol { return nil })
	own, other := upstreamtest.NewRegistry(t), upstreamtest.NewRegistry(t)
	repo := s.Proxy(t, "acme/public", "npm", own.URL)
	other.Put("named", []byte("named"))
	var reading atomic.Int32
	var once sync.Once
	second := make(chan struct{})
	s.Engine.NamedBy("npm", func(context.Context, catalog.Caller, *meta.Repository, *upstream.Want) (bool, error) {
		defer reading.Add(-1)
		if reading.Add(1) > 1 {
			once.Do(func() { close(second) })
		}
		select {
		case <-second:
			return false, errors.New("two read it at once")
		case <-time.After(50 * time.Millisecond): // in which another would come
			return true, nil
		}
	})
	var agents sync.WaitGroup
	for range 8 {
		agents.Go(func() {
			if err := s.Lie(t, &repo, upstream.Want{Path: other.URL + "/named", Kind: upstream.File, Package: "demo"}); err != nil {
				t.Error(err)
			}
		})
	}
	agents.Wait()
}
