package access

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// ErrChallenge says that the call needs credentials, or other ones; the gateway
// answers with the protocol's challenge.
var ErrChallenge = errors.New("credentials are needed")

// Policy is what a node's role and configuration say about callers without
// credentials. The zero value challenges them all, but for public repositories.
type Policy struct {
	// AllowAnonymous lets everybody who calls this machine by a name of loopback
	// read and write all repositories (dev).
	AllowAnonymous bool
	// Host, when set, is who a client on this node's loopback is that shows no
	// credentials: `host:<node>` with the node's read patterns (agents).
	Host *meta.Principal
}

// Target is what an action is done to. The zero Target is the cluster.
type Target struct {
	// Repo names a repository; Record is its record, nil when it is absent, deleted or
	// of another format. Of one that is to be made, Record says what it will be.
	Repo   meta.RepoRef
	Record *meta.Repository
	// Tenant names a tenant, when Repo is zero.
	Tenant meta.TenantName
	// Somewhere is for a route that names neither and narrows by itself: whether there
	// is anything that the action may be done to.
	Somewhere bool
}

func (t Target) String() string {
	switch {
	case t.Repo != (meta.RepoRef{}):
		return "repository " + t.Repo.String()
	case t.Tenant != "":
		return "tenant " + string(t.Tenant)
	case t.Somewhere:
		return "anything"
	}
	return "the cluster"
}

var wholeCluster Target

// Reason is why a decision came out as it did.
type Reason string

// Reasons of decisions.
const (
	ByAdmin      Reason = "administrator" // who has the admin token may all
	ByRight      Reason = "right"         // Decision.Right allows it
	ByVisibility Reason = "public"        // everybody may read the repository
	ByPolicy     Reason = "policy"        // the node asks for no credentials here
	ByNode       Reason = "node"          // it is a node of the roster
	Denied       Reason = "denied"        // Decision.Right is a deny, which overrides
	Expired      Reason = "expired"       // Decision.Right would allow it, and has ended
	Narrowed     Reason = "narrowed"      // the principal may, this credential may not
	NoRight      Reason = "no right"      // nothing allows it
	Absent       Reason = "absent"        // it may, but there is no such repository
)

// Decision is a judgement with its reason. Err is nil when it is allowed, else it
// wraps ErrChallenge, meta.ErrNotFound or meta.ErrDenied: what the caller is told.
type Decision struct {
	Allowed bool
	Reason  Reason
	// Right is what decided, nil when no single one did.
	Right *meta.Right
	Err   error
}

// Elevation returns the id of the break-glass elevation that an allowing decision rests
// on, "" when it rests on none.
func (d Decision) Elevation() string {
	if !d.Allowed || d.Right == nil || !d.Right.Elevated {
		return ""
	}
	_, id, _ := strings.Cut(d.Right.Binding, ":")
	return id
}

// Authorize judges a call. To whom may not read it, a repository looks the same
// whether it is absent or forbidden: without credentials the answer is a challenge,
// with them not found. The same holds of tenants for whom has no right to anything of
// theirs. Only whom may read learns that more is denied. Push and Manage pass with a
// nil Record: whether that creates it is for others to say. It allocates nothing when
// it allows.
//
// The result is nil or wraps ErrChallenge, meta.ErrNotFound or meta.ErrDenied.
func Authorize(policy Policy, who meta.Principal, action Action, on Target) error {
	reason, _ := decide(&policy, &who, action, &on)
	return refusal(&who, action, &on, reason)
}

// Explain is Authorize with its reason.
func Explain(policy Policy, who meta.Principal, action Action, on Target) Decision {
	reason, right := decide(&policy, &who, action, &on)
	d := Decision{Reason: reason, Right: right, Err: refusal(&who, action, &on, reason)}
	d.Allowed = d.Err == nil
	return d
}

// May reports whether who has the action on what is there.
func May(who meta.Principal, action Action, on Target) bool {
	var none Policy
	reason, _ := decide(&none, &who, action, &on)
	return reason.allows()
}

