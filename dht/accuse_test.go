package dht

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"pgregory.net/rapid"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

func TestReports(t *testing.T) {
	at := func(minutes int) time.Time { return epoch.Add(time.Duration(minutes) * time.Minute) }
	for name, test := range map[string]struct {
		say  []string // "reporter accused minute"
		want []verdict
		away string // at the end
	}{
		"one node alone":           {[]string{"a x 0", "a x 1", "a x 2"}, []verdict{noted, repeated, repeated}, ""},
		"two nodes":                {[]string{"a x 0", "b x 1"}, []verdict{noted, shunning}, "x"},
		"two and more":             {[]string{"a x 0", "b x 1", "c x 2"}, []verdict{noted, shunning, repeated}, "x"},
		"of itself":                {[]string{"x x 0", "a x 1"}, []verdict{ignored, noted}, ""},
		"too far apart":            {[]string{"a x 0", "b x 10"}, []verdict{noted, noted}, ""},
		"again, and another":       {[]string{"a x 0", "a x 9", "b x 12"}, []verdict{noted, repeated, shunning}, "x"},
		"it ends":                  {[]string{"a x 0", "b x 1", "a y 12"}, []verdict{noted, shunning, noted}, ""},
		"a liar has no say":        {[]string{"a x 0", "b x 0", "x y 1", "a y 1"}, []verdict{noted, shunning, ignored, noted}, "x"},
		"what it said before, too": {[]string{"x y 0", "a x 1", "b x 1", "c y 2"}, []verdict{noted, noted, shunning, noted}, "x"},
	} {
		t.Run(name, func(t *testing.T) {
			r, last := newReports(), epoch
			for i, line := range test.say {
				var by, of string
				var minute int
				fmt.Sscanf(line, "%s %s %d", &by, &of, &minute)
				last = at(minute)
				if got := r.take(meta.NodeID(by), meta.NodeID(of), last); got != test.want[i] {
					t.Errorf("%s: %s, want %s", line, got, test.want[i])
				}
			}
			away := ""
			for _, id := range r.recent(last, 10) {
				away += string(id)
			}
			if away != test.away {
				t.Errorf("kept away: %q, want %q", away, test.away)
			}
		})
	}
}

// TestReportsAreBounded: whatever nodes say, the tables keep their bounds, one node
// alone has nobody shunned, and when time has passed nothing is left.
func TestReportsAreBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r, now := newReports(), epoch
		liar := meta.NodeID("liar")
		for range rapid.IntRange(0, 200).Draw(t, "reports") {
			now = now.Add(time.Duration(rapid.IntRange(0, 120).Draw(t, "s")) * time.Second)
			r.take(liar, meta.NodeID(fmt.Sprint("n", rapid.IntRange(0, 40).Draw(t, "of"))), now)
			if rapid.IntRange(0, 9).Draw(t, "sweep") == 0 {
				r.sweep(now)
			}
			if len(r.away) != 0 || len(r.accused) > 2*maxAccusations {
				t.Fatalf("one node has %d kept away, %d accused", len(r.away), len(r.accused))
			}
		}
		r.sweep(now.Add(ShunFor))
		if len(r.accused)+len(r.said)+len(r.away) != 0 {
			t.Fatalf("left: %d accused, %d reporters, %d kept away", len(r.accused), len(r.said), len(r.away))
		}
	})
	r := newReports()
	for i := range 5000 {
		for _, by := range []string{"a", "b", "c"} {
			r.take(meta.NodeID(fmt.Sprint(by, i/8)), meta.NodeID(fmt.Sprint("n", i)), epoch)
		}
	}
	if len(r.accused) > maxAccused || len(r.away) > maxAccused {
		t.Errorf("%d accused, %d kept away", len(r.accused), len(r.away))
	}
	for i := range 100 {
		r.take(meta.NodeID(fmt.Sprint("z", i)), "n0", epoch)
	}
	if n := len(r.accused["n0"].by); n > maxAccusers {
		t.Errorf("%d reporters of one are kept", n)
	}
	if n := len(r.list(epoch, 10)); n != 10 {
		t.Errorf("%d listed", n)
	}
}

