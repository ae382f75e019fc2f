package state

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// What regions owe, by class and tenant: from cluster level 4 each region's demands
// are counted, and those that are pending are in a queue of their class and tenant as
// well as in the region's one, so that a tenant's long queue hides nobody else's.
//
// A demand's tenant is its Context. One that two tenants publish is in the queue of
// the one that waits for less.

// backlogLevel is the cluster level from which demands are counted.
const backlogLevel = 4

// Below spaceBacklog.
const (
	inLanes    = 'q' // region, class u8, tenant, demanded-at u64, root -> nothing: pending demands
	inBacklogs = 'b' // region, class u8, [tenant] -> laneCount, of lanes that are not empty
	inTotals   = 'n' // region, [class u8] -> demandTotal
)

// keyCounted is there once every demand is counted.
var keyCounted = key{spaceBacklog, 'c'}

// laneCount counts what a region owes of a class to a tenant.
type laneCount struct {
	Blobs        uint64 `cbor:"1,keyasint,omitempty"`
	Bytes        int64  `cbor:"2,keyasint,omitempty"`
	MissingBlobs uint64 `cbor:"3,keyasint,omitempty"`
	MissingBytes int64  `cbor:"4,keyasint,omitempty"`
}

// demandTotal counts all demands of a region and class, verified or not.
type demandTotal struct {
	Blobs uint64 `cbor:"1,keyasint,omitempty"`
	Bytes int64  `cbor:"2,keyasint,omitempty"`
}

// classRank orders classes by urgency, 1 first, in keys too.
func classRank(c meta.Class) byte { return byte(4 - strength(c)) }

var rankClasses = []meta.Class{meta.ClassCritical, meta.ClassStandard, meta.ClassCold, ""}

func classOfRank(rank byte) meta.Class {
	if rank < 1 || int(rank) > len(rankClasses) {
		return ""
	}
	return rankClasses[rank-1]
}

func keyLane(region meta.RegionName, class meta.Class, tenant string) key {
	return append(key{spaceBacklog, inLanes}.part(string(region)), classRank(class)).part(tenant)
}

func keyInLane(d meta.Replica) key {
	return append(keyLane(d.Region, d.Class, d.Context).u64(clock(d.Demand)), d.Root[:]...)
}

func keyBacklogs(region meta.RegionName) key {
	return key{spaceBacklog, inBacklogs}.part(string(region))
}

func keyBacklog(region meta.RegionName, class meta.Class, tenant string) key {
	return append(keyBacklogs(region), classRank(class)).last(tenant)
}

func keyTotal(region meta.RegionName, class meta.Class) key {
	return append(key{spaceBacklog, inTotals}.part(string(region)), classRank(class))
}

// putDemand stores a region's demand as verified when have copies of want are, else as
// pending and in the queues.
func (t *tx) putDemand(d *meta.Replica, have, want int) error {
	level, err := levelOf(t)
	if err != nil {
		return err
	}
	old, err := load[meta.Replica](t, keyReplica(d.Root, d.Region, ""))
	if err != nil {
		return err
	}
	if d.State = meta.ReplicaPending; have >= want {
		d.State, d.Verified = meta.ReplicaVerified, t.now
	}
	if level >= backlogLevel {
		d.Counted = countOf(have, want)
	}
	return t.moveDemand(old, d)
}

func countOf(have, want int) meta.DemandCount {
	switch {
	case have >= want:
		return meta.CountVerified
	case have > 0:
		return meta.CountShort
	}
	return meta.CountMissing
}

// dropDemand removes a region's demand, with its places in the queues.
func (t *tx) dropDemand(d *meta.Replica) error { return t.moveDemand(d, nil) }

