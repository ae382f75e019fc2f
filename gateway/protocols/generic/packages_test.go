package generic_test

import (
	"errors"
	"testing"

	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/protocols/generic"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

func TestParseReference(t *testing.T) {
	p := generic.New(nil, nil)
	d := string(digest.FromBytes([]byte("x")))
	for text, want := range map[string]protocol.Reference{
		"/a/b:1.bin":      {Package: "a/b:1.bin", Alias: "current"},
		"/a@b":            {Package: "a@b", Alias: "current"},
		"/a/b.bin@" + d:   {Package: "a/b.bin", Version: d},
		"/@sha256:x@" + d: {Package: "@sha256:x", Version: d},
	} {
		if got, err := p.ParseReference(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "/", ":1", "/../x", "/x@sha256:1", "/a/"} {
		if got, err := p.ParseReference(text); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func TestClosure(t *testing.T) {
	f := start(t, catalogtest.Options{})
	f.do("PUT", "a.bin", "content")
	repo := meta.RepoRef{Tenant: "acme", Name: "files"}
	v := meta.Version{Repo: repo, Package: "a.bin", Digest: digest.FromBytes([]byte("content"))}
	blobs, err := generic.New(f.Catalog, nil).Closure(t.Context(), meta.Principal{}, v, "linux/amd64")
	if err != nil || len(blobs) != 1 || blobs[0].Digest != v.Digest {
		t.Errorf("%+v, %v", blobs, err)
	}
	v.Digest = digest.FromBytes([]byte("other"))
	if _, err := generic.New(f.Catalog, nil).Closure(t.Context(), meta.Principal{}, v, ""); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("what is not there: %v", err)
	}
}
