// Package nemesis does to a cluster of real processes what machines, disks and networks
// do to it in years: one fault after another, each healed before the next or together
// with it.
//
// Start reading at Nemesis.Run, then kinds.go, the table of faults with what each does.
// schedule.go says which comes when, out of a seed. Every server runs on a host (netns) and
// a disk (package disk) of its own, so that links can be cut and slowed each way, and
// disks filled, frozen and cut off from power, without touching anything else of the
// machine. Clients talk to the servers from inside their hosts and are not cut off with
// them: that is what shows a server that answers when it must not.
//
// Run is one goroutine; it starts none that outlives it.
package nemesis

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/shoal-registry/shoal/deploy/lab/disk"
	"github.com/shoal-registry/shoal/deploy/lab/netns"
	"github.com/shoal-registry/shoal/deploy/lab/wave"
	"github.com/shoal-registry/shoal/deploy/proc"
)

// Load is what the nemesis needs of the clients.
type Load interface {
	// AwaitLoad waits until so many operations were acknowledged in each of the last two
	// seconds.
	AwaitLoad(ctx context.Context, atLeast int) error
	// Shun keeps publishes away from a node of that name, or no longer.
	Shun(node string, yes bool)
	// SetMembers says which nodes there are from now on.
	SetMembers([]*wave.Member)
}

// Config is a nemesis's.
type Config struct {
	Cluster *wave.Cluster
	Disks   map[*wave.Member]*disk.Disk // of the servers that were there at the beginning
	Load    Load
	// AtLeast operations a second must be acknowledged for two seconds before a fault counts.
	AtLeast int
	// Regions is how many there are; MakeDisk makes a disk for a server of that folder name.
	Regions  int
	MakeDisk func(name string) (*disk.Disk, error)
	// Patience is how long the cluster may take to work again after a fault.
	Patience time.Duration
	Say      func(format string, args ...any)
}

// Nemesis is who does it.
type Nemesis struct {
	Config
	Counts map[string]int // faults by kind, of those that count
	// Restarts counts servers that ended by themselves, by what they said last.
	Restarts map[string]int

	// Flipped counts damaged blobs.
	Flipped int
	// Rejoined counts servers that had to join anew since their metadata was damaged.
	Rejoined int

	heal []func(ctx context.Context) error // of the faults that are on
	// damaged are blobs of which one copy was damaged, suspect servers whose metadata was.
	damaged map[string]bool
	suspect map[*wave.Member]bool
	joined  int // servers that joined for a while
}

// New returns a nemesis that has done nothing yet.
func New(c Config) *Nemesis {
	return &Nemesis{Config: c, Counts: make(map[string]int), Restarts: make(map[string]int),
		damaged: make(map[string]bool), suspect: make(map[*wave.Member]bool)}
}

// Run does steps until done is closed or ctx ends, then heals everything. Its error says
// that the cluster did not come back, or that the machine cannot do a fault.
func (n *Nemesis) Run(ctx context.Context, done <-chan struct{}, steps func(yield func(Step) bool)) (err error) {
	defer func() { err = errors.Join(err, n.recover(context.WithoutCancel(ctx))) }()
	second := false // of two at once
	for step := range steps {
		if !second {
			if err := n.Settle(ctx); err != nil {
				return fmt.Errorf("before %v: %w", step, err)
			}
		}
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		default:
		}
		n.Say("%v", step)
		k := kindOf(step.Kind)
		err := k.do(n, ctx, step, rand.New(rand.NewPCG(step.Seed, 2)))
		switch {
		case err == nil:
			n.Counts[step.Kind]++
		case !errors.Is(err, errNothing):
			return fmt.Errorf("%v: %w", step, err)
		}
		if second = step.Overlap; second {
			continue
		}
		if err := pass(ctx, step.Hold); err != nil {
			return err
		}
		if err := n.recover(ctx); err != nil {
			return fmt.Errorf("after %v: %w", step, err)
		}
	}
	return nil
}

// pass lets a fault last. Time is what a fault is made of; nothing is concluded from it.
func pass(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// undo adds what heals a fault; the last fault is healed first.
func (n *Nemesis) undo(f func(ctx context.Context) error) { n.heal = append(n.heal, f) }

// recover heals all faults and starts all servers that have ended.
func (n *Nemesis) recover(ctx context.Context) error {
	var errs []error
	for i := len(n.heal) - 1; i >= 0; i-- {
		errs = append(errs, n.heal[i](ctx))
	}
	n.heal = nil
	for _, m := range n.Cluster.Members() {
		if m.Ended() {
			errs = append(errs, n.start(m))
		}
	}
	return errors.Join(errs...)
}

// Settle waits until all servers are ready and the load is there; servers that end by
// themselves meanwhile are started again, as an init system would.
func (n *Nemesis) Settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, n.Patience, fmt.Errorf("no recovery within %v", n.Patience))
	defer cancel()
	for _, m := range n.Cluster.Members() {
		if err := n.awaitReady(ctx, m); err != nil {
			return err
		}
	}
	for {
		attempt, stop := context.WithTimeout(ctx, 5*time.Second)
		err := n.Load.AwaitLoad(attempt, n.AtLeast)
		stop()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %w", err, context.Cause(ctx))
		}
		for _, m := range n.Cluster.Members() {
			if err := n.awaitReady(ctx, m); err != nil {
				return err
			}
		}
	}
}

