package state

import (
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// UsedBlob is a blob that versions use, with the strongest class that wants it.
type UsedBlob struct {
	Blob  meta.Blob  `cbor:"1,keyasint,omitempty"`
	Class meta.Class `cbor:"2,keyasint,omitempty"`
	// Repo is one of the repositories whose versions use it.
	Repo meta.RepoRef `cbor:"3,keyasint,omitzero"`
	// Copies are the servers that have a verified copy.
	Copies []meta.NodeID `cbor:"4,keyasint,omitempty"`
}

// UsedBlobs lists the blobs that versions use in the order of their roots, those behind
// After. Equal content of several contexts comes once for each.
type UsedBlobs struct {
	After digest.CID `cbor:"1,keyasint,omitzero"`
	// Uncopied lists only those of which no server has a verified copy.
	Uncopied bool `cbor:"2,keyasint,omitempty"`
}

// UsedBlobsAnswer is a page: some 1,000 blobs, after reading at most some 20,000.
type UsedBlobsAnswer struct {
	Blobs []UsedBlob `cbor:"1,keyasint,omitempty"`
	// After is where to go on, zero when all was read.
	After digest.CID `cbor:"2,keyasint,omitzero"`
}

// Answer implements Question.
func (q UsedBlobs) Answer(v *View) (a UsedBlobsAnswer, _ error) {
	const most, mostRead = 1000, 20_000
	s := within(key{spaceRoots})
	if !q.After.IsZero() {
		s.lower = keyRoots(q.After).after()
	}
	var tenants []meta.TenantName // of all, read for a blob of a shared context
	var root digest.CID
	read := 0
	for p, err := range v.scan(s) {
		if err != nil {
			return a, err
		}
		at := digest.CID(p.key[1 : 1+len(root)])
		if at != root && (len(a.Blobs) >= most || read >= mostRead) {
			a.After = root
			return a, nil
		}
		root, read = at, read+1
		context := string(p.key[1+len(root):])
		record, err := load[blobRecord](v, keyBlob(context, digest.Digest(p.value)))
		if err != nil {
			return a, err
		}
		if record == nil || record.Links == 0 {
			continue
		}
		owners := []meta.TenantName{meta.TenantName(context)}
		if context == meta.PublicContext {
			if tenants == nil {
				if tenants, err = tenantNames(v); err != nil {
					return a, err
				}
			}
			owners = tenants
			read += len(tenants)
		}
		used, err := useOf(v, record, owners)
		if err != nil {
			return a, err
		}
		if used == nil {
			continue
		}
		if used.Copies, err = verifiedAt(v, root); err != nil {
			return a, err
		}
		if !q.Uncopied || len(used.Copies) == 0 {
			a.Blobs = append(a.Blobs, *used)
		}
	}
	return a, nil
}

func tenantNames(v *View) (names []meta.TenantName, _ error) {
	for p, err := range v.scan(within(key{spaceTenants})) {
		if err != nil {
			return nil, err
		}
		names = append(names, meta.TenantName(p.key[1:]))
	}
	return names, nil
}

// rank orders classes by how much is lost with them.
var rank = map[meta.Class]int{meta.ClassCold: 1, meta.ClassStandard: 2, meta.ClassCritical: 3}

// useOf finds who uses a blob; nil when no version does.
func useOf(v *View, record *blobRecord, owners []meta.TenantName) (used *UsedBlob, _ error) {
	for _, tenant := range owners {
		prefix := keyMentions(tenant, record.Blob.Digest)
		for p, err := range v.scan(within(prefix)) {
			if err != nil {
				return nil, err
			}
			ref := meta.RepoRef{Tenant: tenant, Name: string(p.key[len(prefix):])}
			l, err := load[linkRecord](v, keyLink(ref, record.Blob.Digest))
			if err != nil {
				return nil, err
			}
			if l == nil || l.Link.Claims == 0 || l.Context != record.Blob.Context {
				continue
			}
			repo, err := load[meta.Repository](v, keyRepository(ref))
			if err != nil {
				return nil, err
			}
			class := meta.ClassStandard
			if repo != nil {
				class = repo.Class
			}
			if used == nil {
				used = &UsedBlob{Blob: record.Blob, Class: class, Repo: ref}
			} else if rank[class] > rank[used.Class] {
				used.Class, used.Repo = class, ref
			}
		}
	}
	return used, nil
}

// verifiedAt lists the servers with a verified copy of a root.
func verifiedAt(v *View, root digest.CID) (servers []meta.NodeID, _ error) {
	for p, err := range v.scan(within(keyReplicas(root))) {
		if err != nil {
			return nil, err
		}
		r, err := decode[meta.Replica](p.key, p.value)
		if err != nil {
			return nil, err
		}
		if r.Server != "" && r.State == meta.ReplicaVerified {
			behind, err := serversBehind(v, r.Server)
			if err != nil {
				return nil, err
			}
			servers = append(servers, behind...)
		}
	}
	return servers, nil
}
