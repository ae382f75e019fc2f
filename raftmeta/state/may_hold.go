package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// MayHold answers a blob of a root that a node may have: one of a tenant that Node's
// patterns match, or one that everybody may read.
type MayHold struct {
	Root digest.CID `cbor:"1,keyasint,omitempty"`
	// Node is who asks; what counts is its role and its patterns of tenants.
	Node meta.Node `cbor:"2,keyasint,omitempty"`
}

// Holding is a blob that a node may have. Public says that the right is everybody's:
// Blob is of another tenant than the node's.
type Holding struct {
	Blob   meta.Blob `cbor:"1,keyasint,omitempty"`
	Public bool      `cbor:"2,keyasint,omitempty"`
}

// maxHoldingsRead bounds the links that are looked at for one that is public.
const maxHoldingsRead = 4096

// Answer implements Question. One who may not have the blob learns as much as of one
// that there is not.
func (q MayHold) Answer(v *View) (Holding, error) {
	absent := fmt.Errorf("blob with root %s: %w", q.Root, meta.ErrNotFound)
	var others []*blobRecord
	prefix := keyRoots(q.Root)
	for p, err := range v.scan(within(prefix)) {
		if err != nil {
			return Holding{}, err
		}
		context := string(p.key[len(prefix):])
		record, err := load[blobRecord](v, keyBlob(context, digest.Digest(p.value)))
		switch {
		case err != nil:
			return Holding{}, err
		case record == nil:
		case q.Node.Role != meta.RoleServer && kept(v, context, record.Blob.Digest):
		case context == meta.PublicContext:
			return Holding{Blob: record.Blob, Public: true}, nil
		case q.Node.MayHold(meta.TenantName(context)):
			return Holding{Blob: record.Blob}, nil
		case len(others) < maxHoldingsRead:
			others = append(others, record)
		}
	}
	read := 0
	for _, record := range others {
		tenant := meta.TenantName(record.Blob.Context)
		links := keyMentions(tenant, record.Blob.Digest)
		for p, err := range v.scan(within(links)) {
			if err != nil {
				return Holding{}, err
			}
			if read++; read > maxHoldingsRead {
				return Holding{}, absent
			}
			repo, err := load[meta.Repository](v, keyRepository(meta.RepoRef{Tenant: tenant, Name: string(p.key[len(links):])}))
			if err != nil {
				return Holding{}, err
			}
			if repo != nil && repo.Visibility == meta.VisibilityPublic {
				return Holding{Blob: record.Blob, Public: true}, nil
			}
		}
	}
	return Holding{}, absent
}
