// Package local runs a whole cluster in one process on loopback: N regions of
// one server each, and M agents over them in turn.
//
// It is what `shoal dev` and tests of several regions share; the nodes are the
// same as in production (package node), over real sockets. A Cluster keeps its
// ports and keys in its directory, so that it comes back as it was. Open one
// with Open, run it with Run, wait for Ready.
//
// Run owns all goroutines.
package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-registry/shoal/node"
	"github.com/shoal-registry/shoal/node/config"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

const maxRegions = 9

// Options say what to run.
type Options struct {
	Dir     string
	Gateway string // host:port of the first server; port 0 takes free ports
	Regions int    // servers, one a region, named r1, r2 ...; 1 to 9
	Agents  int    // spread over the regions in turn; 0 to 64
	Log     *slog.Logger
	// Configure changes a node's configuration before it starts; nil changes nothing.
	Configure func(*config.Config)
}

// Endpoint is where one node listens, as in dev.json.
type Endpoint struct {
	Region  meta.RegionName `json:"region"`
	Gateway string          `json:"gateway"`
	Ops     string          `json:"ops"`
}

// Description is the content of dev.json.
type Description struct {
	Servers    []Endpoint `json:"servers"`
	Agents     []Endpoint `json:"agents"`
	AdminToken string     `json:"admin_token"`
}

// Cluster is the cluster of one directory.
type Cluster struct {
	opts    Options
	lock    *node.DirLock
	configs []config.Config // servers, then agents
	ready   chan struct{}
	desc    Description

	mu    sync.Mutex
	nodes []*node.Node
	runs  []*running // by node
	run   func(i int, n *node.Node)
}

// running is a node's Run.
type running struct {
	stop  context.CancelFunc
	ended chan struct{} // closed when it has returned err
	err   error
	asked bool // to stop, alone
}

// Open takes the directory, chooses ports that are not yet chosen and writes
// them down. It starts nothing.
func Open(opts Options) (*Cluster, error) {
	if opts.Regions < 1 || opts.Regions > maxRegions {
		return nil, fmt.Errorf("%d regions: a local cluster has 1 to %d: %w", opts.Regions, maxRegions, meta.ErrInvalid)
	}
	if opts.Agents < 0 || opts.Agents > 64 {
		return nil, fmt.Errorf("%d agents: a local cluster has 0 to 64: %w", opts.Agents, meta.ErrInvalid)
	}
	if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := node.LockDir(opts.Dir)
	if err != nil {
		return nil, err
	}
	c := &Cluster{opts: opts, lock: lock, ready: make(chan struct{})}
	if err := c.configure(); err != nil {
		lock.Release()
		return nil, err
	}
	return c, nil
}

// ports is what DIR/ports.json keeps: node name -> its three private ports.
type ports map[string]struct{ Gateway, Swarm, Raft, Ops string }

