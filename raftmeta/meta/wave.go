package meta

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/verify/digest"
)

// WaveState is how far a wave has come.
type WaveState string

// States of a wave. Done ones still take in hosts that join, until they expire.
const (
	WavePlanned   WaveState = "planned"   // no host has begun
	WaveRunning   WaveState = "running"   // a host has
	WaveDone      WaveState = "done"      // every host that it is for has settled, or its time is over
	WaveAborted   WaveState = "aborted"   // more hosts failed than it allows
	WaveCancelled WaveState = "cancelled" // by somebody
)

// HostState is how far a host has come in a wave.
type HostState string

// States of a host. Waiting ones have no record.
const (
	HostWaiting  HostState = "waiting"
	HostFetching HostState = "fetching"
	HostDone     HostState = "done"
	HostSkipped  HostState = "skipped" // nothing of the wave is for its platform
	HostFailed   HostState = "failed"
	HostLost     HostState = "lost" // not heard from until its lease ended; it may come back
)

// Settled says that a host has come to its end in the wave.
func (s HostState) Settled() bool { return s == HostDone || s == HostSkipped || s == HostFailed }

// WaveRef is a version that a wave brings to its hosts.
type WaveRef struct {
	Repo    RepoRef `cbor:"1,keyasint,omitempty" json:"repo"`
	Package string  `cbor:"2,keyasint,omitempty" json:"package"`
	// Alias is the name by which the version was given, "" for its own.
	Alias   string        `cbor:"3,keyasint,omitempty" json:"alias,omitempty"`
	Version string        `cbor:"4,keyasint,omitempty" json:"version"`
	Digest  digest.Digest `cbor:"5,keyasint,omitempty" json:"digest"`
}

func (r WaveRef) String() string {
	if r.Alias != "" {
		return r.Repo.String() + "/" + r.Package + ":" + r.Alias
	}
	return r.Repo.String() + "/" + r.Package + "@" + r.Version
}

// WaveTarget names hosts by where they are; an empty field matches all.
type WaveTarget struct {
	Region RegionName `cbor:"1,keyasint,omitempty" json:"region,omitempty"`
	Zone   string     `cbor:"2,keyasint,omitempty" json:"zone,omitempty"`
	Rack   string     `cbor:"3,keyasint,omitempty" json:"rack,omitempty"`
}

// String returns the form that ParseWaveTarget reads.
func (t WaveTarget) String() string {
	var parts []string
	for _, p := range [][2]string{{"region", string(t.Region)}, {"zone", t.Zone}, {"rack", t.Rack}} {
		if p[1] != "" {
			parts = append(parts, p[0]+"="+p[1])
		}
	}
	return strings.Join(parts, ",")
}

// ParseWaveTarget reads `region=eu,zone=z1,rack=r1`, each at most once.
func ParseWaveTarget(s string) (t WaveTarget, _ error) {
	for part := range strings.SplitSeq(s, ",") {
		name, value, ok := strings.Cut(part, "=")
		field := map[string]*string{"region": (*string)(&t.Region), "zone": &t.Zone, "rack": &t.Rack}[name]
		if !ok || field == nil || value == "" || *field != "" {
			return t, fmt.Errorf("target %q: write region=NAME, zone=NAME, rack=NAME or several of them with commas: %w", s, ErrInvalid)
		}
		*field = value
	}
	return t, t.Check()
}

// Check checks a target.
func (t WaveTarget) Check() error {
	if t == (WaveTarget{}) {
		return fmt.Errorf("a target without region, zone and rack: %w", ErrInvalid)
	}
	if t.Region != "" {
		if err := CheckRegion(t.Region); err != nil {
			return err
		}
	}
	for _, s := range []string{t.Zone, t.Rack} {
		if s != "" {
			if err := checkText("zone or rack", s, 128); err != nil {
				return err
			}
		}
	}
	return nil
}

