package state

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func init() { levelFiveParts = append(levelFiveParts, credentials) }

func credential(id, principal string) CreateCredential {
	hash := sha256.Sum256([]byte(id))
	return CreateCredential{Credential: meta.Credential{ID: id, Hash: hash[:], Principal: principal, Kind: meta.CredentialToken}, Life: time.Hour}
}

func session(id, principal string) CreateCredential {
	c := credential(id, principal)
	c.Credential.Kind = meta.CredentialSession
	return c
}

func exchange(id, subject string) CreateCredential {
	c := credential(id, "ci:acme/forge/"+subject)
	c.Credential.Kind, c.Credential.Issuer, c.Life = meta.CredentialExchange, "acme/forge", time.Minute
	c.Credential.Grants = []meta.Right{{Actions: []meta.Action{meta.ActionPush}, Repository: "acme/app", Role: "publisher", Binding: "rule:main"}}
	return c
}

func forge() PutIssuer {
	return PutIssuer{Issuer: meta.Issuer{
		Tenant: "acme", Name: "forge", URL: "https://forge.example", Audience: "shoal", Keys: []byte(`{"keys":[]}`),
		Rules: []meta.IssuerRule{{Name: "main", When: `claims.ref == "main"`, Role: "publisher", Repository: "acme/app"}},
	}}
}

var phc = []byte("$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")

// credentials are the commands 110 to 117 in the golden log.
func credentials(l *logWriter) {
	l.add("", CreateAccount{Name: "user:grace"})
	l.add("", CreateAccount{Name: "robot:acme/bot"})
	narrow := credential("c1", "robot:acme/bot")
	narrow.Credential.Limits = []meta.Right{{Actions: []meta.Action{meta.ActionPull}, Repository: "acme/app", Environment: "prod"}}
	narrow.Credential.Note = "the mirror"
	l.add("", narrow)
	l.add("", narrow)
	l.add("", credential("c2", "user:nobody"))
	l.add("", exchange("c3", "main"))
	l.add("", SetPassword{Name: "user:grace", Password: phc})
	l.add("", session("c4", "user:grace"))
	l.add("", SetPassword{Name: "user:grace"})
	l.add("", forge())
	other := forge()
	other.Issuer.Keys, other.Issuer.URL = nil, "https://other.example"
	l.add("", other)
	l.add("", SetIssuerKeys{Tenant: "acme", Name: "forge", URL: "https://forge.example", Keys: []byte(`{}`)})
	l.add("", SetIssuerKeys{Tenant: "acme", Name: "forge", URL: "https://other.example", Keys: []byte(`{"keys":[1]}`)})
	other.Issuer.Rules[0].Role = "painter"
	l.add("", other)
	l.add("", exchange("c3", "main"))
	l.now = l.now.Add(time.Minute)
	at := meta.TimeOf(l.now)
	l.add("", TouchCredentials{Uses: []CredentialUse{{ID: "c1", At: at - 5}, {ID: "gone", At: at}, {ID: "c3", At: at + 7}}})
	hash := sha256.Sum256([]byte("c5"))
	l.add("", RotateCredential{ID: "c1", NewID: "c5", NewHash: hash[:], Life: 2 * time.Hour, Overlap: time.Minute})
	l.add("", RotateCredential{ID: "c4", NewID: "c6", NewHash: hash[:], Life: time.Hour})
	l.add("", RevokeCredential{ID: "c5"})
	l.add("", RevokeCredential{ID: "none"})
	l.add("", RemoveIssuer{Tenant: "acme", Name: "forge"})
	l.add("", RemoveIssuer{Tenant: "acme", Name: "forge"})
	l.add("", ExpireCredentials{Limit: 10})
	l.now = l.now.Add(meta.KeepExpired + time.Minute)
	l.add("", ExpireCredentials{Limit: 1})
	l.add("", ExpireCredentials{Limit: 10})
}

