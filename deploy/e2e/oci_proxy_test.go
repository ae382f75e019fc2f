package e2e

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/proc"
)

// startRegistry runs the distribution registry, a stranger's, as an upstream.
func startRegistry(t *testing.T) (*image.Client, *proc.Process) {
	t.Helper()
	needTools(t, "registry")
	dir, address := folder(t, ""), proc.LoopbackHost()+":"+proc.GatewayPort
	config := filepath.Join(dir, "config.yml")
	write(t, config, fmt.Sprintf("version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: %s\n  delete:\n    enabled: true\nhttp:\n  addr: %s\n", filepath.Join(dir, "data"), address))
	p, err := proc.Start(proc.Spec{Name: "registry", Path: "registry", Args: []string{"serve", config}, Log: filepath.Join(dir, "log"),
		Env: []string{"OTEL_TRACES_EXPORTER=none"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	c := &image.Client{Base: "http://" + address}
	if err := proc.Await(limit(t, time.Minute), "the registry", func(ctx context.Context) error {
		res, err := c.Do(ctx, http.MethodGet, "/v2/", nil, nil, 0, http.StatusOK)
		if err == nil {
			res.Body.Close()
		}
		return err
	}, p); err != nil {
		t.Fatalf("%v\nlog: %s", err, p.LogTail(4096))
	}
	return c, p
}

// Images of a stranger's registry: each client pulls them through a proxy, containerd also
// as from a mirror; what is owned here never comes from there; when the upstream is gone,
// another host pulls the same.
func TestImagesThroughAProxy(t *testing.T) {
	upstream, process := startRegistry(t)
	host := strings.TrimPrefix(upstream.Base, "http://")
	c := startCluster(t, 1, 2, "--outgoing-allow", "127.0.0.0/8")
	ctx := limit(t, 5*time.Minute)
	theirs, stranger, ours := makeImage(t, 3, 400_000), makeImage(t, 1, 1000), makeImage(t, 1, 1000)
	for tag, img := range map[string]*image.Image{"2": theirs, "3": theirs} {
		if err := upstream.Push(ctx, "big/app", tag, img); err != nil {
			t.Fatal(err)
		}
	}
	if err := upstream.Push(ctx, "tool", "9", stranger); err != nil {
		t.Fatal(err)
	}
	c.createRepo(t, "own")
	c.createRepo(t, "hub", "--kind", "proxy", "--upstream", upstream.Base)
	c.createRepo(t, "all", "--kind", "group", "--members", "own,hub", "--write-to", "own")
	through := c.agents[0].gateway() + "/acme/hub/big/app:2"
	each(t, []string{"crane", "skopeo", "docker", "ctr", "podman", "oras"}, func(t *testing.T, _ client, s session) {
		if digest, err := s.pull(ctx, through); err != nil || digest != theirs.Digest() {
			t.Errorf("%s: %s, not %s: %v", through, digest, theirs.Digest(), err)
		}
	})

	t.Run("group", func(t *testing.T) {
		if err := c.servers[0].registry(c.token).Push(ctx, "acme/all/tool", "1", ours); err != nil {
			t.Fatal(err)
		}
		for repository, tag := range map[string]string{"acme/all/tool": "1", "acme/own/tool": "1", "acme/all/big/app": "2"} {
			if _, err := c.agents[1].registry(c.token).Pull(ctx, repository, tag); err != nil {
				t.Errorf("%s:%s: %v", repository, tag, err)
			}
		}
		if _, err := c.agents[1].registry(c.token).Pull(ctx, "acme/all/tool", "9"); image.StatusOf(err) != http.StatusNotFound {
			t.Errorf("a stranger's version of an image that is owned here: %v", err)
		}
	})

	if err := c.servers[0].registry(c.token).Push(ctx, "acme/hub/mine", "1", ours); image.StatusOf(err) != http.StatusMethodNotAllowed {
		t.Errorf("a push to a proxy: %v", err)
	}

	process.Kill()
	t.Run("without upstream", func(t *testing.T) {
		got, err := c.agents[1].registry(c.token).Pull(ctx, "acme/hub/big/app", "2")
		if err != nil || image.DigestOf(got.Manifest) != theirs.Digest() {
			t.Errorf("another host pulls %s, not %s: %v", got.Manifest, theirs.Digest(), err)
		}
	})
	// The registry is gone: what comes for its own name comes from the mirror.
	t.Run("mirror", func(t *testing.T) {
		needTools(t, "ctr", "containerd")
		needRoot(t, "ctr manages containers' storage")
		s := openContainerd(t).(containerd)
		hosts := folder(t, "")
		write(t, filepath.Join(hosts, host, "hosts.toml"), fmt.Sprintf("server = %q\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n",
			upstream.Base, "http://"+c.agents[1].gateway()))
		if _, err := s.ctr(ctx, "images", "pull", "--hosts-dir", hosts, "--snapshotter", "native", host+"/big/app:2"); err != nil {
			t.Fatal(err)
		}
		out, err := s.ctr(ctx, "images", "list", "name=="+host+"/big/app:2")
		if digest, err2 := lastDigest(out); err != nil || err2 != nil || digest != theirs.Digest() {
			t.Errorf("from the mirror: %s, not %s: %v %v", digest, theirs.Digest(), err, err2)
		}
	})
}
