package wave

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func TestNext(t *testing.T) {
	const none = meta.HostState("")
	for _, c := range []struct {
		mine, recorded meta.HostState
		want           action
	}{
		{none, meta.HostWaiting, rest},
		{none, meta.HostFetching, begin}, // restarted while it fetched
		{none, meta.HostDone, take},
		{none, meta.HostFailed, take},
		{meta.HostWaiting, meta.HostWaiting, rest},
		{meta.HostWaiting, meta.HostFetching, begin},
		{meta.HostFetching, meta.HostFetching, renew},
		{meta.HostFetching, meta.HostWaiting, stop}, // its lease is another's
		{meta.HostFetching, meta.HostDone, take},
		{meta.HostDone, meta.HostFetching, rest}, // not yet recorded
		{meta.HostDone, meta.HostWaiting, rest},  // lost, and its word is to come
		{meta.HostFailed, meta.HostFetching, rest},
		{meta.HostDone, meta.HostDone, take},
	} {
		if got := next(c.mine, c.recorded); got != c.want {
			t.Errorf("%q recorded as %q: %v, want %v", c.mine, c.recorded, got, c.want)
		}
	}
}

func TestRoom(t *testing.T) {
	w := meta.Wave{NotBefore: 10, Expires: 100}
	full := w
	full.MaxParallel, full.Regions = 5, []meta.WaveRegion{{Fetching: 2}, {Fetching: 3}}
	half := full
	half.Regions = full.Regions[:1]
	ended := w
	ended.Ended = 20
	for name, c := range map[string]struct {
		w       meta.Wave
		waiting int
		now     meta.Time
		probe   bool
		want    int
	}{
		"too early":         {w, 10, 9, true, 0},
		"expired":           {w, 10, 100, true, 0},
		"over":              {ended, 10, 50, true, 0},
		"everybody":         {w, 10, 10, false, 10},
		"a command's worth": {w, 10_000, 10, false, commandHosts},
		"what is free":      {half, 10, 50, false, 3},
		"fewer wait":        {half, 2, 50, false, 2},
		"full":              {full, 10, 50, false, 0},
		"full, a look":      {full, 10, 50, true, 1},
		"nobody waits":      {full, 0, 50, true, 0},
	} {
		if got := room(&c.w, c.waiting, c.now, c.probe); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

func TestFits(t *testing.T) {
	word := meta.WaveHost{Node: meta.NodeID(strings.Repeat("n", 52))}
	long := word
	long.Reason = strings.Repeat("x", meta.MaxWaveReason)
	words := func(n int, w meta.WaveHost) (all []meta.WaveHost) {
		for range n {
			all = append(all, w)
		}
		return all
	}
	if got := fits(words(2000, word)); got < 300 || got > commandHosts {
		t.Errorf("%d short words", got)
	}
	if got := fits(words(2000, long)); got < 100 || got*(len(long.Node)+len(long.Reason)) > commandBytes {
		t.Errorf("%d long words", got)
	}
	if got := fits(words(3, long)); got != 3 {
		t.Errorf("%d of 3 words", got)
	}
}

func TestPace(t *testing.T) {
	for hosts, want := range map[int]time.Duration{0: paceFirst, 100: paceFirst, 3000: 10 * time.Second, 1 << 20: paceMost} {
		if got := pace(hosts); got != want {
			t.Errorf("%d hosts: %v, want %v", hosts, got, want)
		}
	}
	if 3*paceMost > meta.WaveLease || renewAfter+paceMost > meta.WaveLease/2 {
		t.Error("a lease ends before a host that misses a beat is heard again")
	}
}

func TestAllSettled(t *testing.T) {
	due := map[meta.NodeID]bool{"a": true, "b": true}
	host := func(id meta.NodeID, s meta.HostState) meta.WaveHost { return meta.WaveHost{Node: id, State: s} }
	for want, took := range map[bool][]meta.WaveHost{
		true:  {host("a", meta.HostDone), host("gone", meta.HostFetching), host("b", meta.HostFailed)},
		false: {host("a", meta.HostDone), host("gone", meta.HostDone), host("b", meta.HostLost)},
	} {
		if got := allSettled(due, took); got != want {
			t.Errorf("%v: %v", took, got)
		}
	}
}

func TestTransient(t *testing.T) {
	for _, err := range []error{&meta.UnavailableError{Reason: "no_copy"}, fmt.Errorf("x: %w", meta.ErrUnavailable)} {
		if !transient(err) {
			t.Errorf("%v goes away", err)
		}
	}
	for _, err := range []error{meta.ErrDenied, meta.ErrNotFound, errors.Join(meta.ErrUnavailable, meta.ErrNoSpace), meta.ErrCorrupt} {
		if transient(err) {
			t.Errorf("%v stays", err)
		}
	}
}
