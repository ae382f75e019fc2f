package state

import (
	"fmt"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// RevokePrincipal voids all credentials that were issued to a principal until now;
// what is issued later counts. Result: meta.Revocation.
//
// Errors: meta.ErrInvalid for a name without kind, for nodes and hosts, which are
// removed, and for the bootstrap administrator, whose token has no successor.
type RevokePrincipal struct {
	Principal string `cbor:"1,keyasint,omitempty"`
	Reason    string `cbor:"2,keyasint,omitempty"`
}

// Type implements Command.
func (RevokePrincipal) Type() uint16 { return typeRevokePrincipal }

// Check implements Command.
func (c RevokePrincipal) Check() error {
	kind, id, ok := strings.Cut(c.Principal, ":")
	switch {
	case !ok || kind == "" || id == "" || len(c.Principal) > maxPrincipalBytes:
		return fmt.Errorf("revoke principal %q: write kind:id, like user:ada or robot:acme/ci: %w", c.Principal, meta.ErrInvalid)
	case kind == "node" || kind == "host":
		return fmt.Errorf("revoke principal %s: a node is taken out with `shoal node remove %s`: %w", c.Principal, id, meta.ErrInvalid)
	case kind == "admin":
		return fmt.Errorf("revoke principal %s: its token is the cluster's way back in and cannot be voided: %w", c.Principal, meta.ErrInvalid)
	}
	return checkReason("revoke principal "+c.Principal, c.Reason)
}

func (c RevokePrincipal) apply(t *tx) (any, error) {
	return t.revokePrincipal(c.Principal, c.Reason), nil
}
