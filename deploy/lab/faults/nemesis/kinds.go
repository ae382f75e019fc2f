package nemesis

import (
	"context"
	"errors"
	"math/rand/v2"
	"syscall"
	"time"

	"github.com/shoal-registry/shoal/deploy/lab/netns"
	"github.com/shoal-registry/shoal/deploy/lab/wave"
)

// kind is a sort of fault.
type kind struct {
	name              string
	what              string
	group             string // in the totals: kill, pause, partition, or what else
	weight            int    // how often, of the sum of all
	shortest, longest time.Duration
	pairs             bool // may last while another comes
	// do begins the fault; n.undo says how it heals. Processes that it killed are started
	// again by Run.
	do func(n *Nemesis, ctx context.Context, s Step, rng *rand.Rand) error
}

// kinds is the table of all faults.
var kinds = []kind{
	{"kill", "kill -9 of a server", "kill", 14, 200 * time.Millisecond, 3 * time.Second, true, kill},
	{"kill-leader", "kill -9 of the leader", "kill", 14, 200 * time.Millisecond, 3 * time.Second, true, killLeader},
	{"kill-all", "kill -9 of all servers at once", "kill", 4, 0, time.Second, false, killAll},
	{"pause", "SIGSTOP of a server, then SIGCONT", "pause", 12, time.Second, 4 * time.Second, true, pause},
	{"pause-leader", "the same with the leader, long enough for another one", "pause", 14, 2 * time.Second, 5 * time.Second, true, pauseLeader},
	{"pause-all", "the same with all servers", "pause", 2, 500 * time.Millisecond, 3 * time.Second, false, pauseAll},
	{"isolate", "a server and the others do not hear each other", "partition", 7, 2 * time.Second, 6 * time.Second, true, isolate},
	{"isolate-leader", "the same with the leader", "partition", 7, 2 * time.Second, 6 * time.Second, false, isolateLeader},
	{"deaf", "a server does not hear the others, they hear it", "partition", 4, 2 * time.Second, 6 * time.Second, false, deaf},
	{"mute", "a server hears the others, they do not hear it", "partition", 4, 2 * time.Second, 6 * time.Second, false, mute},
	{"bridge", "two servers do not hear each other, a third hears both", "partition", 5, 2 * time.Second, 6 * time.Second, true, bridge},
	{"shatter", "no server hears any other", "partition", 2, time.Second, 4 * time.Second, false, shatter},
	{"slow", "the link of a server has 256 kbit/s, each way", "slow link", 3, 2 * time.Second, 6 * time.Second, true, slow},
	{"freeze", "writes to a server's disk hang (fsfreeze)", "disk", 4, time.Second, 8 * time.Second, false, freeze},
	{"full", "a server's disk is full", "disk", 3, 2 * time.Second, 5 * time.Second, false, full},
	{"power", "a server loses its power: what was not synced is gone", "power", 4, 0, 2 * time.Second, false, power},
	{"power-all", "the same with all servers at once", "power", 3, 0, time.Second, false, powerAll},
	{"churn", "the leader ends and comes back, three times in a row", "leader churn", 2, 0, time.Second, false, churn},
	{"flip-blobs", "a byte in each of twelve stored blobs changes under a running server", "byte flip", 5, 0, time.Second, false, flipBlobs},
	{"flip-log", "a byte of a killed server's log changes", "byte flip", 2, 0, time.Second, false, flipLog},
	{"flip-state", "a byte of a killed server's state changes", "byte flip", 2, 0, time.Second, false, flipState},
	{"flip-snapshot", "a byte of a killed server's snapshots changes", "byte flip", 1, 0, time.Second, false, flipSnapshot},
	{"membership", "a server joins and leaves again", "membership", 2, 2 * time.Second, 5 * time.Second, false, membership},
	{"collect", "garbage is collected at once, without the grace that deleted versions have", "collection", 2, 0, time.Second, false, collect},
	{"rolling", "all servers are restarted in turn, with SIGTERM", "rolling restart", 2, 0, time.Second, false, rolling},
}

func kindOf(name string) kind {
	for _, k := range kinds {
		if k.name == name {
			return k
		}
	}
	panic("no fault " + name) // Steps takes none but these
}

// Groups returns the counts by group: kills, pauses, partitions and so on.
func (n *Nemesis) Groups() map[string]int {
	groups := make(map[string]int)
	for _, k := range kinds {
		if c := n.Counts[k.name]; c > 0 {
			groups[k.group] += c
		}
	}
	return groups
}

func killNow(m *wave.Member) error {
	if err := signal(m, syscall.SIGKILL); err != nil {
		return err
	}
	<-m.Process().Done()
	return nil
}

func kill(n *Nemesis, _ context.Context, s Step, _ *rand.Rand) error { return killNow(n.server(s)) }

func killLeader(n *Nemesis, ctx context.Context, s Step, _ *rand.Rand) error {
	return killNow(n.leader(ctx, s))
}

func killAll(n *Nemesis, _ context.Context, _ Step, _ *rand.Rand) error {
	var errs []error
	for _, m := range n.Cluster.Servers {
		errs = append(errs, signal(m, syscall.SIGKILL))
	}
	for _, m := range n.Cluster.Servers {
		<-m.Process().Done()
	}
	return errors.Join(errs...)
}

func (n *Nemesis) stop(members ...*wave.Member) error {
	n.undo(func(context.Context) error {
		var errs []error
		for _, m := range members {
			errs = append(errs, signal(m, syscall.SIGCONT))
		}
		return errors.Join(errs...)
	})
	for _, m := range members {
		if err := signal(m, syscall.SIGSTOP); err != nil {
			return err
		}
	}
	return nil
}

