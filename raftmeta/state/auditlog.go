package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/shoal-registry/shoal/raftmeta/audit"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// AuditLevel is the cluster level from which the machine writes the audit log.
const AuditLevel = 5

// Below spaceAuditLog.
const (
	inEntries = 'e' // seq-u64 -> line of an audit.Entry
	inTiles   = 't' // tile-u64 -> 256 leaf hashes
	inInner   = 'i' // level-u8 index-u64 -> hash of a complete node, of each eighth level
)

// keyAuditTree holds the audit.Tree.
var keyAuditTree = key{spaceAuditLog, 'r'}

func keyEntry(seq uint64) key { return key{spaceAuditLog, inEntries}.u64(seq) }
func keyTile(n uint64) key    { return key{spaceAuditLog, inTiles}.u64(n) }
func keyInner(n audit.Node) key {
	return append(key{spaceAuditLog, inInner}, byte(n.Level)).u64(n.Index)
}

// housekeeping lists the commands that leave no entry when a node sends them for
// itself (as node:ID or system:WHAT), with the reason. Sent for anybody else they leave one, as all others always
// do: a command that is not here is in the log, also one that is yet to be written.
var housekeeping = map[uint16]string{
	typeTick:              "changes nothing",
	typeExpireUploads:     "takes away uploads that nobody published, whose own entries are there",
	typeReportReplicas:    "says what a server's disk has; what had to be there has an entry",
	typeDemandReplica:     "says again what follows from the repository's settings",
	typeDemandBlobs:       "says again what follows from the repository's settings",
	typeSettleDemands:     "says again what follows from the repositories' settings and the roster",
	typeReportAudit:       "says what a server's scrub saw",
	typeSetRegionHealth:   "is an observation, kept with its history as an incident of the region",
	typeReportBlobs:       "says how a server's disk fares",
	typeReportChecked:     "says that a server has looked at its disk",
	typeCollectBlobs:      "takes away what nobody uses since an act that has an entry, after its grace",
	typeSettleCollected:   "says that a server has removed what it was to remove",
	typeCollectStrays:     "names bytes on a server's disk that no record ever had",
	typeCompareState:      "asks servers to compare their states, and changes nothing else",
	typeReportState:       "is the answer to it",
	typeAdmitHosts:        "lets a host begin what the entry of its wave allows",
	typeReportHosts:       "says how far a host of a wave is",
	typeEndWave:           "notes that all hosts of a wave are done",
	typeForgetWaves:       "forgets waves that ended long ago, whose entries are there",
	typeTouchCredentials:  "says when credentials were used last",
	typeExpireCredentials: "takes away credentials that ended long ago, whose entries are there",
	typeRecountUsage:      "counts again what is there",
	typeReserveStorage:    "holds room for uploads, whose entries come with them",
	typeReportEgress:      "says how much was downloaded, which the access logs do",
	typeLeaseSets:         "says which server builds documents of versions",
	typeCommitSets:        "puts documents in place that follow from versions, whose own entries are there",
	typeRememberSource:    "notes where a name was found upstream",
	typeRecordFetched:     "keeps what an upstream has, which may be fetched again",
	typeSealSecret:        "seals to a server what an entry set",
	typePutCheckpoint:     "says how long the log is: with an entry of its own it would never be",
}

// leavesEntry says whether a command of that origin is in the audit log. A Tick never
// is: the leader sends it in nobody's name.
func leavesEntry(o *Origin, typ uint16) bool {
	if _, ok := housekeeping[typ]; !ok {
		return true
	}
	return typ != typeTick && !strings.HasPrefix(o.Principal, "node:") && !strings.HasPrefix(o.Principal, "system:")
}

// auditTip is the end of the log while a batch is applied: entries are in the batch,
// the tree is brought up to date at its end, or when a command asks for it.
type auditTip struct {
	tree   audit.Tree
	leaves []tlog.Hash // behind tree
	epoch  uint64
}

// next is the place of the next entry.
func (a *auditTip) next() uint64 { return a.tree.Size + uint64(len(a.leaves)) }

// tip returns the end of the log, which is read once a batch.
func (b *batch) tip() (*auditTip, error) {
	if b.audit != nil {
		return b.audit, nil
	}
	a := &auditTip{}
	tree, err := load[audit.Tree](stored{b}, keyAuditTree)
	if err != nil {
		return nil, err
	}
	if tree != nil {
		a.tree = *tree
	}
	b.audit = a
	return a, b.tipEpoch()
}

// tipEpoch reads the epoch anew.
func (b *batch) tipEpoch() error {
	cluster, err := load[meta.Cluster](stored{b}, keyCluster)
	if err == nil && cluster != nil {
		b.audit.epoch = cluster.Epoch
	}
	return err
}

