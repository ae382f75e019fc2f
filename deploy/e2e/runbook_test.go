package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/proc"
)

// step is a block of commands of a runbook: `sh run` is run to its end, `sh serve` is
// a server that is to run from then on.
type step struct {
	serve  bool
	script string
}

// runbook reads the steps of a section of deploy/runbooks/recovery.md.
func runbook(t *testing.T, section string) (steps []step) {
	t.Helper()
	root, err := proc.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "deploy", "runbooks", "recovery.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "\n## "+section+"\n")
	if !found {
		t.Fatalf("the runbook has no section %q", section)
	}
	rest, _, _ = strings.Cut(rest, "\n## ")
	for {
		var kind, script string
		if _, rest, found = strings.Cut(rest, "\n```sh "); !found {
			break
		}
		kind, rest, _ = strings.Cut(rest, "\n")
		if script, rest, found = strings.Cut(rest, "\n```"); !found || (kind != "run" && kind != "serve") {
			t.Fatalf("section %q has a block of kind %q", section, kind)
		}
		steps = append(steps, step{serve: kind == "serve", script: script})
	}
	if len(steps) == 0 {
		t.Fatalf("section %q has no commands", section)
	}
	return steps
}

// drill runs a runbook.
type drill struct {
	t       *testing.T
	dir     string
	env     []string
	hosts   map[int]string
	servers []*proc.Process
}

