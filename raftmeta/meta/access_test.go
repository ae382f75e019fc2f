package meta

import (
	"errors"
	"strings"
	"testing"
)

func TestPrincipalNames(t *testing.T) {
	for name, tenant := range map[string]TenantName{
		"user:ada": "", "user:ada@example.org": "", "robot:acme/ci": "acme", "ci:acme/gitlab/group/app:ref": "acme",
	} {
		if err := CheckPrincipal(name); err != nil || TenantOf(name) != tenant {
			t.Errorf("%s: of %q, %v", name, TenantOf(name), err)
		}
	}
	for _, name := range []string{
		"", "ada", "user:", "user:Ada", "user:a b", "user:" + strings.Repeat("a", 128), "robot:ci", "robot:acme/", "robot:acme/ci/x", "robot:Acme/ci",
		"host:n1", "node:n1", AdminBootstrap, "anonymous", "ci:acme", "ci:acme/gitlab", "ci:acme/gitlab/", "ci:acme/Git/x", "ci:acme/gitlab/a\nb",
		"ci:acme/gitlab/" + strings.Repeat("x", MaxPrincipalBytes),
	} {
		if err := CheckPrincipal(name); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := CheckAccount("ci:acme/gitlab/x"); !errors.Is(err, ErrInvalid) {
		t.Errorf("a job has no account: %v", err)
	}
}

func TestPatternsOfTenants(t *testing.T) {
	for _, test := range []struct {
		pattern          string
		matches, covers  bool // of acme
		within           TenantName
		matchesAnAcmeApp bool
	}{
		{"*", true, true, "", true},
		{"acme/*", true, true, "acme", true},
		{"ac*/*", true, true, "", true},
		{"acme/app", true, false, "acme", true},
		{"acme/ap*", true, false, "acme", true},
		{"ac*/app", true, false, "", true},
		{"globex/*", false, false, "globex", false},
		{"acme-2/*", false, false, "acme-2", false},
		{"acm/*", false, false, "acm", false},
	} {
		if MatchTenant(test.pattern, "acme") != test.matches || CoversTenant(test.pattern, "acme") != test.covers || PatternTenant(test.pattern) != test.within ||
			MatchPattern(test.pattern, RepoRef{Tenant: "acme", Name: "app"}) != test.matchesAnAcmeApp {
			t.Errorf("%s: matches %v, covers %v, within %q", test.pattern, MatchTenant(test.pattern, "acme"), CoversTenant(test.pattern, "acme"), PatternTenant(test.pattern))
		}
	}
	for pattern, want := range map[string]bool{"": true, "*": true, "prod": true, "pro*": true, "prod*": true, "dev": false, "prod-eu": false} {
		if MatchEnvironment(pattern, "prod") != want {
			t.Errorf("environment %q of prod: %v", pattern, !want)
		}
	}
}

// The built-in roles hold what roles may hold, each once, in the order in which they are
// shown; what is about the cluster is only in roles of the cluster.
func TestBuiltInRoles(t *testing.T) {
	for _, r := range BuiltInRoles {
		if err := (Right{Actions: r.Actions, Repository: "*"}).Check(); err != nil || !r.BuiltIn() || r.Tenant() != "" {
			t.Errorf("%+v: %v", r, err)
		}
		at := -1
		for _, a := range r.Actions {
			next := 0
			for i, known := range GrantedActions {
				if known == a {
					next = i
				}
			}
			if next <= at {
				t.Errorf("%s: %v", r.Name, r.Actions)
			}
			at = next
			if a.OfCluster() && r.Name == "tenant-admin" {
				t.Errorf("%s holds %s", r.Name, a)
			}
		}
		if err := CheckRoleName(r.Name); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s may be made: %v", r.Name, err)
		}
	}
}
