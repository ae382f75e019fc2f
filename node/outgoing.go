package node

import (
	"net/http"

	"github.com/shoal-registry/shoal/gateway/outbound"
)

// outgoing makes a client for requests to addresses that people named, which
// reaches what is reserved only where the operator said so.
func (n *Node) outgoing(r outbound.Rules) *http.Client {
	r.Allow = n.cfg.OutgoingAllow
	c := outbound.Client(r)
	n.closes(func() error {
		c.CloseIdleConnections()
		return nil
	})
	return c
}
