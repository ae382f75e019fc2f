package access

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// The small world of the model: names that begin alike, so that patterns overlap.
var (
	worldTenants = []meta.TenantName{"a", "ab", "b"}
	worldRepos   = []string{"x", "xy"}
	worldEnvs    = []string{"", "dev", "dev2", "prod"}
	worldActions = append(slices.Clone(meta.GrantedActions), "fly")
)

const worldNow = meta.Time(1000)

// matches is a pattern as a regular expression of a name.
func matches(pattern, name string) bool {
	re := compiled[pattern]
	if re == nil {
		re = regexp.MustCompile("^" + strings.ReplaceAll(regexp.QuoteMeta(pattern), `\*`, `[^/]*`) + "$")
		compiled[pattern] = re
	}
	return re.MatchString(name)
}

var compiled = map[string]*regexp.Regexp{}

// modelRight is a right with all that it is about, found by brute force: each
// repository in each environment, each tenant of which it has all, and the cluster when
// it has all there is.
type modelRight struct {
	meta.Right
	about map[string]bool
}

func modelled(rights []meta.Right) (out []modelRight) {
	for _, r := range rights {
		about := map[string]bool{}
		wide := r.Environment == "" || r.Environment == "*"
		for _, t := range worldTenants {
			for _, n := range worldRepos {
				named := r.Repository == "*" || matches(r.Repository, string(t)+"/"+n)
				about[fmt.Sprintf("%s/%s", t, n)] = named && wide // of which nothing is known
				for _, e := range worldEnvs {
					about[fmt.Sprintf("%s/%s@%s", t, n, e)] = named && (wide || matches(r.Environment, e))
				}
			}
			// A repository of a name that only a wide pattern matches stands for all others.
			about[string(t)] = wide && (r.Repository == "*" || matches(r.Repository, string(t)+"/zzz"))
		}
		about[""] = wide && r.Repository == "*"
		out = append(out, modelRight{r, about})
	}
	return out
}

// naive says whether rights allow an action on one thing of the world.
func naive(rights []modelRight, action Action, thing string) bool {
	allowed := false
	for _, r := range rights {
		live := r.Expires == 0 || r.Expires > worldNow
		if !live || !slices.Contains(r.Actions, action) || !r.about[thing] {
			continue
		}
		if r.Deny {
			return false
		}
		allowed = true
	}
	return allowed
}

func drawRights(t *rapid.T, name string) []meta.Right {
	patterns := []string{"*", "*/*", "a/*", "a*/*", "ab/x", "a/x", "a/x*", "*/x", "b/xy"}
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) meta.Right {
		return meta.Right{
			Actions:     rapid.SliceOfN(rapid.SampledFrom(meta.GrantedActions), 1, 5).Draw(t, "actions"),
			Repository:  rapid.SampledFrom(patterns).Draw(t, "repository"),
			Environment: rapid.SampledFrom([]string{"", "", "*", "dev", "dev*", "prod"}).Draw(t, "environment"),
			Deny:        rapid.IntRange(0, 3).Draw(t, "deny") == 0,
			Expires:     rapid.SampledFrom([]meta.Time{0, 0, worldNow - 1, worldNow, worldNow + 1}).Draw(t, "expires"),
		}
	}), 0, 6).Draw(t, name)
}

// Every decision is the one that a naive evaluator comes to, with the answers of the
// table for whom may not.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		who := meta.Principal{Name: rapid.SampledFrom([]string{"user:ada", "robot:a/ci", "anonymous", "host:n1"}).Draw(t, "who"), At: worldNow}
		draw := func(name string) []meta.Right {
			rights := drawRights(t, name)
			for i := range rights {
				if !Credentialed(who) { // A host has patterns, and is bound to nothing.
					rights[i].Environment, rights[i].Deny = "", false
				}
			}
			return rights
		}
		who.Rights = draw("rights")
		admin := who.Name == "user:ada" && rapid.IntRange(0, 3).Draw(t, "admin") == 0
		who.Admin = admin
		lists := [][]modelRight{modelled(who.Rights)}
		if admin {
			lists = nil
		}
		for range rapid.IntRange(0, 2).Draw(t, "limits") {
			limit := draw("limit")
			lists = append(lists, modelled(limit))
			who = Narrow(who, limit)
			if who.Admin {
				t.Fatal("a narrowed administrator is one still")
			}
		}
		may := func(action Action, thing string) bool {
			for _, list := range lists {
				if !naive(list, action, thing) {
					return false
				}
			}
			return slices.Contains(meta.GrantedActions, action)
		}
		for _, action := range worldActions {
			judged(t, who, action, Target{}, may(action, ""), true)
			for _, tenant := range worldTenants {
				on := Target{Tenant: tenant}
				if action.OfCluster() {
					judged(t, who, action, on, may(action, ""), true)
					continue
				}
				judged(t, who, action, on, may(action, string(tenant)), SeesTenant(who, tenant))
				for _, name := range worldRepos {
					ofRepository(t, who, action, meta.RepoRef{Tenant: tenant, Name: name}, may)
				}
			}
		}
	})
}

