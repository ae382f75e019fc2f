package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/proc"
)

// as runs a client verb with another token than the administrator's.
func (c *cluster) as(ctx context.Context, at *member, token string, args ...string) (string, error) {
	env := []string{"SHOAL_SERVER=http://" + at.gateway(), "SHOAL_TOKEN=" + token, "HOME=" + c.dir}
	return proc.Run(ctx, nil, binary, env, args...)
}

// made is a token of a principal.
type made struct {
	ID    string `json:"id"`
	Token string `json:"token"`
}

func (c *cluster) tokenOf(t *testing.T, principal string) made {
	t.Helper()
	out := c.shoal(t, c.servers[0], "token", "create", "--for", principal, "--ttl", "1h", "--json")
	var m made
	if err := json.Unmarshal([]byte(out), &m); err != nil || m.ID == "" || m.Token == "" {
		t.Fatalf("token create --json prints %s: %v", out, err)
	}
	return m
}

// TestIncident is the drill: the token of a robot is stolen and publishes three versions
// at two nodes. One command contains it everywhere, the report lists all, and what
// others published is served as before. Then break-glass, across the loss of the leader.
func TestIncident(t *testing.T) {
	c := startCluster(t, 3, 1)
	ctx := limit(t, 5*time.Minute)
	c.createRepo(t, "app")
	first, second, agent := c.servers[0], c.servers[1], c.agents[0]
	c.shoal(t, first, "robot", "create", "acme/ci", "--role", "publisher", "--on", "acme/*")
	for _, who := range []string{"ada", "bob"} {
		c.shoal(t, first, "user", "create", who, "--role", "operator", "--on", "*")
	}
	good, stolen := c.tokenOf(t, "robot:acme/ci"), c.tokenOf(t, "robot:acme/ci")

	const repository = "acme/app/api"
	push := func(at *member, token, tag string) *image.Image {
		t.Helper()
		img := makeImage(t, 2, 50_000)
		if err := at.registry(token).Push(ctx, repository, tag, img); err != nil {
			t.Fatalf("push %s: %v", tag, err)
		}
		return img
	}
	sound := []*image.Image{push(first, good.Token, "1.0"), push(second, good.Token, "latest")}
	bad := []*image.Image{push(first, stolen.Token, "1.1"), push(second, stolen.Token, "1.2"), push(second, stolen.Token, "latest")}
	// The agent has them cached, by name and by digest.
	for _, img := range append(bad[:2:2], sound[0]) {
		if _, err := agent.registry("").Pull(ctx, repository, img.Digest()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := agent.registry("").Pull(ctx, repository, "1.1"); err != nil {
		t.Fatal(err)
	}

	out := c.shoal(t, first, "incident", "open", "--token", stolen.Token, "--reason", "the runner was taken over", "--restore-aliases", "--json")
	var report struct {
		ID, State, Principal           string
		Quarantined, Restored, Revoked int
		Items                          []struct {
			Outcome string
			Act     struct {
				Kind, Package, Name, Credential string
				Audit                           int
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if report.Quarantined != 3 || report.Restored != 1 || report.Revoked != 1 || report.State == "containing" || strings.Contains(out, stolen.Token) {
		t.Errorf("the report is %s", out)
	}
	listed := map[string]bool{}
	for _, i := range report.Items {
		if i.Act.Credential != stolen.ID || i.Act.Audit == 0 {
			t.Errorf("finding %+v", i)
		}
		listed[i.Act.Kind+" "+i.Act.Name+" "+i.Outcome] = true
	}
	for _, img := range bad {
		if !listed["published "+img.Digest()+" quarantined"] {
			t.Errorf("the report lacks %s: %v", img.Digest(), listed)
		}
	}

	// Nobody serves them any more: at once where the log is, within the feed's time elsewhere.
	refused := func(at *member, token, reference string) {
		t.Helper()
		if err := proc.Await(ctx, at.name+" to refuse "+reference, func(ctx context.Context) error {
			r := at.registry(token)
			header := http.Header{"Accept": {"*/*"}}
			response, err := r.Do(ctx, http.MethodGet, "/v2/"+repository+"/manifests/"+reference, header, nil, 0, http.StatusForbidden)
			if err != nil {
				return err
			}
			defer response.Body.Close()
			body, err := io.ReadAll(response.Body)
			if err == nil && (!strings.Contains(string(body), "DENIED") || !strings.Contains(string(body), "the runner was taken over")) {
				err = fmt.Errorf("refused with %s", body)
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	}
	for _, at := range c.members() {
		token := good.Token
		if at == agent {
			token = ""
		}
		refused(at, token, "1.1")
		for _, img := range bad {
			refused(at, token, img.Digest())
		}
		if _, err := at.registry(token).Pull(ctx, repository, sound[0].Digest()); err != nil {
			t.Errorf("%s serves the sound one no more: %v", at.name, err)
		}
		if _, err := at.registry(token).Pull(ctx, repository, "latest"); err != nil {
			t.Errorf("%s: latest is not back: %v", at.name, err)
		}
	}
	// The token is over, in every form and for what it had begun.
	if err := second.registry(stolen.Token).Push(ctx, repository, "1.3", makeImage(t, 1, 1000)); image.StatusOf(err) != http.StatusUnauthorized {
		t.Errorf("a push with the stolen token: %v", err)
	}
	if err := second.registry(good.Token).Push(ctx, repository, "1.3", makeImage(t, 1, 1000)); err != nil {
		t.Errorf("a push with the other token of the robot: %v", err)
	}
	t.Run("curl", func(t *testing.T) {
		needTools(t, "curl")
		out, err := command(ctx, nil, "curl", "-s", "-w", " %{http_code}", "-u", "any:"+good.Token, "http://"+second.gateway()+"/v2/"+repository+"/manifests/1.2")
		if err != nil || !strings.Contains(out, "the runner was taken over") || !strings.HasSuffix(out, " 403") {
			t.Errorf("curl prints %s: %v", out, err)
		}
	})
	each(t, []string{"docker"}, func(t *testing.T, client client, s session) {
		if _, err := s.pull(ctx, agent.gateway()+"/"+repository+":1.2"); err == nil || !strings.Contains(err.Error(), "denied") {
			t.Errorf("%s pulls: %v", client.name, err)
		}
	})
	if err := proc.Await(ctx, "all bytes to be read again", func(ctx context.Context) error {
		out, err := c.verb(ctx, c.servers[2], "incident", "show", report.ID, "--json")
		if err == nil && !strings.Contains(out, `"state": "contained"`) {
			err = fmt.Errorf("it is %.400s", out)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	c.shoal(t, first, "incident", "release", "acme/app/api@"+bad[0].Digest(), "--reason", "built again, byte for byte")
	if _, err := second.registry(good.Token).Pull(ctx, repository, bad[0].Digest()); err != nil {
		t.Errorf("what was released is not served: %v", err)
	}
	refused(first, good.Token, "1.2")
	c.shoal(t, first, "incident", "close", report.ID, "--note", "the runner was rebuilt")

	t.Run("break-glass", func(t *testing.T) { c.breakGlass(ctx, t, "acme/app/api@"+bad[1].Digest()) })
}

// breakGlass has one operator elevated by another, and the leader killed meanwhile: the
// elevation ends by itself.
func (c *cluster) breakGlass(ctx context.Context, t *testing.T, version string) {
	ada, bob := c.tokenOf(t, "user:ada").Token, c.tokenOf(t, "user:bob").Token
	at := c.servers[0]
	leader := c.leader(ctx, t, nil)
	if at == leader {
		at = c.servers[1]
	}
	if out, err := c.as(ctx, at, ada, "version", "release", version, "--reason", "x"); err == nil {
		t.Errorf("an operator releases: %s", out)
	}
	var e struct{ ID, State string }
	elevation := func(token string, args ...string) {
		t.Helper()
		out, err := c.as(ctx, at, token, append([]string{"break-glass"}, append(args, "--json")...)...)
		if err == nil {
			err = json.Unmarshal([]byte(out), &e)
		}
		if err != nil {
			t.Fatalf("break-glass %v: %v in %s", args, err, out)
		}
	}
	elevation(ada, "request", "--role", "curator", "--scope", "acme/*", "--reason", "prod is down", "--ttl", "20s")
	elevation(bob, "approve", e.ID)
	if e.State != "active" {
		t.Fatalf("it is %+v", e)
	}
	if out, err := c.as(ctx, at, bob, "status"); err != nil || !strings.Contains(out, "BREAK-GLASS: user:ada") {
		t.Errorf("status says %s: %v", out, err)
	}
	if out, err := c.as(ctx, at, ada, "version", "release", version, "--reason", "prod needs it"); err != nil {
		t.Errorf("under the elevation: %v %s", err, out)
	}
	leader.process.Kill()
	if err := proc.Await(ctx, "the elevation to be over", func(ctx context.Context) error {
		out, err := c.as(ctx, at, bob, "break-glass", "list", "--unreviewed", "--json")
		if err == nil && (!strings.Contains(out, e.ID) || !strings.Contains(out, `"expired"`)) {
			err = fmt.Errorf("unreviewed are %s", out)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if out, err := c.as(ctx, at, ada, "version", "quarantine", version, "--reason", "and back"); err == nil {
		t.Errorf("after its end: %s", out)
	}
	elevation(bob, "review", e.ID, "--note", "one version, as asked")
}
