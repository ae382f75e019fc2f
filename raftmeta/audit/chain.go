package audit

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Kinds of links of a chain.
const (
	LinkDenied = "denied"
	LinkLogin  = "login_failed"
	LinkPulled = "pulled"
	LinkMinted = "minted"
	// LinkCounted stands for those of one kind and caller, past 100 in a minute.
	LinkCounted = "counted"
	// LinkOpened begins what a process writes; LinkClosed says that it lost nothing.
	LinkOpened = "opened"
	LinkClosed = "closed"
)

// Link is one line of a node's chain: what it saw and nobody agreed on.
type Link struct {
	// Seq counts a node's links from 1. Prev is the SHA-256 in hex of the line before,
	// without its newline; of the first it is empty.
	Seq  uint64      `json:"seq"`
	Prev string      `json:"prev"`
	Node meta.NodeID `json:"node"`
	Time time.Time   `json:"time"` // the node's clock, UTC
	Kind string      `json:"kind"`

	Principal  string          `json:"principal,omitempty"`
	Credential string          `json:"credential,omitempty"`
	Elevation  string          `json:"elevation,omitempty"`
	Source     string          `json:"source,omitempty"`
	Agent      string          `json:"agent,omitempty"` // User-Agent
	Request    string          `json:"request,omitempty"`
	Trace      string          `json:"trace,omitempty"`
	Action     string          `json:"action,omitempty"`
	Route      string          `json:"route,omitempty"`
	Method     string          `json:"method,omitempty"`
	Path       string          `json:"path,omitempty"`
	Tenant     meta.TenantName `json:"tenant,omitempty"`
	Repository string          `json:"repository,omitempty"`
	Status     int             `json:"status,omitempty"`
	Bytes      int64           `json:"bytes,omitempty"`
	Took       string          `json:"took,omitempty"` // as Go writes a duration
	Reason     string          `json:"reason,omitempty"`
	// Of is the kind that LinkCounted counts, Count how many: also what could not be
	// written, in LinkOpened behind a process that was killed or a disk that was full.
	Of    string `json:"of,omitempty"`
	Count uint64 `json:"count,omitempty"`
}

// Head is the end of a node's chain.
type Head struct {
	Node meta.NodeID `cbor:"1,keyasint,omitempty" json:"node"`
	// Seq and Sum, the SHA-256 in hex, are of the last line that the disk has.
	Seq  uint64    `cbor:"2,keyasint,omitempty" json:"seq"`
	Sum  string    `cbor:"3,keyasint,omitempty" json:"sum"`
	Time meta.Time `cbor:"4,keyasint,omitempty" json:"time"`
}

// MaxLinkBytes bounds a line of a chain.
const MaxLinkBytes = 8 << 10

// LinkHash is the hash of a line.
func LinkHash(line []byte) string {
	sum := sha256.Sum256(line)
	return hex.EncodeToString(sum[:])
}

// Line encodes a link, without a newline. Texts of clients are shortened.
func (l Link) Line() ([]byte, error) {
	for _, s := range []*string{&l.Principal, &l.Credential, &l.Source, &l.Agent, &l.Request, &l.Trace, &l.Path, &l.Repository, &l.Reason} {
		*s = shortened(*s)
	}
	line, err := json.Marshal(l)
	if err == nil && len(line) > MaxLinkBytes {
		err = fmt.Errorf("a link of %d bytes: %w", len(line), meta.ErrTooLarge)
	}
	return line, err
}

// ChainReport is what reading a chain found.
type ChainReport struct {
	Node        meta.NodeID `json:"node"`
	First, Last uint64      `json:"-"`
	Links       uint64      `json:"links"`
	// Gaps are places where links may be missing that were never written: a process
	// that was killed; with how many at most when that is known.
	Gaps []string `json:"gaps,omitempty"`
	// Broken says what is wrong: links that were changed, dropped or put in.
	Broken []string `json:"broken,omitempty"`
	Head   Head     `json:"head"`
}

