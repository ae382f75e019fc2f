package state

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Garbage, from level 4 on. What no version uses any more waits for a grace period:
// first as a released link, then, when nobody links its root in any context, as a
// garbage root. CollectBlobs ends the wait. It leaves an order for each server that
// had a copy, and a mark of when the root was collected: who vouches for a copy of
// such a root must have looked after that (DESIGN.md, Garbage).

// GCLevel is the level from which garbage is collected.
const GCLevel = 4

// DefaultGrace is how long what was deleted is kept while nothing else is set.
const DefaultGrace = 24 * time.Hour

// keepCollected is how long the mark of a collected root stays. What somebody saw
// before the youngest mark that is gone is no word on a copy any more.
const keepCollected = meta.Time(24 * time.Hour)

// Letters of the space of garbage; [x] is a bare last part.
const (
	ofReleased  = 'l' // released at, tenant, repository, digest -> nothing
	ofRoots     = 'r' // [root] -> garbageRecord
	ofTimes     = 't' // garbage since, root -> nothing
	ofCollected = 'c' // [root] -> collectedRecord
	ofMarks     = 'k' // mark's time, root -> nothing
	ofOrders    = 'd' // server, [root] -> orderRecord
	ofContexts  = 'n' // [context] -> ContextCount
	ofServers   = 'v' // [server] -> ReclaimCount
	ofSettings  = 's' // gcRecord
	ofOldSets   = 'o' // replaced at, tenant, repository, name, revision-u64 -> nothing: publications
)

// garbageRecord is a root that nobody links.
type garbageRecord struct {
	Since       meta.Time     `cbor:"1,keyasint,omitempty"`
	StoredBytes int64         `cbor:"2,keyasint,omitempty"`
	Context     string        `cbor:"3,keyasint,omitempty"` // of the link that went last
	Digest      digest.Digest `cbor:"4,keyasint,omitempty"`
	Repo        meta.RepoRef  `cbor:"5,keyasint,omitzero"`
	By          string        `cbor:"6,keyasint,omitempty"` // who deleted the last use
}

// collectedRecord marks a root that was collected, until keepCollected has passed
// and no server owes its removal.
type collectedRecord struct {
	Index   uint64        `cbor:"1,keyasint,omitempty"` // of the command that collected it last
	At      meta.Time     `cbor:"2,keyasint,omitempty"` // its place among the marks
	Servers []meta.NodeID `cbor:"3,keyasint,omitempty"` // that have an order
}

// orderRecord is what a server is to remove.
type orderRecord struct {
	Index       uint64 `cbor:"1,keyasint,omitempty"` // of the command that ordered it
	StoredBytes int64  `cbor:"2,keyasint,omitempty"`
}

// gcRecord is what is kept of the collection as a whole.
type gcRecord struct {
	Grace *time.Duration `cbor:"1,keyasint,omitempty"`
	// Floor is the highest index of a mark that is gone.
	Floor uint64 `cbor:"2,keyasint,omitempty"`
	// Walk says that the roots of before level 4 are being looked through, behind
	// WalkAfter.
	Walk      bool       `cbor:"3,keyasint,omitempty"`
	WalkAfter digest.CID `cbor:"4,keyasint,omitzero"`
	LastRun   meta.Time  `cbor:"5,keyasint,omitempty"`
	// Strays is when servers were last asked to look for what nobody knows.
	Strays meta.Time `cbor:"6,keyasint,omitempty"`
}

func (g *gcRecord) grace() time.Duration {
	if g.Grace == nil {
		return DefaultGrace
	}
	return *g.Grace
}

// ContextCount is what the blobs of a context come to, counted from level 4 on.
type ContextCount struct {
	Context string `cbor:"1,keyasint,omitempty" json:"context"`
	// Blobs are those that a repository links, each once.
	Blobs uint64 `cbor:"2,keyasint,omitempty" json:"blobs"`
	Bytes int64  `cbor:"3,keyasint,omitempty" json:"bytes"`
	// Released counts links that no version uses since one was deleted, with the bytes
	// of their blobs; they are among Blobs still.
	Released      uint64 `cbor:"4,keyasint,omitempty" json:"released"`
	ReleasedBytes int64  `cbor:"5,keyasint,omitempty" json:"released_bytes"`
	// Garbage counts roots that nobody links.
	Garbage      uint64 `cbor:"6,keyasint,omitempty" json:"garbage"`
	GarbageBytes int64  `cbor:"7,keyasint,omitempty" json:"garbage_bytes"`
	// Collected counts those that were collected, ever.
	Collected      uint64 `cbor:"8,keyasint,omitempty" json:"collected"`
	CollectedBytes int64  `cbor:"9,keyasint,omitempty" json:"collected_bytes"`
}