func newDrill(t *testing.T, c *cluster) *drill {
	t.Helper()
	needTools(t, "ssh-keygen", "bash", "grep")
	d := &drill{t: t, dir: folder(t, ""), hosts: map[int]string{}}
	t.Cleanup(func() {
		for _, p := range d.servers {
			p.Kill()
			lastWords.keep(t, p)
		}
	})
	key := filepath.Join(d.dir, "key")
	if _, err := command(limit(t, time.Minute), nil, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(d.dir, "bin")
	if err := errors.Join(os.Mkdir(bin, 0o755), os.Symlink(binary, filepath.Join(bin, "shoal"))); err != nil {
		t.Fatal(err)
	}
	d.env = []string{
		"PATH=" + bin + ":" + os.Getenv("PATH"), "HOME=" + d.dir,
		"BACKUP=" + filepath.Join(d.dir, "backup"), "RECOVERY=" + d.dir, "KEY=" + key,
	}
	for i := range 6 {
		n := i + 1
		d.env = append(d.env, fmt.Sprintf("REGION%d=r%d", n, n))
		host, data := proc.LoopbackHost(), filepath.Join(d.dir, fmt.Sprint("data", n))
		switch {
		case i < len(c.servers):
			host, data = c.servers[i].node.Host, c.servers[i].node.Data
		case i == 3: // The new first server has the address of an old one.
			host = c.servers[0].node.Host
		}
		d.hosts[n] = host
		d.env = append(d.env, fmt.Sprintf("HOST%d=%s", n, host), fmt.Sprintf("DATA%d=%s", n, data))
	}
	return d
}

// run runs the next steps of a runbook; each time between is called with the number of
// the step that comes.
func (d *drill) run(steps []step, before func(n int)) {
	d.t.Helper()
	for n, s := range steps {
		if before != nil {
			before(n)
		}
		if s.serve {
			d.serve(s.script)
			continue
		}
		out, err := command(limit(d.t, 3*time.Minute), d.env, "bash", "-euo", "pipefail", "-c", s.script)
		if err != nil {
			d.t.Fatalf("the runbook's\n%s\nfails: %v", s.script, err)
		}
		d.t.Logf("$ %s\n%s", s.script, out)
	}
}

// serve starts a server as the runbook says and waits until it is ready.
func (d *drill) serve(script string) {
	d.t.Helper()
	out, err := command(limit(d.t, time.Minute), d.env, "bash", "-euo", "pipefail", "-c", "echo "+script)
	if err != nil {
		d.t.Fatal(err)
	}
	args := strings.Fields(out)
	p := d.start(args)
	ops := ""
	for i, a := range args {
		if a == "--ops" {
			ops = args[i+1]
		}
	}
	if err := proc.Await(limit(d.t, 2*time.Minute), p.Name()+" to be ready", func(ctx context.Context) error {
		return proc.Ready(ctx, http.DefaultClient, ops)
	}, p); err != nil {
		d.t.Fatalf("%v\nlog: %s", err, p.LogTail(4096))
	}
}

func (d *drill) start(args []string) *proc.Process {
	d.t.Helper()
	name := fmt.Sprint("server of the runbook ", len(d.servers)+1)
	p, err := proc.Start(proc.Spec{Name: name, Path: binary, Args: args[1:], Log: filepath.Join(d.dir, fmt.Sprint("server", len(d.servers)+1, ".log")), Env: d.env})
	if err != nil {
		d.t.Fatal(err)
	}
	d.servers = append(d.servers, p)
	return p
}

// files are generic files that were published.
type files map[string][]byte

func (f files) publish(t *testing.T, host, token, name string, size int) (writeToken string) {
	t.Helper()
	content := bytes.Repeat([]byte(fmt.Sprintf("%s %d\n", name, seed())), size/20+1)[:size]
	status, header, body := f.request(t, http.MethodPut, host, token, name, "", content)
	if status != http.StatusCreated {
		t.Fatalf("publish %s: %d %s", name, status, body)
	}
	f[name] = content
	return header.Get("Shoal-Token")
}

func (f files) request(t *testing.T, method, host, token, name, after string, content []byte) (int, http.Header, []byte) {
	t.Helper()
	status, header, body, err := f.ask(limit(t, time.Minute), method, host, token, name, after, content)
	if err != nil {
		t.Fatal(err)
	}
	return status, header, body
}

func (f files) ask(ctx context.Context, method, host, token, name, after string, content []byte) (int, http.Header, []byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, "http://"+host+":"+proc.GatewayPort+"/generic/acme/files/"+name, bytes.NewReader(content))
	if err != nil {
		return 0, nil, nil, err
	}
	r.Header.Set("Authorization", "Bearer "+token)
	if after != "" {
		r.Header.Set("Shoal-Token", after)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, nil, nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, response.Header, body, err
}

// audit reads all files back, by each server.
func (f files) audit(t *testing.T, token string, hosts ...string) {
	t.Helper()
	for _, host := range hosts {
		for name, want := range f {
			if status, _, body := f.request(t, http.MethodGet, host, token, name, "", nil); status != http.StatusOK || !bytes.Equal(body, want) {
				t.Errorf("%s from %s: %d, %d bytes of %d", name, host, status, len(body), len(want))
			}
		}
	}
}

// follows waits until an agent that nobody told anything serves all files, those of the
// new epoch too.
func (f files) follows(t *testing.T, agent *member, token string) {
	t.Helper()
	if err := proc.Await(limit(t, 2*time.Minute), "the agent to follow", func(ctx context.Context) error {
		for name, want := range f {
			// A download that it breaks off, as it may while it looks for the servers, is tried again.
			status, _, body, err := f.ask(ctx, http.MethodGet, agent.node.Host, token, name, "", nil)
			if err != nil {
				return err
			}
			if status != http.StatusOK || !bytes.Equal(body, want) {
				return fmt.Errorf("%s: %d %.200s", name, status, body)
			}
		}
		return nil
	}, agent.process); err != nil {
		t.Error(err)
	}
}

// refusesToken requires that a token of the epoch before is refused with words.
func (f files) refusesToken(t *testing.T, host, token, old, name string) {
	t.Helper()
	status, _, body := f.request(t, http.MethodGet, host, token, name, old, nil)
	if status != http.StatusConflict || !strings.Contains(string(body), "before the cluster was recovered") {
		t.Errorf("the token %s of before: %d %s", old, status, body)
	}
}

// filled is a cluster of three regions, as the runbook assumes it, with files in it.
func filled(t *testing.T) (c *cluster, f files, writeToken string) {
	t.Helper()
	c = startCluster(t, 3, 1)
	c.shoal(t, c.servers[0], "tenant", "create", "acme")
	c.shoal(t, c.servers[0], "repo", "create", "acme/files", "--format", "generic", "--class", "critical", "--home", "r1")
	f = files{}
	for i := range 8 {
		writeToken = f.publish(t, c.servers[i%3].node.Host, c.token, fmt.Sprintf("v%d/file", i), 1000+i*i*i*1000)
	}
	// A publish is acknowledged with one copy: what only a lost server has is lost with it.
	c.settled(t, len(f))
	return c, f, writeToken
}

// TestRunbookRestore: backup and restore as deploy/runbooks/recovery.md says, after all
// servers were lost with their disks.
func TestRunbookRestore(t *testing.T) {
	c, f, old := filled(t)
	d := newDrill(t, c)
	// A non-voter is what the backup is taken from by preference; here a follower.
	d.run(runbook(t, "Backup"), nil)
	f.publish(t, c.servers[0].node.Host, c.token, "later/file", 5000) // In the second backup only.
	d.run(runbook(t, "Backup"), nil)
	for _, s := range c.servers {
		s.process.Kill()
		if err := os.RemoveAll(s.node.Data); err != nil {
			t.Fatal(err)
		}
	}
	d.run(runbook(t, "Restore"), nil)
	token, err := proc.AdminToken(filepath.Join(d.dir, "data4"))
	if err != nil {
		t.Fatal(err)
	}
	f.audit(t, token, d.hosts[4], d.hosts[5])
	f.refusesToken(t, d.hosts[4], token, old, "v0/file")
	if status, _, _ := f.request(t, http.MethodGet, d.hosts[4], c.token, "v0/file", "", nil); status != http.StatusUnauthorized {
		t.Errorf("the administrator's token of before: %d", status)
	}
	f.publish(t, d.hosts[5], token, "after/file", 3000)
	f.audit(t, token, d.hosts[4], d.hosts[5])
	f.follows(t, c.agents[0], token)
}

// TestRunbookLostQuorum: two of three voters are gone, the rest goes on as the runbook
// says, and a server of before that is started as it was must not serve.
func TestRunbookLostQuorum(t *testing.T) {
	c, f, old := filled(t)
	d := newDrill(t, c)
	c.servers[2].process.Kill()
	// Two of three are a quorum: recovering is refused, naming why.
	c.servers[1].process.Kill()
	if out, err := command(limit(t, time.Minute), d.env, "bash", "-c", "shoal recover --data $DATA2 --yes"); err == nil || !strings.Contains(out, "2 of 3 voters can be reached") {
		t.Fatalf("with a quorum in reach: %v %s", err, out)
	}
	c.servers[0].process.Kill() // With its disk, but for the token in the operator's hands.
	if err := os.RemoveAll(filepath.Join(c.servers[0].node.Data, "raft")); err != nil {
		t.Fatal(err)
	}
	steps := runbook(t, "Lost quorum")
	d.run(steps, func(n int) {
		if !strings.Contains(steps[n].script, "discard") {
			return
		}
		// What if it is started as if nothing had happened?
		c.servers[2].again()
		if err := c.begin(c.servers[2]); err != nil {
			t.Fatal(err)
		}
		select {
		case <-c.servers[2].process.Done():
		case <-limit(t, 2*time.Minute).Done():
			t.Fatal("a server of the epoch before goes on")
		}
		if log := c.servers[2].process.LogTail(2000); c.servers[2].process.Err() == nil || !strings.Contains(log, "is in epoch 1") {
			t.Errorf("a server of the epoch before ends with %v: %s", c.servers[2].process.Err(), log)
		}
	})
	f.audit(t, c.token, d.hosts[2], d.hosts[3])
	f.refusesToken(t, d.hosts[2], c.token, old, "v0/file")
	if now := f.publish(t, d.hosts[3], c.token, "after/file", 3000); !strings.HasPrefix(now, "1.") {
		t.Errorf("the token of a write after the recovery is %s", now)
	}
	f.audit(t, c.token, d.hosts[2], d.hosts[3])
	f.follows(t, c.agents[0], c.token)
}
