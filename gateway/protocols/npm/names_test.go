package npm

import (
	"errors"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func TestCheckName(t *testing.T) {
	for _, name := range []string{"a", "demo", "@acme/demo", "left-pad", "lodash.merge", "a_b", "1", "@1/2", strings.Repeat("a", 214)} {
		if err := checkName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{
		"", "Demo", "@Acme/demo", ".a", "_a", "@acme/.a", "@.acme/a", "@acme", "@acme/", "@/a", "a/b", "@a/b/c", "a b", "a~b", "a*", "it's", "ä", "a%2fb",
		"node_modules", "favicon.ico", "-", "@acme/-", "..", "@../..", "a\\b", "a:b", "a@b", "a?b", "a#b", strings.Repeat("a", 215),
	} {
		if err := checkName(name); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestKeyOf(t *testing.T) {
	for name, want := range map[string]string{
		"demo": "demo", "left-pad": "left-pad", "left_pad": "left-pad", "left.pad": "left-pad", "left--_.pad": "left-pad", "LeftPad": "leftpad",
		"@acme/left_pad": "@acme/left-pad", "@ac-me/x": "@ac-me/x", "@ac.me/x": "@ac-me/x", "x-": "x-", "-x": "-x",
	} {
		if got := keyOf(name); got != want {
			t.Errorf("%q is kept as %q, want %q", name, got, want)
		}
	}
}

func TestVersions(t *testing.T) {
	for _, v := range []string{"1.2.3", "0.0.0", "1.2.3-beta.1", "1.2.3-0", "10.20.30-x.7.z.92"} {
		if err := checkVersion(v); err != nil {
			t.Errorf("%q: %v", v, err)
		}
	}
	for _, v := range []string{"", "1", "1.2", "v1.2.3", "1.2.3+build", "01.2.3", "1.2.3-", "1.2.3-01", "latest", "1.2.3/../x", " 1.2.3", "=1.2.3"} {
		if err := checkVersion(v); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%q: %v", v, err)
		}
	}
	for v, want := range map[string]string{"1.2.3": "1.2.3", " =v1.2.3+build ": "1.2.3", "v1.2.3-a+b": "1.2.3-a"} {
		if got := cleanVersion(v); got != want {
			t.Errorf("%q is cleaned to %q, want %q", v, got, want)
		}
	}
	for _, tag := range []string{"latest", "next", "beta", "next-11", "lts/x"[:3]} {
		if err := checkTag(tag); err != nil {
			t.Errorf("tag %q: %v", tag, err)
		}
	}
	for _, tag := range []string{"", "1.0.0", "v1", "^1", "~2", ">=3", "1.x", "*", "x", "a b", "a||b", "a/b"} {
		if err := checkTag(tag); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("tag %q: %v", tag, err)
		}
	}
	for _, pair := range [][2]string{{"1.0.1", "1.0.0"}, {"1.0.0", "2.0.0-beta"}, {"1.0.0", ""}, {"1.10.0", "1.9.0"}, {"1.0.0-b", "1.0.0-a"}} {
		if !higher(pair[0], pair[1]) || pair[1] != "" && higher(pair[1], pair[0]) {
			t.Errorf("%v are in another order", pair)
		}
	}
}

func TestParsePath(t *testing.T) {
	for path, want := range map[string]target{
		"demo":                               {name: "demo"},
		"@acme/demo":                         {name: "@acme/demo"},
		"demo/1.0.0":                         {name: "demo", version: "1.0.0"},
		"@acme/demo/latest":                  {name: "@acme/demo", version: "latest"},
		"demo/-/demo-1.0.0.tgz":              {name: "demo", file: "demo-1.0.0.tgz"},
		"@acme/demo/-/demo-1.0.0.tgz":        {name: "@acme/demo", file: "demo-1.0.0.tgz"},
		"@acme/demo/-/@acme/demo-1.0.0.tgz":  {name: "@acme/demo", file: "demo-1.0.0.tgz"},
		"JSONStream":                         {name: "JSONStream"},
		"demo/-/demo-1.0.0-beta.1+build.tgz": {name: "demo", file: "demo-1.0.0-beta.1+build.tgz"},
	} {
		if got, err := parsePath(path); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", path, got, err, want)
		}
	}
	for _, path := range []string{"", "/", "-", "-/x", "@acme", "@acme/", "@/x", "demo/", "demo/-/", "demo/a/b", "@acme/demo/-/@other/demo-1.0.0.tgz", "demo/-/a/b/c", strings.Repeat("a", 300)} {
		if got, err := parsePath(path); !errors.Is(err, meta.ErrNotFound) {
			t.Errorf("%q: %+v, %v", path, got, err)
		}
	}
	for _, name := range []string{"demo", "@acme/demo", "JSONStream"} {
		file := fileOf(name, "1.0.0-a-b")
		if got, ok := versionOf(name, file); !ok || got != "1.0.0-a-b" {
			t.Errorf("%s: version %q of %s", name, got, file)
		}
	}
	for _, file := range []string{"demo-.tgz", "other-1.0.0.tgz", "demo-1.0.0.tar", "demo.tgz"} {
		if got, ok := versionOf("demo", file); ok {
			t.Errorf("%s: version %q", file, got)
		}
	}
}

func TestParseReference(t *testing.T) {
	p := New(nil, nil, nil)
	for text, want := range map[string]protocol.Reference{
		"/demo":                  {Package: "demo", Alias: latest},
		"/demo@1.0.0":            {Package: "demo", Version: "1.0.0"},
		"/demo:1.0.0":            {Package: "demo", Version: "1.0.0"},
		"/@acme/demo":            {Package: "@acme/demo", Alias: latest},
		"/@acme/left_pad@beta":   {Package: "@acme/left-pad", Alias: "beta"},
		"/@acme/demo@1.0.0-rc.1": {Package: "@acme/demo", Version: "1.0.0-rc.1"},
	} {
		if got, err := p.ParseReference(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "/", "demo", "/@acme", "/demo@", "/demo@^1", "/a/b", "/demo/-/demo-1.0.0.tgz"} {
		if got, err := p.ParseReference(text); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func FuzzParsePath(f *testing.F) {
	for _, path := range []string{"demo", "@acme/demo/-/@acme/demo-1.0.0.tgz", "demo/1.0.0", "-/x"} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		got, err := parsePath(path)
		if err != nil {
			if !errors.Is(err, meta.ErrNotFound) {
				t.Fatalf("%q: %v", path, err)
			}
			return
		}
		if got.name == "" || got.file != "" && got.version != "" || strings.Contains(got.file, "/") || !strings.HasPrefix(path, got.name) {
			t.Fatalf("%q: %+v", path, got)
		}
		if key := keyOf(got.name); key != keyOf(key) || strings.Count(key, "/") != strings.Count(got.name, "/") {
			t.Fatalf("%q is kept as %q, and that as %q", got.name, key, keyOf(key))
		}
	})
}
