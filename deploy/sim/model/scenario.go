package model

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/transfer/swarm/core"
)

// Scenario describes a wave. Hosts and links are alike but for what the faults say.
// Sizes are written like 256MiB or 3GB, rates like 300MB/s or 100mbit, times like 1ms.
type Scenario struct {
	Name  string `json:"name"`
	About string `json:"about"`
	// Blobs are fetched by every host at once, the first read first.
	Blobs []Size `json:"blobs"`
	// Schedule is how they are cut; empty is the product's own schedule. See Step.
	Schedule []Step   `json:"schedule,omitempty"`
	Regions  []Region `json:"regions"`

	// Up and Down are a host's rates, ServerUp and ServerDown a server's (default: as a host's).
	Up         Rate `json:"up"`
	Down       Rate `json:"down,omitempty"` // default: as Up
	ServerUp   Rate `json:"serverUp,omitempty"`
	ServerDown Rate `json:"serverDown,omitempty"`
	// RTT is the round trip inside a region, WanRTT between two.
	RTT    Duration `json:"rtt"`
	WanRTT Duration `json:"wanRTT,omitempty"`
	// Lag is how much longer messages take than the path alone: queues and threads.
	Lag Duration `json:"lag,omitempty"`
	// Loss is the share of segments that are lost once and come LossStall later;
	// default 200 ms.
	Loss      float64  `json:"loss,omitempty"`
	LossStall Duration `json:"lossStall,omitempty"`
	// Overhead is what headers add to bulk: 0.05 for TCP and TLS on Ethernet.
	Overhead float64 `json:"overhead,omitempty"`
	// MessageBytes is what one control message costs both links; default 120.
	MessageBytes int `json:"messageBytes,omitempty"`
	// Mail is how long a host lets HAVEs lie before it reads them; default 1 ms.
	Mail Duration `json:"mail,omitempty"`
	// Spread is the time within which the hosts start.
	Spread Duration `json:"spread,omitempty"`
	// ReadRate is how fast clients read; default without limit.
	ReadRate Rate `json:"readRate,omitempty"`
	// RegistrarTime is what a server's processor spends on one introduction; default 50 us.
	RegistrarTime Duration `json:"registrarTime,omitempty"`
	// NoPEX turns peer exchange off, to save the simulator its cost.
	NoPEX bool `json:"noPEX,omitempty"`

	// Faults; times At are shares of the bound.
	Slow    *Slow    `json:"slow,omitempty"`
	Freeze  *Freeze  `json:"freeze,omitempty"`
	Churn   *Churn   `json:"churn,omitempty"`
	Late    *Late    `json:"late,omitempty"`
	Corrupt *Corrupt `json:"corrupt,omitempty"`
	Kill    *Kill    `json:"kill,omitempty"`

	// Core overrides fields of core.Config by name, for experiments.
	Core json.RawMessage `json:"core,omitempty"`
	// Seed is the default seed; 0 is 1.
	Seed uint64 `json:"seed,omitempty"`
	// Goals are upper limits of figures (see Result.Figure).
	Goals map[string]float64 `json:"goals,omitempty"`
	// Big keeps the scenario out of the default set.
	Big bool `json:"big,omitempty"`
}

// Region is one region: the first scenario's region has the origin, its first server,
// which holds the blobs at the start.
type Region struct {
	Hosts   int `json:"hosts"`
	Zones   int `json:"zones,omitempty"`   // default 1; hosts are dealt to them in turn
	Servers int `json:"servers,omitempty"` // default 1
	// WanIn and WanOut cap what enters and leaves; default without limit.
	WanIn  Rate `json:"wanIn,omitempty"`
	WanOut Rate `json:"wanOut,omitempty"`
}

// Step says that the next Count chunks are Bytes long each; the last Step repeats.
type Step struct {
	Count int  `json:"count"`
	Bytes Size `json:"bytes"`
}

// Slow makes Share of the hosts Factor times as fast.
type Slow struct {
	Share  float64 `json:"share"`
	Factor float64 `json:"factor"`
}

// Freeze stops the processes of Share of the hosts at At, for For (0: for good).
type Freeze struct {
	Share float64  `json:"share"`
	At    float64  `json:"at"`
	For   Duration `json:"for,omitempty"`
}

// Churn lets Share of the hosts leave at times between From and To, and come back
// after Away with what they had.
type Churn struct {
	Share float64  `json:"share"`
	From  float64  `json:"from"`
	To    float64  `json:"to"`
	Away  Duration `json:"away"`
	// Silent hosts vanish without a word: their peers notice after 20 s.
	Silent bool `json:"silent,omitempty"`
}

// Late lets Share of the hosts start at At.
type Late struct {
	Share float64 `json:"share"`
	At    float64 `json:"at"`
}

// Corrupt makes Hosts hosts send wrong bytes.
type Corrupt struct {
	Hosts int `json:"hosts"`
}

// Kill ends server Server of region Region at At.
type Kill struct {
	Region int     `json:"region"`
	Server int     `json:"server"`
	At     float64 `json:"at"`
}

// Parse reads a scenario from JSON and checks it; unknown fields are errors.
func Parse(data []byte) (*Scenario, error) {
	s := &Scenario{}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(s); err != nil {
		return nil, fmt.Errorf("parse a scenario: %w", err)
	}
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("scenario %q: %w", s.Name, err)
	}
	return s, nil
}

const (
	maxHosts = 1 << 20
	maxBlobs = 8
)

