package meta

import (
	"errors"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestMatchPackage(t *testing.T) {
	for _, test := range []struct {
		pattern, name string
		want          bool
	}{
		{"*", "", true}, {"*", "a/b", true}, {"a", "a", true}, {"a", "ab", false}, {"a*", "a", true}, {"a*", "ba", false},
		{"*-internal", "x-internal", true}, {"*-internal", "x-internals", false}, {"@acme/*", "@acme/x", true}, {"@acme/*", "@acmex/x", false},
		{"a*b*c", "aXbYc", true}, {"a*b*c", "acb", false}, {"", "", true}, {"", "a", false}, {"**", "x", true}, {"a?", "ab", false}, {"[a]", "a", false},
	} {
		if got := MatchPackage(test.pattern, test.name); got != test.want {
			t.Errorf("%q of %q: %v", test.pattern, test.name, got)
		}
	}
}

// FuzzMatchPackage compares with a regular expression.
func FuzzMatchPackage(f *testing.F) {
	f.Add("a*b*c", "aXbYc")
	f.Add("**", "")
	f.Add("*a*a*a*b", strings.Repeat("a", 100))
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if len(pattern) > 100 || len(name) > 1000 || !utf8.ValidString(pattern) || !utf8.ValidString(name) {
			return
		}
		parts := strings.Split(pattern, "*")
		for i := range parts {
			parts[i] = regexp.QuoteMeta(parts[i])
		}
		if got, want := MatchPackage(pattern, name), regexp.MustCompile(`(?s)\A`+strings.Join(parts, ".*")+`\z`).MatchString(name); got != want {
			t.Fatalf("%q of %q: %v", pattern, name, got)
		}
	})
}

func TestAdmits(t *testing.T) {
	u := Upstream{Allow: []string{"left-*", "lodash"}, Block: []string{"left-evil*"}}
	for name, rule := range map[string]string{"left-pad": "", "lodash": "", "left-evil2": "block left-evil*", "ramda": "allow"} {
		if ok, got := u.Admits(name); ok != (rule == "") || got != rule {
			t.Errorf("%s: %v, %q", name, ok, got)
		}
	}
	if ok, _ := (Upstream{}).Admits("anything"); !ok {
		t.Error("without rules something is blocked")
	}
}

func TestUpstreamCheck(t *testing.T) {
	good := Upstream{URL: "https://registry.example:8443/npm/", Credential: "npm-token.1", Allow: []string{"@acme/*"}, MinReleaseAge: 72 * time.Hour}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Upstream){
		"nothing":        func(u *Upstream) { u.URL = "" },
		"a path":         func(u *Upstream) { u.URL = "/npm" },
		"a file":         func(u *Upstream) { u.URL = "file:///etc/passwd" },
		"no host":        func(u *Upstream) { u.URL = "https:///x" },
		"opaque":         func(u *Upstream) { u.URL = "https:x" },
		"a user":         func(u *Upstream) { u.URL = "https://user@x" },
		"a password":     func(u *Upstream) { u.URL = "https://user:hunter2@x" },
		"not parsed":     func(u *Upstream) { u.URL = "https://user:hunter2@x:port" },
		"a query":        func(u *Upstream) { u.URL = "https://x?token=hunter2" },
		"a bare query":   func(u *Upstream) { u.URL = "https://x?" },
		"a fragment":     func(u *Upstream) { u.URL = "https://x#y" },
		"long":           func(u *Upstream) { u.URL = "https://x/" + strings.Repeat("y", MaxUpstreamURLBytes) },
		"a bad name":     func(u *Upstream) { u.Credential = "../x" },
		"an empty rule":  func(u *Upstream) { u.Block = []string{""} },
		"too many rules": func(u *Upstream) { u.Allow = make([]string, MaxUpstreamPatterns+1) },
		"before now":     func(u *Upstream) { u.MinReleaseAge = -1 },
		"for ever":       func(u *Upstream) { u.NegativeTTL = MaxUpstreamAge + 1 },
	} {
		u := good
		change(&u)
		if err := u.Check(); !errors.Is(err, ErrInvalid) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzUpstream: what passes is an address without secrets.
func FuzzUpstream(f *testing.F) {
	f.Add("https://registry.example/npm")
	f.Add("https://a:b@c?d#e")
	f.Fuzz(func(t *testing.T, address string) {
		if (Upstream{URL: address}).Check() != nil {
			return
		}
		u, err := url.Parse(address)
		if err != nil || u.User != nil || u.RawQuery != "" || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			t.Fatalf("%q passes: %v", address, err)
		}
	})
}

func TestMarkingCheck(t *testing.T) {
	for name, m := range map[string]Marking{
		"nothing": {Reason: "x"},
		"long":    {Yanked: new(true), Reason: strings.Repeat("x", MaxMarkReasonBytes+1)},
		"a bell":  {Yanked: new(true), Reason: "\a"},
		"no text": {Yanked: new(true), Reason: "\xff"},
	} {
		if err := m.Check(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := (Marking{Deprecated: new(true), Reason: "use\r\n\tright-pad"}).Check(); err != nil {
		t.Error(err)
	}
}

func TestReadOnlyError(t *testing.T) {
	for _, kind := range []Kind{KindProxy, KindGroup} {
		err := &ReadOnlyError{Repo: RepoRef{Tenant: "acme", Name: "x"}, Kind: kind}
		if !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "acme/x") || !strings.Contains(err.Error(), "write to") {
			t.Error(err)
		}
	}
}
