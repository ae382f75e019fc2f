package oci_test

import (
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
)

// Who sends a manifest slowly holds no memory of others, short or long.
func TestSlowManifestHoldsNothing(t *testing.T) {
	r := start(t, catalogtest.Options{})
	for tag, comment := range map[string]string{"short": "x", "long": strings.Repeat("long ", 400_000)} {
		b := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[],"comment":"` + comment + `"}`
		half := len(b) / 2
		if status := r.Dawdle(t, "PUT", "/v2/acme/app/manifests/"+tag, b[:half], b[half:]); status != 201 {
			t.Errorf("a slow manifest of %d bytes is answered %d", len(b), status)
		}
		if a := r.expect(r.do("GET", "/v2/acme/app/manifests/"+tag, nil), 200); string(a.body) != b {
			t.Errorf("a manifest of %d bytes is not what was sent", len(b))
		}
	}
}
