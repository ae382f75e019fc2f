package state

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// CollectBlobs does the next part of what is due: it takes links away that no version
// has used for the grace period, and collects roots that nobody has linked for as
// long. That nobody links them is checked in the same entry. It also drops publications
// that were replaced long enough ago, forgets old marks and the orders of servers that have left, and looks through the roots of before
// level 4, once. Its cost is that of the garbage that is due. Result: CollectResult.
//
// Links that the repositories of open waves have released are kept for another grace
// period. While a backup is open nothing is collected.
type CollectBlobs struct {
	Limit uint32 `cbor:"1,keyasint,omitempty"` // records to read: 1 to 1,000
	// Grace, when set, is used instead of the cluster's.
	Grace *time.Duration `cbor:"2,keyasint,omitempty"`
	// Strays asks the servers to look for what nobody knows.
	Strays bool `cbor:"3,keyasint,omitempty"`
}

// CollectResult says what one CollectBlobs did.
type CollectResult struct {
	Links     uint32 `cbor:"1,keyasint,omitempty" json:"links"` // taken away
	Collected uint32 `cbor:"2,keyasint,omitempty" json:"collected"`
	Bytes     int64  `cbor:"3,keyasint,omitempty" json:"bytes"` // of a copy of each that was collected
	Walked    uint32 `cbor:"4,keyasint,omitempty" json:"walked,omitempty"`
	// More says that the limit ended it.
	More bool `cbor:"5,keyasint,omitempty" json:"more"`
	// Held says that a backup is open.
	Held bool `cbor:"6,keyasint,omitempty" json:"held,omitempty"`
}

// maxCollected bounds the records that one command reads.
const maxCollected = 1000

// Type implements Command.
func (CollectBlobs) Type() uint16 { return typeCollectBlobs }

// Check implements Command.
func (c CollectBlobs) Check() error {
	if c.Limit == 0 || c.Limit > maxCollected {
		return fmt.Errorf("collect blobs: limit %d, use 1 to %d: %w", c.Limit, maxCollected, meta.ErrInvalid)
	}
	if c.Grace != nil {
		return checkGrace(*c.Grace)
	}
	return nil
}

func (c CollectBlobs) apply(t *tx) (any, error) {
	g, err := loadGC(t)
	if err != nil {
		return nil, err
	}
	grace := g.grace()
	if c.Grace != nil {
		grace = *c.Grace
	}
	p := collection{tx: t, gc: g, left: c.Limit, before: t.now - meta.Time(grace) + 1}
	if err := p.run(); err != nil {
		return nil, err
	}
	p.result.More = p.left == 0
	g.LastRun = t.now
	if c.Strays {
		g.Strays = t.now
	}
	t.put(inGarbage(ofSettings), g)
	return p.result, nil
}

// collection is one CollectBlobs being applied.
type collection struct {
	*tx
	gc     *gcRecord
	left   uint32
	before meta.Time // what is older is due
	result CollectResult

	waves map[meta.RepoRef]bool // repositories of open waves, once asked
}

// step counts a record; false when the command has read enough.
func (p *collection) step() bool {
	if p.left == 0 {
		return false
	}
	p.left--
	return true
}

// charge counts what else a step has read.
func (p *collection) charge(read uint32) { p.left -= min(p.left, read) }

