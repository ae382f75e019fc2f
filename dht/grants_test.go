package dht

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

func TestGrantsAreKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "grants")
	now := epoch
	open := func() (*grantFile, map[digest.CID]savedGrant) {
		t.Helper()
		f, kept, err := openGrants(path, now)
		if err != nil {
			t.Fatal(err)
		}
		return f, kept
	}
	save := func(f *grantFile, g savedGrant) {
		t.Helper()
		if err := f.save(g, func() map[digest.CID]savedGrant { return map[digest.CID]savedGrant{} }); err != nil {
			t.Fatal(err)
		}
	}
	grant := func(n byte, expires time.Time) savedGrant {
		return savedGrant{Root: digest.CID{n}, Grant: []byte{n, byte(expires.Unix())}, Expires: meta.TimeOf(expires), Members: 7}
	}
	f, kept := open()
	if len(kept) != 0 {
		t.Errorf("a new file has %d grants", len(kept))
	}
	save(f, grant(1, now.Add(time.Minute)))
	save(f, grant(2, now.Add(time.Minute)))
	if f.due(digest.CID{1}, now.Add(time.Minute+saveAfter-1)) || !f.due(digest.CID{1}, now.Add(time.Minute+saveAfter)) || !f.due(digest.CID{3}, now) {
		t.Error("when a grant is due to be saved")
	}
	save(f, grant(1, now.Add(2*time.Minute)))
	// As a kill leaves it: not closed, with half a record.
	tail, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tail.Write([]byte{200, 1, 0xa4, 1}); err != nil {
		t.Fatal(err)
	}
	tail.Close()
	f.close()
	f, kept = open()
	if len(kept) != 2 || !kept[digest.CID{1}].Expires.Std().Equal(now.Add(2*time.Minute)) || kept[digest.CID{1}].Members != 7 {
		t.Errorf("kept: %+v", kept)
	}
	save(f, grant(4, now.Add(time.Minute))) // behind the torn record nothing would be read
	f.close()
	f.close()
	save(f, grant(5, now)) // a closed one keeps nothing, and says nothing
	if _, kept = open(); len(kept) != 3 {
		t.Errorf("after a torn record: %d grants", len(kept))
	}
	now = now.Add(time.Minute + keepGrants)
	if _, kept = open(); len(kept) != 1 {
		t.Errorf("%d grants are kept for ever", len(kept))
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	var none *grantFile
	if none.close(); none.due(digest.CID{1}, now) {
		t.Error("no file, and grants are saved")
	}
}

// TestGrantFileIsBounded: however long an agent runs, the file holds at most twice
// what is remembered.
func TestGrantFileIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "grants")
	f, _, err := openGrants(path, epoch)
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	one := savedGrant{Root: digest.CID{1}, Grant: make([]byte, 250), Expires: meta.TimeOf(epoch)}
	rewritten := 0
	for i := range 5 * knownRoots {
		one.Expires = meta.TimeOf(epoch.Add(time.Duration(i) * time.Minute))
		if err := f.save(one, func() map[digest.CID]savedGrant { rewritten++; return map[digest.CID]savedGrant{} }); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Size() > 2*knownRoots*350 || rewritten != 2 {
		t.Errorf("%d bytes, rewritten %d times, %v", info.Size(), rewritten, err)
	}
	if _, kept, err := openGrants(path, epoch); err != nil || len(kept) != 1 || kept[one.Root].Expires != one.Expires {
		t.Errorf("%d grants, %v", len(kept), err)
	}
	if _, _, err := openGrants(filepath.Join(path, "below a file"), epoch); err == nil {
		t.Error("a path that cannot be is opened")
	}
}

func FuzzGrantFile(f *testing.F) {
	f.Add(framed(savedGrant{Root: digest.CID{1}, Grant: []byte{1}, Expires: meta.TimeOf(epoch)}))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "grants")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		g, kept, err := openGrants(path, epoch)
		if err != nil {
			t.Fatal(err)
		}
		g.close()
		if again, twice, err := openGrants(path, epoch); err != nil || len(twice) != len(kept) {
			t.Fatalf("%d grants, then %d, %v", len(kept), len(twice), err)
		} else {
			again.close()
		}
	})
}

