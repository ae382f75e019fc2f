package federation

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/shoal-registry/shoal/gateway/federation/issuertest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

const audience = "https://registry.example"

// record is the issuer as metadata has it.
func record(t *testing.T, i *issuertest.Issuer, rules ...meta.IssuerRule) *meta.Issuer {
	t.Helper()
	keys, err := CleanKeys(i.Keys())
	if err != nil {
		t.Fatal(err)
	}
	if rules == nil {
		rules = []meta.IssuerRule{{Name: "main", When: `claims.repository == "acme/app" && claims.ref == "refs/heads/main"`, Role: "publisher", Repository: "acme/app"}}
	}
	r := &meta.Issuer{Tenant: "acme", Name: "forge", URL: i.URL(), Audience: audience, Rules: rules, Keys: keys, KeysAt: meta.TimeOf(time.Now()), Revision: 7}
	if err := Check(r); err != nil {
		t.Fatal(err)
	}
	return r
}

var job = map[string]any{"sub": "repo:acme/app:ref:refs/heads/main", "repository": "acme/app", "ref": "refs/heads/main", "run": 3}

func with(claims map[string]any, more map[string]any) map[string]any {
	all := maps.Clone(claims)
	maps.Copy(all, more)
	return all
}

func TestJudge(t *testing.T) {
	for _, algorithm := range []string{"RS256", "ES256", "EdDSA"} {
		i := issuertest.New(t)
		i.Rotate(algorithm)
		r := record(t, i)
		v, err := NewJudge().Judge(t.Context(), r, i.Sign(audience, job), time.Now())
		if err != nil {
			t.Fatalf("%s: %v", algorithm, err)
		}
		if len(v.Rules) != 1 || v.Principal != "ci:acme/forge/repo:acme/app:ref:refs/heads/main" || v.Life != meta.ExchangeLife || len(v.Failed) != 0 {
			t.Errorf("%s: %+v", algorithm, v)
		}
	}
}

// Each of these is refused, whatever its claims say: the table is what a forger tries.
func TestJudgeRefuses(t *testing.T) {
	i, other := issuertest.New(t), issuertest.New(t)
	r := record(t, i)
	now := time.Now()
	base := with(job, map[string]any{"iss": i.URL(), "aud": audience, "iat": now.Unix(), "exp": now.Add(time.Minute).Unix()})
	raw := func(header, claims map[string]any, signature string) string {
		h, err1 := json.Marshal(header)
		c, err2 := json.Marshal(claims)
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		return base64.RawURLEncoding.EncodeToString(h) + "." + base64.RawURLEncoding.EncodeToString(c) + "." + signature
	}
	public := i.PublicKey().(*rsa.PublicKey)
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	good := i.Sign(audience, job)
	parts := strings.Split(good, ".")
	forged := strings.Split(i.Sign(audience, with(job, map[string]any{"ref": "refs/heads/evil"})), ".")
	foreign, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]string{
		"wrong audience":     i.Sign("https://elsewhere.example", job),
		"no audience":        i.Sign(audience, with(job, map[string]any{"aud": nil})),
		"expired":            i.Sign(audience, with(job, map[string]any{"exp": now.Add(-time.Second).Unix()})),
		"no expiry":          i.Sign(audience, with(job, map[string]any{"exp": nil})),
		"not yet":            i.Sign(audience, with(job, map[string]any{"nbf": now.Add(10 * time.Minute).Unix()})),
		"of the future":      i.Sign(audience, with(job, map[string]any{"iat": now.Add(10 * time.Minute).Unix()})),
		"old":                i.Sign(audience, with(job, map[string]any{"iat": now.Add(-25 * time.Hour).Unix()})),
		"no time":            i.Sign(audience, with(job, map[string]any{"iat": nil})),
		"no subject":         i.Sign(audience, with(job, map[string]any{"sub": nil})),
		"wrong issuer":       i.Sign(audience, with(job, map[string]any{"iss": other.URL()})),
		"issuer with slash":  i.Sign(audience, with(job, map[string]any{"iss": i.URL() + "/"})),
		"other's key":        other.Sign(audience, with(job, map[string]any{"iss": i.URL()})),
		"other's, our kid":   issuertest.SignWith(t, jose.RS256, foreign, i.KeyID(), base),
		"other's, no kid":    issuertest.SignWith(t, jose.RS256, foreign, "", base),
		"other algorithm":    issuertest.SignWith(t, jose.RS512, foreign, i.KeyID(), base),
		"none":               raw(map[string]any{"alg": "none", "kid": i.KeyID()}, base, ""),
		"None":               raw(map[string]any{"alg": "None"}, base, ""),
		"no algorithm":       raw(map[string]any{"kid": i.KeyID()}, base, parts[2]),
		"public key as HMAC": issuertest.SignWith(t, jose.HS256, der, i.KeyID(), base),
		"modulus as HMAC":    issuertest.SignWith(t, jose.HS256, public.N.Bytes(), i.KeyID(), base),
		"signature of other": parts[0] + "." + forged[1] + "." + parts[2],
		"cut off":            good[:len(good)-10],
		"no signature":       parts[0] + "." + parts[1] + ".",
		"four parts":         good + "." + parts[2],
		"key in the header":  raw(map[string]any{"alg": "RS256", "jwk": map[string]any{"kty": "RSA"}}, base, parts[2]),
		"too long":           i.Sign(audience, with(job, map[string]any{"pad": strings.Repeat("x", maxToken)})),
		"empty":              "",
		"ours":               "shoal_aaaaaaaaaaaaaaaa_x",
	} {
		v, err := NewJudge().Judge(t.Context(), r, token, now)
		var bad *TokenError
		if !errors.As(err, &bad) || !errors.Is(err, meta.ErrDenied) {
			t.Errorf("%s: %+v %v", name, v, err)
		}
		if unknown := errors.Is(err, ErrUnknownKey); unknown != (name == "other's key" || name == "other's, no kid" || name == "other algorithm") {
			t.Errorf("%s: another look at the issuer's keys: %v (%v)", name, unknown, err)
		}
	}
}