// ReclaimCount is what a server removed and is to remove.
type ReclaimCount struct {
	Server         meta.NodeID `cbor:"1,keyasint,omitempty" json:"server"`
	Ordered        uint64      `cbor:"2,keyasint,omitempty" json:"ordered"`
	OrderedBytes   int64       `cbor:"3,keyasint,omitempty" json:"ordered_bytes"`
	Reclaimed      uint64      `cbor:"4,keyasint,omitempty" json:"reclaimed"`
	ReclaimedBytes int64       `cbor:"5,keyasint,omitempty" json:"reclaimed_bytes"`
	Last           meta.Time   `cbor:"6,keyasint,omitempty" json:"last,omitempty"` // order that was settled
}

func inGarbage(letter byte) key           { return append(make(key, 0, 96), spaceGarbage, letter) }
func keyGarbage(root digest.CID) key      { return append(inGarbage(ofRoots), root[:]...) }
func keyCollected(root digest.CID) key    { return append(inGarbage(ofCollected), root[:]...) }
func keyOrders(server meta.NodeID) key    { return inGarbage(ofOrders).part(string(server)) }
func keyContext(context string) key       { return inGarbage(ofContexts).last(context) }
func keyReclaimed(server meta.NodeID) key { return inGarbage(ofServers).last(string(server)) }

func keyOrder(server meta.NodeID, root digest.CID) key {
	return append(keyOrders(server), root[:]...)
}

func keyGarbageTime(since meta.Time, root digest.CID) key {
	return append(inGarbage(ofTimes).u64(clock(since)), root[:]...)
}

func keyMark(at meta.Time, root digest.CID) key {
	return append(inGarbage(ofMarks).u64(clock(at)), root[:]...)
}

func keyReleased(since meta.Time, repo meta.RepoRef, d digest.Digest) key {
	return inGarbage(ofReleased).u64(clock(since)).part(string(repo.Tenant)).part(repo.Name).digest(d)
}

// timed is the length of the part of a key with a time, in front of what is timed.
const timed = 2 + 8

func parseTimed(k []byte) (at meta.Time, rest []byte, err error) {
	if len(k) <= timed {
		return 0, nil, &StorageError{Cause: fmt.Errorf("key %x has no time", k)}
	}
	return meta.Time(binary.BigEndian.Uint64(k[2:timed])), k[timed:], nil
}

func parseReleased(k []byte) (at meta.Time, repo meta.RepoRef, d digest.Digest, err error) {
	at, rest, err := parseTimed(k)
	if err != nil {
		return 0, repo, "", err
	}
	tenant, rest, ok1 := cutPart(rest)
	name, rest, ok2 := cutPart(rest)
	d, ok3 := parseDigest(rest)
	if !ok1 || !ok2 || !ok3 {
		return 0, repo, "", &StorageError{Cause: fmt.Errorf("key %x is no released link", k)}
	}
	return at, meta.RepoRef{Tenant: meta.TenantName(tenant), Name: name}, d, nil
}

// until spans what of a timed letter is older than before.
func until(letter byte, before meta.Time) span {
	return span{lower: inGarbage(letter), upper: inGarbage(letter).u64(clock(before))}
}

func loadGC(r reader) (*gcRecord, error) {
	g, err := load[gcRecord](r, inGarbage(ofSettings))
	if err == nil && g == nil {
		g = &gcRecord{}
	}
	return g, err
}

// collects reports whether garbage is collected at this level.
func (t *tx) collects() (bool, error) {
	level, err := levelOf(t)
	return level >= GCLevel, err
}

// countContext changes what is counted of a context.
func (t *tx) countContext(context string, change func(*ContextCount)) error {
	k := keyContext(context)
	c, err := load[ContextCount](t, k)
	if err != nil {
		return err
	}
	if c == nil {
		c = &ContextCount{Context: context}
	}
	change(c)
	t.put(k, c)
	return nil
}

