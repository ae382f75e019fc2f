package model

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func scenario(t *testing.T, text string) *Scenario {
	t.Helper()
	sc, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return sc
}

// most fails when a figure is above limit. Figures are of virtual time: the same on
// every machine.
func most(t *testing.T, r *Result, name string, limit float64) {
	t.Helper()
	got, ok := r.Figure(name)
	if !ok {
		t.Fatalf("no figure %q", name)
	}
	if got > limit {
		t.Errorf("%s is %.3f, want at most %.3f", name, got, limit)
	}
}

func whole(t *testing.T, r *Result) {
	t.Helper()
	t.Log("\n" + r.String())
	if r.Unfinished > 0 {
		t.Errorf("%d hosts did not finish", r.Unfinished)
	}
	if r.Breaches > 0 {
		t.Errorf("%d wrong chunks were taken or sent on", r.Breaches)
	}
}

// TestThreeThousandHosts is the wave of a launch, as large as continuous integration bears.
func TestThreeThousandHosts(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	r := Run(scenario(t, `{"name":"3000","blobs":["128MiB"],"schedule":[{"count":1,"bytes":"1MiB"}],
		"regions":[{"hosts":3000,"zones":4}],"up":"100MB/s","rtt":"1ms","mail":"2ms","noPEX":true}`), 1)
	whole(t, r)
	most(t, r, "p99", 2.3)
	most(t, r, "seed", 1.1)
	most(t, r, "waste", 0.05)
}

func TestARunCanBeReplayed(t *testing.T) {
	sc := scenario(t, `{"name":"replay","blobs":["8MiB","2MiB"],"up":"100mbit","rtt":"1ms","wanRTT":"40ms","loss":0.001,
		"regions":[{"hosts":20,"zones":2,"servers":2},{"hosts":20,"servers":2,"wanIn":"100mbit"}],
		"freeze":{"share":0.1,"at":0.3,"for":"1s"},"churn":{"share":0.1,"from":0.2,"to":0.6,"away":"500ms"},
		"corrupt":{"hosts":1},"kill":{"region":1,"server":0,"at":0.5}}`)
	first, second, other := Run(sc, 3), Run(sc, 3), Run(sc, 4)
	if first.Trace != second.Trace || first.Events != second.Events || first.Finish[0] != second.Finish[0] {
		t.Errorf("two runs of one seed differ:\n%v\n%v", first, second)
	}
	if first.Trace == other.Trace {
		t.Error("another seed makes the same run")
	}
}

func TestWrongChunksAreNeverTakenNorSentOn(t *testing.T) {
	r := Run(scenario(t, `{"name":"corrupt","blobs":["32MiB"],"regions":[{"hosts":60}],"up":"100mbit","rtt":"1ms","corrupt":{"hosts":3}}`), 1)
	whole(t, r)
	if r.Wrong == 0 || r.Bans == 0 {
		t.Errorf("%d wrong chunks came and %d peers were shut out; the liars did not lie", r.Wrong, r.Bans)
	}
	// Each honest host shuts a liar out after two wrong chunks; more were on their way.
	if limit := int64(4 * 3 * 57); r.Wrong > limit {
		t.Errorf("%d wrong chunks came, want at most %d", r.Wrong, limit)
	}
}

func TestFrozenHostsAreLeftBehind(t *testing.T) {
	r := Run(scenario(t, `{"name":"frozen","blobs":["32MiB"],"regions":[{"hosts":60}],"up":"100mbit","rtt":"1ms","freeze":{"share":0.1,"at":0.4}}`), 1)
	whole(t, r)
	if r.Hosts != 54 {
		t.Errorf("%d hosts count, want the 54 healthy ones", r.Hosts)
	}
}

func TestAKilledServerIsReplaced(t *testing.T) {
	for _, servers := range []string{"1", "2"} {
		r := Run(scenario(t, `{"name":"killed","blobs":["32MiB"],"up":"100mbit","rtt":"1ms","wanRTT":"40ms",
			"regions":[{"hosts":20,"servers":2},{"hosts":20,"servers":`+servers+`}],"kill":{"region":1,"server":0,"at":0.5}}`), 1)
		whole(t, r) // with its only server gone, two agents fetch for the region
		most(t, r, "enter", 1.15)
	}
}

func TestLateAndReturningHostsCatchUp(t *testing.T) {
	r := Run(scenario(t, `{"name":"late","blobs":["32MiB"],"regions":[{"hosts":60,"zones":3}],"up":"100mbit","rtt":"1ms",
		"late":{"share":0.3,"at":0.5},"churn":{"share":0.1,"from":0.2,"to":0.8,"away":"1s"}}`), 1)
	whole(t, r)
}

func TestASmallBlobComesWithTheIntroduction(t *testing.T) {
	r := Run(scenario(t, `{"name":"small","blobs":["10KB"],"regions":[{"hosts":1000}],"up":"300MB/s","rtt":"1ms"}`), 1)
	whole(t, r)
	most(t, r, "p99_ms", 100)
}

// TestALoneTransferTakesWhatTheLinkTakes checks the links against arithmetic: one
// host, one chunk of 256 KiB at 1 MB/s.
func TestALoneTransferTakesWhatTheLinkTakes(t *testing.T) {
	r := Run(scenario(t, `{"name":"one","blobs":["256KiB"],"regions":[{"hosts":1}],"up":"1MB/s","rtt":"10ms"}`), 1)
	whole(t, r)
	got, bound := Quantile(r.Finish, 1), r.Bound
	// An introduction of 3 KB, a connection, a request, the chunk, half a round trip each way.
	if got < bound+40*time.Millisecond || got > bound+70*time.Millisecond {
		t.Errorf("the host has all after %v, the link alone takes %v", got, bound)
	}
}

