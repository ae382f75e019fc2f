package protocol

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// stub is a protocol of routes.
type stub []Route

func (s stub) Format() string  { return "stub" }
func (s stub) Routes() []Route { return s }
func (s stub) WriteError(w http.ResponseWriter, _ *http.Request, e error) {
	w.WriteHeader(Fail(w.Header(), e))
}
func (s stub) Challenge(w http.ResponseWriter, _ *http.Request, _ Scope) { w.WriteHeader(401) }

func route(method, pattern string) Route {
	return Route{Name: method + " " + pattern, Method: method, Pattern: pattern, Action: access.Login, Serve: func(*Call) error { return nil }}
}

var ociLike = stub{
	route("GET", "/v2/"),
	route("GET", "/v2/{tenant}/{repository}/{image...}/manifests/{reference}"),
	route("PUT", "/v2/{tenant}/{repository}/{image...}/manifests/{reference}"),
	route("GET", "/v2/{tenant}/{repository}/{image...}/blobs/{digest}"),
	route("POST", "/v2/{tenant}/{repository}/{image...}/blobs/uploads/"),
	route("PATCH", "/v2/{tenant}/{repository}/{image...}/blobs/uploads/{upload}"),
	route("GET", "/v2/{tenant}/{repository}/{image...}/tags/list"),
	route("GET", "/v2/_catalog"),
	route("GET", "/generic/{tenant}/{repository}/{path...}"),
	route("HEAD", "/generic/{tenant}/{repository}/{path...}"),
	route("GET", "/npm/{tenant}/{repository}/{package}"),
	route("GET", "/npm/{tenant}/{repository}/-/ping"),
	route("GET", "/npm/{tenant}/{repository}/{package}/-/{file}"),
}

func TestMatch(t *testing.T) {
	router, err := NewRouter(ociLike)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ method, path, route, params string }{
		{"GET", "/v2/", "GET /v2/", ""},
		{"GET", "/v2", "404", ""},
		{"GET", "/v2/_catalog", "GET /v2/_catalog", ""},
		{"GET", "/v2/acme/app/manifests/1.0", "GET /v2/{tenant}/{repository}/{image...}/manifests/{reference}", "tenant=acme repository=app image= reference=1.0"},
		{"HEAD", "/v2/acme/app/api/web/manifests/1.0", "GET /v2/{tenant}/{repository}/{image...}/manifests/{reference}", "tenant=acme repository=app image=api/web reference=1.0"},
		{"PUT", "/v2/acme/app/manifests/manifests/manifests", "PUT /v2/{tenant}/{repository}/{image...}/manifests/{reference}", "tenant=acme repository=app image=manifests reference=manifests"},
		{"GET", "/v2/acme/app/blobs/sha256:ab", "GET /v2/{tenant}/{repository}/{image...}/blobs/{digest}", "tenant=acme repository=app image= digest=sha256:ab"},
		{"GET", "/v2/acme/app/blobs/sha256%3Aab", "GET /v2/{tenant}/{repository}/{image...}/blobs/{digest}", "tenant=acme repository=app image= digest=sha256:ab"},
		{"POST", "/v2/acme/app/x/blobs/uploads/", "POST /v2/{tenant}/{repository}/{image...}/blobs/uploads/", "tenant=acme repository=app image=x"},
		{"PATCH", "/v2/acme/app/blobs/uploads/a~b~c", "PATCH /v2/{tenant}/{repository}/{image...}/blobs/uploads/{upload}", "tenant=acme repository=app image= upload=a~b~c"},
		{"GET", "/v2/acme/app/blobs/uploads", "GET /v2/{tenant}/{repository}/{image...}/blobs/{digest}", "tenant=acme repository=app image= digest=uploads"},
		{"GET", "/v2/acme/app/blobs/uploads/", "405 POST", ""},
		{"DELETE", "/v2/acme/app/manifests/x", "405 GET, HEAD, PUT", ""},
		{"DELETE", "/v2/acme/app/blobs/uploads/x", "405 PATCH", ""},
		{"GET", "/v2/acme/manifests/x", "404", ""},
		{"GET", "/v2//app/manifests/x", "404", ""},
		{"GET", "/v2/acme/app/manifests/", "404", ""},
		{"GET", "/nothing", "404", ""},
		{"GET", "/generic/acme/files", "GET /generic/{tenant}/{repository}/{path...}", "tenant=acme repository=files path="},
		{"GET", "/generic/acme/files/", "GET /generic/{tenant}/{repository}/{path...}", "tenant=acme repository=files path="},
		{"GET", "/generic/acme/files/a/b%2Fc/", "GET /generic/{tenant}/{repository}/{path...}", "tenant=acme repository=files path=a/b/c/"},
		{"HEAD", "/generic/acme/files/a", "HEAD /generic/{tenant}/{repository}/{path...}", "tenant=acme repository=files path=a"},
		{"GET", "/generic/acme/files/../other", "404", ""},
		{"GET", "/generic/acme/files/%2e%2E/other", "404", ""},
		{"GET", "/generic/acme/files/a%2F..%2Fb", "404", ""},
		{"GET", "/npm/acme/js/@acme%2fdemo", "GET /npm/{tenant}/{repository}/{package}", "tenant=acme repository=js package=@acme/demo"},
		{"GET", "/npm/acme/js/-/ping", "GET /npm/{tenant}/{repository}/-/ping", "tenant=acme repository=js"},
		{"GET", "/npm/acme/js/%21x/-/f.tgz", "GET /npm/{tenant}/{repository}/{package}/-/{file}", "tenant=acme repository=js package=!x file=f.tgz"},
	} {
		u, err := url.Parse("http://h" + test.path)
		if err != nil {
			t.Fatal(err)
		}
		m := router.Match(test.method, u)
		got := ""
		var method *MethodError
		switch {
		case m.Err == nil:
			got = m.Route.Name
		case errors.As(m.Err, &method):
			got = "405 " + strings.Join(method.Allow, ", ")
		case errors.Is(m.Err, ErrNoRoute):
			got = "404"
		}
		var params []string
		for _, p := range m.Params {
			params = append(params, p.Name+"="+p.Value)
		}
		if got != test.route || strings.Join(params, " ") != test.params {
			t.Errorf("%s %s: %s %q, want %s %q", test.method, test.path, got, params, test.route, test.params)
		}
	}
}