// WaveAbort stops a wave when more hosts have failed than Above, of a hundred when
// Percent is set.
type WaveAbort struct {
	Above   uint32 `cbor:"1,keyasint,omitempty" json:"above"`
	Percent bool   `cbor:"2,keyasint,omitempty" json:"percent,omitempty"`
}

func (a WaveAbort) String() string {
	if a.Percent {
		return fmt.Sprintf("%d%%", a.Above)
	}
	return fmt.Sprint(a.Above)
}

// WaveRegion counts the hosts of a region that took part in a wave, by state.
type WaveRegion struct {
	Region   RegionName `cbor:"1,keyasint,omitempty" json:"region"`
	Fetching uint32     `cbor:"2,keyasint,omitempty" json:"fetching"`
	Done     uint32     `cbor:"3,keyasint,omitempty" json:"done"`
	Skipped  uint32     `cbor:"4,keyasint,omitempty" json:"skipped"`
	Failed   uint32     `cbor:"5,keyasint,omitempty" json:"failed"`
	Lost     uint32     `cbor:"6,keyasint,omitempty" json:"lost"`
	// Bytes is what the hosts that are done hold of it.
	Bytes int64 `cbor:"7,keyasint,omitempty" json:"bytes"`
}

// Count returns the counter of a state, nil for one that is not counted.
func (r *WaveRegion) Count(s HostState) *uint32 {
	switch s {
	case HostFetching:
		return &r.Fetching
	case HostDone:
		return &r.Done
	case HostSkipped:
		return &r.Skipped
	case HostFailed:
		return &r.Failed
	case HostLost:
		return &r.Lost
	}
	return nil
}

// Settled counts the hosts that have come to their end.
func (r WaveRegion) Settled() uint32 { return r.Done + r.Skipped + r.Failed }

// Took counts the hosts that took part.
func (r WaveRegion) Took() uint32 { return r.Settled() + r.Fetching + r.Lost }

// Wave is a planned mass deployment of references to many agents.
type Wave struct {
	ID   string    `cbor:"1,keyasint,omitempty" json:"id"`
	Name string    `cbor:"2,keyasint,omitempty" json:"name,omitempty"`
	Refs []WaveRef `cbor:"3,keyasint,omitempty" json:"refs"`
	// Targets are the hosts: all agents when there is none.
	Targets []WaveTarget `cbor:"4,keyasint,omitempty" json:"targets,omitempty"`
	// Platform is os/arch[/variant]; "" is each host's own.
	Platform string `cbor:"5,keyasint,omitempty" json:"platform,omitempty"`
	// Hosts are admitted from NotBefore up to Expires; until then they keep it, too.
	NotBefore Time `cbor:"6,keyasint,omitempty" json:"not_before"`
	Expires   Time `cbor:"7,keyasint,omitempty" json:"expires"`
	// MaxParallel bounds the hosts that fetch at one time; 0 is no bound.
	MaxParallel uint32 `cbor:"8,keyasint,omitempty" json:"max_parallel,omitempty"`
	// Abort is nil for never.
	Abort *WaveAbort `cbor:"9,keyasint,omitempty" json:"abort,omitempty"`
	// Expected is how many hosts matched when it was created.
	Expected uint32 `cbor:"10,keyasint,omitempty" json:"expected"`

	State     WaveState `cbor:"11,keyasint,omitempty" json:"state"`
	Reason    string    `cbor:"12,keyasint,omitempty" json:"reason,omitempty"` // of aborted and cancelled
	Created   Time      `cbor:"13,keyasint,omitempty" json:"created"`
	CreatedBy string    `cbor:"14,keyasint,omitempty" json:"created_by"`
	Started   Time      `cbor:"15,keyasint,omitempty" json:"started,omitempty"`  // when the first host was admitted
	Finished  Time      `cbor:"16,keyasint,omitempty" json:"finished,omitempty"` // when it was done
	Ended     Time      `cbor:"17,keyasint,omitempty" json:"ended,omitempty"`    // when it was over: no host is admitted any more
	// Regions are in the order of their names, Failures the first ones.
	Regions  []WaveRegion `cbor:"18,keyasint,omitempty" json:"regions,omitempty"`
	Failures []WaveHost   `cbor:"19,keyasint,omitempty" json:"failures,omitempty"`
}

