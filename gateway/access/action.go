package access

// Action is what a route does; every route declares one, and a route without
// one does not start.
type Action string

// Actions. Pull, Push, Delete and List are about the repository that the route
// names with its parameters {tenant} and {repository}; List without a
// repository lists across repositories and shows only what the caller may read.
const (
	// Public is open to everybody: the token endpoint, joining with a token.
	Public Action = "public"
	// Login asks only for valid credentials.
	Login Action = "login"
	// Pull reads content or names of a repository.
	Pull Action = "pull"
	// Push adds to a repository.
	Push Action = "push"
	// Delete takes from a repository.
	Delete Action = "delete"
	// List enumerates: a repository's names, or the repositories.
	List Action = "list"
	// Admin changes or shows what belongs to the cluster.
	Admin Action = "admin"
	// NodeOnly is for nodes of the roster, by their TLS certificate.
	NodeOnly Action = "node"
)

// Valid reports whether a is one of the actions above.
func (a Action) Valid() bool {
	switch a {
	case Public, Login, Pull, Push, Delete, List, Admin, NodeOnly:
		return true
	}
	return false
}
