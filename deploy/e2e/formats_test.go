package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/proc"
)

// format is one ecosystem as its stock client uses it. Each has a file of its own,
// format_<name>_test.go, which adds it to formats.
type format struct {
	name  string // the repository's format
	tools []string
	// pkg is a package name as people write it; versions are 1.0.0, 1.1.0, 9.9.9, which
	// the functions turn into what the ecosystem calls them.
	pkg string
	// public repositories are read without a token, for clients that send none over plain
	// HTTP (go).
	public bool
	// publish makes a package with a file of payload(seed) and sends it with the client.
	// What the client printed comes back, also with an error.
	publish func(ctx context.Context, t *testing.T, p place, home, pkg, version string, seed uint64) (string, error)
	// install gets it with the client into home, which is empty and shares no cache, and
	// returns what came: path -> sha256 in hex. version "" is what the client takes for
	// the latest; nil latest says that the ecosystem knows no such thing.
	install func(ctx context.Context, t *testing.T, p place, home, pkg, version string) (map[string]string, string, error)
	// noLatest says that install needs a version.
	noLatest bool
	// remove is the client's own removal, nil without one: then the administrator deletes.
	remove func(ctx context.Context, t *testing.T, p place, home, pkg, version string) (string, error)
	// reference is the version in `shoal version delete acme/REPO` + reference.
	reference func(pkg, version string) string
	// says is what the client prints when a duplicate is refused, one of these, in small letters.
	says []string
	// upload is the publish as one raw request.
	upload func(t *testing.T, pkg, version string, seed uint64) request
	// files says that a name is a file's path: versions have names of their own, of which
	// an upstream may have others than we own.
	files bool
	// sets says that clients see what an index says that is built in a while: a publish
	// waits two seconds for it, which a busy machine needs longer for.
	sets bool
	// kinds are the kinds of repository that it has; none is all.
	kinds []string
	// ownGroups says that groups stand for their hosted members alone: an index that is
	// signed here does not vouch for what others signed.
	ownGroups bool
}

// formats are added to by their files, in an order that does not matter.
var formats []format

// request is one raw HTTP request below a repository's URL.
type request struct {
	method, path string
	header       http.Header
	body         []byte
}

// place is a repository as one gateway serves it.
type place struct {
	gateway    string // host:port, plain HTTP on loopback
	repository string // acme/npm
	token      string // "" is none
}

func (p place) url(format string) string {
	return "http://" + p.gateway + "/" + format + "/" + p.repository
}

func (f format) has(kind string) bool { return len(f.kinds) == 0 || slices.Contains(f.kinds, kind) }

// payload is a file's content that follows from a seed.
func payload(seed uint64) []byte {
	b := make([]byte, 40_000)
	if _, err := image.Random(seed).Read(b); err != nil {
		panic(err)
	}
	return b
}

func sumOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// formatted is a cluster of three regions beside a lone shoal that is the upstream of
// its proxies.
type formatted struct {
	*cluster
	upstream *dev
}

func (c *formatted) at(m *member, repository string) place {
	return place{gateway: m.gateway(), repository: "acme/" + repository, token: c.token}
}

func (c *formatted) above(repository string) place {
	return place{gateway: proc.Address(c.upstream.Servers[0].Gateway), repository: "acme/" + repository, token: c.upstream.AdminToken}
}

// got installs and checks that the payload of seed is what came.
func (c *formatted) got(t *testing.T, f format, p place, pkg, version string, seed uint64) map[string]string {
	t.Helper()
	ctx := limit(t, 3*time.Minute)
	files, out, err := f.install(ctx, t, p, folder(t, ""), pkg, version)
	if err != nil && f.sets {
		err = proc.Await(ctx, "the index to have it", func(ctx context.Context) (err error) {
			files, out, err = f.install(ctx, t, p, folder(t, ""), pkg, version)
			return err
		})
	}
	if err != nil {
		t.Fatalf("%s %s from %s: %v\n%s", pkg, version, p.url(f.name), err, out)
	}
	if !slices.Contains(slices.Collect(maps.Values(files)), sumOf(payload(seed))) {
		t.Fatalf("%s %s from %s is not what was published: %v\n%s", pkg, version, p.url(f.name), files, out)
	}
	return files
}

func (c *formatted) send(t *testing.T, f format, p place, pkg, version string, seed uint64) {
	t.Helper()
	if out, err := f.publish(limit(t, 3*time.Minute), t, p, folder(t, ""), pkg, version, seed); err != nil {
		t.Fatalf("publish %s %s to %s: %v\n%s", pkg, version, p.url(f.name), err, out)
	}
}

// refused publishes what must not be taken, and compares what the client says.
func (c *formatted) refused(t *testing.T, f format, p place, pkg, version string, seed uint64) {
	t.Helper()
	out, err := f.publish(limit(t, 3*time.Minute), t, p, folder(t, ""), pkg, version, seed)
	if err == nil {
		t.Fatalf("%s %s was taken a second time with other bytes: %s", pkg, version, out)
	}
	said := strings.ToLower(out + err.Error())
	if !slices.ContainsFunc(f.says, func(words string) bool { return strings.Contains(said, words) }) {
		t.Errorf("the client says none of %q: %s", f.says, said)
	}
}

