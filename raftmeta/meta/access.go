package meta

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Action is what may be done. Every route declares one, roles are sets of them.
type Action string

// Actions that no role grants: they say what a route is open to.
const (
	// ActionPublic is open to everybody: the token endpoint, joining with a token.
	ActionPublic Action = "public"
	// ActionLogin asks only for valid credentials.
	ActionLogin Action = "login"
	// ActionNode is for nodes of the roster, by their TLS certificate.
	ActionNode Action = "node"
)

// Actions that roles grant. Those of the first group are about a repository, manage
// to respond about a repository or a tenant (or the cluster, to whom they are granted
// on all), the rest about the cluster.
const (
	ActionPull    Action = "pull"    // read content and names of a repository
	ActionList    Action = "list"    // enumerate: a repository's names, or repositories
	ActionPush    Action = "push"    // add to a repository
	ActionDelete  Action = "delete"  // take from a repository
	ActionPromote Action = "promote" // take versions from one environment to the next
	ActionCurate  Action = "curate"  // labels, aliases of protected repositories, quarantine, release

	ActionManage  Action = "manage"  // repositories, robots, bindings, tokens, rules
	ActionAudit   Action = "audit"   // read the audit log
	ActionRespond Action = "respond" // open and close compromises
	ActionElevate Action = "elevate" // ask for break-glass

	ActionObserve Action = "observe" // see how the cluster is
	ActionOperate Action = "operate" // servers, regions, scrub, garbage, backups
	// ActionAdmin is what only administrators may: the cluster's level and trust, users,
	// roles and bindings of the cluster.
	ActionAdmin Action = "admin"
)

// GrantedActions lists the actions that roles may hold, in the order in which they
// are shown.
var GrantedActions = []Action{
	ActionPull, ActionList, ActionPush, ActionDelete, ActionPromote, ActionCurate,
	ActionManage, ActionAudit, ActionRespond, ActionElevate,
	ActionObserve, ActionOperate, ActionAdmin,
}

// Valid reports whether a is one of the actions above.
func (a Action) Valid() bool {
	return a == ActionPublic || a == ActionLogin || a == ActionNode || slices.Contains(GrantedActions, a)
}

// OfCluster reports whether a is about the cluster only, so that no tenant can
// grant it.
func (a Action) OfCluster() bool {
	return a == ActionObserve || a == ActionOperate || a == ActionAdmin
}

// Right is one thing that a principal may do, or with Deny may not, whatever other
// rights say. It is a binding with its role resolved, or what narrows a credential.
type Right struct {
	Actions []Action `cbor:"1,keyasint,omitempty" json:"actions"`
	// Repository is a pattern: `*` for all and the cluster, `acme/*`, `acme/app`.
	Repository string `cbor:"2,keyasint,omitempty" json:"repository"`
	// Environment is a pattern of the repositories' environment: "" and `*` for all,
	// else a name that may end in *.
	Environment string `cbor:"3,keyasint,omitempty" json:"environment,omitempty"`
	Deny        bool   `cbor:"4,keyasint,omitempty" json:"deny,omitempty"`
	// Expires is when it ends, 0 never.
	Expires Time `cbor:"5,keyasint,omitempty" json:"expires,omitempty"`
	// Role and Binding say where it comes from; "" when from none.
	Role    string `cbor:"6,keyasint,omitempty" json:"role,omitempty"`
	Binding string `cbor:"7,keyasint,omitempty" json:"binding,omitempty"`
	// Elevated marks what a break-glass elevation gives.
	Elevated bool `cbor:"8,keyasint,omitempty" json:"elevated,omitempty"`
}

// Kinds of principal, the part of its name before the colon.
const (
	KindUser      = "user"  // user:ada
	KindRobot     = "robot" // robot:acme/ci, of tenant acme
	KindCI        = "ci"    // ci:acme/gitlab/project, a job of tenant acme
	KindHost      = "host"  // host:<node>, a client on an agent's loopback
	KindNode      = "node"  // node:<node>, a node with its certificate
	KindBootstrap = "admin" // admin:bootstrap, who has the admin token
)

// AdminBootstrap is the principal of the admin token.
const AdminBootstrap = "admin:bootstrap"

// Limits of what is stored of principals, roles and bindings.
const (
	MaxPrincipalBytes = 320
	MaxReasonBytes    = 512
	// MaxBindings is how many bindings a principal has at most, so that who it is can
	// be read at once.
	MaxBindings = 256
)

