package meta

import (
	"fmt"
	"strings"
	"time"
)

// AccessHead is how far the revocation of rights has come: all that was taken back up
// to Index is in Revision.
type AccessHead struct {
	Epoch uint64 `cbor:"1,keyasint,omitempty" json:"epoch"`
	Index uint64 `cbor:"2,keyasint,omitempty" json:"index"`
	// Revision is the log index of the last command that took a right back, 0 when none
	// ever did.
	Revision uint64 `cbor:"3,keyasint,omitempty" json:"revision"`
}

// Before reports whether h lies behind o.
func (h AccessHead) Before(o AccessHead) bool {
	return h.Epoch < o.Epoch || h.Epoch == o.Epoch && h.Index < o.Index
}

// Revocation voids what was issued to a principal, or within a tenant, until At.
type Revocation struct {
	At     Time   `cbor:"1,keyasint,omitempty" json:"at"`
	By     string `cbor:"2,keyasint,omitempty" json:"by"`
	Reason string `cbor:"3,keyasint,omitempty" json:"reason,omitempty"`
}

// MaxDegradedRead bounds Repository.DegradedReadMax.
const MaxDegradedRead = 7 * 24 * time.Hour

// MaxNodeTenants bounds Node.Tenants.
const MaxNodeTenants = 64

// CheckTenantPattern checks a pattern of tenants: a name, or the beginning of one
// and *; `*` is all.
func CheckTenantPattern(p string) error {
	prefix, open := strings.CutSuffix(p, "*")
	if open && prefix == "" {
		return nil
	}
	if open {
		prefix = strings.TrimSuffix(prefix, "-")
	}
	if err := CheckTenant(TenantName(prefix)); err != nil {
		return fmt.Errorf("pattern %q: write a tenant, or its beginning and *: %w", p, ErrInvalid)
	}
	return nil
}

// MayHold reports whether the node may have what belongs to a tenant: its names, its
// bytes, and who else has them. Servers and nodes without patterns may have all.
func (n Node) MayHold(t TenantName) bool {
	if !n.Narrowed() {
		return true
	}
	for _, p := range n.Tenants {
		if matchPart(p, string(t)) {
			return true
		}
	}
	return false
}

// Narrowed reports whether there are tenants of which the node may have nothing.
func (n Node) Narrowed() bool {
	if n.Role == RoleServer {
		return false
	}
	for _, p := range n.Tenants {
		if p == "*" {
			return false
		}
	}
	return len(n.Tenants) > 0
}
