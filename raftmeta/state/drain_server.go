package state

import (
	"fmt"
	"slices"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// DrainServer begins or ends the emptying of a server: it does not count as a holder
// of its region's copies any more, so that they are demanded of the others. What it
// has and nobody else does yet is kept as its remains (Remains); it can be removed
// once nothing is left. Repeated it changes nothing. Result: meta.Node.
//
// Errors: meta.ErrNotFound; meta.ErrInvalid for an agent; meta.ErrConflict when no
// other server would be left, when the region is being removed and a drain is to end,
// and when the autopilot would end another's drain.
type DrainServer struct {
	ID    meta.NodeID `cbor:"1,keyasint,omitempty"`
	Drain bool        `cbor:"2,keyasint,omitempty"`
	// Autopilot says that the leader asks because the server was away, or is back.
	Autopilot bool `cbor:"3,keyasint,omitempty"`
}

// drainLevel is the level from which servers are drained before they go.
const drainLevel = 4

// Type implements Command.
func (DrainServer) Type() uint16 { return typeDrainServer }

// Check implements Command.
func (c DrainServer) Check() error {
	if c.ID == "" || len(c.ID) > maxNodeBytes {
		return fmt.Errorf("drain server: an id has 1 to %d bytes: %w", maxNodeBytes, meta.ErrInvalid)
	}
	return nil
}

func (c DrainServer) apply(t *tx) (any, error) {
	n, err := findServer(t, c.ID)
	if err != nil {
		return nil, err
	}
	r, err := find[regionRecord](t, keyRegion(n.Region), "region", n.Region)
	if err != nil {
		return nil, err
	}
	by := t.origin.Principal
	if c.Autopilot {
		by = meta.DrainAutopilot
	}
	switch {
	case c.Drain && n.Draining != nil:
		if n.Draining.By == meta.DrainAutopilot && !c.Autopilot {
			n.Draining.By = by // It stays so when the server returns.
			t.putNode(n)
		}
		return *n, nil
	case !c.Drain && n.Draining == nil:
		return *n, nil
	case c.Drain:
		if err := t.needOthers(n.ID); err != nil {
			return nil, fmt.Errorf("drain server %s: %w", n.ID, err)
		}
		if err := t.startDraining(r, n, by); err != nil {
			return nil, err
		}
	case r.Region.Leaving != 0:
		return nil, fmt.Errorf("server %s: its region %s is being removed, keep that first: %w", n.ID, n.Region, meta.ErrConflict)
	case c.Autopilot && n.Draining.By != meta.DrainAutopilot:
		return nil, fmt.Errorf("server %s is drained by %s: %w", n.ID, n.Draining.By, meta.ErrConflict)
	default:
		if err := t.stopDraining(r, n); err != nil {
			return nil, err
		}
		n.Draining = nil
		t.putNode(n)
	}
	t.putRegion(r)
	return *n, t.unsettle(meta.RepoRef{}, false)
}

// needOthers refuses when no server would be left that keeps copies and does not
// leave.
func (t *tx) needOthers(leaving ...meta.NodeID) error {
	for r, err := range regions(t) {
		if err != nil {
			return err
		}
		for _, id := range r.staying() {
			if !slices.Contains(leaving, id) {
				return nil
			}
		}
	}
	return fmt.Errorf("no server would be left that is not draining, add another first: %w", meta.ErrConflict)
}

// startDraining puts down that a server of r does not count; the caller stores r.
func (t *tx) startDraining(r *regionRecord, n *meta.Node, by string) error {
	all, err := draining(t)
	if err != nil {
		return err
	}
	r.Draining = insert(r.Draining, n.ID)
	t.put(keyDraining, insert(all, n.ID))
	n.Draining = &meta.Drain{Since: t.now, By: by}
	t.putNode(n)
	return nil
}

// stopDraining takes that back, or forgets a server that goes; the caller stores r
// and n.
func (t *tx) stopDraining(r *regionRecord, n *meta.Node) error {
	all, err := draining(t)
	if err != nil {
		return err
	}
	is := func(id meta.NodeID) bool { return id == n.ID }
	if r.Draining = slices.DeleteFunc(slices.Clone(r.Draining), is); len(r.Draining) == 0 {
		r.Draining = nil
	}
	if all = slices.DeleteFunc(all, is); len(all) == 0 {
		t.del(keyDraining)
	} else {
		t.put(keyDraining, all)
	}
	t.delAll(keyRemains(n.ID))
	return nil
}

// insert puts id into a sorted list that does not have it.
func insert(ids []meta.NodeID, id meta.NodeID) []meta.NodeID {
	at, found := slices.BinarySearch(ids, id)
	if found {
		return ids
	}
	return slices.Insert(slices.Clone(ids), at, id)
}

// draining lists the servers that are draining, sorted: dozens at most.
func draining(r reader) ([]meta.NodeID, error) {
	b, err := r.get(keyDraining)
	if err != nil || b == nil {
		return nil, err
	}
	var ids []meta.NodeID
	if err := codec.Unmarshal(b, &ids); err != nil {
		return nil, &StorageError{Cause: fmt.Errorf("key %x: %w", keyDraining, err)}
	}
	return ids, nil
}

// Why a copy at a draining server is still needed.
const (
	// RemainsLast: no server that stays has a verified copy.
	RemainsLast = "last"
	// RemainsShort: the server's region has fewer copies than are due.
	RemainsShort = "short"
)

// remark puts down of which draining servers a root is a remain. Everything that
// changes a copy, a demand or the first link of a root ends with it; where no server
// is draining it is one read. A last copy that nobody is asked to make another of, as
// that of an upload which no version uses yet, is demanded where servers stay.
func (t *tx) remark(root digest.CID) error {
	servers, err := draining(t)
	if err != nil || len(servers) == 0 || root.IsZero() {
		return err
	}
	var (
		here  = map[meta.NodeID]meta.RegionName{} // draining servers with a verified copy
		owed  = map[meta.RegionName]bool{}
		stays bool // a server that stays has one
		last  bool // so that a draining one has the last
	)
	for p, err := range t.scan(within(keyReplicas(root))) {
		if err != nil {
			return err
		}
		r, err := decode[meta.Replica](p.key, p.value)
		if err != nil {
			return err
		}
		switch {
		case r.Server == "":
			owed[r.Region] = r.State != meta.ReplicaVerified
		case r.State != meta.ReplicaVerified:
		case slices.Contains(servers, r.Server):
			here[r.Server] = r.Region
		default:
			region, err := t.region(r.Region)
			if err != nil {
				return err
			}
			if region == nil {
				continue
			}
			// What is in a bucket stays as long as one of its servers does.
			behind := region.behind(r.Server)
			if slices.ContainsFunc(behind, func(id meta.NodeID) bool { return !slices.Contains(servers, id) }) {
				stays = true
				continue
			}
			for _, id := range behind {
				here[id] = r.Region
			}
		}
	}
	wanted := false
	if len(here) > 0 {
		if wanted, err = linked(t, root); err != nil {
			return err
		}
	}
	for _, id := range servers {
		why := ""
		if region, has := here[id]; has && wanted {
			switch {
			case !stays:
				why, last = RemainsLast, true
			case owed[region]:
				why = RemainsShort
			}
		}
		k := append(keyRemains(id), root[:]...)
		old, err := t.get(k)
		switch {
		case err != nil:
			return err
		case why == "" && old != nil:
			t.del(k)
		case why != "" && string(old) != why:
			t.set(k, []byte(why))
		}
	}
	if !last {
		return nil
	}
	return t.evacuate(root, here, owed)
}

// evacuate demands a root of which only draining servers have copies in a region where
// others can hold it, unless one owes it already: in one of theirs, else the first.
func (t *tx) evacuate(root digest.CID, here map[meta.NodeID]meta.RegionName, owed map[meta.RegionName]bool) error {
	var to meta.RegionName
	near := false
	for r, err := range regions(t) {
		if err != nil {
			return err
		}
		if r.Region.Leaving != 0 || len(r.holders()) == 0 {
			continue
		}
		if owed[r.Region.Name] {
			return nil
		}
		own := slices.ContainsFunc(r.Servers, func(id meta.NodeID) bool { return here[id] != "" })
		if to == "" || own && !near {
			to, near = r.Region.Name, own
		}
	}
	if to == "" {
		return nil // No server stays that could have it.
	}
	blob, err := blobByRoot(t, root)
	if err != nil {
		return err
	}
	_, err = t.demand(blob, to, meta.ClassCold)
	return err
}

// needEmpty refuses a server that is not drained to the end.
func (t *tx) needEmpty(n *meta.Node) error {
	if n.Draining == nil {
		return fmt.Errorf("it is not drained, do that first with `shoal server drain %s`: %w", n.ID, meta.ErrConflict)
	}
	unsettled, err := t.get(keySettlement(meta.RepoRef{}))
	if err != nil {
		return err
	}
	if unsettled != nil {
		return fmt.Errorf("what it holds is still being counted, ask again in a moment: %w", meta.ErrConflict)
	}
	prefix := keyRemains(n.ID)
	for p, err := range t.scan(within(prefix)) {
		if err != nil {
			return err
		}
		root := digest.CID(p.key[len(prefix):])
		what := "no other server has the blob of root %s and maybe more"
		if string(p.value) == RemainsShort {
			what = "its region lacks copies of the blob of root %s and maybe more"
		}
		return fmt.Errorf(what+"; `shoal server list` says what is left: %w", root, meta.ErrConflict)
	}
	return t.needSure(n.ID)
}