// auditCredentials names the entries that a record of credentials or issuers needs in
// indexes, and counts.
func auditCredentials(v *View, k, value []byte, want map[string]bool) error {
	switch {
	case k[0] == spaceIssuers && k[1] == issuersOf:
		i, err := decode[meta.Issuer](k, value)
		if err != nil {
			return err
		}
		want[string(keyIssuerOfURL(i))] = true
	case k[0] == spaceCredentials && k[1] == byID:
		c, err := decode[meta.Credential](k, value)
		if err != nil {
			return err
		}
		want[string(keyCredentialsOf(c.Principal).last(c.ID))] = true
		want[string(keyEnding(c))] = true
		if tenant := c.Tenant(); tenant != "" {
			want[string(keyTenantCredentials(tenant).last(c.ID))] = true
		}
		if n, err := number(v, keyCredentialCount(c.Principal)); err != nil || n == 0 {
			return fmt.Errorf("%s has tokens and counts none: %v", c.Principal, err)
		}
	case k[0] == spaceCredentials && k[1] == ofCounts:
		n, counted := uint64(0), string(k[2:])
		for _, err := range credentialsOf(v, counted) {
			if err != nil {
				return err
			}
			n++
		}
		if has, err := number(v, key(k)); err != nil || has != n {
			return fmt.Errorf("%s counts %d tokens and has %d: %v", counted, has, n, err)
		}
	}
	return nil
}

func credentialBench(t *testing.T) *bench {
	b := newBench(t)
	b.must(SetLevel{Level: Level})
	b.must(CreateAccount{Name: "user:ada"})
	b.must(CreateAccount{Name: "robot:acme/ci"})
	return b
}

func ids(cs []meta.Credential) (out []string) {
	for _, c := range cs {
		out = append(out, c.ID)
		if c.Hash != nil {
			out = append(out, "WITH ITS HASH")
		}
	}
	return out
}

func TestCredentials(t *testing.T) {
	b := credentialBench(t)
	made := b.must(credential("c2", "robot:acme/ci")).Value.(meta.Credential)
	if made.Hash != nil || made.Issued != meta.TimeOf(b.now) || made.Expires.Std().Sub(made.Issued.Std()) != time.Hour {
		t.Errorf("made %+v", made)
	}
	b.must(credential("c1", "robot:acme/ci"))
	b.must(session("c3", "user:ada"))
	for _, test := range []struct {
		q    ListCredentials
		want []string
	}{
		{ListCredentials{}, []string{"c1", "c2", "c3"}},
		{ListCredentials{Page: Page{After: "c1", Limit: 1}}, []string{"c2"}},
		{ListCredentials{Principal: "robot:acme/ci"}, []string{"c1", "c2"}},
		{ListCredentials{Principal: "robot:acme/ci", Page: Page{After: "c1"}}, []string{"c2"}},
		{ListCredentials{Tenant: "acme", Page: Page{Limit: 1}}, []string{"c1"}},
		{ListCredentials{Tenant: "acm"}, nil}, {ListCredentials{Principal: "user:ad"}, nil},
	} {
		if got := ids(ask(b, test.q)); !slices.Equal(got, test.want) {
			t.Errorf("%+v: %v", test.q, got)
		}
	}
	// Revoked is revoked, and stays to be seen.
	before := b.head().Revision
	b.must(RevokeCredential{ID: "c1"})
	if c := ask(b, GetCredential{ID: "c1"}); c.Revoked == 0 || c.Hash != nil || errors.Is(c.Live(b.now), nil) {
		t.Errorf("%+v", c)
	}
	if b.head().Revision == before {
		t.Error("a revocation leaves the access revision as it was")
	}
	// Uses: the last one counts, and never lies in the future.
	at := meta.TimeOf(b.now)
	b.must(TouchCredentials{Uses: []CredentialUse{{ID: "c2", At: at - 9}, {ID: "c3", At: at + meta.Time(time.Hour)}, {ID: "none", At: at}}})
	b.must(TouchCredentials{Uses: []CredentialUse{{ID: "c2", At: at - 20}}})
	if c := ask(b, GetCredential{ID: "c2"}); c.LastUsed != at-9 {
		t.Errorf("last used %v", c.LastUsed)
	}
	if c := ask(b, GetCredential{ID: "c3"}); c.LastUsed > meta.TimeOf(b.now) {
		t.Errorf("used in the future: %v", c.LastUsed)
	}
	check(b)
	// The end: swept a day after.
	b.now = b.now.Add(time.Hour + meta.KeepExpired - time.Second)
	if ask(b, CredentialsEnded{Before: meta.TimeOf(b.now.Add(-meta.KeepExpired))}) {
		t.Error("too early")
	}
	b.now = b.now.Add(2 * time.Second)
	if !ask(b, CredentialsEnded{Before: meta.TimeOf(b.now.Add(-meta.KeepExpired))}) {
		t.Error("nothing to sweep")
	}
	if n := b.must(ExpireCredentials{Limit: 2}).Value.(ExpiredCredentials).Forgotten; n != 2 {
		t.Errorf("%d forgotten", n)
	}
	if n := b.must(ExpireCredentials{Limit: 2}).Value.(ExpiredCredentials).Forgotten; n != 1 {
		t.Errorf("%d forgotten", n)
	}
	check(b)
	if got := ask(b, ListCredentials{}); len(got) != 0 {
		t.Errorf("left %v", ids(got))
	}
}

