package e2e

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/lab/wave"
	"github.com/shoal-registry/shoal/deploy/proc"
)

// cluster is some `shoal server` and `shoal agent` processes, each on a loopback
// address of its own, so that no root is needed.
type cluster struct {
	dir     string
	servers []*member // regions r1, r2 ...; the first bootstraps
	agents  []*member
	token   string   // of the administrator
	old     string   // when set, the binary that servers begin with
	env     []string // of its processes, beside HOME
}

type member struct {
	name    string
	node    proc.Node
	process *proc.Process
	binary  string // "" is the one under test
}

func (m *member) gateway() string { return m.node.Host + ":" + proc.GatewayPort }

// registry returns a client of the member's gateway with the given credential.
func (m *member) registry(token string) *image.Client {
	return &image.Client{Base: "http://" + m.gateway(), Token: token}
}

// startCluster starts one server a region and some agents, dealt to the regions in turn.
func startCluster(t *testing.T, regions, agents int, serverFlags ...string) *cluster {
	t.Helper()
	c := &cluster{dir: folder(t, "")}
	c.start(t, regions, agents, serverFlags...)
	return c
}

// start is startCluster of a cluster that has a folder.
func (c *cluster) start(t *testing.T, regions, agents int, serverFlags ...string) {
	t.Helper()
	t.Cleanup(func() {
		for _, m := range c.members() {
			if m.process == nil {
				continue
			}
			m.process.Kill()
			lastWords.keep(t, m.process)
		}
	})
	for i := range regions {
		region := fmt.Sprintf("r%d", i+1)
		m := c.member("server", "server-"+region, region)
		m.node.Extra, m.binary = serverFlags, c.old
		if i == 0 {
			m.node.Bootstrap = true
		} else {
			m.node.Join, m.node.Token = "https://"+c.servers[0].gateway(), c.joinToken(t, "server", region)
		}
		c.servers = append(c.servers, m)
		c.launch(t, m)
		if i == 0 {
			var err error
			if c.token, err = proc.AdminToken(m.node.Data); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.awaitVoters(t)
	for i := range agents {
		region := c.servers[i%regions]
		m := c.member("agent", fmt.Sprintf("agent-%s-%d", region.node.Region, i/regions+1), "")
		m.node.Join, m.node.Token = "https://"+region.gateway(), c.joinToken(t, "agent", region.node.Region)
		c.agents = append(c.agents, m)
		c.launch(t, m)
	}
}

// awaitVoters waits until all servers that shall vote do (1, 3 or 5 of them), which a
// new one does when it has kept up for a moment. Before that the cluster does not
// survive what a test may kill.
func (c *cluster) awaitVoters(t *testing.T) {
	t.Helper()
	var alive []*proc.Process
	for _, s := range c.servers {
		alive = append(alive, s.process)
	}
	if err := proc.Await(limit(t, time.Minute), "votes for all servers", func(ctx context.Context) error {
		out, err := c.verb(ctx, c.servers[0], "status", "--json")
		if err != nil {
			return err
		}
		var status struct {
			Servers []struct{ Voter bool }
		}
		if err := json.Unmarshal([]byte(out), &status); err != nil {
			return fmt.Errorf("status: %w in %s", err, out)
		}
		voters := 0
		for _, s := range status.Servers {
			if s.Voter {
				voters++
			}
		}
		if want := min(5, (len(c.servers)+1)/2*2-1); voters != want {
			return fmt.Errorf("%d of %d servers vote, not %d", voters, len(c.servers), want)
		}
		return nil
	}, alive...); err != nil {
		t.Fatal(err)
	}
}

func (c *cluster) members() []*member {
	return append(append([]*member(nil), c.servers...), c.agents...)
}

func (c *cluster) member(role, name, region string) *member {
	return &member{name: name, node: proc.Node{Role: role, Region: region, Host: proc.LoopbackHost(), Data: filepath.Join(c.dir, name)}}
}

// shoal runs a client verb against a server as administrator.
func (c *cluster) shoal(t *testing.T, at *member, args ...string) string {
	t.Helper()
	out, err := c.verb(limit(t, time.Minute), at, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (c *cluster) verb(ctx context.Context, at *member, args ...string) (string, error) {
	env := append([]string{"SHOAL_SERVER=http://" + at.gateway(), "SHOAL_TOKEN=" + c.token, "HOME=" + c.dir}, c.env...)
	return proc.Run(ctx, nil, binary, env, args...)
}

func (c *cluster) joinToken(t *testing.T, role, region string) string {
	t.Helper()
	args := []string{"token", "join", "--role", role, "--region", region}
	if role == "agent" {
		args = append(args, "--read", "acme/*")
	}
	token, err := wave.FindToken(c.shoal(t, c.servers[0], args...))
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// createRepo makes tenant acme, when it is new, and a repository of it.
func (c *cluster) createRepo(t *testing.T, name string, flags ...string) {
	t.Helper()
	_, _ = c.verb(limit(t, time.Minute), c.servers[0], "tenant", "create", "acme") // an error would only say that it is there
	c.shoal(t, c.servers[0], append([]string{"repo", "create", "acme/" + name, "--format", "oci", "--home", "r1"}, flags...)...)
}

// launch starts the member's process and waits until it is ready.
func (c *cluster) launch(t *testing.T, m *member) {
	t.Helper()
	if err := c.begin(m); err != nil {
		t.Fatal(err)
	}
	if err := m.awaitReady(limit(t, 2*time.Minute)); err != nil {
		t.Fatal(err)
	}
}

// begin starts the member's process and returns at once.
func (c *cluster) begin(m *member) error {
	if err := os.MkdirAll(m.node.Data, 0o700); err != nil {
		return err
	}
	process, err := proc.Start(proc.Spec{Name: m.name, Path: cmp.Or(m.binary, binary), Args: m.node.Args(), Log: m.node.Data + ".log",
		Env: append([]string{"HOME=" + c.dir}, c.env...)})
	if err != nil {
		return err
	}
	m.process = process
	return nil
}

func (m *member) awaitReady(ctx context.Context) error {
	err := proc.Await(ctx, m.name+" to be ready", func(ctx context.Context) error {
		return proc.Ready(ctx, http.DefaultClient, m.node.Host+":"+proc.OpsPort)
	}, m.process)
	if err != nil {
		return fmt.Errorf("%w\nlog: %s", err, m.process.LogTail(4096))
	}
	return nil
}

// metric reads a metric without labels from the member's ops listener.
func (m *member) metric(ctx context.Context, name string) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	ops := image.Client{Base: "http://" + m.node.Host + ":" + proc.OpsPort}
	response, err := ops.Do(ctx, http.MethodGet, "/metrics", nil, nil, 0, http.StatusOK)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, errors.Join(fmt.Errorf("%s has no metric %s", m.name, name), lines.Err())
}

// again is how a member is started the second time: what only a first start needs is gone.
func (m *member) again() { m.node.Bootstrap, m.node.Join, m.node.Token = false, "", "" }
