package consensus

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func TestTally(t *testing.T) {
	abc := []string{"a", "b", "c"}
	type said struct {
		from   string
		last   uint64
		voters []string
	}
	for name, tc := range map[string]struct {
		voters []string
		said   []said
		index  uint64
		ok     bool
	}{
		"nobody":                   {voters: abc},
		"no voters":                {},
		"one of three":             {abc, []said{{"a", 9, abc}}, 0, false},
		"two of three":             {abc, []said{{"a", 9, abc}, {"b", 5, abc}}, 9, true},
		"the third lowers it":      {abc, []said{{"a", 9, abc}, {"b", 5, abc}, {"c", 7, abc}}, 7, true},
		"a later answer lowers it": {abc, []said{{"a", 9, abc}, {"b", 5, abc}, {"a", 6, abc}}, 6, true},
		"a higher one does not":    {abc, []said{{"a", 9, abc}, {"b", 5, abc}, {"b", 11, abc}}, 9, true},
		"other voters":             {abc, []said{{"a", 9, abc}, {"b", 5, []string{"a", "b"}}}, 0, false},
		"a stranger":               {abc, []said{{"a", 9, abc}, {"d", 5, abc}}, 0, false},
		"alone":                    {[]string{"a"}, []said{{"a", 3, []string{"a"}}}, 3, true},
	} {
		t.Run(name, func(t *testing.T) {
			tally := tally{}
			tally.restart(tc.voters)
			for _, s := range tc.said {
				tally.add(heardIndex{from: meta.NodeID(s.from), last: s.last, voters: s.voters})
			}
			if index, ok := tally.index(); index != tc.index || ok != tc.ok {
				t.Errorf("%d, %v; want %d, %v", index, ok, tc.index, tc.ok)
			}
		})
	}
	changed := tally{}
	changed.restart(abc)
	changed.add(heardIndex{from: "a", last: 1, voters: abc})
	changed.add(heardIndex{from: "b", last: 1, voters: abc})
	changed.restart([]string{"a", "b"})
	if _, ok := changed.index(); ok {
		t.Error("answers of other voters count")
	}
}

// Whatever a majority stores before a round, the round's index is not below it.
func TestTallyNeverMissesACommit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.SampledFrom([]int{1, 2, 3, 4, 5}).Draw(t, "voters")
		var ids []string
		for i := range size {
			ids = append(ids, fmt.Sprint(i))
		}
		committed := rapid.Uint64Range(0, 100).Draw(t, "committed")
		holders := rapid.Permutation(ids).Draw(t, "holders")[:size/2+1]
		tally := tally{}
		tally.restart(ids)
		for _, id := range rapid.Permutation(ids).Draw(t, "answers")[:rapid.IntRange(0, size).Draw(t, "count")] {
			last := rapid.Uint64Range(0, 200).Draw(t, "last")
			if slices.Contains(holders, id) {
				last = max(last, committed)
			}
			tally.add(heardIndex{from: meta.NodeID(id), last: last, voters: ids})
		}
		if index, ok := tally.index(); ok && index < committed {
			t.Fatalf("round index %d, committed %d", index, committed)
		}
	})
}

func TestWatermark(t *testing.T) {
	var w watermark
	var group sync.WaitGroup
	for i := range uint64(50) {
		group.Go(func() {
			if err := w.wait(t.Context(), i); err != nil || w.get() < i {
				t.Errorf("waited for %d, at %d: %v", i, w.get(), err)
			}
		})
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.wait(gone, 1000); err == nil {
		t.Error("waited for what never came")
	}
	for i := range uint64(50) {
		w.raise(i)
		w.raise(i / 2) // never falls
	}
	group.Wait()
	if len(w.waiters) != 0 {
		t.Errorf("%d waiters are left", len(w.waiters))
	}
}
