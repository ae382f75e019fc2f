package node

import (
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func TestColdElsewhere(t *testing.T) {
	demand := func(region meta.RegionName, class meta.Class) meta.Replica {
		return meta.Replica{Region: region, Class: class, State: meta.ReplicaPending}
	}
	copyAt := func(region meta.RegionName) meta.Replica {
		return meta.Replica{Region: region, Server: "s", State: meta.ReplicaVerified}
	}
	for name, test := range map[string]struct {
		replicas []meta.Replica
		want     bool
	}{
		"nothing is owed":            {[]meta.Replica{copyAt("us")}, false},
		"cold, elsewhere":            {[]meta.Replica{demand("us", meta.ClassCold), copyAt("us")}, true},
		"cold, in two other regions": {[]meta.Replica{demand("us", meta.ClassCold), demand("ap", meta.ClassCold)}, true},
		"cold, and here":             {[]meta.Replica{demand("us", meta.ClassCold), demand("eu", meta.ClassCold)}, false},
		"standard somewhere":         {[]meta.Replica{demand("us", meta.ClassCold), demand("ap", meta.ClassStandard)}, false},
		"critical elsewhere":         {[]meta.Replica{demand("us", meta.ClassCritical)}, false},
	} {
		if got := coldElsewhere(test.replicas, "eu"); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestIncidents(t *testing.T) {
	i := &incidents{}
	health := func(region meta.RegionName, kind meta.IncidentKind, since int64) {
		i.note(feed.Change{Kind: feed.KindHealth, Region: region, Health: &meta.RegionHealth{Region: region, Kind: kind, Since: meta.Time(since)}})
	}
	if _, severe := i.latest(); severe {
		t.Error("severe at first")
	}
	health("eu", meta.IncidentServers, 5)
	if _, severe := i.latest(); severe || i.out("eu") {
		t.Error("some servers are no severe incident")
	}
	health("eu", meta.IncidentDown, 6)
	health("us", meta.IncidentBlobsLost, 7)
	if since, severe := i.latest(); !severe || !since.Equal(time.Unix(0, 7)) || !i.out("eu") || i.out("ap") {
		t.Errorf("latest since %v, %v", since, severe)
	}
	health("us", "", 8)
	i.note(feed.Change{Kind: feed.KindHealth, Region: "eu", Deleted: true})
	if _, severe := i.latest(); severe {
		t.Error("severe in the end")
	}
}
