// Package voters decides which servers vote.
//
// Plan is the rule of design.md: one, three or five voters; one region holds them
// all, two hold two and one, three or more at most two each. It is a pure function
// of what is known about the servers and changes as little as it can: a voter keeps
// its vote unless the rule or its long absence takes it. The package starts no
// goroutines and imports only the nouns.
package voters

import (
	"cmp"
	"slices"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Server is what Plan knows of one server.
type Server struct {
	ID     meta.NodeID
	Region meta.RegionName
	Voter  bool
	// Leader is the server that leads now.
	Leader bool
	// Ready says that it is caught up and has been well for a while: it may become a
	// voter.
	Ready bool
	// Lost says that a voter has been away so long that another may take its place.
	Lost bool
	// Leaving says that it is being drained: it gets no vote, keeps one only while
	// nobody else can have it, and does not lead while another can.
	Leaving bool
}

// Change is what to do, both lists sorted. To promote comes first: a vote is taken
// only when the others are in place.
type Change struct {
	Promote, Demote []meta.NodeID
	// Transfer, when set, is who should lead first, because the leader loses its vote
	// or is leaving.
	Transfer meta.NodeID
}

// Plan returns the change from the votes as they are to those that the rule wants.
//
// servers holds each server of the cluster once, in any order. The number of voters
// follows from all of them, reachable or not, so that an outage never shrinks the
// quorum. Nothing is demoted while the voters that the rule wants are not all in
// place.
func Plan(servers []Server) Change {
	want := choose(servers)
	var c Change
	in := func(id meta.NodeID) bool { return slices.ContainsFunc(want, func(s Server) bool { return s.ID == id }) }
	for _, s := range want {
		if !s.Voter {
			c.Promote = append(c.Promote, s.ID)
		}
	}
	slices.Sort(c.Promote)
	for _, s := range servers {
		if s.Voter && !in(s.ID) {
			if s.Leader {
				c.Transfer = heir(want)
				continue // the next leader takes its vote
			}
			c.Demote = append(c.Demote, s.ID)
		}
	}
	slices.Sort(c.Demote)
	for _, s := range want {
		if s.Leader && s.Leaving {
			c.Transfer = heir(want)
		}
	}
	if len(c.Promote) > 0 || len(c.Demote) > 0 {
		c.Transfer = ""
	}
	return c
}

// heir is a voter to which leadership can go.
func heir(want []Server) meta.NodeID {
	for _, s := range want {
		if s.Voter && !s.Leader && !s.Leaving && s.Ready {
			return s.ID
		}
	}
	return ""
}

// Count returns how many voters the rule wants of servers that are counted by
// region, and how many of them one region may hold.
func Count(byRegion map[meta.RegionName]int) (count, perRegion int) {
	total, placeable := 0, 0
	for _, k := range byRegion {
		total += k
		placeable += min(k, 2)
	}
	switch len(byRegion) {
	case 1:
		return odd(min(total, 5)), 5
	case 2:
		return odd(min(placeable, 3)), 2
	}
	return odd(min(placeable, 5)), 2
}

// odd returns the largest odd number up to k, 0 for 0.
func odd(k int) int {
	if k == 0 {
		return 0
	}
	return k - 1 + k%2
}

// choose returns the voters that the rule wants and can have now.
func choose(servers []Server) []Server {
	byRegion := map[meta.RegionName]int{}
	regions := map[meta.RegionName][]Server{}
	voting := map[meta.RegionName]int{}
	present := 0
	for _, s := range servers {
		byRegion[s.Region]++
		if s.Voter {
			present++
			if !s.Lost && !s.Leaving {
				voting[s.Region]++
			}
		}
		if s.Voter || s.Ready && !s.Leaving {
			regions[s.Region] = append(regions[s.Region], s)
		}
	}
	count, perRegion := Count(byRegion)
	order := make([]meta.RegionName, 0, len(regions))
	for name, list := range regions {
		order = append(order, name)
		slices.SortFunc(list, func(a, b Server) int { return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.ID, b.ID)) })
	}
	// The regions that hold votes come first, so that the plan of a plan is empty.
	slices.SortFunc(order, func(a, b meta.RegionName) int {
		return cmp.Or(cmp.Compare(voting[b], voting[a]), cmp.Compare(byRegion[b], byRegion[a]), cmp.Compare(a, b))
	})
	// One of each region in turn spreads them as widely as can be; voters that are
	// leaving or lost keep their vote only when nobody else can have it.
	pick := func(least int, into []Server) []Server {
		for seat := range perRegion {
			for _, name := range order {
				list := slices.DeleteFunc(slices.Clone(regions[name]), func(s Server) bool { return rank(s) > least })
				held := 0
				for _, s := range into {
					if s.Region == name {
						held++
					}
				}
				if len(into) < count && held <= seat && held < len(list) {
					for _, s := range list {
						if !slices.ContainsFunc(into, func(have Server) bool { return have.ID == s.ID }) {
							into = append(into, s)
							break
						}
					}
				}
			}
		}
		return into
	}
	want := pick(rankLost, pick(rankLeaving, pick(rankReady, nil)))
	// While too few can be promoted, stay at an odd number, and never below what is.
	if keep := max(odd(len(want)), min(present, count)); len(want) > keep {
		slices.SortStableFunc(want, func(a, b Server) int { return cmp.Compare(rank(a), rank(b)) })
		want = want[:keep]
	}
	if len(want) < present && len(want) < count {
		// Fewer than the rule wants could be placed: nobody loses a vote for that.
		for _, s := range servers {
			if s.Voter && len(want) < count && !slices.ContainsFunc(want, func(have Server) bool { return have.ID == s.ID }) {
				want = append(want, s)
			}
		}
	}
	return want
}

// Ranks of the candidates of a region, best first.
const (
	rankLeader = iota
	rankVoter
	rankReady
	rankLeaving
	rankLost
)

// rank orders the candidates of a region.
func rank(s Server) int {
	switch {
	case s.Lost:
		return rankLost
	case s.Leaving:
		return rankLeaving
	case s.Leader:
		return rankLeader
	case s.Voter:
		return rankVoter
	}
	return rankReady
}
