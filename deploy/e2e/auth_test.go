package e2e

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/proc"
)

// A server, unlike dev, lets nobody in without a credential; each client logs in its own
// way: with the administrator's token, with a user's, or with the user's password.
func TestLogin(t *testing.T) {
	c := startCluster(t, 1, 1, "--outgoing-allow", "127.0.0.0/8") // the issuer's
	c.createRepo(t, "private")
	c.createRepo(t, "public", "--visibility", "public")
	ctx := limit(t, 3*time.Minute)
	server := c.servers[0]
	img := makeImage(t, 1, 10_000)
	for _, repository := range []string{"acme/private/image", "acme/public/image"} {
		if err := server.registry(c.token).Push(ctx, repository, "1", img); err != nil {
			t.Fatal(err)
		}
	}

	t.Run("anonymous", func(t *testing.T) {
		nobody := server.registry("")
		if _, err := nobody.Pull(ctx, "acme/private/image", "1"); image.StatusOf(err) != http.StatusUnauthorized {
			t.Errorf("a private repository: %v", err)
		}
		// A real client turns the challenge into a token for nobody, which reads what is public.
		needTools(t, "crane")
		if _, err := command(ctx, []string{"HOME=" + folder(t, "")}, "crane", "digest", "--insecure", server.gateway()+"/acme/public/image:1"); err != nil {
			t.Errorf("a public repository: %v", err)
		}
		if err := nobody.Push(ctx, "acme/public/image", "2", makeImage(t, 1, 100)); image.StatusOf(err) != http.StatusUnauthorized {
			t.Errorf("an anonymous push: %v", err)
		}
	})
	t.Run("agent's loopback reads as its host", func(t *testing.T) {
		if _, err := c.agents[0].registry("").Pull(ctx, "acme/private/image", "1"); err != nil {
			t.Error(err)
		}
	})

	t.Run("oidc", c.jobs)

	const password = "correct horse battery"
	c.shoal(t, server, "user", "create", "ada", "--role", "publisher", "--on", "acme/*")
	token := strings.TrimSpace(c.shoal(t, server, "token", "create", "--for", "user:ada"))
	request, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://"+server.gateway()+"/api/v1/users/ada/password", strings.NewReader(`{"password": "`+password+`"}`))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+c.token)
	answer, err := http.DefaultClient.Do(request)
	if err != nil || answer.StatusCode != http.StatusNoContent {
		t.Fatalf("set a password: %+v %v", answer, err)
	}
	answer.Body.Close()

	each(t, []string{"crane", "skopeo", "docker", "podman", "oras", "regctl"}, func(t *testing.T, client client, s session) {
		host := server.gateway()
		var login []string
		var env []string
		switch s := s.(type) {
		case layoutClient:
			env = s.env
			login = map[string][]string{
				"crane":  {"crane", "auth", "login", host, "--username", "admin", "--password", c.token},
				"skopeo": {"skopeo", "login", "--tls-verify=false", "--username", "ada", "--password", password, host},
				"oras":   {"oras", "login", "--plain-http", "--username", "ada", "--password", token, host},
				"regctl": {"regctl", "registry", "login", "--user", "ada", "--pass", token, "--skip-check", host},
			}[client.name]
			if client.name == "skopeo" {
				login = append(login, "--authfile", authFile(env))
			}
		case docker:
			env, login = s.env, []string{"docker", "login", "--username", "ada", "--password", password, host}
		case storage:
			env = s.env
			login = append([]string{"podman"}, append(s.args, "login", "--tls-verify=false", "--username", "ada", "--password", password, host)...)
		}
		if _, err := command(ctx, env, login[0], login[1:]...); err != nil {
			t.Fatal(err)
		}
		name := host + "/acme/private/" + client.name
		digest, err := s.push(ctx, makeImage(t, 2, 100_000), name+":1")
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.pull(ctx, name+":1")
		if err != nil || got != digest {
			t.Errorf("pulled %s, pushed %s: %v", got, digest, err)
		}
	})

	t.Run("a revoked token is worth nothing", func(t *testing.T) {
		agent := c.agents[0]
		if _, err := agent.registry(token).Pull(ctx, "acme/private/image", "1"); err != nil {
			t.Fatal(err)
		}
		c.shoal(t, server, "token", "revoke", strings.Split(token, "_")[1])
		if err := server.registry(token).Push(ctx, "acme/private/image", "2", img); image.StatusOf(err) != http.StatusUnauthorized {
			t.Errorf("a push at the server: %v", err)
		}
		if err := proc.Await(ctx, "the agent to refuse it", func(ctx context.Context) error {
			_, err := agent.registry(token).Pull(ctx, "acme/private/image", "1")
			if image.StatusOf(err) != http.StatusUnauthorized {
				return fmt.Errorf("it answers %v", err)
			}
			return nil
		}, agent.process); err != nil {
			t.Fatal(err)
		}
	})
}

// authFile is where skopeo looks when HOME is what env says and there is no runtime folder.
func authFile(env []string) string {
	for _, pair := range env {
		if home, ok := strings.CutPrefix(pair, "HOME="); ok {
			return home + "/.docker/config.json"
		}
	}
	return ""
}