func TestCredentialsRefused(t *testing.T) {
	b := credentialBench(t)
	yes := true
	b.must(CreateAccount{Name: "user:gone"})
	b.must(SetAccount{Name: "user:gone", Disabled: &yes})
	b.must(credential("c1", "user:ada"))
	with := func(change func(*CreateCredential)) CreateCredential {
		c := credential("c9", "robot:acme/ci")
		change(&c)
		return c
	}
	for name, test := range map[string]struct {
		c    Command
		want error
	}{
		"no account":  {credential("c9", "user:nobody"), meta.ErrNotFound},
		"disabled":    {credential("c9", "user:gone"), meta.ErrDenied},
		"id in use":   {credential("c1", "robot:acme/ci"), meta.ErrExists},
		"too long":    {with(func(c *CreateCredential) { c.Life = meta.MaxTokenLife + 1 }), meta.ErrInvalid},
		"no life":     {with(func(c *CreateCredential) { c.Life = 0 }), meta.ErrInvalid},
		"no hash":     {with(func(c *CreateCredential) { c.Credential.Hash = nil }), meta.ErrInvalid},
		"kind":        {with(func(c *CreateCredential) { c.Credential.Kind = "password" }), meta.ErrInvalid},
		"with grants": {with(func(c *CreateCredential) { c.Credential.Grants = exchange("x", "y").Credential.Grants }), meta.ErrInvalid},
		"deny": {with(func(c *CreateCredential) {
			c.Credential.Limits = []meta.Right{{Actions: []meta.Action{"pull"}, Repository: "*", Deny: true}}
		}), meta.ErrInvalid},
		"session too long": {func() Command { c := session("c9", "user:ada"); c.Life = meta.SessionLife + 1; return c }(), meta.ErrInvalid},
		"no issuer":        {exchange("c9", "main"), meta.ErrNotFound},
		"of no job":        {func() Command { c := exchange("c9", "x"); c.Credential.Principal = "robot:acme/ci"; return c }(), meta.ErrInvalid},
		"bootstrap":        {credential("c9", "admin:bootstrap"), meta.ErrInvalid},
		"many touched":     {TouchCredentials{Uses: make([]CredentialUse, maxTouched+1)}, meta.ErrInvalid},
		"rotate none":      {RotateCredential{ID: "c8", NewID: "c9", NewHash: make([]byte, 32), Life: time.Hour}, meta.ErrNotFound},
		"robot's password": {SetPassword{Name: "robot:acme/ci", Password: phc}, meta.ErrInvalid},
		"plain password":   {SetPassword{Name: "user:ada", Password: []byte("secret")}, meta.ErrInvalid},
	} {
		r := b.do(test.c)
		if !errors.Is(r.Err, test.want) {
			t.Errorf("%s: %v, want %v", name, r.Err, test.want)
		}
	}
	foreign := exchange("c9", "main")
	foreign.Credential.Grants[0].Repository = "other/app"
	if err := foreign.Check(); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("rights beyond the tenant: %v", err)
	}
	check(b)
}

