// Command noisy shows what a tenant at ten times its rate does to another one: it starts
// a server and an agent, real processes, lets two tenants publish and pull at once, and
// prints how long the quiet one's calls take while the noisy one stays within its rate
// and while it offers ten times as much.
//
//	go run ./deploy/noisy --bin bin/shoal
//	go run ./deploy/noisy --bin bin/shoal --unlimited     nothing is limited: fair shares alone
//
// The two take turns, some seconds each, several times, so that what else the machine
// does hits both alike; the figures are of all turns together. The noisy clients are a
// process of their own (load.go) with a lower priority, for in earnest they are not on the
// server's machine. The load of the machine is printed with the figures.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/shoal-registry/shoal/deploy/proc"
)

type options struct {
	bin, data string
	turns     int
	turn      time.Duration
	unlimited bool
	times     float64
	base      rates
}

func main() {
	var o options
	var spec string
	flag.StringVar(&o.bin, "bin", "bin/shoal", "the binary")
	flag.StringVar(&o.data, "data", "", "where the data is made; empty is a temporary folder")
	flag.IntVar(&o.turns, "turns", 8, "how often the two take turns")
	flag.DurationVar(&o.turn, "turn", 6*time.Second, "how long a turn is")
	flag.Float64Var(&o.times, "times", 10, "how many times its rate the noisy tenant offers")
	flag.BoolVar(&o.unlimited, "unlimited", false, "set no limits: only the node's fair shares are between the two")
	flag.StringVar(&spec, "generate", "", "for the process of the noisy clients: what to do")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var err error
	if spec != "" {
		err = generate(ctx, spec)
	} else {
		o.base = rates{Publishes: 10, Pulls: 25}
		var before, during *figures
		var calm, loud counts
		before, during, calm, loud, err = run(ctx, o)
		print(o, before, during, calm, loud)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "noisy:", err)
		os.Exit(1)
	}
}

// cluster is a server and an agent.
type cluster struct {
	server, agent string // URLs
	token         string
	processes     []*proc.Process
}

func (c *cluster) stop() {
	for _, p := range c.processes {
		p.Kill()
	}
}

func start(ctx context.Context, o options) (*cluster, error) {
	c := &cluster{}
	launch := func(n proc.Node) (string, error) {
		n.Extra = []string{"--plain"}
		p, err := proc.Start(proc.Spec{Name: n.Role, Path: o.bin, Args: n.Args(), Log: n.Data + ".log"})
		if err != nil {
			return "", err
		}
		c.processes = append(c.processes, p)
		err = proc.Await(ctx, "the "+n.Role+" to be ready", func(ctx context.Context) error {
			return proc.Ready(ctx, http.DefaultClient, n.Host+":"+proc.OpsPort)
		}, p)
		if err != nil {
			return "", fmt.Errorf("%w\n%s", err, p.LogTail(2000))
		}
		return n.Host + ":" + proc.GatewayPort, nil
	}
	server := proc.Node{Role: "server", Region: "eu", Data: filepath.Join(o.data, "server"), Host: proc.LoopbackHost(), Bootstrap: true}
	at, err := launch(server)
	if err != nil {
		return c, err
	}
	c.server = "http://" + at
	if c.token, err = proc.AdminToken(server.Data); err != nil {
		return c, err
	}
	join, err := c.verb(ctx, o, "token", "join", "--role", "agent", "--region", "eu")
	if err != nil {
		return c, err
	}
	agent, err := launch(proc.Node{Role: "agent", Data: filepath.Join(o.data, "agent"), Host: proc.LoopbackHost(), Join: "https://" + at, Token: strings.TrimSpace(join)})
	c.agent = "http://" + agent
	return c, err
}

// verb runs a verb of the client.
func (c *cluster) verb(ctx context.Context, o options, args ...string) (string, error) {
	return proc.Run(ctx, nil, o.bin, []string{"SHOAL_SERVER=" + c.server, "SHOAL_TOKEN=" + c.token}, args...)
}

// run takes the turns. An error says that a call of the quiet tenant failed, or that
// nothing could be measured.
func run(ctx context.Context, o options) (before, during *figures, calm, loud counts, err error) {
	before, during = newFigures(), newFigures()
	err = o.measure(ctx, before, during, &calm, &loud)
	if err == nil && before.failed+during.failed > 0 {
		err = fmt.Errorf("%d calls of the quiet tenant failed: %w", before.failed+during.failed, errors.Join(before.err, during.err))
	}
	return before, during, calm, loud, err
}