// writeEntry appends the entry of a command that was done, or refused with cause.
func (b *batch) writeEntry(t *tx, c Command, cause error) error {
	level := t.level
	switch c.(type) {
	case Bootstrap, SetLevel, BeginEpoch:
		level = 0
	}
	if level == 0 {
		var err error
		if level, err = levelOf(stored{b}); err != nil {
			return err
		}
	}
	if level < AuditLevel || !leavesEntry(&t.origin, c.Type()) {
		return nil
	}
	tip, err := b.tip()
	if err == nil && t.level == 0 {
		err = b.tipEpoch()
	}
	if err != nil {
		return err
	}
	what := audit.Render(c)
	o := &t.origin
	e := audit.Entry{
		Seq: tip.next(), Epoch: tip.epoch, Index: t.index, Time: o.Time.Std(), Action: kinds[c.Type()].name,
		Principal: o.Principal, Credential: o.TokenID, Elevation: o.Elevation, Source: o.Source, Node: o.Node,
		Request: o.RequestID, Trace: o.Trace, Tenant: what.Tenant, Outcome: audit.Done, What: what.JSON,
	}
	if what.Repository != (meta.RepoRef{}) {
		e.Repository = what.Repository.String()
	}
	if cause != nil {
		e.Outcome, e.Reason = audit.Refused, meta.KindOf(cause)
	} else if err := t.touched.describe(&e); err != nil {
		return err
	}
	line := e.AppendLine(make([]byte, 0, 1024))
	if err := b.Set(keyEntry(e.Seq), line, nil); err != nil {
		return &StorageError{Cause: err}
	}
	tip.leaves = append(tip.leaves, audit.LeafHash(line))
	return nil
}

// auditReader is a command that reads the tree of the audit log: it is up to date then.
type auditReader interface{ readsAuditLog() }

// settleTree brings the tree of this batch up to its entries.
func (b *batch) settleTree() error {
	a := b.audit
	if a == nil || len(a.leaves) == 0 {
		return nil
	}
	from := a.tree.Size
	var failed error
	note := func(err error) {
		if err != nil && failed == nil {
			failed = &StorageError{Cause: err}
		}
	}
	err := a.tree.Append(a.leaves, func(n audit.Node, hash tlog.Hash) {
		if n.Level > 0 && n.Level%audit.TileLevel == 0 {
			note(b.Set(keyInner(n), hash[:], nil))
		}
	})
	if err != nil {
		return &StorageError{Cause: err}
	}
	a.leaves = a.leaves[:0]
	for tile := from / audit.TileLeaves; tile < a.tree.Size/audit.TileLeaves; tile++ {
		leaves, err := leavesOf(stored{b}, tile*audit.TileLeaves, audit.TileLeaves)
		if err != nil {
			return err
		}
		value := make([]byte, 0, audit.TileLeaves*tlog.HashSize)
		for _, h := range leaves {
			value = append(value, h[:]...)
		}
		note(b.Set(keyTile(tile), value, nil))
	}
	t := tx{batch: b.Batch}
	t.put(keyAuditTree, a.tree)
	return errors.Join(failed, t.err)
}

// leavesOf hashes the entries of a range that are there.
func leavesOf(r reader, from, count uint64) ([]tlog.Hash, error) {
	leaves := make([]tlog.Hash, 0, count)
	for p, err := range r.scan(span{lower: keyEntry(from), upper: keyEntry(from + count)}) {
		if err != nil {
			return nil, err
		}
		if string(p.key) != string(keyEntry(from+uint64(len(leaves)))) {
			return nil, &StorageError{Cause: fmt.Errorf("the audit log lacks entry %d", from+uint64(len(leaves)))}
		}
		leaves = append(leaves, audit.LeafHash(p.value))
	}
	return leaves, nil
}

// auditSource is the audit.Source of a state.
type auditSource struct{ reader }

// Leaves implements audit.Source.
func (s auditSource) Leaves(tile uint64) ([]tlog.Hash, error) {
	kept, err := s.get(keyTile(tile))
	switch {
	case err != nil:
		return nil, err
	case kept == nil:
		return leavesOf(s.reader, tile*audit.TileLeaves, audit.TileLeaves)
	case len(kept) != audit.TileLeaves*tlog.HashSize:
		return nil, &StorageError{Cause: fmt.Errorf("tile %d of the audit log has %d bytes", tile, len(kept))}
	}
	leaves := make([]tlog.Hash, audit.TileLeaves)
	for i := range leaves {
		copy(leaves[i][:], kept[i*tlog.HashSize:])
	}
	return leaves, nil
}