// TestARestartedAgentFindsItsPeersWithoutServers: the registrar is gone, in both
// ways that it can be; an agent that was introduced once, and starts anew, finds
// the others by the DHT with its grant of before. The time is printed, not judged.
func TestARestartedAgentFindsItsPeersWithoutServers(t *testing.T) {
	for name, lose := range map[string]func(node){
		"killed": func(n node) { n.Host.Close() },
		"silent": func(n node) {
			n.SetStreamHandler(RegistrarProtocol(testCluster), func(s network.Stream) { io.Copy(io.Discard, s); s.Reset() })
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := within(t)
			s := &site{t: t}
			server := s.add("eu", "", meta.RoleServer)
			var agents []node
			for range 6 {
				agents = append(agents, s.add("eu", "", meta.RoleAgent))
			}
			s.enrol()
			shelf, rights := &shelf{}, &rights{}
			root := shelf.put([]byte("a chunk map"), nil)
			rights.know(root)
			_, stopRegistrar := registrarOn(t, server, shelf, rights, RegistrarLimits{})
			var dhts []*DHT
			for _, n := range agents {
				dhts = append(dhts, dhtOn(t, n, "eu"))
			}
			await(t, "acquaintance", func() bool {
				for _, d := range dhts {
					if d.Size() < 3 {
						return false
					}
				}
				return true
			})
			if _, err := finderOn(t, agents[0], dhts[0]).Join(ctx, Want{Root: root, Complete: true}); err != nil {
				t.Fatal(err)
			}
			await(t, "the announcement", func() bool {
				found, err := dhts[3].FindProviders(ctx, root, MaxPeers)
				return err == nil && len(found) == 1
			})
			self := agents[1]
			path := filepath.Join(t.TempDir(), "grants")
			anew := func() (*Finder, func()) {
				f, err := NewFinder(FinderConfig{
					Host: self.Host, Cluster: testCluster, Self: self.Node, Roster: self.Host, DHT: dhts[1], Grants: path,
				})
				if err != nil {
					t.Fatal(err)
				}
				return f, start(t, f.Run)
			}
			before, stop := anew()
			if _, err := before.Join(ctx, Want{Root: root}); err != nil {
				t.Fatal(err)
			}
			stop()
			stopRegistrar()
			lose(server)

			after, _ := anew()
			begin := time.Now()
			in, err := after.Join(ctx, Want{Root: root, Have: 1})
			t.Logf("the swarm was found in %v without a server (%s)", time.Since(begin), name)
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := has(in.Peers, agents[0].id()); !ok || string(in.Grant) != "grant for "+string(self.id()) || in.GrantExpires.IsZero() {
				t.Errorf("introduction: %+v", in)
			}
			if after.Reachable() {
				t.Error("the server counts as reachable")
			}
			begin = time.Now()
			if _, err := after.Join(ctx, Want{Root: root, Have: 1}); err != nil {
				t.Fatal(err)
			}
			t.Logf("and again in %v", time.Since(begin))
			if got := testutil.ToFloat64(after.metrics.joins.WithLabelValues("dht")); got != 2 {
				t.Errorf("%v introductions by the DHT", got)
			}
			// Who has no grant is not sent to peers who would refuse it.
			if _, err := after.Join(ctx, Want{Root: someRoot()}); !errors.Is(err, meta.ErrUnavailable) {
				t.Errorf("a root without a grant: %v", err)
			}
		})
	}
}

// TestAServerThatAnswersLateIsPreferred: the DHT is only asked beside it.
func TestAServerThatAnswersLateIsPreferred(t *testing.T) {
	ctx := within(t)
	s := &site{t: t}
	server, agent := s.add("eu", "", meta.RoleServer), s.add("eu", "", meta.RoleAgent)
	s.enrol()
	root, rights := someRoot(), &rights{}
	rights.know(root)
	registrarOn(t, server, &shelf{}, rights, RegistrarLimits{})
	f := finderOn(t, agent, dhtOn(t, agent, "eu"))
	if _, err := f.Join(ctx, Want{Root: root, Have: 1}); err != nil {
		t.Fatal(err)
	}
	gate := make(chan struct{})
	rights.mu.Lock()
	rights.gate = gate
	rights.mu.Unlock()
	time.AfterFunc(2*silentFor, func() { close(gate) }) // the DHT knows nobody by then
	in, err := f.Join(ctx, Want{Root: root, Have: 1})
	if err != nil || in.Members != 1 {
		t.Fatalf("%+v, %v", in, err)
	}
	if !f.Reachable() {
		t.Error("the server does not count as reachable")
	}
}

// TestALostServerIsNoticed: peers honour an expired grant only while they reach no
// server; one that asked nothing of it for long has to find out.
func TestALostServerIsNoticed(t *testing.T) {
	ctx := within(t)
	s := &site{t: t}
	server, agent := s.add("eu", "", meta.RoleServer), s.add("eu", "", meta.RoleAgent)
	s.enrol()
	root, rights := someRoot(), &rights{}
	rights.know(root)
	_, stop := registrarOn(t, server, &shelf{}, rights, RegistrarLimits{})
	f := finderOn(t, agent, nil)
	if _, err := f.Join(ctx, Want{Root: root, Have: 1}); err != nil || !f.Reachable() {
		t.Fatalf("reachable %v, %v", f.Reachable(), err)
	}
	aged := func() { // what was heard is old
		f.mu.Lock()
		defer f.mu.Unlock()
		f.answered = f.answered.Add(-2 * freshFor)
	}
	aged()
	await(t, "the server's answer to the probe", func() bool {
		if !f.Reachable() { // it asks again, also when a busy machine was late
			return false
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		return time.Since(f.answered) < freshFor
	})
	begin := time.Now()
	stop()
	server.Host.Close() // the connection's end has the agent look
	await(t, "the loss being noticed", func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.silent.After(f.answered) })
	t.Logf("noticed after %v", time.Since(begin))
	if f.Reachable() {
		t.Error("the lost server counts as reachable")
	}
}

// TestFinderStops: nothing goes on after Run, whatever waits.
func TestFinderStops(t *testing.T) {
	s := &site{t: t}
	agent := s.add("eu", "", meta.RoleAgent)
	s.enrol()
	f, err := NewFinder(FinderConfig{Host: agent.Host, Cluster: testCluster, Self: agent.Node, Roster: agent.Host})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 * maxReports {
		f.Report("peer", digest.CID{1, byte(i)}, i)
		f.Reachable()
	}
	if len(f.reports) != maxReports || len(f.reported) != maxReports {
		t.Errorf("%d reports wait, %d are remembered", len(f.reports), len(f.reported))
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
