package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/proc"
)

// loyal clients push small images through one server each and pull them back. A client
// turns to another server only when its own cannot be reached; whatever a server that
// answers says other than success is a failure.
type loyal struct {
	stop   context.CancelFunc
	ended  sync.WaitGroup
	ops    atomic.Int64
	turned atomic.Int64 // operations that were done again at another server

	mu       sync.Mutex
	failures []string
}

// startLoyal starts width clients a server.
func startLoyal(ctx context.Context, c *cluster, width int, repository string, l *ledger, down func(*member) bool) *loyal {
	ctx, stop := context.WithCancel(ctx)
	p := &loyal{stop: stop}
	for i := range width * len(c.servers) {
		own := i % len(c.servers)
		p.ended.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				img, err := image.Make(seed(), 1, 2048)
				if err != nil {
					p.fail("%v", err)
					return
				}
				tag := fmt.Sprintf("c%d-%d", i, n)
				l.try(tag, img.Digest())
				for at := own; ; at = (at + 1) % len(c.servers) {
					s := c.servers[at]
					r := s.registry(c.token)
					// Who keeps connections open for long finds them closed.
					r.HTTP = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 2}}
					err := r.Push(ctx, repository, tag, img)
					if err == nil {
						l.acknowledge(tag)
						var got image.Pulled
						if got, err = r.Pull(ctx, repository, tag); err == nil && image.DigestOf(got.Manifest) != img.Digest() {
							err = fmt.Errorf("%s is another image", tag)
							p.fail("%s: %v", s.name, err)
						}
					}
					r.HTTP.CloseIdleConnections()
					if err == nil || ctx.Err() != nil {
						p.ops.Add(1)
						break
					}
					if image.StatusOf(err) != 0 || !down(s) {
						p.fail("%s: %v", s.name, err)
					}
					p.turned.Add(1)
				}
			}
		})
	}
	return p
}

func (p *loyal) fail(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failures = append(p.failures, fmt.Sprintf(format, args...))
}

// more waits for another n operations.
func (p *loyal) more(ctx context.Context, n int64) error {
	want := p.ops.Load() + n
	return proc.Await(ctx, "operations of clients", func(context.Context) error {
		if got := p.ops.Load(); got < want {
			return fmt.Errorf("%d of %d operations", got, want)
		}
		return nil
	})
}

func (p *loyal) close(t *testing.T) {
	t.Helper()
	p.stop()
	p.ended.Wait()
	for i, f := range p.failures {
		if i == 10 {
			t.Errorf("and %d more", len(p.failures)-i)
			break
		}
		t.Error(f)
	}
	t.Logf("%d operations, %d of them done again at another server", p.ops.Load(), p.turned.Load())
}

// restarting names the servers that are being restarted.
type restarting struct {
	mu  sync.Mutex
	now map[*member]bool
}

func (r *restarting) set(m *member, down bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now[m] = down
}

// has reports whether m is or just was restarted: an operation that failed there may
// have begun before.
func (r *restarting) has(m *member) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now[m]
}

// restart stops a server as an operator does and starts it again.
func (c *cluster) restart(ctx context.Context, t *testing.T, s *member) {
	t.Helper()
	if err := s.process.Stop(time.Minute); err != nil {
		t.Fatalf("%v\n%s", err, s.process.LogTail(4096))
	}
	s.again()
	if err := c.begin(s); err != nil {
		t.Fatal(err)
	}
	if err := s.awaitReady(ctx); err != nil {
		t.Fatal(err)
	}
}

// All servers are restarted one after the other, the leader among them, twice: no
// operation of a client fails at a server that stays up, and one that goes down answers
// what it took and then refuses to be connected to, with no 5xx.
func TestRollingRestart(t *testing.T) {
	c := startCluster(t, 3, 0)
	ctx := limit(t, 10*time.Minute)
	c.createRepo(t, "rolling", "--class", "critical")
	const repository = "acme/rolling/image"
	l, down := newLedger(), &restarting{now: map[*member]bool{}}
	p := startLoyal(ctx, c, 2, repository, l, down.has)
	defer p.stop()
	for range 2 {
		for _, s := range c.servers {
			if err := p.more(ctx, 10); err != nil {
				t.Fatal(err)
			}
			down.set(s, true)
			c.restart(ctx, t, s)
			// Who lost the connection has its answer by then.
			if err := p.more(ctx, 12); err != nil {
				t.Fatal(err)
			}
			down.set(s, false)
		}
	}
	p.close(t)
	for _, s := range c.servers {
		if err := l.audit(ctx, s.registry(c.token), repository); err != nil {
			t.Errorf("%s: %v", s.name, err)
		}
	}
}

