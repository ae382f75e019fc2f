package cargo

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func TestNesting(t *testing.T) {
	for text, want := range map[string]int{
		"":                                               0,
		"a = 1\n":                                        0,
		"a.b.c = 1\n":                                    2,
		"a . \"b\" . 'c' = 1\n":                          2,
		"[a.b]\nc.d.e = 1.5\n":                           3,
		"[[a]]\n":                                        2,
		"a = [1.0, 2.0, 3.0]\n":                          2,
		"a.b = {c.d = {e.f = 1}}\n":                      5,
		"a = \"x.y.z[[[[\" # .....[[[[\nb=1":             0,
		"a = '\"' # \"\nb.c = 1":                         1,
		"a = \"\\\".....\"\nb.c = 1":                     1,
		"a = \"\"\"\n....\n[[[[\"\"\"\nb.c=1":            1,
		"a = [\"\"\"x\"\"\"\"\", {b.c.d = 1}]\n":         4,
		"a = ['''x'''', {b.c.d = 1}]\n":                  4,
		"a = \"\"\"\\\"\"\"\".....\"\"\"\nb.c = 1":       5, // the text ends at its third quote, what follows is none
		"a = \"\"\n[b]\nc = ''\n[d.e]\n":                 2,
		"a = \"never ends ....\nb.c.d = 1":               2,
		"]]]]}}}}a.b = 1":                                1,
		"a = [\n{b.c = [\n{d.e = 1},\n]},\n]\n[f.g.h.i]": 6,
	} {
		if got := nesting([]byte(text)); got != want {
			t.Errorf("%q nests %d deep, want %d", text, got, want)
		}
	}
	for name, text := range map[string]string{
		"dots":   "a" + strings.Repeat(".a", 2000) + " = 1\n",
		"header": "[a" + strings.Repeat(".a", 2000) + "]\n",
		"tables": strings.Repeat("a={", 40) + strings.Repeat("}", 40) + "\n",
		"both":   strings.Repeat("a.b.c={", 12) + strings.Repeat("}", 12) + "\n",
		"hidden": "x = [\"\"\"\"\"\"\"\", {a" + strings.Repeat(".a", 2000) + " = 1}]\n",
	} {
		if m, err := parseManifest([]byte(text)); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
}

// Each file of a crate unpacks to the name that was looked at, and to no other.
func TestCheckCrateNames(t *testing.T) {
	const manifest = "[package]\nname = \"demo\"\nversion = \"1.0.0\"\n"
	crate := func(more ...tar.Header) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		w := tar.NewWriter(z)
		for _, h := range append([]tar.Header{{Name: "demo-1.0.0/Cargo.toml"}}, more...) {
			body := ""
			if h.Typeflag == 0 {
				body = manifest
			}
			h.Mode, h.Size = 0o644, int64(len(body))
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(w, body); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(w.Close(), z.Close()); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	check := func(b []byte) error {
		_, err := checkCrate("demo", "1.0.0", bytes.NewReader(b), int64(len(b)))
		return err
	}
	if err := check(crate(tar.Header{Name: "demo-1.0.0/src/lib.rs"})); err != nil {
		t.Fatal(err)
	}
	for name, h := range map[string]tar.Header{
		"a dot":       {Name: "demo-1.0.0/./Cargo.toml"},
		"two slashes": {Name: "demo-1.0.0//Cargo.toml"},
		"a backslash": {Name: `demo-1.0.0/src\..\Cargo.toml`},
		"a symlink":   {Name: "demo-1.0.0/Cargo.toml", Typeflag: tar.TypeSymlink, Linkname: "evil.toml"},
		"a link":      {Name: "demo-1.0.0/Cargo.toml", Typeflag: tar.TypeLink, Linkname: "demo-1.0.0/evil.toml"},
		"a link away": {Name: "demo-1.0.0/x", Typeflag: tar.TypeSymlink, Linkname: "src"},
	} {
		if err := check(crate(h)); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// An index that cannot be read is the upstream's fault.
func TestScanLongLine(t *testing.T) {
	err := scan(strings.NewReader(strings.Repeat("x", maxLineBytes+1)), func([]byte) (bool, error) { return false, nil })
	if !errors.Is(err, protocol.ErrUpstream) {
		t.Error(err)
	}
}
