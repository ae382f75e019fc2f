package rpm_test

import (
	"testing"

	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocols/rpm"
	"github.com/shoal-registry/shoal/gateway/upstream/upstreamtest"
)

// What web servers call the encoding of an index is part of its name: it is not unpacked.
func TestProxiedIndexesStayPacked(t *testing.T) {
	s := start(t, catalogtest.Options{})
	registry := upstreamtest.NewRegistry(t)
	s.Proxy(t, "acme/proxy", rpm.Format, registry.URL)
	const path = "repodata/comps.xml.gz"
	for _, encoding := range []string{"gzip", "x-gzip"} {
		registry.Put(encoding+"/"+path, []byte("packed"), "Content-Encoding: "+encoding)
		if got := s.in("acme/proxy").get(encoding + "/" + path); string(got) != "packed" {
			t.Errorf("%s: %q", encoding, got)
		}
	}
}
