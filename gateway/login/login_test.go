package login

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/credential"
	"github.com/shoal-registry/shoal/gateway/federation/issuertest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/metatest"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/trust"
)

// fixture is a desk over a machine without Raft, with tenants, a user and robots.
type fixture struct {
	desk *Desk
	*testing.T
	store *metatest.Store
}

func newFixture(t *testing.T, change ...func(*Config)) *fixture {
	store := metatest.New(t)
	for _, c := range []state.Command{
		state.CreateTenant{Name: "acme"}, state.CreateTenant{Name: "globex"},
		state.CreateAccount{Name: "user:ada"}, state.CreateAccount{Name: "robot:acme/ci"}, state.CreateAccount{Name: "robot:globex/ci"},
	} {
		store.Must(c)
	}
	c := Config{
		Metadata: store, Doer: store, Log: slog.New(slog.DiscardHandler),
		Client: func(*x509.CertPool) *http.Client { return nil },
	}
	for _, f := range change {
		f(&c)
	}
	d, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return &fixture{desk: d, T: t, store: store}
}

func (f *fixture) call(who meta.Principal) *protocol.Call {
	r := httptest.NewRequest(http.MethodPost, "https://registry.example/", nil)
	r.RemoteAddr = "192.0.2.7:4711"
	return &protocol.Call{W: httptest.NewRecorder(), R: r, Who: who}
}

// record returns the record of a credential by its token's text.
func (f *fixture) record(text trust.Secret) meta.Credential {
	f.Helper()
	token, err := credential.Parse(text.Reveal())
	if err != nil {
		f.Fatal(err)
	}
	caller, _, err := raftmeta.Ask(f.Context(), f.store, meta.Local, state.GetCaller{Credential: token.ID, Hash: token.Hash})
	if err != nil {
		f.Fatal(err)
	}
	return *caller.Credential
}

func (f *fixture) setPassword(password trust.Secret) {
	f.Helper()
	if err := f.desk.SetPassword(f.call(meta.Principal{Name: meta.AdminBootstrap, Admin: true}), "ada", password, "", false); err != nil {
		f.Fatal(err)
	}
}

func refusedLogin(err error) bool {
	var bad *access.CredentialsError
	return errors.As(err, &bad)
}

func TestLoginWithPassword(t *testing.T) {
	f := newFixture(t)
	if _, err := f.desk.Login(f.call(meta.Anonymous), "ada", "", ""); !refusedLogin(err) {
		t.Errorf("without a password on record: %v", err)
	}
	f.setPassword("correct horse")
	c := f.call(meta.Anonymous)
	made, err := f.desk.Login(c, "ada", "correct horse", "test")
	if err != nil {
		t.Fatal(err)
	}
	if r := f.record(made.Text); r.Principal != "user:ada" || r.Kind != meta.CredentialSession || r.CreatedBy != "user:ada" || r.Expires.Std().Sub(r.Issued.Std()) != meta.SessionLife || c.Who.Name != "user:ada" {
		t.Errorf("%+v", r)
	}
	var texts []string
	for _, user := range []string{"ada", "nobody", "robot:acme/ci", "", "a b", strings.Repeat("x", 500)} {
		_, err := f.desk.Login(f.call(meta.Anonymous), user, "wrong horse", "")
		if !refusedLogin(err) {
			t.Errorf("%q: %v", user, err)
			continue
		}
		texts = append(texts, err.Error())
	}
	for _, text := range texts {
		if text != texts[0] {
			t.Errorf("the answers tell who is there: %q and %q", texts[0], text)
		}
	}
	// What clients without a memory share is one session, until it is revoked.
	first, err := f.desk.Session(f.call(meta.Anonymous), "ada", "correct horse")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := f.desk.Session(f.call(meta.Anonymous), "ada", "correct horse"); err != nil || again != first {
		t.Errorf("%s and %s: %v", first, again, err)
	}
	f.store.Must(state.RevokeCredential{ID: first})
	if again, err := f.desk.Session(f.call(meta.Anonymous), "ada", "correct horse"); err != nil || again == first {
		t.Errorf("a revoked session is shared: %v", err)
	}
	// A new password: the old one is worth nothing at once, though it was remembered.
	f.setPassword("battery staple")
	if _, err := f.desk.Session(f.call(meta.Anonymous), "ada", "correct horse"); !refusedLogin(err) {
		t.Errorf("the old password: %v", err)
	}
}