func pause(n *Nemesis, _ context.Context, s Step, _ *rand.Rand) error { return n.stop(n.server(s)) }

func pauseLeader(n *Nemesis, ctx context.Context, s Step, _ *rand.Rand) error {
	return n.stop(n.leader(ctx, s))
}

func pauseAll(n *Nemesis, _ context.Context, _ Step, _ *rand.Rand) error {
	return n.stop(n.Cluster.Servers...)
}

func (n *Nemesis) isolate(m *wave.Member) error {
	d := make(deafness)
	for _, other := range n.others(m) {
		d.add(m, other)
		d.add(other, m)
	}
	return n.partition(d)
}

func isolate(n *Nemesis, _ context.Context, s Step, _ *rand.Rand) error {
	return n.isolate(n.server(s))
}

func isolateLeader(n *Nemesis, ctx context.Context, s Step, _ *rand.Rand) error {
	return n.isolate(n.leader(ctx, s))
}

func deaf(n *Nemesis, ctx context.Context, s Step, rng *rand.Rand) error {
	m := n.server(s)
	if rng.IntN(2) == 0 {
		m = n.leader(ctx, s)
	}
	d := make(deafness)
	for _, other := range n.others(m) {
		d.add(m, other)
	}
	return n.partition(d)
}

func mute(n *Nemesis, ctx context.Context, s Step, rng *rand.Rand) error {
	m := n.server(s)
	if rng.IntN(2) == 0 {
		m = n.leader(ctx, s)
	}
	d := make(deafness)
	for _, other := range n.others(m) {
		d.add(other, m)
	}
	return n.partition(d)
}

// bridge splits the servers into two halves that hear each other through one server only.
func bridge(n *Nemesis, _ context.Context, s Step, rng *rand.Rand) error {
	middle := n.server(s)
	rest := n.others(middle)
	rng.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
	d := make(deafness)
	for i, a := range rest[:len(rest)/2] {
		for _, b := range rest[len(rest)/2:] {
			d.add(a, b)
			d.add(b, rest[i])
		}
	}
	return n.partition(d)
}

func shatter(n *Nemesis, _ context.Context, _ Step, _ *rand.Rand) error {
	d := make(deafness)
	for _, a := range n.Cluster.Servers {
		for _, b := range n.others(a) {
			d.add(a, b)
		}
	}
	return n.partition(d)
}

func slow(n *Nemesis, _ context.Context, s Step, _ *rand.Rand) error {
	m := n.server(s)
	n.undo(func(context.Context) error { return m.Host.Reshape(netns.Link{}) })
	return m.Host.Reshape(netns.Link{UpBitsPerSec: 256_000, DownBitsPerSec: 256_000})
}

func freeze(n *Nemesis, _ context.Context, s Step, _ *rand.Rand) error {
	d, err := n.disk(n.server(s))
	if err != nil {
		return err
	}
	n.undo(func(context.Context) error { return d.Thaw() })
	return d.Freeze()
}

func full(n *Nemesis, _ context.Context, s Step, rng *rand.Rand) error {
	d, err := n.disk(n.server(s))
	if err != nil {
		return err
	}
	n.undo(func(context.Context) error { return d.Empty() })
	return d.Fill(rng.Int64N(1 << 20))
}

// cut takes the power from servers: none of them does anything more, then their disks
// forget what was not synced.
func (n *Nemesis) cut(members ...*wave.Member) error {
	for _, m := range members {
		if err := signal(m, syscall.SIGSTOP); err != nil {
			return err
		}
	}
	for _, m := range members {
		d, err := n.disk(m)
		if err != nil {
			return err
		}
		if err := d.PowerCut(); err != nil {
			return err
		}
	}
	for _, m := range members {
		if err := killNow(m); err != nil {
			return err
		}
		d, err := n.disk(m)
		if err != nil {
			return err
		}
		if err := d.Replug(); err != nil {
			return err
		}
	}
	return nil
}

func power(n *Nemesis, ctx context.Context, s Step, rng *rand.Rand) error {
	m := n.server(s)
	if rng.IntN(2) == 0 {
		m = n.leader(ctx, s)
	}
	return n.cut(m)
}

func powerAll(n *Nemesis, _ context.Context, _ Step, _ *rand.Rand) error {
	return n.cut(n.Cluster.Servers...)
}

// collect has the cluster delete everything that no version uses any more.
func collect(n *Nemesis, ctx context.Context, s Step, _ *rand.Rand) error {
	if _, err := n.Cluster.ShoalOn(ctx, n.server(s), "gc", "run", "--grace", "0s", "--force", "--strays"); err != nil {
		n.Say("%v", err) // it may come with another fault, and find no quorum
		return errNothing
	}
	return nil
}

// churn ends the leader gracefully and brings it back, three leaders in a row.
func churn(n *Nemesis, ctx context.Context, s Step, _ *rand.Rand) error {
	for range 3 {
		if err := n.restart(ctx, n.leader(ctx, s)); err != nil {
			return err
		}
	}
	return nil
}

func rolling(n *Nemesis, ctx context.Context, _ Step, _ *rand.Rand) error {
	for _, m := range n.Cluster.Servers {
		if err := n.restart(ctx, m); err != nil {
			return err
		}
	}
	return nil
}

// restart ends a server as an operator does, and waits until it is back.
func (n *Nemesis) restart(ctx context.Context, m *wave.Member) error {
	if err := m.Process().Stop(time.Minute); err != nil {
		n.Say("%v", err) // the table of ends by themselves is for those that nobody asked to
	}
	if err := n.start(m); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, n.Patience)
	defer cancel()
	return n.awaitReady(ctx, m)
}
