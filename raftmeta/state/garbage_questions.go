package state

import (
	"encoding/hex"
	"fmt"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// GetGC answers how the collection of garbage stands.
type GetGC struct{}

// GCStatus is what GetGC answers.
type GCStatus struct {
	Grace time.Duration `cbor:"1,keyasint,omitempty" json:"grace"`
	// Walking says that the roots of before level 4 are still being looked through.
	Walking bool      `cbor:"2,keyasint,omitempty" json:"walking,omitempty"`
	LastRun meta.Time `cbor:"3,keyasint,omitempty" json:"last_run,omitempty"`
	// Held says that a backup's lease has not ended when it was last renewed: nothing
	// is collected until then.
	Held     meta.Time      `cbor:"4,keyasint,omitempty" json:"held_until,omitempty"`
	Contexts []ContextCount `cbor:"5,keyasint,omitempty" json:"contexts"` // up to 10,000
	Servers  []ReclaimCount `cbor:"6,keyasint,omitempty" json:"servers"`
	// Strays is when servers were last asked to look for what nobody knows.
	Strays meta.Time `cbor:"7,keyasint,omitempty" json:"strays_asked,omitempty"`
}

// Answer implements Question.
func (GetGC) Answer(v *View) (a GCStatus, _ error) {
	g, err := loadGC(v)
	if err != nil {
		return a, err
	}
	a.Grace, a.Walking, a.LastRun, a.Strays = g.grace(), g.Walk, g.LastRun, g.Strays
	open, err := openBackups(v, 0)
	if err != nil {
		return a, err
	}
	for _, b := range open {
		a.Held = max(a.Held, b.Until)
	}
	if a.Contexts, err = list[ContextCount](v, within(inGarbage(ofContexts)), Page{Limit: maxPage}, nil); err != nil {
		return a, err
	}
	a.Servers, err = list[ReclaimCount](v, within(inGarbage(ofServers)), Page{Limit: maxPage}, nil)
	return a, err
}

// GarbageDue answers whether a CollectBlobs has something to do at Now.
type GarbageDue struct {
	Now meta.Time `cbor:"1,keyasint,omitempty"`
}

// Answer implements Question.
func (q GarbageDue) Answer(v *View) (bool, error) {
	g, err := loadGC(v)
	if err != nil || g.Walk {
		return err == nil, err
	}
	before := q.Now - meta.Time(g.grace())
	spans := []span{until(ofReleased, before), until(ofMarks, q.Now-keepCollected), until(ofOldSets, q.Now-meta.Time(keepOldFor))}
	if open, err := openBackups(v, q.Now); err != nil {
		return false, err
	} else if len(open) == 0 {
		spans = append(spans, until(ofTimes, before))
	}
	for _, s := range spans {
		for _, err := range v.scan(s) {
			return err == nil, err
		}
	}
	return strandedOrders(v)
}

// strandedOrders reports whether a server that has left still has orders.
func strandedOrders(r reader) (bool, error) {
	for s := within(inGarbage(ofOrders)); ; {
		server, found, err := firstServer(r, s, ofOrders)
		if err != nil || !found {
			return false, err
		}
		if n, err := r.get(keyNode(server)); err != nil || n == nil {
			return err == nil, err
		}
		s.lower = keyOrders(server).after()
	}
}

// ListGarbage lists what waits for the end of its grace: first the links that no
// version uses since one was deleted, then the roots that nobody links; each oldest
// first, those from before Before only when that is set. Page.After is the After of the
// last one.
type ListGarbage struct {
	Before meta.Time `cbor:"1,keyasint,omitempty"`
	Page   Page      `cbor:"2,keyasint,omitempty"`
}

// Garbage is one entry of ListGarbage.
type Garbage struct {
	// Released says that Repo links it still; else nobody does.
	Released    bool          `cbor:"1,keyasint,omitempty" json:"released"`
	Since       meta.Time     `cbor:"2,keyasint,omitempty" json:"since"`
	Root        digest.CID    `cbor:"3,keyasint,omitempty" json:"root"`
	Context     string        `cbor:"4,keyasint,omitempty" json:"context"`
	Digest      digest.Digest `cbor:"5,keyasint,omitempty" json:"digest"`
	Repo        meta.RepoRef  `cbor:"6,keyasint,omitempty" json:"repo"`
	By          string        `cbor:"7,keyasint,omitempty" json:"by,omitempty"` // who deleted the last use
	StoredBytes int64         `cbor:"8,keyasint,omitempty" json:"stored_bytes"`
	// Others says that something else links the blob: its bytes stay.
	Others bool   `cbor:"9,keyasint,omitempty" json:"others,omitempty"`
	After  string `cbor:"10,keyasint,omitempty" json:"-"`
}

// Answer implements Question.
func (q ListGarbage) Answer(v *View) (a []Garbage, _ error) {
	limit, err := q.Page.limit()
	if err != nil {
		return nil, err
	}
	after, err := hex.DecodeString(q.Page.After)
	if err != nil || len(after) > 0 && (after[0] != spaceGarbage || len(after) < 2) {
		return nil, fmt.Errorf("page after %q is of no garbage: %w", q.Page.After, meta.ErrInvalid)
	}
	for _, letter := range []byte{ofReleased, ofTimes} {
		if len(after) > 1 && after[1] > letter {
			continue
		}
		s := within(inGarbage(letter))
		if q.Before != 0 {
			s = until(letter, q.Before)
		}
		if len(after) > 1 && after[1] == letter {
			s.lower = append(append(key(nil), after...), 0)
		}
		for p, err := range v.scan(s) {
			if err != nil {
				return nil, err
			}
			g, err := garbageOf(v, p.key, q.Before)
			if err != nil {
				return nil, err
			}
			g.After = hex.EncodeToString(p.key)
			if a = append(a, *g); len(a) == limit {
				return a, nil
			}
		}
	}
	return a, nil
}

// garbageOf reads an entry by its place in time.
func garbageOf(r reader, k []byte, before meta.Time) (*Garbage, error) {
	if k[1] == ofTimes {
		since, rest, err := parseTimed(k)
		if err != nil {
			return nil, err
		}
		root := digest.CID(rest)
		g, err := find[garbageRecord](r, keyGarbage(root), "garbage", root)
		if err != nil {
			return nil, err
		}
		return &Garbage{Since: since, Root: root, Context: g.Context, Digest: g.Digest, Repo: g.Repo, By: g.By, StoredBytes: g.StoredBytes}, nil
	}
	since, repo, d, err := parseReleased(k)
	if err != nil {
		return nil, err
	}
	l, err := find[linkRecord](r, keyLink(repo, d), "link", d)
	if err != nil {
		return nil, err
	}
	record, err := blobOf(r, l)
	if err != nil {
		return nil, err
	}
	g := &Garbage{
		Released: true, Since: since, Root: record.Blob.Root, Context: l.Context, Digest: d, Repo: repo, By: l.By,
		StoredBytes: record.Blob.StoredBytes,
	}
	g.Others, err = usedBeside(r, record, repo, before)
	return g, err
}

// usedBeside reports whether anything but released links as old keeps the root of a
// blob, or a released one whose repository comes before repo: so of several that go
// together one counts. With more than a hundred links it says yes without looking.
func usedBeside(r reader, record *blobRecord, repo meta.RepoRef, before meta.Time) (bool, error) {
	const most = 100
	root := record.Blob.Root
	for p, err := range r.scan(within(keyRoots(root))) {
		if err != nil {
			return false, err
		}
		context := string(p.key[len(keyRoots(root)):])
		if context == record.Blob.Context {
			continue
		}
		other, err := load[blobRecord](r, keyBlob(context, digest.Digest(p.value)))
		if err != nil || other != nil && other.Links > 0 {
			return err == nil, err
		}
	}
	if record.Links <= 1 {
		return false, nil
	}
	if record.Links > most || record.Blob.Context == meta.PublicContext {
		return true, nil
	}
	prefix := keyMentions(meta.TenantName(record.Blob.Context), record.Blob.Digest)
	for p, err := range r.scan(within(prefix)) {
		if err != nil {
			return false, err
		}
		other := meta.RepoRef{Tenant: meta.TenantName(record.Blob.Context), Name: string(p.key[len(prefix):])}
		if other == repo {
			continue
		}
		l, err := load[linkRecord](r, keyLink(other, record.Blob.Digest))
		if err != nil {
			return false, err
		}
		goes := l == nil || l.Released && (before == 0 || l.Since < before)
		if !goes || l != nil && other.Name < repo.Name {
			return true, nil
		}
	}
	return false, nil
}

// ListOrders lists what a server is to remove, by root. Page.After is the text of a
// root.
type ListOrders struct {
	Server meta.NodeID `cbor:"1,keyasint,omitempty"`
	Page   Page        `cbor:"2,keyasint,omitempty"`
}

// Order is one entry of ListOrders.
type Order struct {
	CollectedCopy
	StoredBytes int64 `cbor:"3,keyasint,omitempty"`
}

// Answer implements Question.
func (q ListOrders) Answer(v *View) (a []Order, _ error) {
	limit, err := q.Page.limit()
	if err != nil {
		return nil, err
	}
	prefix := keyOrders(q.Server)
	s := within(prefix)
	if q.Page.After != "" {
		root, err := digest.ParseCID(q.Page.After)
		if err != nil {
			return nil, fmt.Errorf("page after %q: %w: %w", q.Page.After, err, meta.ErrInvalid)
		}
		s.lower = append(keyOrder(q.Server, root), 0)
	}
	for p, err := range v.scan(s) {
		if err != nil {
			return nil, err
		}
		o, err := decode[orderRecord](p.key, p.value)
		if err != nil {
			return nil, err
		}
		a = append(a, Order{CollectedCopy: CollectedCopy{Root: digest.CID(p.key[len(prefix):]), Index: o.Index}, StoredBytes: o.StoredBytes})
		if len(a) == limit {
			break
		}
	}
	return a, nil
}

// GetOrder answers whether a server is to remove a root, by an Index that is not 0,
// and whether the cluster's level lets commands say what was seen.
type GetOrder struct {
	Server meta.NodeID `cbor:"1,keyasint,omitempty"`
	Root   digest.CID  `cbor:"2,keyasint,omitempty"`
}

// OrderAnswer is what GetOrder answers.
type OrderAnswer struct {
	Index uint64 `cbor:"1,keyasint,omitempty"`
	Level uint32 `cbor:"2,keyasint,omitempty"`
	// Collected is the index of the command that collected the root last, 0 when that
	// is not remembered.
	Collected uint64 `cbor:"3,keyasint,omitempty"`
}

// Fenced reports whether commands of the cluster's level may say what was seen.
func (a OrderAnswer) Fenced() bool { return a.Level >= GCLevel }

// Answer implements Question.
func (q GetOrder) Answer(v *View) (a OrderAnswer, err error) {
	if a.Level, err = levelOf(v); err != nil {
		return a, err
	}
	o, err := load[orderRecord](v, keyOrder(q.Server, q.Root))
	if err != nil {
		return a, err
	}
	if o != nil {
		a.Index = o.Index
	}
	c, err := load[collectedRecord](v, keyCollected(q.Root))
	if err == nil && c != nil {
		a.Collected = c.Index
	}
	return a, err
}

// StrayRoots answers which of a server's blobs the metadata does not know, and which of
// the others it has no word on from that server, in the order in which they are named.
type StrayRoots struct {
	Server meta.NodeID     `cbor:"1,keyasint,omitempty"`
	Region meta.RegionName `cbor:"2,keyasint,omitempty"`
	Roots  []digest.CID    `cbor:"3,keyasint,omitempty"` // up to 1,000
}

// StrayAnswer is what StrayRoots answers.
type StrayAnswer struct {
	Unknown []digest.CID `cbor:"1,keyasint,omitempty"`
	// Spare are known, of no record of the server, not owed in its region, and verified
	// elsewhere.
	Spare []digest.CID `cbor:"2,keyasint,omitempty"`
}

// Answer implements Question.
func (q StrayRoots) Answer(v *View) (a StrayAnswer, _ error) {
	if len(q.Roots) > 1000 {
		return a, fmt.Errorf("%d roots, at most 1000: %w", len(q.Roots), meta.ErrInvalid)
	}
	for _, root := range q.Roots {
		known, err := knownRoot(v, root)
		if err != nil {
			return a, err
		}
		if !known {
			a.Unknown = append(a.Unknown, root)
			continue
		}
		spare, err := q.spare(v, root)
		if err != nil {
			return a, err
		}
		if spare {
			a.Spare = append(a.Spare, root)
		}
	}
	return a, nil
}

func (q StrayRoots) spare(v *View, root digest.CID) (bool, error) {
	verified := false
	for p, err := range v.scan(within(keyReplicas(root))) {
		if err != nil {
			return false, err
		}
		r, err := decode[meta.Replica](p.key, p.value)
		if err != nil {
			return false, err
		}
		switch {
		case r.Server == q.Server, r.Server == "" && r.Region == q.Region && r.State != meta.ReplicaVerified:
			return false, nil
		case r.Server != "" && r.State == meta.ReplicaVerified:
			verified = true
		}
	}
	return verified, nil
}
