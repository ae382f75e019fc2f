package wave

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/lab/netns"
	"github.com/shoal-registry/shoal/deploy/proc"
)

// Repository is where the image goes.
const Repository = "lab/wave"

const localGateway = "http://127.0.0.1:" + proc.GatewayPort

// Member is one node: a process on a host of its own.
type Member struct {
	Role   string // server or agent
	Region string
	Zone   string
	Host   *netns.Host
	Node   proc.Node // how it was started

	mu      sync.Mutex
	process *proc.Process
	http    *http.Client
}

// Name returns e.g. `agent r1-3`.
func (m *Member) Name() string { return m.Host.Name }

// Process returns the running process; after Restart another one.
func (m *Member) Process() *proc.Process {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.process
}

// Ended reports whether the member's process has ended, or never ran.
func (m *Member) Ended() bool {
	process := m.Process()
	if process == nil {
		return true
	}
	select {
	case <-process.Done():
		return true
	default:
		return false
	}
}

// HTTP returns a client that connects from inside the member's host; it never uses
// the member's link for the member's own gateway.
func (m *Member) HTTP() *http.Client { return m.http }

// Cluster is a running lab.
type Cluster struct {
	Servers    []*Member // by region; the first is the origin
	Agents     []*Member
	AdminToken string

	plan    Plan
	network *netns.Network
	tokens  map[string]string // region -> join token of its agents
}

