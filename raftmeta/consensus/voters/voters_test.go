package voters

import (
	"fmt"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func ready(id, region string) Server {
	return Server{ID: meta.NodeID(id), Region: meta.RegionName(region), Ready: true}
}

func voter(id, region string) Server {
	s := ready(id, region)
	s.Voter = true
	return s
}

func leader(id, region string) Server {
	s := voter(id, region)
	s.Leader = true
	return s
}

func lost(s Server) Server {
	s.Ready, s.Lost = false, true
	return s
}

func leaving(s Server) Server {
	s.Leaving = true
	return s
}

func weak(s Server) Server {
	s.Ready = false
	return s
}

func TestPlan(t *testing.T) {
	for name, tc := range map[string]struct {
		servers []Server
		want    Change
	}{
		"the first":               {[]Server{leader("a", "r1")}, Change{}},
		"two are no better":       {[]Server{leader("a", "r1"), ready("b", "r1")}, Change{}},
		"three of one region":     {[]Server{leader("a", "r1"), ready("b", "r1"), ready("c", "r1")}, Change{Promote: ids("b", "c")}},
		"three regions":           {[]Server{leader("a", "r1"), ready("b", "r2"), ready("c", "r3")}, Change{Promote: ids("b", "c")}},
		"only when both can":      {[]Server{leader("a", "r1"), ready("b", "r2"), weak(ready("c", "r3"))}, Change{}},
		"two regions hold 2+1":    {[]Server{leader("a", "r1"), ready("b", "r1"), ready("c", "r1"), ready("d", "r2"), ready("e", "r2")}, Change{Promote: ids("b", "d")}},
		"a region joins":          {[]Server{leader("a", "r1"), voter("b", "r1"), voter("c", "r1"), ready("d", "r2")}, Change{Promote: ids("d"), Demote: ids("c")}},
		"a third region joins":    {[]Server{leader("a", "r1"), voter("b", "r1"), voter("c", "r2"), ready("d", "r3")}, Change{Promote: ids("d"), Demote: ids("b")}},
		"five of three regions":   {[]Server{leader("a", "r1"), ready("b", "r1"), ready("c", "r2"), ready("d", "r2"), ready("e", "r3")}, Change{Promote: ids("b", "c", "d", "e")}},
		"an outage takes no vote": {[]Server{leader("a", "r1"), lost(voter("b", "r2")), lost(voter("c", "r3"))}, Change{}},
		"a short one least":       {[]Server{leader("a", "r1"), weak(voter("b", "r1")), voter("c", "r1"), ready("d", "r1")}, Change{}},
		"a long one is filled":    {[]Server{leader("a", "r1"), lost(voter("b", "r1")), voter("c", "r1"), ready("d", "r1")}, Change{Promote: ids("d"), Demote: ids("b")}},
		"by another region too": {
			[]Server{leader("a", "r1"), lost(voter("b", "r2")), voter("c", "r3"), ready("d", "r1")},
			Change{Promote: ids("d"), Demote: ids("b")},
		},
		"the leader hands over first": {
			[]Server{voter("a", "r1"), voter("b", "r1"), voter("c", "r2"), leader("d", "r1")},
			Change{Demote: ids("b")},
		},
		"a leaving one is replaced": {
			[]Server{leader("a", "r1"), leaving(voter("b", "r1")), voter("c", "r1"), ready("d", "r1")},
			Change{Promote: ids("d"), Demote: ids("b")},
		},
		"or keeps its vote": {[]Server{leader("a", "r1"), leaving(voter("b", "r1")), voter("c", "r1")}, Change{}},
		"rather than a lost one": {
			[]Server{leader("a", "r1"), leaving(voter("b", "r1")), lost(voter("c", "r1")), ready("d", "r1")},
			Change{Promote: ids("d"), Demote: ids("c")},
		},
		"it gets none":       {[]Server{leader("a", "r1"), leaving(ready("b", "r1")), ready("c", "r1")}, Change{}},
		"it does not lead":   {[]Server{leaving(leader("a", "r1")), voter("b", "r1"), voter("c", "r1")}, Change{Transfer: "b"}},
		"its vote goes last": {[]Server{leaving(leader("a", "r1")), voter("b", "r1"), voter("c", "r1"), ready("d", "r1")}, Change{Promote: ids("d")}},
		"nor to another that leaves": {
			[]Server{leaving(leader("a", "r1")), leaving(voter("b", "r1")), voter("c", "r1")}, Change{Transfer: "c"},
		},
		"a region leaves": {
			[]Server{leader("a", "r1"), ready("b", "r1"), voter("c", "r2"), ready("d", "r2"), leaving(voter("e", "r3"))},
			Change{Promote: ids("b", "d")}, // five, with its own until it is removed
		},
		"nobody": {nil, Change{}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Plan(tc.servers); !reflect.DeepEqual(got, tc.want) {
				t.Errorf("%+v, want %+v", got, tc.want)
			}
		})
	}
}

