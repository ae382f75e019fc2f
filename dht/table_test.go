package dht

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

var epoch = time.Unix(1_700_000_000, 0)

func testTable(limits tableLimits) *table { return newTable(limits, rand.New(rand.NewPCG(1, 2))) }

func nobody(meta.NodeID) bool { return false }

// check refuses a table whose indexes disagree.
func (t *table) check() error {
	members, complete := 0, 0
	for root, g := range t.roots {
		if len(g.all) == 0 || len(g.all) != len(g.byID) {
			return fmt.Errorf("root %s: %d listed, %d by id", root, len(g.all), len(g.byID))
		}
		zoned, whole, have := 0, 0, uint64(0)
		for zone, list := range g.byZone {
			if len(list) == 0 {
				return fmt.Errorf("empty zone %q", zone)
			}
			for i, m := range list {
				if m.zone != zone || m.inZone != i {
					return fmt.Errorf("%s stands at %d of zone %s, says %d of %s", m.id, i, zone, m.inZone, m.zone)
				}
			}
			zoned += len(list)
		}
		for i, m := range g.all {
			if m.inAll != i || g.byID[m.id] != m {
				return fmt.Errorf("%s stands at %d, says %d", m.id, i, m.inAll)
			}
			whole += btoi(m.complete)
			have += m.have
		}
		if whole != g.whole || have != g.have {
			return fmt.Errorf("%d are complete, counted %d; %d chunks, counted %d", whole, g.whole, have, g.have)
		}
		if zoned != len(g.all) {
			return fmt.Errorf("%d in zones, %d in all", zoned, len(g.all))
		}
		members += len(g.all)
		complete += g.whole
	}
	if complete != t.whole {
		return fmt.Errorf("%d complete members, counted %d", complete, t.whole)
	}
	if members != t.members {
		return fmt.Errorf("%d members, counted %d", members, t.members)
	}
	return nil
}

// TestTableAgainstModel compares the table with a plain map under random use.
func TestTableAgainstModel(t *testing.T) {
	type key struct {
		root digest.CID
		id   meta.NodeID
	}
	type lease struct {
		zone     string
		have     uint64
		complete bool
		expires  time.Time
	}
	rapid.Check(t, func(t *rapid.T) {
		limits := tableLimits{roots: 3, members: 12, membersPerRoot: 6}
		table, model, now := testTable(limits), map[key]lease{}, epoch
		count := func(root digest.CID) (n int) {
			for k := range model {
				if k.root == root {
					n++
				}
			}
			return n
		}
		roots := func() int {
			seen := map[digest.CID]bool{}
			for k := range model {
				seen[k.root] = true
			}
			return len(seen)
		}
		draw := func() key {
			return key{digest.CID{byte(rapid.IntRange(1, 4).Draw(t, "root"))}, meta.NodeID(fmt.Sprint(rapid.IntRange(1, 8).Draw(t, "id")))}
		}
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				if err := table.check(); err != nil {
					t.Fatal(err)
				}
				if table.members != len(model) {
					t.Fatalf("%d members, the model has %d", table.members, len(model))
				}
			},
			"join": func(t *rapid.T) {
				k, l := draw(), lease{fmt.Sprint("z", rapid.IntRange(0, 2).Draw(t, "zone")), rapid.Uint64Range(0, 9).Draw(t, "have"), rapid.Bool().Draw(t, "complete"), now.Add(Lease)}
				_, known := model[k]
				full := len(model) >= limits.members || count(k.root) >= limits.membersPerRoot ||
					count(k.root) == 0 && roots() >= limits.roots
				recorded := table.join(k.root, k.id, l.zone, progress{l.have, l.complete}, l.expires)
				if recorded != (known || !full) {
					t.Fatalf("recorded %v, known %v, full %v", recorded, known, full)
				}
				if recorded {
					model[k] = l
				}
			},
			"leave": func(t *rapid.T) {
				k := draw()
				table.leave(k.root, k.id)
				delete(model, k)
			},
			"time": func(t *rapid.T) { now = now.Add(time.Duration(rapid.IntRange(0, 10).Draw(t, "s")) * time.Second) },
			"sweep": func(t *rapid.T) {
				table.sweep(now)
				for k, l := range model {
					if !l.expires.After(now) {
						delete(model, k)
					}
				}
			},
			"pick": func(t *rapid.T) {
				k, n := draw(), rapid.IntRange(0, 8).Draw(t, "n")
				got := table.pick(k.root, "z1", n, now, func(id meta.NodeID) bool { return id == k.id })
				live, near := 0, 0
				for m, l := range model {
					if m.root == k.root && m.id != k.id && l.expires.After(now) {
						live++
						if l.zone == "z1" {
							near++
						}
					}
				}
				seen, same := map[meta.NodeID]bool{}, 0
				for _, p := range got {
					l, ok := model[key{k.root, p.id}]
					if !ok || seen[p.id] || p.id == k.id || !l.expires.After(now) || l.complete != p.complete {
						t.Fatalf("picked %+v, the model has %+v", p, l)
					}
					if seen[p.id] = true; l.zone == "z1" {
						same++
					}
				}
				if len(got) != min(n, live) || same < min((n+1)/2, near) {
					t.Fatalf("picked %d of %d live for %d, %d of %d in the zone", len(got), live, n, same, near)
				}
				// A pick may find and remove members that have expired.
				for m, l := range model {
					if m.root == k.root && !l.expires.After(now) && table.roots[m.root].has(m.id) == false {
						delete(model, m)
					}
				}
			},
		})
	})
}

