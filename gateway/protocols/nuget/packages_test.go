package nuget

import (
	"errors"
	"testing"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/upstream/upstreamtest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func catalogPackage(id string) catalog.Package {
	return catalog.Package{Repo: upstreamtest.Ref("acme/nuget"), Name: id}
}

func TestParseReference(t *testing.T) {
	p := New(nil, nil, nil)
	for text, want := range map[string]protocol.Reference{
		"/Acme.Demo@1.02": {Package: "acme.demo", Version: "1.2.0"},
		"/a@1.0.0-B+c":    {Package: "a", Version: "1.0.0-b"},
	} {
		if got, err := p.ParseReference(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "/", "/a", "a@1", "/a@", "/a@x", "/../x@1", "@1"} {
		if got, err := p.ParseReference(text); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func TestClosure(t *testing.T) {
	f := start(t, catalogtest.Options{})
	f.push("a", "1.0.0", "", 201)
	v, _, err := f.Catalog.Version(t.Context(), upstreamtest.By(), catalogPackage("a"), "1.0.0")
	if err != nil {
		t.Fatal(err)
	}
	blobs, err := f.protocol.Closure(t.Context(), upstreamtest.By().Who, v, "linux/amd64")
	if err != nil || len(blobs) != 1 || blobs[0].Digest != v.Digest {
		t.Errorf("%+v, %v", blobs, err)
	}
}
