package audit

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Checkpoint says: at Time the log of Origin had Size entries, of this root. It is
// signed by the leader and, when they found it consistent with their last one,
// by a server of each region.
type Checkpoint struct {
	Cluster string
	Epoch   uint64
	Size    uint64
	Root    tlog.Hash
	Time    time.Time // the leader's, UTC, in seconds
}

// Signed is a checkpoint with its signatures and the certificates of who signed.
type Signed struct {
	// Note is the signed note (golang.org/x/mod/sumdb/note): Text and signatures.
	Note []byte `cbor:"1,keyasint,omitempty" json:"note"`
	// Signers are in the order of their signatures, the leader first.
	Signers []Signer `cbor:"2,keyasint,omitempty" json:"signers"`
}

// Signer is a server that signed.
type Signer struct {
	Node   meta.NodeID     `cbor:"1,keyasint,omitempty" json:"node"`
	Region meta.RegionName `cbor:"2,keyasint,omitempty" json:"region"`
	// Chain is the node's certificate as TLS shows it, DER, leaf first.
	Chain [][]byte `cbor:"3,keyasint,omitempty" json:"chain"`
}

// Bounds of a signed checkpoint.
const (
	maxNoteBytes = 16 << 10
	maxSigners   = 64
)

const originPrefix = "shoal audit log "

// Text is what is signed: lines of the log's name, its size, the root in base64, the
// time (C2SP's tlog-checkpoint with one extension line).
func (c Checkpoint) Text() string {
	return fmt.Sprintf("%s%s/%d\n%d\n%s\ntime %s\n", originPrefix, c.Cluster, c.Epoch, c.Size, c.Root, c.Time.UTC().Format(time.RFC3339))
}

// ParseCheckpoint reads Text.
//
// Errors: meta.ErrCorrupt.
func ParseCheckpoint(text string) (c Checkpoint, err error) {
	fail := func(what string) (Checkpoint, error) {
		return Checkpoint{}, fmt.Errorf("a checkpoint with a wrong %s: %w", what, meta.ErrCorrupt)
	}
	lines := strings.Split(text, "\n")
	if len(lines) != 5 || lines[4] != "" {
		return fail("number of lines")
	}
	name, ok := strings.CutPrefix(lines[0], originPrefix)
	cluster, epoch, ok2 := strings.Cut(name, "/")
	if !ok || !ok2 || cluster == "" {
		return fail("name of the log")
	}
	c.Cluster = cluster
	if c.Epoch, err = strconv.ParseUint(epoch, 10, 64); err != nil {
		return fail("epoch")
	}
	if c.Size, err = strconv.ParseUint(lines[1], 10, 63); err != nil {
		return fail("size")
	}
	if c.Root, err = tlog.ParseHash(lines[2]); err != nil {
		return fail("root")
	}
	at, ok := strings.CutPrefix(lines[3], "time ")
	if c.Time, err = time.Parse(time.RFC3339, at); err != nil || !ok {
		return fail("time")
	}
	if c.Text() != text {
		return fail("form")
	}
	return c, nil
}

// signer signs notes with a node's key, whose name is the node's id.
type signer struct {
	note.Verifier
	key ed25519.PrivateKey
}

func (s signer) Sign(msg []byte) ([]byte, error) { return ed25519.Sign(s.key, msg), nil }

func verifierOf(id meta.NodeID, key ed25519.PublicKey) (note.Verifier, error) {
	text, err := note.NewEd25519VerifierKey(string(id), key)
	if err != nil {
		return nil, err
	}
	return note.NewVerifier(text)
}

// Sign signs c, and adds the signature to signed when that is of the same checkpoint.
//
// Errors: meta.ErrInvalid.
func Sign(c Checkpoint, by Signer, key ed25519.PrivateKey, signed *Signed) error {
	v, err := verifierOf(by.Node, key.Public().(ed25519.PublicKey))
	if err != nil {
		return fmt.Errorf("sign a checkpoint: %w: %w", err, meta.ErrInvalid)
	}
	out, err := note.Sign(&note.Note{Text: c.Text()}, signer{v, key})
	if err != nil {
		return fmt.Errorf("sign a checkpoint: %w: %w", err, meta.ErrInvalid)
	}
	return signed.Add(Signed{Note: out, Signers: []Signer{by}})
}