// moveDemand replaces the record of a demand and its places in queues and counts; old
// is as it is stored, nil is no demand.
func (t *tx) moveDemand(old, d *meta.Replica) error {
	queued := func(d *meta.Replica) bool { return d != nil && d.State != meta.ReplicaVerified }
	if queued(old) && (!queued(d) || !bytes.Equal(keyQueued(*old), keyQueued(*d))) {
		t.del(keyQueued(*old))
	}
	if err := t.count(old, -1); err != nil {
		return err
	}
	if d == nil {
		t.del(keyReplica(old.Root, old.Region, ""))
		return nil
	}
	if queued(d) {
		t.mark(keyQueued(*d))
	}
	t.put(keyReplica(d.Root, d.Region, ""), d)
	return t.count(d, 1)
}

// count adds a demand to its region's counts and its lane, or takes it out.
func (t *tx) count(d *meta.Replica, by int64) error {
	if d == nil || d.Counted == meta.CountNone {
		return nil
	}
	k := keyTotal(d.Region, d.Class)
	total, err := counted[demandTotal](t, t.totals, k)
	if err != nil {
		return err
	}
	total.Blobs, total.Bytes = total.Blobs+uint64(by), total.Bytes+by*d.StoredBytes
	if t.totals == nil {
		t.totals = map[string]*demandTotal{}
	}
	t.totals[string(k)] = total
	if d.Counted == meta.CountVerified {
		return nil
	}
	if by > 0 {
		t.mark(keyInLane(*d))
	} else {
		t.del(keyInLane(*d))
	}
	k = keyBacklog(d.Region, d.Class, d.Context)
	lane, err := counted[laneCount](t, t.lanes, k)
	if err != nil {
		return err
	}
	lane.Blobs, lane.Bytes = lane.Blobs+uint64(by), lane.Bytes+by*d.StoredBytes
	if d.Counted == meta.CountMissing {
		lane.MissingBlobs, lane.MissingBytes = lane.MissingBlobs+uint64(by), lane.MissingBytes+by*d.StoredBytes
	}
	if t.lanes == nil {
		t.lanes = map[string]*laneCount{}
	}
	t.lanes[string(k)] = lane
	return nil
}

// counted returns a count as it is in this command.
func counted[T any](t *tx, changed map[string]*T, k key) (*T, error) {
	if c := changed[string(k)]; c != nil {
		return c, nil
	}
	c, err := load[T](t, k)
	if c == nil {
		c = new(T)
	}
	return c, err
}

