package gateway_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/shoal-registry/shoal/gateway"
	"github.com/shoal-registry/shoal/gateway/protocol/protocoltest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// trail remembers what a gateway tells.
type trail struct {
	mu   sync.Mutex
	told []told
}

type told struct {
	kind   string
	facts  gateway.CallFacts
	reason string
	bytes  int64
}

func (t *trail) add(e told) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.told = append(t.told, e)
}

func (t *trail) Denied(f gateway.CallFacts, reason string)      { t.add(told{"denied", f, reason, 0}) }
func (t *trail) LoginFailed(f gateway.CallFacts, reason string) { t.add(told{"login", f, reason, 0}) }
func (t *trail) Pulled(f gateway.CallFacts, bytes int64)        { t.add(told{"pulled", f, "", bytes}) }
func (t *trail) Minted(f gateway.CallFacts)                     { t.add(told{"minted", f, "", 0}) }

// of returns what was told of a request.
func (t *trail) of(request string) []told {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(t.told), func(e told) bool { return e.facts.Request != request })
}

// TestTrail: the node that serves a call tells of it, once, with the request's id; a
// challenge, a HEAD and what is just not there are not told.
func TestTrail(t *testing.T) {
	c := newCluster(t)
	c.records.PutRepository(meta.Repository{Ref: meta.RepoRef{Tenant: "acme", Name: "other"}, Format: "toy", Visibility: meta.VisibilityPrivate})
	with := func(tr *trail) func(*testNode, *gateway.Config) {
		return func(_ *testNode, c *gateway.Config) { c.Trail = tr }
	}
	var atServer, atAgent trail
	server := c.start(meta.RoleServer, with(&atServer))
	agent := c.start(meta.RoleAgent, with(&atAgent))
	cl := client(t, nil, false)
	base := "http://" + server.addr
	_, body := call(t, cl, "GET", base+"/token?service=shoal&scope=repository:acme/other:pull", nil, asAdmin()...)
	var narrow struct{ Token string }
	if err := json.Unmarshal([]byte(body), &narrow); err != nil || narrow.Token == "" {
		t.Fatalf("%s: %v", body, err)
	}
	bearer := func(token string) []string { return []string{"Authorization", "Bearer " + token} }
	tests := map[string]struct {
		method, url string
		header      []string
		kind        string
		agent       bool // the agent tells
	}{
		"a pull":                     {"GET", base + "/toy/acme/app/doc", asAdmin(), "pulled", false},
		"a HEAD":                     {"HEAD", base + "/toy/acme/app/doc", asAdmin(), "", false},
		"a challenge":                {"GET", base + "/toy/acme/app/doc", nil, "", false},
		"a wrong token":              {"GET", base + "/toy/acme/app/doc", bearer("wrong"), "login", false},
		"a wrong login":              {"GET", base + "/token", bearer("wrong"), "login", false},
		"a token that is too narrow": {"GET", base + "/toy/acme/app/doc", bearer(narrow.Token), "denied", false},
		"what is not there":          {"GET", base + "/toy/acme/none/doc", asAdmin(), "", false},
		"a token":                    {"GET", base + "/token?service=shoal", asAdmin(), "minted", false},
		"a pull of the host":         {"GET", "http://" + agent.addr + "/toy/acme/app/doc", nil, "pulled", true},
		"a token by an agent":        {"GET", "http://" + agent.addr + "/token?service=shoal", asAdmin(), "minted", false},
	}
	requests := map[string]string{}
	for name, test := range tests {
		resp, _ := call(t, cl, test.method, test.url, nil, test.header...)
		if requests[name] = resp.Header.Get("Shoal-Request-Id"); requests[name] == "" {
			t.Fatalf("%s: no request id", name)
		}
	}
	// A call is told when it is over, which may be after its answer was read.
	for _, n := range []*testNode{server, agent} {
		n.stop()
		n.await(t)
	}
	for name, test := range tests {
		at, other := &atServer, &atAgent
		if test.agent {
			at, other = other, at
		}
		got := at.of(requests[name])
		if len(other.of(requests[name])) > 0 {
			t.Errorf("%s: the other node tells", name)
		}
		switch {
		case test.kind == "" && len(got) > 0:
			t.Errorf("%s is told: %+v", name, got)
		case test.kind == "":
		case len(got) != 1 || got[0].kind != test.kind:
			t.Errorf("%s is told as %+v", name, got)
		case test.kind == "pulled" && (got[0].bytes != int64(len("hello")) || got[0].facts.Repository != "acme/app" || got[0].facts.Principal == ""):
			t.Errorf("%s: %+v", name, got[0])
		case strings.Contains(fmt.Sprint(got), protocoltest.AdminToken):
			t.Errorf("%s: the secret is told: %+v", name, got)
		}
	}
}