func (t *tx) countServer(server meta.NodeID, change func(*ReclaimCount)) error {
	k := keyReclaimed(server)
	c, err := load[ReclaimCount](t, k)
	if err != nil {
		return err
	}
	if c == nil {
		c = &ReclaimCount{Server: server}
	}
	change(c)
	t.put(k, c)
	return nil
}

// countLinked counts a blob that has come to be linked, or no longer is, once.
func (t *tx) countLinked(record *blobRecord) error {
	linked := record.Links > 0
	if linked == record.Counted {
		return nil
	}
	if on, err := t.collects(); err != nil || !on {
		return err
	}
	record.Counted = linked
	return t.countContext(record.Blob.Context, func(c *ContextCount) {
		if linked {
			c.Blobs++
			c.Bytes += record.Blob.StoredBytes
		} else {
			c.Blobs--
			c.Bytes -= record.Blob.StoredBytes
		}
	})
}

// await gives an unclaimed link its place among those that expire: with the uploads,
// or, when by released it, among the released ones.
func (t *tx) await(repo meta.RepoRef, l *linkRecord, by string) error {
	l.Since, l.Released, l.By, l.Bytes = t.now, false, "", 0
	released := by != ""
	if released {
		on, err := t.collects()
		if err != nil {
			return err
		}
		released = on
	}
	if !released {
		t.mark(upload{Since: l.Since, Repo: repo, Link: l.Link.Blob}.key())
		return nil
	}
	record, err := blobOf(t, l)
	if err != nil {
		return err
	}
	l.Released, l.By, l.Bytes = true, by, record.Blob.StoredBytes
	t.mark(keyReleased(l.Since, repo, l.Link.Blob))
	if err := t.hold(repo, l.Link.Blob, record.Blob.PlainBytes, -1); err != nil {
		return err
	}
	return t.countContext(l.Context, func(c *ContextCount) {
		c.Released++
		c.ReleasedBytes += l.Bytes
	})
}

// unawait takes an unclaimed link from its place among those that expire.
func (t *tx) unawait(repo meta.RepoRef, l *linkRecord) error {
	if !l.Released {
		t.del(upload{Since: l.Since, Repo: repo, Link: l.Link.Blob}.key())
		return nil
	}
	t.del(keyReleased(l.Since, repo, l.Link.Blob))
	bytes := l.Bytes
	l.Released, l.By, l.Bytes = false, "", 0
	if err := t.holdLinked(repo, l, 1); err != nil {
		return err
	}
	return t.countContext(l.Context, func(c *ContextCount) {
		c.Released--
		c.ReleasedBytes -= bytes
	})
}

// discard makes a root garbage, unless a repository links it in another context.
func (t *tx) discard(root digest.CID, g garbageRecord) error {
	if on, err := t.collects(); err != nil || !on {
		return err
	}
	if is, err := linked(t, root); err != nil || is {
		return err
	}
	if old, err := t.get(keyGarbage(root)); err != nil || old != nil {
		return err
	}
	t.put(keyGarbage(root), g)
	t.mark(keyGarbageTime(g.Since, root))
	return t.countContext(g.Context, func(c *ContextCount) {
		c.Garbage++
		c.GarbageBytes += g.StoredBytes
	})
}

// isGarbage reports whether a root waits to be collected: nobody is owed copies of it.
func (t *tx) isGarbage(root digest.CID) (bool, error) {
	g, err := t.get(keyGarbage(root))
	return g != nil, err
}

// rescue takes a root that is linked again back from the garbage, and the orders to
// remove it back from the servers. One that is being removed there meanwhile is not
// vouched for by anybody (trusted).
func (t *tx) rescue(root digest.CID) error {
	if err := t.undiscard(root); err != nil {
		return err
	}
	c, err := load[collectedRecord](t, keyCollected(root))
	if err != nil || c == nil || len(c.Servers) == 0 {
		return err
	}
	for _, server := range c.Servers {
		if err := t.dropOrder(server, root, nil); err != nil {
			return err
		}
	}
	c.Servers = nil
	t.put(keyCollected(root), c)
	return nil
}