// Add takes over the signatures of more, which is of the same checkpoint.
//
// Errors: meta.ErrInvalid.
func (s *Signed) Add(more Signed) error {
	if len(s.Note) == 0 {
		*s = more
		return nil
	}
	text, _, ok := bytes.Cut(s.Note, []byte("\n\n"))
	text2, signatures, ok2 := bytes.Cut(more.Note, []byte("\n\n"))
	if !ok || !ok2 || !bytes.Equal(text, text2) {
		return fmt.Errorf("a signature of another checkpoint: %w", meta.ErrInvalid)
	}
	s.Note = append(bytes.Clone(s.Note), signatures...)
	s.Signers = append(s.Signers[:len(s.Signers):len(s.Signers)], more.Signers...)
	return nil
}

// Check reads the checkpoint and looks at the form, not at signatures.
//
// Errors: meta.ErrCorrupt.
func (s Signed) Check() (Checkpoint, error) {
	text, _, ok := strings.Cut(string(s.Note), "\n\n")
	switch {
	case len(s.Note) > maxNoteBytes || len(s.Signers) == 0 || len(s.Signers) > maxSigners:
		return Checkpoint{}, fmt.Errorf("a checkpoint of %d bytes by %d servers: %w", len(s.Note), len(s.Signers), meta.ErrCorrupt)
	case !ok:
		return Checkpoint{}, fmt.Errorf("a checkpoint without signatures: %w", meta.ErrCorrupt)
	}
	for _, by := range s.Signers {
		size := 0
		for _, c := range by.Chain {
			size += len(c)
		}
		if by.Node == "" || len(by.Chain) > 4 || size > 8<<10 {
			return Checkpoint{}, fmt.Errorf("a checkpoint with a signer that is none: %w", meta.ErrCorrupt)
		}
	}
	return ParseCheckpoint(text + "\n")
}

// Trust says whose certificate a chain is, as of an instant: a server's of the cluster
// whose root the caller pins.
type Trust func(chain [][]byte, at time.Time) (id meta.NodeID, region meta.RegionName, key ed25519.PublicKey, err error)

// Verify checks every signature, with the signers' certificates as of the checkpoint's
// time, and returns the regions that signed, in that order and each once.
//
// Errors: meta.ErrCorrupt with the reason.
func (s Signed) Verify(trust Trust) (c Checkpoint, regions []meta.RegionName, err error) {
	if c, err = s.Check(); err != nil {
		return c, nil, err
	}
	var known []note.Verifier
	signed := map[meta.NodeID]meta.RegionName{}
	for _, by := range s.Signers {
		id, region, key, err := trust(by.Chain, c.Time)
		if err == nil && id != by.Node {
			err = fmt.Errorf("it is %s's", id)
		}
		if err != nil {
			return c, nil, fmt.Errorf("checkpoint of %d entries: the certificate of %s: %w: %w", c.Size, by.Node, err, meta.ErrCorrupt)
		}
		if _, ok := signed[id]; ok {
			continue
		}
		v, err := verifierOf(id, key)
		if err != nil {
			return c, nil, fmt.Errorf("checkpoint of %d entries: %w: %w", c.Size, err, meta.ErrCorrupt)
		}
		signed[id], known = region, append(known, v)
	}
	n, err := note.Open(s.Note, note.VerifierList(known...))
	if err != nil {
		return c, nil, fmt.Errorf("checkpoint of %d entries: a signature does not hold: %w: %w", c.Size, err, meta.ErrCorrupt)
	}
	seen := map[meta.RegionName]bool{}
	for _, by := range n.Sigs {
		region, ok := signed[meta.NodeID(by.Name)]
		if ok && !seen[region] {
			seen[region] = true
			regions = append(regions, region)
		}
		delete(signed, meta.NodeID(by.Name))
	}
	if len(signed) > 0 || len(n.UnverifiedSigs) > 0 {
		return c, nil, fmt.Errorf("checkpoint of %d entries: its signatures are not those of its signers: %w", c.Size, meta.ErrCorrupt)
	}
	return c, regions, nil
}

