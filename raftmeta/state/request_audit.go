package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// RequestAudit asks servers to look at the bytes that they keep. A server's later
// request takes the place of an earlier one that it has not come to. Result:
// meta.AuditRequest, with its id and time.
//
// Errors: meta.ErrNotFound for a server that is not in the roster, or when there is
// none.
type RequestAudit struct {
	Request meta.AuditRequest `cbor:"1,keyasint,omitempty"` // without ID and At
	// Servers are up to 1,000; none is all.
	Servers []meta.NodeID `cbor:"2,keyasint,omitempty"`
}

const maxAuditServers = 1000

// Type implements Command.
func (RequestAudit) Type() uint16 { return typeRequestAudit }

// Check implements Command.
func (c RequestAudit) Check() error {
	if len(c.Servers) > maxAuditServers {
		return fmt.Errorf("a scrub of %d servers, at most %d, or all: %w", len(c.Servers), maxAuditServers, meta.ErrInvalid)
	}
	return c.Request.Check()
}

func (c RequestAudit) apply(t *tx) (any, error) {
	servers := c.Servers
	if len(servers) == 0 {
		for r, err := range regions(t) {
			if err != nil {
				return nil, err
			}
			servers = append(servers, r.Servers...)
		}
		if len(servers) == 0 {
			return nil, fmt.Errorf("scrub: there is no server: %w", meta.ErrNotFound)
		}
	}
	request := c.Request
	request.ID, request.At = t.index, t.now
	for _, server := range servers {
		if _, err := findServer(t, server); err != nil {
			return nil, err
		}
		a, err := load[meta.Audit](t, keyAudit(server))
		if err != nil {
			return nil, err
		}
		if a == nil {
			a = &meta.Audit{Server: server}
		}
		a.Wanted = request
		t.put(keyAudit(server), a)
	}
	return request, nil
}
