package pypi_test

import (
	"testing"

	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/protocols/pypi"
	"github.com/shoal-registry/shoal/gateway/rendered"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/gateway/upstream/upstreamtest"
)

// index is a client of a running node.
type index struct {
	*upstreamtest.Stack
	t        testing.TB
	protocol *pypi.Protocol
}

func start(t testing.TB, o catalogtest.Options) *index {
	t.Helper()
	x := &index{t: t}
	x.Stack = upstreamtest.New(t, o, func(s *catalogtest.Stack, e *upstream.Engine) []protocol.Protocol {
		pages, err := rendered.New(rendered.Config{Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		x.protocol = pypi.New(s.Catalog, pages, e)
		return []protocol.Protocol{x.protocol}
	})
	return x
}