// Match reports whether the wave is for a node: one that it aims at and that may hold
// all that it names.
func (w Wave) Match(n Node) bool { return w.aims(n) && w.fits(n) }

// LeavesOut reports whether the wave aims at a node that may not hold all that it
// names: such a node gets nothing of it, and learns nothing of it.
func (w Wave) LeavesOut(n Node) bool { return w.aims(n) && !w.fits(n) }

// fits reports whether a node may hold what belongs to the tenants of all references.
// That a repository is public does not count: it may cease to be while the wave runs.
func (w Wave) fits(n Node) bool {
	for _, ref := range w.Refs {
		if !n.MayHold(ref.Repo.Tenant) {
			return false
		}
	}
	return true
}

func (w Wave) aims(n Node) bool {
	if n.Role != RoleAgent {
		return false
	}
	for _, t := range w.Targets {
		if (t.Region == "" || t.Region == n.Region) && (t.Zone == "" || t.Zone == n.Zone) && (t.Rack == "" || t.Rack == n.Rack) {
			return true
		}
	}
	return len(w.Targets) == 0
}

// Admits reports whether hosts may begin at an instant.
func (w Wave) Admits(now Time) bool {
	return w.Ended == 0 && now >= w.NotBefore && now < w.Expires
}

// Total adds up the regions.
func (w Wave) Total() (t WaveRegion) {
	for _, r := range w.Regions {
		t.Fetching += r.Fetching
		t.Done += r.Done
		t.Skipped += r.Skipped
		t.Failed += r.Failed
		t.Lost += r.Lost
		t.Bytes += r.Bytes
	}
	return t
}

// WaveHost is a host that took part in a wave.
type WaveHost struct {
	Node   NodeID     `cbor:"1,keyasint,omitempty" json:"node"`
	Region RegionName `cbor:"2,keyasint,omitempty" json:"region"`
	State  HostState  `cbor:"3,keyasint,omitempty" json:"state"`
	Bytes  int64      `cbor:"4,keyasint,omitempty" json:"bytes,omitempty"`
	Reason string     `cbor:"5,keyasint,omitempty" json:"reason,omitempty"` // of failed and skipped
	// Admitted is when it last began, Changed when its state last changed.
	Admitted Time `cbor:"6,keyasint,omitempty" json:"admitted,omitempty"`
	Changed  Time `cbor:"7,keyasint,omitempty" json:"changed,omitempty"`
	// Until is the end of its lease, while it fetches in a wave with MaxParallel.
	Until Time `cbor:"8,keyasint,omitempty" json:"until,omitempty"`
}

// Bounds of waves.
const (
	MaxWaveRefs    = 64
	MaxWaveTargets = 64
	MaxWaveReason  = 256 // bytes
	// WaveLease is how long a host may fetch without being heard from, in a wave with
	// MaxParallel.
	WaveLease = time.Minute
)

// WavePart is what a host says of its part in a wave.
type WavePart struct {
	Wave  string    `cbor:"1,keyasint,omitempty"`
	State HostState `cbor:"2,keyasint,omitempty"`
	// Bytes are those of TotalBytes that it holds; 0 while it does not know.
	Bytes      int64  `cbor:"3,keyasint,omitempty"`
	TotalBytes int64  `cbor:"4,keyasint,omitempty"`
	Reason     string `cbor:"5,keyasint,omitempty"`
}

// WaveWord is all that a host says.
type WaveWord struct {
	// After is the log index up to which the host has heard of waves: the answer must
	// not be older.
	After uint64 `cbor:"1,keyasint,omitempty"`
	// Parts are of the waves that it knows.
	Parts []WavePart `cbor:"2,keyasint,omitempty"`
}

