package wave

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/deploy/lab/netns"
)

func TestBound(t *testing.T) {
	const mib, mbit = 1 << 20, 1_000_000
	for _, c := range []struct {
		name string
		b    Bound
		want float64
	}{
		{"one receiver", Bound{Bytes: 100 * mib, Receivers: 1, SeedUp: 100 * mbit, Down: 100 * mbit, PeerUp: 100 * mbit}, 8.388608},
		{"equal links: the seed's uplink", Bound{Bytes: 256 * mib, Receivers: 8, SeedUp: 100 * mbit, Down: 100 * mbit, PeerUp: 800 * mbit}, 21.474836},
		{"slow downlinks", Bound{Bytes: mib, Receivers: 4, SeedUp: 100 * mbit, Down: mbit, PeerUp: 400 * mbit}, 8.388608},
		{"peers with poor uplinks", Bound{Bytes: mib, Receivers: 9, SeedUp: 10 * mbit, Down: 100 * mbit, PeerUp: 8 * mbit}, 4.194304},
		{"nothing is limited", Bound{Bytes: mib, Receivers: 9}, 0},
	} {
		if got := c.b.Seconds(); math.Abs(got-c.want) > 1e-5 {
			t.Errorf("%s: %v s, want %v", c.name, got, c.want)
		}
	}
}

func TestParseRateAndSize(t *testing.T) {
	for text, want := range map[string]int64{"100mbit": 1e8, "1gbit": 1e9, "2.5Gbit": 25e8, "64kbit": 64e3, "9600bit": 9600, "0": 0, "unlimited": 0} {
		if got, err := ParseRate(text); err != nil || got != want {
			t.Errorf("rate %q: %d, %v", text, got, err)
		}
	}
	for text, want := range map[string]int64{"64MiB": 64 << 20, "1GiB": 1 << 30, "1MB": 1e6, "17": 17, "17B": 17, "0.5KiB": 512} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("size %q: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "mbit", "-1mbit", "1e99gbit", "fast", "NaN"} {
		if got, err := ParseRate(text); err == nil {
			t.Errorf("rate %q: %d without an error", text, got)
		}
	}
}

func TestQuantile(t *testing.T) {
	values := []float64{1, 2, 3, 4}
	for q, want := range map[float64]float64{0: 1, 0.25: 1, 0.5: 2, 0.75: 3, 0.9: 4, 1: 4} {
		if got := Quantile(values, q); got != want {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
	if Quantile(nil, 0.5) != 0 {
		t.Error("nothing has a median")
	}
}

func TestFindToken(t *testing.T) {
	for _, output := range []string{"shoal1.abc.def\n", `{"token":"shoal1.abc.def","uses":1}`, "token: shoal1.abc.def (10m)\n"} {
		if got, err := FindToken(output); err != nil || got != "shoal1.abc.def" {
			t.Errorf("%q: %q, %v", output, got, err)
		}
	}
	if _, err := FindToken("no"); err == nil {
		t.Error("found a token in nothing")
	}
}

func goodReport() Report {
	r := Report{Regions: 2, Hosts: 2, Bytes: 1000, BoundSec: 2, Bound: Bound{Bytes: 1000, Receivers: 3}}
	r.Results = []Result{{Name: "agent r1-1", FinishSec: 3}, {Name: "agent r2-1", FinishSec: 4}}
	r.Servers = []Server{
		{Name: "server r1", Region: "r1", Traffic: netns.Traffic{Sent: 2400}},
		{Name: "server r2", Region: "r2", Traffic: netns.Traffic{Received: 1300, Foreign: 1100}},
	}
	return r
}

func TestVerdictsFindEachBreach(t *testing.T) {
	if r := goodReport(); !r.Kept() {
		t.Errorf("a good wave: %+v", r.Verdicts())
	}
	for name, spoil := range map[string]func(*Report){
		"a wrong digest":       func(r *Report) { r.Results[1].Error = "manifest" },
		"bytes from elsewhere": func(r *Report) { r.Results[0].Traffic.Foreign = ProbeBytes*int64(len(r.Results)) + 1 },
		"a busy origin":        func(r *Report) { r.Servers[0].Traffic.Sent = 2600 },
		"a region fed twice":   func(r *Report) { r.Servers[1].Traffic.Foreign = 1200 },
		"two servers of a region each within the limit": func(r *Report) {
			r.Servers = append(r.Servers, Server{Name: "server r2b", Region: "r2", Traffic: netns.Traffic{Foreign: 100}})
		},
	} {
		r := goodReport()
		spoil(&r)
		if r.Kept() {
			t.Errorf("%s: %+v", name, r.Verdicts())
		}
	}
}

// What a busy machine sends and asks for again breaks a promise, and is no fault of the
// wave's; what agents fetch each for themselves is.
func TestVerdictsExcuseABusyMachine(t *testing.T) {
	must := func(foreign int64) bool {
		r := goodReport()
		r.Servers[1].Traffic.Foreign = foreign
		return slices.ContainsFunc(r.Verdicts(), func(v Verdict) bool { return v.Gross })
	}
	if must(1200) || !must(2000) {
		t.Error("1.2 copies into a region count, or 2 do not")
	}
}

// In a long wave every agent measures four times how far two regions are, by connections
// of which three packets come back, and some packet is sent twice.
func TestVerdictsLeaveRoomForMeasuring(t *testing.T) {
	r := goodReport()
	for i := range r.Results {
		r.Results[i].Traffic.Foreign = 4*2*(60+52+52) + 2*60
	}
	if !r.Kept() {
		t.Errorf("agents that only measure: %+v", r.Verdicts())
	}
}

func TestPrintShowsWhatMatters(t *testing.T) {
	r := goodReport()
	r.Results[0].Error = "no bytes"
	var b strings.Builder
	r.Print(&b)
	for _, want := range []string{"FAILED: no bytes", "agent r2-1", "2.00 x the bound", "BROKEN  every host has the right digest: 1 of 2", "kept    no agent"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

func TestPlanCheck(t *testing.T) {
	p := Plan{Bin: "shoal", Dir: "/tmp", Hosts: 8}
	if err := p.Check(); err != nil || p.Regions != 1 || p.Class != "cold" || p.Timeout == 0 {
		t.Errorf("defaults: %+v, %v", p, err)
	}
	for _, bad := range []Plan{{}, {Bin: "b", Dir: "d", Hosts: 10_000}, {Bin: "b", Dir: "d", Regions: 99}, {Bin: "b", Dir: "d", Layers: 1000}} {
		if err := bad.Check(); err == nil {
			t.Errorf("accepted %+v", bad)
		}
	}
}

func TestSeriesValue(t *testing.T) {
	for _, c := range []struct {
		line   string
		labels []string
		want   float64
	}{
		{`swarm_bytes_total{direction="received",place="zone"} 12`, nil, 12},
		{`swarm_bytes_total{direction="received",place="zone"} 1.5e+06`, []string{`place="zone"`, `direction="received"`}, 1.5e6},
		{`swarm_bytes_total{direction="sent"} 12`, []string{`direction="received"`}, 0},
		{`swarm_bytes_total 7`, nil, 7},
		{`swarm_bytes_total_more 7`, nil, 0},
		{`# HELP swarm_bytes_total of 7`, nil, 0},
		{`swarm_bytes_total{a="b"} many`, nil, 0},
		{``, nil, 0},
	} {
		if got := seriesValue(c.line, "swarm_bytes_total", c.labels); got != c.want {
			t.Errorf("%q %v: %v, want %v", c.line, c.labels, got, c.want)
		}
	}
}
