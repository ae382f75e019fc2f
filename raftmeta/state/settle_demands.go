package state

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// SettleDemands does the next part of what is to be settled anew: of the whole
// cluster since its servers or regions changed, or of a repository since its class
// or regions did. The copies of servers that have left are dropped, each demand is
// verified or pending as the region's servers are now, and regions that owe a blob
// without being asked for it are asked. Result: SettleResult.
//
// The proposer says where it saw the work stand (NextSettlement); a command that
// comes after another has moved on does nothing, so any number of servers may
// propose, and any of them goes on after a crash.
type SettleDemands struct {
	Since uint64 `cbor:"1,keyasint,omitempty"` // Settlement.Since
	After []byte `cbor:"2,keyasint,omitempty"` // Settlement.After
	Limit uint32 `cbor:"3,keyasint,omitempty"` // records to read: 1 to 1,000
}

// SettleResult says what one command did.
type SettleResult struct {
	Read    uint32 `cbor:"1,keyasint,omitempty"` // records; 0 when another proposer was first
	Dropped uint32 `cbor:"2,keyasint,omitempty"` // copies of servers that have left
	Owed    uint32 `cbor:"3,keyasint,omitempty"` // demands that are pending for it
	Done    bool   `cbor:"4,keyasint,omitempty"` // this settlement is over
}

// Settlement is work that is not done yet, and how far it is.
type Settlement struct {
	// Since is the index of the last change that asked for it, Repo the one
	// repository that it is of; without it all is settled.
	Since uint64       `cbor:"1,keyasint,omitempty"`
	Repo  meta.RepoRef `cbor:"2,keyasint,omitzero"`
	// Links says that, the copies being settled, what versions use is demanded where
	// the classes want it.
	Links bool `cbor:"3,keyasint,omitempty"`
	// After is the last key that is settled, empty at the start.
	After []byte `cbor:"4,keyasint,omitempty"`
	// Read, Dropped and Owed add up the results so far.
	Read    uint64 `cbor:"5,keyasint,omitempty"`
	Dropped uint64 `cbor:"6,keyasint,omitempty"`
	Owed    uint64 `cbor:"7,keyasint,omitempty"`
}

// settleLevel is the level from which changes of the roster are settled.
const settleLevel = 3

// maxSettled bounds the records that one command reads.
const maxSettled = 1000

// Type implements Command.
func (SettleDemands) Type() uint16 { return typeSettleDemands }

// Check implements Command.
func (c SettleDemands) Check() error {
	if c.Limit == 0 || c.Limit > maxSettled {
		return fmt.Errorf("settle demands: limit %d, use 1 to %d: %w", c.Limit, maxSettled, meta.ErrInvalid)
	}
	if len(c.After) > 1024 {
		return fmt.Errorf("settle demands: a key of %d bytes, at most 1024: %w", len(c.After), meta.ErrInvalid)
	}
	return nil
}

func (c SettleDemands) apply(t *tx) (any, error) {
	s, err := nextSettlement(t)
	if err != nil {
		return nil, err
	}
	if s == nil || s.Since != c.Since || !bytes.Equal(s.After, c.After) {
		return SettleResult{}, nil
	}
	p := settling{tx: t, left: c.Limit}
	more, err := p.run(s)
	if err != nil {
		return nil, err
	}
	if !more {
		t.del(keySettlement(s.Repo))
	} else {
		s.Read, s.Dropped, s.Owed = s.Read+uint64(p.read), s.Dropped+uint64(p.dropped), s.Owed+uint64(p.owed)
		t.put(keySettlement(s.Repo), s)
	}
	return SettleResult{Read: p.read, Dropped: p.dropped, Owed: p.owed, Done: !more}, nil
}

// unsettle asks for a settlement, of all without repo. One that is under way begins
// anew: what it has settled may have to be settled again.
func (t *tx) unsettle(repo meta.RepoRef, links bool) error {
	level, err := levelOf(t)
	if err != nil || level < settleLevel {
		return err
	}
	old, err := load[Settlement](t, keySettlement(repo))
	if err != nil {
		return err
	}
	t.put(keySettlement(repo), Settlement{Since: t.index, Repo: repo, Links: links || (old != nil && old.Links)})
	return nil
}

// nextSettlement returns the first settlement that is not done, nil without one.
func nextSettlement(r reader) (*Settlement, error) {
	for p, err := range r.scan(within(key{spaceSettlements})) {
		if err != nil {
			return nil, err
		}
		return decode[Settlement](p.key, p.value)
	}
	return nil, nil
}

// settling is one SettleDemands being applied.
type settling struct {
	*tx
	left                uint32
	read, dropped, owed uint32
}

// step counts a record; false when the command has read enough.
func (p *settling) step() bool {
	if p.left == 0 {
		return false
	}
	p.left--
	p.read++
	return true
}

// run goes on with s and moves its After. more says that something is left.
func (p *settling) run(s *Settlement) (more bool, err error) {
	if s.Repo != (meta.RepoRef{}) {
		return p.repository(s, s.Repo)
	}
	if len(s.After) == 0 || s.After[0] == spaceReplicas {
		if more, err = p.copies(s); more || err != nil {
			return more, err
		}
		if err := p.allCounted(); err != nil || !s.Links {
			return false, err
		}
		s.After = nil
	}
	return p.links(s)
}