// Inner implements audit.Source.
func (s auditSource) Inner(n audit.Node) (tlog.Hash, error) {
	b, err := s.get(keyInner(n))
	if err == nil && len(b) != tlog.HashSize {
		err = &StorageError{Cause: fmt.Errorf("node %d/%d of the audit log has %d bytes", n.Level, n.Index, len(b))}
	}
	if err != nil {
		return tlog.Hash{}, err
	}
	return tlog.Hash(b), nil
}

// touched are the records of kinds that entries show which a command has written.
type touched []touchedRecord

type touchedRecord struct {
	key           string
	kind          *recordKind
	before, after []byte // nil: not there
}

// touch notes that t is about to write k; nil deletes it. Only what an entry can show
// is noted, and only when there will be one.
func (t *tx) touch(k key, after []byte) {
	if !t.audited {
		return
	}
	kind := kindOfRecord(k)
	if kind == nil {
		return
	}
	for i := range t.touched {
		if t.touched[i].key == string(k) {
			t.touched[i].after = after
			return
		}
	}
	before, err := t.get(k)
	if err != nil {
		t.err = errors.Join(t.err, err)
		return
	}
	t.touched = append(t.touched, touchedRecord{string(k), kind, before, after})
}

// maxChanges bounds the records that an entry shows.
const maxChanges = 16

// describe writes the changes into e.
func (s touched) describe(e *audit.Entry) error {
	for i := range s {
		r := &s[i]
		if string(r.before) == string(r.after) && (r.before == nil) == (r.after == nil) || r.kind.quietWhenNew && r.before == nil {
			continue
		}
		if len(e.Changes) == maxChanges {
			e.Unlisted++
			continue
		}
		c := audit.Change{Record: r.kind.name(key(r.key))}
		before, err := r.render(r.before)
		if err != nil {
			return err
		}
		after, err := r.render(r.after)
		if err != nil {
			return err
		}
		switch {
		case r.before == nil:
			c.After = after.JSON
		case r.after == nil:
			c.Before = before.JSON
		default:
			c.Before, c.After = audit.Differ(before, after)
		}
		if e.Tenant == "" {
			e.Tenant = meta.TenantName(r.kind.tenant(key(r.key)))
		}
		e.Changes = append(e.Changes, c)
	}
	return nil
}

func (r *touchedRecord) render(b []byte) (audit.Rendered, error) {
	if b == nil {
		return audit.Rendered{}, nil
	}
	v, err := r.kind.decode(key(r.key), b)
	if err != nil {
		return audit.Rendered{}, err
	}
	return audit.Render(v), nil
}

// auditSequence returns the entry of a command by its index in the Raft log; ok is
// false when it has none, or it was pruned.
func auditSequence(r reader, index uint64) (seq uint64, ok bool, err error) {
	e, err := firstEntry(r, func(e *audit.Entry) bool { return e.Index >= index })
	if err != nil || e == nil || e.Index != index {
		return 0, false, err
	}
	return e.Seq, true, nil
}

// firstEntry finds the first entry for which after holds, as it then does for all
// behind it; nil when there is none. It reads as many entries as a binary search does.
func firstEntry(r reader, after func(*audit.Entry) bool) (*audit.Entry, error) {
	var low, high uint64 // the entry is in [low, high)
	for p, err := range r.scan(within(key{spaceAuditLog, inEntries})) {
		if err != nil {
			return nil, err
		}
		low = seqOf(p.key)
		break
	}
	for p, err := range r.scan(span{lower: key{spaceAuditLog, inEntries}, upper: key{spaceAuditLog, inEntries}.after(), reverse: true}) {
		if err != nil {
			return nil, err
		}
		high = seqOf(p.key) + 1
		break
	}
	var found *audit.Entry
	for low < high {
		middle := low + (high-low)/2
		e, err := entryAt(r, middle)
		if err != nil {
			return nil, err
		}
		if after(e) {
			found, high = e, middle
		} else {
			low = middle + 1
		}
	}
	return found, nil
}

func entryAt(r reader, seq uint64) (*audit.Entry, error) {
	line, err := r.get(keyEntry(seq))
	if err == nil && line == nil {
		err = fmt.Errorf("entry %d of the audit log: %w", seq, meta.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	e, err := audit.ParseLine(line)
	if err != nil {
		return nil, &StorageError{Cause: err}
	}
	return &e, nil
}

// seqOf returns the place that the key of an entry says.
func seqOf(k key) uint64 { return binary.BigEndian.Uint64(k[2:]) }