// TestARegionsEntryIsACap: two servers fetch for a region through an entry of half
// a link's rate.
func TestARegionsEntryIsACap(t *testing.T) {
	r := Run(scenario(t, `{"name":"entry","blobs":["16MiB"],"up":"10MB/s","rtt":"1ms","wanRTT":"20ms",
		"regions":[{"hosts":1},{"hosts":4,"wanIn":"5MB/s"}]}`), 1)
	whole(t, r)
	if want := 3300 * time.Millisecond; Quantile(r.Finish, 1) < want {
		t.Errorf("16 MiB entered at 5 MB/s within %v", Quantile(r.Finish, 1))
	}
}

func TestTheScheduleIsTheProducts(t *testing.T) {
	own := lengths(3e9, nil)
	same := lengths(3e9, []Step{{256, 256 << 10}, {256, 512 << 10}, {256, 1 << 20}, {256, 2 << 20}, {1, 4 << 20}})
	if len(own) != len(same) {
		t.Fatalf("%d chunks by the product, %d by the same steps", len(own), len(same))
	}
	for i := range own {
		if own[i] != same[i] {
			t.Fatalf("chunk %d: %d and %d bytes", i, own[i], same[i])
		}
	}
}

// TestTheLabsWaves holds the lab's own cases to their goals.
func TestTheLabsWaves(t *testing.T) {
	for _, name := range []string{"lab-8", "lab-16", "lab-32", "small-1000"} {
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile("../scenarios/" + name + ".json")
			if err != nil {
				t.Fatal(err)
			}
			sc, err := Parse(data)
			if err != nil {
				t.Fatal(err)
			}
			r := Run(sc, 1)
			whole(t, r)
			for figure, limit := range sc.Goals {
				most(t, r, figure, limit)
			}
		})
	}
}

func TestScenariosAreRead(t *testing.T) {
	paths, err := filepath.Glob("../scenarios/*.json")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		sc, err := Parse(data)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if name := strings.TrimSuffix(filepath.Base(path), ".json"); sc.Name != name {
			t.Errorf("%s names itself %q", path, sc.Name)
		}
	}
	for _, bad := range []string{
		`{}`, `{"nme":"x"}`, `{"blobs":["1MiB"],"regions":[{"hosts":1}],"up":"fast","rtt":"1ms"}`,
		`{"blobs":["1MiB"],"regions":[{"hosts":1},{"hosts":1}],"up":"1MB/s","rtt":"1ms"}`,
		`{"blobs":["0"],"regions":[{"hosts":1}],"up":"1MB/s","rtt":"1ms"}`,
		`{"blobs":["1MiB"],"regions":[{"hosts":1}],"up":"1MB/s","rtt":"1ms","kill":{"region":1}}`,
		`{"blobs":["1MiB"],"regions":[{"hosts":1}],"up":"1MB/s","rtt":"1ms","goals":{"speed":1}}`,
		`{"blobs":["1MiB"],"regions":[{"hosts":1}],"up":"1MB/s","rtt":"1ms","core":{"Slotz":1}}`,
	} {
		if _, err := Parse([]byte(bad)); err == nil {
			t.Errorf("%s is taken for a scenario", bad)
		}
	}
}

func TestTheClockKeepsOrder(t *testing.T) {
	var c clock
	r := uint64(1)
	for i := range 5000 {
		r = mix(r + 1)
		d := int64(r % 1e9)
		if i%3 == 0 {
			d %= 1 << bucketShift
		}
		c.after(d, event{a: int32(i)})
	}
	last, n := event{at: -1}, 0
	for {
		e, ok := c.pop()
		if !ok {
			break
		}
		if n > 0 && !last.before(&e) {
			t.Fatalf("event %d at %d comes after one at %d", e.serial, e.at, last.at)
		}
		if n++; n%7 == 0 && n < 3000 {
			c.after(int64(n)*1000, event{})
		}
		last = e
	}
	if n < 5000 {
		t.Errorf("%d events of 5000 came", n)
	}
}

// TestServersSwarmAmongThemselves: the origin sends each chunk to one of the other
// regions, they give it to each other, and it enters each once.
func TestServersSwarmAmongThemselves(t *testing.T) {
	for _, c := range []struct {
		name, regions, kill string
		seed, enter         float64
	}{
		{"three regions", `{"hosts":30},{"hosts":30},{"hosts":30}`, ``, 2.1, 1.02},
		{"four regions", `{"hosts":20},{"hosts":20},{"hosts":20},{"hosts":20}`, ``, 2.1, 1.02},
		{"two servers each", `{"hosts":20,"servers":2},{"hosts":20,"servers":2},{"hosts":20,"servers":2}`, ``, 2, 1.08},
		{"one is killed", `{"hosts":20,"servers":2},{"hosts":20,"servers":2},{"hosts":20,"servers":2}`, `,"kill":{"region":1,"server":0,"at":0.5}`, 2, 1.15},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := Run(scenario(t, `{"name":"servers","blobs":["64MiB"],"up":"100MB/s","rtt":"1ms","wanRTT":"60ms","regions":[`+c.regions+`]`+c.kill+`}`), 1)
			whole(t, r)
			most(t, r, "seed", c.seed)
			most(t, r, "enter", c.enter)
		})
	}
}