// OfRepository is May of a repository that is there.
func OfRepository(who meta.Principal, action Action, repo *meta.Repository) bool {
	return May(who, action, Target{Repo: repo.Ref, Record: repo})
}

// Readable reports whether who may read a repository.
func Readable(who meta.Principal, repo *meta.Repository) bool { return OfRepository(who, Pull, repo) }

// Might reports whether who may do the action to a repository of that name, whatever
// its environment turns out to be: for whom it is worth to look whether it is there.
func Might(who meta.Principal, action Action, ref meta.RepoRef) bool {
	_, reason := search(&who, action, &Target{Repo: ref}, true)
	return reason.allows()
}

func (r Reason) allows() bool {
	switch r {
	case ByAdmin, ByRight, ByVisibility, ByPolicy, ByNode:
		return true
	}
	return false
}

// decide finds the reason. The error it leads to is refusal's.
func decide(policy *Policy, who *meta.Principal, action Action, on *Target) (Reason, *meta.Right) {
	if action.OfCluster() {
		on = &wholeCluster // whatever else the route names
	}
	switch action {
	case Public:
		return ByPolicy, nil
	case NodeOnly:
		if who.Node != "" {
			return ByNode, nil
		}
		return NoRight, nil
	case Login:
		if policy.AllowAnonymous || Credentialed(*who) {
			return ByPolicy, nil
		}
		return NoRight, nil
	case List:
		// The listing shows what the caller may see.
		if on.Somewhere && (policy.AllowAnonymous || who.Name != meta.Anonymous.Name) {
			return ByPolicy, nil
		}
	}
	right, reason := search(who, action, on, false)
	if on.Repo == (meta.RepoRef{}) {
		return reason, right
	}
	if on.Record != nil {
		// What is public stays so for whom a deny names: it could ask as nobody.
		if !reason.allows() && (action == Pull || action == List) && on.Record.Visibility == meta.VisibilityPublic {
			return ByVisibility, nil
		}
	} else if reason.allows() && action != Push && action != Manage {
		return Absent, right
	}
	return reason, right
}

// refusal words what the caller is told.
func refusal(who *meta.Principal, action Action, on *Target, reason Reason) error {
	switch {
	case reason.allows():
		return nil
	case action == NodeOnly:
		return fmt.Errorf("only nodes of the cluster, with their certificate: %w", meta.ErrDenied)
	case !action.Valid():
		// A route's action was checked when it was registered.
		return fmt.Errorf("action %q is unknown: %w", action, meta.ErrDenied)
	case reason == Absent:
		return fmt.Errorf("%s: %w", *on, meta.ErrNotFound)
	case !Credentialed(*who):
		return ErrChallenge
	case !action.OfCluster() && !sees(who, on):
		return fmt.Errorf("%s: %w", *on, meta.ErrNotFound)
	case reason == Narrowed:
		return fmt.Errorf("%s may %s %s, but this credential may not: use another, or make one with that right: %w", who.Name, action, *on, meta.ErrDenied)
	}
	return fmt.Errorf("%s may not %s %s: %w", who.Name, action, *on, meta.ErrDenied)
}

// sees reports whether who knows already that the target is there.
func sees(who *meta.Principal, on *Target) bool {
	switch {
	case on.Repo != (meta.RepoRef{}):
		return on.Record != nil && (on.Record.Visibility == meta.VisibilityPublic || has(who, Pull, on) || has(who, List, on))
	case on.Tenant != "":
		return SeesTenant(*who, on.Tenant)
	}
	return true
}

// SeesTenant reports whether who has a right to anything of a tenant, and so may know
// that there is one.
func SeesTenant(who meta.Principal, tenant meta.TenantName) bool {
	reaches := func(rights []meta.Right) bool {
		for i := range rights {
			r := &rights[i]
			if !r.Deny && r.Active(who.At) && meta.MatchTenant(r.Repository, tenant) {
				return true
			}
		}
		return false
	}
	for _, limit := range who.Limits {
		if !reaches(limit) {
			return false
		}
	}
	return who.Admin || reaches(who.Rights)
}

