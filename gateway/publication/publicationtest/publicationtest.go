// Package publicationtest runs the builder of publications beside a node of catalogtest.
// Start at Start. The builder's goroutines end with the test.
package publicationtest

import (
	"context"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/publication"
)

// Start runs a builder of the formats until the test ends.
func Start(t testing.TB, s *catalogtest.Stack, formats ...publication.Format) *publication.Builder {
	t.Helper()
	b, err := publication.New(publication.Config{
		Self: catalogtest.Node, Formats: formats, Metadata: s.Metadata, Commands: s.Metadata, Catalog: s.Catalog,
		Open: s.Metadata.Key.Open, Dir: t.TempDir(), Every: 20 * time.Millisecond, KeyBits: 2048,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("builder: %v", err)
		}
	})
	return b
}
