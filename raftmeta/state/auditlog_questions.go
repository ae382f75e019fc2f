package state

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/shoal-registry/shoal/raftmeta/audit"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// ServersOnly is a question that agents may not ask: its answer is about more than
// what they serve.
type ServersOnly interface{ serversOnly() }

// GetAuditLog answers where the audit log is.
type GetAuditLog struct{}

// AuditLog is the end of the log.
type AuditLog struct {
	Cluster string          `cbor:"1,keyasint,omitempty" json:"cluster"`
	Epoch   uint64          `cbor:"2,keyasint,omitempty" json:"epoch"`
	Size    uint64          `cbor:"3,keyasint,omitempty" json:"size"`
	Root    []byte          `cbor:"4,keyasint,omitempty" json:"root"`
	Checked *audit.Signed   `cbor:"5,keyasint,omitempty" json:"checkpoint,omitempty"` // the last
	Kept    audit.Retention `cbor:"6,keyasint,omitzero" json:"retention"`
	// Prunable says that entries may go now.
	Prunable bool `cbor:"7,keyasint,omitempty" json:"-"`
}

// Answer implements Question.
func (GetAuditLog) Answer(v *View) (a AuditLog, err error) {
	cluster, err := find[meta.Cluster](v, keyCluster, "cluster", "")
	if err != nil {
		return a, err
	}
	tree, err := auditTree(v)
	if err != nil {
		return a, err
	}
	root, err := rootOfTree(tree)
	if err != nil {
		return a, err
	}
	a = AuditLog{Cluster: cluster.ID, Epoch: cluster.Epoch, Size: tree.Size, Root: root[:]}
	for p, err := range v.scan(span{lower: key{spaceAuditLog, inCheckpoints}, upper: key{spaceAuditLog, inCheckpoints}.after(), reverse: true}) {
		if err != nil {
			return a, err
		}
		if a.Checked, err = decode[audit.Signed](p.key, p.value); err != nil {
			return a, err
		}
		break
	}
	a.Kept, err = retention(v)
	return a, err
}

// Prunable answers whether PruneEntries would take something away at a time.
type Prunable struct {
	Now meta.Time `cbor:"1,keyasint,omitempty"`
}

// Answer implements Question.
func (q Prunable) Answer(v *View) (bool, error) {
	end, a, err := prunable(v, q.Now)
	return end > a.Pruned, err
}

// AuditFilter chooses entries; an empty field chooses all.
type AuditFilter struct {
	Principal  string          `cbor:"1,keyasint,omitempty"`
	Credential string          `cbor:"2,keyasint,omitempty"`
	Tenant     meta.TenantName `cbor:"3,keyasint,omitempty"`
	Repository string          `cbor:"4,keyasint,omitempty"` // tenant/name
	Action     string          `cbor:"5,keyasint,omitempty"`
	// Request is that of a call, whose commands have ids that begin with it.
	Request   string `cbor:"6,keyasint,omitempty"`
	Outcome   string `cbor:"7,keyasint,omitempty"`
	Elevation string `cbor:"8,keyasint,omitempty"`
	// Since and Until bound the time: from, inclusively, and up to, exclusively.
	Since meta.Time `cbor:"9,keyasint,omitempty"`
	Until meta.Time `cbor:"10,keyasint,omitempty"`
	// Tenants, when not nil, are those whose entries the asker may see.
	Tenants []meta.TenantName `cbor:"11,keyasint,omitempty"`
}

// words returns what a line that matches must have in it, so that most lines are
// passed over without being read as JSON.
func (f *AuditFilter) words() (words [][]byte) {
	add := func(name, value string) {
		if value != "" {
			e := audit.Entry{}
			switch name {
			case "principal":
				e.Principal = value
			case "credential":
				e.Credential = value
			case "tenant":
				e.Tenant = meta.TenantName(value)
			case "repository":
				e.Repository = value
			case "elevation":
				e.Elevation = value
			}
			line := e.AppendLine(nil)
			from := bytes.Index(line, []byte(`"`+name+`":`))
			end := bytes.LastIndex(line, []byte(`,"outcome":`))
			words = append(words, bytes.Clone(line[from:end]))
		}
	}
	add("principal", f.Principal)
	add("credential", f.Credential)
	add("tenant", string(f.Tenant))
	add("repository", f.Repository)
	add("elevation", f.Elevation)
	return words
}

