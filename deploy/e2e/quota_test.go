package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/proc"
)

// usage is what `shoal usage acme --json` says.
type usage struct {
	Storage       string
	StorageBytes  int64 `json:"storage_bytes"`
	ReservedBytes int64 `json:"reserved_bytes"`
	DriftBytes    int64 `json:"drift_bytes"`
	Egress        string
	EgressBytes   int64 `json:"egress_bytes"`
}

func (c *cluster) usage(ctx context.Context, flags ...string) (u usage, err error) {
	out, err := c.verb(ctx, c.servers[0], append([]string{"usage", "acme", "--json"}, flags...)...)
	if err == nil {
		err = json.Unmarshal([]byte(out), &u)
	}
	return u, err
}

// awaitUsage waits until what acme uses is as ok says.
func (c *cluster) awaitUsage(ctx context.Context, t *testing.T, what string, ok func(usage) bool) {
	t.Helper()
	if err := proc.Await(ctx, what, func(ctx context.Context) error {
		u, err := c.usage(ctx)
		if err == nil && !ok(u) {
			err = fmt.Errorf("acme uses %+v", u)
		}
		return err
	}, c.servers[0].process); err != nil {
		t.Fatal(err)
	}
}

// A tenant that reaches its limits is warned, then refused in the words of its client,
// and goes on when there is room or time again; a server that is killed with reservations
// loses nothing and keeps nothing.
func TestQuotas(t *testing.T) {
	needTools(t, "curl")
	c := startCluster(t, 1, 1)
	ctx := limit(t, 4*time.Minute)
	c.createRepo(t, "app")
	c.shoal(t, c.servers[0], "repo", "create", "acme/files", "--format", "generic", "--home", "r1")
	server, agent := c.servers[0], c.agents[0]
	set := func(flags ...string) {
		t.Helper()
		c.shoal(t, server, append([]string{"tenant", "set", "acme"}, flags...)...)
	}
	content := make([]byte, 3<<20)
	if _, err := image.Random(seed()).Read(content); err != nil {
		t.Fatal(err)
	}
	put := func(t *testing.T, name string, body []byte) reply {
		t.Helper()
		r, err := c.ask(ctx, server, http.MethodPut, "/generic/acme/files/"+name, string(body))
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	// What a node knows of a tenant it uses for 2 s.
	awaitPut := func(t *testing.T, what string, ok func(i int) error) {
		t.Helper()
		i := 0
		if err := proc.Await(ctx, what, func(context.Context) error { i++; return ok(i) }, server.process); err != nil {
			t.Fatal(err)
		}
	}

	t.Run("storage warns and refuses", func(t *testing.T) {
		set("--storage-quota", "4MiB", "--storage-warn", "50%")
		if r := put(t, "first", content); r.status != http.StatusCreated {
			t.Fatalf("%d %s", r.status, r.body)
		}
		awaitPut(t, "a warning", func(i int) error {
			if r := put(t, fmt.Sprint("small/", i), []byte(fmt.Sprint(i))); r.status != http.StatusCreated || !strings.Contains(r.header.Get("Shoal-Quota-Warning"), "storage quota of 4 MiB") {
				return fmt.Errorf("%d %v %s", r.status, r.header, r.body)
			}
			return nil
		})
		if r := put(t, "second", content[:2<<20]); r.status != http.StatusForbidden || !strings.Contains(r.body, "storage quota of 4 MiB") {
			t.Fatalf("%d %s", r.status, r.body)
		}
		c.awaitUsage(ctx, t, "that the refused upload has left nothing", func(u usage) bool {
			return u.Storage == "warning" && u.ReservedBytes == 0 && u.StorageBytes > 3<<20 && u.StorageBytes < 3<<20+4096
		})
		if out := c.shoal(t, server, "status"); !strings.Contains(out, "WARNING: tenant acme uses 3.0MiB of its storage quota") {
			t.Errorf("status says nothing of it:\n%s", out)
		}
		if r, err := c.ask(ctx, server, http.MethodDelete, "/generic/acme/files/first", ""); err != nil || r.status >= 300 {
			t.Fatalf("%+v %v", r, err)
		}
		awaitPut(t, "room after a deletion", func(int) error {
			if r := put(t, "second", content[:2<<20]); r.status != http.StatusCreated {
				return fmt.Errorf("%d %s", r.status, r.body)
			}
			return nil
		})
	})

	t.Run("docker says why", func(t *testing.T) {
		needTools(t, "docker", "dockerd")
		needRoot(t, "docker manages containers' storage")
		d := openDocker(t).(docker)
		if _, err := command(ctx, d.env, "docker", "login", "--username", "admin", "--password", c.token, server.gateway()); err != nil {
			t.Fatal(err)
		}
		img := makeImage(t, 2, 3<<20)
		reference := server.gateway() + "/acme/app/image:1"
		if _, err := d.push(ctx, img, reference); err == nil || !strings.Contains(err.Error(), "denied") || !strings.Contains(err.Error(), "storage quota") {
			t.Errorf("docker push over the quota: %v", err)
		}
		// A rate slows it down; what is refused it tries again.
		set("--storage-quota", "none", "--publish-requests", "3", "--publish-rate", "4MiB")
		awaitPut(t, "an end of the warnings", func(i int) error {
			if r := put(t, fmt.Sprint("calm/", i), []byte("small")); r.status != http.StatusCreated || r.header.Get("Shoal-Quota-Warning") != "" {
				return fmt.Errorf("%d %v %s", r.status, r.header, r.body)
			}
			return nil
		})
		if _, err := d.push(ctx, img, reference); err != nil {
			t.Errorf("docker push within the quota: %v", err)
		}
		set("--publish-requests", "0", "--publish-rate", "none", "--download-requests", "2")
		if _, err := d.pull(ctx, reference); err != nil {
			t.Errorf("docker pull at a rate: %v", err)
		}
		set("--download-requests", "0")
	})

	t.Run("curl comes again", func(t *testing.T) {
		set("--storage-quota", "none", "--publish-requests", "2")
		dir := folder(t, "")
		file := filepath.Join(dir, "file")
		if err := os.WriteFile(file, content[:1000], 0o600); err != nil {
			t.Fatal(err)
		}
		awaitPut(t, "a refusal with Retry-After", func(i int) error {
			var all sync.WaitGroup
			var mu sync.Mutex
			err := fmt.Errorf("all of 20 at once are taken")
			for k := range 20 {
				all.Go(func() {
					r, failed := c.ask(ctx, server, http.MethodPut, fmt.Sprintf("/generic/acme/files/many/%d-%d", i, k), "x")
					if mu.Lock(); failed == nil && r.status == http.StatusTooManyRequests && r.header.Get("Retry-After") != "" && strings.Contains(r.body, "over_quota") {
						err = nil
					}
					mu.Unlock()
				})
			}
			all.Wait()
			return err
		})
		var all sync.WaitGroup
		for k := range 8 {
			all.Go(func() {
				if _, err := command(ctx, []string{"HOME=" + dir}, "curl", "--silent", "--show-error", "--fail", "--retry", "20", "--user", "admin:"+c.token,
					"--upload-file", file, fmt.Sprintf("http://%s/generic/acme/files/again/%d", server.gateway(), k)); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		set("--publish-requests", "0")
	})

	t.Run("a server is killed with reservations", func(t *testing.T) {
		set("--storage-quota", "100MiB")
		before, err := c.usage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		blob := content
		var location string
		part := func(method, path string, body []byte, want int) {
			t.Helper()
			r, err := c.ask(ctx, server, method, path, string(body), "Content-Type", "application/octet-stream")
			if err != nil || r.status != want {
				t.Fatalf("%s %s: %+v, %v", method, path, r, err)
			}
			location = r.header.Get("Location")
		}
		part(http.MethodPost, "/v2/acme/app/image/blobs/uploads/", nil, http.StatusAccepted)
		awaitPut(t, "the new quota", func(int) error {
			part(http.MethodPatch, location, content[:1], http.StatusAccepted)
			content = content[1:]
			if u, err := c.usage(ctx); err != nil || u.ReservedBytes == 0 {
				return fmt.Errorf("nothing is reserved: %+v, %v", u, err)
			}
			return nil
		})
		part(http.MethodPatch, location, content[:1<<20], http.StatusAccepted)
		server.process.Kill()
		<-server.process.Done()
		server.again()
		if err := c.begin(server); err != nil {
			t.Fatal(err)
		}
		if err := server.awaitReady(ctx); err != nil {
			t.Fatal(err)
		}
		part(http.MethodPatch, location, content[1<<20:], http.StatusAccepted)
		part(http.MethodPut, location+"?digest="+image.DigestOf(blob), nil, http.StatusCreated)
		c.awaitUsage(ctx, t, "the bytes to be used and no longer reserved", func(u usage) bool {
			return u.StorageBytes == before.StorageBytes+int64(len(blob)) && u.ReservedBytes == 0
		})
		if u, err := c.usage(ctx, "--recount"); err != nil || u.DriftBytes != 0 {
			t.Errorf("a recount finds %+v, %v", u, err)
		}
	})

	t.Run("egress warns and refuses", func(t *testing.T) {
		u, err := c.usage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		set("--egress-period", "day", "--egress-quota", fmt.Sprint(u.EgressBytes+20<<20), "--egress-warn", "1%")
		warned := 0
		awaitPut(t, "a refusal", func(int) error {
			r, err := c.ask(ctx, agent, http.MethodGet, "/generic/acme/files/second", "")
			if err == nil && strings.Contains(r.header.Get("Shoal-Quota-Warning"), "egress quota") {
				warned++
			}
			if err != nil || r.status != http.StatusForbidden || !strings.Contains(r.body, "egress quota") {
				return fmt.Errorf("%d, %v", r.status, err)
			}
			return nil
		})
		if warned == 0 {
			t.Error("nobody was warned")
		}
		if r := put(t, "third", []byte("publishing goes on")); r.status != http.StatusCreated {
			t.Errorf("%d %s", r.status, r.body)
		}
		c.awaitUsage(ctx, t, "the downloads to be counted", func(u usage) bool { return u.Egress == "over" })
	})
}