// Every server moves to another address, one after the other, while clients push: the
// roster follows, and the cluster works on with nobody where it began.
func TestServersMove(t *testing.T) {
	c := startCluster(t, 3, 1)
	ctx := limit(t, 10*time.Minute)
	c.createRepo(t, "moving", "--class", "critical")
	const repository = "acme/moving/image"
	l := newLedger()
	for round, s := range c.servers {
		var registries []*image.Client
		for _, other := range c.servers {
			if other != s {
				registries = append(registries, other.registry(c.token))
			}
		}
		p := startPushers(ctx, 2, l, repository, fmt.Sprintf("m%d", round), registries...)
		s.node.Host = proc.LoopbackHost()
		c.restart(ctx, t, s)
		for range 3 {
			if err := p.wait(ctx); err != nil {
				t.Fatal(err)
			}
		}
		p.close(t)
		// It votes and serves from where it is.
		if err := proc.Await(ctx, "all to know where "+s.name+" is", func(ctx context.Context) error {
			for _, at := range c.servers {
				out, err := c.verb(ctx, at, "status", "--json")
				if err != nil {
					return err
				}
				if !strings.Contains(out, s.gateway()) {
					return fmt.Errorf("%s does not know %s", at.name, s.gateway())
				}
			}
			return nil
		}, s.process); err != nil {
			t.Fatal(err)
		}
	}
	c.awaitVoters(t)
	for _, m := range c.members() {
		token := c.token
		if m.node.Role == "agent" {
			token = ""
		}
		if err := proc.Await(ctx, "what was pushed at "+m.name, func(ctx context.Context) error {
			return l.audit(ctx, m.registry(token), repository)
		}, m.process); err != nil {
			t.Error(err)
		}
	}
}

