// Package health decides how regions fare, and lets a server know how it fares itself.
//
// Core is the leader's judgement: a pure machine that is told once a second whom the
// servers hear and what the records say, and answers with the commands that the
// records lack. Leader is the loop around it. Self is what every server does: it
// probes its blob store, says so in the metadata, and looks whether its copies are
// there when their records have become doubtful. Start reading at Core.Decide.
//
// The records are metadata (raftmeta/state, 70 to 72), so a new leader goes on from
// them; a Core forgets only for how long it has seen what it sees, and waits that
// long again. Nothing here moves a read or a write: clients and nodes turn away from
// what does not answer by themselves, in less time than a judgement takes.
//
// Run of Leader and of Self are the only goroutines; a probe of a hung disk may
// outlive its patience by one goroutine, which is the only one of its kind.
package health

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// Timing says how long something must be so to count.
type Timing struct {
	// Silent is for how long nobody must have heard a server for it to be silent.
	Silent time.Duration
	// Heard is for how long it must be heard again not to be.
	Heard time.Duration
	// Healthy is for how long all must be well for an incident to close: twice as long
	// for each incident of the region that closed within Memory, up to Longest.
	Healthy, Longest, Memory time.Duration
}

// Timings by the profile of Raft.
var Timings = map[string]Timing{
	"site": {Silent: 4 * time.Second, Heard: 2 * time.Second, Healthy: 3 * time.Second, Longest: 2 * time.Minute, Memory: 10 * time.Minute},
	"wan":  {Silent: 10 * time.Second, Heard: 5 * time.Second, Healthy: 10 * time.Second, Longest: 5 * time.Minute, Memory: 30 * time.Minute},
}

// Seen is what a Core is told.
type Seen struct {
	// Servers are those of the roster, of all regions.
	Servers []meta.Node
	// Heard is how long ago somebody last heard a server; one that nobody ever heard
	// has no entry.
	Heard map[meta.NodeID]time.Duration
	// Distance is the round trip between two regions, 0 when unknown.
	Distance func(a, b meta.RegionName) time.Duration
	// Records are the health of all regions as recorded.
	Records []meta.RegionHealth
	// Lately counts the incidents of a region that closed within Timing.Memory.
	Lately map[meta.RegionName]int
}

// Core judges. It is not safe for concurrent use.
type Core struct {
	timing  Timing
	servers map[meta.NodeID]*watched
	well    map[meta.RegionName]time.Time // since when all is well in a region that has an incident
}

// watched is a server as this Core has seen it.
type watched struct {
	last  time.Time // heard by anybody; at first when this Core began to look
	again time.Time // since when it is heard without a pause of Silent; zero while it is not
}

// NewCore returns a Core that has seen nothing yet.
func NewCore(t Timing) *Core {
	return &Core{timing: t, servers: map[meta.NodeID]*watched{}, well: map[meta.RegionName]time.Time{}}
}

// judgement is how one region is.
type judgement struct {
	state  meta.HealthState
	kind   meta.IncidentKind
	why    string
	silent []meta.NodeID
	takes  bool // some server takes writes
}

// Decide returns what the records lack, by region in the order of Records.
func (c *Core) Decide(now time.Time, seen Seen) []state.SetRegionHealth {
	c.watch(now, seen)
	regions := map[meta.RegionName][]meta.Node{}
	for _, n := range seen.Servers {
		regions[n.Region] = append(regions[n.Region], n)
	}
	judged := map[meta.RegionName]judgement{}
	for i := range seen.Records {
		r := &seen.Records[i]
		judged[r.Region] = c.judge(now, r, regions[r.Region])
	}
	var out []state.SetRegionHealth
	for i := range seen.Records {
		r := &seen.Records[i]
		j := judged[r.Region]
		if len(regions[r.Region]) == 0 && r.Incident == 0 {
			continue // A region that has no servers yet, or none any more.
		}
		if j.state == meta.HealthHealthy && !c.settled(now, r, seen.Lately[r.Region]) {
			continue
		}
		d := state.SetRegionHealth{Region: r.Region, Was: r.Revision, State: j.state, Kind: j.kind, Why: j.why, Silent: j.silent}
		if j.state == meta.HealthHealthy {
			d.Silent = nil
		} else if !j.takes {
			d.Backups = backups(r, judged, regions, seen.Distance)
		}
		if differs(r, d) {
			out = append(out, d)
		}
	}
	return out
}

// watch takes over who is heard.
func (c *Core) watch(now time.Time, seen Seen) {
	roster := map[meta.NodeID]bool{}
	for _, n := range seen.Servers {
		roster[n.ID] = true
		w := c.servers[n.ID]
		if w == nil {
			w = &watched{last: now} // its time begins when it is first looked for
			c.servers[n.ID] = w
		}
		if ago, ok := seen.Heard[n.ID]; ok && ago >= 0 {
			at := now.Add(-ago)
			if at.After(w.last) || at.Equal(w.last) {
				if w.again.IsZero() || at.Sub(w.last) > c.timing.Silent {
					w.again = at
				}
				w.last = at
			}
		}
		if now.Sub(w.last) > c.timing.Silent {
			w.again = time.Time{}
		}
	}
	for id := range c.servers {
		if !roster[id] {
			delete(c.servers, id)
		}
	}
}

