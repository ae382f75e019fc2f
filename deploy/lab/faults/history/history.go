// Package history records what clients did to a registry and what they were told, and
// decides whether any order of these operations explains it.
//
// Start reading at Op and State.Step: that is the whole promise, in one function. A key
// is a path of files, a release of an immutable repository, or an image with its tags; keys
// share nothing, so each is checked alone (porcupine), as soon as it is closed. Recorder
// keeps the open keys in memory and writes every operation to a file, which Load reads
// again; what it holds is bounded by the open keys, as a key is closed after so many
// operations (Full).
//
// An operation takes effect at one moment between its call and its return. A write whose
// outcome is unknown may take effect at any time after its call, or never. A read that
// says it is of an age was true at a moment not longer than that before its call: bounded
// reads are held to their own word, with the same model as strong ones.
//
// Recorder owns one goroutine, which checks closed keys one after another and ends with
// Close. Source: Herlihy and Wing 1990; Lowe 2017, which porcupine follows.
package history

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// Kind is what a key is.
type Kind string

// Kinds of keys.
const (
	File    Kind = "file"    // a path of a mutable generic repository: one alias, current
	Release Kind = "release" // a path of an immutable one: the first version stays for ever
	Image   Kind = "image"   // an image: tags, and versions named by digest
)

// Verb is what was asked for.
type Verb string

// Verbs.
const (
	Put    Verb = "put"    // publish a version and set the aliases of Tags to it
	Delete Verb = "delete" // delete a version, and with it the aliases that name it
	Untag  Verb = "untag"  // delete an alias
	Read   Verb = "read"   // which version does an alias name
	Fetch  Verb = "fetch"  // is a version there
)

// Outcome is what came back.
type Outcome string

// Outcomes.
const (
	Done     Outcome = "done"
	Absent   Outcome = "absent"   // 404: it is not there
	Conflict Outcome = "conflict" // 409: another version has the name for ever
	Unknown  Outcome = "unknown"  // of a write: it may have happened, or may happen yet
)

// MaxTags and MaxVersions bound what one key has.
const (
	MaxTags     = 4
	MaxVersions = 60
)

// Op is one operation on one key.
type Op struct {
	Client  int     `json:"c"`
	Node    string  `json:"n"` // who was asked
	Key     string  `json:"k"`
	Kind    Kind    `json:"i"`
	Verb    Verb    `json:"v"`
	Tags    uint8   `json:"t,omitempty"` // bit set of aliases: of Put all that are set, else the one
	Version uint8   `json:"x,omitempty"` // 1 to MaxVersions: of Put, Delete, Fetch; what a Read returned
	Outcome Outcome `json:"o"`
	Mode    string  `json:"m,omitempty"` // of a read: strong, bounded or local
	// Call and Return are nanoseconds since the recorder began.
	Call   int64 `json:"b"`
	Return int64 `json:"e"`
	// Age of a read's answer as it says, in nanoseconds.
	Age int64 `json:"a,omitempty"`
}

// from is the earliest moment at which the operation may have taken effect.
func (o Op) from() int64 {
	if o.Verb == Read || o.Verb == Fetch {
		return max(0, o.Call-o.Age)
	}
	return o.Call
}

// until is the latest.
func (o Op) until() int64 {
	if o.Outcome == Unknown {
		return math.MaxInt64
	}
	return o.Return
}

// Weak reports whether it is a read that does not claim to be strong.
func (o Op) Weak() bool { return (o.Verb == Read || o.Verb == Fetch) && o.Mode != "strong" }

// String is a line for people.
func (o Op) String() string {
	var what strings.Builder
	fmt.Fprintf(&what, "%s", o.Verb)
	if o.Tags != 0 {
		fmt.Fprintf(&what, " tags %04b", o.Tags)
	}
	if o.Verb != Read && o.Version != 0 {
		fmt.Fprintf(&what, " version %d", o.Version)
	}
	fmt.Fprintf(&what, " -> %s", o.Outcome)
	if o.Verb == Read && o.Outcome == Done {
		fmt.Fprintf(&what, " version %d", o.Version)
	}
	if o.Mode != "" {
		fmt.Fprintf(&what, " (%s, age %v)", o.Mode, time.Duration(o.Age).Round(time.Millisecond))
	}
	return fmt.Sprintf("%12.6f to %12.6f  client %-3d %-14s %s", float64(o.Call)/1e9, float64(o.Return)/1e9, o.Client, o.Node, &what)
}

// State is what a key is at a moment. The zero value is a key that nobody has touched.
type State struct {
	Tags [MaxTags]uint8 // version that each alias names; 0 is none
	Live uint64         // bit set of versions that are there
	// First is the version that a release has for ever, also while it is deleted.
	First uint8
}

// Step says whether an operation that takes effect in state s can have this outcome, and
// what the state is then.
func (s State) Step(o Op) (bool, State) {
	bit := uint64(1) << o.Version
	switch o.Verb {
	case Put:
		taken := o.Kind == Release && s.First != 0 && s.First != o.Version
		if o.Outcome == Conflict {
			return taken, s
		}
		if taken {
			// Without an answer it may have been refused; a success would be wrong.
			return o.Outcome == Unknown, s
		}
		s.Live |= bit
		for t := range s.Tags {
			if o.Tags&(1<<t) != 0 {
				s.Tags[t] = o.Version
			}
		}
		if o.Kind == Release {
			s.First = o.Version
		}
		return true, s
	case Delete:
		if was := s.Live&bit != 0; o.Outcome != Unknown && was != (o.Outcome == Done) {
			return false, s
		}
		s.Live &^= bit
		for t := range s.Tags {
			if s.Tags[t] == o.Version {
				s.Tags[t] = 0
			}
		}
		return true, s
	case Untag:
		t := alias(o.Tags)
		if was := s.Tags[t] != 0; o.Outcome != Unknown && was != (o.Outcome == Done) {
			return false, s
		}
		s.Tags[t] = 0
		return true, s
	case Read:
		got := uint8(0)
		if o.Outcome == Done {
			got = o.Version
		}
		return s.Tags[alias(o.Tags)] == got, s
	case Fetch:
		return (s.Live&bit != 0) == (o.Outcome == Done), s
	}
	return false, s
}

// alias returns the number of the first alias of a set.
func alias(tags uint8) int {
	for t := range MaxTags {
		if tags&(1<<t) != 0 {
			return t
		}
	}
	return 0
}
