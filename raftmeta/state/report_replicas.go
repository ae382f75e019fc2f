package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// ReportReplicas is a server's word on its own copies; of each replica it reads
// Root, Server, State and Reason. A region's demand is verified once min(2, servers
// in the region) of them have verified, and pending again when fewer do.
//
// Errors: meta.ErrNotFound when the server is not in the roster.
type ReportReplicas struct {
	Replicas []meta.Replica `cbor:"1,keyasint,omitempty"` // 1 to 1,000
}

// MaxReportedReplicas bounds one report.
const MaxReportedReplicas = 1000

// Type implements Command.
func (ReportReplicas) Type() uint16 { return typeReportReplicas }

// Check implements Command.
func (c ReportReplicas) Check() error {
	if n := len(c.Replicas); n == 0 || n > MaxReportedReplicas {
		return fmt.Errorf("report of %d replicas, use 1 to %d: %w", n, MaxReportedReplicas, meta.ErrInvalid)
	}
	for _, r := range c.Replicas {
		switch {
		case r.Root.IsZero() || r.Server == "":
			return fmt.Errorf("reported replica without root or server: %w", meta.ErrInvalid)
		case r.State != meta.ReplicaPending && r.State != meta.ReplicaVerified && r.State != meta.ReplicaFailed:
			return fmt.Errorf("reported replica %s: state %q: %w", r.Root, r.State, meta.ErrInvalid)
		case len(r.Reason) > 1024:
			return fmt.Errorf("reported replica %s: reason of %d bytes, at most 1024: %w", r.Root, len(r.Reason), meta.ErrInvalid)
		}
	}
	return nil
}