// Account is the stored record of a user or a robot.
type Account struct {
	Name     string `cbor:"1,keyasint,omitempty" json:"name"` // the principal
	Disabled bool   `cbor:"2,keyasint,omitempty" json:"disabled,omitempty"`
	// Password is an argon2id hash in PHC form, empty without a local password. It
	// leaves the servers in no answer.
	Password  []byte `cbor:"3,keyasint,omitempty" json:"-"`
	Created   Time   `cbor:"4,keyasint,omitempty" json:"created"`
	CreatedBy string `cbor:"5,keyasint,omitempty" json:"created_by"`
	Note      string `cbor:"6,keyasint,omitempty" json:"note,omitempty"`
	// Revision is the log index of the last change.
	Revision uint64 `cbor:"7,keyasint,omitempty" json:"revision"`
}

// AccessRole is a named set of actions. (Role is what a node is.)
type AccessRole struct {
	// Name is `deployer` of the cluster, or `acme/deployer` of a tenant.
	Name      string   `cbor:"1,keyasint,omitempty" json:"name"`
	Actions   []Action `cbor:"2,keyasint,omitempty" json:"actions"` // in the order of GrantedActions
	Note      string   `cbor:"3,keyasint,omitempty" json:"note,omitempty"`
	Created   Time     `cbor:"4,keyasint,omitempty" json:"created,omitempty"`
	CreatedBy string   `cbor:"5,keyasint,omitempty" json:"created_by,omitempty"`
	Revision  uint64   `cbor:"6,keyasint,omitempty" json:"revision,omitempty"`
}

// BuiltIn reports whether every cluster has a role and none can change it.
func (r AccessRole) BuiltIn() bool { return r.Created == 0 }

// Tenant returns whose role it is, "" of the cluster.
func (r AccessRole) Tenant() TenantName { return RoleTenant(r.Name) }

// RoleTenant returns the tenant of the role of a name, "" for one of the cluster.
func RoleTenant(role string) TenantName {
	tenant, _, ok := strings.Cut(role, "/")
	if !ok {
		return ""
	}
	return TenantName(tenant)
}

// BuiltInRoles are the roles that every cluster has.
var BuiltInRoles = []AccessRole{
	{Name: "reader", Actions: []Action{ActionPull, ActionList}},
	{Name: "publisher", Actions: []Action{ActionPull, ActionList, ActionPush}},
	{Name: "promoter", Actions: []Action{ActionPull, ActionList, ActionPromote}},
	{Name: "curator", Actions: []Action{ActionPull, ActionList, ActionDelete, ActionCurate}},
	{Name: "tenant-admin", Actions: []Action{
		ActionPull, ActionList, ActionPush, ActionDelete, ActionPromote, ActionCurate, ActionManage, ActionAudit, ActionRespond,
	}},
	{Name: "operator", Actions: []Action{ActionElevate, ActionObserve, ActionOperate}},
	{Name: "auditor", Actions: []Action{ActionList, ActionAudit, ActionObserve}},
	{Name: "admin", Actions: GrantedActions},
}

// BuiltInRole returns the built-in role of a name.
func BuiltInRole(name string) (AccessRole, bool) {
	for _, r := range BuiltInRoles {
		if r.Name == name {
			return r, true
		}
	}
	return AccessRole{}, false
}

// Binding gives a principal a role on what a pattern names, or with Deny takes the
// role's actions from it there.
type Binding struct {
	ID          string `cbor:"1,keyasint,omitempty" json:"id"`
	Principal   string `cbor:"2,keyasint,omitempty" json:"principal"`
	Role        string `cbor:"3,keyasint,omitempty" json:"role"`
	Repository  string `cbor:"4,keyasint,omitempty" json:"repository"`            // pattern, as of Right
	Environment string `cbor:"5,keyasint,omitempty" json:"environment,omitempty"` // pattern, as of Right
	Deny        bool   `cbor:"6,keyasint,omitempty" json:"deny,omitempty"`
	Expires     Time   `cbor:"7,keyasint,omitempty" json:"expires,omitempty"`
	Reason      string `cbor:"8,keyasint,omitempty" json:"reason,omitempty"`
	// Tenant is whose binding it is: whom may manage that tenant may remove it, and it
	// reaches no further. "" is the cluster's.
	Tenant    TenantName `cbor:"9,keyasint,omitempty" json:"tenant,omitempty"`
	Created   Time       `cbor:"10,keyasint,omitempty" json:"created"`
	CreatedBy string     `cbor:"11,keyasint,omitempty" json:"created_by"`
}

// Right returns what b gives with the actions of its role.
func (b Binding) Right(actions []Action) Right {
	return Right{
		Actions: actions, Repository: b.Repository, Environment: b.Environment, Deny: b.Deny,
		Expires: b.Expires, Role: b.Role, Binding: b.ID,
	}
}

var userPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9._@+-]{0,126}$`)

// SplitPrincipal returns the kind and the id of a principal's name.
func SplitPrincipal(name string) (kind, id string) {
	kind, id, _ = strings.Cut(name, ":")
	return kind, id
}

// TenantOf returns the tenant that a principal belongs to, "" for those of the
// cluster.
func TenantOf(principal string) TenantName {
	if kind, id := SplitPrincipal(principal); kind == KindRobot || kind == KindCI {
		tenant, _, _ := strings.Cut(id, "/")
		return TenantName(tenant)
	}
	return ""
}

// CheckAccount checks the name of a principal that has an account: user:ada or
// robot:acme/ci.
func CheckAccount(name string) error {
	kind, id := SplitPrincipal(name)
	switch kind {
	case KindUser:
		if !userPattern.MatchString(id) {
			return fmt.Errorf("user %q: use 1 to 127 of a-z, 0-9 and . _ @ + -, first a letter or digit: %w", id, ErrInvalid)
		}
		return nil
	case KindRobot:
		if _, err := ParseRepoRef(id); err != nil {
			return fmt.Errorf("robot %q: write tenant/name, both of a-z, 0-9 and inner hyphens: %w", id, ErrInvalid)
		}
		return nil
	}
	return fmt.Errorf("principal %q: accounts are user:NAME or robot:TENANT/NAME: %w", name, ErrInvalid)
}

// CheckPrincipal checks the name of a principal that can be bound: one with an
// account, or a job, ci:tenant/issuer/subject.
func CheckPrincipal(name string) error {
	kind, id := SplitPrincipal(name)
	if kind != KindCI {
		return CheckAccount(name)
	}
	parts := strings.SplitN(id, "/", 3)
	if len(parts) != 3 {
		return fmt.Errorf("principal %q: write ci:tenant/issuer/subject: %w", name, ErrInvalid)
	}
	if err := CheckTenant(TenantName(parts[0])); err != nil {
		return err
	}
	if err := checkName("issuer", parts[1]); err != nil {
		return err
	}
	return checkText("subject", parts[2], MaxPrincipalBytes-len(name)+len(parts[2]))
}

// CheckRoleName checks the name of a custom role.
func CheckRoleName(name string) error {
	if _, taken := BuiltInRole(name); taken {
		return fmt.Errorf("role %s is built in: choose another name: %w", name, ErrInvalid)
	}
	if tenant, rest, ok := strings.Cut(name, "/"); ok {
		if err := CheckTenant(TenantName(tenant)); err != nil {
			return err
		}
		name = rest
	}
	return checkName("role", name)
}

// CheckEnvironmentPattern checks a pattern of environments.
func CheckEnvironmentPattern(p string) error {
	if p == "" || p == "*" {
		return nil
	}
	return checkText("environment", p, 63)
}

// MatchEnvironment reports whether a repository's environment matches a pattern.
func MatchEnvironment(pattern, environment string) bool {
	return pattern == "" || matchPart(pattern, environment)
}

// PatternTenant returns the one tenant that a pattern of repositories stays within,
// "" when it reaches further.
func PatternTenant(pattern string) TenantName {
	tenant, _, ok := strings.Cut(pattern, "/")
	if !ok || strings.HasSuffix(tenant, "*") {
		return ""
	}
	return TenantName(tenant)
}

// Check checks a right that somebody wrote down.
func (r Right) Check() error {
	if len(r.Actions) == 0 || len(r.Actions) > len(GrantedActions) {
		return fmt.Errorf("a right has 1 to %d actions: %w", len(GrantedActions), ErrInvalid)
	}
	for _, a := range r.Actions {
		if !slices.Contains(GrantedActions, a) {
			return fmt.Errorf("action %q is not one of %v: %w", a, GrantedActions, ErrInvalid)
		}
	}
	if err := CheckPattern(r.Repository); err != nil {
		return err
	}
	return CheckEnvironmentPattern(r.Environment)
}

// Active reports whether a right counts at an instant. When that is not known, what
// ends allows nothing any more, and denies still.
func (r *Right) Active(at Time) bool {
	if at == 0 {
		return r.Expires == 0 || r.Deny
	}
	return r.Expires == 0 || r.Expires > at
}

// Has reports whether a right is about an action.
func (r *Right) Has(a Action) bool { return slices.Contains(r.Actions, a) }

// Patterns lists the patterns of repositories of p's rights to an action; what denies,
// environments and limits take from them is left out.
func (p Principal) Patterns(a Action) []string {
	if p.Admin {
		return []string{"*"}
	}
	var patterns []string
	for i := range p.Rights {
		if r := &p.Rights[i]; !r.Deny && r.Active(p.At) && r.Has(a) {
			patterns = append(patterns, r.Repository)
		}
	}
	return patterns
}
