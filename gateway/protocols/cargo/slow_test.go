package cargo_test

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
)

// Who sends the metadata of a crate slowly, or the crate behind it, holds no memory of others.
func TestSlowPublishHoldsNothing(t *testing.T) {
	c := start(t, catalogtest.Options{})
	large := make([]byte, 16<<20) // more than sockets hold: what comes before its end has been read
	_, _ = rand.NewChaCha8([32]byte{1}).Read(large)
	about := strings.Replace(said("demo", "1.0.0"), `"deps"`, `"readme":"`+strings.Repeat("read me", 20_000)+`","deps"`, 1)
	body := framed(about, crate(t, "demo", "1.0.0", string(large)))
	for _, first := range []int{100, 100 << 10, len(about) + 15<<20} {
		// The same crate twice is the same version.
		if status := c.Dawdle(t, "PUT", "/cargo/acme/cargo/api/v1/crates/new", body[:first], body[first:]); status != 200 {
			t.Errorf("a publish that stopped after %d bytes is answered %d", first, status)
		}
	}
	if a := c.do("GET", "api/v1/crates/demo/1.0.0/download", ""); a.StatusCode != 200 || a.ContentLength < 16<<20 {
		t.Errorf("the crate answers %d with %d bytes", a.StatusCode, a.ContentLength)
	}
}
