package access

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoal-registry/shoal/gateway/credential"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// known adds a principal with a token to the metadata.
func (m *roster) known(principal string, rights []meta.Right, change ...func(*meta.Credential)) string {
	text, token := credential.Mint()
	c := &meta.Credential{
		ID: token.ID, Hash: token.Hash, Principal: principal, Kind: meta.CredentialToken,
		Issued: meta.TimeOf(time.Now()), Expires: meta.TimeOf(time.Now().Add(time.Hour)),
	}
	for _, f := range change {
		f(c)
	}
	m.callers = append(m.callers, state.Caller{Principal: principal, Rights: rights, Credential: c})
	return text.Reveal()
}

// setHead is a Head that a test sets.
type setHead struct{ revision uint64 }

func (h *setHead) Revision() uint64   { return h.revision }
func (h *setHead) Age() time.Duration { return 0 }
func (h *setHead) Reachable() bool    { return true }

// One token in each form that clients have for it, narrowed by its limits.
func TestTokenOfThePrincipal(t *testing.T) {
	m := cluster()
	text := m.known("user:ada", []meta.Right{{Actions: []Action{Pull, List, Push}, Repository: "acme/*"}}, func(c *meta.Credential) {
		c.Limits = []meta.Right{{Actions: []Action{Pull}, Repository: "acme/app"}}
	})
	g := newGate(t, "s1", m)
	basic := request("")
	basic.SetBasicAuth("whoever", text)
	for _, authorization := range []string{"Bearer " + text, "Token " + text, text, basic.Header.Get("Authorization")} {
		who, err := g.Authenticate(request(authorization), false)
		if err != nil || who.Name != "user:ada" || who.Token == "" || may(who, Pull) != "acme/app" || may(who, Push) != "" || who.Admin {
			t.Errorf("%.20q: %+v %v", authorization, who, err)
		}
	}
	nuget := request("")
	nuget.Header.Set("X-NuGet-ApiKey", text)
	if who, err := g.Authenticate(nuget, false); err != nil || who.Name != "user:ada" {
		t.Errorf("NuGet: %+v %v", who, err)
	}
	inURL := request("")
	inURL.URL.RawQuery = "access_token=" + text + "&token=" + text
	if who, err := g.Authenticate(inURL, false); err != nil || who.Name != meta.Anonymous.Name {
		t.Errorf("in the URL: %+v %v", who, err)
	}
	if d := Explain(Policy{}, verified(t, g, text), Push, Target{Repo: ref, Record: private}); d.Reason != Narrowed || !errors.Is(d.Err, meta.ErrDenied) || !strings.Contains(d.Err.Error(), "this credential may not") {
		t.Errorf("%+v", d)
	}
	// What /token gives for it is narrower still, and never wider.
	who := verified(t, g, issue(t, g, verified(t, g, text), "repository:acme/app:pull,push", "repository:acme/lib:pull"))
	if may(who, Pull) != "acme/app" || may(who, Push) != "" {
		t.Errorf("%+v", who)
	}
	for name, bad := range map[string]string{
		"mistyped": text[:len(text)-1] + "7", "cut": text[:40], "another's": func() string { other, _ := credential.Mint(); return other.Reveal() }(),
	} {
		var refused *CredentialsError
		if who, err := g.Authenticate(request("Bearer "+bad), false); !errors.As(err, &refused) || strings.Contains(err.Error(), bad[22:]) {
			t.Errorf("%s: %+v %v", name, who, err)
		}
	}
}

func verified(t *testing.T, g *Gate, secret string) meta.Principal {
	t.Helper()
	who, err := g.Verify(t.Context(), secret)
	if err != nil {
		t.Fatal(err)
	}
	return who
}

func TestCredentialEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := cluster()
		text := m.known("user:ada", []meta.Right{
			{Actions: []Action{Pull}, Repository: "acme/*"},
			{Actions: []Action{Push}, Repository: "acme/*", Expires: meta.TimeOf(time.Now().Add(time.Minute))},
		})
		g := newGate(t, "s1", m, func(c *Config) { c.Head = &setHead{} })
		if who := verified(t, g, text); may(who, Push) == "" {
			t.Errorf("%+v", who)
		}
		time.Sleep(time.Minute)
		who := verified(t, g, text)
		if may(who, Push) != "" || may(who, Pull) == "" {
			t.Errorf("a binding that has ended: %+v", who)
		}
		if d := Explain(Policy{}, who, Push, Target{Repo: ref, Record: private}); d.Reason != Expired || d.Right == nil {
			t.Errorf("%+v", d)
		}
		time.Sleep(time.Hour)
		if _, err := g.Verify(t.Context(), text); !errors.Is(err, meta.ErrDenied) {
			t.Errorf("a token that has ended: %v", err)
		}
		if len(m.asked) != 1 {
			t.Errorf("asked %v", m.asked)
		}
	})
}

