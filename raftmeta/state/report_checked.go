package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// ReportChecked says that a server has looked whether the copies that it is said to
// have are there, and has reported those that are not (ReportReplicas). What is there
// counts again, unless its records became doubtful anew meanwhile.
//
// Errors: meta.ErrNotFound when the server is not in the roster.
type ReportChecked struct {
	Server meta.NodeID `cbor:"1,keyasint,omitempty"`
	// Unchecked is ServerHealth.Unchecked as it was when the server began to look.
	Unchecked uint64 `cbor:"2,keyasint,omitempty"`
	Copies    uint64 `cbor:"3,keyasint,omitempty"` // that it looked at
	Missing   uint64 `cbor:"4,keyasint,omitempty"` // of them
}

// Type implements Command.
func (ReportChecked) Type() uint16 { return typeReportChecked }

// Check implements Command.
func (c ReportChecked) Check() error {
	if c.Server == "" || c.Missing > c.Copies {
		return fmt.Errorf("report of checked copies: server %q, %d missing of %d: %w", c.Server, c.Missing, c.Copies, meta.ErrInvalid)
	}
	return nil
}

func (c ReportChecked) apply(t *tx) (any, error) {
	n, err := findServer(t, c.Server)
	if err != nil {
		return nil, err
	}
	h, err := healthOf(t, n.Region)
	if err != nil {
		return nil, err
	}
	if h.Server(c.Server).Unchecked != c.Unchecked {
		return nil, nil
	}
	s := ofServer(h, c.Server)
	s.Unchecked, s.Checked, s.Copies, s.Missing = 0, t.now, c.Copies, c.Missing
	return nil, t.putHealth(h, []meta.IncidentEvent{{Kind: meta.EventChecked, Server: c.Server, Copies: c.Copies, Missing: c.Missing}})
}