// WaveOrder is what a server tells a host of a wave that it has a part in.
type WaveOrder struct {
	ID string `cbor:"1,keyasint,omitempty"`
	// Wave is what the host has to know of it, unless it said that it knows the wave.
	Wave *Wave `cbor:"2,keyasint,omitempty"`
	// State is the host's in the metadata.
	State HostState `cbor:"3,keyasint,omitempty"`
	// In is how long a waiting host has to wait at least, Lease how long a fetching
	// one may fetch from the moment it asked; 0 is no bound.
	In    time.Duration `cbor:"4,keyasint,omitempty"`
	Lease time.Duration `cbor:"5,keyasint,omitempty"`
}

// WaveOrders are all waves that a host has a part in; others are over for it.
type WaveOrders struct {
	Orders []WaveOrder `cbor:"1,keyasint,omitempty"`
	// Again is when the host is to ask again, 0 when nothing is expected of it.
	Again time.Duration `cbor:"2,keyasint,omitempty"`
}

// WaveProgress is what a server heard lately from the hosts of a region that have
// not settled.
type WaveProgress struct {
	Region   RegionName `cbor:"1,keyasint,omitempty"`
	Waiting  uint32     `cbor:"2,keyasint,omitempty"`
	Fetching uint32     `cbor:"3,keyasint,omitempty"`
	// Bytes is what those that fetch hold, HostBytes the most that one of them needs.
	Bytes     int64 `cbor:"4,keyasint,omitempty"`
	HostBytes int64 `cbor:"5,keyasint,omitempty"`
}

// CheckWaveID checks the id of a wave.
func CheckWaveID(id string) error { return checkName("wave", id) }

var platformPattern = regexp.MustCompile(`^[a-z0-9]{1,32}/[a-z0-9_]{1,32}(/[a-z0-9.]{1,32})?$`)

// CheckPlatform checks `os/arch[/variant]`, as linux/arm64/v8.
func CheckPlatform(p string) error {
	if !platformPattern.MatchString(p) {
		return fmt.Errorf("platform %q: write os/arch or os/arch/variant: %w", p, ErrInvalid)
	}
	return nil
}

// Check checks what people choose of a wave.
func (w Wave) Check() error {
	if err := CheckWaveID(w.ID); err != nil {
		return err
	}
	fail := func(format string, args ...any) error {
		return fmt.Errorf("wave %s: %s: %w", w.ID, fmt.Sprintf(format, args...), ErrInvalid)
	}
	if w.Name != "" {
		if err := checkText("name of a wave", w.Name, 128); err != nil {
			return err
		}
	}
	if n := len(w.Refs); n == 0 || n > MaxWaveRefs {
		return fail("%d references, use 1 to %d", n, MaxWaveRefs)
	}
	for _, r := range w.Refs {
		if err := r.check(); err != nil {
			return fmt.Errorf("wave %s: %w", w.ID, err)
		}
	}
	if len(w.Targets) > MaxWaveTargets {
		return fail("%d targets, at most %d", len(w.Targets), MaxWaveTargets)
	}
	for _, t := range w.Targets {
		if err := t.Check(); err != nil {
			return err
		}
	}
	if w.Platform != "" {
		if err := CheckPlatform(w.Platform); err != nil {
			return err
		}
	}
	if w.Abort != nil && w.Abort.Percent && w.Abort.Above > 100 {
		return fail("abort above %d %%", w.Abort.Above)
	}
	return nil
}

func (r WaveRef) check() error {
	if err := r.Repo.Check(); err != nil {
		return err
	}
	if err := CheckPackage(r.Package); err != nil {
		return err
	}
	if r.Alias != "" {
		if err := CheckAlias(r.Alias); err != nil {
			return err
		}
	}
	return CheckVersion(r.Version)
}