func ids(of ...meta.NodeID) []meta.NodeID { return of }

// apply does a change and says who votes then.
func apply(servers []Server, c Change) []Server {
	out := slices.Clone(servers)
	for i := range out {
		if slices.Contains(c.Promote, out[i].ID) {
			out[i].Voter = true
		}
		if slices.Contains(c.Demote, out[i].ID) {
			out[i].Voter = false
		}
	}
	if c.Transfer != "" {
		for i := range out {
			out[i].Leader = out[i].ID == c.Transfer
		}
	}
	return out
}

func TestPlanProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		regions := rapid.IntRange(1, 6).Draw(t, "regions")
		var servers []Server
		for i := range rapid.IntRange(1, 12).Draw(t, "servers") {
			s := Server{ID: meta.NodeID(fmt.Sprintf("s%02d", i)), Region: meta.RegionName(fmt.Sprint("r", rapid.IntRange(1, regions).Draw(t, "region")))}
			switch rapid.IntRange(0, 4).Draw(t, "state") {
			case 0:
				s.Voter, s.Lost = rapid.Bool().Draw(t, "votes"), true
			case 1:
				s.Voter = rapid.Bool().Draw(t, "votes")
			default:
				s.Ready, s.Voter = true, rapid.Bool().Draw(t, "votes")
			}
			s.Leaving = rapid.IntRange(0, 3).Draw(t, "leaving") == 0
			servers = append(servers, s)
		}
		servers[0].Leader, servers[0].Voter, servers[0].Ready, servers[0].Lost = true, true, true, false
		before, total := 0, map[meta.RegionName]int{}
		for _, s := range servers {
			total[s.Region]++
			if s.Voter {
				before++
			}
		}
		count, perRegion := Count(total)

		for range 20 {
			c := Plan(servers)
			for _, s := range servers {
				if slices.Contains(c.Promote, s.ID) && (!s.Ready || s.Voter || s.Leaving) {
					t.Fatalf("promotes %+v", s)
				}
				if slices.Contains(c.Demote, s.ID) && (!s.Voter || s.Leader) {
					t.Fatalf("demotes %+v", s)
				}
			}
			if reflect.DeepEqual(c, Change{}) {
				break
			}
			servers = apply(servers, c)
		}
		if c := Plan(servers); !reflect.DeepEqual(c, Change{}) {
			t.Fatalf("never rests: %+v for %+v", c, servers)
		}
		// A leader that leaves goes on while no other voter is well enough to lead.
		stuck := !slices.ContainsFunc(servers, func(s Server) bool { return s.Leader && !s.Leaving }) &&
			!slices.ContainsFunc(servers, func(s Server) bool { return s.Voter && s.Ready && !s.Leaving })
		votes, held, able := 0, map[meta.RegionName]int{}, map[meta.RegionName]int{}
		for _, s := range servers {
			if s.Voter {
				votes++
				held[s.Region]++
			}
			if s.Voter || s.Ready && !s.Leaving {
				able[s.Region]++
			}
		}
		if votes < min(before, count) {
			t.Fatalf("%d voters of %d before, the rule wants %d: %+v", votes, before, count, servers)
		}
		if votes > max(before, count) {
			t.Fatalf("%d voters, the rule wants %d: %+v", votes, count, servers)
		}
		placeable := 0
		for region := range total {
			placeable += min(perRegion, able[region])
		}
		for region, k := range held {
			if k > perRegion && placeable >= count && !stuck {
				t.Fatalf("%d voters in %s, at most %d: %+v", k, region, perRegion, servers)
			}
		}
		if placeable >= count && votes < count {
			t.Fatalf("%d voters, the rule wants %d and they are there: %+v", votes, count, servers)
		}
		for _, s := range servers {
			if s.Leader && s.Leaving && slices.ContainsFunc(servers, func(o Server) bool { return o.Voter && o.Ready && !o.Leaving && !o.Leader }) {
				t.Fatalf("%s leads and leaves: %+v", s.ID, servers)
			}
			staying := 0
			for _, o := range servers {
				if o.Voter && !o.Leaving && o.Region == s.Region {
					staying++
				}
			}
			if s.Voter && s.Leaving && !s.Lost && !stuck && staying < perRegion && slices.ContainsFunc(servers, func(o Server) bool {
				return !o.Voter && o.Ready && !o.Leaving && o.Region == s.Region
			}) {
				t.Fatalf("%s leaves with its vote, which another of its region could have: %+v", s.ID, servers)
			}
		}
	})
}
