package state

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// wave is a plan for the image m1, for an hour.
func wave(id string) CreateWave {
	return CreateWave{
		Wave: meta.Wave{ID: id, Refs: []meta.WaveRef{{Repo: appRef, Package: "api", Version: string(blob("m1").Digest)}}},
		Life: time.Hour,
	}
}

func waveOf(id string, change func(*meta.Wave)) CreateWave {
	c := wave(id)
	change(&c.Wave)
	return c
}

func reported(wave string, hosts ...meta.WaveHost) ReportHosts {
	return ReportHosts{Wave: wave, Hosts: hosts}
}

// newWaveBench is newBench at the level of waves, with the image m1 and the agents
// a0 to a9 in eu, of zones z0 and z1 in turn, and b0 to b9 in us.
func newWaveBench(t testing.TB) *bench {
	b := newBench(t)
	b.must(SetLevel{Level: 2})
	b.must(image("m1"))
	for _, region := range []meta.RegionName{"eu", "us"} {
		token := "agents-" + string(region)
		b.must(CreateJoinToken{Token: meta.JoinToken{ID: token, Role: meta.RoleAgent, Region: region, Uses: 10, Expires: meta.TimeOf(b.now.Add(time.Hour))}})
		for i := range 10 {
			id := meta.NodeID(fmt.Sprint(map[meta.RegionName]string{"eu": "a", "us": "b"}[region], i))
			b.must(AdmitNode{TokenSecretHash: token, Node: meta.Node{ID: id, Role: meta.RoleAgent, Region: region, Zone: fmt.Sprint("z", i%2)}})
		}
	}
	return b
}

func (b *bench) admit(wave string, ids ...meta.NodeID) {
	b.Helper()
	b.must(AdmitHosts{Wave: wave, Hosts: ids})
}

func (b *bench) report(wave string, state meta.HostState, ids ...meta.NodeID) {
	b.Helper()
	c := ReportHosts{Wave: wave}
	for _, id := range ids {
		c.Hosts = append(c.Hosts, meta.WaveHost{Node: id, State: state, Bytes: 10, Reason: "because of " + string(id)})
	}
	b.must(c)
}

// hosts returns the hosts of a wave in a state.
func (b *bench) hosts(wave string, state meta.HostState) string {
	b.Helper()
	var ids []string
	for _, h := range ask(b, ListWaveHosts{Wave: wave, State: state}) {
		ids = append(ids, string(h.Node))
	}
	return strings.Join(ids, " ")
}

func TestWavesNeedTheirLevel(t *testing.T) {
	b := newBench(t)
	b.must(image("m1"))
	b.refuse(wave("w1"), meta.ErrConflict, "level 2", "update all servers")
	b.must(SetLevel{Level: 2})
	b.must(wave("w1"))
}

func TestCreateWave(t *testing.T) {
	b := newWaveBench(t)
	b.refuse(waveOf("w1", func(w *meta.Wave) { w.Refs[0].Version = "lost" }), meta.ErrNotFound, "lost")
	b.refuse(waveOf("w1", func(w *meta.Wave) { w.Targets = []meta.WaveTarget{{Region: "mars"}} }), meta.ErrInvalid, "mars")
	b.refuse(waveOf("w1", func(w *meta.Wave) { w.NotBefore = meta.TimeOf(b.now.Add(2 * maxWaveWait)) }), meta.ErrInvalid, "year")
	missing(b, GetWave{ID: "w1"})
	w := b.must(waveOf("w1", func(w *meta.Wave) { w.NotBefore, w.State, w.Ended = 1, meta.WaveDone, 7 })).Value.(meta.Wave)
	if w.State != meta.WavePlanned || w.Ended != 0 || w.NotBefore != meta.TimeOf(b.now) || w.Expires != meta.TimeOf(b.now.Add(time.Hour)) ||
		w.CreatedBy != "user:ada" || w.Refs[0].Digest != blob("m1").Digest {
		t.Errorf("created %+v", w)
	}
	b.refuse(wave("w1"), meta.ErrExists)
	for i := 1; i < maxOpenWaves; i++ {
		b.must(wave(fmt.Sprint("x", i)))
	}
	b.refuse(wave("w2"), meta.ErrConflict, "cancel one")
	b.must(CancelWave{ID: "w1"})
	b.must(wave("w2"))
	if open := ask(b, ListWaves{Open: true, Page: Page{Limit: 2}}); len(open) != 2 || open[0].ID != "x99" {
		t.Errorf("open waves, the last first: %+v", open)
	}
	if all := ask(b, ListWaves{Page: Page{After: "w2"}}); len(all) != 1 || all[0].ID != "w1" {
		t.Errorf("behind w2: %+v", all)
	}
	check(b)
}