// What is known of a caller is used again exactly until the revision moves; an answer
// of an older revision than this node knows of is not believed.
func TestCallersAreKept(t *testing.T) {
	m, head := cluster(), &setHead{revision: 5}
	m.callers[0].Revision = 5
	text := m.known("user:ada", m.callers[0].Rights)
	at := len(m.callers) - 1
	m.callers[at].Revision = 5
	g := newGate(t, "a1", m, func(c *Config) { c.Head = head })
	for range 3 {
		verified(t, g, text)
	}
	if !slices.Equal(m.asked, []meta.Mode{meta.ModeLocal}) {
		t.Errorf("asked %v", m.asked)
	}
	head.revision = 6 // The answers are behind: what they say is confirmed.
	m.asked = nil
	verified(t, g, text)
	if !slices.Equal(m.asked, []meta.Mode{meta.ModeLocal, meta.ModeStrong}) {
		t.Errorf("asked %v", m.asked)
	}
	m.callers[at].Revision, m.asked = 7, nil
	verified(t, g, text)
	head.revision = 7
	verified(t, g, text)
	verified(t, g, text)
	if len(m.asked) != 1 {
		t.Errorf("asked %v", m.asked)
	}
	// Without the metadata what is known goes on, and what is not is no wrong credential.
	m.err = &meta.UnavailableError{Reason: "no_server"}
	verified(t, g, text)
	head.revision = 8
	var bad *CredentialsError
	if _, err := g.Verify(t.Context(), text); !errors.Is(err, meta.ErrUnavailable) || errors.As(err, &bad) {
		t.Errorf("%v", err)
	}
}

// A survivor's epoch goes on from what the survivor has: its revisions may be smaller than
// those of the one before, and what is known from there is not used again.
func TestCallersOfAnotherEpoch(t *testing.T) {
	m, head := cluster(), &setHead{revision: 500}
	text := m.known("user:ada", reader.Rights)
	at := len(m.callers) - 1
	m.callers[at].Revision = 500
	g := newGate(t, "a1", m, func(c *Config) { c.Head = head })
	verified(t, g, text)
	m.err = fmt.Errorf("token: %w", meta.ErrDenied) // revoked by entry 490 of the next epoch
	head.revision = 490
	if _, err := g.Verify(t.Context(), text); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("revoked in the next epoch: %v", err)
	}
	// One that is ahead of this node's head is used again when the head has come there.
	m.err, m.asked, m.callers[at].Revision = nil, nil, 495
	verified(t, g, text)
	head.revision = 495
	verified(t, g, text)
	if len(m.asked) != 1 {
		t.Errorf("asked %v", m.asked)
	}
}

// A token that is younger than this node's metadata is found by a strong read; what is
// no token costs the cluster only so many.
func TestUnknownTokensAreConfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := cluster()
		g := newGate(t, "s1", m)
		for range 100 {
			text, _ := credential.Mint()
			if _, err := g.Verify(t.Context(), text.Reveal()); !errors.Is(err, meta.ErrDenied) {
				t.Fatal(err)
			}
		}
		strong := 0
		for _, mode := range m.asked {
			if mode == meta.ModeStrong {
				strong++
			}
		}
		if strong != confirmBurst || len(m.asked) != 100+strong {
			t.Errorf("%d strong reads of %d", strong, len(m.asked))
		}
	})
}

func TestDisabledAccount(t *testing.T) {
	m := cluster()
	g := newGate(t, "s1", m)
	m.err = fmt.Errorf("account user:ada is disabled: %w", meta.ErrDenied)
	text, _ := credential.Mint()
	var bad *CredentialsError
	if _, err := g.Verify(t.Context(), text.Reveal()); !errors.As(err, &bad) || bad.Reason != "account user:ada is disabled" {
		t.Errorf("%v", err)
	}
}

