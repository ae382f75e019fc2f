// Package wave runs a launch wave of the real binary in network namespaces: servers
// of some regions, agents on some hosts, every link limited, one image that all hosts
// want at once.
//
// Start reading at Plan, Start and Cluster.Wave; report.go prints what came out and
// bound.go says what the links allowed. Scenarios and end-to-end tests use Cluster for
// its processes, its counters and its pushes, too. The goroutines are those that start agents and pull; both end before the
// call that began them returns. Linux and root only.
package wave

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoal-registry/shoal/deploy/lab/netns"
)

// Plan says what to build and what to move.
type Plan struct {
	Bin     string // the shoal binary
	Dir     string // where each node gets a folder; removed by Close
	Regions int    // named r1, r2 ...
	Servers int    // of each region
	Hosts   int    // agents, dealt to the regions in turn
	// First is the number of the first region that gets agents; those before it have
	// servers alone.
	First int
	Zones int   // of each region, dealt to its agents in turn
	Rate  int64 // bits a second of every link, up and down; 0 is not limited
	// ServerRate is that of the servers' links, when it is another.
	ServerRate int64
	// RTT between regions at least; 0 is as it comes. It costs processor time.
	RTT    time.Duration
	Layers int
	Bytes  int64  // of all layers
	Class  string // of the repository: cold keeps other regions empty until the wave
	Seed   uint64 // of the image
	// Timeout is for the whole wave; it only guards against hangs.
	Timeout time.Duration
	// AgentArgs and ServerArgs are further flags of the nodes.
	AgentArgs, ServerArgs []string
	// Say, when not nil, gets a line at each step.
	Say func(format string, args ...any)
}

// Check fills defaults in and refuses what cannot be built.
func (p *Plan) Check() error {
	set := func(field *int, value int) {
		if *field == 0 {
			*field = value
		}
	}
	set(&p.Regions, 1)
	set(&p.Servers, 1)
	set(&p.First, 1)
	set(&p.Zones, 1)
	set(&p.Layers, 4)
	if p.Class == "" {
		p.Class = "cold"
	}
	if p.Bytes == 0 {
		p.Bytes = 64 << 20
	}
	if p.ServerRate == 0 {
		p.ServerRate = p.Rate
	}
	if p.Say == nil {
		p.Say = func(string, ...any) {}
	}
	switch {
	case p.Bin == "" || p.Dir == "":
		return errors.New("a lab needs the binary and a folder")
	case p.Regions < 1 || p.Regions > 16 || p.Hosts < 0 || p.Hosts > 512:
		return fmt.Errorf("%d regions and %d hosts: a lab has 1 to 16 and at most 512", p.Regions, p.Hosts)
	case p.Servers < 1 || p.Servers > 5 || p.First < 1 || p.First > p.Regions:
		return fmt.Errorf("%d servers a region, agents from region %d of %d on: not a lab", p.Servers, p.First, p.Regions)
	case p.Zones < 1 || p.Zones > netns.MaxZones || p.Layers < 1 || p.Layers > 100 || p.Rate < 0 || p.ServerRate < 0 || p.RTT < 0 || p.RTT > 10*time.Second:
		return fmt.Errorf("%d zones, %d layers, %d and %d bit/s, RTT %v: not a lab", p.Zones, p.Layers, p.Rate, p.ServerRate, p.RTT)
	}
	if p.Timeout == 0 {
		// Twenty times the naive time through one link, and a minute.
		p.Timeout = time.Minute + 20*seconds(Bound{Bytes: p.Bytes, Receivers: 1, SeedUp: p.ServerRate, Down: p.Rate}.Seconds())*time.Duration(max(1, p.Hosts))
	}
	return nil
}

// DataFolder returns where nodes that keep this many bytes between them should put
// them: on the memory file system when half of what is free there is enough, as the
// links are measured and not the disk, else in the folder for temporary files.
func DataFolder(bytes int64) string {
	const memory = "/dev/shm"
	var fs unix.Statfs_t
	if err := unix.Statfs(memory, &fs); err == nil && bytes < int64(fs.Bavail)*fs.Bsize/2 {
		return memory
	}
	return os.TempDir()
}

// Kept returns about how many bytes all nodes of the plan keep on disk.
func (p Plan) Kept() int64 {
	return (p.Bytes + 64<<20) * int64(p.Hosts+max(1, p.Regions)*max(1, p.Servers))
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// ParseRate reads a rate as tc writes it, such as 100mbit or 1gbit, in bits a second;
// 0 and unlimited are no limit.
func ParseRate(s string) (int64, error) {
	return parseUnits(s, "rate", "100mbit or 1gbit", []unit{
		{"gbit", 1e9}, {"mbit", 1e6}, {"kbit", 1e3}, {"bit", 1},
	})
}

// ParseSize reads a size such as 64MiB, 1GiB or 1000, in bytes.
func ParseSize(s string) (int64, error) {
	return parseUnits(s, "size", "64MiB or 1GiB", []unit{
		{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"B", 1},
	})
}

type unit struct {
	suffix string
	scale  float64
}

func parseUnits(s, what, example string, units []unit) (int64, error) {
	if s == "unlimited" {
		return 0, nil
	}
	number, scale := strings.TrimSpace(s), 1.0
	for _, u := range units {
		if len(number) > len(u.suffix) && strings.EqualFold(number[len(number)-len(u.suffix):], u.suffix) {
			number, scale = number[:len(number)-len(u.suffix)], u.scale
			break
		}
	}
	value, err := strconv.ParseFloat(number, 64)
	if err != nil || !(value >= 0 && value*scale < 1<<53) {
		return 0, fmt.Errorf("%s %q: write it like %s", what, s, example)
	}
	return int64(value * scale), nil
}
