package access

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

var (
	ref         = meta.RepoRef{Tenant: "acme", Name: "app"}
	private     = &meta.Repository{Ref: ref, Visibility: meta.VisibilityPrivate}
	public      = &meta.Repository{Ref: ref, Visibility: meta.VisibilityPublic}
	anonymous   = meta.Anonymous
	admin       = meta.Principal{Name: "admin:bootstrap", Admin: true}
	reader      = meta.Principal{Name: "user:r", Rights: readRights([]string{"acme/*"})}
	writer      = meta.Principal{Name: "user:w", Rights: []meta.Right{{Actions: []Action{Push, Delete}, Repository: "acme/app"}}}
	stranger    = meta.Principal{Name: "user:s", Rights: []meta.Right{{Actions: []Action{Pull, List, Push, Delete}, Repository: "other/*"}}}
	host        = meta.Principal{Name: "host:n1", Rights: readRights([]string{"acme/app"})}
	strangeHost = meta.Principal{Name: "host:n2"}
	nodeWho     = meta.Principal{Name: "node:n1", Node: "n1", Role: meta.RoleAgent}
)

// The table is the rule: rows are callers, columns are actions on a private, a
// public and an absent repository.
func TestAuthorize(t *testing.T) {
	const ok, challenge, notFound, denied = "ok", "401", "404", "403"
	type column struct {
		action Action
		repo   *meta.Repository
	}
	columns := []column{{Pull, private}, {Pull, public}, {Pull, nil}, {Push, private}, {Push, public}, {Push, nil}, {Delete, private}, {Delete, public}, {Delete, nil}, {List, private}, {List, nil}}
	for _, row := range []struct {
		who  meta.Principal
		want []string // by column
	}{
		{anonymous, []string{challenge, ok, challenge, challenge, challenge, challenge, challenge, challenge, challenge, challenge, challenge}},
		{host, []string{ok, ok, notFound, challenge, challenge, challenge, challenge, challenge, challenge, ok, notFound}},
		{strangeHost, []string{challenge, ok, challenge, challenge, challenge, challenge, challenge, challenge, challenge, challenge, challenge}},
		{admin, []string{ok, ok, notFound, ok, ok, ok, ok, ok, notFound, ok, notFound}},
		{reader, []string{ok, ok, notFound, denied, denied, notFound, denied, denied, notFound, ok, notFound}},
		{writer, []string{notFound, ok, notFound, ok, ok, ok, ok, ok, notFound, notFound, notFound}},
		{stranger, []string{notFound, ok, notFound, notFound, denied, notFound, notFound, denied, notFound, notFound, notFound}},
	} {
		for i, c := range columns {
			if got := verdict(Authorize(Policy{}, row.who, c.action, Target{Repo: ref, Record: c.repo})); got != row.want[i] {
				t.Errorf("%s %s %s: %s, want %s", row.who.Name, c.action, describe(c.repo), got, row.want[i])
			}
		}
	}
	for _, test := range []struct {
		policy Policy
		who    meta.Principal
		action Action
		want   string
	}{
		{Policy{}, anonymous, Public, ok}, {Policy{}, anonymous, Login, challenge}, {Policy{}, host, Login, challenge}, {Policy{}, reader, Login, ok},
		{Policy{AllowAnonymous: true}, anonymous, Login, ok},
		{Policy{}, anonymous, Admin, challenge}, {Policy{}, host, Admin, challenge}, {Policy{}, reader, Admin, denied}, {Policy{}, admin, Admin, ok},
		{Policy{AllowAnonymous: true}, anonymous, Admin, challenge},
		{Policy{}, anonymous, NodeOnly, denied}, {Policy{}, host, NodeOnly, denied}, {Policy{}, admin, NodeOnly, denied}, {Policy{}, nodeWho, NodeOnly, ok},
		{Policy{}, anonymous, List, challenge}, {Policy{}, reader, List, ok}, {Policy{}, host, List, ok}, {Policy{AllowAnonymous: true}, anonymous, List, ok},
		{Policy{}, admin, "fly", denied},
	} {
		if got := verdict(Authorize(test.policy, test.who, test.action, Target{Somewhere: test.action == List})); got != test.want {
			t.Errorf("%+v %s %s: %s, want %s", test.policy, test.who.Name, test.action, got, test.want)
		}
	}
}