// silent says whether a server counts as silent, which of one recorded so ends only
// when it has been heard for a while.
func (c *Core) silent(now time.Time, recorded meta.ServerHealth) bool {
	w := c.servers[recorded.Server]
	if recorded.Silent != 0 {
		return w.again.IsZero() || now.Sub(w.again) < c.timing.Heard
	}
	return now.Sub(w.last) > c.timing.Silent
}

func (c *Core) judge(now time.Time, r *meta.RegionHealth, servers []meta.Node) judgement {
	j := judgement{state: meta.HealthHealthy, takes: len(servers) == 0}
	var failing, low, unchecked []meta.ServerHealth
	for _, n := range servers {
		s := r.Server(n.ID)
		if c.silent(now, s) {
			j.silent = append(j.silent, n.ID)
			continue
		}
		switch {
		case s.Blobs == meta.BlobsFailing:
			failing = append(failing, s)
		case s.Blobs == meta.BlobsLow:
			low = append(low, s)
		default:
			j.takes = true
			if s.Unchecked != 0 {
				unchecked = append(unchecked, s)
			}
		}
	}
	slices.Sort(j.silent)
	var why []string
	of := func(count int, words string) string {
		return fmt.Sprintf("%d of %d servers %s", count, len(servers), words)
	}
	if n := len(j.silent); n > 0 {
		why = append(why, of(n, "not heard"))
		j.kind = meta.IncidentServers
	}
	if n := len(unchecked); n > 0 {
		why = append(why, of(n, "looking whether their copies are still there"))
		j.kind = j.kind.Worse(meta.IncidentServers)
	}
	if n := len(low); n > 0 {
		why = append(why, of(n, "without room for blobs"), low[0].Why)
		j.kind = j.kind.Worse(meta.IncidentBlobsLow)
	}
	if n := len(failing); n > 0 {
		why = append(why, "blobs: "+of(n, "with a failing blob store"), failing[0].Why)
		j.kind = j.kind.Worse(meta.IncidentBlobsLost)
	}
	switch {
	case len(servers) > 0 && len(j.silent) == len(servers):
		j.state, j.kind = meta.HealthDown, meta.IncidentDown
	case j.kind != "":
		j.state = meta.HealthDegraded
	}
	const longest = 400 // well within what a command may say
	j.why = strings.Join(slices.DeleteFunc(why, func(s string) bool { return s == "" }), ", ")
	if len(j.why) > longest {
		j.why = strings.ToValidUTF8(j.why[:longest], "")
	}
	if j.state != meta.HealthHealthy {
		delete(c.well, r.Region)
	}
	return j
}

// settled says whether a region that looks well has done so for long enough. One that
// comes and goes has to for longer each time.
func (c *Core) settled(now time.Time, r *meta.RegionHealth, lately int) bool {
	if r.State == meta.HealthHealthy && r.Incident == 0 {
		delete(c.well, r.Region)
		return true
	}
	since, ok := c.well[r.Region]
	if !ok {
		since = now
		c.well[r.Region] = now
	}
	wait := c.timing.Healthy
	for range min(lately, 16) {
		wait = min(2*wait, c.timing.Longest)
	}
	return now.Sub(since) >= wait
}

// backups are the regions that take copies and writes for r, nearest first. While it
// is the same ones they keep their order: distances waver.
func backups(r *meta.RegionHealth, judged map[meta.RegionName]judgement, regions map[meta.RegionName][]meta.Node, distance func(a, b meta.RegionName) time.Duration) []meta.RegionName {
	const most = 16
	var out []meta.RegionName
	for name, j := range judged {
		if name != r.Region && j.takes && len(regions[name]) > 0 {
			out = append(out, name)
		}
	}
	away := func(name meta.RegionName) time.Duration {
		if distance != nil {
			if d := distance(r.Region, name); d > 0 {
				return d
			}
		}
		return time.Hour
	}
	slices.SortFunc(out, func(a, b meta.RegionName) int {
		return cmp.Or(cmp.Compare(away(a), away(b)), cmp.Compare(a, b))
	})
	out = out[:min(len(out), most)]
	if same := slices.Clone(r.Backups); len(same) == len(out) && !slices.ContainsFunc(same, func(n meta.RegionName) bool { return !slices.Contains(out, n) }) {
		return same
	}
	return out
}

// differs says whether d changes what is recorded.
func differs(r *meta.RegionHealth, d state.SetRegionHealth) bool {
	var silent []meta.NodeID
	for _, s := range r.Servers {
		if s.Silent != 0 {
			silent = append(silent, s.Server)
		}
	}
	return r.State != d.State || r.Kind != d.Kind || r.Why != d.Why || !slices.Equal(r.Backups, d.Backups) || !slices.Equal(silent, d.Silent)
}
