package wave

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"

	"github.com/shoal-registry/shoal/deploy/lab/netns"
)

// Report is what a wave did. Copies are bytes on a link divided by the image's bytes,
// with all headers, of which TCP, IP and Ethernet make about 0.05.
type Report struct {
	Regions        int      `json:"regions"`
	Hosts          int      `json:"hosts"`
	Layers         int      `json:"layers"`
	RateBitsPerSec int64    `json:"rate_bits_per_sec"`
	Class          string   `json:"class"`
	Seed           uint64   `json:"seed"`
	Bytes          int64    `json:"bytes"` // manifest, config and layers
	Digest         string   `json:"digest"`
	Results        []Result `json:"results"`
	Servers        []Server `json:"servers"`
	Bound          Bound    `json:"bound"`
	BoundSec       float64  `json:"bound_sec"`
	ElapsedSec     float64  `json:"elapsed_sec"`
	LoadBefore     string   `json:"load_before"`
	LoadAfter      string   `json:"load_after"`
	Cores          int      `json:"cores"`
	// Most resident memory that an agent and a server had since they started.
	AgentPeakBytes  int64 `json:"agent_peak_bytes"`
	ServerPeakBytes int64 `json:"server_peak_bytes"`
}

// Result is one host of the wave.
type Result struct {
	Name         string        `json:"name"`
	Region       string        `json:"region"`
	Zone         string        `json:"zone"`
	FirstByteSec float64       `json:"first_byte_sec"`
	FinishSec    float64       `json:"finish_sec"`
	GapSec       float64       `json:"gap_sec"` // longest time without a byte
	Traffic      netns.Traffic `json:"traffic"`
	Error        string        `json:"error,omitempty"`
	// Excused hosts were held up on purpose and are judged by nobody.
	Excused bool `json:"excused,omitempty"`
}

// Server is one server of the wave; the first is the origin.
type Server struct {
	Name    string        `json:"name"`
	Region  string        `json:"region"`
	Traffic netns.Traffic `json:"traffic"`
}

// Copies returns bytes as a multiple of the image.
func (r Report) Copies(bytes int64) float64 {
	if r.Bytes == 0 {
		return 0
	}
	return float64(bytes) / float64(r.Bytes)
}

// Ratio returns a time as a multiple of the bound; 0 when there is no bound.
func (r Report) Ratio(sec float64) float64 {
	if r.BoundSec == 0 {
		return 0
	}
	return sec / r.BoundSec
}

// Finishes returns the finish times of the hosts that succeeded, sorted.
func (r Report) Finishes() []float64 {
	return r.each(func(result Result) float64 { return result.FinishSec })
}

// FirstBytes returns when they had their first byte, sorted.
func (r Report) FirstBytes() []float64 {
	return r.each(func(result Result) float64 { return result.FirstByteSec })
}

// Gaps returns how long each was without a byte at most, sorted.
func (r Report) Gaps() []float64 {
	return r.each(func(result Result) float64 { return result.GapSec })
}

// each returns a value of every host that succeeded and was not excused, sorted.
func (r Report) each(value func(Result) float64) []float64 {
	var values []float64
	for _, result := range r.Results {
		if result.Error == "" && !result.Excused {
			values = append(values, value(result))
		}
	}
	slices.Sort(values)
	return values
}

// Quantile returns the value below which the share q of sorted values lies, by the
// nearest rank; 0 for none.
func Quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	rank := int(q*float64(len(sorted)) + 0.999999)
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// Verdict is one promise of the design held against the report.
type Verdict struct {
	Promise string
	Got     string
	Kept    bool
	// Gross is a promise broken by more than a busy machine, on which bytes are asked for
	// and sent again, excuses.
	Gross bool
}

// ProbeBytes is at least what an agent receives from other regions in a wave when it
// fetches nothing there: it measures how far they are by TCP connections, of which up to
// three packets of 52 or 60 bytes come back: three times in its first seconds and then
// every minute, to each of two regions. Packets that are sent twice are in it too; a
// chunk is much more.
const ProbeBytes = 2 << 10