// Absent and forbidden must be the same answer, to the letter, for everybody
// who may not read.
func TestAbsentLooksForbidden(t *testing.T) {
	for _, who := range []meta.Principal{anonymous, strangeHost, stranger} {
		for _, action := range []Action{Pull, Push, Delete, List} {
			absent, forbidden := Authorize(Policy{}, who, action, Target{Repo: ref}), Authorize(Policy{}, who, action, Target{Repo: ref, Record: private})
			if absent.Error() != forbidden.Error() {
				t.Errorf("%s %s: %q when absent, %q when forbidden", who.Name, action, absent, forbidden)
			}
		}
	}
}

func verdict(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, ErrChallenge):
		return "401"
	case errors.Is(err, meta.ErrNotFound):
		return "404"
	case errors.Is(err, meta.ErrDenied):
		return "403"
	}
	return err.Error()
}

func describe(r *meta.Repository) string {
	if r == nil {
		return "absent"
	}
	return string(r.Visibility)
}

// roster is a Metadata of nodes, principals and one admin token.
type roster struct {
	nodes   map[meta.NodeID]meta.Node
	token   string
	callers []state.Caller
	err     error
	epoch   uint64
	asked   []meta.Mode // for callers
}

func (m *roster) Caller(_ context.Context, q state.GetCaller, f meta.Freshness) (state.Caller, error) {
	m.asked = append(m.asked, f.Mode)
	if m.err != nil {
		return state.Caller{}, m.err
	}
	for _, c := range m.callers {
		switch {
		case q.Credential == "" && c.Principal == q.Principal:
			c.Credential = nil
			return c, nil
		case q.Credential != "" && c.Credential != nil && c.Credential.ID == q.Credential && (q.Hash == nil || bytes.Equal(c.Credential.Hash, q.Hash)):
			return c, nil
		}
	}
	return state.Caller{}, fmt.Errorf("%s%s: %w", q.Principal, q.Credential, meta.ErrNotFound)
}

func (m *roster) AdminTokenHash(context.Context) ([]byte, error) {
	sum := sha256.Sum256([]byte(m.token))
	return sum[:], m.err
}

func (m *roster) Epoch(context.Context) (uint64, error) { return m.epoch, m.err }

func (m *roster) Node(_ context.Context, id meta.NodeID) (meta.Node, error) {
	if m.err != nil {
		return meta.Node{}, m.err
	}
	n, ok := m.nodes[id]
	if !ok {
		return n, fmt.Errorf("node %s: %w", id, meta.ErrNotFound)
	}
	return n, nil
}

func (m *roster) Repository(context.Context, meta.RepoRef, meta.Freshness) (meta.Repository, error) {
	return meta.Repository{}, meta.ErrNotFound
}

func keyOf(id meta.NodeID) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte(id))
	return ed25519.NewKeyFromSeed(seed[:])
}

func newGate(t *testing.T, self meta.NodeID, m *roster, change ...func(*Config)) *Gate {
	t.Helper()
	c := Config{
		Self: self, Key: keyOf(self), Metadata: m,
		KeyOf: func(id meta.NodeID) (ed25519.PublicKey, error) { return keyOf(id).Public().(ed25519.PublicKey), nil },
	}
	for _, f := range change {
		f(&c)
	}
	g, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func cluster() *roster {
	return &roster{token: "secret-admin-token", callers: []state.Caller{
		{Principal: reader.Name, Rights: reader.Rights}, {Principal: writer.Name, Rights: writer.Rights},
	}, nodes: map[meta.NodeID]meta.Node{
		"s1": {ID: "s1", Role: meta.RoleServer}, "s2": {ID: "s2", Role: meta.RoleServer}, "a1": {ID: "a1", Role: meta.RoleAgent, Read: []string{"acme/*"}},
	}}
}

func request(authorization string) *http.Request {
	r := httptest.NewRequest("GET", "https://registry.example/v2/", nil)
	r.TLS = &tls.ConnectionState{}
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	return r
}

func TestAuthenticateForms(t *testing.T) {
	g := newGate(t, "s1", cluster())
	basic := func(user, password string) string {
		r := httptest.NewRequest("GET", "/", nil)
		r.SetBasicAuth(user, password)
		return r.Header.Get("Authorization")
	}
	for authorization, want := range map[string]string{
		"":                                 "anonymous",
		"Bearer secret-admin-token":        "admin:bootstrap",
		"bearer  secret-admin-token":       "admin:bootstrap",
		"Token secret-admin-token":         "admin:bootstrap",
		"secret-admin-token":               "admin:bootstrap",
		basic("", "secret-admin-token"):    "admin:bootstrap",
		basic("any", "secret-admin-token"): "admin:bootstrap",
		basic("secret-admin-token", ""):    "refused",
		"Bearer wrong":                     "refused",
		"Bearer ":                          "refused",
		"Basic !!!":                        "refused",
		"Digest x":                         "refused",
		"Bearer eyJhbGciOiJub25lIn0.e30.":  "refused",
		"Bearer " + strings.Repeat("x", maxTokenBytes+1): "refused",
	} {
		who, err := g.Authenticate(request(authorization), false)
		got := who.Name
		var bad *CredentialsError
		if errors.As(err, &bad) {
			got = "refused"
		}
		if got != want {
			t.Errorf("%.40q: %s (%v), want %s", authorization, got, err, want)
		}
	}
}

// Bad credentials are an error also where none are needed.
func TestBadCredentialsAreNotAnonymous(t *testing.T) {
	g := newGate(t, "s1", cluster(), func(c *Config) { c.Policy.AllowAnonymous = true })
	if _, err := g.Authenticate(request("Bearer wrong"), true); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("%v", err)
	}
	// A page of another site whose name was made to resolve to this machine calls
	// by that name.
	for host, writes := range map[string]bool{"127.0.0.1:5000": true, "localhost:5000": true, "[::1]:5000": true, "evil.example:5000": false} {
		r := request("")
		r.Host = host
		who, err := g.Authenticate(r, false)
		if err != nil || Might(who, Push, ref) != writes || who.Admin {
			t.Errorf("dev's anonymous caller at %s: %+v %v", host, who, err)
		}
	}
}

