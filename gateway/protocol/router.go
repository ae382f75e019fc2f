package protocol

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Router finds the route of a request. It is immutable and safe for concurrent use.
type Router struct {
	groups map[string]*group // by the first segment of the pattern, a literal
	routes []*Route
}

// group holds the patterns with one first segment, most specific first.
type group struct {
	owner   Protocol // speaks for paths and methods that nothing matches
	entries []entry
}

type entry struct {
	pattern  *pattern
	route    *Route
	protocol Protocol
}

// Match is what Router.Match found. With an Err, Route is nil and Protocol is
// who should write it; it is nil for paths that belong to no protocol.
type Match struct {
	Protocol Protocol
	Route    *Route
	Params   Params
	Err      error // ErrNoRoute, *MethodError
}

// NewRouter checks all routes of the protocols and builds the table.
//
// Errors: meta.ErrInvalid, naming every route that has no name, method, action
// or handler, a name twice, a pattern that does not parse or does not begin with a
// literal, a repository action without {tenant} and {repository}, a write that
// an agent would serve, an Owner without {upload}, or a tie with another route.
func NewRouter(protocols ...Protocol) (*Router, error) {
	rt := &Router{groups: map[string]*group{}}
	var problems []string
	names := map[string]bool{}
	for _, p := range protocols {
		for _, route := range p.Routes() {
			pat, err := check(&route)
			if err == nil && names[route.Name] {
				err = fmt.Errorf("the name is taken")
			}
			if err == nil {
				names[route.Name] = true
				err = rt.add(p, &route, pat)
			}
			if err != nil {
				problems = append(problems, fmt.Sprintf("%s %s (%s): %v", route.Method, route.Pattern, route.Name, err))
			}
		}
	}
	if len(problems) > 0 {
		return nil, fmt.Errorf("routes: %s: %w", strings.Join(problems, "; "), meta.ErrInvalid)
	}
	return rt, nil
}

func check(route *Route) (*pattern, error) {
	switch {
	case route.Name == "":
		return nil, fmt.Errorf("no name")
	case route.Method == "" || route.Method != strings.ToUpper(route.Method):
		return nil, fmt.Errorf("method %q", route.Method)
	case route.Action == "":
		return nil, fmt.Errorf("no action: say what the route does, so that the gate can judge it")
	case !route.Action.Valid():
		return nil, fmt.Errorf("action %q is unknown", route.Action)
	case route.Serve == nil:
		return nil, fmt.Errorf("no handler")
	case route.Place > Server:
		return nil, fmt.Errorf("place %d is unknown", route.Place)
	}
	pat, err := parsePattern(route.Pattern)
	if err != nil {
		return nil, err
	}
	if len(pat.prefix) == 0 || pat.prefix[0].param != "" {
		return nil, fmt.Errorf("the first segment must be a literal")
	}
	read := route.Method == http.MethodGet || route.Method == http.MethodHead
	switch route.Action {
	case access.Push, access.Delete:
		if route.Place == Anywhere {
			return nil, fmt.Errorf("no agent acknowledges a write: place it at AnyServer or Owner")
		}
	case access.NodeOnly:
		if route.Place != Anywhere {
			return nil, fmt.Errorf("a node acts for itself: what it forwards is a client's")
		}
	case access.Public, access.Login:
	default:
		if route.Place == Anywhere && !read {
			return nil, fmt.Errorf("no agent acknowledges a write: place it at AnyServer")
		}
	}
	switch route.Action {
	case access.Pull, access.Push, access.Delete, access.Promote, access.Curate:
		if !pat.has(TenantParam) || !pat.has(RepositoryParam) {
			return nil, fmt.Errorf("action %s is about a repository: the pattern needs {tenant} and {repository}", route.Action)
		}
	}
	if route.Place == Owner && !pat.has(UploadParam) {
		return nil, fmt.Errorf("a route placed at the Owner needs {upload}")
	}
	if route.Place == Server && !pat.has(ServerParam) {
		return nil, fmt.Errorf("a route placed at a Server needs {server}")
	}
	return pat, nil
}

func (rt *Router) add(p Protocol, route *Route, pat *pattern) error {
	first := pat.prefix[0].literal
	g := rt.groups[first]
	if g == nil {
		g = &group{owner: p}
		rt.groups[first] = g
	}
	at, tie := slices.BinarySearchFunc(g.entries, pat, func(e entry, pat *pattern) int { return e.pattern.compare(pat) })
	end := at
	for ; tie && end < len(g.entries) && g.entries[end].pattern.compare(pat) == 0; end++ {
		if g.entries[end].route.Method == route.Method {
			return fmt.Errorf("it matches the same paths as %s (%s)", g.entries[end].route.Pattern, g.entries[end].route.Name)
		}
	}
	if route.Method != http.MethodHead {
		at = end // HEAD routes stand before GET routes of the same paths
	}
	g.entries = slices.Insert(g.entries, at, entry{pat, route, p})
	rt.routes = append(rt.routes, route)
	return nil
}

// Routes lists all routes, in the order of their protocols.
func (rt *Router) Routes() []*Route { return slices.Clone(rt.routes) }

// Match finds the most specific route that has both the path and the method;
// GET routes take HEAD. u's escaped path counts.
func (rt *Router) Match(method string, u *url.URL) Match {
	path := u.EscapedPath()
	first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	g := rt.groups[first]
	if g == nil {
		return Match{Err: ErrNoRoute}
	}
	segments, ok := split(path)
	if !ok {
		return Match{Protocol: g.owner, Err: ErrNoRoute}
	}
	// A HEAD takes the most specific of the HEAD and GET routes.
	for i := range g.entries {
		e := &g.entries[i]
		if e.route.Method != method && (method != http.MethodHead || e.route.Method != http.MethodGet) {
			continue
		}
		if params, ok := e.pattern.match(segments); ok {
			return Match{Protocol: e.protocol, Route: e.route, Params: params}
		}
	}
	owner := g.owner
	var allow []string
	for i := range g.entries {
		e := &g.entries[i]
		if _, ok := e.pattern.match(segments); !ok {
			continue
		}
		if allow == nil {
			owner = e.protocol
		}
		allow = append(allow, e.route.Method)
		if e.route.Method == http.MethodGet {
			allow = append(allow, http.MethodHead)
		}
	}
	if allow == nil {
		return Match{Protocol: owner, Err: ErrNoRoute}
	}
	slices.Sort(allow)
	return Match{Protocol: owner, Err: &MethodError{Method: method, Allow: slices.Compact(allow)}}
}