// copies settles the records of copies behind s.After.
func (p *settling) copies(s *Settlement) (more bool, err error) {
	var root digest.CID // of the record before
	if len(s.After) > 0 {
		copy(root[:], s.After[1:])
	}
	for pair, err := range p.scan(onward(key{spaceReplicas}, s.After)) {
		if err != nil {
			return false, err
		}
		if !p.step() {
			return true, nil
		}
		s.After = bytes.Clone(pair.key)
		r, err := decode[meta.Replica](pair.key, pair.value)
		if err != nil {
			return false, err
		}
		if r.Root != root {
			if err := p.remark(root); err != nil { // All its records are settled.
				return false, err
			}
			root = r.Root
		}
		region, err := p.region(r.Region)
		if err != nil {
			return false, err
		}
		switch {
		case r.Server == "" && (region == nil || region.Region.Leaving != 0):
			if err := p.dropDemand(r); err != nil {
				return false, err
			}
			p.dropped++
		case r.Server == "":
			if err := p.resettle(r); err != nil {
				return false, err
			}
		case region == nil || len(region.behind(r.Server)) == 0:
			p.del(s.After)
			p.dropped++
			if err := p.judge(r.Root, "the servers that had it were removed"); err != nil {
				return false, err
			}
		}
	}
	return false, p.remark(root)
}

// resettle settles a demand whose region has other servers than it had. One that is
// pending again is as young as the change: the holders have their time for it.
func (p *settling) resettle(d *meta.Replica) error {
	have, want, err := p.copiesOf(d)
	if err != nil {
		return err
	}
	enough := have >= want
	if enough == (d.State == meta.ReplicaVerified) {
		return p.recount(d, have, want)
	}
	if !enough {
		if linked, err := linked(p, d.Root); err != nil {
			return err
		} else if !linked {
			return p.dropDemand(d) // As undemand does with what is pending.
		}
		d.Demand = p.now
		p.owed++
		p.tell(d.Region)
	}
	return p.putDemand(d, have, want)
}

// links demands what the versions of all repositories use, from the one of s.After on.
func (p *settling) links(s *Settlement) (more bool, err error) {
	var tenant, repo string
	if len(s.After) > 0 {
		if tenant, repo, err = parseLinkOwner(s.After); err != nil {
			return false, err
		}
	}
	for tp, err := range p.scan(span{lower: keyTenant(meta.TenantName(tenant)), upper: key{spaceTenants}.after()}) {
		if err != nil {
			return false, err
		}
		name := string(tp.key[1:])
		prefix := below(name, inRepositories)
		repos := within(prefix)
		if name == tenant {
			repos.lower = append(slices.Clone(prefix), repo...)
		}
		for rp, err := range p.scan(repos) {
			if err != nil {
				return false, err
			}
			ref := meta.RepoRef{Tenant: meta.TenantName(name), Name: string(rp.key[len(prefix):])}
			if len(s.After) > 0 && (name != tenant || ref.Name != repo) {
				s.After = nil // Of the repository before.
			}
			if more, err := p.repository(s, ref); more || err != nil {
				return more, err
			}
			s.After = append(inRepo(inLinks, ref), 0xff) // Behind all links of it.
		}
	}
	return false, nil
}

// repository demands what the repository's versions use, from the link behind s.After
// on. A repository counts as a record too.
func (p *settling) repository(s *Settlement, ref meta.RepoRef) (more bool, err error) {
	prefix := inRepo(inLinks, ref)
	if len(s.After) == 0 {
		s.After = prefix
		if !p.step() {
			return true, nil
		}
	}
	repo, err := load[meta.Repository](p, keyRepository(ref))
	if err != nil || repo == nil {
		return false, err
	}
	owing, err := p.regionsOf(repo)
	if err != nil {
		return false, err
	}
	for pair, err := range p.scan(onward(prefix, s.After)) {
		if err != nil {
			return false, err
		}
		if !p.step() {
			return true, nil
		}
		s.After = bytes.Clone(pair.key)
		if bytes.HasPrefix(pair.value, []byte("sha256:")) {
			continue // The other name of a blob.
		}
		l, err := decode[linkRecord](pair.key, pair.value)
		if err != nil {
			return false, err
		}
		if l.Link.Claims == 0 {
			continue
		}
		record, err := blobOf(p, l)
		if err != nil {
			return false, err
		}
		for _, region := range owing {
			if err := p.wantIn(record, region, repo.Class); err != nil {
				return false, err
			}
		}
	}
	return false, nil
}

// wantIn demands a blob in a region that has to exist for it.
func (p *settling) wantIn(b *blobRecord, name meta.RegionName, class meta.Class) error {
	region, err := p.region(name)
	if err != nil || region == nil || region.Region.Leaving != 0 {
		return err
	}
	old, err := p.get(keyReplica(b.Blob.Root, name, ""))
	if err != nil {
		return err
	}
	d, err := p.demand(&b.Blob, name, class)
	if err == nil && old == nil && d.State == meta.ReplicaPending {
		p.owed++
	}
	return err
}

// onward spans the keys that begin with prefix, those behind after when it is set.
func onward(prefix, after key) span {
	s := within(prefix)
	if len(after) > 0 && bytes.Compare(after, prefix) > 0 {
		s.lower = append(slices.Clone(after), 0)
	}
	return s
}

// tell lets followers know, once a command, that a region owes more.
func (t *tx) tell(region meta.RegionName) {
	if !slices.Contains(t.demanded, region) {
		t.demanded = append(t.demanded, region)
		t.emit(feed.Change{Kind: feed.KindDemand, Region: region})
	}
}