// awaitReady waits until a member answers /readyz, and starts it again when it has ended;
// others that end meanwhile as well, since it may need them.
func (n *Nemesis) awaitReady(ctx context.Context, m *wave.Member) error {
	ops := m.Host.Addr.String() + ":" + proc.OpsPort
	for ended := 0; ; {
		process := m.Process()
		attempt, stop := context.WithTimeout(ctx, 10*time.Second)
		err := proc.Await(attempt, m.Name()+" to be ready", func(ctx context.Context) error {
			return proc.Ready(ctx, m.HTTP(), ops)
		}, process)
		stop()
		if err == nil || ctx.Err() != nil {
			return err
		}
		for _, other := range n.Cluster.Members() {
			if other != m && other.Ended() {
				n.ended(other)
				if err := n.start(other); err != nil {
					return err
				}
			}
		}
		if !m.Ended() {
			continue
		}
		n.ended(m)
		ended++
		if ended > 1 && n.suspect[m] {
			delete(n.suspect, m)
			return n.rejoin(ctx, m)
		}
		if ended > 5 {
			return fmt.Errorf("%s ended %d times in a row: %w", m.Name(), ended, err)
		}
		if err := n.start(m); err != nil {
			return err
		}
	}
}

// ended notes why a member ended that nobody killed.
func (n *Nemesis) ended(m *wave.Member) {
	why := fmt.Sprintf("%v: %s", m.Process().Err(), lastWords(m.Process().LogTail(16384)))
	n.Say("%s has ended by itself: %s", m.Name(), why)
	why = numbers.ReplaceAllString(strings.ReplaceAll(why, m.Node.Data, "DATA"), "N")
	n.Restarts[why[:min(len(why), 160)]]++
}

// numbers are left out where ends are counted, so that like comes to like.
var numbers = regexp.MustCompile(`[0-9]{2,}`)

// lastWords returns what a log says about the end: what the program printed without a
// level, such as a panic, else its last error.
func lastWords(log string) string {
	lines := strings.Split(strings.TrimSpace(log), "\n")
	for _, sign := range []string{"shoal:", "Error:", "panic:", "fatal error:", "level=ERROR"} {
		for i := len(lines) - 1; i >= 0; i-- {
			if at := strings.Index(lines[i], sign); at == 0 || at > 0 && sign == "level=ERROR" {
				return lines[i][at:][:min(len(lines[i])-at, 300)]
			}
		}
	}
	last := lines[len(lines)-1]
	return last[:min(len(last), 300)]
}

// start starts a member that has ended.
func (n *Nemesis) start(m *wave.Member) error {
	<-m.Process().Done()
	if m.Node.Token == "" || fileExists(filepath.Join(m.Node.Data, "identity")) {
		m.Again()
	}
	return n.Cluster.Begin(m)
}

func fileExists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// signal sends a signal to a member that may have ended.
func signal(m *wave.Member, s syscall.Signal) error {
	if err := m.Process().Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("%v to %s: %w", s, m.Name(), err)
	}
	return nil
}

// server returns a step's victim.
func (n *Nemesis) server(s Step) *wave.Member {
	return n.Cluster.Servers[s.Victim%len(n.Cluster.Servers)]
}

// others returns the servers beside m.
func (n *Nemesis) others(m *wave.Member) []*wave.Member {
	return wave.Members(n.Cluster.Servers, func(o *wave.Member) bool { return o != m })
}

// leader returns who says that it leads, or the step's victim when nobody does.
func (n *Nemesis) leader(ctx context.Context, s Step) *wave.Member {
	for range 20 {
		for _, m := range n.Cluster.Servers {
			if v, err := metric(ctx, m, "shoal_raft_leading"); err == nil && v == 1 {
				return m
			}
		}
		if pass(ctx, 50*time.Millisecond) != nil {
			break
		}
	}
	return n.server(s)
}

// metric reads a metric without labels.
func metric(ctx context.Context, m *wave.Member, name string) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:"+proc.OpsPort+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	response, err := m.HTTP().Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	lines := bufio.NewScanner(io.LimitReader(response.Body, 4<<20))
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, errors.Join(fmt.Errorf("%s has no metric %s", m.Name(), name), lines.Err())
}

// deafen makes from's packets unheard at to, besides what to is deaf to already.
type deafness map[*netns.Host][]netip.Addr

func (d deafness) add(to, from *wave.Member) { d[to.Host] = append(d[to.Host], from.Host.Addr) }

// partition applies d and undoes it when the fault heals.
func (n *Nemesis) partition(d deafness) error {
	n.undo(func(context.Context) error {
		var errs []error
		for host := range d {
			errs = append(errs, host.Deaf())
		}
		return errors.Join(errs...)
	})
	for host, from := range d {
		if err := host.Deaf(from...); err != nil {
			return err
		}
	}
	return nil
}

// disk returns a server's disk.
func (n *Nemesis) disk(m *wave.Member) (*disk.Disk, error) {
	if d := n.Disks[m]; d != nil {
		return d, nil
	}
	return nil, fmt.Errorf("%s has no disk of its own", m.Name())
}