// Narrow returns who with a further limit, of a credential or of a token's scopes: it
// may what it could before, as far as limit allows it too. An administrator is one no
// more.
func Narrow(who meta.Principal, limit []meta.Right) meta.Principal {
	if who.Admin {
		who.Admin, who.Rights = false, everything
	}
	who.Limits = append(slices.Clip(who.Limits), limit)
	return who
}

func has(who *meta.Principal, action Action, on *Target) bool {
	_, reason := search(who, action, on, false)
	return reason.allows()
}

// search looks for the right that decides. With anywhere the environment of a
// repository is not known, and counts for what it might be.
func search(who *meta.Principal, action Action, on *Target, anywhere bool) (*meta.Right, Reason) {
	right, reason := (*meta.Right)(nil), ByAdmin
	if !who.Admin || !action.Valid() {
		if right, reason = among(who.Rights, who.At, action, on, anywhere); reason != ByRight {
			return right, reason
		}
	}
	for _, limit := range who.Limits {
		if narrow, found := among(limit, who.At, action, on, anywhere); found != ByRight {
			return narrow, Narrowed
		}
	}
	return right, reason
}

// among judges by one list of rights: a deny overrides.
func among(rights []meta.Right, at meta.Time, action Action, on *Target, anywhere bool) (*meta.Right, Reason) {
	right, reason := (*meta.Right)(nil), NoRight
	for i := range rights {
		r := &rights[i]
		if elsewhere(r, on) || !r.Has(action) || !reaches(r, on, anywhere) {
			continue
		}
		switch live := r.Active(at); {
		case r.Deny && live:
			return r, Denied
		case r.Deny:
		case live && (reason != ByRight || right.Elevated && !r.Elevated):
			right, reason = r, ByRight
		case !live && reason == NoRight:
			right, reason = r, Expired
		}
	}
	return right, reason
}

// elsewhere sorts out most of many rights by one byte.
func elsewhere(r *meta.Right, on *Target) bool {
	tenant := on.Repo.Tenant
	return tenant != "" && r.Repository != "" && r.Repository[0] != '*' && r.Repository[0] != tenant[0]
}

// reaches reports whether a right is about the target.
func reaches(r *meta.Right, on *Target, anywhere bool) bool {
	everywhere := r.Environment == "" || r.Environment == "*"
	switch {
	case on.Repo != (meta.RepoRef{}):
		if !meta.MatchPattern(r.Repository, on.Repo) {
			return false
		}
		switch {
		case everywhere:
			return true
		case on.Record != nil:
			return meta.MatchEnvironment(r.Environment, on.Record.Environment)
		}
		return anywhere && !r.Deny
	case on.Tenant != "":
		return everywhere && meta.CoversTenant(r.Repository, on.Tenant)
	case on.Somewhere:
		return !r.Deny || everywhere && r.Repository == "*"
	}
	return everywhere && r.Repository == "*"
}

// HostPrincipal is who the loopback clients of an agent act as: it reads public
// repositories and those that the node's patterns match.
func HostPrincipal(n meta.Node) meta.Principal {
	return meta.Principal{Name: hostPrefix + string(n.ID), Role: n.Role, Rights: readRights(n.Read)}
}

const (
	hostPrefix = meta.KindHost + ":"
	nodePrefix = meta.KindNode + ":"
)

// readRights are rights to read what patterns match.
func readRights(patterns []string) []meta.Right {
	var rights []meta.Right
	for _, p := range patterns {
		rights = append(rights, meta.Right{Actions: reading, Repository: p})
	}
	return rights
}

var (
	reading    = []Action{Pull, List}
	everything = []meta.Right{{Actions: meta.GrantedActions, Repository: "*", Role: "admin"}}
	// working is what everybody may do to repositories in dev.
	working = []meta.Right{{Actions: []Action{Pull, List, Push, Delete, Promote, Curate}, Repository: "*"}}
)

// Credentialed reports whether who showed something: an anonymous caller and a
// host's loopback client did not, and may be asked to.
func Credentialed(who meta.Principal) bool {
	return who.Name != "" && who.Name != meta.Anonymous.Name && !strings.HasPrefix(who.Name, hostPrefix)
}
