package gomod_test

import (
	"testing"

	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
)

// Who sends a .mod or .info slowly holds no memory of others.
func TestSlowModHoldsNothing(t *testing.T) {
	m := start(t, catalogtest.Options{})
	m.expect(m.put("example.com/lib", "v1.0.0", "x"), 201)
	for ext, text := range map[string]string{"mod": "module example.com/lib\n\ngo 1.21\n", "info": `{"Version":"v1.0.0"}`} {
		half := len(text) / 2
		if status := m.Dawdle(t, "PUT", "/go/acme/go/example.com/lib/@v/v1.0.0."+ext, text[:half], text[half:]); status != 204 {
			t.Errorf("a slow .%s is answered %d", ext, status)
		}
	}
}