func TestOwnPassword(t *testing.T) {
	f := newFixture(t)
	f.setPassword("correct horse")
	ada := meta.Principal{Name: "user:ada"}
	if err := f.desk.SetPassword(f.call(ada), "ada", "battery staple", "wrong", true); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("without the present one: %v", err)
	}
	if err := f.desk.SetPassword(f.call(ada), "ada", "short", "correct horse", true); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("a short one: %v", err)
	}
	if err := f.desk.SetPassword(f.call(ada), "ada", "battery staple", "correct horse", true); err != nil {
		t.Error(err)
	}
	if _, err := f.desk.Verify(f.call(meta.Anonymous), "ada", "battery staple"); err != nil {
		t.Error(err)
	}
}

// Guesses are slowed, by the account and by the source, which is the client and not
// the agent that forwards it.
func TestGuesses(t *testing.T) {
	f := newFixture(t)
	f.setPassword("correct horse")
	var slow *credential.SlowError
	tries := 0
	for ; tries < 100; tries++ {
		if _, err := f.desk.Verify(f.call(meta.Anonymous), "ada", "wrong horse"); errors.As(err, &slow) {
			break
		} else if !refusedLogin(err) {
			t.Fatal(err)
		}
	}
	if tries == 0 || tries > 60 || slow == nil {
		t.Fatalf("slowed after %d tries", tries)
	}
	a, b := f.call(meta.Anonymous), f.call(meta.Anonymous)
	a.Via, b.Via = "agent-1", "agent-2"
	if sourceOf(a) == sourceOf(b) {
		t.Error("one address behind two hosts is one source")
	}
	six, other := f.call(meta.Anonymous), f.call(meta.Anonymous)
	six.R.RemoteAddr, other.R.RemoteAddr = "[2001:db8::1:2:3:4]:1", "[2001:db8::9:9:9:9]:1"
	if sourceOf(six) != sourceOf(other) {
		t.Error("one IPv6 network is many sources")
	}
}