// Match reports whether an entry is chosen.
func (f *AuditFilter) Match(e *audit.Entry) bool {
	is := func(want, have string) bool { return want == "" || want == have }
	return is(f.Principal, e.Principal) && is(f.Credential, e.Credential) && is(string(f.Tenant), string(e.Tenant)) &&
		is(f.Repository, e.Repository) && is(f.Action, e.Action) && is(f.Outcome, e.Outcome) && is(f.Elevation, e.Elevation) &&
		(is(f.Request, e.Request) || len(f.Request) >= 16 && strings.HasPrefix(e.Request, f.Request)) &&
		(f.Since == 0 || !e.Time.Before(f.Since.Std())) && (f.Until == 0 || e.Time.Before(f.Until.Std())) &&
		(f.Tenants == nil || e.Tenant != "" && slices.Contains(f.Tenants, e.Tenant))
}

// ListEntries lists entries of the audit log from a place on.
type ListEntries struct {
	From   uint64      `cbor:"1,keyasint,omitempty"`
	Filter AuditFilter `cbor:"2,keyasint,omitzero"`
	// Limit is 1 to 1,000, 0 is 1,000.
	Limit int `cbor:"3,keyasint,omitempty"`
	// Last asks for the last Limit entries instead; From is ignored.
	Last bool `cbor:"4,keyasint,omitempty"`
}

// Entries is what one ListEntries found, after reading at most 50,000 entries.
type Entries struct {
	Lines [][]byte `cbor:"1,keyasint,omitempty"`
	// Next is where to go on, Size the end of the log; they are equal at its end.
	Next uint64 `cbor:"2,keyasint,omitempty"`
	Size uint64 `cbor:"3,keyasint,omitempty"`
	// First is the first entry that was not pruned.
	First uint64 `cbor:"4,keyasint,omitempty"`
}

const (
	maxEntries     = 1000
	maxEntryAnswer = 4 << 20 // bytes
)

func (ListEntries) serversOnly() {}

// Answer implements Question.
func (q ListEntries) Answer(v *View) (a Entries, _ error) {
	switch {
	case q.Limit < 0 || q.Limit > maxEntries:
		return a, fmt.Errorf("%d audit entries at a time, at most %d: %w", q.Limit, maxEntries, meta.ErrInvalid)
	case q.Limit == 0:
		q.Limit = maxEntries
	}
	tree, err := auditTree(v)
	if err != nil {
		return a, err
	}
	kept, err := retention(v)
	if err != nil {
		return a, err
	}
	a.Size, a.First, a.Next = tree.Size, kept.Pruned, max(q.From, kept.Pruned)
	words := q.Filter.words()
	size := 0
	take := func(line []byte) error {
		for _, w := range words {
			if !bytes.Contains(line, w) {
				return nil
			}
		}
		e, err := audit.ParseLine(line)
		if err != nil {
			return &StorageError{Cause: err}
		}
		if q.Filter.Match(&e) {
			a.Lines = append(a.Lines, bytes.Clone(line))
			size += len(line)
		}
		return nil
	}
	entries := within(key{spaceAuditLog, inEntries})
	if q.Last {
		entries.reverse = true
		read := 0
		for p, err := range v.scan(entries) {
			if err == nil {
				err = take(p.value)
			}
			if err != nil {
				return a, err
			}
			if read++; len(a.Lines) >= q.Limit || read >= readMost || size >= maxEntryAnswer {
				break
			}
		}
		slices.Reverse(a.Lines)
		a.Next = a.Size
		return a, nil
	}
	if q.Filter.Since != 0 {
		first, err := firstEntry(v, func(e *audit.Entry) bool { return !e.Time.Before(q.Filter.Since.Std()) })
		if err != nil {
			return a, err
		}
		if first == nil {
			a.Next = a.Size
			return a, nil
		}
		a.Next = max(a.Next, first.Seq)
	}
	if entries.lower = keyEntry(a.Next); a.Next >= a.Size {
		return a, nil
	}
	read := 0
	for p, err := range v.scan(entries) {
		if err != nil {
			return a, err
		}
		if len(a.Lines) >= q.Limit || read >= readMost || size >= maxEntryAnswer {
			return a, nil
		}
		if err := take(p.value); err != nil {
			return a, err
		}
		read++
		a.Next = binary.BigEndian.Uint64(p.key[2:]) + 1
		if q.Filter.Until != 0 && read%256 == 0 {
			if e, err := audit.ParseLine(p.value); err == nil && !e.Time.Before(q.Filter.Until.Std()) {
				a.Next = a.Size
				return a, nil
			}
		}
	}
	return a, nil
}

// ProveEntry proves that an entry is in the log of the last checkpoint, or of one of
// Size entries.
type ProveEntry struct {
	Seq  uint64 `cbor:"1,keyasint,omitempty"`
	Size uint64 `cbor:"2,keyasint,omitempty"`
}

