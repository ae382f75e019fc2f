package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// AdmitNode consumes one use of a join token and adds the node to the roster with
// the token's role, region and read patterns. The first server of an unknown
// region creates the region, as primary. A node that is in the roster already
// joins again without a use. Result: meta.Node.
//
// Errors: meta.ErrDenied for a token that is unknown, expired, used up, or of
// another role or region.
type AdmitNode struct {
	// TokenSecretHash is the hex sha256 of the secret: meta.JoinToken.ID.
	TokenSecretHash string    `cbor:"1,keyasint,omitempty"`
	Node            meta.Node `cbor:"2,keyasint,omitempty"`
}

// Type implements Command.
func (AdmitNode) Type() uint16 { return typeAdmitNode }

// Check implements Command.
func (c AdmitNode) Check() error {
	if c.TokenSecretHash == "" {
		return fmt.Errorf("admit node %s: no token: %w", c.Node.ID, meta.ErrInvalid)
	}
	return checkNode(c.Node)
}

// Bounds of a node record: every agent keeps those of its region.
const (
	maxNodeBytes = 128 // of one text
	maxNodeAddrs = 16
	maxPatterns  = 64
)

func checkNode(n meta.Node) error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("node %s: %s: %w", n.ID, fmt.Sprintf(format, args...), meta.ErrInvalid)
	}
	if n.ID == "" || len(n.ID) > maxNodeBytes {
		return fail("an id has 1 to %d bytes", maxNodeBytes)
	}
	if n.Role != meta.RoleServer && n.Role != meta.RoleAgent {
		return fail("role %q: use server or agent", n.Role)
	}
	if err := meta.CheckRegion(n.Region); err != nil {
		return err
	}
	if len(n.Swarm) > maxNodeAddrs || len(n.Raft) > maxNodeAddrs || len(n.Read) > maxPatterns {
		return fail("at most %d addresses a host and %d patterns", maxNodeAddrs, maxPatterns)
	}
	for _, texts := range [][]string{n.Swarm, n.Raft, {n.Zone, n.Rack}} {
		for _, s := range texts {
			if len(s) > maxNodeBytes {
				return fail("%q is over %d bytes", s, maxNodeBytes)
			}
		}
	}
	if len(n.Gateway) > 260 || len(n.Seal) > 1024 {
		return fail("gateway or seal is too long")
	}
	for _, p := range n.Read {
		if err := meta.CheckPattern(p); err != nil {
			return err
		}
	}
	return nil
}