// putCounts writes the counts that a command has changed, each once.
func (t *tx) putCounts() {
	for _, k := range slices.Sorted(maps.Keys(t.totals)) {
		if c := t.totals[k]; c.Blobs == 0 {
			t.del(key(k))
		} else {
			t.put(key(k), c)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(t.lanes)) {
		if c := t.lanes[k]; c.Blobs == 0 {
			t.del(key(k))
		} else {
			t.put(key(k), c)
		}
	}
}

// shareLane puts a pending demand that another tenant has now too into the queue of
// the one that waits for less.
func (t *tx) shareLane(d *meta.Replica, b *meta.Blob) (moved bool, err error) {
	if d.Context == b.Context || d.Counted == meta.CountNone || d.Counted == meta.CountVerified {
		return false, nil
	}
	theirs, err := counted[laneCount](t, t.lanes, keyBacklog(d.Region, d.Class, d.Context))
	if err != nil {
		return false, err
	}
	ours, err := counted[laneCount](t, t.lanes, keyBacklog(d.Region, d.Class, b.Context))
	if err != nil || ours.Bytes+d.StoredBytes >= theirs.Bytes {
		return false, err
	}
	d.Context, d.Digest = b.Context, b.Digest
	return true, nil
}

// recount counts a demand whose state stays as it is: it may be from before demands
// were counted, or have lost one of its copies or won the first.
func (t *tx) recount(d *meta.Replica, have, want int) error {
	level, err := levelOf(t)
	count := countOf(have, want)
	if err != nil || level < backlogLevel || d.Counted == count {
		return err
	}
	was := *d
	d.Counted = count
	return t.moveDemand(&was, d)
}

// allCounted notes that every demand is counted.
func (t *tx) allCounted() error {
	level, err := levelOf(t)
	if err == nil && level >= backlogLevel {
		t.mark(keyCounted)
	}
	return err
}

// isCounted says whether every demand is counted: not in a cluster that came from an
// older level, until its first settlement of level 4 is through.
func isCounted(r reader) (bool, error) {
	b, err := r.get(keyCounted)
	return b != nil, err
}

// Backlog is what a region owes of a class to a tenant.
type Backlog struct {
	Region meta.RegionName `cbor:"1,keyasint,omitempty" json:"region"`
	Class  meta.Class      `cbor:"2,keyasint,omitempty" json:"class"`
	// Tenant is the context of the blobs: a tenant's name, or meta.PublicContext.
	Tenant string    `cbor:"3,keyasint,omitempty" json:"tenant"`
	Tier   meta.Tier `cbor:"4,keyasint,omitempty" json:"tier,omitempty"`
	// Blobs and Bytes (as stored) are not verified yet; of those, Missing ones have no
	// verified copy in the region at all.
	Blobs        uint64 `cbor:"5,keyasint,omitempty" json:"blobs"`
	Bytes        int64  `cbor:"6,keyasint,omitempty" json:"bytes"`
	MissingBlobs uint64 `cbor:"7,keyasint,omitempty" json:"missing_blobs"`
	MissingBytes int64  `cbor:"8,keyasint,omitempty" json:"missing_bytes"`
	// Oldest is when the one that waits longest was demanded.
	Oldest meta.Time `cbor:"9,keyasint,omitempty" json:"oldest,omitempty"`
}

// ListBacklogs lists the lanes of a region in which something is pending, the most
// urgent class first, then by tenant. Page.After is BacklogAfter of the last one.
//
// Errors: meta.ErrConflict while not every demand is counted; list the region's
// PendingReplicas then.
type ListBacklogs struct {
	Region meta.RegionName `cbor:"1,keyasint,omitempty"`
	Page   Page            `cbor:"2,keyasint,omitempty"`
}

// Answer implements Question.
func (q ListBacklogs) Answer(v *View) (a []Backlog, _ error) {
	if ok, err := isCounted(v); err != nil || !ok {
		return nil, cmp.Or(err, fmt.Errorf("backlogs of %s: not all demands are counted yet: %w", q.Region, meta.ErrConflict))
	}
	limit, err := q.Page.limit()
	if err != nil {
		return nil, err
	}
	s := within(keyBacklogs(q.Region))
	if q.Page.After != "" {
		class, tenant, ok := strings.Cut(q.Page.After, "/")
		if !ok {
			return nil, fmt.Errorf("page after %q: %w", q.Page.After, meta.ErrInvalid)
		}
		s.lower = append(keyBacklog(q.Region, meta.Class(class), tenant), 0)
	}
	for b, err := range backlogs(v, q.Region, s) {
		if err != nil {
			return nil, err
		}
		if a = append(a, *b); len(a) == limit {
			break
		}
	}
	return a, nil
}

// BacklogAfter is where a listing goes on behind b.
func BacklogAfter(b Backlog) string { return string(b.Class) + "/" + b.Tenant }

// backlogs yields the lanes of a region within s, with their tiers and oldest demands.
func backlogs(r reader, region meta.RegionName, s span) func(yield func(*Backlog, error) bool) {
	prefix := len(keyBacklogs(region))
	return func(yield func(*Backlog, error) bool) {
		for p, err := range r.scan(s) {
			if err != nil {
				yield(nil, err)
				return
			}
			count, err := decode[laneCount](p.key, p.value)
			if err != nil {
				yield(nil, err)
				return
			}
			b := &Backlog{
				Region: region, Class: classOfRank(p.key[prefix]), Tenant: string(p.key[prefix+1:]),
				Blobs: count.Blobs, Bytes: count.Bytes, MissingBlobs: count.MissingBlobs, MissingBytes: count.MissingBytes,
			}
			if err := b.complete(r); !yield(b, err) || err != nil {
				return
			}
		}
	}
}

// complete looks up what is not in the count.
func (b *Backlog) complete(r reader) error {
	tenant, err := load[meta.Tenant](r, keyTenant(meta.TenantName(b.Tenant)))
	if err != nil {
		return err
	}
	if tenant != nil {
		b.Tier = tenant.Tier
	}
	lane := keyLane(b.Region, b.Class, b.Tenant)
	for p, err := range r.scan(within(lane)) {
		if err != nil {
			return err
		}
		b.Oldest = meta.Time(binary.BigEndian.Uint64(p.key[len(lane):]))
		break
	}
	return nil
}

// TenantBacklogs answers what regions owe a tenant, all classes of a region together;
// regions that owe nothing are left out.
type TenantBacklogs struct {
	Tenant meta.TenantName `cbor:"1,keyasint,omitempty"`
}

// Answer implements Question.
func (q TenantBacklogs) Answer(v *View) (a []Backlog, _ error) {
	for r, err := range regions(v) {
		if err != nil {
			return nil, err
		}
		sum := Backlog{Region: r.Region.Name, Tenant: string(q.Tenant)}
		for _, class := range rankClasses {
			c, err := load[laneCount](v, keyBacklog(r.Region.Name, class, string(q.Tenant)))
			if err != nil {
				return nil, err
			}
			if c != nil {
				sum.Blobs, sum.Bytes = sum.Blobs+c.Blobs, sum.Bytes+c.Bytes
				sum.MissingBlobs, sum.MissingBytes = sum.MissingBlobs+c.MissingBlobs, sum.MissingBytes+c.MissingBytes
			}
		}
		if sum.Blobs > 0 {
			a = append(a, sum)
		}
	}
	return a, nil
}

// PendingInLane lists the pending demands of a region of one class and tenant, oldest
// first. Page.After is PendingAfter of the last one.
type PendingInLane struct {
	Region meta.RegionName `cbor:"1,keyasint,omitempty"`
	Class  meta.Class      `cbor:"2,keyasint,omitempty"`
	Tenant string          `cbor:"3,keyasint,omitempty"`
	Page   Page            `cbor:"4,keyasint,omitempty"`
}

// Answer implements Question.
func (q PendingInLane) Answer(v *View) (a []meta.Replica, _ error) {
	limit, err := q.Page.limit()
	if err != nil {
		return nil, err
	}
	lane := keyLane(q.Region, q.Class, q.Tenant)
	s := within(lane)
	if q.Page.After != "" {
		at, root, err := parsePendingAfter(q.Page.After)
		if err != nil {
			return nil, err
		}
		s.lower = append(keyInLane(meta.Replica{Region: q.Region, Class: q.Class, Context: q.Tenant, Demand: at, Root: root}), 0)
	}
	for p, err := range v.scan(s) {
		if err != nil {
			return nil, err
		}
		root := digest.CID(p.key[len(lane)+8:])
		d, err := find[meta.Replica](v, keyReplica(root, q.Region, ""), "demand", root)
		if err != nil {
			return nil, err
		}
		if a = append(a, *d); len(a) == limit {
			break
		}
	}
	return a, nil
}

// parsePendingAfter reads what PendingAfter wrote.
func parsePendingAfter(s string) (meta.Time, digest.CID, error) {
	fail := func(err error) error { return fmt.Errorf("page after %q: %w: %w", s, err, meta.ErrInvalid) }
	at, text, _ := strings.Cut(s, "~")
	root, err := digest.ParseCID(text)
	if err != nil {
		return 0, root, fail(err)
	}
	demanded, err := strconv.ParseInt(at, 10, 64)
	if err != nil {
		return 0, root, fail(err)
	}
	return meta.Time(demanded), root, nil
}
