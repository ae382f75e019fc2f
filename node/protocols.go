package node

import (
	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/protocols/generic"
	"github.com/shoal-registry/shoal/gateway/protocols/oci"
)

// protocols lists what every gateway speaks. A new protocol is a folder of
// gateway/protocols and a line here.
func protocols(names *catalog.Catalog) []protocol.Protocol {
	return []protocol.Protocol{
		oci.New(names),
		generic.New(names),
	}
}

// formats names those of them that keep repositories.
func formats() []string {
	var names []string
	for _, p := range protocols(nil) {
		names = append(names, p.Format())
	}
	return names
}
