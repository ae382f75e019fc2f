package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/proc"
	"github.com/shoal-registry/shoal/transfer/bucket/buckettest"
)

// add starts a further server of a region.
func (c *cluster) add(t *testing.T, name, region string, flags ...string) *member {
	t.Helper()
	m := c.member("server", name, region)
	m.node.Extra = flags
	m.node.Join, m.node.Token = "https://"+c.servers[0].gateway(), c.joinToken(t, "server", region)
	c.servers = append(c.servers, m)
	c.launch(t, m)
	return m
}

// allCopied waits until no region owes anything.
func (c *cluster) allCopied(ctx context.Context, t *testing.T) {
	t.Helper()
	if err := proc.Await(ctx, "all copies", func(ctx context.Context) error {
		var s struct {
			Classes []struct {
				Region  string
				Waiting uint64 `json:"waiting_blobs"`
			}
		}
		if err := api(ctx, c.servers[0], c.token, "replication", &s); err != nil {
			return err
		}
		for _, r := range s.Classes {
			if r.Waiting > 0 {
				return fmt.Errorf("%s lacks %d blobs", r.Region, r.Waiting)
			}
		}
		if len(s.Classes) < 3 {
			return fmt.Errorf("%d regions", len(s.Classes))
		}
		return nil
	}, c.servers[0].process); err != nil {
		t.Fatal(err)
	}
}

// pull reads an image and compares it.
func (c *cluster) pull(ctx context.Context, t *testing.T, m *member, tag string, img *image.Image) {
	t.Helper()
	pulled, err := m.registry(c.token).Pull(ctx, "acme/app/api", tag)
	if err != nil {
		t.Errorf("%s: %v", m.name, err)
	} else if image.DigestOf(pulled.Manifest) != img.Digest() {
		t.Errorf("%s: %s is another image", m.name, tag)
	}
}

// A region whose two servers share a bucket, beside two with disks: what is pushed in one
// is in all, either server of the bucket can go, a pushed image can be collected, and the
// region goes on over a time without its bucket.
func TestARegionWithABucket(t *testing.T) {
	needTools(t, "crane")
	service := buckettest.Start(t)
	for _, pair := range buckettest.Env() {
		name, value, _ := strings.Cut(pair, "=")
		t.Setenv(name, value)
	}
	c := startCluster(t, 1, 0)
	ctx := limit(t, 8*time.Minute)
	flags := []string{"--blobs", service.URL("site/r2"), "--cache-size", "256MiB"}
	first := c.add(t, "bucket-1", "r2", flags...)
	c.add(t, "disk-r3", "r3")
	second := c.add(t, "bucket-2", "r2", flags...)
	c.awaitVoters(t)
	c.createRepo(t, "app", "--class", "critical")

	// Another region cannot have the same prefix.
	stranger := c.member("server", "stranger", "r3")
	stranger.node.Extra = flags
	stranger.node.Join, stranger.node.Token = "https://"+c.servers[0].gateway(), c.joinToken(t, "server", "r3")
	if err := c.begin(stranger); err != nil {
		t.Fatal(err)
	}
	select {
	case <-stranger.process.Done():
		if log := stranger.process.LogTail(4096); !strings.Contains(log, "is that of region r2") {
			t.Errorf("a server of another region says: %s", log)
		}
	case <-ctx.Done():
		t.Fatal("a server of another region runs on the same prefix")
	}
	_, _ = c.verb(ctx, c.servers[0], "server", "drain", c.idOf(ctx, t, stranger))
	if out, err := c.verb(ctx, c.servers[0], "server", "remove", "--force", c.idOf(ctx, t, stranger)); err != nil {
		t.Fatalf("%v: %s", err, out)
	}

	// Pushed at a server of the bucket, and from elsewhere.
	crane := openCrane(t).(layoutClient)
	for _, m := range []*member{c.servers[0], first, second} {
		if out, err := command(ctx, crane.env, "crane", "auth", "login", m.gateway(), "--username", "admin", "--password", c.token); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	here, there := makeImage(t, 3, 24<<20), makeImage(t, 3, 9<<20)
	if _, err := crane.push(ctx, here, first.gateway()+"/acme/app/api:here"); err != nil {
		t.Fatal(err)
	}
	if _, err := crane.push(ctx, there, c.servers[0].gateway()+"/acme/app/api:there"); err != nil {
		t.Fatal(err)
	}
	c.allCopied(limit(t, 2*time.Minute), t)
	for _, m := range c.servers {
		c.pull(ctx, t, m, "here", here)
		c.pull(ctx, t, m, "there", there)
	}
	if n := len(service.Files("site/r2/blobs")); n < len(here.Parsed.Layers)+len(there.Parsed.Layers) {
		t.Errorf("the bucket has %d objects", n)
	}

	// One server is killed while it puts a push into the bucket: the other one has all
	// that was acknowledged, and takes the same push.
	broken := makeImage(t, 4, 48<<20)
	before, pushed := len(service.Files("site/r2/blobs")), make(chan error, 1)
	go func() {
		_, err := crane.push(ctx, broken, first.gateway()+"/acme/app/api:broken")
		pushed <- err
	}()
	if err := proc.Await(ctx, "a part of the push", func(context.Context) error {
		if now := len(service.Files("site/r2/blobs")); now <= before {
			return fmt.Errorf("%d objects", now)
		}
		return nil
	}, first.process); err != nil {
		t.Fatal(err)
	}
	first.process.Kill()
	if err := <-pushed; err != nil {
		if _, err := crane.push(ctx, broken, second.gateway()+"/acme/app/api:broken"); err != nil {
			t.Fatal(err)
		}
	}
	c.pull(ctx, t, second, "broken", broken)
	c.pull(ctx, t, second, "here", here)
	later := makeImage(t, 2, 5<<20)
	if _, err := crane.push(ctx, later, second.gateway()+"/acme/app/api:later"); err != nil {
		t.Fatal(err)
	}
	first.again()
	c.launch(t, first)
	c.pull(ctx, t, first, "later", later)

	// The bucket is down: reads go elsewhere, and pushes too, or are refused.
	service.Stop()
	c.pull(ctx, t, second, "there", there)
	if err := proc.Await(ctx, "the servers to notice", func(ctx context.Context) error {
		out, err := c.verb(ctx, c.servers[0], "region", "status")
		if err == nil && !strings.Contains(out, "bucket") {
			err = fmt.Errorf("%s", out)
		}
		return err
	}, second.process); err != nil {
		t.Error(err)
	}
	service.Run()

	// One is drained and goes, which copies nothing.
	if out, err := c.verb(ctx, c.servers[0], "server", "remove", c.idOf(ctx, t, first), "--wait"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c.pull(ctx, t, second, "here", here)

	// What nobody uses any more leaves the bucket.
	before = len(service.Files("site/r2/blobs"))
	if err := remove(ctx, c.servers[0].registry(c.token), "acme/app/api", here.Digest()); err != nil {
		t.Fatal(err)
	}
	if out, err := c.verb(ctx, c.servers[0], "gc", "run", "--grace", "0s", "--force"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := proc.Await(ctx, "the bucket to be smaller", func(context.Context) error {
		if now := len(service.Files("site/r2/blobs")); now > before-len(here.Parsed.Layers) {
			return fmt.Errorf("%d objects of %d", now, before)
		}
		return nil
	}, second.process); err != nil {
		t.Error(err)
	}
	c.pull(ctx, t, second, "later", later)
	t.Log(c.shoal(t, c.servers[0], "server", "list"))
}
