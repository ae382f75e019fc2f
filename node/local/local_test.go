package local_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/node"
	"github.com/shoal-registry/shoal/node/config"
	"github.com/shoal-registry/shoal/node/local"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/trust"
)

// patience is against hangs only.
const patience = 2 * time.Minute

// diary keeps the last lines of a cluster's log, for a test that fails: what failed is
// to be read before them.
type diary struct {
	mu    sync.Mutex
	lines [][]byte
}

// Write implements io.Writer, a line a call.
func (d *diary) Write(line []byte) (int, error) {
	const most = 1000
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.lines) == most {
		d.lines = slices.Delete(d.lines, 0, most/10)
	}
	d.lines = append(d.lines, bytes.Clone(line))
	return len(line), nil
}

func (d *diary) show(t *testing.T) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if t.Failed() {
		_, _ = t.Output().Write(bytes.Join(d.lines, nil))
	}
}

// start runs the cluster of dir until the returned stop, which waits for its end.
func start(t *testing.T, opts local.Options) (*local.Cluster, func()) {
	t.Helper()
	opts.Gateway = "127.0.0.1:0"
	log := &diary{}
	t.Cleanup(func() { log.show(t) })
	opts.Log = slog.New(slog.NewTextHandler(log, nil))
	cluster, err := local.Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- cluster.Run(ctx) }()
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the cluster ended with %v", err)
			}
		case <-time.After(patience):
			t.Fatal("the cluster does not stop")
		}
	}
	t.Cleanup(stop)
	select {
	case <-cluster.Ready():
	case err := <-ended:
		t.Fatalf("the cluster ended before it was ready: %v", err)
	case <-time.After(patience):
		t.Fatal("the cluster does not get ready")
	}
	return cluster, stop
}

func request(t *testing.T, method, url string, body []byte) (int, []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return res.StatusCode, answer
}

func gateways(c *local.Cluster) []string {
	var all []string
	d := c.Description()
	for _, e := range append(d.Servers, d.Agents...) {
		all = append(all, e.Gateway)
	}
	return all
}

// What is pushed anywhere is read everywhere, byte for byte, at once and after a
// restart of everything.
func TestPushedAnywhereReadEverywhere(t *testing.T) {
	opts := local.Options{Dir: t.TempDir(), Regions: 3, Agents: 2}
	cluster, stop := start(t, opts)
	pushed := map[string][]byte{}
	for i, gateway := range gateways(cluster) {
		content := make([]byte, 300_000*i+i) // none, inline, one chunk, several
		rand.Read(content)
		path := fmt.Sprintf("/generic/acme/files/from-%d.bin", i)
		if status, answer := request(t, http.MethodPut, "http://"+gateway+path, content); status != http.StatusCreated {
			t.Fatalf("PUT at %s: %d %s", gateway, status, answer)
		}
		pushed[path] = content
	}
	check := func(cluster *local.Cluster) {
		t.Helper()
		for _, gateway := range gateways(cluster) {
			for path, content := range pushed {
				status, answer := request(t, http.MethodGet, "http://"+gateway+path, nil)
				if status != http.StatusOK || !bytes.Equal(answer, content) {
					t.Errorf("GET %s at %s: %d, %d bytes of %d, equal %v", path, gateway, status, len(answer), len(content), bytes.Equal(answer, content))
				}
			}
		}
	}
	check(cluster)
	before := cluster.Description()
	stop()

	cluster, _ = start(t, opts)
	if after := cluster.Description(); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("the cluster came back as %+v, was %+v", after, before)
	}
	check(cluster)
}

func TestOneProcessADirectory(t *testing.T) {
	opts := local.Options{Dir: t.TempDir(), Regions: 1}
	start(t, opts)
	opts.Gateway = "127.0.0.1:0"
	if _, err := local.Open(opts); err == nil || !strings.Contains(err.Error(), "in use by another shoal process") {
		t.Errorf("a second process got %v", err)
	}
}

// Without its other servers a cluster has no quorum and would never be ready.
func TestFewerRegionsThanBefore(t *testing.T) {
	opts := local.Options{Dir: t.TempDir(), Regions: 2}
	_, stop := start(t, opts)
	stop()
	opts.Gateway, opts.Regions = "127.0.0.1:0", 1
	if _, err := local.Open(opts); !errors.Is(err, meta.ErrInvalid) || !strings.Contains(err.Error(), "--regions 2") {
		t.Errorf("got %v, want a refusal that says --regions 2", err)
	}
}