func (g *group) has(id meta.NodeID) bool { return g != nil && g.byID[id] != nil }

// TestPickIsFair draws each of 100 members about equally often.
func TestPickIsFair(t *testing.T) {
	table := testTable(tableLimits{10, 1000, 1000})
	root := someRoot()
	for i := range 100 {
		table.join(root, meta.NodeID(fmt.Sprint(i)), "z", progress{}, epoch.Add(Lease))
	}
	drawn := map[meta.NodeID]int{}
	for range 1000 {
		for _, p := range table.pick(root, "elsewhere", MaxPeers, epoch, nobody) {
			drawn[p.id]++
		}
	}
	for id, n := range drawn {
		if n < 150 || n > 350 { // 240 expected
			t.Errorf("%s was drawn %d times", id, n)
		}
	}
	if len(drawn) != 100 {
		t.Errorf("%d members were ever drawn", len(drawn))
	}
}

// BenchmarkTable is one renewal with its pick in a swarm of 10,000 in 4 zones.
func BenchmarkTable(b *testing.B) {
	table := testTable(tableLimits{65536, 262144, 16384})
	root := someRoot()
	var ids []meta.NodeID
	for i := range 10000 {
		ids = append(ids, meta.NodeID(fmt.Sprintf("12D3KooW%044d", i)))
		table.join(root, ids[i], fmt.Sprint("z", i%4), progress{}, epoch.Add(Lease))
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		id := ids[i%len(ids)]
		table.join(root, id, fmt.Sprint("z", i%len(ids)%4), progress{}, epoch.Add(Lease))
		if len(table.pick(root, "z1", MaxPeers, epoch, func(o meta.NodeID) bool { return o == id })) != MaxPeers {
			b.Fatal("too few")
		}
	}
}

// BenchmarkSweep is the sweep of a full shard with nothing to remove.
func BenchmarkSweep(b *testing.B) {
	table := testTable(tableLimits{65536, 262144, 16384})
	for i := range 16384 {
		table.join(digest.CID{byte(i % 16)}, meta.NodeID(fmt.Sprint(i)), "z", progress{}, epoch.Add(Lease))
	}
	for b.Loop() {
		table.sweep(epoch)
	}
}
