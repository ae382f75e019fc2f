package state

import (
	"cmp"
	"fmt"
	"unicode/utf8"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// rightsLevel is the cluster level from which rights are revoked by the log.
const rightsLevel = 5

// Letters of spaceRights.
const (
	inVoidPrincipals = 'p' // [principal] -> meta.Revocation
	inVoidTenants    = 't' // [tenant] -> meta.Revocation
)

// keyVoidAll holds a meta.Revocation of everybody.
var keyVoidAll = key{spaceRights, 'a'}

// keyRevision holds the access revision, u64.
var keyRevision = key{spaceRights, 'r'}

func keyVoidPrincipal(principal string) key {
	return key{spaceRights, inVoidPrincipals}.last(principal)
}

func keyVoidTenant(t meta.TenantName) key { return key{spaceRights, inVoidTenants}.last(string(t)) }

// bumpAccess notes that this command took a right back, or changed what somebody
// may do: the access revision becomes this index. Below level 5 it does nothing, for
// commands that are older than it. Whoever only issues something does not call it.
func (t *tx) bumpAccess() {
	level, err := levelOf(t)
	if err != nil {
		t.err = cmp.Or(t.err, err)
		return
	}
	if level < rightsLevel || t.revised {
		return
	}
	t.revised = true
	t.setNumber(keyRevision, t.index)
	t.emit(feed.Change{Kind: feed.KindAccess})
}

// void voids what was issued until now.
func (t *tx) void(k key, reason string) meta.Revocation {
	r := meta.Revocation{At: t.now, By: t.origin.Principal, Reason: reason}
	t.put(k, r)
	t.bumpAccess()
	return r
}

// revokePrincipal voids all that was issued to a principal until now.
func (t *tx) revokePrincipal(principal, reason string) meta.Revocation {
	return t.void(keyVoidPrincipal(principal), reason)
}

// revokeTenant voids all that was issued to principals of a tenant until now.
func (t *tx) revokeTenant(tenant meta.TenantName, reason string) meta.Revocation {
	return t.void(keyVoidTenant(tenant), reason)
}

// notBefore returns the instant up to which, inclusively, what was issued to a
// principal of a tenant ("" for none) is void; 0 when nothing is.
func notBefore(r reader, principal string, tenant meta.TenantName) (meta.Time, error) {
	var until meta.Time
	keys := []key{keyVoidAll, keyVoidPrincipal(principal)}
	if tenant != "" {
		keys = append(keys, keyVoidTenant(tenant))
	}
	for _, k := range keys {
		revoked, err := load[meta.Revocation](r, k)
		if err != nil {
			return 0, err
		}
		if revoked != nil {
			until = max(until, revoked.At)
		}
	}
	return until, nil
}

// actorHolds refuses what a credential brings that was revoked, or whose principal was
// and which is gone: the gateway admitted it while it still held.
//
// Errors: meta.ErrDenied.
func (t *tx) actorHolds() error {
	if t.origin.TokenID == "" {
		return nil
	}
	c, err := load[meta.Credential](t, keyCredential(t.origin.TokenID))
	if err != nil {
		return err
	}
	if c == nil { // not a stored one: a node's, the first administrator's; or it went with its account
		if kind, _ := meta.SplitPrincipal(t.origin.Principal); kind != meta.KindUser && kind != meta.KindRobot && kind != meta.KindCI {
			return nil
		}
		void, err := notBefore(t, t.origin.Principal, meta.TenantOf(t.origin.Principal))
		if err == nil && void != 0 {
			err = fmt.Errorf("%s was revoked: %w", t.origin.Principal, meta.ErrDenied)
		}
		return err
	}
	return credentialHolds(t, c)
}

// Bounds of what a revocation names.
const (
	maxPrincipalBytes = 512
	maxReasonBytes    = 1024
)

func checkReason(what, reason string) error {
	if len(reason) > maxReasonBytes || !utf8.ValidString(reason) {
		return fmt.Errorf("%s: the reason must be UTF-8 of at most %d bytes: %w", what, maxReasonBytes, meta.ErrInvalid)
	}
	return nil
}

// GetAccessHead answers how far the revocation of rights has come.
type GetAccessHead struct{}

// Answer implements Question. Epoch is 1 before the first recovery.
func (GetAccessHead) Answer(v *View) (h meta.AccessHead, err error) {
	h.Index = v.Index()
	if h.Revision, err = number(v, keyRevision); err != nil {
		return h, err
	}
	cluster, err := load[meta.Cluster](v, keyCluster)
	if err == nil && cluster != nil {
		h.Epoch = cluster.Epoch
	}
	return h, err
}

// GetRevocation answers what voids the credentials of a principal, or of all
// principals of a tenant when Principal is "".
type GetRevocation struct {
	Principal string          `cbor:"1,keyasint,omitempty"`
	Tenant    meta.TenantName `cbor:"2,keyasint,omitempty"`
}

// Answer implements Question.
func (q GetRevocation) Answer(v *View) (meta.Revocation, error) {
	if q.Principal != "" {
		return one[meta.Revocation](v, keyVoidPrincipal(q.Principal), "revocation of principal", q.Principal)
	}
	return one[meta.Revocation](v, keyVoidTenant(q.Tenant), "revocation of tenant", q.Tenant)
}
