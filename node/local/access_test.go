package local_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/node/config"
	"github.com/shoal-registry/shoal/node/local"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// member is somebody with a token, or nobody with "".
type member struct {
	*testing.T
	token string
}

// do sends a request of the generic protocol to a gateway and returns the status.
func (m member) do(method, base, path, body string) int {
	m.Helper()
	r, err := http.NewRequestWithContext(m.Context(), method, base+"/generic/"+path, strings.NewReader(body))
	if err != nil {
		m.Fatal(err)
	}
	if m.token != "" {
		r.Header.Set("Authorization", "Bearer "+m.token)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		m.Fatal(err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// TestWhoMayWhat has several accounts work on a server and an agent that ask for
// credentials: each may what its bindings say, at both, and no longer than they say it.
func TestWhoMayWhat(t *testing.T) {
	cluster, stop := start(t, local.Options{
		Dir: t.TempDir(), Regions: 1, Agents: 1, Configure: func(c *config.Config) { c.Dev = false },
	})
	defer stop()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	desc := cluster.Description()
	server, agent := "http://"+desc.Servers[0].Gateway, "http://"+desc.Agents[0].Gateway
	admin := &client.Client{Base: server + "/", Token: desc.AdminToken}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range []client.NewRepository{
		{Ref: meta.RepoRef{Tenant: "acme", Name: "dev"}, Environment: "dev", CreateTenant: true},
		{Ref: meta.RepoRef{Tenant: "acme", Name: "prod"}, Environment: "prod"},
		{Ref: meta.RepoRef{Tenant: "globex", Name: "app"}, CreateTenant: true},
	} {
		r.Format = "generic"
		_, err := admin.CreateRepository(ctx, r)
		must(err)
	}
	bind := func(principal, role, on string, change ...func(*client.NewBinding)) meta.Binding {
		n := client.NewBinding{Principal: principal, Role: role, Repository: on}
		for _, f := range change {
			f(&n)
		}
		b, err := admin.AddBinding(ctx, n)
		must(err)
		return b
	}
	who := map[string]member{"nobody": {t, ""}, "admin": {t, desc.AdminToken}}
	join := func(name, principal string) {
		_, err := admin.CreateAccount(ctx, principal, "")
		must(err)
		token, err := admin.CreateToken(ctx, client.NewToken{Principal: principal})
		must(err)
		who[name] = member{t, token.Text}
	}
	join("reader", "user:reader")
	join("publisher", "robot:acme/ci")
	join("curator", "user:curator")
	join("tenant admin", "user:tess")
	join("stranger", "user:stranger")
	bind("user:reader", "reader", "acme/*")
	publisher := bind("robot:acme/ci", "publisher", "acme/*", func(n *client.NewBinding) { n.Environment = "dev" })
	bind("user:curator", "curator", "acme/*")
	bind("user:tess", "tenant-admin", "acme/*")
	bind("user:stranger", "publisher", "globex/*")

	// What an agent's host reads without credentials are the patterns of its join token,
	// which are all here. Each row is of one caller: the statuses at server and agent.
	const path = "acme/dev/tools/a"
	if got := who["admin"].do(http.MethodPut, server, path, "one"); got != http.StatusCreated {
		t.Fatalf("the administrator's push: %d", got)
	}
	for name, want := range map[string][6]int{
		//             pull: server, agent; push of a second: dev, prod; delete; another tenant's
		"nobody":       {401, 200, 401, 401, 401, 401},
		"reader":       {200, 200, 403, 403, 403, 404},
		"publisher":    {200, 200, 201, 404, 403, 404},
		"curator":      {200, 200, 403, 403, 204, 404},
		"tenant admin": {200, 200, 201, 201, 204, 404},
		"stranger":     {404, 404, 404, 404, 404, 201},
	} {
		m := who[name]
		file := strings.ReplaceAll(name, " ", "-")
		// What is deleted is made anew for each: a deleted path never takes other bytes.
		gone := "acme/dev/gone/" + file
		if got := who["admin"].do(http.MethodPut, server, gone, name); got != http.StatusCreated {
			t.Fatalf("the administrator's push: %d", got)
		}
		got := [6]int{
			m.do(http.MethodGet, server, path, ""), m.do(http.MethodGet, agent, path, ""),
			m.do(http.MethodPut, agent, "acme/dev/of/"+file, name), m.do(http.MethodPut, server, "acme/prod/of/"+file, name),
			m.do(http.MethodDelete, agent, gone, ""), m.do(http.MethodPut, server, "globex/app/of/"+file, name),
		}
		if got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}

	// At an agent the tenant's administrator manages the tenant, through a server.
	tess := &client.Client{Base: agent + "/", Token: who["tenant admin"].token}
	if _, err := tess.CreateAccount(ctx, "robot:acme/late", ""); err != nil {
		t.Error(err)
	}
	if _, err := tess.CreateAccount(ctx, "robot:globex/late", ""); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("in another tenant: %v", err)
	}
	answer, err := tess.Can(ctx, client.Can{Principal: "robot:acme/ci", Action: meta.ActionPush, Resource: "acme/prod"})
	if err != nil || answer.Allowed || answer.Reason != "no right" {
		t.Errorf("%+v %v", answer, err)
	}

	// What is taken back ends at both, and what is given begins.
	until := func(what string, m member, base, path string, want int) {
		t.Helper()
		for got := 0; ; {
			if got = m.do(http.MethodGet, base, path, ""); got == want {
				return
			}
			select {
			case <-ctx.Done():
				t.Fatalf("%s: %d, want %d", what, got, want)
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	must(admin.RemoveBinding(ctx, publisher.ID))
	for _, base := range []string{server, agent} {
		until("without its binding", who["publisher"], base, path, http.StatusNotFound)
	}
	bind("robot:acme/ci", "reader", "acme/dev")
	for _, base := range []string{server, agent} {
		until("with another", who["publisher"], base, path, http.StatusOK)
	}
	bind("user:reader", "reader", "acme/dev", func(n *client.NewBinding) { n.Deny = true })
	for _, base := range []string{server, agent} {
		until("denied", who["reader"], base, path, http.StatusNotFound)
	}
	yes := true
	_, err = admin.SetAccount(ctx, "user:curator", client.AccountChange{Disabled: &yes})
	must(err)
	for _, base := range []string{server, agent} {
		until("disabled", who["curator"], base, path, http.StatusUnauthorized)
	}
}
