package pypi

import (
	"errors"
	"testing"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func TestNormalize(t *testing.T) {
	for text, want := range map[string]string{
		"friendly-bard": "friendly-bard", "Friendly-Bard": "friendly-bard", "FRIENDLY-BARD": "friendly-bard",
		"friendly.bard": "friendly-bard", "friendly_bard": "friendly-bard", "friendly--bard": "friendly-bard",
		"FrIeNdLy-._.-bArD": "friendly-bard", "a": "a", "2": "2",
		"": "", "-a": "", "a-": "", "a b": "", "é": "", "a/b": "", "a\n": "",
		"\u017fetup": "", "\u212aube": "", // letters that fold to s and k
	} {
		got, err := normalize(text)
		if got != want || (err == nil) != (want != "") || err != nil && !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%q: %q, %v; want %q", text, got, err, want)
		}
	}
}

func TestVersion(t *testing.T) {
	for text, want := range map[string]string{
		"1.0": "1.0", "1.0.0": "1.0.0", "v1.0": "1.0", " 1.0 ": "1.0", "01.002": "1.2", "0": "0", "2012.4": "2012.4",
		"1!2.0": "1!2.0", "0!2.0": "2.0", "1.0a1": "1.0a1", "1.0.Alpha.1": "1.0a1", "1.0beta": "1.0b0", "1.0c3": "1.0rc3",
		"1.0-preview-4": "1.0rc4", "1.0-1": "1.0.post1", "1.0.post": "1.0.post0", "1.0r4": "1.0.post4", "1.0-rev.02": "1.0.post2",
		"1.0.dev4": "1.0.dev4", "1.0-dev": "1.0.dev0", "1.0a2.post3.dev4": "1.0a2.post3.dev4",
		"1.0+Ubuntu-1_02": "1.0+ubuntu.1.2", "1.0+abc.007": "1.0+abc.7",
		"": "", "one": "", "1.0x": "", "1.0+": "", "1..0": "", "1.0 0": "", "../1": "", "1.0+\u017f": "", "1.0po\u017ft1": "",
	} {
		got, err := version(text)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", text, got, err, want)
		}
		if again, err := version(got); want != "" && (again != got || err != nil) {
			t.Errorf("%q is not its own normal form: %q, %v", got, again, err)
		}
	}
}

func TestParseFilename(t *testing.T) {
	for text, want := range map[string]filename{
		"foo_bar-1.0-py3-none-any.whl":                     {wheel, "foo-bar", "1.0", "foo_bar-1.0"},
		"Foo.Bar-1.0-1-cp311-cp311-manylinux_2_17_x86.whl": {wheel, "foo-bar", "1.0", "Foo.Bar-1.0"},
		"foo-1.0+abc.1-py2.py3-none-any.whl":               {wheel, "foo", "1.0+abc.1", "foo-1.0+abc.1"},
		"foo-bar-1.0.tar.gz":                               {sdist, "foo-bar", "1.0", "foo-bar-1.0"},
		"foo_bar-1.0rc1.zip":                               {sdist, "foo-bar", "1.0rc1", "foo_bar-1.0rc1"},
	} {
		if got, err := parseFilename(text); got != want || err != nil {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{
		"", "foo.whl", "foo-1.0.whl", "foo-1.0-x1-py3-none-any.whl", "foo-1.0-py3-none-any-a-b.whl", "foo-one-py3-none-any.whl", "../foo-1.0.tar.gz",
		"a/foo-1.0.tar.gz", "foo-1.0.tar.bz2", "foo-1.0.egg", "foo-1.0.exe", "foo.tar.gz", "foo-.tar.gz", "-1.0.tar.gz", "foo-1.0-py3-none-.whl", "f o-1.0.tar.gz", `foo\-1.0.tar.gz`,
	} {
		if got, err := parseFilename(text); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func FuzzVersion(f *testing.F) {
	f.Add("1!1.0a1.post2.dev3+local.1")
	f.Fuzz(func(t *testing.T, text string) {
		v, err := version(text)
		if err != nil {
			return
		}
		if again, err := version(v); err != nil || again != v {
			t.Errorf("%q becomes %q and then %q, %v", text, v, again, err)
		}
	})
}

func FuzzFilename(f *testing.F) {
	f.Add("foo-1.0-py3-none-any.whl")
	f.Add("foo-1.0.tar.gz")
	f.Fuzz(func(t *testing.T, name string) {
		p, err := parseFilename(name)
		if err == nil && (meta.CheckPackage(p.project) != nil || meta.CheckVersion(p.version) != nil || meta.CheckPath(name) != nil) {
			t.Errorf("%q is %+v", name, p)
		}
	})
}

func FuzzCore(f *testing.F) {
	f.Add([]byte("Metadata-Version: 2.1\nName: a\nVersion: 1\n\nhello"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseCore(b)
		if err == nil && (c.name == "" || c.version == "") {
			t.Errorf("%+v", c)
		}
	})
}
