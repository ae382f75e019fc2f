package audit

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Entry is one entry of the audit log: a change that somebody made, or that was
// refused. The zero value of a field is left out of the line, but for Seq, Index,
// Time, Action and Outcome.
type Entry struct {
	// Seq is the entry's place in the log, from 0. Index is that of the command in the
	// Raft log, Epoch the epoch of that log.
	Seq   uint64    `json:"seq"`
	Epoch uint64    `json:"epoch,omitempty"`
	Index uint64    `json:"index"`
	Time  time.Time `json:"time"` // the leader's, UTC; never falls along the log
	// Action is the command, as `Publish`.
	Action    string `json:"action"`
	Principal string `json:"principal,omitempty"`
	// Credential is the id of the credential, never more of it. Elevation is that of
	// break-glass, when the principal acted under one.
	Credential string `json:"credential,omitempty"`
	Elevation  string `json:"elevation,omitempty"`
	// Source is the client's address, Node the node that took the request.
	Source string      `json:"source,omitempty"`
	Node   meta.NodeID `json:"node,omitempty"`
	// Request and Trace (a W3C traceparent) are what logs and access logs have too.
	Request    string          `json:"request,omitempty"`
	Trace      string          `json:"trace,omitempty"`
	Tenant     meta.TenantName `json:"tenant,omitempty"`
	Repository string          `json:"repository,omitempty"` // tenant/name
	// Outcome is Done or Refused, Reason then the kind of refusal.
	Outcome string `json:"outcome"`
	Reason  string `json:"reason,omitempty"`
	// What is the command; Changes are records that it changed.
	What    json.RawMessage `json:"what,omitempty"`
	Changes []Change        `json:"changes,omitempty"`
	// Unlisted counts the changed records that did not fit in Changes.
	Unlisted int `json:"unlisted,omitempty"`
}

// Change is what became of a record: the fields that are not the same, before and
// after. Without Before it is new, without After it is gone.
type Change struct {
	Record string          `json:"record"`
	Before json.RawMessage `json:"before,omitempty"`
	After  json.RawMessage `json:"after,omitempty"`
}

// Outcomes.
const (
	Done    = "done"
	Refused = "refused"
)

// AppendLine appends the entry's line, without a newline: the leaf of the tree.
func (e *Entry) AppendLine(dst []byte) []byte {
	o := object{dst: append(dst, '{')}
	o.number("seq", e.Seq)
	if e.Epoch != 0 {
		o.number("epoch", e.Epoch)
	}
	o.number("index", e.Index)
	o.name("time")
	o.dst = appendTime(o.dst, e.Time)
	o.text("action", e.Action)
	o.textIf("principal", e.Principal)
	o.textIf("credential", e.Credential)
	o.textIf("elevation", e.Elevation)
	o.textIf("source", e.Source)
	o.textIf("node", string(e.Node))
	o.textIf("request", e.Request)
	o.textIf("trace", e.Trace)
	o.textIf("tenant", string(e.Tenant))
	o.textIf("repository", e.Repository)
	o.text("outcome", e.Outcome)
	o.textIf("reason", e.Reason)
	o.raw("what", e.What)
	if len(e.Changes) > 0 {
		o.name("changes")
		o.dst = append(o.dst, '[')
		for i, c := range e.Changes {
			if i > 0 {
				o.dst = append(o.dst, ',')
			}
			in := object{dst: append(o.dst, '{')}
			in.text("record", c.Record)
			in.raw("before", c.Before)
			in.raw("after", c.After)
			o.dst = append(in.dst, '}')
		}
		o.dst = append(o.dst, ']')
	}
	if e.Unlisted > 0 {
		o.number("unlisted", uint64(e.Unlisted))
	}
	return append(o.dst, '}')
}

// ParseLine reads a line.
//
// Errors: meta.ErrCorrupt.
func ParseLine(line []byte) (Entry, error) {
	var e Entry
	if err := json.Unmarshal(line, &e); err != nil {
		return e, fmt.Errorf("a line that is no audit entry: %w: %w", err, meta.ErrCorrupt)
	}
	return e, nil
}

// LeafHash is the hash of a line in the tree: SHA-256 of a zero byte and the line.
func LeafHash(line []byte) tlog.Hash { return tlog.RecordHash(line) }

// object appends the fields of a JSON object.
type object struct {
	dst   []byte
	begun bool
}

func (o *object) name(n string) {
	if o.begun {
		o.dst = append(o.dst, ',')
	}
	o.begun = true
	o.dst = append(appendText(o.dst, n), ':')
}

func (o *object) number(n string, v uint64) {
	o.name(n)
	o.dst = strconv.AppendUint(o.dst, v, 10)
}

func (o *object) text(n, v string) {
	o.name(n)
	o.dst = appendText(o.dst, v)
}

func (o *object) textIf(n, v string) {
	if v != "" {
		o.text(n, v)
	}
}

func (o *object) raw(n string, v []byte) {
	if len(v) > 0 {
		o.name(n)
		o.dst = append(o.dst, v...)
	}
}

// appendTime appends an instant as RFC 3339 in UTC with as many digits as it needs.
func appendTime(dst []byte, t time.Time) []byte {
	dst = append(dst, '"')
	dst = t.UTC().AppendFormat(dst, time.RFC3339Nano)
	return append(dst, '"')
}

const hexDigits = "0123456789abcdef"

// appendText appends a JSON string: only quotes, backslashes and control characters
// are escaped; what is no UTF-8 becomes U+FFFD.
func appendText(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
			i++
		case c < 0x20 || c == 0x7f:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			i++
		case c < utf8.RuneSelf:
			dst = append(dst, c)
			i++
		default:
			r, n := utf8.DecodeRuneInString(s[i:])
			dst = utf8.AppendRune(dst, r)
			i += n
		}
	}
	return append(dst, '"')
}