func TestPlainHTTP(t *testing.T) {
	g := newGate(t, "s1", cluster())
	r := request("Bearer secret-admin-token")
	r.TLS = nil
	if _, err := g.Authenticate(r, false); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("from elsewhere: %v", err)
	}
	if _, err := g.Authenticate(r, true); err != nil {
		t.Errorf("from loopback: %v", err)
	}
	if _, err := newGate(t, "s1", cluster(), func(c *Config) { c.Plain = true }).Authenticate(r, false); err != nil {
		t.Errorf("with Plain: %v", err)
	}
}

func TestHostPrincipal(t *testing.T) {
	m := cluster()
	who := HostPrincipal(m.nodes["a1"])
	g := newGate(t, "a1", m, func(c *Config) { c.Policy.Host = &who })
	for _, test := range []struct {
		host     string
		loopback bool
		want     string
	}{
		{"127.0.0.1:5000", true, "host:a1"}, {"localhost:5000", true, "host:a1"}, {"[::1]:5000", true, "host:a1"}, {"LOCALHOST", true, "host:a1"},
		{"127.0.0.1:5000", false, "anonymous"}, {"evil.example:5000", true, "anonymous"}, {"10.0.0.1", true, "anonymous"},
	} {
		r := request("")
		r.Host = test.host
		got, err := g.Authenticate(r, test.loopback)
		if err != nil || got.Name != test.want {
			t.Errorf("%s loopback=%v: %s %v, want %s", test.host, test.loopback, got.Name, err, test.want)
		}
	}
}

func issue(t *testing.T, g *Gate, who meta.Principal, scopes ...string) string {
	t.Helper()
	asked, err := ParseScopes(scopes)
	if err != nil {
		t.Fatal(err)
	}
	if kind, _ := meta.SplitPrincipal(who.Name); kind == meta.KindUser && who.Token == "" {
		// As everybody who asks /token for one, it has a credential.
		who.Token = "aaaaaaaaaaaaaaaa"
		m := g.Metadata.(*roster)
		m.callers = append(m.callers, state.Caller{Principal: who.Name, Rights: who.Rights, Credential: &meta.Credential{ID: who.Token, Principal: who.Name, Expires: meta.TimeOf(time.Now().Add(time.Hour))}})
	}
	token, err := g.Issue(t.Context(), who, asked)
	if err != nil {
		t.Fatal(err)
	}
	return token.Text
}