// As many as one may have, and not one more; what ends makes room.
func TestCredentialsAreCounted(t *testing.T) {
	b := credentialBench(t)
	for n := range meta.MaxCredentials {
		b.must(credential(fmt.Sprintf("c%04d", n), "user:ada"))
	}
	if r := b.do(credential("more", "user:ada")); !errors.Is(r.Err, meta.ErrOverQuota) {
		t.Errorf("one too many: %v", r.Err)
	}
	b.must(credential("other", "robot:acme/ci"))
	b.now = b.now.Add(time.Hour + meta.KeepExpired + time.Second)
	b.must(ExpireCredentials{Limit: 1})
	b.must(credential("more", "user:ada"))
	check(b)
	b.must(RemoveAccount{Name: "user:ada"})
	if left := ask(b, ListCredentials{Principal: "user:ada"}); len(left) != 0 {
		t.Errorf("the account is gone and %d tokens are there", len(left))
	}
	check(b)
}

func TestRotateCredential(t *testing.T) {
	b := credentialBench(t)
	first := credential("c1", "robot:acme/ci")
	first.Credential.Limits = []meta.Right{{Actions: []meta.Action{meta.ActionPull}, Repository: "acme/app"}}
	first.Credential.Note = "mirror"
	b.must(first)
	hash := bytes.Repeat([]byte{7}, 32)
	made := b.must(RotateCredential{ID: "c1", NewID: "c2", NewHash: hash, Life: 2 * time.Hour, Overlap: time.Minute}).Value.(meta.Credential)
	if made.Parent != "c1" || made.Principal != "robot:acme/ci" || len(made.Limits) != 1 || made.Note != "mirror" || made.Expires.Std().Sub(b.now) != 2*time.Hour {
		t.Errorf("%+v", made)
	}
	if old := ask(b, GetCredential{ID: "c1"}); old.Expires.Std().Sub(b.now) != time.Minute {
		t.Errorf("the old one ends at %v, it is %v", old.Expires.Std(), b.now)
	}
	check(b)
	b.now = b.now.Add(time.Minute)
	if r := b.do(RotateCredential{ID: "c1", NewID: "c3", NewHash: hash, Life: time.Hour}); !errors.Is(r.Err, meta.ErrDenied) {
		t.Errorf("an ended one is rotated: %v", r.Err)
	}
	b.must(RevokeCredential{ID: "c2"})
	if r := b.do(RotateCredential{ID: "c2", NewID: "c3", NewHash: hash, Life: time.Hour}); !errors.Is(r.Err, meta.ErrDenied) {
		t.Errorf("a revoked one is rotated: %v", r.Err)
	}
	b.must(session("s1", "user:ada"))
	if r := b.do(RotateCredential{ID: "s1", NewID: "c3", NewHash: hash, Life: time.Hour}); !errors.Is(r.Err, meta.ErrDenied) {
		t.Errorf("a session is rotated: %v", r.Err)
	}
}