func TestCreateTokens(t *testing.T) {
	f := newFixture(t)
	may := func(name string, actions ...meta.Action) meta.Principal {
		return meta.Principal{Name: name, Rights: []meta.Right{{Actions: actions, Repository: "acme/*"}}}
	}
	narrow := func(p meta.Principal) meta.Principal {
		p.Limits = [][]meta.Right{{{Actions: []meta.Action{meta.ActionPull}, Repository: "acme/app"}}}
		return p
	}
	admin := meta.Principal{Name: meta.AdminBootstrap, Admin: true}
	for name, test := range map[string]struct {
		who  meta.Principal
		of   string
		want error
	}{
		"own":                 {may("user:ada"), "", nil},
		"own, named":          {may("user:ada"), "user:ada", nil},
		"own, narrowed":       {narrow(may("user:ada", meta.ActionPull)), "", meta.ErrDenied},
		"robot's own":         {may("robot:acme/ci"), "", meta.ErrDenied},
		"manager's robot":     {may("user:ada", meta.ActionManage), "robot:acme/ci", nil},
		"narrowed manager":    {narrow(may("user:ada", meta.ActionManage)), "robot:acme/ci", meta.ErrDenied},
		"other tenant's":      {may("user:ada", meta.ActionManage), "robot:globex/ci", meta.ErrDenied},
		"manager's user":      {may("user:tess", meta.ActionManage), "user:ada", meta.ErrDenied},
		"administrator":       {admin, "user:ada", nil},
		"administrator's own": {admin, "", meta.ErrInvalid},
		"job's":               {may("user:ada", meta.ActionManage), "ci:acme/forge/x", meta.ErrInvalid},
		"nobody's":            {admin, "user:nobody", meta.ErrNotFound},
	} {
		made, err := f.desk.Create(f.call(test.who), Wish{Principal: test.of})
		if !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
		if err == nil && f.record(made.Text).Kind != meta.CredentialToken {
			t.Errorf("%s: %+v", name, made.Credential)
		}
	}
	// Others' tokens are not there for who may not manage them.
	made, err := f.desk.Create(f.call(may("user:ada")), Wish{})
	if err != nil {
		t.Fatal(err)
	}
	eve := f.call(may("robot:acme/ci"))
	if _, err := f.desk.Find(eve, made.ID); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("found by somebody else: %v", err)
	}
	if err := f.desk.Revoke(eve, made.ID); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("revoked by somebody else: %v", err)
	}
	if _, err := f.desk.Rotate(eve, made.ID, 0, 0); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("rotated by somebody else: %v", err)
	}
	if err := f.desk.Revoke(f.call(may("user:ada")), made.ID); err != nil {
		t.Error(err)
	}
	// A robot rotates the token that it shows.
	own, err := f.desk.Create(f.call(may("user:ada", meta.ActionManage)), Wish{Principal: "robot:acme/ci", Life: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	robot := may("robot:acme/ci")
	robot.Token = own.ID
	next, err := f.desk.Rotate(f.call(robot), own.ID, 0, time.Minute)
	if err != nil || next.Parent != own.ID || next.Expires.Std().Sub(next.Issued.Std()) != time.Hour {
		t.Errorf("%+v %v", next.Credential, err)
	}
}

// What somebody does to others' tokens under an elevation carries its mark, by which the
// log refuses it once the elevation is over.
func TestTokensUnderAnElevation(t *testing.T) {
	f := newFixture(t)
	manage := meta.Right{Actions: []meta.Action{meta.ActionManage}, Repository: "acme/*"}
	tess, ada := meta.Principal{Name: "user:tess", Rights: []meta.Right{manage}}, meta.Principal{Name: "user:ada"}
	made, err := f.desk.Create(f.call(tess), Wish{Principal: "robot:acme/ci"})
	if err != nil {
		t.Fatal(err)
	}
	manage.Elevated, manage.Binding = true, "elevation:e1"
	ada.Rights = []meta.Right{manage}
	for name, do := range map[string]func(*protocol.Call) error{
		"create": func(c *protocol.Call) error { _, err := f.desk.Create(c, Wish{Principal: "robot:acme/ci"}); return err },
		"rotate": func(c *protocol.Call) error { _, err := f.desk.Rotate(c, made.ID, 0, 0); return err },
		"revoke": func(c *protocol.Call) error { return f.desk.Revoke(c, made.ID) },
	} {
		c := f.call(ada)
		if err := do(c); !errors.Is(err, meta.ErrDenied) || c.Origin().Elevation != "e1" {
			t.Errorf("%s: %+v %v", name, c.Origin(), err)
		}
	}
	c := f.call(ada)
	if _, err := f.desk.Create(c, Wish{}); err != nil || c.Origin().Elevation != "" {
		t.Errorf("its own needs no elevation: %+v %v", c.Origin(), err)
	}
}

// What is narrower than a token on record, as a token of /token is, gets no text of it by
// a rotation, and ends none but its own; a robot rotates no other than it shows.
func TestNarrowedKeepsToItself(t *testing.T) {
	f := newFixture(t)
	ada := meta.Principal{Name: "user:ada", Rights: []meta.Right{{Actions: []meta.Action{meta.ActionPull, meta.ActionManage}, Repository: "acme/*"}}}
	pull := []meta.Right{{Actions: []meta.Action{meta.ActionPull}, Repository: "acme/app"}}
	make := func(w Wish) meta.Credential {
		made, err := f.desk.Create(f.call(ada), w)
		if err != nil {
			t.Fatal(err)
		}
		return made.Credential
	}
	whole, narrow, other := make(Wish{}), make(Wish{Limits: pull}), make(Wish{})
	robot, sibling := make(Wish{Principal: "robot:acme/ci", Life: time.Hour}), make(Wish{Principal: "robot:acme/ci"})
	who := func(c meta.Credential, limits ...[]meta.Right) meta.Principal {
		p := ada
		p.Name, p.Token, p.Limits = c.Principal, c.ID, limits
		return p
	}
	for name, test := range map[string]struct {
		who  meta.Principal
		id   string
		want error
	}{
		"a token of /token, of a whole one":     {who(whole, pull), whole.ID, meta.ErrDenied},
		"a token of /token without any scope":   {who(whole, nil), whole.ID, meta.ErrDenied},
		"a token of /token, of a narrowed one":  {who(narrow, pull, pull), narrow.ID, meta.ErrDenied},
		"a narrowed one, another":               {who(narrow, pull), other.ID, meta.ErrDenied},
		"a robot's, its sibling":                {who(robot), sibling.ID, meta.ErrDenied},
		"a narrowed one, itself":                {who(narrow, pull), narrow.ID, nil},
		"a robot's, itself":                     {who(robot), robot.ID, nil},
		"a whole one, another of the same user": {who(whole), other.ID, nil},
	} {
		if _, err := f.desk.Rotate(f.call(test.who), test.id, 0, time.Minute); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
	if err := f.desk.Revoke(f.call(who(narrow, pull)), other.ID); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("a narrowed token ends another: %v", err)
	}
	if err := f.desk.Revoke(f.call(who(narrow, pull, pull)), narrow.ID); err != nil {
		t.Errorf("a token ends itself: %v", err)
	}
	if err := f.desk.Revoke(f.call(who(whole)), other.ID); err != nil {
		t.Errorf("a whole token ends another: %v", err)
	}
}

func TestLimits(t *testing.T) {
	if l, err := Limits(nil, nil, ""); l != nil || err != nil {
		t.Errorf("%v %v", l, err)
	}
	l, err := Limits([]string{"acme/app", "acme/web-*"}, []meta.Action{meta.ActionPull}, "prod*")
	if err != nil || len(l) != 2 || l[1].Repository != "acme/web-*" || l[1].Environment != "prod*" || len(l[1].Actions) != 1 {
		t.Errorf("%+v %v", l, err)
	}
	for _, bad := range [][]string{{"acme"}, {"ACME/x"}, {""}, make([]string, meta.MaxNarrowing+1)} {
		if _, err := Limits(bad, nil, ""); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := Limits(nil, []meta.Action{"fly"}, ""); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("%v", err)
	}
}

const audience = "https://registry.example"

var rule = meta.IssuerRule{Name: "main", When: `claims.repository == "acme/app" && claims.ref == "main"`, Role: "publisher", Repository: "acme/app", Environment: "dev"}

func (f *fixture) trust(i *issuertest.Issuer, tenant meta.TenantName, change ...func(*meta.Issuer)) meta.Issuer {
	f.Helper()
	r := rule
	r.Repository = string(tenant) + "/app"
	record := meta.Issuer{Tenant: tenant, Name: "forge", URL: i.URL(), Audience: audience, Rules: []meta.IssuerRule{r}, Roots: i.Roots()}
	for _, c := range change {
		c(&record)
	}
	made, err := f.desk.PutIssuer(f.call(meta.Principal{Name: "user:ada"}), record)
	if err != nil {
		f.Fatal(err)
	}
	return made
}

func withIssuer(t *testing.T) (*fixture, *issuertest.Issuer) {
	i := issuertest.New(t)
	return newFixture(t, func(c *Config) {
		c.Client = func(*x509.CertPool) *http.Client { return i.Client() }
	}), i
}

var job = map[string]any{"sub": "job-1", "repository": "acme/app", "ref": "main"}

func (f *fixture) exchange(token string, tenant meta.TenantName) (Minted, error) {
	return f.desk.Exchange(f.call(meta.Anonymous), trust.Secret(token), tenant)
}

func TestExchange(t *testing.T) {
	f, i := withIssuer(t)
	f.trust(i, "acme")
	made, err := f.exchange(i.Sign(audience, job), "acme")
	if err != nil {
		t.Fatal(err)
	}
	r := f.record(made.Text)
	if r.Principal != "ci:acme/forge/job-1" || r.Kind != meta.CredentialExchange || r.Issuer != "acme/forge" || r.Expires.Std().Sub(r.Issued.Std()) != meta.ExchangeLife {
		t.Errorf("%+v", r)
	}
	if len(r.Grants) != 1 || r.Grants[0].Repository != "acme/app" || r.Grants[0].Environment != "dev" || r.Grants[0].Role != "publisher" || r.Grants[0].Binding != "rule:main" {
		t.Errorf("%+v", r.Grants)
	}
	// Without a tenant while only one is meant, and not when two are.
	if _, err := f.exchange(i.Sign(audience, job), ""); err != nil {
		t.Error(err)
	}
	f.trust(i, "globex")
	other := issuertest.New(t)
	for name, test := range map[string]struct {
		token  string
		tenant meta.TenantName
	}{
		"two tenants":     {i.Sign(audience, job), ""},
		"no such tenant":  {i.Sign(audience, job), "nobody"},
		"no rule":         {i.Sign(audience, map[string]any{"repository": "acme/app", "ref": "evil"}), "acme"},
		"other audience":  {i.Sign("elsewhere", job), "acme"},
		"no token":        {"hello", "acme"},
		"other's":         {other.Sign(audience, job), "acme"},
		"other's, as his": {other.Sign(audience, map[string]any{"iss": i.URL(), "sub": "job-1", "repository": "acme/app", "ref": "main"}), "acme"},
	} {
		if made, err := f.exchange(test.token, test.tenant); !refusedLogin(err) {
			t.Errorf("%s: %+v %v", name, made.Credential, err)
		}
	}
	// What is said of a token makes nothing.
	v, err := f.desk.Test(t.Context(), "acme", "forge", trust.Secret(i.Sign(audience, job)))
	if err != nil || len(v.Rules) != 1 {
		t.Errorf("%+v %v", v, err)
	}
	// The issuer is trusted no more: neither new tokens nor those that were given.
	f.store.Must(state.RemoveIssuer{Tenant: "acme", Name: "forge"})
	if _, err := f.exchange(i.Sign(audience, job), "acme"); !refusedLogin(err) {
		t.Errorf("%v", err)
	}
	if _, _, err := raftmeta.Ask(t.Context(), f.store, meta.Local, state.GetCaller{Credential: made.ID}); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("what it vouched for: %v", err)
	}
}

