package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/proc"
	"github.com/shoal-registry/shoal/gateway/federation/issuertest"
)

// jobs has CI jobs come with tokens of an issuer, to a server and to an agent: each gets
// what the rule says and no more, also while the issuer is gone, until the issuer is
// trusted no more.
func (c *cluster) jobs(t *testing.T) {
	ctx := limit(t, 3*time.Minute)
	server, agent := c.servers[0], c.agents[0]
	c.createRepo(t, "app")
	c.createRepo(t, "other")
	img := makeImage(t, 1, 10_000)

	const audience = "https://registry.example"
	issuer := issuertest.New(t)
	home := folder(t, "")
	roots := filepath.Join(home, "issuer.pem")
	if err := os.WriteFile(roots, issuer.Roots(), 0o600); err != nil {
		t.Fatal(err)
	}
	c.shoal(t, server, "oidc", "add", "acme/forge", "--url", issuer.URL(), "--audience", audience, "--ca", roots,
		"--rule", `main: publisher on acme/app when claims.project_path == "acme/app" && claims.ref_protected == "true"`)

	job := func(project string) string {
		return issuer.Sign(audience, map[string]any{"sub": "project_path:" + project, "project_path": project, "ref_protected": "true"})
	}
	// verb runs a client verb with something on its standard input, as someone without a credential.
	verb := func(as, input string, args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, binary, args...)
		cmd.Stdin, cmd.Env = strings.NewReader(input), []string{"HOME=" + home, "XDG_CONFIG_HOME=" + home}
		if as != "" {
			cmd.Env = append(cmd.Env, "SHOAL_SERVER=http://"+server.gateway(), "SHOAL_TOKEN="+as)
		}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	// exchange is what a job does that has no shoal: RFC 8693.
	exchange := func(at *member, token string) (int, map[string]any) {
		t.Helper()
		answer, err := http.PostForm("http://"+at.gateway()+"/token/exchange", url.Values{
			"grant_type":         {"urn:ietf:params:oauth:grant-type:token-exchange"},
			"subject_token_type": {"urn:ietf:params:oauth:token-type:id_token"},
			"subject_token":      {token},
			"audience":           {"acme"},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		var body map[string]any
		if err := json.NewDecoder(answer.Body).Decode(&body); err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode, body
	}

	if out, err := verb(c.token, job("acme/app")+"\n", "oidc", "test", "acme/forge"); err != nil || !strings.Contains(out, "holds: main") {
		t.Errorf("oidc test of the project's: %v %s", err, out)
	}
	if out, err := verb(c.token, job("acme/evil")+"\n", "oidc", "test", "acme/forge"); err == nil {
		t.Errorf("oidc test of another project's: %s", out)
	}

	// publishes tries a job's credential where the rule says, and elsewhere.
	tag := 0
	publishes := func(at *member, token string) {
		t.Helper()
		tag++
		if err := at.registry(token).Push(ctx, "acme/app/image", fmt.Sprint(tag), img); err != nil {
			t.Errorf("%s: a push where the rule says: %v", at.name, err)
		}
		if _, err := at.registry(token).Pull(ctx, "acme/app/image", fmt.Sprint(tag)); err != nil {
			t.Errorf("%s: a pull where the rule says: %v", at.name, err)
		}
		if err := at.registry(token).Push(ctx, "acme/other/image", "1", img); image.StatusOf(err)/100 != 4 {
			t.Errorf("%s: a push elsewhere: %v", at.name, err)
		}
		if err := at.registry(token).Push(ctx, "acme/public/image", "9", img); image.StatusOf(err) != http.StatusForbidden {
			t.Errorf("%s: a push to what all may read: %v", at.name, err)
		}
	}
	var held []string // credentials, one a way
	for _, at := range []*member{server, agent} {
		if out, err := verb("", job("acme/app")+"\n", "login", "http://"+at.gateway(), "--oidc-token-stdin", "--tenant", "acme"); err != nil {
			t.Fatalf("login at the %s: %v", at.node.Role, err)
		} else if !strings.Contains(out, "ci:acme/forge/project_path:acme/app") {
			t.Errorf("login says %s", out)
		}
		if out, err := verb("", "", "whoami"); err != nil || !strings.Contains(out, "publisher on acme/app") {
			t.Errorf("whoami says %s: %v", out, err)
		}
		if out, err := verb("", job("acme/evil")+"\n", "login", "http://"+at.gateway(), "--oidc-token-stdin", "--tenant", "acme"); err == nil {
			t.Errorf("another project's job logs in at the %s: %s", at.node.Role, out)
		}
		status, body := exchange(at, job("acme/app"))
		token, _ := body["access_token"].(string)
		if status != http.StatusOK || token == "" {
			t.Fatalf("an exchange at the %s: %d %v", at.node.Role, status, body)
		}
		held = append(held, token)
		publishes(server, token)
		publishes(agent, token)
		// RFC 6749, 5.2: what is wrong is the grant, not who asks.
		for name, token := range map[string]string{
			"another project's": job("acme/evil"),
			"another audience":  issuer.Sign("elsewhere", map[string]any{"project_path": "acme/app", "ref_protected": "true"}),
			"no token":          "x.y.z",
		} {
			if status, body := exchange(at, token); status != http.StatusBadRequest || body["error"] != "invalid_grant" {
				t.Errorf("%s token at the %s: %d %v", name, at.node.Role, status, body)
			}
		}
	}

	issuer.Stop()
	for _, at := range []*member{server, agent} {
		status, body := exchange(at, job("acme/app"))
		if status != http.StatusOK {
			t.Errorf("while the issuer is gone, at the %s: %d %v", at.node.Role, status, body)
			continue
		}
		token, _ := body["access_token"].(string)
		publishes(at, token)
	}

	c.shoal(t, server, "oidc", "rm", "acme/forge")
	if status, body := exchange(server, job("acme/app")); status != http.StatusBadRequest {
		t.Errorf("an exchange after the issuer was removed: %d %v", status, body)
	}
	for _, token := range held {
		for _, at := range []*member{server, agent} {
			if err := at.registry(token).Push(ctx, "acme/app/image", "late", img); image.StatusOf(err) != http.StatusUnauthorized {
				t.Errorf("%s: a push after the issuer was removed: %v", at.name, err)
			}
			if err := proc.Await(ctx, at.name+" to serve the job no more", func(ctx context.Context) error {
				if _, err := at.registry(token).Pull(ctx, "acme/app/image", "1"); image.StatusOf(err) != http.StatusUnauthorized {
					return fmt.Errorf("it says %w", err)
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
		}
	}
}