// Each format with its stock client: published in one region and installed through an
// agent of another, refused twice, proxied from an upstream that goes away, kept from
// names of the same spelling upstream, raced for, and there after a restart.
func TestFormats(t *testing.T) {
	c := &formatted{cluster: startCluster(t, 3, 3, "--outgoing-allow", "127.0.0.0/8"), upstream: startDev(t, "")}
	var ready []format
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			for _, tool := range f.tools {
				if _, err := exec.LookPath(tool); err != nil {
					skip(t, "no %s on this machine", tool)
				}
			}
			c.hosted(t, f)
			if f.has("proxy") {
				t.Run("proxy", func(t *testing.T) { c.proxied(t, f) })
			}
			if f.has("group") {
				t.Run("group", func(t *testing.T) { c.grouped(t, f) })
			}
			t.Run("setup", func(t *testing.T) { c.setUp(t, f) })
			ready = append(ready, f)
		})
	}
	t.Run("oci/race", c.raceForATag)
	if t.Failed() {
		return
	}
	c.upstream.process.Kill()
	for _, f := range ready {
		if f.has("proxy") {
			t.Run("without upstream/"+f.name, func(t *testing.T) {
				c.got(t, f, c.at(c.agents[1], f.name+"-proxy"), f.pkg+"up", "1.0.0", 11)
			})
		}
	}
	for _, m := range c.members() {
		if err := m.process.Stop(time.Minute); err != nil {
			t.Fatalf("%s: %v", m.name, err)
		}
	}
	for _, m := range c.members() {
		m.again()
		if err := c.begin(m); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range c.members() {
		if err := m.awaitReady(limit(t, 2*time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range ready {
		t.Run("restarted/"+f.name, func(t *testing.T) {
			c.got(t, f, c.at(c.agents[1], f.name), f.pkg, "1.0.0", 1)
			if f.has("proxy") {
				c.got(t, f, c.at(c.agents[2], f.name+"-proxy"), f.pkg+"up", "1.0.0", 11)
			}
		})
	}
}

func (c *formatted) hosted(t *testing.T, f format) {
	c.create(t, f, f.name, "--class", "critical")
	first, far := c.at(c.servers[0], f.name), c.at(c.agents[1], f.name)
	c.send(t, f, first, f.pkg, "1.0.0", 1)
	here, there := c.got(t, f, first, f.pkg, "1.0.0", 1), c.got(t, f, far, f.pkg, "1.0.0", 1)
	if !maps.Equal(here, there) {
		t.Errorf("region 1 gave %v and an agent of region 2 %v", here, there)
	}
	// Read-your-writes: what was just published at region 3 is there at region 2 at once.
	c.send(t, f, c.at(c.servers[2], f.name), f.pkg, "1.1.0", 2)
	c.got(t, f, far, f.pkg, "1.1.0", 2)
	c.refused(t, f, c.at(c.servers[1], f.name), f.pkg, "1.0.0", 3)
	c.refused(t, f, far, f.pkg, "1.1.0", 3)

	if f.remove != nil {
		if out, err := f.remove(limit(t, time.Minute), t, first, folder(t, ""), f.pkg, "1.1.0"); err != nil {
			t.Fatalf("remove: %v\n%s", err, out)
		}
	} else {
		c.shoal(t, c.servers[0], "version", "delete", "--yes", "acme/"+f.name+f.reference(f.pkg, "1.1.0"))
	}
	if out, err := f.publish(limit(t, time.Minute), t, first, folder(t, ""), f.pkg, "1.1.0", 4); err == nil {
		t.Errorf("a deleted version came back with other bytes: %s", out)
	}
	c.got(t, f, far, f.pkg, "1.0.0", 1)
	if f.upload != nil {
		t.Run("race", func(t *testing.T) { c.race(t, f) })
	}
}

// race has 100 publishers ask for one version at three regions at once: one gets it, and
// what it sent is what is installed.
func (c *formatted) race(t *testing.T, f format) {
	const publishers = 100
	ctx := limit(t, 3*time.Minute)
	// The first publish of a package is not raced for: it says how the name is spelt.
	pkg := f.pkg + "race"
	c.send(t, f, c.at(c.servers[0], f.name), pkg, "1.0.0", 20)
	requests := make([]request, publishers)
	for i := range requests {
		requests[i] = f.upload(t, pkg, "2.0.0", uint64(1000+i))
	}
	var won, odd atomic.Int64
	winner := make(chan int, publishers)
	start := make(chan struct{})
	var all sync.WaitGroup
	for i, r := range requests {
		p := c.at(c.servers[i%3], f.name)
		all.Go(func() {
			<-start
			status, body, err := p.raw(ctx, f.name, r)
			switch {
			case err != nil:
				odd.Add(1)
				t.Errorf("publisher %d: %v", i, err)
			case status < 300:
				won.Add(1)
				winner <- i
			case status >= 500:
				odd.Add(1)
				t.Errorf("publisher %d: %d %s", i, status, body)
			}
		})
	}
	close(start)
	all.Wait()
	if won.Load() != 1 {
		t.Fatalf("%d of %d publishers of one version were acknowledged, %d failed oddly", won.Load(), publishers, odd.Load())
	}
	c.got(t, f, c.at(c.agents[1], f.name), pkg, "2.0.0", uint64(1000+<-winner))
}

// raceForATag has 100 publishers push different images under one tag of a repository
// whose tags do not move, at three regions at once.
func (c *formatted) raceForATag(t *testing.T) {
	ctx := limit(t, 3*time.Minute)
	c.createRepo(t, "tags", "--immutable")
	const publishers = 100
	images := make([]*image.Image, publishers)
	for i := range images {
		images[i] = makeImage(t, 1, 1000)
	}
	won := make(chan *image.Image, publishers)
	start := make(chan struct{})
	var all sync.WaitGroup
	for i, img := range images {
		registry := c.servers[i%3].registry(c.token)
		all.Go(func() {
			<-start
			err := registry.Push(ctx, "acme/tags/app", "1", img)
			if status := image.StatusOf(err); err != nil && (status < 400 || status >= 500) {
				t.Errorf("publisher %d: %v", i, err)
			}
			if err == nil {
				won <- img
			}
		})
	}
	close(start)
	all.Wait()
	if len(won) != 1 {
		t.Fatalf("%d of %d publishers of one tag were acknowledged", len(won), publishers)
	}
	got, err := c.agents[1].registry(c.token).Pull(ctx, "acme/tags/app", "1")
	if want := (<-won).Digest(); err != nil || image.DigestOf(got.Manifest) != want {
		t.Errorf("the tag is %s, not %s: %v", image.DigestOf(got.Manifest), want, err)
	}
}

// raw sends r to the repository.
func (p place) raw(ctx context.Context, format string, r request) (int, []byte, error) {
	q, err := http.NewRequestWithContext(ctx, r.method, p.url(format)+r.path, bytes.NewReader(r.body))
	if err != nil {
		return 0, nil, err
	}
	q.Header = r.header.Clone()
	if q.Header == nil {
		q.Header = http.Header{}
	}
	if p.token != "" && q.Header.Get("Authorization") == "" {
		q.SetBasicAuth("e2e", p.token)
	}
	res, err := http.DefaultClient.Do(q)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	return res.StatusCode, body, err
}

func (c *formatted) create(t *testing.T, f format, repository string, flags ...string) {
	t.Helper()
	flags = append([]string{"--format", f.name}, flags...)
	if f.files {
		flags = append(flags, "--immutable") // else a path may get other bytes
	}
	if f.public {
		flags = append(flags, "--visibility", "public")
	}
	c.createRepo(t, repository, flags...)
}

// proxied reads through a proxy what another shoal has.
func (c *formatted) proxied(t *testing.T, f format) {
	c.send(t, f, c.above(f.name), f.pkg+"up", "1.0.0", 11)
	c.create(t, f, f.name+"-proxy", "--kind", "proxy", "--upstream", c.above(f.name).url(f.name))
	c.got(t, f, c.at(c.agents[0], f.name+"-proxy"), f.pkg+"up", "1.0.0", 11)
	if out, err := f.publish(limit(t, time.Minute), t, c.at(c.servers[0], f.name+"-proxy"), folder(t, ""), f.pkg, "3.0.0", 12); err == nil {
		t.Errorf("a proxy took a publish: %s", out)
	}
}

// grouped has a name that is owned here never come from upstream, whatever version is there.
func (c *formatted) grouped(t *testing.T, f format) {
	c.send(t, f, c.above(f.name), f.pkg, "9.9.9", 99)
	members := f.name
	if f.has("proxy") {
		members += "," + f.name + "-proxy"
	}
	c.create(t, f, f.name+"-all", "--kind", "group", "--members", members, "--write-to", f.name)
	for _, m := range []*member{c.servers[2], c.agents[1]} {
		p := c.at(m, f.name+"-all")
		c.got(t, f, p, f.pkg, "1.0.0", 1)
		if !f.noLatest {
			c.got(t, f, p, f.pkg, "", 1)
		}
		if files, out, err := f.install(limit(t, time.Minute), t, p, folder(t, ""), f.pkg, "9.9.9"); err == nil && !f.files {
			t.Errorf("%s took the version of a stranger: %v %s", m.name, files, out)
		}
		if f.has("proxy") && !f.ownGroups {
			c.got(t, f, p, f.pkg+"up", "1.0.0", 11)
		}
	}
	c.send(t, f, c.at(c.agents[2], f.name+"-all"), f.pkg+"grp", "1.0.0", 31)
	c.got(t, f, c.at(c.agents[1], f.name), f.pkg+"grp", "1.0.0", 31)
}

// tree hashes the files beneath a folder: path -> sha256 in hex.
func tree(dir string) (map[string]string, error) {
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		files[name] = sumOf(content)
		return err
	})
	if err == nil && len(files) == 0 {
		err = errors.New("nothing was installed in " + dir)
	}
	return files, err
}
