package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
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

// clientsAt has docker, and where there is none skopeo, push at one server and pull at
// another.
func (c *cluster) clientsAt(ctx context.Context, t *testing.T, push, pull *member) {
	t.Helper()
	var s session
	var login func(at string) error
	_, missing := exec.LookPath("dockerd")
	if missing == nil && os.Geteuid() == 0 {
		d := openDocker(t).(docker)
		s, login = d, func(at string) error {
			_, err := command(ctx, d.env, "docker", "login", at, "--username", "admin", "--password", c.token)
			return err
		}
	} else {
		needTools(t, "skopeo")
		l := openSkopeo(t).(layoutClient)
		s, login = l, func(at string) error {
			_, err := command(ctx, l.env, "skopeo", "login", "--tls-verify=false", at, "--username", "admin", "--password", c.token)
			return err
		}
	}
	for _, m := range []*member{push, pull} {
		if err := login(m.gateway()); err != nil {
			t.Fatal(err)
		}
	}
	pushed, err := s.push(ctx, makeImage(t, 2, 3<<20), push.gateway()+"/acme/app/api:client")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.pull(ctx, pull.gateway()+"/acme/app/api:client"); err != nil || got != pushed {
		t.Errorf("pulled %s, %v, pushed %s", got, err, pushed)
	}
}

// damage flips a byte of one large object below a prefix and removes another one with its
// map. It returns the folders of their roots, and the sha256 of what they were.
func damage(t *testing.T, s *buckettest.Service, prefix string) (damaged, lost string, want map[string][32]byte) {
	t.Helper()
	want = map[string][32]byte{}
	for key, size := range s.Files(prefix) {
		if path.Ext(key) != "" || size < 2<<20 || len(want) == 2 {
			continue
		}
		file, dir := filepath.Join(s.Dir, key), path.Dir(key)
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		want[dir] = sha256.Sum256(content)
		if damaged == "" {
			damaged = dir
			buckettest.Flip(t, file, size/2)
			continue
		}
		lost = dir
		if err := errors.Join(os.Remove(file), os.Remove(file+".map")); err != nil {
			t.Fatal(err)
		}
	}
	if len(want) != 2 {
		t.Fatalf("%d large objects below %s", len(want), prefix)
	}
	return damaged, lost, want
}

// sound says whether a root has an object that is not known to be damaged and is what it
// was.
func sound(s *buckettest.Service, dir string, want [32]byte) error {
	files := s.Files(dir)
	for key := range files {
		if _, bad := files[key+".bad"]; bad || path.Ext(key) != "" {
			continue
		}
		content, err := os.ReadFile(filepath.Join(s.Dir, key))
		if err == nil && sha256.Sum256(content) == want {
			return nil
		}
	}
	return fmt.Errorf("no sound object in %s: %v", dir, files)
}

// A region whose two servers share a bucket, beside two with disks: what is pushed in one
// is in all, either server of the bucket can go, a pushed image can be collected, and the
// region goes on over a time without its bucket. Objects that are damaged or lost come
// back, and a region moves into a bucket and out of it.
func TestARegionWithABucket(t *testing.T) {
	needTools(t, "crane")
	service := buckettest.Start(t)
	c := &cluster{dir: folder(t, ""), env: buckettest.Env()}
	c.start(t, 1, 0)
	ctx := limit(t, 8*time.Minute)
	flags := []string{"--blobs", service.URL("site/r2"), "--cache-size", "256MiB"}
	first := c.add(t, "bucket-1", "r2", flags...)
	old := c.add(t, "disk-r3", "r3")
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
	// It comes back without a cache, while one object is damaged and another is lost: what
	// it reads is right, and a scrub puts both back.
	first.again()
	if err := os.RemoveAll(filepath.Join(first.node.Data, "cache")); err != nil {
		t.Fatal(err)
	}
	damaged, lost, want := damage(t, service, "site/r2/blobs")
	c.launch(t, first)
	c.pull(ctx, t, first, "later", later)
	c.pull(ctx, t, first, "here", here)
	c.pull(ctx, t, first, "there", there)
	c.scrub(t)
	if err := proc.Await(limit(t, 2*time.Minute), "whole objects again", func(context.Context) error {
		return errors.Join(sound(service, damaged, want[damaged]), sound(service, lost, want[lost]))
	}, first.process, second.process); err != nil {
		t.Error(err)
	}
	c.clientsAt(ctx, t, first, second)

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

	// A region moves from a disk into a bucket, and back.
	for _, to := range []struct {
		name  string
		flags []string
	}{
		{"bucket-3", []string{"--blobs", service.URL("site/r3"), "--cache-size", "256MiB"}},
		{"disk-3", nil},
	} {
		next := c.add(t, to.name, "r3", to.flags...)
		c.allCopied(limit(t, 2*time.Minute), t)
		if out, err := c.verb(limit(t, 3*time.Minute), c.servers[0], "server", "remove", c.idOf(ctx, t, old), "--wait"); err != nil {
			t.Fatalf("%s: %v: %s", to.name, err, out)
		}
		if err := old.process.Stop(time.Minute); err != nil {
			t.Logf("%s after it was removed: %v", old.name, err)
		}
		if kept := len(service.Files("site/r3/blobs")); to.flags != nil && kept < len(there.Parsed.Layers)+len(broken.Parsed.Layers)+len(later.Parsed.Layers) {
			t.Errorf("%s has %d objects", to.name, kept)
		}
		// Nothing is lost: there are all copies, and the others are not asked.
		c.allCopied(limit(t, 2*time.Minute), t)
		c.pull(ctx, t, next, "there", there)
		c.pull(ctx, t, next, "broken", broken)
		c.pull(ctx, t, next, "later", later)
		old = next
	}
	t.Log(c.shoal(t, c.servers[0], "server", "list"))
}

