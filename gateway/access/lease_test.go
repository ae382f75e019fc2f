package access

import (
	"errors"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func TestJudge(t *testing.T) {
	const fresh, degraded, lapsed = Fresh, Degraded, Lapsed
	for _, test := range []struct {
		age             time.Duration
		reachable       bool
		writes, private bool
		max             time.Duration
		want            Freshness
	}{
		{0, true, true, true, time.Minute, fresh},
		{5*time.Second - 1, true, true, true, time.Minute, fresh},
		{5 * time.Second, true, true, true, time.Minute, lapsed},
		{5 * time.Second, false, true, false, time.Hour, lapsed},
		{5 * time.Second, true, false, true, time.Minute, fresh},
		{15*time.Second - 1, true, false, true, time.Minute, fresh},
		{15 * time.Second, true, false, true, time.Hour, lapsed},
		{15 * time.Second, false, false, true, time.Minute, degraded},
		{time.Minute, false, false, true, time.Minute, lapsed},
		{14 * time.Second, false, false, true, 0, fresh},
		{15 * time.Second, false, false, true, 0, lapsed},
		{meta.UnknownAge, false, false, true, time.Hour, lapsed},
		{meta.UnknownAge, false, true, false, time.Hour, lapsed},
		{meta.UnknownAge, false, false, false, 0, fresh},
		{meta.UnknownAge, true, false, false, 0, fresh},
	} {
		got, err := Judge(test.age, test.reachable, test.writes, test.private, test.max)
		var lease *LeaseError
		if got != test.want || (got == Lapsed) != errors.As(err, &lease) || err != nil && !errors.Is(err, meta.ErrUnavailable) {
			t.Errorf("%+v: %d %v", test, got, err)
		}
	}
	none, hour := time.Duration(0), time.Hour
	for want, repo := range map[time.Duration]*meta.Repository{
		DegradedReadMax: {}, 0: {DegradedReadMax: &none}, hour: {DegradedReadMax: &hour},
	} {
		if got := DegradedOf(repo); got != want {
			t.Errorf("%v, want %v", got, want)
		}
	}
}
