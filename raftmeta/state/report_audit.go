package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// ReportAudit is a server's word on how far it is with looking at its own bytes.
//
// Errors: meta.ErrNotFound when the server is not in the roster.
type ReportAudit struct {
	Server meta.NodeID      `cbor:"1,keyasint,omitempty"`
	Report meta.AuditReport `cbor:"2,keyasint,omitempty"`
}

// Type implements Command.
func (ReportAudit) Type() uint16 { return typeReportAudit }

// Check implements Command.
func (c ReportAudit) Check() error {
	if c.Server == "" {
		return fmt.Errorf("audit of no server: %w", meta.ErrInvalid)
	}
	return nil
}

func (c ReportAudit) apply(t *tx) (any, error) {
	if _, err := findServer(t, c.Server); err != nil {
		return nil, err
	}
	a, err := load[meta.Audit](t, keyAudit(c.Server))
	if err != nil {
		return nil, err
	}
	if a == nil {
		a = &meta.Audit{Server: c.Server}
	}
	a.Report = c.Report
	t.put(keyAudit(c.Server), a)
	return nil, nil
}