// A cluster that was restored under a new id takes over the bucket of the lost one, which
// alone has the blobs: not unless that is said, and not while the old one uses it.
func TestARestoredClusterTakesItsBucket(t *testing.T) {
	service := buckettest.Start(t)
	flags := []string{"--blobs", service.URL("site/r1"), "--cache-size", "256MiB"}
	c := &cluster{dir: folder(t, ""), env: buckettest.Env()}
	c.start(t, 1, 0, flags...)
	ctx := limit(t, 5*time.Minute)
	c.createRepo(t, "app")
	img := makeImage(t, 3, 9<<20)
	if err := c.servers[0].registry(c.token).Push(ctx, "acme/app/api", "v1", img); err != nil {
		t.Fatal(err)
	}
	backup := filepath.Join(c.dir, "backup")
	c.shoal(t, c.servers[0], "backup", "create", backup, "--blobs", "none")

	next := &cluster{dir: folder(t, ""), env: c.env}
	t.Cleanup(func() {
		for _, m := range next.servers {
			if m.process != nil {
				m.process.Kill()
			}
		}
	})
	first := next.member("server", "restored", "r1")
	next.servers = append(next.servers, first)
	restore := []string{"backup", "restore", backup, "--data", first.node.Data, "--region", "r1"}
	if out, err := next.verb(ctx, first, append(restore, flags[:2]...)...); err == nil || !strings.Contains(err.Error(), "join one with --blobs") {
		t.Errorf("restored into a bucket: %v, %s", err, out)
	}
	next.shoal(t, first, restore...)
	next.launch(t, first)
	var err error
	if next.token, err = proc.AdminToken(first.node.Data); err != nil {
		t.Fatal(err)
	}
	var claim struct{ Cluster string }
	text, err := os.ReadFile(filepath.Join(service.Dir, "site/r1/claim"))
	if err == nil {
		err = json.Unmarshal(text, &claim)
	}
	if err != nil {
		t.Fatal(err)
	}
	take := append(flags, "--take-bucket", claim.Cluster)
	refused := func(want string, flags []string) {
		t.Helper()
		m := next.member("server", "refused", "r1")
		m.node.Extra, m.node.Join, m.node.Token = flags, "https://"+first.gateway(), next.joinToken(t, "server", "r1")
		if err := next.begin(m); err != nil {
			t.Fatal(err)
		}
		defer m.process.Kill()
		select {
		case <-m.process.Done():
			if log := m.process.LogTail(4096); !strings.Contains(log, want) {
				t.Errorf("it says: %s", log)
			}
		case <-ctx.Done():
			t.Fatal("it runs on another cluster's bucket")
		}
		if err := os.RemoveAll(m.node.Data); err != nil {
			t.Fatal(err)
		}
		if out, err := next.verb(ctx, first, "server", "remove", "--force", next.idOf(ctx, t, m)); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	refused("start the server once with --take-bucket "+claim.Cluster, flags)
	refused("a bucket is not taken from a cluster that lives", take)

	// The old one is lost, and time goes by.
	c.servers[0].process.Kill()
	then := time.Now().Add(-time.Hour)
	for _, name := range []string{"claim", "alive"} {
		if err := os.Chtimes(filepath.Join(service.Dir, "site/r1", name), then, then); err != nil {
			t.Fatal(err)
		}
	}
	second := next.add(t, "taker", "r1", take...)
	if err := proc.Await(ctx, "the image, which is in the bucket only", func(ctx context.Context) error {
		for _, m := range next.servers {
			pulled, err := m.registry(next.token).Pull(ctx, "acme/app/api", "v1")
			if err != nil {
				return err
			}
			if image.DigestOf(pulled.Manifest) != img.Digest() {
				return errors.New("it is another image")
			}
		}
		return nil
	}, first.process, second.process); err != nil {
		t.Error(err, second.process.LogTail(4096))
	}
}