// A new password ends the sessions of the old one, and leaves tokens alone.
func TestSetPassword(t *testing.T) {
	b := credentialBench(t)
	b.must(SetPassword{Name: "user:ada", Password: phc})
	if got := ask(b, PasswordOf{Name: "user:ada"}); !bytes.Equal(got, phc) {
		t.Errorf("%s", got)
	}
	if a := ask(b, GetAccount{Name: "user:ada"}); a.Password != nil {
		t.Error("the hash is in the answer")
	}
	b.must(session("s1", "user:ada"))
	b.must(credential("t1", "user:ada"))
	r := b.must(SetPassword{Name: "user:ada"})
	if a := r.Value.(meta.Account); a.Password != nil {
		t.Error("the hash is in the result")
	}
	if s, c := ask(b, GetCredential{ID: "s1"}), ask(b, GetCredential{ID: "t1"}); s.Revoked == 0 || c.Revoked != 0 {
		t.Errorf("session %+v, token %+v", s, c)
	}
	for _, name := range []string{"user:ada", "user:nobody"} {
		if got := ask(b, PasswordOf{Name: name}); len(got) != 0 {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestIssuers(t *testing.T) {
	b := credentialBench(t)
	made := b.must(forge()).Value.(meta.Issuer)
	if made.KeysAt != meta.TimeOf(b.now) || made.Revision == 0 {
		t.Errorf("%+v", made)
	}
	b.must(exchange("c1", "main"))
	if c := ask(b, GetCaller{Credential: "c1"}); len(c.Rights) != 1 || c.Rights[0].Repository != "acme/app" {
		t.Errorf("%+v", c)
	}
	// Rules change, keys stay; another URL has its own keys.
	again := forge()
	again.Issuer.Keys, again.Issuer.Audience = nil, "another"
	if i := b.must(again).Value.(meta.Issuer); len(i.Keys) == 0 || i.Created != made.Created || i.Revision == made.Revision {
		t.Errorf("%+v", i)
	}
	b.must(SetIssuerKeys{Tenant: "acme", Name: "forge", URL: "https://forge.example", Keys: []byte("new")})
	if i := ask(b, GetIssuer{Tenant: "acme", Name: "forge"}); string(i.Keys) != "new" {
		t.Errorf("%s", i.Keys)
	}
	pinned := forge()
	pinned.Issuer.Name, pinned.Issuer.Pinned = "pinned", true
	b.must(pinned)
	b.must(SetIssuerKeys{Tenant: "acme", Name: "pinned", URL: "https://forge.example", Keys: []byte("new")})
	if i := ask(b, GetIssuer{Tenant: "acme", Name: "pinned"}); string(i.Keys) == "new" {
		t.Error("pinned keys were replaced")
	}
	for _, test := range []struct {
		q    IssuersAt
		want int
	}{
		{IssuersAt{URL: "https://forge.example"}, 2}, {IssuersAt{URL: "https://forge.example", Tenant: "acme"}, 2},
		{IssuersAt{URL: "https://forge.example", Tenant: "acm"}, 0}, {IssuersAt{URL: "https://forge.exampl"}, 0},
	} {
		if got := ask(b, test.q); len(got) != test.want {
			t.Errorf("%+v: %d", test.q, len(got))
		}
	}
	if all, mine := ask(b, ListIssuers{}), ask(b, ListIssuers{Tenant: "acme", Page: Page{After: "forge"}}); len(all) != 2 || len(mine) != 1 || len(ask(b, ListIssuers{Page: Page{After: "acme/forge"}})) != 1 {
		t.Errorf("%d issuers, %d behind forge", len(all), len(mine))
	}
	check(b)
	// With the issuer goes what it vouched for.
	before := b.head().Revision
	b.must(RemoveIssuer{Tenant: "acme", Name: "forge"})
	if _, err := try(b, GetCaller{Credential: "c1"}); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("its job goes on: %v", err)
	}
	if b.head().Revision == before {
		t.Error("the access revision stays")
	}
	check(b)
	for name, change := range map[string]func(*meta.Issuer){
		"role":       func(i *meta.Issuer) { i.Rules[0].Role = "painter" },
		"operator":   func(i *meta.Issuer) { i.Rules[0].Role = "operator" },
		"repository": func(i *meta.Issuer) { i.Rules[0].Repository = "*" },
	} {
		bad := forge()
		bad.Issuer.Rules = slices.Clone(bad.Issuer.Rules)
		change(&bad.Issuer)
		if r := b.do(bad); !errors.Is(r.Err, meta.ErrInvalid) {
			t.Errorf("%s: %v", name, r.Err)
		}
	}
	nobody := forge()
	nobody.Issuer.Tenant, nobody.Issuer.Rules = "nobody", []meta.IssuerRule{{Name: "a", When: "b", Role: "reader", Repository: "nobody/*"}}
	if r := b.do(nobody); !errors.Is(r.Err, meta.ErrNotFound) {
		t.Errorf("of a tenant that is not there: %v", r.Err)
	}
	for n := range meta.MaxIssuers {
		more := forge()
		more.Issuer.Name = fmt.Sprint("i", n)
		if r := b.do(more); (r.Err == nil) != (n < meta.MaxIssuers-1) {
			t.Errorf("%d: %v", n, r.Err)
		}
	}
	check(b)
}