func TestAdmitsWhomTheWaveIsFor(t *testing.T) {
	b := newWaveBench(t)
	b.must(waveOf("w1", func(w *meta.Wave) {
		w.Targets = []meta.WaveTarget{{Region: "eu", Zone: "z1"}, {Region: "us", Zone: "z0"}}
		w.NotBefore = meta.TimeOf(b.now.Add(time.Minute))
	}))
	b.refuse(AdmitHosts{Wave: "w1", Hosts: []meta.NodeID{"a1"}}, meta.ErrConflict, "planned")
	b.now = b.now.Add(time.Minute)
	b.admit("w1", "a0", "a1", "b0", "b1", "eu-1", "nobody")
	b.admit("w1", "a1")
	if got := b.hosts("w1", ""); got != "a1 b0" {
		t.Errorf("admitted %s", got)
	}
	if w := ask(b, GetWave{ID: "w1"}); w.State != meta.WaveRunning || w.Started != meta.TimeOf(b.now) || len(w.Regions) != 2 || w.Regions[0].Fetching != 1 {
		t.Errorf("it is %+v", w)
	}
	if got := ask(b, WaveHosts{Wave: "w1", Nodes: []meta.NodeID{"b0", "a0"}}); got[0].State != meta.HostFetching || got[1].State != "" || got[1].Node != "a0" {
		t.Errorf("asked for two: %+v", got)
	}
	b.now = b.now.Add(time.Hour)
	b.refuse(AdmitHosts{Wave: "w1", Hosts: []meta.NodeID{"a3"}}, meta.ErrConflict)
	b.must(EndWave{ID: "w1"})
	if w := ask(b, GetWave{ID: "w1"}); w.State != meta.WaveDone || w.Ended == 0 || w.Finished == 0 {
		t.Errorf("expired, it is %+v", w)
	}
	b.refuse(CancelWave{ID: "w1"}, meta.ErrConflict, "over")
	b.report("w1", meta.HostDone, "a1") // it had begun in time
	if got := b.hosts("w1", meta.HostDone); got != "a1" {
		t.Errorf("done are %s", got)
	}
	check(b)
}

func TestLeases(t *testing.T) {
	b := newWaveBench(t)
	b.must(waveOf("w1", func(w *meta.Wave) { w.MaxParallel = 2 }))
	b.admit("w1", "a0", "a1", "a2")
	if got := b.hosts("w1", meta.HostFetching); got != "a0 a1" {
		t.Fatalf("admitted %s", got)
	}
	b.now = b.now.Add(meta.WaveLease - 1)
	b.report("w1", meta.HostFetching, "a0")
	b.admit("w1", "a2") // a1's lease has not ended
	b.now = b.now.Add(2)
	b.admit("w1", "a2", "a3")
	if got := b.hosts("w1", meta.HostFetching) + ", lost " + b.hosts("w1", meta.HostLost); got != "a0 a2, lost a1" {
		t.Fatalf("now fetching %s", got)
	}
	// Who comes back without a slot has none, unless it has done its part.
	b.report("w1", meta.HostFetching, "a1")
	b.admit("w1", "a1")
	if got := b.hosts("w1", meta.HostLost); got != "a1" {
		t.Errorf("lost are %s", got)
	}
	b.report("w1", meta.HostDone, "a1")
	b.refuse(EndWave{ID: "w1"}, meta.ErrConflict, "2 hosts fetch")
	b.report("w1", meta.HostDone, "a0")
	b.now = b.now.Add(2 * meta.WaveLease)
	b.must(EndWave{ID: "w1"}) // It takes the lease of a2 back.
	if w := ask(b, GetWave{ID: "w1"}); w.State != meta.WaveDone || w.Ended != 0 || w.Total() != (meta.WaveRegion{Done: 2, Lost: 1, Bytes: 20}) {
		t.Errorf("it is %+v", w)
	}
	// Hosts that join afterwards still get it.
	b.admit("w1", "a2", "b0")
	if got := b.hosts("w1", meta.HostFetching); got != "a2 b0" {
		t.Errorf("late ones: %s", got)
	}
	check(b)
}

