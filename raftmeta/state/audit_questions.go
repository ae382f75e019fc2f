package state

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// readMost bounds the records that one answer of a question about copies or uses
// reads; the question is then asked again from where it stopped.
const readMost = 50_000

// ListAudits answers what each server said of its bytes, in the order of their ids.
type ListAudits struct{}

// Answer implements Question.
func (ListAudits) Answer(v *View) ([]meta.Audit, error) {
	return list[meta.Audit](v, within(key{spaceAudits, inAudits}), Page{Limit: maxPage}, nil)
}

// GetAudit answers what one server said of its bytes, and what it is asked for; of
// one that never did an Audit of nothing.
type GetAudit struct {
	Server meta.NodeID `cbor:"1,keyasint,omitempty"`
}

// Answer implements Question.
func (q GetAudit) Answer(v *View) (meta.Audit, error) {
	a, err := load[meta.Audit](v, keyAudit(q.Server))
	if err == nil && a == nil {
		a = &meta.Audit{Server: q.Server}
	}
	return value(a, err)
}

// ListLost lists the blobs that repositories link and no server has a verified copy
// of, by root. Page.After is a root.
type ListLost struct {
	Page Page `cbor:"1,keyasint,omitempty"`
}

// Answer implements Question.
func (q ListLost) Answer(v *View) ([]meta.LostBlob, error) {
	prefix := key{spaceAudits, inLost}
	s := within(prefix)
	if q.Page.After != "" {
		root, err := digest.ParseCID(q.Page.After)
		if err != nil {
			return nil, fmt.Errorf("page after %q: %w: %w", q.Page.After, err, meta.ErrInvalid)
		}
		s.lower = append(keyLost(root), 0)
	}
	return list[meta.LostBlob](v, s, q.Page, nil)
}

// IsLost answers whether no server has a verified copy of a linked blob.
type IsLost struct {
	Root digest.CID `cbor:"1,keyasint,omitempty"`
}

// Answer implements Question.
func (q IsLost) Answer(v *View) (bool, error) {
	b, err := v.get(keyLost(q.Root))
	return b != nil, err
}

// ListCopies lists copies on record by root: of one server or of all, in one state or
// in any.
type ListCopies struct {
	Server meta.NodeID       `cbor:"1,keyasint,omitempty"`
	State  meta.ReplicaState `cbor:"2,keyasint,omitempty"`
	// After is the root to go on behind, zero at the start.
	After digest.CID `cbor:"3,keyasint,omitzero"`
	// Limit is how many copies at most, give or take those of the last root: 1 to
	// 10,000, 0 is 1,000.
	Limit int `cbor:"4,keyasint,omitempty"`
}

// Copies is what one ListCopies found, after reading at most some 50,000 records.
type Copies struct {
	Copies []meta.Replica `cbor:"1,keyasint,omitempty"`
	// After is where to go on, zero when all was looked at.
	After digest.CID `cbor:"2,keyasint,omitzero"`
}

// Answer implements Question.
func (q ListCopies) Answer(v *View) (a Copies, _ error) {
	limit, err := Page{Limit: q.Limit}.limit()
	if err != nil {
		return a, err
	}
	s := within(key{spaceReplicas})
	if !q.After.IsZero() {
		if s.lower = keyReplicas(q.After).after(); s.lower == nil {
			return a, nil
		}
	}
	var root digest.CID
	records := 0
	for p, err := range v.scan(s) {
		if err != nil {
			return a, err
		}
		r, err := decode[meta.Replica](p.key, p.value)
		if err != nil {
			return a, err
		}
		if r.Root != root {
			if len(a.Copies) >= limit || records >= readMost {
				a.After = root
				return a, nil
			}
			root = r.Root
		}
		records++
		if r.Server != "" && (q.Server == "" || r.Server == q.Server) && (q.State == "" || r.State == q.State) {
			a.Copies = append(a.Copies, *r)
		}
	}
	return a, nil
}

// UsesOf names what of which versions a root is, in all repositories that link it.
type UsesOf struct {
	Root digest.CID `cbor:"1,keyasint,omitempty"`
	// After is the After of the answer before, "" at the start; Limit is 1 to 10,000,
	// 0 is 1,000.
	After string `cbor:"2,keyasint,omitempty"`
	Limit int    `cbor:"3,keyasint,omitempty"`
}