// ofRepository judges an action on a repository that is absent, and in each environment.
func ofRepository(t *rapid.T, who meta.Principal, action Action, repo meta.RepoRef, may func(Action, string) bool) {
	absent := Target{Repo: repo}
	creates := (action == Push || action == Manage) && may(action, repo.String())
	judged(t, who, action, absent, creates, false)
	for _, env := range worldEnvs {
		for _, visibility := range []meta.Visibility{meta.VisibilityPrivate, meta.VisibilityPublic} {
			thing, public := fmt.Sprintf("%s@%s", repo, env), visibility == meta.VisibilityPublic
			on := Target{Repo: repo, Record: &meta.Repository{Ref: repo, Environment: env, Visibility: visibility}}
			sees := public || may(Pull, thing) || may(List, thing)
			d := judged(t, who, action, on, may(action, thing) || public && (action == Pull || action == List), sees)
			if may(action, thing) && !Might(who, action, repo) {
				t.Fatalf("%s %s: it may, and it might not", action, on)
			}
			// Whom it is not shown learns nothing: the answer is the one for what is absent.
			if !d.Allowed && !sees && !creates {
				if other := Authorize(Policy{}, who, action, absent); other == nil || other.Error() != d.Err.Error() {
					t.Fatalf("%s %s: %q when absent, %q when forbidden", action, on, other, d.Err)
				}
			}
		}
	}
}

// judged compares a decision with what it should be; known says that who may not knows
// of the target all the same.
func judged(t *rapid.T, who meta.Principal, action Action, on Target, allowed, known bool) Decision {
	d := Explain(Policy{}, who, action, on)
	if d.Allowed != allowed || (d.Err == nil) != allowed || (Authorize(Policy{}, who, action, on) == nil) != allowed || May(who, action, on) != allowed {
		t.Fatalf("%s %s: %+v, want %v", action, on, d, allowed)
	}
	want := meta.ErrDenied
	switch {
	case allowed:
		return d
	case !action.Valid():
	case d.Reason == Absent: // it may, were it there
		want = meta.ErrNotFound
	case !Credentialed(who):
		want = ErrChallenge
	case !known:
		want = meta.ErrNotFound
	}
	if !errors.Is(d.Err, want) || Sentence(d, who.Name, action, on) == "" {
		t.Fatalf("%s %s: %v, want %v", action, on, d.Err, want)
	}
	return d
}

// manyRights makes n rights of which the last decides.
func manyRights(n int) []meta.Right {
	var rights []meta.Right
	for i := range n - 1 {
		rights = append(rights, meta.Right{Actions: []Action{Pull, List, Push}, Repository: fmt.Sprintf("team-%d/*", i), Expires: worldNow + 1})
	}
	return append(rights, meta.Right{Actions: []Action{Pull, List, Push}, Repository: "acme/*", Environment: "dev*"})
}

// BenchmarkAuthorize judges a call of a caller that is known, by how many rights it has.
func BenchmarkAuthorize(b *testing.B) {
	record := &meta.Repository{Ref: ref, Environment: "dev", Visibility: meta.VisibilityPrivate}
	for _, n := range []int{1, 3, 16, meta.MaxBindings} {
		who := meta.Principal{Name: "user:ada", At: worldNow, Rights: manyRights(n)}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := Authorize(Policy{}, who, Push, Target{Repo: ref, Record: record}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A decision that allows costs no memory.
func TestAuthorizeAllocatesNothing(t *testing.T) {
	record := &meta.Repository{Ref: ref, Environment: "dev", Visibility: meta.VisibilityPrivate}
	who := Narrow(meta.Principal{Name: "user:ada", At: worldNow, Rights: manyRights(16)}, []meta.Right{{Actions: []Action{Push}, Repository: "acme/app"}})
	if n := testing.AllocsPerRun(100, func() {
		if err := Authorize(Policy{}, who, Push, Target{Repo: ref, Record: record}); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