// TestALiarIsIntroducedToNobody: two members of its swarm report it, to one of two
// servers; the other hears of it.
func TestALiarIsIntroducedToNobody(t *testing.T) {
	ctx := within(t)
	s := &site{t: t}
	first, second := s.add("eu", "", meta.RoleServer), s.add("eu", "", meta.RoleServer)
	liar, a, b, stranger := s.add("eu", "", meta.RoleAgent), s.add("eu", "", meta.RoleAgent), s.add("eu", "", meta.RoleAgent), s.add("eu", "", meta.RoleAgent)
	s.enrol()
	root, rights := rootFor(t, first.id(), second.id()), &rights{}
	other := rootFor(t, second.id(), first.id())
	rights.know(root, other)
	var mu sync.Mutex
	shunned := map[meta.NodeID]meta.NodeID{} // by server
	var registrars []*Registrar
	for _, n := range []node{first, second} {
		r, _ := registrarOn(t, n, &shelf{}, rights, RegistrarLimits{}, func(c *RegistrarConfig) {
			c.Shunned = func(peer meta.NodeID, d time.Duration) {
				mu.Lock()
				defer mu.Unlock()
				if d != ShunFor {
					t.Errorf("kept away for %v", d)
				}
				shunned[n.id()] = peer
			}
		})
		registrars = append(registrars, r)
	}
	finders := map[meta.NodeID]*Finder{}
	for _, n := range []node{liar, a, b, stranger} {
		finders[n.id()] = finderOn(t, n, nil)
	}
	join := func(n node, root digest.CID) (Introduction, error) {
		return finders[n.id()].Join(ctx, Want{Root: root, Have: 1})
	}
	for _, n := range []node{liar, a, b} {
		for _, r := range []digest.CID{root, other} {
			if _, err := join(n, r); err != nil {
				t.Fatal(err)
			}
		}
	}
	introduced := func(to node, root digest.CID) bool {
		in, err := join(to, root)
		if err != nil {
			t.Fatal(err)
		}
		_, ok := has(in.Peers, liar.id())
		return ok
	}
	verdicts := func(v verdict) float64 {
		return testutil.ToFloat64(registrars[0].metrics.reports.WithLabelValues(string(v)))
	}
	// A node that is no member, and one member however often, change nothing.
	finders[stranger.id()].Report(liar.id(), root, 3)
	await(t, "the stranger's report", func() bool { return verdicts(ignored) == 1 })
	finders[a.id()].Report(liar.id(), root, 3)
	finders[a.id()].Report(liar.id(), root, 4) // not sent again for a minute
	await(t, "the first report", func() bool { return verdicts(noted) == 1 })
	if !introduced(b, root) || registrars[0].shunnedNow() != 0 {
		t.Error("one report was enough")
	}
	finders[b.id()].Report(liar.id(), root, 3)
	await(t, "the second report", func() bool { return verdicts(shunning) == 1 })
	if introduced(a, root) {
		t.Error("a reported peer is introduced")
	}
	await(t, "the other server's hearing of it", func() bool { return registrars[1].shunnedNow() == 1 })
	if introduced(a, other) {
		t.Error("the other server introduces it")
	}
	if in, _ := join(a, root); len(in.Away) != 1 || in.Away[0] != liar.id() {
		t.Errorf("members are told to keep away %v", in.Away)
	}
	if _, err := join(liar, root); !errors.Is(err, meta.ErrUnavailable) || errors.Is(err, meta.ErrNotFound) {
		t.Errorf("the liar is answered %v", err)
	}
	mu.Lock()
	if shunned[first.id()] != liar.id() || shunned[second.id()] != liar.id() {
		t.Errorf("servers keep away %v", shunned)
	}
	mu.Unlock()
	if list := registrars[0].Reported(); len(list) != 1 || list[0].ID != liar.id() || len(list[0].By) != 2 || list[0].Shunned.IsZero() {
		t.Errorf("reported: %+v", list)
	}
	// An agent's word that others were judged is none.
	limited := within(t)
	if _, err := finders[a.id()].caller.do(limited, first.id(), request{Root: root, Accused: b.id(), Judged: true}); err != nil {
		t.Fatal(err)
	}
	if registrars[0].away(b.id()) {
		t.Error("an agent judges")
	}
}