// A token that verifies and that no rule is true for gives nothing; a rule that cannot
// be evaluated is not true.
func TestRules(t *testing.T) {
	i := issuertest.New(t)
	rule := func(name, when string) meta.IssuerRule {
		return meta.IssuerRule{Name: name, When: when, Role: "reader", Repository: "acme/*"}
	}
	rules := []meta.IssuerRule{
		rule("exact", `claims.repository == "acme/app"`),
		rule("other", `claims.repository == "acme/other"`),
		rule("absent", `claims.nothing == "x"`),
		rule("guarded", `has(claims.nothing) && claims.nothing == "x"`),
		rule("number", `claims.run == 3`),
		rule("text-is-no-number", `claims.run == "3"`),
		rule("protected", `claims.protected`+` == true`),
		rule("in", `claims.ref in ["refs/heads/main", "refs/heads/next"]`),
		rule("pattern", `claims.ref.matches("^refs/heads/(main|next)$")`),
		rule("prefix", `subject.startsWith("repo:acme/app:")`),
		rule("groups", `claims.groups.exists(g, g == "release")`),
		rule("nested", `claims.kubernetes.namespace == "ci"`),
		rule("type", `claims.repository > 3`),
	}
	rules[9].Life = time.Minute
	r := record(t, i, rules...)
	v, err := NewJudge().Judge(t.Context(), r, i.Sign(audience, with(job, map[string]any{
		"groups": []string{"dev", "release"}, "kubernetes": map[string]any{"namespace": "ci"}, "protected": "true",
	})), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	var held []string
	for _, r := range v.Rules {
		held = append(held, r.Name)
	}
	if want := []string{"exact", "number", "in", "pattern", "prefix", "groups", "nested"}; !slices.Equal(held, want) {
		t.Errorf("held %v, want %v", held, want)
	}
	if v.Life != time.Minute {
		t.Errorf("life %v", v.Life)
	}
	for _, name := range []string{"absent", "type"} {
		if v.Failed[name] == "" {
			t.Errorf("rule %s has no reason: %v", name, v.Failed)
		}
	}
	// Another job of the same issuer.
	v, err = NewJudge().Judge(t.Context(), r, i.Sign(audience, map[string]any{"repository": "evil/app"}), time.Now())
	if err != nil || len(v.Rules) != 0 {
		t.Errorf("%+v %v", v, err)
	}
}

// What does not compile, or would hold for everybody, is refused before it is kept.
func TestRulesThatAreRefused(t *testing.T) {
	i := issuertest.New(t)
	for _, when := range []string{
		"", "true", "1 == 1", `claims.ref`, `claim.ref == "x"`, `claims.ref = "x"`, `claims["ref"`, `claims.ref.matches("(")`,
		`subject == 3`, `subject`, `"x" + claims.ref`, `audience == "x"`, strings.Repeat("(", 200) + `claims.a == "b"` + strings.Repeat(")", 200),
		`claims.a == "` + strings.Repeat("x", meta.MaxRuleBytes) + `"`, `unknown(claims)`,
	} {
		r := record(t, i)
		r.Rules[0].When = when
		if err := Check(r); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%.60q: %v", when, err)
		}
	}
	for name, change := range map[string]func(*meta.Issuer){
		"plain http":        func(r *meta.Issuer) { r.URL = "http://forge.example" },
		"no audience":       func(r *meta.Issuer) { r.Audience = "" },
		"other's tenant":    func(r *meta.Issuer) { r.Rules[0].Repository = "other/app" },
		"all tenants":       func(r *meta.Issuer) { r.Rules[0].Repository = "*" },
		"many tenants":      func(r *meta.Issuer) { r.Rules[0].Repository = "ac*/app" },
		"other's role":      func(r *meta.Issuer) { r.Rules[0].Role = "other/deployer" },
		"long life":         func(r *meta.Issuer) { r.Rules[0].Life = time.Hour },
		"no rules":          func(r *meta.Issuer) { r.Rules = nil },
		"pinned, no keys":   func(r *meta.Issuer) { r.Pinned, r.Keys = true, nil },
		"private keys":      func(r *meta.Issuer) { r.Keys = []byte(`{"keys":[{"kty":"oct","k":"AAAA"}]}`) },
		"roots that do not": func(r *meta.Issuer) { r.Roots = []byte("hello") },
		"two of a name":     func(r *meta.Issuer) { r.Rules = append(r.Rules, r.Rules[0]) },
	} {
		r := record(t, i)
		change(r)
		if err := Check(r); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A rule that would take long is stopped, and holds for nobody.
func TestCostlyRule(t *testing.T) {
	i := issuertest.New(t)
	r := record(t, i, meta.IssuerRule{Name: "costly", Role: "reader", Repository: "acme/*",
		When: `claims.many.all(a, claims.many.all(b, a != "" && b != ""))`})
	var many []string
	for n := range 500 {
		many = append(many, fmt.Sprint(n))
	}
	started := time.Now()
	v, err := NewJudge().Judge(t.Context(), r, i.Sign(audience, with(job, map[string]any{"many": many})), time.Now())
	if err != nil || len(v.Rules) != 0 || !strings.Contains(v.Failed["costly"], "cost") {
		t.Errorf("%+v %v", v, err)
	}
	t.Logf("stopped after %v", time.Since(started))
}

// New keys and new rules are seen at once, by the record's revision and time of keys.
func TestRotation(t *testing.T) {
	i := issuertest.New(t)
	r := record(t, i)
	j := NewJudge()
	old := i.Sign(audience, job)
	if _, err := j.Judge(t.Context(), r, old, time.Now()); err != nil {
		t.Fatal(err)
	}
	i.Rotate("ES256")
	if _, err := j.Judge(t.Context(), r, i.Sign(audience, job), time.Now()); !errors.Is(err, ErrUnknownKey) {
		t.Fatalf("a key that nobody has fetched: %v", err)
	}
	keys, err := Fetch(t.Context(), i.Client(), i.URL())
	if err != nil {
		t.Fatal(err)
	}
	r.Keys, r.KeysAt = keys, r.KeysAt+1
	if _, err := j.Judge(t.Context(), r, i.Sign(audience, job), time.Now()); err != nil {
		t.Errorf("after the fetch: %v", err)
	}
	if _, err := j.Judge(t.Context(), r, old, time.Now()); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("a key that the issuer has taken back: %v", err)
	}
	// The issuer is down: whose keys are known is let in.
	i.Down(true)
	if _, err := j.Judge(t.Context(), r, i.Sign(audience, job), time.Now()); err != nil {
		t.Errorf("while the issuer is down: %v", err)
	}
	if _, err := Fetch(t.Context(), i.Client(), i.URL()); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("fetch while it is down: %v", err)
	}
	i.Down(false)
	i.Call("https://evil.example")
	if _, err := Fetch(t.Context(), i.Client(), i.URL()); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("fetch from one that calls itself something else: %v", err)
	}
}