func TestWaveAborts(t *testing.T) {
	for name, c := range map[string]struct {
		abort    *meta.WaveAbort
		expected uint32
		limit    int // failures that it bears
	}{
		"never":              {nil, 0, 10},
		"at the first":       {&meta.WaveAbort{}, 0, 0},
		"above three":        {&meta.WaveAbort{Above: 3}, 0, 3},
		"share of those due": {&meta.WaveAbort{Above: 5, Percent: true}, 40, 2},
		"share of who came":  {&meta.WaveAbort{Above: 30, Percent: true}, 2, 3},
	} {
		t.Run(name, func(t *testing.T) {
			b := newWaveBench(t)
			b.must(waveOf("w1", func(w *meta.Wave) { w.Abort, w.Expected = c.abort, c.expected }))
			ids := []meta.NodeID{"a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7", "a8", "a9"}
			b.admit("w1", ids...)
			for i, id := range ids {
				b.report("w1", meta.HostFailed, id)
				b.report("w1", meta.HostDone, id) // too late
				w := ask(b, GetWave{ID: "w1"})
				if aborted := w.State == meta.WaveAborted; aborted != (i >= c.limit) {
					t.Fatalf("after %d failures it is %+v", i+1, w)
				}
				if i == c.limit && (!strings.Contains(w.Reason, "because of a0") || w.Ended == 0) {
					t.Errorf("it says %+v", w)
				}
			}
			if w := ask(b, GetWave{ID: "w1"}); len(w.Failures) != maxWaveFailures || w.Failures[0].Node != "a0" || w.Total().Failed != 10 {
				t.Errorf("failures are %+v", w)
			}
			if c.abort != nil {
				b.refuse(AdmitHosts{Wave: "w1", Hosts: []meta.NodeID{"b0"}}, meta.ErrConflict, "aborted")
			}
			check(b)
		})
	}
}

func TestForgetWaves(t *testing.T) {
	b := newWaveBench(t)
	for _, id := range []string{"w1", "w2", "w3"} {
		b.must(waveOf(id, func(w *meta.Wave) { w.MaxParallel = 5 }))
		b.admit(id, "a0", "a1", "a2")
	}
	b.must(CancelWave{ID: "w1"})
	b.must(CancelWave{ID: "w1"})
	b.now = b.now.Add(time.Second)
	b.must(CancelWave{ID: "w2"})
	if r := b.must(ForgetWaves{Before: meta.TimeOf(b.now), Limit: 2}).Value; r != (ForgetResult{Hosts: 2}) {
		t.Errorf("went %+v", r)
	}
	if r := b.must(ForgetWaves{Before: meta.TimeOf(b.now.Add(time.Hour)), Limit: 1000}).Value; r != (ForgetResult{Waves: 2, Hosts: 4}) {
		t.Errorf("went %+v", r)
	}
	missing(b, GetWave{ID: "w1"})
	b.must(CancelWave{ID: "w3"})
	b.must(ForgetWaves{Before: meta.TimeOf(b.now.Add(time.Hour)), Limit: 1000})
	v, err := b.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	for p, err := range v.scan(span{}) {
		if err != nil {
			t.Fatal(err)
		}
		if strings.ContainsRune("WHLOF", rune(p.key[0])) {
			t.Errorf("%q is left of the waves", p.key)
		}
	}
}

// The feed tells of what hosts have to know of, and not of each batch.
func TestWavesInTheFeed(t *testing.T) {
	b := newWaveBench(t)
	from := b.index
	b.must(wave("w1"))
	b.admit("w1", "a0", "a1")
	b.report("w1", meta.HostDone, "a0", "a1")
	b.must(EndWave{ID: "w1"})
	b.must(EndWave{ID: "w1"})
	b.must(CancelWave{ID: "w1"})
	changes, _, err := b.Changes(from, 100)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range changes {
		if c.Kind == feed.KindWave {
			got = append(got, fmt.Sprint(c.Name, " ", c.Deleted))
		}
	}
	if want := "w1 false, w1 false, w1 true"; strings.Join(got, ", ") != want {
		t.Errorf("the feed has %v, want %s", got, want)
	}
}

// waveModel is what a wave must look like from outside.
type waveModel struct {
	state  meta.WaveState
	over   bool
	begins meta.Time
	ends   meta.Time
	most   int
	above  int // failures that it bears
	hosts  map[meta.NodeID]meta.HostState
	until  map[meta.NodeID]meta.Time
	failed int
}

func (m *waveModel) fetching() (n int) {
	for _, s := range m.hosts {
		if s == meta.HostFetching {
			n++
		}
	}
	return n
}

func (m *waveModel) reap(now meta.Time) {
	for id, until := range m.until {
		if until < now {
			m.hosts[id] = meta.HostLost
			delete(m.until, id)
		}
	}
}

func (m *waveModel) settled() bool {
	for _, s := range m.hosts {
		if s.Settled() {
			return true
		}
	}
	return false
}