// undiscard takes a root from the garbage, if it is there.
func (t *tx) undiscard(root digest.CID) error {
	g, err := load[garbageRecord](t, keyGarbage(root))
	if err != nil || g == nil {
		return err
	}
	t.del(keyGarbage(root))
	t.del(keyGarbageTime(g.Since, root))
	return t.countContext(g.Context, func(c *ContextCount) {
		c.Garbage--
		c.GarbageBytes -= g.StoredBytes
	})
}

// dropOrder takes an order back; change, when set, counts what came of it.
func (t *tx) dropOrder(server meta.NodeID, root digest.CID, change func(*ReclaimCount, *orderRecord)) error {
	k := keyOrder(server, root)
	o, err := load[orderRecord](t, k)
	if err != nil || o == nil {
		return err
	}
	t.del(k)
	return t.countServer(server, func(c *ReclaimCount) {
		c.Ordered--
		c.OrderedBytes -= o.StoredBytes
		if change != nil {
			change(c, o)
		}
	})
}

// trusted says whether the word on a copy of root holds that a server gave who had
// seen the state up to the index seen: it does not when the root was collected since,
// for then the server may have removed it since. The word of one that does not say
// what it saw (0) holds for roots that were not collected lately.
func trusted(r reader, root digest.CID, seen uint64) (bool, error) {
	c, err := load[collectedRecord](r, keyCollected(root))
	if err != nil {
		return false, err
	}
	if c != nil && seen < c.Index {
		return false, nil
	}
	if seen == 0 {
		return true, nil
	}
	g, err := loadGC(r)
	return err == nil && seen >= g.Floor, err
}

// vouch refuses the word of a server on a copy that it was told to remove, and has not
// said that it kept.
func (t *tx) vouch(root digest.CID, server meta.NodeID, seen uint64) error {
	ok, err := trusted(t, root, seen)
	if err != nil {
		return err
	}
	if ok {
		order, err := t.get(keyOrder(server, root))
		if err != nil || order == nil {
			return err
		}
	}
	return fmt.Errorf("the copy of %s at %s was collected meanwhile, look again: %w", root, server, meta.ErrConflict)
}

// collect removes all records of a root that nobody links, leaves its mark, and orders
// the servers that had copies, and also, to remove theirs. It returns how many records
// it read.
func (t *tx) collect(root digest.CID, bytes int64, also ...meta.NodeID) (read uint32, err error) {
	prefix := keyRoots(root)
	for p, err := range t.scan(within(prefix)) {
		if err != nil {
			return read, err
		}
		read++
		t.del(keyBlob(string(p.key[len(prefix):]), digest.Digest(p.value)))
		t.del(p.key)
	}
	mark, err := load[collectedRecord](t, keyCollected(root))
	if err != nil {
		return read, err
	}
	if mark == nil {
		mark = &collectedRecord{}
	} else {
		t.del(keyMark(mark.At, root))
	}
	mark.Index, mark.At = t.index, t.now
	servers := slices.Concat(mark.Servers, also)
	for p, err := range t.scan(within(keyReplicas(root))) {
		if err != nil {
			return read, err
		}
		read++
		r, err := decode[meta.Replica](p.key, p.value)
		if err != nil {
			return read, err
		}
		if r.Server == "" {
			if err := t.dropDemand(r); err != nil {
				return read, err
			}
			continue
		}
		t.del(p.key)
		servers = append(servers, r.Server)
	}
	slices.Sort(servers)
	mark.Servers = nil
	for _, server := range slices.Compact(servers) {
		ordered, err := t.order(server, root, bytes)
		if err != nil {
			return read, err
		}
		if ordered {
			mark.Servers = append(mark.Servers, server)
		}
	}
	t.put(keyCollected(root), mark)
	t.mark(keyMark(mark.At, root))
	if err := t.remark(root); err != nil {
		return read, err
	}
	return read, t.forgetLost(root)
}

// order tells a server to remove its copy, unless the server has left.
func (t *tx) order(server meta.NodeID, root digest.CID, bytes int64) (bool, error) {
	if err := t.dropOrder(server, root, nil); err != nil {
		return false, err
	}
	if is, err := isHolder(t, server); err != nil || !is {
		return false, err
	}
	t.put(keyOrder(server, root), orderRecord{Index: t.index, StoredBytes: bytes})
	return true, t.countServer(server, func(c *ReclaimCount) {
		c.Ordered++
		c.OrderedBytes += bytes
	})
}
