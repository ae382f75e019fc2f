package state

import (
	"encoding/binary"
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Replication answers how far the copies are that regions owe: by region and class,
// and what of a settlement is left. It reads the lanes that are not empty.
type Replication struct{}

// ReplicationAnswer is the answer to Replication.
type ReplicationAnswer struct {
	// Counted is false as long as not every demand is counted; Classes has only those
	// that are.
	Counted bool               `cbor:"1,keyasint,omitempty" json:"counted"`
	Classes []ClassReplication `cbor:"2,keyasint,omitempty" json:"classes"`
	// Settlement is the one under way, nil when everything is settled; what it has not
	// reached may be demanded still. Settlements counts those that wait, it too.
	Settlement  *Settling `cbor:"3,keyasint,omitempty" json:"settlement,omitempty"`
	Settlements uint64    `cbor:"4,keyasint,omitempty" json:"settlements,omitempty"`
}

// ClassReplication is how far a region is with a class. Bytes are as stored; what is
// demanded and does not wait is verified.
type ClassReplication struct {
	Region        meta.RegionName `cbor:"1,keyasint,omitempty" json:"region"`
	Class         meta.Class      `cbor:"2,keyasint,omitempty" json:"class"`
	DemandedBlobs uint64          `cbor:"3,keyasint,omitempty" json:"demanded_blobs"`
	DemandedBytes int64           `cbor:"4,keyasint,omitempty" json:"demanded_bytes"`
	WaitingBlobs  uint64          `cbor:"5,keyasint,omitempty" json:"waiting_blobs"`
	WaitingBytes  int64           `cbor:"6,keyasint,omitempty" json:"waiting_bytes"`
	MissingBlobs  uint64          `cbor:"7,keyasint,omitempty" json:"missing_blobs"` // of those that wait: with no copy in the region
	MissingBytes  int64           `cbor:"8,keyasint,omitempty" json:"missing_bytes"`
	// Oldest is when the one that waits longest was demanded, 0 when none waits.
	Oldest meta.Time `cbor:"9,keyasint,omitempty" json:"oldest,omitempty"`
	// Tenants counts those for whom something waits.
	Tenants uint64 `cbor:"10,keyasint,omitempty" json:"tenants,omitempty"`
}

// Settling is a settlement with what part of it is done.
type Settling struct {
	// Repo is the one repository that it is of, without it all.
	Repo meta.RepoRef `cbor:"1,keyasint,omitzero" json:"repo,omitzero"`
	// Phase is copies, or links: the back-fill. Part is what share of the phase is
	// done, 0 to 1: exact for copies, by repositories for links.
	Phase string  `cbor:"2,keyasint,omitempty" json:"phase"`
	Part  float64 `cbor:"3,keyasint,omitempty" json:"part"`
	// Links says that the phase of links comes, or is there.
	Links bool `cbor:"4,keyasint,omitempty" json:"links"`
	// Read and Owed count the records read and the demands found owing.
	Read uint64 `cbor:"5,keyasint,omitempty" json:"read"`
	Owed uint64 `cbor:"6,keyasint,omitempty" json:"owed"`
}

// Phases of a settlement.
const (
	PhaseCopies = "copies"
	PhaseLinks  = "links"
)

// Answer implements Question.
func (Replication) Answer(v *View) (a ReplicationAnswer, err error) {
	if a.Counted, err = isCounted(v); err != nil {
		return a, err
	}
	for r, err := range regions(v) {
		if err != nil {
			return a, err
		}
		region := r.Region.Name
		byClass := map[meta.Class]*ClassReplication{}
		for _, class := range rankClasses {
			total, err := load[demandTotal](v, keyTotal(region, class))
			if err != nil {
				return a, err
			}
			if total != nil {
				byClass[class] = &ClassReplication{Region: region, Class: class, DemandedBlobs: total.Blobs, DemandedBytes: total.Bytes}
			}
		}
		for b, err := range backlogs(v, region, within(keyBacklogs(region))) {
			if err != nil {
				return a, err
			}
			c := byClass[b.Class]
			if c == nil {
				return a, &StorageError{Cause: fmt.Errorf("region %s has a backlog of class %q and no demands of it", region, b.Class)}
			}
			c.WaitingBlobs, c.WaitingBytes = c.WaitingBlobs+b.Blobs, c.WaitingBytes+b.Bytes
			c.MissingBlobs, c.MissingBytes = c.MissingBlobs+b.MissingBlobs, c.MissingBytes+b.MissingBytes
			c.Tenants++
			if c.Oldest == 0 || b.Oldest < c.Oldest {
				c.Oldest = b.Oldest
			}
		}
		for _, class := range rankClasses {
			if c := byClass[class]; c != nil {
				a.Classes = append(a.Classes, *c)
			}
		}
	}
	return a, a.settlement(v)
}

func (a *ReplicationAnswer) settlement(v *View) error {
	for p, err := range v.scan(within(key{spaceSettlements})) {
		if err != nil {
			return err
		}
		if a.Settlements++; a.Settlement != nil {
			continue
		}
		s, err := decode[Settlement](p.key, p.value)
		if err != nil {
			return err
		}
		if a.Settlement, err = settlingOf(v, s); err != nil {
			return err
		}
	}
	return nil
}

// settlingOf says how far s is: within hashes by their first bytes, which are spread
// evenly, among repositories by counting them.
func settlingOf(v *View, s *Settlement) (*Settling, error) {
	out := &Settling{Repo: s.Repo, Phase: PhaseCopies, Links: s.Links, Read: s.Read, Owed: s.Owed}
	if s.Repo == (meta.RepoRef{}) && (len(s.After) == 0 || s.After[0] == spaceReplicas) {
		out.Part = hashPart(s.After[min(1, len(s.After)):])
		return out, nil
	}
	out.Phase = PhaseLinks
	if len(s.After) == 0 {
		return out, nil
	}
	tenant, name, err := parseLinkOwner(s.After)
	if err != nil {
		return nil, err
	}
	at := meta.RepoRef{Tenant: meta.TenantName(tenant), Name: name}
	within1 := hashPart(s.After[min(len(inRepo(inLinks, at))+1, len(s.After)):]) // behind the algorithm
	if s.Repo != (meta.RepoRef{}) {
		out.Part = within1
		return out, nil
	}
	before, all := 0.0, 0.0
	for tp, err := range v.scan(within(key{spaceTenants})) {
		if err != nil {
			return nil, err
		}
		prefix := below(string(tp.key[1:]), inRepositories)
		for rp, err := range v.scan(within(prefix)) {
			if err != nil {
				return nil, err
			}
			t, n := string(tp.key[1:]), string(rp.key[len(prefix):])
			switch all++; {
			case t < tenant || t == tenant && n < name:
				before++
			case t == tenant && n == name:
				before += within1
			}
		}
	}
	if all > 0 {
		out.Part = before / all
	}
	return out, nil
}

// hashPart returns which part of all hashes lies before one.
func hashPart(hash []byte) float64 {
	var first [8]byte
	copy(first[:], hash)
	return float64(binary.BigEndian.Uint64(first[:])) / (1 << 64)
}

// CopiesOf answers how many servers have a verified copy of each root that can be
// relied on: of the roster, heard, with their blobs.
type CopiesOf struct {
	Roots []digest.CID `cbor:"1,keyasint,omitempty"` // up to MaxReportedReplicas
}

// Answer implements Question.
func (q CopiesOf) Answer(v *View) ([]uint32, error) {
	if len(q.Roots) > MaxReportedReplicas {
		return nil, fmt.Errorf("copies of %d roots, at most %d: %w", len(q.Roots), MaxReportedReplicas, meta.ErrInvalid)
	}
	out := make([]uint32, len(q.Roots))
	for i, root := range q.Roots {
		n, err := reliableCopies(v, root)
		if err != nil {
			return nil, err
		}
		out[i] = n
	}
	return out, nil
}

// reliableCopies counts the servers of which the verified copies of a root can be
// relied on.
func reliableCopies(r reader, root digest.CID) (n uint32, _ error) {
	for p, err := range r.scan(within(keyReplicas(root))) {
		if err != nil {
			return 0, err
		}
		c, err := decode[meta.Replica](p.key, p.value)
		if err != nil {
			return 0, err
		}
		if c.Server == "" || c.State != meta.ReplicaVerified {
			continue
		}
		if ok, err := reliable(r, c.Server); err != nil {
			return 0, err
		} else if ok {
			n++
		}
	}
	return n, nil
}

// reliable reports whether what is recorded of a holder's copies can be relied on: of a
// bucket when it can through one of its servers.
func reliable(r reader, holder meta.NodeID) (bool, error) {
	servers, err := serversBehind(r, holder)
	if err != nil {
		return false, err
	}
	for _, id := range servers {
		node, err := load[meta.Node](r, keyNode(id))
		if err != nil {
			return false, err
		}
		if node == nil {
			continue // It has left.
		}
		if ok, err := counts(r, node); err != nil || ok {
			return ok, err
		}
	}
	return false, nil
}