// BenchmarkResolved authenticates a caller that is known.
func BenchmarkResolved(b *testing.B) {
	m := cluster()
	text := m.known("user:ada", reader.Rights)
	g, err := New(Config{Self: "s1", Key: keyOf("s1"), Metadata: m, KeyOf: func(meta.NodeID) (k ed25519.PublicKey, err error) { return }, Head: &setHead{}})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := g.Verify(b.Context(), text); err != nil {
			b.Fatal(err)
		}
	}
}

// A token of /token lives no longer than the credential that it was asked with, and is
// not worth more than that in a later epoch.
func TestTokenNamesItsCredential(t *testing.T) {
	m := cluster()
	rights := []meta.Right{{Actions: []Action{Pull}, Repository: "acme/*"}}
	var record *meta.Credential
	text := m.known("user:ada", rights, func(c *meta.Credential) { record = c })
	used := map[string]int{}
	g := newGate(t, "s1", m, func(c *Config) { c.Used = func(id string) { used[id]++ } })
	signed := issue(t, g, verified(t, g, text), "repository:acme/app:pull")
	who := verified(t, g, signed)
	if who.Token != record.ID || may(who, Pull) != "acme/app" {
		t.Errorf("%+v", who)
	}
	if used[record.ID] != 2 {
		t.Errorf("used %v", used)
	}
	m.epoch++
	if _, err := g.Verify(t.Context(), signed); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("of an epoch before: %v", err)
	}
	m.epoch--
	record.Revoked = meta.TimeOf(time.Now())
	for name, secret := range map[string]string{"the token": text, "what it was exchanged for": signed} {
		if _, err := g.Verify(t.Context(), secret); !errors.Is(err, meta.ErrDenied) {
			t.Errorf("revoked, %s: %v", name, err)
		}
	}
	record.Revoked, record.Expires = 0, meta.TimeOf(time.Now().Add(-time.Second))
	if _, err := g.Verify(t.Context(), signed); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("ended: %v", err)
	}
}

// Whatever header comes, it is a credential or a refusal that does not repeat it.
func FuzzAuthorization(f *testing.F) {
	text, _ := credential.Mint()
	for _, header := range []string{"Bearer " + text.Reveal(), text.Reveal(), "Basic dTpw", "Basic", "Bearer ", "Token x", "bearer  x", "Basic " + strings.Repeat("A", 1<<12), "eyJhbGciOiJub25lIn0.e30."} {
		f.Add(header)
	}
	m := &roster{token: "secret", nodes: map[meta.NodeID]meta.Node{}}
	g, err := New(Config{Self: "s1", Key: keyOf("s1"), Metadata: m, KeyOf: func(id meta.NodeID) (ed25519.PublicKey, error) {
		return keyOf(id).Public().(ed25519.PublicKey), nil
	}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, header string) {
		r := request(header)
		if r.Header.Get("Authorization") == "" {
			return
		}
		who, err := g.Authenticate(r, false)
		var refused *CredentialsError
		if err == nil && !who.Admin || err != nil && !errors.As(err, &refused) {
			t.Fatalf("%q: %+v %v", header, who, err)
		}
		if secret, parseErr := secretOf(r.Header); err != nil && parseErr == nil && len(secret) > 20 && strings.Contains(err.Error(), secret) {
			t.Fatalf("the refusal repeats what was shown: %v", err)
		}
	})
}

// What an elevation no longer allows is not done under it.
func TestEndedElevationIsNoMark(t *testing.T) {
	now := meta.TimeOf(time.Now())
	elevated := meta.Right{Actions: []Action{Push}, Repository: "acme/*", Elevated: true, Binding: "elevation:e1", Expires: now + meta.Time(time.Hour)}
	who := meta.Principal{Name: "user:ada", Rights: []meta.Right{elevated}, At: now}
	on := Target{Repo: ref, Record: private}
	if d := Explain(Policy{}, who, Push, on); !d.Allowed || d.Elevation() != "e1" {
		t.Errorf("%+v", d)
	}
	who.At += meta.Time(2 * time.Hour)
	if d := Explain(Policy{}, who, Push, on); d.Reason != Expired || d.Elevation() != "" {
		t.Errorf("%+v", d)
	}
}