func (c *Cluster) configure() error {
	host, portText, err := net.SplitHostPort(c.opts.Gateway)
	if err != nil {
		return fmt.Errorf("gateway %q: write HOST:PORT: %w", c.opts.Gateway, err)
	}
	first, err := strconv.Atoi(portText)
	if err != nil {
		return fmt.Errorf("gateway %q: the port is not a number", c.opts.Gateway)
	}
	file := filepath.Join(c.opts.Dir, "ports.json")
	chosen := ports{}
	if raw, err := os.ReadFile(file); err == nil {
		if err := json.Unmarshal(raw, &chosen); err != nil {
			return fmt.Errorf("%s: %w (remove it to choose new ports)", file, err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// The servers of before are the quorum: with fewer nothing would ever be ready.
	servers := 0
	for i := range maxRegions {
		joined, err := node.Joined(filepath.Join(c.opts.Dir, serverName(i)))
		if err != nil {
			return err
		}
		if joined {
			servers = i + 1
		}
	}
	if servers > c.opts.Regions {
		return fmt.Errorf("%s holds a cluster of %d regions, which needs its servers: run it with --regions %d, or choose another --data: %w",
			c.opts.Dir, servers, servers, meta.ErrInvalid)
	}
	var free freePorts
	defer free.release()
	for i := range c.opts.Regions + c.opts.Agents {
		name, role := serverName(i), meta.RoleServer
		if i >= c.opts.Regions {
			name, role = fmt.Sprintf("agent-%d", i-c.opts.Regions+1), meta.RoleAgent
		}
		p, known := chosen[name]
		if !known {
			for _, field := range []*string{&p.Gateway, &p.Swarm, &p.Raft, &p.Ops} {
				if *field, err = free.next(); err != nil {
					return err
				}
			}
			chosen[name] = p
		}
		gatewayPort := p.Gateway
		if first != 0 {
			gatewayPort = strconv.Itoa(first + i)
		}
		cfg, err := config.Defaults(role)
		if err != nil {
			return err
		}
		cfg.Data = filepath.Join(c.opts.Dir, name)
		cfg.Region = c.region(i)
		cfg.Gateway = net.JoinHostPort(host, gatewayPort)
		cfg.Swarm = net.JoinHostPort("127.0.0.1", p.Swarm)
		cfg.Raft = net.JoinHostPort("127.0.0.1", p.Raft)
		cfg.Ops = net.JoinHostPort("127.0.0.1", p.Ops)
		cfg.RaftProfile = "site"
		cfg.Dev = true
		cfg.Bootstrap = i == 0
		if c.opts.Configure != nil {
			c.opts.Configure(&cfg)
		}
		c.configs = append(c.configs, cfg)
		e := Endpoint{cfg.Region, cfg.Gateway, cfg.Ops}
		if role == meta.RoleServer {
			c.desc.Servers = append(c.desc.Servers, e)
		} else {
			c.desc.Agents = append(c.desc.Agents, e)
		}
	}
	raw, err := json.MarshalIndent(chosen, "", "  ")
	if err != nil {
		return err
	}
	return node.WriteFileAtomic(file, raw, 0o600)
}

func serverName(i int) string { return fmt.Sprintf("server-%d", i+1) }

func (c *Cluster) region(i int) meta.RegionName {
	if i >= c.opts.Regions {
		i -= c.opts.Regions
	}
	return meta.RegionName(fmt.Sprintf("r%d", i%c.opts.Regions+1))
}

// freePorts hands out distinct free TCP ports; it keeps them taken until
// released, so that no two are the same. They lie below the range from which the
// kernel takes the ports of outgoing connections, so that they are still free
// when the cluster comes back.
type freePorts []net.Listener

const (
	firstPort = 10_000
	lastPort  = 32_767 // Linux's default range of outgoing connections begins above
)

func (f *freePorts) next() (string, error) {
	var err error
	for range 100 {
		var l net.Listener
		port := strconv.Itoa(firstPort + rand.IntN(lastPort-firstPort+1))
		if l, err = net.Listen("tcp", net.JoinHostPort("127.0.0.1", port)); err == nil {
			*f = append(*f, l)
			return port, nil
		}
	}
	return "", fmt.Errorf("no free port between %d and %d: %w", firstPort, lastPort, err)
}

func (f *freePorts) release() {
	for _, l := range *f {
		l.Close()
	}
}

// Ready is closed when all nodes serve and dev.json is written.
func (c *Cluster) Ready() <-chan struct{} { return c.ready }

// Description returns where everything listens; complete once Ready.
func (c *Cluster) Description() Description { return c.desc }

// Nodes returns the servers, then the agents; complete once Ready. One that was
// stopped stays in its place.
func (c *Cluster) Nodes() []*node.Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.nodes)
}

// Stop stops node i of Nodes alone and waits for its end: the others go on. It is
// called while Run runs, after Ready.
//
// Errors: those of the node's end.
func (c *Cluster) Stop(i int) error {
	c.mu.Lock()
	r := c.runs[i]
	r.asked = true
	c.mu.Unlock()
	r.stop()
	<-r.ended
	return r.err
}

// Start starts node i, which was stopped, from what it left on disk. It returns
// when the node listens; node.Node.Ready says when it serves.
//
// Errors: as node.New.
func (c *Cluster) Start(ctx context.Context, i int) error {
	cfg := c.configs[i]
	n, err := node.New(ctx, cfg, c.opts.Log.With("node", filepath.Base(cfg.Data)))
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(cfg.Data), err)
	}
	c.run(i, n)
	return nil
}