// A new key is fetched once, when a token has it; while the issuer is down, whose key is
// known is let in; made-up keys do not make us ask.
func TestKeysRotateAndIssuerDown(t *testing.T) {
	f, i := withIssuer(t)
	f.trust(i, "acme")
	i.Down(true)
	if _, err := f.exchange(i.Sign(audience, job), "acme"); err != nil {
		t.Errorf("while the issuer is down: %v", err)
	}
	i.Down(false)
	before := i.Fetches()
	i.Rotate("ES256")
	if _, err := f.exchange(i.Sign(audience, job), "acme"); err != nil {
		t.Errorf("after a rotation: %v", err)
	}
	if n := i.Fetches() - before; n != 1 {
		t.Errorf("asked %d times", n)
	}
	before = i.Fetches()
	forged := issuertest.New(t)
	for range 4 {
		if _, err := f.exchange(forged.Sign(audience, map[string]any{"iss": i.URL(), "sub": "x"}), "acme"); err == nil {
			t.Fatal("a forged token")
		}
	}
	if n := i.Fetches() - before; n != 0 {
		t.Errorf("forged tokens made us ask %d times", n)
	}
}

// Pinned keys need no way to the issuer, and are not replaced by what it says.
func TestPinnedKeys(t *testing.T) {
	f, i := withIssuer(t)
	i.Down(true)
	unreachable := meta.Issuer{Tenant: "acme", Name: "forge", URL: i.URL(), Audience: audience, Rules: []meta.IssuerRule{rule}}
	if _, err := f.desk.PutIssuer(f.call(meta.Principal{Name: "user:ada"}), unreachable); !errors.Is(err, meta.ErrUnavailable) || !strings.Contains(err.Error(), "--jwks") {
		t.Errorf("without keys and without a way: %v", err)
	}
	if made := f.trust(i, "acme", func(r *meta.Issuer) { r.Keys = i.Keys() }); !made.Pinned {
		t.Errorf("%+v", made)
	}
	if _, err := f.exchange(i.Sign(audience, job), "acme"); err != nil {
		t.Error(err)
	}
	i.Down(false)
	i.Rotate("RS256")
	if _, err := f.exchange(i.Sign(audience, job), "acme"); !refusedLogin(err) {
		t.Errorf("a key that was not pinned: %v", err)
	}
	if i.Fetches() != 0 {
		t.Errorf("asked %d times", i.Fetches())
	}
}

