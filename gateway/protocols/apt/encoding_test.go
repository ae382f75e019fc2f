package apt_test

import (
	"testing"

	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocols/apt"
	"github.com/shoal-registry/shoal/gateway/upstream/upstreamtest"
)

// What web servers call the encoding of an index is part of its name: it is not unpacked.
func TestProxiedIndexesStayPacked(t *testing.T) {
	s := start(t, catalogtest.Options{})
	registry := upstreamtest.NewRegistry(t)
	s.Proxy(t, "acme/proxy", apt.Format, registry.URL)
	const path = "dists/stable/main/binary-amd64/Packages.gz"
	for _, encoding := range []string{"gzip", "x-gzip"} {
		registry.Put(encoding+"/"+path, []byte("packed"), "Content-Encoding: "+encoding)
		if got := s.in("acme/proxy").get(encoding + "/" + path); string(got) != "packed" {
			t.Errorf("%s: %q", encoding, got)
		}
	}
}
