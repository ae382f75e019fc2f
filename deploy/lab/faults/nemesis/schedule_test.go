package nemesis

import (
	"maps"
	"slices"
	"testing"
	"time"
)

func take(t *testing.T, n int, seed uint64, only []string, scale float64) []Step {
	t.Helper()
	steps, err := Steps(seed, only, scale)
	if err != nil {
		t.Fatal(err)
	}
	var got []Step
	for s := range steps {
		if got = append(got, s); len(got) == n {
			break
		}
	}
	return got
}

func TestASeedNamesASchedule(t *testing.T) {
	first := take(t, 500, 7, nil, 1)
	if !slices.Equal(first, take(t, 500, 7, nil, 1)) {
		t.Error("one seed, two schedules")
	}
	if slices.Equal(first, take(t, 500, 8, nil, 1)) {
		t.Error("two seeds, one schedule")
	}
	seen := make(map[string]bool)
	for i, s := range first {
		k := kindOf(s.Kind)
		seen[s.Kind] = true
		if s.Number != i+1 || s.Hold < k.shortest || s.Hold > k.longest || s.Hold > 30*time.Second {
			t.Errorf("step %+v", s)
		}
		if s.Overlap && (!k.pairs || i > 0 && first[i-1].Overlap) {
			t.Errorf("step %d begins a third fault, or cannot last: %v", i, s)
		}
	}
	if len(seen) != len(kinds) {
		t.Errorf("of %d kinds only %v came in 500 steps", len(kinds), slices.Sorted(maps.Keys(seen)))
	}
}

func TestOnlySomeKinds(t *testing.T) {
	for _, s := range take(t, 50, 1, []string{"kill", "pause"}, 3) {
		if s.Kind != "kill" && s.Kind != "pause" {
			t.Errorf("%v", s)
		}
		if k := kindOf(s.Kind); s.Hold < 3*k.shortest || s.Hold > 3*k.longest {
			t.Errorf("%v is not stretched", s)
		}
	}
	if _, err := Steps(1, []string{"earthquake"}, 1); err == nil {
		t.Error("there are no earthquakes")
	}
}

func TestLastWords(t *testing.T) {
	for log, want := range map[string]string{
		"time=1 level=INFO msg=a\nshoal: log: entry 7 is damaged\ntime=2 level=WARN msg=b\n": "shoal: log: entry 7 is damaged",
		"time=1 level=ERROR msg=\"disk\"\ntime=2 level=INFO msg=b\n":                         `level=ERROR msg="disk"`,
		"time=1 level=INFO msg=only\n":                                                       "time=1 level=INFO msg=only",
		"":                                                                                   "",
	} {
		if got := lastWords(log); got != want {
			t.Errorf("%q: %q, want %q", log, got, want)
		}
	}
}