// EntryProof is the proof; Line is empty of an entry that was pruned.
type EntryProof struct {
	Line       []byte       `cbor:"1,keyasint,omitempty"`
	Path       [][]byte     `cbor:"2,keyasint,omitempty"`
	Checkpoint audit.Signed `cbor:"3,keyasint,omitzero"`
}

func (ProveEntry) serversOnly() {}

// Answer implements Question.
func (q ProveEntry) Answer(v *View) (a EntryProof, _ error) {
	s := span{lower: keyCheckpoint(q.Seq + 1), upper: key{spaceAuditLog, inCheckpoints}.after(), reverse: true}
	if q.Size != 0 {
		s = span{lower: keyCheckpoint(q.Size), upper: keyCheckpoint(q.Size + 1)}
	}
	var size uint64
	for p, err := range v.scan(s) {
		if err != nil {
			return a, err
		}
		signed, err := decode[audit.Signed](p.key, p.value)
		if err != nil {
			return a, err
		}
		a.Checkpoint, size = *signed, seqOf(p.key)
		break
	}
	if size <= q.Seq {
		return a, fmt.Errorf("entry %d is in no checkpoint yet, there is one a minute: %w", q.Seq, meta.ErrNotFound)
	}
	var err error
	if a.Line, err = v.get(keyEntry(q.Seq)); err != nil {
		return a, err
	}
	path, err := tlog.ProveRecord(int64(size), int64(q.Seq), &audit.Hashes{Source: auditSource{v}})
	if err != nil {
		return a, storageUnlessKind(err)
	}
	a.Path = bytesOf(path)
	return a, nil
}

// ProveContinuation proves that the log of To entries continues that of From.
type ProveContinuation struct {
	From uint64 `cbor:"1,keyasint,omitempty"`
	To   uint64 `cbor:"2,keyasint,omitempty"`
}

// Answer implements Question.
func (q ProveContinuation) Answer(v *View) ([][]byte, error) {
	tree, err := auditTree(v)
	if err != nil {
		return nil, err
	}
	if q.From < 1 || q.From > q.To || q.To > tree.Size {
		return nil, fmt.Errorf("no proof from %d to %d entries of %d: %w", q.From, q.To, tree.Size, meta.ErrInvalid)
	}
	proof, err := tlog.ProveTree(int64(q.To), int64(q.From), &audit.Hashes{Source: auditSource{v}})
	return bytesOf(proof), storageUnlessKind(err)
}

func bytesOf(hashes []tlog.Hash) [][]byte {
	out := make([][]byte, len(hashes))
	for i := range hashes {
		out[i] = hashes[i][:]
	}
	return out
}

// ListCheckpoints lists what is kept of checkpoints of more than After entries: of the
// last hours all, then the first of each hour. Limit is 1 to 500, 0 is 500.
type ListCheckpoints struct {
	After uint64 `cbor:"1,keyasint,omitempty"`
	Limit int    `cbor:"2,keyasint,omitempty"`
}

// Answer implements Question.
func (q ListCheckpoints) Answer(v *View) ([]audit.Signed, error) {
	if q.Limit <= 0 || q.Limit > 500 {
		q.Limit = 500
	}
	s := span{lower: keyCheckpoint(q.After + 1), upper: key{spaceAuditLog, inCheckpoints}.after()}
	return list[audit.Signed](v, s, Page{Limit: q.Limit}, nil)
}

// ListChains lists the ends of nodes' chains as they were anchored. Page.After is a node.
type ListChains struct {
	Page Page `cbor:"1,keyasint,omitempty"`
	// Rewound asks only for those that did not continue.
	Rewound bool `cbor:"2,keyasint,omitempty"`
}

func (ListChains) serversOnly() {}

// Answer implements Question.
func (q ListChains) Answer(v *View) ([]audit.Chain, error) {
	prefix := key{spaceAuditLog, inChains}
	return list(v, within(prefix).behind(prefix, q.Page.After), q.Page, func(c *audit.Chain) bool { return !q.Rewound || c.Rewound > 0 })
}

// GetChain answers the anchored end of one node's chain, zero without one.
type GetChain struct {
	Node meta.NodeID `cbor:"1,keyasint,omitempty"`
}

// Answer implements Question.
func (q GetChain) Answer(v *View) (audit.Chain, error) {
	c, err := load[audit.Chain](v, keyChain(q.Node))
	if err == nil && c == nil {
		c = &audit.Chain{}
	}
	return value(c, err)
}