// Start builds the hosts, bootstraps region r1, joins further servers and then the
// agents, and creates the repository. All nodes are ready when it returns.
//
// On an error everything it began is gone again.
func Start(ctx context.Context, plan Plan) (_ *Cluster, err error) {
	if err := plan.Check(); err != nil {
		return nil, err
	}
	network, err := netns.New(plan.RTT)
	if err != nil {
		return nil, err
	}
	c := &Cluster{plan: plan, network: network}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	for region := 1; region <= plan.Regions; region++ {
		for number := 1; number <= plan.Servers; number++ {
			if err := c.addServer(ctx, region, number); err != nil {
				return nil, err
			}
		}
	}
	tenant, _, _ := strings.Cut(Repository, "/")
	if _, err := c.Shoal(ctx, "tenant", "create", tenant); err != nil {
		return nil, err
	}
	if _, err := c.Shoal(ctx, "repo", "create", Repository, "--format", "oci", "--class", plan.Class, "--home", "r1"); err != nil {
		return nil, err
	}
	if err := c.addAgents(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// Origin returns region r1's server.
func (c *Cluster) Origin() *Member { return c.Servers[0] }

// Plan returns what the cluster was built from, with defaults filled in.
func (c *Cluster) Plan() Plan { return c.plan }

// ServersOf returns a region's servers.
func (c *Cluster) ServersOf(region string) []*Member {
	return Members(c.Servers, func(m *Member) bool { return m.Region == region })
}

// Members returns servers, then agents.
func (c *Cluster) Members() []*Member {
	return append(append([]*Member(nil), c.Servers...), c.Agents...)
}

// Shoal runs a client verb against the origin as administrator, on the origin's host.
func (c *Cluster) Shoal(ctx context.Context, args ...string) (string, error) {
	return c.ShoalOn(ctx, c.Origin(), args...)
}

// ShoalOn runs a client verb against a member as administrator, on the member's host.
func (c *Cluster) ShoalOn(ctx context.Context, m *Member, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	env := []string{"SHOAL_SERVER=" + localGateway, "SHOAL_TOKEN=" + c.AdminToken, "HOME=" + c.plan.Dir}
	return proc.Run(ctx, m.Host.Enter, c.plan.Bin, env, args...)
}

// JoinToken asks the origin for a token that lets uses nodes of a region in.
func (c *Cluster) JoinToken(ctx context.Context, role, region string, uses int) (string, error) {
	args := []string{"token", "join", "--role", role, "--region", region, "--uses", fmt.Sprint(uses), "--ttl", "30m"}
	if role == "agent" {
		args = append(args, "--read", "lab/*")
	}
	out, err := c.Shoal(ctx, args...)
	if err != nil {
		return "", err
	}
	return FindToken(out)
}

// FindToken returns the join token in what `shoal token join` printed.
func FindToken(output string) (string, error) {
	for _, word := range strings.FieldsFunc(output, func(r rune) bool { return strings.ContainsRune(" \t\n\"'", r) }) {
		if strings.HasPrefix(word, "shoal1.") {
			return word, nil
		}
	}
	return "", fmt.Errorf("no join token in %q", output)
}

func (c *Cluster) addServer(ctx context.Context, group, number int) error {
	name := fmt.Sprintf("server r%d", group)
	if number > 1 {
		name = fmt.Sprintf("%s-%d", name, number)
	}
	_, err := c.AddServer(ctx, group, name)
	return err
}

// AddServer starts one more server in a region and returns it when it is ready. The
// first one of the cluster bootstraps it, all others join at the first.
func (c *Cluster) AddServer(ctx context.Context, group int, name string) (*Member, error) {
	region := fmt.Sprintf("r%d", group)
	m, err := c.member("server", name, region, netns.Place{Group: group})
	if err != nil {
		return nil, err
	}
	m.Node.Region = region
	m.Node.Extra = c.plan.ServerArgs
	if len(c.Servers) == 0 {
		m.Node.Bootstrap = true
	} else if err := c.Rejoin(ctx, m); err != nil {
		return nil, err
	}
	c.Servers = append(c.Servers, m)
	c.plan.Say("starting %s at %s", m.Name(), m.Host.Addr)
	if err := c.launch(ctx, m); err != nil {
		return nil, err
	}
	if m.Node.Bootstrap {
		c.AdminToken, err = proc.AdminToken(m.Node.Data)
	}
	return m, err
}

// Rejoin lets a server whose folder is empty join the cluster when it starts next, with
// a new token and at a server that answers.
func (c *Cluster) Rejoin(ctx context.Context, m *Member) error {
	var errs []error
	for _, at := range c.Servers {
		if at == m || at.Ended() {
			continue
		}
		out, err := c.ShoalOn(ctx, at, "token", "join", "--role", "server", "--region", m.Region, "--ttl", "30m")
		if err == nil {
			m.Node.Bootstrap, m.Node.Join = false, c.joinURL(at)
			m.Node.Token, err = FindToken(out)
			return err
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("no server gives a token to %s: %w", m.Name(), errors.Join(errs...))
}

// Drop lets go of a server, which is killed, and of its folder. Its host stays.
func (c *Cluster) Drop(m *Member) error {
	m.http.CloseIdleConnections()
	if process := m.Process(); process != nil {
		process.Kill()
	}
	c.Servers = Members(c.Servers, func(other *Member) bool { return other != m })
	return errors.Join(os.RemoveAll(m.Node.Data), os.Remove(m.Node.Data+".log"))
}

func (c *Cluster) addAgents(ctx context.Context) error {
	regions := c.plan.Regions - c.plan.First + 1 // that have agents
	for i := range c.plan.Hosts {
		if _, err := c.addAgent(ctx, c.plan.First+i%regions, i/regions+1); err != nil {
			return err
		}
	}
	if len(c.Agents) > 0 {
		c.plan.Say("starting %d agents", len(c.Agents))
	}
	return each(c.Agents, 4, func(m *Member) error { return c.launch(ctx, m) })
}

// AddAgent starts one more agent in a region, by its number from 1, and returns it when
// it is ready.
func (c *Cluster) AddAgent(ctx context.Context, region int) (*Member, error) {
	number := 1
	for _, m := range c.Agents {
		if m.Host.Place.Group == region {
			number++
		}
	}
	m, err := c.addAgent(ctx, region, number)
	if err != nil {
		return nil, err
	}
	return m, c.launch(ctx, m)
}

// addAgent makes the host of an agent, which is then part of the cluster.
func (c *Cluster) addAgent(ctx context.Context, group, number int) (*Member, error) {
	region := fmt.Sprintf("r%d", group)
	if c.tokens == nil {
		c.tokens = make(map[string]string)
	}
	if c.tokens[region] == "" {
		token, err := c.JoinToken(ctx, "agent", region, 512)
		if err != nil {
			return nil, err
		}
		c.tokens[region] = token
	}
	zone := (number-1)%c.plan.Zones + 1
	place := netns.Place{Group: group}
	if c.plan.Zones > 1 {
		place.Zone = zone
	}
	m, err := c.member("agent", fmt.Sprintf("agent %s-%d", region, number), region, place)
	if err != nil {
		return nil, err
	}
	m.Zone = fmt.Sprintf("z%d", zone)
	m.Node.Zone = m.Zone
	m.Node.Token, m.Node.Join = c.tokens[region], c.joinURL(c.ServersOf(region)[0])
	m.Node.Extra = c.plan.AgentArgs
	c.Agents = append(c.Agents, m)
	return m, nil
}

func (c *Cluster) joinURL(server *Member) string {
	return fmt.Sprintf("https://%s:%s", server.Host.Addr, proc.GatewayPort)
}

// member makes a host and says how its node will be started.
func (c *Cluster) member(role, name, region string, place netns.Place) (*Member, error) {
	rate := c.plan.Rate
	if role == "server" {
		rate = c.plan.ServerRate
	}
	host, err := c.network.Host(name, place, netns.Link{UpBitsPerSec: rate, DownBitsPerSec: rate})
	if err != nil {
		return nil, err
	}
	data := filepath.Join(c.plan.Dir, strings.ReplaceAll(name, " ", "-"))
	if err := os.MkdirAll(data, 0o700); err != nil {
		return nil, err
	}
	return &Member{Role: role, Region: region, Host: host,
		Node: proc.Node{Role: role, Data: data, Host: host.Addr.String(), Everywhere: true},
		http: &http.Client{Transport: &http.Transport{
			DialContext:        host.DialContext,
			DisableCompression: true,
			// The namespace is the identity here; certificates have their own tests.
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		}},
	}, nil
}

// launch starts a member's process and waits until it says that it is ready.
func (c *Cluster) launch(ctx context.Context, m *Member) error {
	if err := c.Begin(m); err != nil {
		return err
	}
	return c.AwaitReady(ctx, m)
}

// Begin starts a member's process as its Node says and returns at once.
func (c *Cluster) Begin(m *Member) error {
	process, err := proc.Start(proc.Spec{
		Name: m.Name(), Path: c.plan.Bin, Args: m.Node.Args(), Enter: m.Host.Enter,
		Log: m.Node.Data + ".log", Env: []string{"HOME=" + c.plan.Dir},
	})
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.process = process
	m.mu.Unlock()
	return nil
}

// AwaitReady waits until the member answers /readyz.
func (c *Cluster) AwaitReady(ctx context.Context, m *Member) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	ops := m.Host.Addr.String() + ":" + proc.OpsPort
	process := m.Process()
	err := proc.Await(ctx, m.Name()+" to be ready",
		func(ctx context.Context) error { return proc.Ready(ctx, m.http, ops) }, process)
	if err != nil {
		return fmt.Errorf("%w\nlog: %s", err, process.LogTail(4096))
	}
	return nil
}

// Restart starts a member again, whose process has ended, as it was started first
// but for what only a first start needs.
func (c *Cluster) Restart(ctx context.Context, m *Member) error {
	<-m.Process().Done()
	m.Again()
	return c.launch(ctx, m)
}

// Again makes a member start as one that has started before: what only a first start
// needs is gone.
func (m *Member) Again() {
	m.http.CloseIdleConnections()
	m.Node.Bootstrap, m.Node.Join, m.Node.Token = false, "", ""
}

// Registry returns a client of the member's own gateway, on its loopback. token is
// sent when not empty; an agent's loopback needs none.
func (c *Cluster) Registry(m *Member, token string) *image.Client {
	return &image.Client{Base: localGateway, HTTP: m.http, Token: token}
}

// Close kills every process, lets the namespaces go and removes the nodes' folders.
func (c *Cluster) Close() error {
	for _, m := range c.Members() {
		m.http.CloseIdleConnections()
		if process := m.Process(); process != nil {
			process.Kill()
		}
	}
	var errs []error
	for _, m := range c.Members() {
		errs = append(errs, os.RemoveAll(m.Node.Data), os.Remove(m.Node.Data+".log"))
	}
	for i, err := range errs {
		if errors.Is(err, os.ErrNotExist) {
			errs[i] = nil
		}
	}
	return errors.Join(append(errs, c.network.Close())...)
}

// each runs f on all members, at most width at a time, and returns all errors.
func each(members []*Member, width int, f func(*Member) error) error {
	errs := make([]error, len(members))
	slots := make(chan struct{}, width)
	var running sync.WaitGroup
	for i, m := range members {
		slots <- struct{}{}
		running.Add(1)
		go func() {
			defer running.Done()
			defer func() { <-slots }()
			errs[i] = f(m)
		}()
	}
	running.Wait()
	return errors.Join(errs...)
}