// Run starts the nodes, writes dev.json, and stops all when ctx ends. It may be
// called once.
func (c *Cluster) Run(ctx context.Context) error {
	defer c.lock.Release()
	group, groupCtx := errgroup.WithContext(ctx)
	// Agents stop first, servers last and together: what is leaned on goes last.
	servers, stopServers := context.WithCancel(context.WithoutCancel(groupCtx))
	defer stopServers()
	agents, stopAgents := context.WithCancel(groupCtx)
	defer stopAgents()

	started := make(chan struct{})
	var agentGroup errgroup.Group
	c.run = func(i int, n *node.Node) {
		parent, in := servers, group.Go
		if n.Role() == meta.RoleAgent {
			parent, in = agents, agentGroup.Go
		}
		ctx, cancel := context.WithCancel(parent)
		r := &running{stop: cancel, ended: make(chan struct{})}
		c.mu.Lock()
		if i == len(c.nodes) {
			c.nodes, c.runs = append(c.nodes, nil), append(c.runs, nil)
		}
		c.nodes[i], c.runs[i] = n, r
		c.mu.Unlock()
		in(func() error {
			defer cancel()
			r.err = n.Run(ctx)
			c.mu.Lock()
			alone := r.asked
			c.mu.Unlock()
			close(r.ended)
			if alone {
				return nil // Stop returns it
			}
			if n.Role() == meta.RoleAgent {
				stopAgents()
			}
			return r.err
		})
	}
	group.Go(func() error {
		defer close(started)
		return c.start(groupCtx)
	})
	group.Go(func() error {
		<-groupCtx.Done()
		<-started
		err := agentGroup.Wait()
		stopServers()
		return err
	})
	return group.Wait()
}

// start makes the nodes one after another, so that each can join through the
// first; nodes that have joined before need no one.
func (c *Cluster) start(ctx context.Context) error {
	for i := range c.configs {
		cfg := c.configs[i]
		joined, err := node.Joined(cfg.Data)
		if err != nil {
			return err
		}
		if !joined && !cfg.Bootstrap {
			first := c.nodes[0]
			if err := waitReady(ctx, first); err != nil {
				return err
			}
			token, err := first.JoinToken(ctx, meta.JoinToken{
				Role: cfg.Role, Region: cfg.Region, Uses: 1, Read: []string{"*"},
				Expires: meta.TimeOf(time.Now().Add(10 * time.Minute)),
			})
			if err != nil {
				return fmt.Errorf("make a join token: %w", err)
			}
			cfg.Join, cfg.Token = "https://"+first.Gateway(), config.Secret(token)
		}
		n, err := node.New(ctx, cfg, c.opts.Log.With("node", filepath.Base(cfg.Data)))
		if err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(cfg.Data), err)
		}
		c.run(i, n)
	}
	for _, n := range c.nodes {
		if err := waitReady(ctx, n); err != nil {
			return err
		}
	}
	token, err := os.ReadFile(filepath.Join(c.configs[0].Data, node.AdminTokenFile))
	if err != nil {
		return err
	}
	c.desc.AdminToken = string(token)
	raw, err := json.MarshalIndent(c.desc, "", "  ")
	if err != nil {
		return err
	}
	// The token lets everything: the files are for their owner alone. The description
	// comes last, as scripts wait for it.
	if err := node.WriteFileAtomic(filepath.Join(c.opts.Dir, node.AdminTokenFile), token, 0o600); err != nil {
		return err
	}
	if err := node.WriteFileAtomic(filepath.Join(c.opts.Dir, "dev.json"), append(raw, '\n'), 0o600); err != nil {
		return err
	}
	close(c.ready)
	return nil
}

func waitReady(ctx context.Context, n *node.Node) error {
	select {
	case <-n.Ready():
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
