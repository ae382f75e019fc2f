package oci_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	godigest "github.com/opencontainers/go-digest"

	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/protocols/oci"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

func TestParseReference(t *testing.T) {
	p := oci.New(nil, nil)
	d := string(digest.FromBytes([]byte("x")))
	for text, want := range map[string]protocol.Reference{
		"":                   {Package: "_", Alias: "latest"},
		":1":                 {Package: "_", Alias: "1"},
		"@" + d:              {Package: "_", Version: d},
		"/api":               {Package: "api", Alias: "latest"},
		"/team/api:2.0-rc.1": {Package: "team/api", Alias: "2.0-rc.1"},
		"/api:1@" + d:        {Package: "api", Version: d},
	} {
		if got, err := p.ParseReference(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"/", "/API:1", "/api:", "/api@sha256:1", "/api@", "/a//b", "/api:-x"} {
		if got, err := p.ParseReference(text); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

// A closure is what a client of the platform pulls, and no more.
func TestClosure(t *testing.T) {
	r := start(t, catalogtest.Options{})
	p := oci.New(r.Catalog, nil)
	push := func(seed string) image {
		i := makeImage(t, seed, 2, godigest.SHA256, nil)
		r.pushBlobs(i)
		r.expect(r.do("PUT", "manifests/"+string(i.digest), i.manifest, header("Content-Type", mediaImage)), 201)
		return i
	}
	on := func(i image, platform obj) obj {
		d := i.descriptor()
		if platform != nil {
			d["platform"] = platform
		}
		return d
	}
	index := func(tag string, entries ...obj) digest.Digest {
		b := encode(t, obj{"schemaVersion": 2, "mediaType": mediaIndex, "manifests": entries})
		r.expect(r.do("PUT", "manifests/"+tag, b, header("Content-Type", mediaIndex)), 201)
		return digest.FromBytes(b)
	}
	amd, arm, v7, seal := push("amd"), push("arm"), push("v7"), push("attestation")
	all := index("all",
		on(amd, obj{"os": "linux", "architecture": "amd64"}),
		on(arm, obj{"os": "linux", "architecture": "arm64", "variant": "v8"}),
		on(v7, obj{"os": "linux", "architecture": "arm", "variant": "v7"}),
		on(seal, obj{"os": "unknown", "architecture": "unknown"}),
	)
	nested := index("nested", obj{"mediaType": mediaIndex, "digest": all, "size": len(r.do("GET", "manifests/all", nil).body)})
	foreign := []byte("not here")
	partly := makeImage(t, "partly", 1, godigest.SHA256, nil)
	r.pushBlobs(partly)
	doc := strings.Replace(string(partly.manifest), `"layers":[`, fmt.Sprintf(`"layers":[{"mediaType":%q,"digest":%q,"size":%d},`, mediaForeign, digest.FromBytes(foreign), len(foreign)), 1)
	partly.digest = digest.FromBytes([]byte(doc))
	r.expect(r.do("PUT", "manifests/partly", []byte(doc), header("Content-Type", mediaImage)), 201)

	content := func(i image, more ...digest.Digest) []digest.Digest {
		for d := range i.blobs {
			more = append(more, d)
		}
		return append(more, i.digest)
	}
	for name, c := range map[string]struct {
		version  digest.Digest
		platform string
		want     []digest.Digest
	}{
		"an image":               {amd.digest, "linux/arm64", content(amd)},
		"of an index, one":       {all, "linux/amd64", content(amd, all)},
		"arm64 is v8":            {all, "linux/arm64", content(arm, all)},
		"and the other way":      {all, "linux/arm64/v8", content(arm, all)},
		"another variant":        {all, "linux/arm/v6", nil},
		"its own variant":        {all, "linux/arm/v7", content(v7, all)},
		"nothing for it":         {all, "windows/amd64", nil},
		"an index in an index":   {nested, "linux/amd64", content(amd, all, nested)},
		"a layer not stored":     {partly.digest, "linux/amd64", content(partly)},
		"everything, everywhere": {all, "", slices.Concat(content(amd, all), content(arm), content(v7), content(seal))},
	} {
		v, _, err := raftmeta.Ask(t.Context(), r.Metadata, meta.Local, state.GetVersion{
			Repo: meta.RepoRef{Tenant: "acme", Name: "app"}, Package: "api", Version: string(c.version),
		})
		if err != nil {
			t.Fatal(err)
		}
		blobs, err := p.Closure(t.Context(), meta.Principal{Name: "host:a"}, v, c.platform)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var got []digest.Digest
		for _, b := range blobs {
			got = append(got, b.Digest)
		}
		slices.Sort(got)
		slices.Sort(c.want)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %d blobs %v, want %d %v", name, len(got), got, len(c.want), c.want)
		}
	}
}