func TestOnlyCopy(t *testing.T) {
	ctx := within(t)
	s := &site{t: t}
	server, beside := s.add("eu", "", meta.RoleServer), s.add("eu", "", meta.RoleServer)
	a, b := s.add("eu", "", meta.RoleAgent), s.add("eu", "", meta.RoleAgent)
	far := s.add("us", "", meta.RoleServer)
	s.enrol()
	rights := &rights{}
	alone, shared, onServer, onBeside, gone := rootFor(t, server.id(), beside.id()), rootFor(t, server.id(), beside.id()),
		rootFor(t, server.id(), beside.id()), rootFor(t, server.id(), beside.id()), someRoot()
	rights.know(alone, shared, onServer, onBeside)
	r, _ := registrarOn(t, server, &shelf{}, rights, RegistrarLimits{}, func(c *RegistrarConfig) {
		c.Held = func(_ context.Context, root digest.CID) bool { return root == onServer }
		c.Holders = holdersFunc(func(root digest.CID) []meta.NodeID {
			if root == onBeside {
				return []meta.NodeID{beside.id()}
			}
			return []meta.NodeID{far.id()} // another region's copy is none of this one
		})
	})
	fa, fb := finderOn(t, a, nil), finderOn(t, b, nil)
	for _, root := range []digest.CID{alone, shared, onServer, onBeside} {
		if _, err := fa.Join(ctx, Want{Root: root, Complete: true}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := fb.Join(ctx, Want{Root: shared, Complete: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := fb.Join(ctx, Want{Root: alone, Have: 1}); err != nil { // a part is no copy
		t.Fatal(err)
	}
	for name, root := range map[string]digest.CID{
		"another agent": shared, "this server": onServer, "another server": onBeside, "not to be had": gone,
	} {
		if fa.OnlyCopy(root) {
			t.Errorf("%s: is the only copy", name)
		}
	}
	// On a busy machine 300 ms may pass without an answer, which then is remembered.
	await(t, "a server's word that a copy is the only one", func() bool {
		fa.mu.Lock()
		fa.copies.Remove(alone)
		fa.mu.Unlock()
		return fa.OnlyCopy(alone)
	})
	later := rootFor(t, server.id(), beside.id())
	rights.know(later)
	if err := fa.Prepare(ctx, later); err != nil {
		t.Fatal(err)
	}
	if k, _ := fa.known.get(later); len(k.grant) == 0 || time.Until(k.expires) < 30*time.Second {
		t.Errorf("prepared with %+v", k)
	}
	if err := fb.Prepare(ctx, gone); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("prepared for what there is not: %v", err)
	}
	for _, root := range []digest.CID{gone, later} {
		if r.shard(root).table.count(root) != 0 {
			t.Error("who looks becomes a member")
		}
	}
	// A minute long nobody is asked again.
	server.Host.Close()
	if !fa.OnlyCopy(alone) || fa.OnlyCopy(shared) {
		t.Error("the answers of before are forgotten")
	}
	if err := fa.Prepare(ctx, later); err != nil {
		t.Errorf("a grant is known, and a server is asked: %v", err)
	}
	if fa.OnlyCopy(someRoot()) {
		t.Error("without a server and a DHT nothing is known")
	}
}

func TestSwarmsAreListed(t *testing.T) {
	s := &site{t: t}
	server := s.add("eu", "", meta.RoleServer)
	s.enrol()
	r, err := NewRegistrar(RegistrarConfig{Host: server.Host, Cluster: testCluster, Self: server.Node, Roster: server.Host, Maps: &shelf{}, Granter: &rights{}})
	if err != nil {
		t.Fatal(err)
	}
	until := time.Now().Add(Lease)
	var roots []digest.CID
	for i := range maxListed + 10 {
		root := someRoot()
		roots = append(roots, root)
		for m := range i%5 + 1 {
			r.shard(root).table.join(root, meta.NodeID(fmt.Sprint(m)), "z", progress{uint64(m), m == 0}, until)
		}
	}
	list := r.Swarms()
	if len(list) != maxListed {
		t.Fatalf("%d swarms", len(list))
	}
	for i, v := range list {
		if v.Complete != 1 || v.Have != uint64(v.Members*(v.Members-1)/2) || i > 0 && v.Members > list[i-1].Members {
			t.Fatalf("swarm %d: %+v", i, v)
		}
	}
	if bytes.Equal(roots[0][:], list[0].Root[:]) {
		t.Error("the smallest comes first")
	}
}

type holdersFunc func(digest.CID) []meta.NodeID

func (f holdersFunc) Holders(_ context.Context, root digest.CID) ([]meta.NodeID, error) {
	return f(root), nil
}

// Who asks from another region, which a grant allows, has no say about this one's nodes.
func TestOtherRegionsAccuseNobody(t *testing.T) {
	ctx := within(t)
	s := &site{t: t}
	server, agent, beyond := s.add("eu", "", meta.RoleServer), s.add("eu", "", meta.RoleAgent), s.add("us", "", meta.RoleServer)
	s.enrol()
	root, rights := someRoot(), &rights{}
	rights.know(root)
	r, _ := registrarOn(t, server, &shelf{}, rights, RegistrarLimits{})
	if _, err := r.introduce(ctx, beyond.id(), request{Root: root, Look: true}); err != nil {
		t.Fatal(err)
	}
	_, err := r.introduce(ctx, beyond.id(), request{Root: root, Look: true, Accused: agent.id(), Judged: true})
	if !errors.Is(err, meta.ErrDenied) || r.away(agent.id()) {
		t.Errorf("kept away %v: %v", r.away(agent.id()), err)
	}
}