// Uses are gathered, reported seldom, and bounded.
func TestUses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := NewUses()
		u.Used("a")
		u.Merge([]state.CredentialUse{{ID: "b", At: meta.TimeOf(time.Now().Add(time.Hour))}})
		uses := u.Take(10)
		if len(uses) != 2 || uses[0].ID != "a" || uses[1].At > meta.TimeOf(time.Now()) {
			t.Errorf("%+v", uses)
		}
		// What no command takes would take what comes with it down.
		u.Merge([]state.CredentialUse{{ID: "", At: 1}, {ID: strings.Repeat("x", 65), At: 1}})
		u.Used("a")
		if uses := u.Take(10); len(uses) != 0 {
			t.Errorf("reported again at once, or no id: %+v", uses)
		}
		time.Sleep(seldom)
		u.Used("a")
		if uses := u.Take(10); len(uses) != 1 {
			t.Errorf("not reported again: %+v", uses)
		}
		var many []state.CredentialUse
		for n := range 3 * maxUses {
			many = append(many, state.CredentialUse{ID: strings.Repeat("x", 1+n%50) + string(rune('a'+n/50)), At: 1})
		}
		u.Merge(many)
		if n := len(u.Take(len(many))); n > maxUses {
			t.Errorf("%d kept", n)
		}
	})
}

// Upkeep puts uses on record, and sweeps what ended a day ago where this server leads.
func TestUpkeep(t *testing.T) {
	f := newFixture(t)
	made, err := f.desk.Create(f.call(meta.Principal{Name: "user:ada"}), Wish{Life: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	f.desk.Used(made.ID)
	f.desk.report(ctx)
	found, _, err := raftmeta.Ask(ctx, f.store, meta.Local, state.GetCredential{ID: made.ID})
	if err != nil || found.LastUsed == 0 {
		t.Errorf("%+v %v", found, err)
	}
	f.desk.sweep(ctx)
	if _, _, err := raftmeta.Ask(ctx, f.store, meta.Local, state.GetCredential{ID: made.ID}); err != nil {
		t.Errorf("swept while it lives: %v", err)
	}
}