// TestWaveModel runs random commands against the machine and the model.
func TestWaveModel(t *testing.T) {
	ids := []meta.NodeID{"a0", "a1", "a2", "a3", "b0", "b1"}
	rapid.Check(t, func(r *rapid.T) {
		b := newWaveBench(t)
		m := &waveModel{
			state: meta.WavePlanned, most: rapid.IntRange(0, 3).Draw(r, "most"), above: rapid.IntRange(0, 4).Draw(r, "above"),
			hosts: map[meta.NodeID]meta.HostState{}, until: map[meta.NodeID]meta.Time{},
		}
		m.begins = meta.TimeOf(b.now.Add(time.Duration(rapid.IntRange(0, 30).Draw(r, "begins")) * time.Second))
		m.ends = m.begins + meta.Time(5*time.Minute)
		plan := waveOf("w1", func(w *meta.Wave) {
			w.NotBefore, w.MaxParallel, w.Abort = m.begins, uint32(m.most), &meta.WaveAbort{Above: uint32(m.above)}
			w.Targets = []meta.WaveTarget{{Zone: "z0"}, {Region: "eu"}}
		})
		plan.Life = 5 * time.Minute
		b.must(plan)
		due := map[meta.NodeID]bool{"a0": true, "a1": true, "a2": true, "a3": true, "b0": true}
		for range rapid.IntRange(1, 40).Draw(r, "steps") {
			b.now = b.now.Add(time.Duration(rapid.IntRange(0, 40).Draw(r, "later")) * time.Second)
			now := meta.TimeOf(b.now)
			some := rapid.SliceOfN(rapid.SampledFrom(ids), 1, 4).Draw(r, "hosts")
			var c Command
			var want error
			switch rapid.IntRange(0, 9).Draw(r, "command") {
			case 0, 1, 2, 3:
				c = AdmitHosts{Wave: "w1", Hosts: some}
				if m.over || now < m.begins || now >= m.ends {
					want = meta.ErrConflict
					break
				}
				m.reap(now)
				for _, id := range some {
					s := m.hosts[id]
					if !due[id] || s.Settled() || s != meta.HostFetching && m.most > 0 && m.fetching() >= m.most {
						continue
					}
					if m.hosts[id] = meta.HostFetching; m.most > 0 {
						m.until[id] = now + meta.Time(meta.WaveLease)
					}
					if m.state == meta.WavePlanned {
						m.state = meta.WaveRunning
					}
				}
			case 4, 5, 6, 7:
				s := rapid.SampledFrom([]meta.HostState{meta.HostFetching, meta.HostDone, meta.HostSkipped, meta.HostFailed}).Draw(r, "state")
				report := ReportHosts{Wave: "w1"}
				for _, id := range some {
					report.Hosts = append(report.Hosts, meta.WaveHost{Node: id, State: s})
					switch was := m.hosts[id]; {
					case was == "" || was.Settled() || was == meta.HostLost && s == meta.HostFetching:
					case s == meta.HostFetching:
						if m.most > 0 {
							m.until[id] = now + meta.Time(meta.WaveLease)
						}
					default:
						m.hosts[id] = s
						delete(m.until, id)
						if s == meta.HostFailed {
							m.failed++
						}
					}
				}
				c = report
				if m.state == meta.WaveRunning && m.failed > m.above {
					m.state, m.over = meta.WaveAborted, true
				}
			case 8:
				c = EndWave{ID: "w1"}
				if m.over {
					break
				}
				before := *m
				before.hosts, before.until = maps.Clone(m.hosts), maps.Clone(m.until)
				m.reap(now)
				switch {
				case now >= m.ends:
					m.state, m.over = meta.WaveDone, true
				case m.fetching() > 0 || !m.settled():
					want, *m = meta.ErrConflict, before
				default:
					m.state = meta.WaveDone
				}
			case 9:
				if rapid.IntRange(0, 3).Draw(r, "really") > 0 {
					continue
				}
				c = CancelWave{ID: "w1"}
				if m.over && m.state != meta.WaveCancelled {
					want = meta.ErrConflict
				} else {
					m.state, m.over = meta.WaveCancelled, true
				}
			}
			if got := b.do(c).Err; (want == nil) != (got == nil) || want != nil && !errors.Is(got, want) {
				r.Fatalf("%s %+v: got %v, want %v", Name(c), c, got, want)
			}
			w := ask(b, GetWave{ID: "w1"})
			if w.State != m.state || (w.Ended != 0) != m.over {
				r.Fatalf("after %s it is %s, over %v; the model %s, %v", Name(c), w.State, w.Ended != 0, m.state, m.over)
			}
		}
		got := map[meta.NodeID]meta.HostState{}
		for _, h := range ask(b, ListWaveHosts{Wave: "w1"}) {
			got[h.Node] = h.State
		}
		if !maps.Equal(got, m.hosts) {
			r.Fatalf("hosts are %v, of the model %v, of %v", got, m.hosts, slices.Collect(maps.Keys(m.until)))
		}
		check(b)
	})
}