const maxFindings = 100

// ReadChain checks lines of one node's chain, from any link on, and hands each to
// link when that is not nil. heads are what the log has of that node: what is behind
// the last link, or is another one, is missing.
//
// Errors: of reading.
func ReadChain(r io.Reader, heads []Head, link func(Link, []byte) error) (ChainReport, error) {
	var report ChainReport
	broken := func(format string, args ...any) {
		if len(report.Broken) < maxFindings {
			report.Broken = append(report.Broken, fmt.Sprintf(format, args...))
		}
	}
	anchored := map[uint64]string{}
	for _, h := range heads {
		anchored[h.Seq] = h.Sum
	}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, MaxLinkBytes+1)
	var last Link
	var hash string
	for n := 1; lines.Scan(); n++ {
		line := lines.Bytes()
		var l Link
		if err := json.Unmarshal(line, &l); err != nil {
			broken("line %d is no link: %v", n, err)
			hash = LinkHash(line)
			continue
		}
		switch {
		case report.Links == 0:
			report.Node, report.First = l.Node, l.Seq
		case l.Node != report.Node:
			broken("line %d is of node %s, not %s", n, l.Node, report.Node)
		case l.Seq != last.Seq+1:
			broken("behind link %d comes %d: what was between is missing", last.Seq, l.Seq)
		case l.Prev != hash:
			broken("link %d was changed: link %d names another hash", last.Seq, l.Seq)
		}
		if l.Kind == LinkOpened && report.Links > 0 && last.Kind != LinkClosed {
			report.Gaps = append(report.Gaps, fmt.Sprintf("link %d, %s: the process before was ended without warning, what it saw in its last seconds may be missing", l.Seq, l.Time.Format(time.RFC3339)))
		}
		hash = LinkHash(line)
		if want, ok := anchored[l.Seq]; ok && want != hash {
			broken("link %d is not the one that the log has: its hash was %s", l.Seq, want)
		}
		if link != nil {
			if err := link(l, line); err != nil {
				return report, err
			}
		}
		last = l
		report.Links++
	}
	if err := lines.Err(); err != nil {
		if errors.Is(err, bufio.ErrTooLong) {
			broken("a line of more than %d bytes", MaxLinkBytes)
		} else {
			return report, fmt.Errorf("read the chain: %w", err)
		}
	}
	report.Last, report.Head = last.Seq, Head{Node: report.Node, Seq: last.Seq, Sum: hash, Time: meta.TimeOf(last.Time)}
	for _, h := range heads {
		if h.Seq > last.Seq && (h.Node == report.Node || report.Node == "") {
			broken("the log has link %d, the chain ends at %d", h.Seq, last.Seq)
		}
	}
	return report, nil
}

// HeadsOf returns the ends of chains that an entry of AnchorChains shows; of many the
// first ones.
func HeadsOf(e Entry) []Head {
	if e.Action != "AnchorChains" || e.Outcome != Done {
		return nil
	}
	type head struct {
		Node meta.NodeID `json:"node"`
		Seq  uint64      `json:"seq"`
		Sum  string      `json:"sum"`
		Time time.Time   `json:"time"`
	}
	var what struct {
		Heads json.RawMessage `json:"heads"`
	}
	var heads []head
	if err := json.Unmarshal(e.What, &what); err != nil {
		return nil
	}
	if err := json.Unmarshal(what.Heads, &heads); err != nil {
		var many struct {
			First []head `json:"first"`
		}
		if err := json.Unmarshal(what.Heads, &many); err != nil {
			return nil
		}
		heads = many.First
	}
	all := make([]Head, len(heads))
	for i, h := range heads {
		all[i] = Head{Node: h.Node, Seq: h.Seq, Sum: h.Sum, Time: meta.TimeOf(h.Time)}
	}
	return all
}
