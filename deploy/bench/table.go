package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/shoal-registry/shoal/deploy/proc"
)

// aim is how many times the other each row should reach.
const aim = 1.2

// usage is one sample: a value, and who used the machine meanwhile.
type usage struct {
	Value        float64 `json:"value"`
	ElapsedSec   float64 `json:"elapsed_sec,omitempty"`
	ServerCPUSec float64 `json:"server_cpu_sec,omitempty"`
	// BusyCPUSec is that of the whole machine; WaitSec of its cores waiting for the disk.
	BusyCPUSec float64 `json:"busy_cpu_sec,omitempty"`
	WaitSec    float64 `json:"wait_sec,omitempty"`
}

// use runs work and adds what the server and the machine used during it.
func use(server *proc.Process, work func() (float64, error)) (usage, error) {
	before, err := server.CPU()
	if err != nil {
		return usage{}, err
	}
	busyBefore, waitBefore := machine()
	start := time.Now()
	value, err := work()
	if err != nil {
		return usage{}, err
	}
	u := usage{Value: value, ElapsedSec: time.Since(start).Seconds()}
	after, err := server.CPU()
	if err != nil {
		return u, err
	}
	busy, wait := machine()
	u.ServerCPUSec = (after - before).Seconds()
	u.BusyCPUSec, u.WaitSec = busy-busyBefore, wait-waitBefore
	return u, nil
}

// Row is one measure of both servers.
type Row struct {
	Name    string             `json:"name"`
	Place   string             `json:"place"`
	Unit    string             `json:"unit"`
	Less    bool               `json:"less_is_better,omitempty"`
	Samples map[string][]usage `json:"samples"`
}

func (r *Row) add(subject string, u usage) {
	if r.Samples == nil {
		r.Samples = make(map[string][]usage)
	}
	r.Samples[subject] = append(r.Samples[subject], u)
}

// median returns the sample with the median value, the lower one of two.
func (r *Row) median(subject string) usage {
	samples := slices.Clone(r.Samples[subject])
	if len(samples) == 0 {
		return usage{}
	}
	slices.SortFunc(samples, func(a, b usage) int {
		switch {
		case a.Value < b.Value:
			return -1
		case a.Value > b.Value:
			return 1
		}
		return 0
	})
	return samples[(len(samples)-1)/2]
}

// ratio returns how many times better shoal is; 0 when one has no sample.
func (r *Row) ratio() float64 {
	ours, theirs := r.median("shoal").Value, r.median("distribution").Value
	switch {
	case ours <= 0 || theirs <= 0:
		return 0
	case r.Less:
		return theirs / ours
	}
	return ours / theirs
}

// limit says what shoal's median sample spent its time on, when the row is short of the aim.
func (r *Row) limit() string {
	if r.ratio() >= aim {
		return ""
	}
	u := r.median("shoal")
	if u.ElapsedSec == 0 {
		return "not a matter of time"
	}
	all := u.ElapsedSec * float64(cores())
	server, others := u.ServerCPUSec/all, max(0, u.BusyCPUSec-u.ServerCPUSec)/all
	wait, idle := u.WaitSec/all, max(0, all-u.BusyCPUSec-u.WaitSec)/all
	share := fmt.Sprintf("server %.0f %%, client and neighbours %.0f %%, disk wait %.0f %%, idle %.0f %% of the cores",
		100*server, 100*others, 100*wait, 100*idle)
	switch largest := max(server, others, wait, idle); largest {
	case server:
		return "the server's CPU: " + share
	case others:
		return "the client's CPU: " + share
	case wait:
		return "the disk: " + share
	default:
		return "waiting in turn (fsync, round trips): " + share
	}
}

// Report is everything that a run measured.
type Report struct {
	Started    time.Time `json:"started"`
	Scale      float64   `json:"scale"`
	Repeat     int       `json:"repeat"`
	Cores      int       `json:"cores"`
	LoadBefore string    `json:"load_before"`
	LoadAfter  string    `json:"load_after"`
	Rows       []Row     `json:"rows"`
}

// print writes the report as a markdown table and a list of what limits short rows.
func (r *Report) print(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 4, 1, ' ', 0)
	fmt.Fprintln(table, "| row\t| on\t| unit\t| shoal\t| distribution 3\t| ratio\t|")
	fmt.Fprintln(table, "| ---\t| ---\t| ---\t| ---:\t| ---:\t| ---:\t|")
	var short []string
	for _, row := range r.Rows {
		ratio := fmt.Sprintf("%.2f", row.ratio())
		if limit := row.limit(); limit != "" {
			ratio += " *"
			short = append(short, fmt.Sprintf("%s on %s, %.2f: %s", row.Name, row.Place, row.ratio(), limit))
		}
		fmt.Fprintf(table, "| %s\t| %s\t| %s\t| %s\t| %s\t| %s\t|\n", row.Name, row.Place, row.Unit,
			number(row.median("shoal").Value), number(row.median("distribution").Value), ratio)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if len(short) > 0 {
		fmt.Fprintf(w, "\n* short of %.1f; what shoal's time went to:\n- %s\n", aim, strings.Join(short, "\n- "))
	}
	_, err := fmt.Fprintf(w, "\nMedians of %d turns, scale %g, %d cores, load %s before and %s after; ratio = how many times better shoal is.\n",
		r.Repeat, r.Scale, r.Cores, r.LoadBefore, r.LoadAfter)
	return err
}

// number prints three significant digits, whole from 100 on.
func number(v float64) string {
	if v >= 100 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}

func cores() int { return runtime.NumCPU() }

// machine returns the seconds that all cores were busy and waited for a disk since
// boot, from the first line of /proc/stat (proc(5)): user nice system idle iowait irq
// softirq steal. Zeros when it cannot be read: the shares are only a hint.
func machine() (busySec, waitSec float64) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0
	}
	return parseMachine(string(text))
}

func parseMachine(stat string) (busySec, waitSec float64) {
	line, _, _ := strings.Cut(stat, "\n")
	for i, field := range strings.Fields(line) {
		ticks, err := strconv.ParseFloat(field, 64)
		if err != nil || i > 8 {
			continue // the name, and guest time, which user has in it
		}
		switch i {
		case 4: // idle
		case 5:
			waitSec += ticks / 100
		default:
			busySec += ticks / 100
		}
	}
	return busySec, waitSec
}

func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	fields := strings.Fields(string(text))
	return strings.Join(fields[:min(3, len(fields))], " ")
}