// What is most specific does not depend on the order of registration.
func TestSpecificity(t *testing.T) {
	patterns := []string{
		"/a/b/c", "/a/b/{x}", "/a/{x}/c", "/a/{x}/{y}", "/a/b/{r...}", "/a/{x}", "/a/{x}/{r...}", "/a/{r...}/c", "/a/{r...}/{y}", "/a/{r...}",
	}
	want := map[string]string{
		"/a/b/c": "/a/b/c", "/a/b/d": "/a/b/{x}", "/a/d/c": "/a/{x}/c", "/a/d/e": "/a/{x}/{y}", "/a/b": "/a/b/{r...}",
		"/a/d": "/a/{x}", "/a/b/c/d": "/a/b/{r...}", "/a/d/e/f": "/a/{x}/{r...}", "/a": "/a/{r...}", "/a/": "/a/{r...}",
	}
	for range len(patterns) {
		patterns = append(patterns[1:], patterns[0])
		var routes stub
		for _, p := range patterns {
			routes = append(routes, route("GET", p))
		}
		router, err := NewRouter(routes)
		if err != nil {
			t.Fatal(err)
		}
		for path, pattern := range want {
			m := router.Match("GET", &url.URL{Path: path})
			if m.Route == nil || m.Route.Pattern != pattern {
				t.Errorf("%s: %+v, want %s", path, m.Route, pattern)
			}
		}
	}
}

func TestTableRefuses(t *testing.T) {
	serve := func(*Call) error { return nil }
	for name, routes := range map[string]stub{
		"no action":        {{Name: "a", Method: "GET", Pattern: "/a", Serve: serve}},
		"unknown action":   {{Name: "a", Method: "GET", Pattern: "/a", Serve: serve, Action: "look"}},
		"no name":          {{Method: "GET", Pattern: "/a", Serve: serve, Action: access.Login}},
		"no handler":       {{Name: "a", Method: "GET", Pattern: "/a", Action: access.Login}},
		"lower method":     {{Name: "a", Method: "get", Pattern: "/a", Serve: serve, Action: access.Login}},
		"two rests":        {route("GET", "/a/{x...}/{y...}")},
		"same parameter":   {route("GET", "/a/{x}/{x}")},
		"no leading slash": {route("GET", "a")},
		"half parameter":   {route("GET", "/a/v{x}")},
		"parameter first":  {route("GET", "/{x}")},
		"empty inside":     {route("GET", "/a//b")},
		"tie":              {route("GET", "/a/{x}/c"), route("GET", "/a/{y}/c")},
		"same name":        {route("GET", "/a"), {Name: "GET /a", Method: "GET", Pattern: "/b", Serve: serve, Action: access.Login}},
		"push at an agent": {{Name: "a", Method: "PUT", Pattern: "/a/{tenant}/{repository}", Serve: serve, Action: access.Push}},
		"push of nothing":  {{Name: "a", Method: "PUT", Pattern: "/a/{tenant}", Serve: serve, Action: access.Push, Place: AnyServer}},
		"owner of nothing": {{Name: "a", Method: "PUT", Pattern: "/a/{tenant}/{repository}", Serve: serve, Action: access.Push, Place: Owner}},
		"node forwarded":   {{Name: "a", Method: "POST", Pattern: "/a", Serve: serve, Action: access.NodeOnly, Place: AnyServer}},
	} {
		if _, err := NewRouter(routes); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewRouter(stub{route("GET", "/a/{x}"), route("PUT", "/a/{y}")}); err != nil {
		t.Errorf("two methods of one path: %v", err)
	}
}

// Whatever is sent as a path, matching neither fails nor hands out dot segments.
func FuzzMatch(f *testing.F) {
	router, err := NewRouter(ociLike)
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{"/v2/acme/app/manifests/1", "/v2/a/b/blobs/uploads/", "/generic/a/b/%2e%2e/x", "//", "/%", "/v2/%2f%2f/x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		u, err := url.Parse("http://h" + path)
		if err != nil {
			return
		}
		for _, method := range []string{"GET", "PUT", "BREW"} {
			m := router.Match(method, u)
			if (m.Route == nil) == (m.Err == nil) {
				t.Fatalf("%q: route %v and error %v", path, m.Route, m.Err)
			}
			for _, p := range m.Params {
				if p.Name != "path" && p.Name != "image" && (p.Value == "" || p.Value == "." || p.Value == "..") {
					t.Fatalf("%q: parameter %s is %q", path, p.Name, p.Value)
				}
			}
		}
	})
}

func TestAllowIsSorted(t *testing.T) {
	router, err := NewRouter(ociLike)
	if err != nil {
		t.Fatal(err)
	}
	m := router.Match("DELETE", &url.URL{Path: "/generic/a/b/c"})
	var method *MethodError
	if !errors.As(m.Err, &method) || !slices.Equal(method.Allow, []string{"GET", "HEAD"}) {
		t.Errorf("%v", m.Err)
	}
}