// olderBinary builds shoal as it was before the last cluster level, which it returns: it
// knows neither that level nor its commands.
func olderBinary(t *testing.T, dir string) (path string, level int) {
	t.Helper()
	root, err := proc.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(root, "raftmeta", "state", "command.go")
	text, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^const Level uint32 = (\d+)$`)
	found := line.FindStringSubmatch(string(text))
	if found == nil {
		t.Fatalf("%s does not say the build's level", source)
	}
	if level, err = strconv.Atoi(found[1]); err != nil {
		t.Fatal(err)
	}
	older := line.ReplaceAllString(string(text), fmt.Sprint("const Level uint32 = ", level-1)) + `
func init() {
	for number, k := range kinds {
		if k.level > Level {
			delete(kinds, number)
		}
	}
}
`
	replaced := filepath.Join(dir, "command.go")
	if err := os.WriteFile(replaced, []byte(older), 0o600); err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {source: replaced}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "overlay.json")
	path = filepath.Join(dir, "shoal-old")
	if err := os.WriteFile(file, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(limit(t, 10*time.Minute), "go", "build", "-overlay", file, "-o", path, "./cmd/shoal")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the older shoal: %v: %s", err, out)
	}
	return path, level
}

// clusterLevel asks a server, whose build knows the call.
func (c *cluster) clusterLevel(ctx context.Context, at *member) (level struct{ Level, Next, Hold int }, err error) {
	out, err := c.verb(ctx, at, "cluster", "level", "--json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &level)
	}
	return level, err
}

// A cluster of an older build is updated one server at a time, taken back, and updated
// again, while clients push. The level rises by itself when the last one is new, and
// from then on an older build refuses to run. Nothing acknowledged is missing, and all
// servers have one state.
func TestMixedLevels(t *testing.T) {
	c := &cluster{dir: folder(t, "")}
	var newest int
	c.old, newest = olderBinary(t, c.dir)
	c.start(t, 3, 0)
	ctx := limit(t, 15*time.Minute)
	c.createRepo(t, "mixed", "--class", "critical")
	const repository = "acme/mixed/image"
	l, down := newLedger(), &restarting{now: map[*member]bool{}}
	p := startLoyal(ctx, c, 1, repository, l, down.has)
	defer p.stop()
	first, second, third := c.servers[0], c.servers[1], c.servers[2]
	change := func(s *member, to string) {
		t.Helper()
		if err := p.more(ctx, 6); err != nil {
			t.Fatal(err)
		}
		down.set(s, true)
		s.binary = to
		c.restart(ctx, t, s)
		if err := p.more(ctx, 6); err != nil {
			t.Fatal(err)
		}
		down.set(s, false)
	}
	stays := func(at *member) {
		t.Helper()
		level, err := c.clusterLevel(ctx, at)
		if err != nil || level.Level != newest-1 {
			t.Fatalf("the level is %+v with an older server: %v", level, err)
		}
	}
	change(second, "")
	stays(second)
	change(third, "")
	stays(third)
	change(second, c.old) // taken back
	stays(third)
	change(second, "")
	change(first, "")
	if err := proc.Await(ctx, "the level to rise", func(ctx context.Context) error {
		level, err := c.clusterLevel(ctx, first)
		if err == nil && level.Level != newest {
			err = fmt.Errorf("%+v", level)
		}
		return err
	}, first.process); err != nil {
		t.Fatal(err)
	}
	if err := p.more(ctx, 20); err != nil {
		t.Fatal(err)
	}
	p.close(t)
	for _, s := range c.servers {
		if err := l.audit(ctx, s.registry(c.token), repository); err != nil {
			t.Errorf("%s: %v", s.name, err)
		}
	}
	c.sameState(ctx, t)

	// No way back from here.
	second.binary = c.old
	if err := c.begin(second); err != nil {
		t.Fatal(err)
	}
	select {
	case <-second.process.Done():
	case <-ctx.Done():
		t.Fatal("an older build runs on")
	}
	if tail := second.process.LogTail(4096); second.process.Err() == nil || !strings.Contains(tail, "update it") || strings.Contains(tail, "goroutine ") {
		t.Errorf("an older build ended with %v:\n%s", second.process.Err(), tail)
	}
}

// sameState kills the servers when they are at rest, and compares the hashes of their
// states. What they do by themselves (checkpoints of the audit log, reports) may still come
// in between: only states of one index can be compared, the others are said aloud.
func (c *cluster) sameState(ctx context.Context, t *testing.T) {
	t.Helper()
	hashes := map[string]string{}
	states := c.statesAtRest(ctx, t)
	for _, s := range states {
		index, hash, ok := strings.Cut(s, ",")
		if !ok || !strings.HasPrefix(index, "ok index ") || hashes[index] != "" && hashes[index] != hash {
			t.Errorf("the states are %q", states)
		}
		hashes[index] = hash
	}
	if len(states) != len(c.servers) {
		t.Errorf("%d states of %d servers", len(states), len(c.servers))
	}
	t.Logf("%d states of %d indexes: %q", len(states), len(hashes), states)
}

// statesAtRest waits until the servers are quiet, kills them, and returns what doctor says
// of the state of each.
func (c *cluster) statesAtRest(ctx context.Context, t *testing.T) (states []string) {
	t.Helper()
	type status struct{ Index uint64 }
	var last []uint64
	quiet := 0
	if err := proc.Await(ctx, "one index", func(ctx context.Context) error {
		var now []uint64
		for _, s := range c.servers {
			out, err := c.verb(ctx, s, "status", "--json")
			if err != nil {
				return err
			}
			var is status
			if err := json.Unmarshal([]byte(out), &is); err != nil {
				return err
			}
			now = append(now, is.Index)
		}
		if slices.Max(now) == slices.Min(now) && slices.Equal(now, last) {
			quiet++
		} else {
			quiet = 0
		}
		last = now
		if quiet < 5 {
			return fmt.Errorf("the indexes are %v", now)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, s := range c.servers {
		_ = s.process.Signal(syscall.SIGSTOP)
	}
	for _, s := range c.servers {
		s.process.Kill()
	}
	for _, s := range c.servers {
		// Doctor fails, for nothing answers; what it found of the state is there.
		out, _ := proc.Run(ctx, nil, binary, []string{"HOME=" + c.dir}, "doctor", "--state", "--json", "--data", s.node.Data, "--ops", s.node.Host+":"+proc.OpsPort)
		var findings []struct{ Check, Level, Detail string }
		if err := json.Unmarshal([]byte(out), &findings); err != nil {
			t.Fatalf("%v in %s", err, out)
		}
		for _, f := range findings {
			if f.Check == "state" {
				states = append(states, f.Level+" "+f.Detail)
			}
		}
	}
	return states
}

// A server is replaced: another joins, the old one is drained and removed, and says so,
// ends, and does not start again. One that was away when it was removed learns it when it
// returns.
func TestServersAreReplaced(t *testing.T) {
	c := startCluster(t, 3, 0)
	ctx := limit(t, 10*time.Minute)
	c.createRepo(t, "kept", "--class", "critical")
	const repository = "acme/kept/image"
	l := newLedger()
	// Clients push while servers come and go, not while one that was removed finds out: that
	// takes half a minute, and all of what they push meanwhile is to be copied and read again.
	p := startPushers(ctx, 2, l, repository, "p", c.servers[0].registry(c.token), c.servers[2].registry(c.token))
	defer func() { p.stop() }()
	for range 10 {
		if err := p.wait(ctx); err != nil {
			t.Fatal(err)
		}
	}
	replace := func(old *member, id string, name string) *member {
		t.Helper()
		m := c.member("server", name, old.node.Region)
		m.node.Join, m.node.Token = "https://"+c.servers[0].gateway(), c.joinToken(t, "server", old.node.Region)
		c.servers = append(c.servers, m)
		c.launch(t, m)
		out, err := c.verb(ctx, c.servers[0], "server", "remove", id, "--wait")
		if err != nil {
			t.Fatalf("%v\n%s", err, c.shoal(t, c.servers[0], "server", "list"))
		}
		t.Log(strings.TrimSpace(out))
		c.servers = slices.DeleteFunc(c.servers, func(s *member) bool { return s == old })
		return m
	}
	ended := func(s *member) {
		t.Helper()
		select {
		case <-s.process.Done():
		case <-ctx.Done():
			t.Fatalf("%s runs on:\n%s", s.name, s.process.LogTail(4096))
		}
		if tail := s.process.LogTail(4096); s.process.Err() == nil || !strings.Contains(tail, "was removed from cluster") {
			t.Errorf("%s ended with %v:\n%s", s.name, s.process.Err(), tail)
		}
	}
	third := c.servers[2]
	id := c.idOf(ctx, t, third)
	// One that drains goes on serving, and sends what is new to another.
	c.shoal(t, c.servers[0], "server", "drain", id)
	img := makeImage(t, 1, 2048)
	l.try("while-draining", img.Digest())
	if err := third.registry(c.token).Push(ctx, repository, "while-draining", img); err != nil {
		t.Fatal(err)
	}
	l.acknowledge("while-draining")
	another := replace(third, id, "server-r3-new")
	p.close(t)
	ended(third)
	third.again()
	if err := c.begin(third); err != nil {
		t.Fatal(err)
	}
	ended(third)
	if out, err := proc.Run(ctx, nil, binary, []string{"HOME=" + c.dir}, "doctor", "--data", third.node.Data, "--ops", third.node.Host+":"+proc.OpsPort); err == nil || !strings.Contains(out, "was removed from cluster") {
		t.Errorf("doctor: %v\n%s", err, out)
	}

	// This one took no pushes, so it has nothing that is lost with it.
	second := c.servers[1]
	id = c.idOf(ctx, t, second)
	p = startPushers(ctx, 2, l, repository, "q", c.servers[0].registry(c.token), another.registry(c.token))
	for range 10 {
		if err := p.wait(ctx); err != nil {
			t.Fatal(err)
		}
	}
	second.process.Kill()
	replace(second, id, "server-r2-new")
	p.close(t)
	second.again()
	if err := c.begin(second); err != nil {
		t.Fatal(err)
	}
	ended(second)
	for _, s := range c.servers {
		if err := proc.Await(ctx, "what was pushed at "+s.name, func(ctx context.Context) error {
			return l.audit(ctx, s.registry(c.token), repository)
		}, s.process); err != nil {
			t.Error(err)
		}
	}
}

// idOf returns the id of a server of the cluster.
func (c *cluster) idOf(ctx context.Context, t *testing.T, m *member) string {
	t.Helper()
	out, err := c.verb(ctx, c.servers[0], "server", "list", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var all []struct{ ID, Gateway string }
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	for _, s := range all {
		if s.Gateway == m.gateway() {
			return s.ID
		}
	}
	t.Fatalf("%s is not in %s", m.gateway(), out)
	return ""
}

// A region is given up: what only it has is copied to where its repositories go, and it
// is removed with its server.
func TestRegionIsRemoved(t *testing.T) {
	c := startCluster(t, 3, 0)
	ctx := limit(t, 10*time.Minute)
	_, _ = c.verb(ctx, c.servers[0], "tenant", "create", "acme")
	c.shoal(t, c.servers[0], "repo", "create", "acme/cold", "--format", "oci", "--home", "r3", "--class", "cold")
	const repository = "acme/cold/image"
	l := newLedger()
	p := startPushers(ctx, 2, l, repository, "p", c.servers[2].registry(c.token))
	for range 5 {
		if err := p.wait(ctx); err != nil {
			t.Fatal(err)
		}
	}
	p.close(t)
	out, err := c.verb(ctx, c.servers[0], "region", "remove", "r3")
	if err == nil || !strings.Contains(out, "acme/cold") {
		t.Errorf("with a repository at home there: %v\n%s", err, out)
	}
	t.Log(c.shoal(t, c.servers[0], "region", "list"))
	if out, err = c.verb(ctx, c.servers[0], "region", "remove", "r3", "--home", "r1", "--wait"); err != nil {
		t.Fatalf("%v\n%s", err, c.shoal(t, c.servers[0], "server", "list"))
	}
	t.Log(strings.TrimSpace(out))
	select {
	case <-c.servers[2].process.Done():
	case <-ctx.Done():
		t.Fatal("the server of the region runs on")
	}
	for _, s := range c.servers[:2] {
		if err := l.audit(ctx, s.registry(c.token), repository); err != nil {
			t.Errorf("%s: %v", s.name, err)
		}
	}
	if out := c.shoal(t, c.servers[0], "region", "list"); strings.Contains(out, "r3") {
		t.Errorf("the region is still there:\n%s", out)
	}
}
