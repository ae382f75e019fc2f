package dht

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

func TestIntroduction(t *testing.T) {
	ctx := within(t)
	s := &site{t: t}
	server := s.add("eu", "z1", meta.RoleServer)
	agents := []node{s.add("eu", "z1", meta.RoleAgent), s.add("eu", "z2", meta.RoleAgent), s.add("eu", "z2", meta.RoleAgent)}
	s.enrol()
	shelf, rights := &shelf{}, &rights{}
	root := shelf.put([]byte("a chunk map"), nil)
	rights.know(root)
	registrarOn(t, server, shelf, rights, RegistrarLimits{})

	first := finderOn(t, agents[0], nil)
	in, err := first.Join(ctx, Want{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	if string(in.Map) != "a chunk map" || string(in.Grant) != "grant for "+string(agents[0].id()) || in.Members != 1 {
		t.Errorf("first introduction: %+v", in)
	}
	if until := time.Until(in.GrantExpires); until <= 0 || until > time.Minute {
		t.Errorf("the grant ends in %v", until)
	}
	if in.Again < againFetching || in.Again > againFetching*9/8 {
		t.Errorf("again after %v", in.Again)
	}
	if p, ok := has(in.Peers, server.id()); !ok || !p.Server || !p.Complete || p.Region != "eu" || p.Addrs[0] != server.Swarm[0] || len(in.Peers) != 1 {
		t.Errorf("peers of the first: %+v", in.Peers)
	}

	second := finderOn(t, agents[1], nil)
	if in, err = second.Join(ctx, Want{Root: root, Have: 3}); err != nil {
		t.Fatal(err)
	}
	p, ok := has(in.Peers, agents[0].id())
	if !ok || p.Server || p.Complete || p.Zone != "z1" || len(in.Peers) != 2 || in.Members != 2 {
		t.Errorf("peers of the second: %+v", in.Peers)
	}
	asked := shelf.count()
	if in, err = first.Join(ctx, Want{Root: root, Have: 9, Complete: true}); err != nil {
		t.Fatal(err)
	}
	if shelf.count() != asked || string(in.Map) != "a chunk map" {
		t.Errorf("a renewal asked for the map again, or lost it: %q", in.Map)
	}
	third := finderOn(t, agents[2], nil)
	if in, err = third.Join(ctx, Want{Root: root}); err != nil {
		t.Fatal(err)
	}
	if p, ok := has(in.Peers, agents[0].id()); !ok || !p.Complete {
		t.Errorf("the complete member: %+v", p)
	}
	if err := first.Leave(ctx, root); err != nil {
		t.Fatal(err)
	}
	if in, err = third.Join(ctx, Want{Root: root}); err != nil {
		t.Fatal(err)
	}
	if _, ok := has(in.Peers, agents[0].id()); ok || in.Members != 2 {
		t.Errorf("after it left: %+v", in.Peers)
	}
	// A node that is removed is not told of any more, lease or not.
	server.Update(nil, []meta.NodeID{agents[1].id()})
	if in, err = third.Join(ctx, Want{Root: root}); err != nil {
		t.Fatal(err)
	}
	if _, ok := has(in.Peers, agents[1].id()); ok {
		t.Errorf("a removed node is introduced: %+v", in.Peers)
	}
}

func TestSmallContentRidesAlong(t *testing.T) {
	ctx := within(t)
	s := &site{t: t}
	server, agent := s.add("eu", "", meta.RoleServer), s.add("eu", "", meta.RoleAgent)
	s.enrol()
	shelf, rights := &shelf{}, &rights{}
	small := shelf.put([]byte("map of a small blob"), bytes.Repeat([]byte{7}, MaxInlineBytes))
	big := shelf.put(bytes.Repeat([]byte("large map "), MaxMapBytes/10+1), nil)
	absent := someRoot()
	rights.know(small, big, absent)
	r, _ := registrarOn(t, server, shelf, rights, RegistrarLimits{})
	f := finderOn(t, agent, nil)
	in, err := f.Join(ctx, Want{Root: small})
	if err != nil || len(in.Inline) != MaxInlineBytes || len(in.Map) == 0 {
		t.Fatalf("%d bytes of content, %d of map: %v", len(in.Inline), len(in.Map), err)
	}
	if _, members, _ := r.size(); members != 0 {
		t.Errorf("%d members where there is nothing to swarm", members)
	}
	if in, err = f.Join(ctx, Want{Root: big}); err != nil || in.Map != nil || len(in.Peers) != 1 {
		t.Errorf("a map over the limit: %d bytes, %d peers, %v", len(in.Map), len(in.Peers), err)
	}
	if in, err = f.Join(ctx, Want{Root: absent}); err != nil || in.Map != nil {
		t.Errorf("a blob that the server lacks: %+v, %v", in, err)
	}
	if p, ok := has(in.Peers, server.id()); !ok || p.Complete {
		t.Errorf("the server claims to have it: %+v", p)
	}
}

// TestRefusalsLookAlike compares the bytes that a forbidden and an absent root
// are answered with, and another region's.
func TestRefusalsLookAlike(t *testing.T) {
	ctx := within(t)
	s := &site{t: t}
	server, agent, foreign := s.add("eu", "", meta.RoleServer), s.add("eu", "", meta.RoleAgent), s.add("us", "", meta.RoleAgent)
	s.enrol()
	root := someRoot()
	rights := &rights{denied: map[meta.NodeID]bool{agent.id(): true}}
	rights.know(root)
	r, _ := registrarOn(t, server, &shelf{}, rights, RegistrarLimits{})
	ask := func(n node) string {
		s, err := n.NewStream(ctx, peerIDOf(server), RegistrarProtocol(testCluster))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Reset()
		s.SetDeadline(time.Now().Add(30 * time.Second))
		if err := codec.WriteMessage(s, request{Root: root}); err != nil {
			t.Fatal(err)
		}
		s.CloseWrite()
		b, err := io.ReadAll(s)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	forbidden, elsewhere := ask(agent), ask(foreign)
	rights.mu.Lock()
	rights.denied, rights.roots = nil, nil
	rights.mu.Unlock()
	if absent := ask(agent); forbidden != absent || elsewhere != absent {
		t.Errorf("forbidden %q, elsewhere %q, absent %q", forbidden, elsewhere, absent)
	}
	if roots, members, _ := r.size(); roots+members != 0 {
		t.Errorf("refused nodes are recorded: %d roots", roots)
	}
	_, err := finderOn(t, agent, nil).Join(ctx, Want{Root: root})
	if !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("the finder says %v", err)
	}
}

func TestUnenrolledGetsNoAnswer(t *testing.T) {
	ctx := within(t)
	s := &site{t: t}
	server := s.add("eu", "", meta.RoleServer)
	s.enrol()
	other := &site{t: t}
	stranger := other.add("eu", "", meta.RoleAgent)
	stranger.SetRoster([]meta.Node{server.Node, stranger.Node})
	root := someRoot()
	rights := &rights{}
	rights.know(root)
	registrarOn(t, server, &shelf{}, rights, RegistrarLimits{})
	if in, err := finderOn(t, stranger, nil).Join(ctx, Want{Root: root}); err == nil {
		t.Fatalf("a stranger got %+v", in)
	}
	if rights.signed != 0 {
		t.Error("a grant was signed for a stranger")
	}
}

func TestBusy(t *testing.T) {
	ctx := within(t)
	s := &site{t: t}
	server, a, b := s.add("eu", "", meta.RoleServer), s.add("eu", "", meta.RoleAgent), s.add("eu", "", meta.RoleAgent)
	s.enrol()
	root := someRoot()
	rights := &rights{gate: make(chan struct{})}
	rights.know(root)
	r, _ := registrarOn(t, server, &shelf{}, rights, RegistrarLimits{Requests: 1, RetryAfter: 700 * time.Millisecond})
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := finderOn(t, a, nil).Join(ctx, Want{Root: root}); err != nil {
			t.Errorf("the first: %v", err)
		}
	})
	await(t, "the first request", func() bool { return len(r.working) == 1 })
	_, err := finderOn(t, b, nil).Join(ctx, Want{Root: root})
	busy, ok := errors.AsType[*meta.UnavailableError](err)
	if !ok || busy.Reason != "busy" || busy.RetryAfter != 700*time.Millisecond {
		t.Errorf("the second: %v", err)
	}
	close(rights.gate)
	wg.Wait()
}