func (o options) measure(ctx context.Context, before, during *figures, calm, loud *counts) (err error) {
	if o.data == "" {
		if o.data, err = os.MkdirTemp("", "shoal-noisy-"); err != nil {
			return err
		}
		defer os.RemoveAll(o.data)
	}
	c, err := start(ctx, o)
	defer c.stop()
	if err != nil {
		return err
	}
	for _, tenant := range []string{"quiet", "noisy"} {
		if _, err := c.verb(ctx, o, "tenant", "create", tenant); err != nil {
			return err
		}
		if _, err := c.verb(ctx, o, "repo", "create", tenant+"/files", "--format", "generic"); err != nil {
			return err
		}
		if o.unlimited || tenant == "quiet" {
			continue
		}
		// The limits are a tenth above the rate, so that it is not refused while it keeps to it.
		limit := func(perSec float64) int64 { return int64(math.Ceil(perSec * 1.1)) }
		if _, err := c.verb(ctx, o, "tenant", "set", tenant,
			"--publish-requests", fmt.Sprint(limit(o.base.Publishes)), "--publish-rate", fmt.Sprint(limit(o.base.Publishes)*publishBytes),
			"--download-requests", fmt.Sprint(limit(2*o.base.Pulls)), "--download-rate", fmt.Sprint(limit(2*o.base.Pulls)*pullBytes)); err != nil {
			return err
		}
	}
	for _, tenant := range []string{"quiet", "noisy"} {
		if err := c.client(tenant).prepare(ctx); err != nil {
			return err
		}
	}
	fmt.Printf("%d turns of %v each; load average at the start %s\n", o.turns, o.turn, loadAverage())
	for range o.turns {
		for _, t := range []struct {
			times  float64
			into   *figures
			counts *counts
		}{{1, before, calm}, {o.times, during, loud}} {
			n, err := c.turnOf(ctx, o, t.times, t.into)
			if err != nil {
				return err
			}
			t.counts.add(n)
		}
	}
	return nil
}

// turnOf lets both tenants work for one turn. The first second does not count.
func (c *cluster) turnOf(ctx context.Context, o options, times float64, into *figures) (counts, error) {
	spec, err := json.Marshal(order{Client: c.client("noisy"), Rates: rates{o.base.Publishes * times, o.base.Pulls * times}, For: o.turn})
	if err != nil {
		return counts{}, err
	}
	self, err := os.Executable()
	if err != nil {
		return counts{}, err
	}
	noisy := exec.CommandContext(ctx, "nice", "-n", "10", self, "--generate", string(spec)) // a test has it too, see TestMain
	var out bytes.Buffer
	noisy.Stdout, noisy.Stderr = &out, os.Stderr
	if err := noisy.Start(); err != nil {
		return counts{}, err
	}
	c.client("quiet").work(ctx, o.base, o.turn, time.Second, into.add)
	if err := noisy.Wait(); err != nil {
		return counts{}, fmt.Errorf("the noisy clients: %w", err)
	}
	var n counts
	return n, json.Unmarshal(out.Bytes(), &n)
}

func (c *cluster) client(tenant string) client {
	return client{Server: c.server, Agent: c.agent, Token: c.token, Tenant: tenant}
}

// figures are the latencies of the quiet tenant by kind of call.
type figures struct {
	took   map[string][]time.Duration
	failed int
	err    error
}

func newFigures() *figures { return &figures{took: map[string][]time.Duration{}} }

func (f *figures) add(r result) {
	if r.err != nil || r.status != http.StatusOK && r.status != http.StatusCreated {
		f.failed++
		if f.err == nil {
			f.err = fmt.Errorf("%s: status %d: %w", r.kind, r.status, r.err)
		}
		return
	}
	f.took[r.kind] = append(f.took[r.kind], r.took)
}

func (f *figures) at(kind string, part float64) time.Duration {
	took := slices.Sorted(slices.Values(f.took[kind]))
	if len(took) == 0 {
		return 0
	}
	return took[min(len(took)-1, int(float64(len(took))*part))]
}

func print(o options, before, during *figures, calm, loud counts) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	how := "its rate limited"
	if o.unlimited {
		how = "without limits"
	}
	fmt.Fprintf(w, "the quiet tenant\tcalls\tp50 before\tp50 during\tp99 before\tp99 during\tp99 moves by\t\n")
	for _, kind := range kindsOfCalls {
		a, b := before.at(kind, .99), during.at(kind, .99)
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\t%+.0f %%\t\n", kind, len(before.took[kind])+len(during.took[kind]),
			before.at(kind, .5).Round(10*time.Microsecond), during.at(kind, .5).Round(10*time.Microsecond),
			a.Round(10*time.Microsecond), b.Round(10*time.Microsecond), (float64(b)/float64(max(a, 1))-1)*100)
	}
	w.Flush()
	seconds := float64(o.turns) * o.turn.Seconds()
	for _, n := range []struct {
		when   string
		times  float64
		counts counts
	}{{"before", 1, calm}, {"during", o.times, loud}} {
		fmt.Printf("the noisy tenant %s, %s: offered %.0f calls/s (%.0fx), %.0f/s served, %.0f/s refused with 429, %.0f/s failed, %.0f/s given up by its clients\n",
			n.when, how, (o.base.Publishes+2*o.base.Pulls)*n.times, n.times, float64(n.counts.Served)/seconds, float64(n.counts.Refused)/seconds,
			float64(n.counts.Failed)/seconds, float64(n.counts.Dropped)/seconds)
	}
	fmt.Printf("load average %s\n", loadAverage())
}

func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(text))[:3], " ")
}