func TestOptionsAreBounded(t *testing.T) {
	for _, opts := range []local.Options{{Regions: 0}, {Regions: 10}, {Regions: 1, Agents: -1}, {Regions: 1, Agents: 65}} {
		opts.Dir, opts.Gateway = t.TempDir(), "127.0.0.1:0"
		if _, err := local.Open(opts); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%+v: %v, want ErrInvalid", opts, err)
		}
	}
}

// A join token admits as many nodes as it says, for the role and the cluster it
// was made for; what it refuses names the reason.
func TestJoining(t *testing.T) {
	cluster, _ := start(t, local.Options{Dir: t.TempDir(), Regions: 1})
	server := cluster.Nodes()[0]
	token := func(role meta.Role, uses uint64, life time.Duration) string {
		text, err := server.JoinToken(t.Context(), meta.JoinToken{
			Role: role, Region: "r1", Uses: uses, Expires: meta.TimeOf(time.Now().Add(life)),
		})
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	agent := func(dir, token string) error {
		cfg, err := config.Defaults(meta.RoleAgent)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Data, cfg.Gateway, cfg.Swarm, cfg.Ops = dir, "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
		cfg.Join, cfg.Token = "https://"+server.Gateway(), config.Secret(token)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		n, err := node.New(ctx, cfg, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		stopped, stop := context.WithCancel(ctx)
		stop()
		return n.Run(stopped)
	}
	once := token(meta.RoleAgent, 1, time.Minute)
	first := t.TempDir()
	if err := agent(first, once); err != nil {
		t.Fatalf("the first use: %v", err)
	}
	if err := agent(first, "none of the kind"); err != nil {
		t.Errorf("a node that has joined needs no token: %v", err)
	}
	if err := os.Remove(filepath.Join(first, "identity")); err != nil {
		t.Fatal(err)
	}
	if err := agent(first, once); err != nil {
		t.Errorf("a node whose answer was lost asks again: %v", err)
	}

	stranger, err := trust.NewAuthority("another", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := trust.ParseJoinToken(once)
	if err != nil {
		t.Fatal(err)
	}
	foreign.RootHash = stranger.Root().Hash()
	for _, c := range []struct{ name, token string }{
		{"spent", once},
		{"expired", token(meta.RoleAgent, 1, time.Nanosecond)},
		{"another role", token(meta.RoleServer, 1, time.Minute)},
		{"invented", trust.NewJoinToken(stranger.Root()).Text()},
	} {
		t.Run(c.name, func(t *testing.T) {
			parsed, err := trust.ParseJoinToken(c.token)
			if err != nil {
				t.Fatal(err)
			}
			good, err := trust.ParseJoinToken(once)
			if err != nil {
				t.Fatal(err)
			}
			parsed.RootHash = good.RootHash
			if err := agent(t.TempDir(), parsed.Text()); !errors.Is(err, meta.ErrDenied) {
				t.Errorf("got %v, want ErrDenied", err)
			}
		})
	}
	t.Run("another cluster's root", func(t *testing.T) {
		tried, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		cfg, err := config.Defaults(meta.RoleAgent)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Data, cfg.Gateway, cfg.Swarm, cfg.Ops = t.TempDir(), "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
		cfg.Join, cfg.Token = "https://"+server.Gateway(), config.Secret(foreign.Text())
		if _, err := node.New(tried, cfg, slog.New(slog.DiscardHandler)); !errors.Is(err, meta.ErrDenied) {
			t.Errorf("joining a cluster with another root: %v, want ErrDenied at once", err)
		}
	})
}

// Nodes that are no nodes of the cluster get nothing from the planes of nodes.
func TestStrangersAtTheNodePlane(t *testing.T) {
	cluster, _ := start(t, local.Options{Dir: t.TempDir(), Regions: 1})
	gateway := cluster.Nodes()[0].Gateway()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	for _, path := range []string{"/shoal.raftmeta.v1.Metadata/Ask", "/shoal.join.v1/Renew"} {
		res, err := client.Post("https://"+gateway+path, "application/cbor", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusForbidden && res.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s answered a stranger %s", path, res.Status)
		}
	}
}