func TestTokens(t *testing.T) {
	m := cluster()
	s1, s2, a1 := newGate(t, "s1", m), newGate(t, "s2", m), newGate(t, "a1", m)
	admin := meta.Principal{Name: "admin:bootstrap", Admin: true}
	text := issue(t, s1, admin, "repository:acme/app/api:pull,push repository:acme/lib:pull", "repository:single:pull")
	for _, g := range []*Gate{s1, s2, a1} {
		for range 2 { // the second time from the cache
			who, err := g.Authenticate(request("Bearer "+text), false)
			if err != nil {
				t.Fatal(err)
			}
			if who.Name != "admin:bootstrap" || who.Admin || may(who, Pull) != "acme/app acme/lib" || may(who, Push) != "acme/app" || may(who, Delete) != "" || who.Token == "" {
				t.Errorf("%+v", who)
			}
		}
	}
	// As a Basic password too: podman keeps it so.
	r := request("")
	r.SetBasicAuth("x", text)
	if _, err := s2.Authenticate(r, false); err != nil {
		t.Error(err)
	}
	// No more than the principal has, and a subset is no error.
	who, err := s1.Authenticate(request("Bearer "+issue(t, s1, reader, "repository:acme/app:pull,push,delete", "repository:other/x:pull")), false)
	if err != nil || may(who, Push) != "" || may(who, Delete) != "" || may(who, Pull) != "acme/app" {
		t.Errorf("%+v %v", who, err)
	}
	who, err = s1.Authenticate(request("Bearer "+issue(t, s1, reader, "registry:catalog:*")), false)
	if err != nil || may(who, Pull) != "" || !May(who, List, Target{Repo: ref, Record: private}) {
		t.Errorf("catalog: %+v %v", who, err)
	}
	if who, err = s1.Authenticate(request("Bearer "+issue(t, s1, meta.Anonymous, "repository:acme/app:pull")), false); err != nil || who.Name != "anonymous" || may(who, Pull) != "" {
		t.Errorf("anonymous: %+v %v", who, err)
	}
	// A token cannot prolong itself.
	if _, err := s1.Login(request("Bearer "+text), false, ""); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("renewed: %v", err)
	}
}

// may lists which of some repositories a principal might do an action to.
func may(who meta.Principal, action Action) string {
	var names []string
	for _, name := range []string{"app", "lib", "other"} {
		if r := (meta.RepoRef{Tenant: "acme", Name: name}); Might(who, action, r) {
			names = append(names, r.String())
		}
	}
	return strings.Join(names, " ")
}

func TestTokensRefused(t *testing.T) {
	m := cluster()
	s1, s2 := newGate(t, "s1", m), newGate(t, "s2", m)
	admin := meta.Principal{Name: "admin:bootstrap", Admin: true}
	good := issue(t, s1, admin, "repository:acme/app:pull")
	parts := strings.Split(good, ".")
	sign := func(method jwt.SigningMethod, key any, change func(*jwt.Token, *claims)) string {
		c := claims{RegisteredClaims: jwt.RegisteredClaims{Issuer: "s1", Subject: "admin:bootstrap", Audience: jwt.ClaimStrings{Service}, IssuedAt: jwt.NewNumericDate(time.Now()), ExpiresAt: jwt.NewNumericDate(time.Now().Add(time.Minute))}}
		token := jwt.NewWithClaims(method, &c)
		token.Header["kid"], token.Header["typ"] = "s1", tokenType
		change(token, &c)
		text, err := token.SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	for name, text := range map[string]string{
		"another payload":    parts[0] + "." + strings.Split(issue(t, s1, meta.Anonymous), ".")[1] + "." + parts[2],
		"no signature":       parts[0] + "." + parts[1] + ".",
		"agent's":            issue(t, newGate(t, "a1", m), admin),
		"foreign node's":     issue(t, newGate(t, "x9", m), admin),
		"none":               sign(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, func(*jwt.Token, *claims) {}),
		"public key as HMAC": sign(jwt.SigningMethodHS256, []byte(keyOf("s1").Public().(ed25519.PublicKey)), func(*jwt.Token, *claims) {}),
		"other audience":     sign(jwt.SigningMethodEdDSA, keyOf("s1"), func(_ *jwt.Token, c *claims) { c.Audience = jwt.ClaimStrings{"other"} }),
		"other type":         sign(jwt.SigningMethodEdDSA, keyOf("s1"), func(t *jwt.Token, _ *claims) { t.Header["typ"] = "JWT" }),
		"without expiry":     sign(jwt.SigningMethodEdDSA, keyOf("s1"), func(_ *jwt.Token, c *claims) { c.ExpiresAt = nil }),
		"kid of another":     sign(jwt.SigningMethodEdDSA, keyOf("s1"), func(t *jwt.Token, _ *claims) { t.Header["kid"] = "s2" }),
		"key of another":     sign(jwt.SigningMethodEdDSA, keyOf("s2"), func(*jwt.Token, *claims) {}),
		"no credential":      sign(jwt.SigningMethodEdDSA, keyOf("s1"), func(_ *jwt.Token, c *claims) { c.Subject = "user:r" }),
		"other epoch":        sign(jwt.SigningMethodEdDSA, keyOf("s1"), func(_ *jwt.Token, c *claims) { c.Epoch = 7 }),
		"host's of another":  issue(t, s1, meta.Principal{Name: "host:s1"}),
	} {
		if who, err := s2.Authenticate(request("Bearer "+text), false); !errors.Is(err, meta.ErrDenied) {
			t.Errorf("%s: %+v %v", name, who, err)
		}
	}
	// A server that left the roster takes its tokens with it, cached or not.
	if _, err := s2.Authenticate(request("Bearer "+good), false); err != nil {
		t.Fatal(err)
	}
	delete(m.nodes, "s1")
	if _, err := s2.Authenticate(request("Bearer "+good), false); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("removed issuer: %v", err)
	}
	// A metadata that does not answer is no verdict on the credential.
	m.err = &meta.UnavailableError{Reason: "no_server"}
	var bad *CredentialsError
	if _, err := s2.Authenticate(request("Bearer "+good), false); !errors.Is(err, meta.ErrUnavailable) || errors.As(err, &bad) {
		t.Errorf("unavailable, cached: %v", err)
	}
	if _, err := newGate(t, "s2", m).Authenticate(request("Bearer "+good), false); !errors.Is(err, meta.ErrUnavailable) || errors.As(err, &bad) {
		t.Errorf("unavailable: %v", err)
	}
	if _, err := s2.Authenticate(request("Bearer other"), false); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("unavailable, admin token: %v", err)
	}
}

func TestTokenExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := cluster()
		g := newGate(t, "s1", m)
		text := issue(t, g, reader, "repository:acme/app:pull")
		if _, err := g.Authenticate(request("Bearer "+text), false); err != nil {
			t.Fatal(err)
		}
		time.Sleep(TokenLife - time.Second)
		if _, err := g.Authenticate(request("Bearer "+text), false); err != nil {
			t.Errorf("before the end: %v", err)
		}
		time.Sleep(clockLeeway + 2*time.Second)
		for _, gate := range []*Gate{g, newGate(t, "s2", m)} {
			if _, err := gate.Authenticate(request("Bearer "+text), false); !errors.Is(err, meta.ErrDenied) {
				t.Errorf("after the end: %v", err)
			}
		}
	})
}

func TestPeer(t *testing.T) {
	m := cluster()
	shown := meta.NodeID("a1")
	var bad error
	g := newGate(t, "s1", m, func(c *Config) {
		c.Identify = func(*tls.ConnectionState) (meta.NodeID, error) { return shown, bad }
	})
	r := request("")
	if _, ok, err := g.Peer(r); ok || err != nil {
		t.Errorf("without certificate: %v %v", ok, err)
	}
	r.TLS.PeerCertificates = []*x509.Certificate{{}}
	n, ok, err := g.Peer(r)
	if !ok || err != nil || NodePrincipal(n).Node != "a1" || !slices.Equal(NodePrincipal(n).Patterns(Pull), []string{"acme/*"}) {
		t.Errorf("%+v %v %v", n, ok, err)
	}
	shown = "gone"
	if _, ok, err := g.Peer(r); ok || err != nil {
		t.Errorf("removed node: %v %v", ok, err)
	}
	bad = errors.New("expired")
	if _, ok, err := g.Peer(r); ok || !errors.Is(err, meta.ErrDenied) {
		t.Errorf("bad certificate: %v %v", ok, err)
	}
}

func TestParseScopes(t *testing.T) {
	got, err := ParseScopes([]string{"repository:a/b:pull,push registry:catalog:*", "repository(plugin):host:5000/a/b:pull", ""})
	if err != nil || fmt.Sprint(got) != "[repository:a/b:pull,push registry:catalog:* repository:host:5000/a/b:pull]" {
		t.Errorf("%v %v", got, err)
	}
	for _, bad := range []string{"repository", "repository:a", ":a:pull", "repository::pull"} {
		if _, err := ParseScopes([]string{bad}); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := ParseScopes([]string{strings.Repeat("repository:a/b:pull ", maxScopes+1)}); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("too many: %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Config{Self: "s1"}); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("%v", err)
	}
}

func FuzzVerify(f *testing.F) {
	f.Add("eyJ.a.b")
	f.Add("secret")
	m := cluster()
	g, err := New(Config{Self: "s1", Key: keyOf("s1"), Metadata: m, KeyOf: func(id meta.NodeID) (ed25519.PublicKey, error) {
		return keyOf(id).Public().(ed25519.PublicKey), nil
	}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, secret string) {
		if who, err := g.Verify(context.Background(), secret); err == nil && secret != m.token {
			t.Fatalf("%q is %+v", secret, who)
		}
	})
}