func (p *collection) run() error {
	steps := []func() error{p.leave, p.forget, p.walk, p.oldSets, p.unlinkReleased}
	held, err := p.backupOpen()
	if err != nil {
		return err
	}
	if p.result.Held = held; !held {
		steps = append(steps, p.roots)
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// leave drops the orders of servers that have left. It looks once at each server that
// has any.
func (p *collection) leave() error {
	for _, letter := range []byte{ofOrders, ofServers} {
		if err := p.leaveLetter(letter); err != nil {
			return err
		}
	}
	return nil
}

func (p *collection) leaveLetter(letter byte) error {
	s := within(inGarbage(letter))
	for {
		server, found, err := firstServer(p, s, letter)
		if err != nil || !found {
			return err
		}
		there, err := isHolder(p, server)
		if err != nil {
			return err
		}
		if letter == ofServers {
			s.lower = append(keyReclaimed(server), 0)
			if there {
				continue
			}
			c, err := find[ReclaimCount](p, keyReclaimed(server), "count of", server)
			if err != nil {
				return err
			}
			if c.Ordered == 0 {
				p.del(keyReclaimed(server))
			}
			continue
		}
		s.lower = keyOrders(server).after()
		if there {
			continue
		}
		for o, err := range p.scan(within(keyOrders(server))) {
			if err != nil {
				return err
			}
			if !p.step() {
				return nil
			}
			root := digest.CID(o.key[len(keyOrders(server)):])
			if err := p.settleOrder(server, root, nil); err != nil {
				return err
			}
		}
	}
}

// firstServer returns the first server that has a record in s.
func firstServer(r reader, s span, letter byte) (meta.NodeID, bool, error) {
	for p, err := range r.scan(s) {
		if err != nil {
			return "", false, err
		}
		if letter == ofServers {
			return meta.NodeID(p.key[2:]), true, nil
		}
		name, _, ok := cutPart(p.key[2:])
		if !ok {
			return "", false, &StorageError{Cause: fmt.Errorf("key %x is no order", p.key)}
		}
		return meta.NodeID(name), true, nil
	}
	return "", false, nil
}

// settleOrder takes an order back and its server from the mark of the root.
func (t *tx) settleOrder(server meta.NodeID, root digest.CID, change func(*ReclaimCount, *orderRecord)) error {
	if err := t.dropOrder(server, root, change); err != nil {
		return err
	}
	mark, err := load[collectedRecord](t, keyCollected(root))
	if err != nil || mark == nil {
		return err
	}
	if at := slices.Index(mark.Servers, server); at >= 0 {
		mark.Servers = slices.Delete(mark.Servers, at, at+1)
		t.put(keyCollected(root), mark)
	}
	return nil
}

// forget drops old marks. One whose orders are not all settled gets another term.
func (p *collection) forget() error {
	for m, err := range p.scan(until(ofMarks, p.now-keepCollected)) {
		if err != nil {
			return err
		}
		if !p.step() {
			return nil
		}
		root := digest.CID(m.key[timed:])
		mark, err := find[collectedRecord](p, keyCollected(root), "mark of", root)
		if err != nil {
			return err
		}
		p.del(bytes.Clone(m.key))
		if len(mark.Servers) > 0 {
			mark.At = p.now
			p.put(keyCollected(root), mark)
			p.mark(keyMark(mark.At, root))
			continue
		}
		p.del(keyCollected(root))
		p.gc.Floor = max(p.gc.Floor, mark.Index)
	}
	return nil
}

// walk looks through the roots that were there before garbage was written down.
func (p *collection) walk() error {
	if !p.gc.Walk {
		return nil
	}
	prefix := key{spaceRoots}
	after := key(nil)
	if !p.gc.WalkAfter.IsZero() {
		after = keyRoots(p.gc.WalkAfter).after()
	}
	s := within(prefix)
	if after != nil {
		s.lower = after
	}
	var root digest.CID
	var last *blobRecord
	linked := false
	ended := func() error {
		if last == nil || linked {
			return nil
		}
		b := last.Blob
		return p.discard(root, garbageRecord{Since: p.now, StoredBytes: b.StoredBytes, Context: b.Context, Digest: b.Digest})
	}
	for o, err := range p.scan(s) {
		if err != nil {
			return err
		}
		if len(o.key) < 1+len(root) {
			return &StorageError{Cause: fmt.Errorf("key %x is no root", o.key)}
		}
		if at := digest.CID(o.key[1 : 1+len(root)]); at != root {
			if err := ended(); err != nil {
				return err
			}
			if last != nil {
				p.gc.WalkAfter = root
			}
			if !p.step() {
				return nil
			}
			p.result.Walked++
			root, last, linked = at, nil, false
		}
		k := keyBlob(string(o.key[1+len(root):]), digest.Digest(o.value))
		record, err := find[blobRecord](p, k, "blob", digest.Digest(o.value))
		if err != nil {
			return err
		}
		if last = record; record.Links > 0 {
			linked = true
			if err := p.countLinked(record); err != nil {
				return err
			}
			p.put(k, record)
		}
	}
	p.gc.Walk, p.gc.WalkAfter = false, digest.CID{}
	return ended()
}

// oldSets drops publications that were kept long enough after others replaced them.
func (p *collection) oldSets() error {
	for o, err := range p.scan(until(ofOldSets, p.now-meta.Time(keepOldFor))) {
		if err != nil {
			return err
		}
		if !p.step() {
			return nil
		}
		k, err := oldSetOf(o.key)
		if err != nil {
			return err
		}
		set, err := find[meta.Publication](p, k, "replaced publication", fmt.Sprintf("%x", k))
		if err != nil {
			return err
		}
		if err := p.dropSet(k, set); err != nil {
			return err
		}
		p.charge(uint32(len(set.Files)))
	}
	return nil
}

// unlinkReleased takes links away that no version has used for the grace period.
func (p *collection) unlinkReleased() error {
	for r, err := range p.scan(until(ofReleased, p.before)) {
		if err != nil {
			return err
		}
		if !p.step() {
			return nil
		}
		since, repo, d, err := parseReleased(r.key)
		if err != nil {
			return err
		}
		l, err := load[linkRecord](p, keyLink(repo, d))
		if err != nil {
			return err
		}
		if l == nil || l.Link.Claims > 0 || !l.Released {
			return &StorageError{Cause: fmt.Errorf("%s in %s waits for the end of its grace but is not released", d, repo)}
		}
		kept, err := p.inWave(repo)
		if err != nil {
			return err
		}
		if kept {
			if err := p.keepReleased(repo, l); err != nil {
				return err
			}
			continue
		}
		if err := p.unlink(repo, l, since, l.By); err != nil {
			return err
		}
		p.charge(3)
		p.result.Links++
	}
	return nil
}

// keptLeast is how long a released link is kept at least, however short the grace: a
// collection comes to its end while a wave is open.
const keptLeast = 10 * time.Second

// keepReleased gives a released link another grace period.
func (p *collection) keepReleased(repo meta.RepoRef, l *linkRecord) error {
	by := l.By
	if err := p.unawait(repo, l); err != nil {
		return err
	}
	if err := p.await(repo, l, by); err != nil {
		return err
	}
	if since := p.before - 1 + meta.Time(keptLeast); since > l.Since {
		p.del(keyReleased(l.Since, repo, l.Link.Blob))
		l.Since = since
		p.mark(keyReleased(l.Since, repo, l.Link.Blob))
	}
	p.put(keyLink(repo, l.Link.Blob), l)
	return nil
}

// inWave reports whether an open wave names the repository.
func (p *collection) inWave(repo meta.RepoRef) (bool, error) {
	if p.waves != nil {
		return p.waves[repo], nil
	}
	p.waves = map[meta.RepoRef]bool{}
	for o, err := range p.scan(within(key{spaceOpenWaves})) {
		if err != nil {
			return false, err
		}
		w, err := findWave(p, string(o.key[1:]))
		if err != nil {
			return false, err
		}
		p.charge(1)
		for _, ref := range w.Refs {
			p.waves[ref.Repo] = true
		}
	}
	return p.waves[repo], nil
}

// roots collects what nobody has linked for the grace period.
func (p *collection) roots() error {
	for e, err := range p.scan(until(ofTimes, p.before)) {
		if err != nil {
			return err
		}
		if !p.step() {
			return nil
		}
		root := digest.CID(e.key[timed:])
		g, err := find[garbageRecord](p, keyGarbage(root), "garbage", root)
		if err != nil {
			return err
		}
		if err := p.undiscard(root); err != nil {
			return err
		}
		// What makes a root garbage sees to this; a mistake there must cost no blob.
		if is, err := linked(p, root); err != nil {
			return err
		} else if is {
			continue
		}
		read, err := p.collect(root, g.StoredBytes)
		if err != nil {
			return err
		}
		p.charge(read)
		p.result.Collected++
		p.result.Bytes += g.StoredBytes
		if err := p.countContext(g.Context, func(c *ContextCount) {
			c.Collected++
			c.CollectedBytes += g.StoredBytes
		}); err != nil {
			return err
		}
	}
	return nil
}