// Of what an issuer publishes only public keys for signatures are kept.
func TestCleanKeys(t *testing.T) {
	i := issuertest.New(t)
	var set map[string][]json.RawMessage
	if err := json.Unmarshal(i.Keys(), &set); err != nil {
		t.Fatal(err)
	}
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := json.Marshal(jose.JSONWebKey{Key: private, KeyID: "private"})
	if err != nil {
		t.Fatal(err)
	}
	set["keys"] = append(set["keys"], secret, []byte(`{"kty":"oct","k":"c2VjcmV0","kid":"shared"}`), []byte(`{"kty":"XYZ","kid":"odd"}`), []byte(`3`),
		[]byte(`{"kty":"RSA","kid":"weak","e":"AQAB","n":"`+base64.RawURLEncoding.EncodeToString(make([]byte, 64))+`"}`))
	raw, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	clean, err := CleanKeys(raw)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := readKeys(clean)
	if err != nil || len(keys) != 1 || keys[0].KeyID != i.KeyID() {
		t.Errorf("%s %v", clean, err)
	}
	for _, bad := range []string{"", "{}", `{"keys":[]}`, `[]`, `{"keys":[{"kty":"oct","k":"AAAA"}]}`} {
		if _, err := CleanKeys([]byte(bad)); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestPrincipalOfSubject(t *testing.T) {
	i := &meta.Issuer{Tenant: "acme", Name: "forge"}
	for _, subject := range []string{"repo:acme/app", strings.Repeat("x", 1000), "line\nbreak", "\xff", "ünïcode"} {
		name := principalOf(i, subject)
		if err := meta.CheckPrincipal(name); err != nil || meta.TenantOf(name) != "acme" || !strings.HasPrefix(name, "ci:acme/forge/") {
			t.Errorf("%q is %q: %v", subject, name, err)
		}
	}
}

func FuzzToken(f *testing.F) {
	i := issuertest.New(f)
	f.Add(i.Sign(audience, job))
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Add("a.b.c")
	keys, err := CleanKeys(i.Keys())
	if err != nil {
		f.Fatal(err)
	}
	r := &meta.Issuer{Tenant: "acme", Name: "forge", URL: i.URL(), Audience: audience, Keys: keys, Rules: []meta.IssuerRule{{Name: "a", When: `claims.a == "b"`, Role: "reader", Repository: "acme/*"}}}
	good := map[string]bool{}
	j := NewJudge()
	f.Fuzz(func(t *testing.T, token string) {
		if _, err := Peek(token); err != nil {
			var bad *TokenError
			if !errors.As(err, &bad) {
				t.Fatal(err)
			}
		}
		v, err := j.Judge(t.Context(), r, token, time.Now())
		if err == nil && !good[token] && v.Claims.Subject != job["sub"] {
			t.Fatalf("%q is taken: %+v", token, v)
		}
	})
}

func FuzzCleanKeys(f *testing.F) {
	f.Add(issuertest.New(f).Keys())
	f.Add([]byte(`{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		clean, err := CleanKeys(raw)
		if err != nil {
			return
		}
		again, err := CleanKeys(clean)
		if err != nil || string(again) != string(clean) {
			t.Fatalf("%s comes back as %s: %v", clean, again, err)
		}
	})
}