func TestHostileStreams(t *testing.T) {
	ctx := within(t)
	s := &site{t: t}
	server, agent := s.add("eu", "", meta.RoleServer), s.add("eu", "", meta.RoleAgent)
	s.enrol()
	r, stop := registrarOn(t, server, &shelf{}, &rights{}, RegistrarLimits{Streams: 4})
	open := func() network.Stream {
		s, err := agent.NewStream(ctx, peerIDOf(server), RegistrarProtocol(testCluster))
		if err != nil {
			t.Fatal(err)
		}
		s.SetDeadline(time.Now().Add(30 * time.Second))
		return s
	}
	for name, bytes := range map[string][]byte{
		"oversized":   codec.AppendFrame(nil, make([]byte, maxRequestBytes+1)),
		"endless":     bytes.Repeat([]byte{0xff}, 16),
		"no message":  codec.AppendFrame(nil, []byte("rubbish")),
		"no root":     framed(request{Have: 1}),
		"bad root":    codec.AppendFrame(nil, []byte{0xa1, 1, 0x41, 9}),
		"other types": codec.AppendFrame(nil, []byte{0xa1, 1, 1}),
	} {
		s := open()
		s.Write(bytes)
		if n, err := s.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("%s: was answered", name)
		}
		s.Reset()
	}
	await(t, "the end of the bad streams", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return len(r.streams) == 0 })
	// Idle streams are bounded by node.
	for range 8 {
		s := open()
		s.Write([]byte{1}) // opens it for good: negotiation is lazy
		defer s.Reset()
	}
	await(t, "four open streams", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return len(r.streams) == 4 })
	stop() // resets what is open and waits for it
	if len(r.streams) != 0 {
		t.Error("streams outlive Run")
	}
}

