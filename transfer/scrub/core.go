package scrub

import (
	"encoding/binary"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

const (
	existenceEvery = 24 * time.Hour
	fullEvery      = 14 * 24 * time.Hour
	// jitterShare of a period is how much earlier a pass may begin, so that servers
	// that were installed together do not read together for ever.
	jitterShare = 10
	// missedAgain is how soon after the last pass a file that is missing begins another.
	missedAgain = 10 * time.Minute
)

// State is what survives a restart: where the passes are.
type State struct {
	Existence Walk `cbor:"1,keyasint,omitzero"`
	Full      Walk `cbor:"2,keyasint,omitzero"`
	// Answered is the last request that is done.
	Answered uint64 `cbor:"3,keyasint,omitempty"`
}

// Walk is one pass over all blobs in the order of their roots: the one under way,
// else the last.
type Walk struct {
	Number   uint64    `cbor:"1,keyasint,omitempty"` // passes begun
	Started  meta.Time `cbor:"2,keyasint,omitempty"`
	Finished meta.Time `cbor:"3,keyasint,omitempty"` // 0 while it is under way
	Last     meta.Time `cbor:"4,keyasint,omitempty"` // when a whole one ended
	// After is the root behind which it goes on; Chunk the next one of the blob Within
	// it, which is read in part.
	After  digest.CID `cbor:"5,keyasint,omitzero"`
	Within digest.CID `cbor:"6,keyasint,omitzero"`
	Chunk  uint32     `cbor:"7,keyasint,omitempty"`
	// Request is what the pass answers, 0 for one by the clock.
	Request uint64 `cbor:"8,keyasint,omitempty"`
	Blobs   uint64 `cbor:"9,keyasint,omitempty"`
	Bytes   int64  `cbor:"10,keyasint,omitempty"`
	Damaged uint64 `cbor:"11,keyasint,omitempty"`
}

func (w *Walk) underWay() bool { return w.Started != 0 && w.Finished == 0 }

func (w *Walk) begin(now time.Time, request uint64) {
	*w = Walk{Number: w.Number + 1, Started: meta.TimeOf(now), Last: w.Last, Request: request}
}

func (w *Walk) finish(now time.Time) {
	w.Finished, w.Last = meta.TimeOf(now), meta.TimeOf(now)
	w.After, w.Within, w.Chunk = digest.CID{}, digest.CID{}, 0
}

// due is when the next pass by the clock begins: a period after the last one began,
// less a jitter that is this server's and this pass's own.
func (w *Walk) due(period time.Duration, self meta.NodeID) time.Time {
	if w.Started == 0 {
		return time.Time{}
	}
	seed := digest.Sum(binary.BigEndian.AppendUint64([]byte(self), w.Number))
	jitter := time.Duration(binary.BigEndian.Uint64(seed[:]) % uint64(period/jitterShare))
	return w.Started.Std().Add(period - jitter)
}

// report is the walk as the metadata has it.
func (w *Walk) report() meta.AuditPass {
	p := meta.AuditPass{Started: w.Started, Finished: w.Finished, Last: w.Last, Blobs: w.Blobs, Bytes: w.Bytes, Damaged: w.Damaged}
	switch {
	case w.Finished != 0:
		p.PerMille = 1000
	default:
		// Roots are hashes: how far into their range is how far into the bytes.
		p.PerMille = uint32(binary.BigEndian.Uint16(w.After[:])) * 1000 >> 16
	}
	return p
}

// Input is what a decision is made from.
type Input struct {
	Now  time.Time
	Self meta.NodeID
	// Wanted is the last request, whether done or not.
	Wanted meta.AuditRequest
	// Lost says that files may have gone since the last step: all is looked at anew.
	Lost bool
	// Missing says that a file was found missing.
	Missing bool
}

// Task is what to do next.
type Task uint8

// Tasks.
const (
	Rest      Task = iota // until Step.Until
	Named                 // read the blobs that the request names, then call Answer
	Existence             // go on with State.Existence
	Full                  // go on with State.Full
)

// Step is a decision.
type Step struct {
	Task  Task
	Until time.Time
	// Asked says that somebody waits for it: it need not take its time.
	Asked bool
}

// Next decides what comes next and begins passes that are due. Blobs that are named go
// first, then looking what is there, then reading.
func (s *State) Next(in Input) Step {
	asked := in.Wanted.ID > s.Answered
	if asked && len(in.Wanted.Roots) > 0 {
		return Step{Task: Named, Asked: true}
	}
	e, f := &s.Existence, &s.Full
	switch {
	case asked && e.Request < in.Wanted.ID:
		e.begin(in.Now, in.Wanted.ID)
	case in.Lost:
		e.begin(in.Now, e.unanswered())
	case in.Missing && !e.underWay() && in.Now.Sub(e.Started.Std()) > missedAgain:
		e.begin(in.Now, 0)
	case !e.underWay() && !in.Now.Before(e.due(existenceEvery, in.Self)):
		e.begin(in.Now, 0)
	}
	if e.underWay() {
		return Step{Task: Existence, Asked: e.Request > s.Answered || in.Lost}
	}
	switch {
	case asked && in.Wanted.Full && f.Request < in.Wanted.ID:
		f.begin(in.Now, in.Wanted.ID)
	case !f.underWay() && !in.Now.Before(f.due(fullEvery, in.Self)):
		f.begin(in.Now, 0)
	}
	if f.underWay() {
		return Step{Task: Full, Asked: f.Request > s.Answered}
	}
	until := e.due(existenceEvery, in.Self)
	if full := f.due(fullEvery, in.Self); full.Before(until) {
		until = full
	}
	return Step{Task: Rest, Until: until}
}

// unanswered is the request of a pass that begins anew before it was done.
func (w *Walk) unanswered() uint64 {
	if w.underWay() {
		return w.Request
	}
	return 0
}

// Answer notes that a request is done if it is: its blobs were read, or its passes
// have ended.
func (s *State) Answer(wanted meta.AuditRequest) bool {
	switch {
	case wanted.ID <= s.Answered:
		return false
	case len(wanted.Roots) > 0:
	case s.Existence.Request < wanted.ID || s.Existence.underWay():
		return false
	case wanted.Full && (s.Full.Request < wanted.ID || s.Full.underWay()):
		return false
	}
	s.Answered = wanted.ID
	return true
}

// Budget says how fast a scrub reads, in bytes a second.
type Budget struct {
	// Cap is the most.
	Cap int64
	// Stored is how much there is to read in a period.
	Stored int64
}

const (
	leastRate = 1 << 20 // so that a small store is soon through and rests
	busyFrom  = 1 << 20 // of clients and peers, from which a scrub gives way
	busyLeast = 128 << 10
	askedYard = 8 // of Cap, what an asked pass takes beside clients
	quickYard = 4 // times what is needed, while nobody else reads
)

// Rate is how fast to read now. foreign is what clients and peers read and write, in
// bytes a second. Beside them it falls to what ends in time.
func (b Budget) Rate(asked bool, foreign float64) float64 {
	limit := float64(b.Cap)
	// A tenth of the time is left for restarts and for being interrupted.
	need := float64(b.Stored) / (fullEvery.Seconds() * 0.9)
	busy := foreign >= busyFrom
	var rate float64
	switch {
	case asked && !busy:
		rate = limit
	case asked:
		rate = max(need, limit/askedYard)
	case !busy:
		rate = max(quickYard*need, leastRate)
	default:
		rate = max(need, busyLeast)
	}
	return min(rate, limit)
}
