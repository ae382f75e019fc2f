package history

import (
	"time"

	"github.com/anishathalye/porcupine"
)

// model is State.Step as porcupine wants it; one key at a time.
var model = porcupine.Model{
	Init: func() any { return State{} },
	Step: func(state, input, output any) (bool, any) {
		ok, next := state.(State).Step(input.(Op))
		return ok, next
	},
	DescribeOperation: func(input, _ any) string { return input.(Op).String() },
}

// Result is the judgement of one key.
type Result string

// Results.
const (
	Fine      Result = "fine"      // an order explains everything
	Wrong     Result = "wrong"     // none explains the strong reads and the writes
	Younger   Result = "younger"   // none explains a bounded read: it is older than it says
	Undecided Result = "undecided" // the checker's time was over
)

// Check judges the history of one key, within limit.
func Check(ops []Op, limit time.Duration) Result {
	switch check(ops, limit) {
	case porcupine.Ok:
		return Fine
	case porcupine.Unknown:
		return Undecided
	}
	var strict []Op
	for _, o := range ops {
		if !o.Weak() {
			strict = append(strict, o)
		}
	}
	if len(strict) < len(ops) && check(strict, limit) == porcupine.Ok {
		return Younger
	}
	return Wrong
}

func check(ops []Op, limit time.Duration) porcupine.CheckResult {
	return porcupine.CheckOperationsTimeout(model, operations(ops), limit)
}

func operations(ops []Op) []porcupine.Operation {
	out := make([]porcupine.Operation, 0, len(ops))
	for _, o := range ops {
		out = append(out, porcupine.Operation{ClientId: o.Client, Input: o, Call: o.from(), Return: o.until()})
	}
	return out
}

// Shrink returns a small part of a wrong history that is wrong as well: operations are
// left out as long as what is left cannot be explained. Leaving out a write whose version
// somebody saw would make any history wrong, so reads go before writes, and such writes stay.
func Shrink(ops []Op, limit time.Duration) []Op {
	left := append([]Op(nil), ops...)
	for {
		before := len(left)
		for i := len(left) - 1; i >= 0; i-- {
			o := left[i]
			if o.Verb == Put && o.Outcome != Conflict && seen(left, o.Version) {
				continue
			}
			fewer := append(append([]Op(nil), left[:i]...), left[i+1:]...)
			if check(fewer, limit) == porcupine.Illegal {
				left = fewer
			}
		}
		if len(left) == before {
			return left
		}
	}
}

func seen(ops []Op, version uint8) bool {
	for _, o := range ops {
		if o.Version == version && (o.Verb == Read && o.Outcome == Done || o.Verb == Fetch || o.Verb == Delete) {
			return true
		}
	}
	return false
}