func TestFullTableStillAnswers(t *testing.T) {
	ctx := within(t)
	s := &site{t: t}
	server := s.add("eu", "", meta.RoleServer)
	a, b := s.add("eu", "", meta.RoleAgent), s.add("eu", "", meta.RoleAgent)
	s.enrol()
	root := someRoot()
	rights := &rights{}
	rights.know(root)
	r, _ := registrarOn(t, server, &shelf{}, rights, RegistrarLimits{MembersPerRoot: 1})
	for _, n := range []node{a, b} {
		in, err := finderOn(t, n, nil).Join(ctx, Want{Root: root})
		if err != nil || len(in.Grant) == 0 {
			t.Fatalf("%+v, %v", in, err)
		}
	}
	if _, members, _ := r.size(); members != 1 {
		t.Errorf("%d members", members)
	}
}

// BenchmarkRegistrar is renewals through real hosts on loopback, 32 at a time of
// 4 agents, the work of both sides.
func BenchmarkRegistrar(b *testing.B) {
	s := &site{t: b}
	server := s.add("eu", "", meta.RoleServer)
	var agents []node
	for range 4 {
		agents = append(agents, s.add("eu", "", meta.RoleAgent))
	}
	s.enrol()
	root := digest.Sum([]byte("a chunk map"))
	rights := &rights{}
	rights.know(root)
	registrarOn(b, server, &shelf{}, rights, RegistrarLimits{})
	var finders []*Finder
	for _, n := range agents {
		finders = append(finders, finderOn(b, n, nil))
	}
	ctx := context.Background()
	b.SetParallelism(16)
	b.ResetTimer()
	var next sync.Mutex
	i := 0
	b.RunParallel(func(pb *testing.PB) {
		next.Lock()
		f := finders[i%len(finders)]
		i++
		next.Unlock()
		for pb.Next() {
			if _, err := f.Join(ctx, Want{Root: root, Have: 1}); err != nil {
				b.Error(fmt.Errorf("renewal: %w", err))
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
}

// TestRenewalsMakeAServerFetch: members that were introduced by a server that has died
// bring the map along; the next server is to fetch what it lacks all the same.
func TestRenewalsMakeAServerFetch(t *testing.T) {
	ctx := within(t)
	s := &site{t: t}
	first, second := s.add("eu", "z1", meta.RoleServer), s.add("eu", "z1", meta.RoleServer)
	agent := s.add("eu", "z1", meta.RoleAgent)
	s.enrol()
	full, empty, rights := &shelf{}, &shelf{}, &rights{}
	root := full.put([]byte("a chunk map"), nil)
	rights.know(root)
	shelves := map[meta.NodeID]*shelf{first.id(): full, second.id(): empty}
	ranked := rank(root, []meta.Node{first.Node, second.Node})
	heir := shelves[ranked[1].ID]
	finder := finderOn(t, agent, nil)
	finder.known.put(root, known{encoded: []byte("a chunk map")})
	for _, n := range []node{first, second} {
		if n.id() == ranked[1].ID { // the first of the ranking has died
			registrarOn(t, n, heir, rights, RegistrarLimits{})
		}
	}
	began := time.Now()
	for range 3 {
		if _, err := finder.Join(ctx, Want{Root: root, Have: 1}); err != nil {
			t.Fatal(err)
		}
	}
	n := heir.count()
	if most := 1 + int(time.Since(began)/nudgeEvery); n < 1 || n > most {
		t.Errorf("the server was asked for its map %d times by three renewals at once", n)
	}
	if _, err := finder.Join(ctx, Want{Root: root, Complete: true}); err != nil {
		t.Fatal(err)
	}
	if heir.count() != n {
		t.Errorf("a complete member makes the server fetch")
	}
}

// TestTwoThousandAskAtOnce: as many as are allowed are worked on, the others are told
// at once when to come again, and who does as told is served.
func TestTwoThousandAskAtOnce(t *testing.T) {
	s := &site{t: t}
	server := s.add("eu", "", meta.RoleServer)
	const asking = 2000
	roster := map[meta.NodeID]meta.Node{}
	for i := range asking {
		id := meta.NodeID(fmt.Sprint("agent-", i))
		roster[id] = meta.Node{ID: id, Role: meta.RoleAgent, Region: "eu"}
	}
	s.enrol()
	root, rights := someRoot(), &rights{gate: make(chan struct{})}
	rights.know(root)
	r, err := NewRegistrar(RegistrarConfig{
		Host: server.Host, Cluster: testCluster, Self: server.Node, Roster: listed{server.Host, roster}, Maps: &shelf{}, Granter: rights,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx := within(t)
	var again sync.WaitGroup
	var busy, answered atomic.Int64
	come := make(chan struct{}) // hands out the turns after the pause
	for id := range roster {
		again.Go(func() {
			rep := r.answer(ctx, id, request{Root: root, HasMap: true})
			if rep.Error != nil {
				if rep.RetryMillis != 250 || !errors.Is(rep.Error, meta.ErrUnavailable) {
					t.Errorf("refused with %v, come again in %d ms", rep.Error, rep.RetryMillis)
				}
				busy.Add(1)
				<-come
				if rep = r.answer(ctx, id, request{Root: root, HasMap: true}); rep.Error != nil {
					t.Errorf("refused again: %v", rep.Error)
				}
			}
			answered.Add(1)
		})
	}
	limit := int64(RegistrarLimits{}.withDefaults().Requests)
	await(t, "the refusals", func() bool { return busy.Load() == asking-limit })
	if got := int64(len(r.working)); got != limit || answered.Load() != 0 {
		t.Errorf("%d are worked on, %d answered", got, answered.Load())
	}
	close(rights.gate)
	await(t, "the first ones", func() bool { return answered.Load() == limit })
	for served := limit; served < asking; served++ {
		come <- struct{}{}
		await(t, "the next one", func() bool { return answered.Load() > served-limit/2 })
	}
	again.Wait()
	if n := r.shard(root).table.count(root); n != asking || answered.Load() != asking {
		t.Errorf("%d members, %d answered", n, answered.Load())
	}
}

// listed is a Roster with more nodes.
type listed struct {
	Roster
	more map[meta.NodeID]meta.Node
}

func (l listed) Node(id meta.NodeID) (meta.Node, bool) {
	if n, ok := l.more[id]; ok {
		return n, true
	}
	return l.Roster.Node(id)
}

// TestTwoGuestsStand: of the members of a region without servers two cross, for as long
// as they are there and lack something.
func TestTwoGuestsStand(t *testing.T) {
	root := someRoot()
	tb := newTable(tableLimits{roots: 9, members: 99, membersPerRoot: 9}, rand.New(rand.NewPCG(1, 2)))
	now := time.Now()
	join := func(id meta.NodeID, complete bool, at time.Time) {
		tb.join(root, id, "", progress{complete: complete}, at.Add(Lease))
	}
	stands := func(at time.Time, ids ...meta.NodeID) (out string) {
		for _, id := range ids {
			if tb.stand(root, id, at) {
				out += string(id)
			}
		}
		return out
	}
	for _, id := range []meta.NodeID{"c", "a", "b", "d"} {
		join(id, false, now)
	}
	if got := stands(now, "c", "a", "b", "d", "a", "c"); got != "caac" {
		t.Errorf("%s cross, want the first two to come", got)
	}
	tb.leave(root, "c")
	if got := stands(now, "a", "b", "d"); got != "ab" {
		t.Errorf("after one has left %s cross", got)
	}
	later := now.Add(Lease + time.Second)
	join("d", false, later)
	join("b", false, later)
	if got := stands(later, "d", "b"); got != "db" {
		t.Errorf("after one is silent %s cross", got)
	}
	join("d", true, later)
	if got := stands(later, "b"); got != "b" {
		t.Errorf("who crosses goes on: %s", got)
	}
	join("e", false, later)
	if got := stands(later, "e"); got != "" {
		t.Errorf("with a whole copy in the region %s begins to cross", got)
	}
	for i := range 9 {
		join(meta.NodeID(fmt.Sprint("x", i)), false, later)
	}
	if got := stands(later, "x8"); got != "x8" {
		t.Error("one that a full table has no room for starves")
	}
}

// TestAnAgentStandsInForItsServers: while a server of its region answers it hears of no
// other; two seconds after the last has died it is told of a server beyond, with its grant.
func TestAnAgentStandsInForItsServers(t *testing.T) {
	ctx := within(t)
	s := &site{t: t}
	home, away := s.add("eu", "z1", meta.RoleServer), s.add("us", "z1", meta.RoleServer)
	agent := s.add("eu", "z1", meta.RoleAgent)
	s.enrol()
	shelf, rights := &shelf{}, &rights{}
	root := shelf.put([]byte("a chunk map"), nil)
	rights.know(root)
	_, stop := registrarOn(t, home, shelf, rights, RegistrarLimits{})
	registrarOn(t, away, shelf, rights, RegistrarLimits{})
	f := finderOn(t, agent, nil)
	in, err := f.Join(ctx, Want{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := has(in.Peers, away.id()); ok || len(in.Peers) != 1 {
		t.Fatalf("while its server lives: %+v", in.Peers)
	}
	began := time.Now()
	stop() // from here on it is silent, which the agent may see before Close returns
	home.Close()
	await(t, "a server of another region", func() bool {
		in, err := f.Join(ctx, Want{Root: root, Have: 1})
		if err != nil {
			t.Fatal(err)
		}
		p, ok := has(in.Peers, away.id())
		if ok && (!p.Server || p.Region != "us" || len(in.Grant) == 0) {
			t.Errorf("it is introduced as %+v", p)
		}
		return ok
	})
	if took := time.Since(began); took < standAfter {
		t.Errorf("it stood in after %v", took)
	}
	if in, err = f.Join(ctx, Want{Root: root, Complete: true}); err == nil {
		if _, ok := has(in.Peers, away.id()); ok {
			t.Error("a complete member is sent beyond")
		}
	}
}

// TestGuestsAreKeptTogether: agents of a region without servers find one another at the
// nearest server beyond, which two of them fetch from; they find nobody of its region,
// also those that never had a grant, and are at home again when their server is.
func TestGuestsAreKeptTogether(t *testing.T) {
	ctx := within(t)
	s := &site{t: t}
	home, near, far := s.add("eu", "z1", meta.RoleServer), s.add("us", "z1", meta.RoleServer), s.add("ap", "z1", meta.RoleServer)
	var agents []node
	for range 4 {
		agents = append(agents, s.add("eu", "z1", meta.RoleAgent))
	}
	foreign := s.add("us", "z1", meta.RoleAgent)
	s.enrol()
	shelf, rights := &shelf{}, &rights{}
	root := shelf.put([]byte("a chunk map"), nil)
	rights.know(root)
	registrarOn(t, near, shelf, rights, RegistrarLimits{})
	registrarOn(t, far, shelf, rights, RegistrarLimits{})
	if _, err := finderOn(t, foreign, nil).Join(ctx, Want{Root: root, Have: 1}); err != nil {
		t.Fatal(err)
	}
	var finders []*Finder
	for _, a := range agents {
		f := finderOn(t, a, nil)
		f.cfg.Distance = func(r meta.RegionName) time.Duration {
			return map[meta.RegionName]time.Duration{"us": 80 * time.Millisecond, "ap": 300 * time.Millisecond}[r]
		}
		finders = append(finders, f)
	}
	crossing := map[int]bool{}
	for i, f := range finders {
		var in Introduction
		await(t, "an introduction beyond", func() (ok bool) {
			var err error
			in, err = f.Join(ctx, Want{Root: root, Have: 1})
			return err == nil && len(in.Grant) > 0
		})
		if _, ok := has(in.Peers, near.id()); ok {
			crossing[i] = true
		}
		if _, ok := has(in.Peers, far.id()); ok {
			t.Errorf("agent %d is sent to the farther region", i)
		}
		if _, ok := has(in.Peers, foreign.id()); ok {
			t.Errorf("agent %d is introduced to an agent of another region", i)
		}
		for j := range i {
			if _, ok := has(in.Peers, agents[j].id()); !ok {
				t.Errorf("agent %d does not hear of agent %d", i, j)
			}
		}
	}
	if len(crossing) != standMost || !crossing[0] || !crossing[1] {
		t.Errorf("%v cross, want the first two", crossing)
	}
	registrarOn(t, home, shelf, rights, RegistrarLimits{})
	await(t, "the own server", func() bool {
		in, err := finders[3].Join(ctx, Want{Root: root, Have: 1})
		if err != nil {
			return false
		}
		_, ok := has(in.Peers, home.id())
		return ok
	})
}

// TestAServerWithoutBlobsIsAsGoodAsSilent: its agents turn to another region.
func TestAServerWithoutBlobsIsAsGoodAsSilent(t *testing.T) {
	ctx := within(t)
	s := &site{t: t}
	home, away := s.add("eu", "z1", meta.RoleServer), s.add("us", "z1", meta.RoleServer)
	agent := s.add("eu", "z1", meta.RoleAgent)
	s.enrol()
	shelf, rights := &shelf{}, &rights{}
	root := shelf.put([]byte("a chunk map"), nil)
	rights.know(root)
	var lost atomic.Bool
	lost.Store(true)
	registrarOn(t, home, shelf, rights, RegistrarLimits{}, func(c *RegistrarConfig) { c.Lost = lost.Load })
	registrarOn(t, away, shelf, rights, RegistrarLimits{})
	f := finderOn(t, agent, nil)
	joined := func(id meta.NodeID) func() bool {
		return func() bool {
			in, err := f.Join(ctx, Want{Root: root, Have: 1})
			if err != nil {
				return false
			}
			_, ok := has(in.Peers, id)
			return ok
		}
	}
	await(t, "a server of another region", joined(away.id()))
	if f.Reachable() {
		t.Error("a server without blobs counts as one")
	}
	lost.Store(false)
	await(t, "the own server", joined(home.id()))
}