// Uses is what one UsesOf found, after reading at most some 50,000 records.
type Uses struct {
	Uses []meta.Use `cbor:"1,keyasint,omitempty"`
	// After is where to go on, "" when all was looked at.
	After string `cbor:"2,keyasint,omitempty"`
}

// Answer implements Question.
func (q UsesOf) Answer(v *View) (a Uses, _ error) {
	limit, err := Page{Limit: q.Limit}.limit()
	if err != nil {
		return a, err
	}
	after, err := hex.DecodeString(q.After)
	if err != nil {
		return a, fmt.Errorf("page after %q: %w: %w", q.After, err, meta.ErrInvalid)
	}
	repos, names, err := q.linkers(v)
	if err != nil {
		return a, err
	}
	records := 0
	for _, ref := range repos {
		prefix := inRepo(inVersions, ref)
		if len(after) > 0 && bytes.Compare(after, prefix.after()) >= 0 {
			continue
		}
		for p, err := range v.scan(onward(prefix, after)) {
			if err != nil {
				return a, err
			}
			if len(a.Uses) >= limit || records >= readMost {
				a.After = hex.EncodeToString(after)
				return a, nil
			}
			after = bytes.Clone(p.key)
			version, err := decode[meta.Version](p.key, p.value)
			if err != nil {
				return a, err
			}
			records++
			uses, read, err := usesIn(v, version, names)
			if err != nil {
				return a, err
			}
			records += read
			a.Uses = append(a.Uses, uses...)
		}
	}
	return a, nil
}

// linkers returns the repositories that link the root, in the order of their keys, and
// the names that they link it by.
func (q UsesOf) linkers(v *View) (repos []meta.RepoRef, names []digest.Digest, _ error) {
	for p, err := range v.scan(within(keyRoots(q.Root))) {
		if err != nil {
			return nil, nil, err
		}
		context, d := string(p.key[len(keyRoots(q.Root)):]), digest.Digest(p.value)
		b, err := load[blobRecord](v, keyBlob(context, d))
		if err != nil {
			return nil, nil, err
		}
		if b == nil {
			continue
		}
		of := []digest.Digest{d}
		if b.Blob.SHA512 != "" {
			of = append(of, b.Blob.SHA512)
		}
		names = append(names, of...)
		tenants := []meta.TenantName{meta.TenantName(context)}
		if context == meta.PublicContext {
			if tenants, err = allTenants(v); err != nil {
				return nil, nil, err
			}
		}
		for _, tenant := range tenants {
			for _, name := range of {
				prefix := keyMentions(tenant, name)
				for m, err := range v.scan(within(prefix)) {
					if err != nil {
						return nil, nil, err
					}
					repos = append(repos, meta.RepoRef{Tenant: tenant, Name: string(m.key[len(prefix):])})
				}
			}
		}
	}
	slices.SortFunc(repos, func(a, b meta.RepoRef) int { return bytes.Compare(inRepo(inVersions, a), inRepo(inVersions, b)) })
	return slices.Compact(repos), names, nil
}

func allTenants(r reader) (all []meta.TenantName, _ error) {
	for p, err := range r.scan(within(key{spaceTenants})) {
		if err != nil {
			return nil, err
		}
		all = append(all, meta.TenantName(p.key[1:]))
	}
	return all, nil
}

// usesIn returns what of a version has one of the names, and how many records it read.
func usesIn(r reader, version *meta.Version, names []digest.Digest) (uses []meta.Use, read int, _ error) {
	use := meta.Use{Repo: version.Repo, Package: version.Package, Version: version.Name}
	is := func(d digest.Digest) bool { return d != "" && slices.Contains(names, d) }
	document := is(version.Digest) || is(version.SHA512)
	for ref, err := range references(r, version) {
		if err != nil {
			return nil, read, err
		}
		read++
		document = document || is(ref.Digest) && !ref.Version
	}
	for p, err := range r.scan(within(keyFiles(version.Repo, version.Package, version.Name))) {
		if err != nil {
			return nil, read, err
		}
		read++
		f, err := decode[meta.File](p.key, p.value)
		if err != nil {
			return nil, read, err
		}
		if is(f.Digest) {
			file := use
			file.Path = f.Path
			uses = append(uses, file)
		}
	}
	if document && len(uses) == 0 {
		uses = append(uses, use)
	}
	return uses, read, nil
}
