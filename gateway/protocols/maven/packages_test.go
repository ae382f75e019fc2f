package maven_test

import (
	"errors"
	"testing"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/protocols/maven"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func TestParseReference(t *testing.T) {
	p := maven.New(nil, nil, nil)
	for text, want := range map[string]protocol.Reference{
		"/org.example:demo:1.0":                   {Package: "org.example:demo", Version: "1.0"},
		"/org.example:demo:1.1-20261122.133443-1": {Package: "org.example:demo", Version: "1.1-20261122.133443-1"},
	} {
		if got, err := p.ParseReference(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "/", "/demo:1.0", "org.example:demo:1.0", "/org.example:demo", "/a:b:c:d", "/a/b:c:d", "/..:b:1", "/a:b:"} {
		if got, err := p.ParseReference(text); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func TestClosure(t *testing.T) {
	c := start(t, catalogtest.Options{})
	c.release("demo", "1.0", "jar")
	v, _, err := c.Catalog.Version(t.Context(), catalog.Caller{}, catalog.Package{Repo: repo, Name: "org.example:demo"}, "1.0")
	if err != nil || v.State != meta.StateClosed {
		t.Fatalf("%+v, %v", v, err)
	}
	blobs, err := protocolOf(t, c.Catalog).Closure(t.Context(), meta.Principal{}, v, "linux/amd64")
	if err != nil || len(blobs) != 2 {
		t.Errorf("%+v, %v", blobs, err)
	}
	v.Name = "2.0"
	if _, err := protocolOf(t, c.Catalog).Closure(t.Context(), meta.Principal{}, v, ""); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("what is not there: %v", err)
	}
}