// check fills defaults in and refuses what cannot be run.
func (s *Scenario) check() error {
	def := func(v *Duration, d time.Duration) {
		if *v == 0 {
			*v = Duration(d)
		}
	}
	def(&s.LossStall, 200*time.Millisecond)
	def(&s.Mail, time.Millisecond)
	def(&s.RegistrarTime, 50*time.Microsecond)
	if s.MessageBytes == 0 {
		s.MessageBytes = 120
	}
	for _, r := range []struct {
		v *Rate
		d Rate
	}{{&s.Down, s.Up}, {&s.ServerUp, s.Up}, {&s.ServerDown, s.Down}} {
		if *r.v == 0 {
			*r.v = r.d
		}
	}
	if s.Seed == 0 {
		s.Seed = 1
	}
	hosts := 0
	for i := range s.Regions {
		r := &s.Regions[i]
		r.Zones, r.Servers = max(r.Zones, 1), max(r.Servers, 1)
		if r.Hosts < 0 || r.Zones > 1000 || r.Servers > 64 {
			return fmt.Errorf("region %d: %d hosts, %d zones, %d servers", i, r.Hosts, r.Zones, r.Servers)
		}
		hosts += r.Hosts
	}
	switch {
	case len(s.Blobs) == 0 || len(s.Blobs) > maxBlobs:
		return fmt.Errorf("%d blobs, want 1 to %d", len(s.Blobs), maxBlobs)
	case len(s.Regions) == 0 || hosts == 0 || hosts > maxHosts:
		return fmt.Errorf("%d hosts in %d regions, want 1 to %d", hosts, len(s.Regions), maxHosts)
	case s.Up <= 0 || s.Down <= 0 || s.RTT <= 0:
		return fmt.Errorf("rates and the round trip must be above 0")
	case len(s.Regions) > 1 && s.WanRTT <= 0:
		return fmt.Errorf("several regions need a wanRTT")
	case s.Kill != nil && (s.Kill.Region < 0 || s.Kill.Region >= len(s.Regions) || s.Kill.Server < 0 || s.Kill.Server >= s.Regions[s.Kill.Region].Servers):
		return fmt.Errorf("kills a server that is not there")
	case s.Slow != nil && s.Slow.Factor <= 0:
		return fmt.Errorf("slow hosts need a factor above 0")
	}
	for _, b := range s.Blobs {
		if b <= 0 {
			return fmt.Errorf("a blob of %d bytes", b)
		}
	}
	for _, st := range s.Schedule {
		if st.Bytes <= 0 {
			return fmt.Errorf("a chunk of %d bytes", st.Bytes)
		}
	}
	for name := range s.Goals {
		if _, ok := (&Result{}).Figure(name); !ok {
			return fmt.Errorf("there is no figure %q", name)
		}
	}
	if _, err := s.config(); err != nil {
		return err
	}
	return nil
}

// config is the core's Config with the overrides.
func (s *Scenario) config() (core.Config, error) {
	var c core.Config
	if len(s.Core) > 0 {
		d := json.NewDecoder(bytes.NewReader(s.Core))
		d.DisallowUnknownFields()
		if err := d.Decode(&c); err != nil {
			return c, fmt.Errorf("override the core: %w", err)
		}
	}
	return c, nil
}

// Bound is the least time in which the wave can end: what the origin, a host's
// downlink, a region's entry, the servers of the origin's region, which send both to
// its hosts and beyond, and all uplinks of a region together allow (after Kumar and Ross
// 2006). Headers and messages are not in it.
func (s *Scenario) Bound() time.Duration {
	var f float64
	for _, b := range s.Blobs {
		f += float64(b)
	}
	bound := max(f/float64(s.ServerUp), f/float64(s.Down))
	if len(s.Regions) > 1 && s.Regions[0].Hosts > 0 {
		// The servers of the origin's region send a copy to its hosts and one beyond.
		bound = max(bound, 2*f/(float64(s.Regions[0].Servers)*float64(s.ServerUp)))
	}
	for i, r := range s.Regions {
		n := float64(r.Hosts)
		up := float64(r.Servers)*float64(s.ServerUp) + n*float64(s.Up)
		bound = max(bound, n*f/up)
		if i > 0 && r.WanIn > 0 {
			bound = max(bound, f/float64(r.WanIn))
		}
	}
	return time.Duration(bound * 1e9)
}

// Size is a number of bytes.
type Size int64

// UnmarshalText reads a size such as 64MiB, 3GB or 1000.
func (v *Size) UnmarshalText(b []byte) error {
	n, err := quantity(string(b), sizes)
	*v = Size(n)
	return err
}

// Rate is bytes per second.
type Rate float64

// UnmarshalText reads a rate such as 300MB/s or 100mbit (a second).
func (v *Rate) UnmarshalText(b []byte) error {
	n, err := quantity(string(b), rates)
	*v = Rate(n)
	return err
}

// Duration is a time.Duration that is written like 10ms.
type Duration time.Duration

// UnmarshalText reads a duration.
func (v *Duration) UnmarshalText(b []byte) error {
	d, err := time.ParseDuration(string(b))
	if err == nil && d < 0 {
		err = fmt.Errorf("the time %s is below 0", d)
	}
	*v = Duration(d)
	return err
}

type unit struct {
	suffix string
	scale  float64
}

var (
	sizes = []unit{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"B", 1}, {"", 1}}
	rates = []unit{{"GB/s", 1e9}, {"MB/s", 1e6}, {"KB/s", 1e3}, {"gbit", 1e9 / 8}, {"mbit", 1e6 / 8}, {"kbit", 1e3 / 8}}
)

func quantity(s string, units []unit) (float64, error) {
	for _, u := range units {
		number, ok := strings.CutSuffix(s, u.suffix)
		if !ok {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
		if err != nil || v < 0 || math.IsNaN(v) || v*u.scale > 1<<53 {
			break
		}
		return v * u.scale, nil
	}
	return 0, fmt.Errorf("%q is no quantity: write sizes like 64MiB, rates like 300MB/s or 100mbit", s)
}