// Verdicts holds the report against what every wave must keep.
//
// originCopies is regions + 0.5: a copy for each region's swarm and half of one for
// what is asked twice. A region takes a copy and its headers and requests, 1.15.
func (r Report) Verdicts() []Verdict {
	var right, judged int
	var foreign int64
	for _, result := range r.Results {
		foreign += result.Traffic.Foreign
		if result.Excused {
			continue
		}
		judged++
		if result.Error == "" {
			right++
		}
	}
	verdicts := []Verdict{
		{"every host has the right digest", fmt.Sprintf("%d of %d", right, judged), right == judged, right != judged},
		{"no agent fetched from another region", fmt.Sprintf("%d bytes on the link", foreign), foreign <= ProbeBytes*int64(len(r.Results)), foreign > ProbeBytes*int64(len(r.Results))},
	}
	if len(r.Servers) == 0 {
		return verdicts
	}
	limit := float64(r.Regions) + 0.5
	origin := r.Copies(r.Servers[0].Traffic.Sent)
	verdicts = append(verdicts, Verdict{fmt.Sprintf("the origin sent at most %.1f copies", limit), fmt.Sprintf("%.2f", origin), origin <= limit, origin > limit+1})
	into := make(map[string]int64)
	for _, server := range r.Servers[1:] {
		into[server.Region] += server.Traffic.Foreign
	}
	for _, server := range r.Servers[1:] {
		bytes, first := into[server.Region]
		if !first {
			continue
		}
		delete(into, server.Region)
		copies := r.Copies(bytes)
		verdicts = append(verdicts, Verdict{fmt.Sprintf("region %s took at most 1.15 copies from others", server.Region),
			fmt.Sprintf("%.2f", copies), copies <= 1.15, copies > 1.5})
	}
	return verdicts
}

// Kept reports whether every verdict is kept.
func (r Report) Kept() bool {
	return !slices.ContainsFunc(r.Verdicts(), func(v Verdict) bool { return !v.Kept })
}

// Print writes the report for people.
func (r Report) Print(w io.Writer) {
	fmt.Fprintf(w, "wave: %d hosts in %d regions, %s in %d layers, links of %s, class %s\n",
		r.Hosts, r.Regions, size(r.Bytes), r.Layers, rate(r.RateBitsPerSec), r.Class)
	fmt.Fprintf(w, "image %s, seed %d\n\n", r.Digest, r.Seed)
	table := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(table, "host\tzone\tfirst byte s\tfinish s\tof bound\tcopies in\tcopies out\tforeign bytes\t")
	for _, result := range r.Results {
		if result.Excused {
			fmt.Fprintf(table, "%s\t%s\theld up on purpose\t\t\t\t\t\t\n", result.Name, result.Zone)
			continue
		}
		if result.Error != "" {
			fmt.Fprintf(table, "%s\t%s\tFAILED: %s\t\t\t\t\t\t\n", result.Name, result.Zone, result.Error)
			continue
		}
		fmt.Fprintf(table, "%s\t%s\t%.3f\t%.2f\t%.2f\t%.2f\t%.2f\t%d\t\n", result.Name, result.Zone, result.FirstByteSec, result.FinishSec,
			r.Ratio(result.FinishSec), r.Copies(result.Traffic.Received), r.Copies(result.Traffic.Sent), result.Traffic.Foreign)
	}
	for _, server := range r.Servers {
		fmt.Fprintf(table, "%s\t\t\t\t\t%.2f\t%.2f\t%d\t\n", server.Name,
			r.Copies(server.Traffic.Received), r.Copies(server.Traffic.Sent), server.Traffic.Foreign)
	}
	table.Flush()

	seed, down, all := r.Bound.Terms()
	fmt.Fprintf(w, "\nlower bound max(F/us, F/d, N F/(us + sum ui)) = max(%.2f, %.2f, %.2f) = %.2f s, N = %d receivers\n",
		seed, down, all, r.BoundSec, r.Bound.Receivers)
	if times := r.Finishes(); len(times) > 0 {
		var sum float64
		for _, t := range times {
			sum += t
		}
		last, median := times[len(times)-1], Quantile(times, 0.5)
		fmt.Fprintf(w, "last %.2f s = %.2f x the bound; median %.2f s = %.2f x; mean %.2f s; headers alone make 1.05\n",
			last, r.Ratio(last), median, r.Ratio(median), sum/float64(len(times)))
		if r.Regions > 1 && seed > 0 {
			fmt.Fprintf(w, "where each region takes its copy from the origin, its uplink alone needs %d x F/us = %.2f s; last = %.2f x that\n",
				r.Regions, float64(r.Regions)*seed, last/(float64(r.Regions)*seed))
		}
	}
	fmt.Fprintf(w, "memory at most: agent %s, server %s; load %s before, %s after, on %d cores: trust ratios, not seconds\n\n",
		size(r.AgentPeakBytes), size(r.ServerPeakBytes), r.LoadBefore, r.LoadAfter, r.Cores)
	for _, v := range r.Verdicts() {
		mark := "kept  "
		if !v.Kept {
			mark = "BROKEN"
		}
		fmt.Fprintf(w, "%s  %s: %s\n", mark, v.Promise, v.Got)
	}
}

func size(bytes int64) string {
	switch {
	case bytes >= 1<<30:
		return fmt.Sprintf("%.2f GiB", float64(bytes)/(1<<30))
	case bytes >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20))
	}
	return fmt.Sprintf("%.1f KiB", float64(bytes)/(1<<10))
}

func rate(bitsPerSec int64) string {
	if bitsPerSec == 0 {
		return "no limit"
	}
	return fmt.Sprintf("%g Mbit/s", float64(bitsPerSec)/1e6)
}
