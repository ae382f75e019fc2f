package gomod

import (
	"archive/zip"
	"bytes"
	"errors"
	"testing"

	"golang.org/x/mod/module"
	modzip "golang.org/x/mod/zip"

	"github.com/shoal-registry/shoal/gateway/archive/archivetest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func zipOf(t testing.TB, names ...string) []byte {
	t.Helper()
	var files []string
	for _, name := range names {
		files = append(files, name, "module example.com/lib\n")
	}
	return archivetest.Zip(t, files...)
}

// What checkZip takes, golang.org/x/mod/zip takes too, which is what the go command does
// with it.
func FuzzZip(f *testing.F) {
	m := module.Version{Path: "example.com/lib", Version: "v1.0.0"}
	const p = "example.com/lib@v1.0.0/"
	good := zipOf(f, p+"go.mod", p+"a.go")
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(zipOf(f, p+"go.mod", p+"../a.go"))
	f.Add(zipOf(f, p+"go.mod", p+"vendor/a/a.go"))
	f.Add(zipOf(f, p+"go.mod", p+"a.go", p+"A.go"))
	f.Add(zipOf(f, p+"sub/go.mod"))
	f.Add([]byte("PK\x05\x06\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00\x00\x00"))
	// Files that lie before the archive.
	f.Add([]byte("PK\x01\x0200000000000000000000000\x00\x1d\x00\x00\x00\x00\x00000000000\x00\x00\x00example.com/lib@v1.0.0/go.modPK\x01\x0200000000000000000000000\x00!\x00\x00\x00\x00\x00000000000000example.com/lib@v1.0.0/0000000000000PK\x05\x06000000\x02\x00\x9d\x00\x00\x001000\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := checkZip(m, bytes.NewReader(b), int64(len(b)))
		if err != nil {
			if !errors.Is(err, meta.ErrInvalid) && !errors.Is(err, meta.ErrTooLarge) {
				t.Fatalf("refused as %v", err)
			}
			return
		}
		if err := checkMod(m, c.mod); err != nil {
			t.Errorf("the go.mod that was taken: %v", err)
		}
		z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		var files []modzip.File
		for _, f := range z.File {
			files = append(files, member{f, f.Name[len(p):]})
		}
		if checked, err := modzip.CheckFiles(files); err != nil || len(checked.Valid) != len(files) {
			t.Errorf("%+v, %v", checked, err)
		}
	})
}

// FuzzUpstream reads what an upstream may answer, and addresses.
func FuzzUpstream(f *testing.F) {
	f.Add([]byte("v1.0.0\nv1.0.0\nv2.0.0-rc.1 2026-01-01T00:00:00Z\n"), "v1.0.0.zip", "example.com/!acme/lib")
	f.Add([]byte(`{"Version":"v1.0.0","Time":"2026-01-01T00:00:00Z"}`), "!main.info", "a.b/@v")
	f.Add([]byte("\xff\x00"), ".mod", "")
	f.Fuzz(func(t *testing.T, b []byte, name, path string) {
		for _, v := range parseList(b) {
			if !canonical(v) {
				t.Errorf("%q is listed", v)
			}
		}
		if i, err := parseInfo("x", b); err == nil && i.Version == "" {
			t.Error("an info without a version")
		}
		if v, _, err := versionFile(name); err == nil && meta.CheckVersion(v) != nil {
			t.Errorf("%q is taken", v)
		}
		if plain, err := modulePath(path); err == nil && escape(plain) != path {
			t.Errorf("%q is %q, and back %q", path, plain, escape(plain))
		}
		if m, err := lookedUp(path + "@" + name); err == nil && (m.Path == "" || m.Version == "") {
			t.Errorf("looked up %+v", m)
		}
	})
}

func TestLater(t *testing.T) {
	up := []string{"", "v0.0.0-20250102030405-0123456789ab", "v1.9.0-0.20260102030405-0123456789ab", "v2.0.0-rc.1", "v0.9.0", "v1.0.0", "v1.0.1", "v1.10.0", "v2.0.0+incompatible"}
	for i, a := range up {
		for j, b := range up {
			if a != "" && i != j && later(a, b) != (i > j) {
				t.Errorf("%s after %s: %t", a, b, later(a, b))
			}
		}
	}
}