// Proof shows that an entry is in the log of a checkpoint.
type Proof struct {
	// Entry is the line.
	Entry string `json:"entry"`
	// Path are the hashes beside the way from the leaf to the root, in base64.
	Path       []tlog.Hash `json:"path"`
	Checkpoint Signed      `json:"checkpoint"`
}

// Verify checks the proof and returns the entry, the checkpoint and the regions that
// signed that.
//
// Errors: meta.ErrCorrupt.
func (p Proof) Verify(trust Trust) (Entry, Checkpoint, []meta.RegionName, error) {
	e, err := ParseLine([]byte(p.Entry))
	if err != nil {
		return e, Checkpoint{}, nil, err
	}
	c, regions, err := p.Checkpoint.Verify(trust)
	if err != nil {
		return e, c, nil, err
	}
	if e.Seq >= c.Size {
		return e, c, nil, fmt.Errorf("entry %d is not below the checkpoint of %d entries: %w", e.Seq, c.Size, meta.ErrCorrupt)
	}
	if err := tlog.CheckRecord(p.Path, int64(c.Size), c.Root, int64(e.Seq), LeafHash([]byte(p.Entry))); err != nil {
		return e, c, nil, fmt.Errorf("entry %d is not what the checkpoint of %d entries has there: %w", e.Seq, c.Size, meta.ErrCorrupt)
	}
	return e, c, regions, nil
}

// Witness is what a node remembers of the log: the last checkpoint that it found
// right. Its zero value remembers nothing.
type Witness struct {
	Checkpoint string `json:"checkpoint,omitempty"` // Text
	// Before are the last checkpoints of earlier epochs.
	Before []string `json:"before,omitempty"`
}

// Last returns the last checkpoint, zero when there is none.
//
// Errors: meta.ErrCorrupt.
func (w Witness) Last() (Checkpoint, error) {
	if w.Checkpoint == "" {
		return Checkpoint{}, nil
	}
	return ParseCheckpoint(w.Checkpoint)
}

// RewoundError says that a checkpoint is not a continuation of the last one: entries
// that were there are gone or others.
type RewoundError struct {
	Last, New Checkpoint
	Why       string
}

func (e *RewoundError) Error() string {
	return fmt.Sprintf("the audit log was rewritten: a checkpoint of %s with %d entries does not continue the one of %s with %d entries: %s",
		e.New.Time.UTC().Format(time.RFC3339), e.New.Size, e.Last.Time.UTC().Format(time.RFC3339), e.Last.Size, e.Why)
}

// Unwrap returns meta.ErrCorrupt.
func (e *RewoundError) Unwrap() error { return meta.ErrCorrupt }

// maxBefore bounds the epochs that a witness remembers.
const maxBefore = 16

// Accept takes next over when it continues the last checkpoint; prove shows that for
// two sizes. A later epoch begins anew, for it may have lost what was behind its
// beginning; what was last known of the one before stays in Before.
//
// Errors: *RewoundError; of prove.
func (w *Witness) Accept(next Checkpoint, prove func(from, to uint64) (tlog.TreeProof, error)) error {
	last, err := w.Last()
	if err != nil {
		return err
	}
	rewound := func(why string) error { return &RewoundError{last, next, why} }
	switch {
	case w.Checkpoint == "":
	case next.Cluster != last.Cluster:
		return rewound("it is of cluster " + next.Cluster)
	case next.Epoch < last.Epoch:
		return rewound(fmt.Sprintf("it is of epoch %d", next.Epoch))
	case next.Epoch > last.Epoch:
		w.Before = append(w.Before, w.Checkpoint)
		w.Before = w.Before[max(0, len(w.Before)-maxBefore):]
	case next.Size < last.Size:
		return rewound("it has fewer entries")
	case next.Size == last.Size && next.Root != last.Root:
		return rewound("the same number of entries has another root")
	case next.Size > last.Size && last.Size > 0:
		proof, err := prove(last.Size, next.Size)
		if err != nil {
			return err
		}
		if err := tlog.CheckTree(proof, int64(next.Size), next.Root, int64(last.Size), last.Root); err != nil {
			return rewound("no proof of consistency holds")
		}
	}
	w.Checkpoint = next.Text()
	return nil
}
