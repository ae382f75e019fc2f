package pypi_test

import (
	"testing"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/protocols/pypi"
	"github.com/shoal-registry/shoal/gateway/rendered"
	"github.com/shoal-registry/shoal/gateway/upstream"
)

func build(t testing.TB, c *catalog.Catalog) *pypi.Protocol {
	t.Helper()
	e, err := upstream.New(upstream.Config{Catalog: c})
	if err != nil {
		t.Fatal(err)
	}
	pages, err := rendered.New(rendered.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return pypi.New(c, e, pages)
}

func start(t testing.TB, o catalogtest.Options) *index {
	return &index{catalogtest.New(t, o, func(c *catalog.Catalog) []protocol.Protocol { return []protocol.Protocol{build(t, c)} }), t}
}
