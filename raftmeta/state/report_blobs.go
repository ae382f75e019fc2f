package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// ReportBlobs is a server's word on its blob store. It changes nothing when it was
// said before. What a failing store holds does not count from then on, until the
// server has looked what is left (ReportChecked).
//
// Errors: meta.ErrNotFound when the server is not in the roster.
type ReportBlobs struct {
	Server meta.NodeID     `cbor:"1,keyasint,omitempty"`
	State  meta.BlobsState `cbor:"2,keyasint,omitempty"`
	Why    string          `cbor:"3,keyasint,omitempty"`
}

// Type implements Command.
func (ReportBlobs) Type() uint16 { return typeReportBlobs }

// Check implements Command.
func (c ReportBlobs) Check() error {
	switch {
	case c.Server == "":
		return fmt.Errorf("report of a blob store: no server: %w", meta.ErrInvalid)
	case c.State != meta.BlobsOK && c.State != meta.BlobsLow && c.State != meta.BlobsFailing:
		return fmt.Errorf("report of the blob store of %s: state %q: %w", c.Server, c.State, meta.ErrInvalid)
	}
	return checkHealthText("report of the blob store of "+string(c.Server), c.Why)
}

func (c ReportBlobs) apply(t *tx) (any, error) {
	n, err := findServer(t, c.Server)
	if err != nil {
		return nil, err
	}
	h, err := healthOf(t, n.Region)
	if err != nil {
		return nil, err
	}
	if known := h.Server(c.Server); known.Blobs == c.State && known.Why == c.Why {
		return nil, nil
	}
	s := ofServer(h, c.Server)
	if s.Blobs != c.State {
		s.Blobs, s.BlobsSince = c.State, t.now
		if c.State == meta.BlobsFailing {
			s.Unchecked = t.index
		}
	}
	s.Why = c.Why
	text := string(c.State)
	if c.State == meta.BlobsOK {
		text = "ok"
	}
	if c.Why != "" {
		text += ": " + c.Why
	}
	return nil, t.putHealth(h, []meta.IncidentEvent{{Kind: meta.EventBlobs, Server: c.Server, Text: text}})
}
