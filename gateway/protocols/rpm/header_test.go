package rpm

import (
	"bytes"
	"encoding/binary"
	"encoding/xml"
	"errors"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/gateway/protocols/rpm/rpmtest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

func hello() rpmtest.Package {
	return rpmtest.Package{
		Name: "hello", Version: "2.10", Release: "3.fc40", Arch: "x86_64", Epoch: 1, Summary: "greets <all> & \"sundry\"",
		Provides: []string{"greeting = 1:2-3", "plain"}, Requires: []string{"/bin/sh", "libc = 2.36"},
		Files: map[string][]byte{"/usr/bin/hello": []byte("#!/bin/sh\n"), "/usr/share/hello/file": []byte("x")}, Log: []string{"newest", "older"},
	}
}

func read(b []byte) (*file, error) {
	return readRPM(bytes.NewReader(b), int64(len(b)), func(int64) error { return nil })
}

func TestReadRPM(t *testing.T) {
	b := hello().Bytes()
	f, err := read(b)
	if err != nil {
		t.Fatal(err)
	}
	n, err := f.names()
	if err != nil || n != (nevra{"hello", "2.10", "3.fc40", "x86_64", 1}) || n.fileName() != "hello-2.10-3.fc40.x86_64.rpm" {
		t.Errorf("%+v, %v", n, err)
	}
	parts, err := f.render(n, digest.FromBytes(b), "Packages/"+n.fileName())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"<summary>greets &lt;all&gt; &amp; &#34;sundry&#34;</summary>",
		`<rpm:entry name="greeting" flags="EQ" epoch="1" ver="2" rel="3"/>`, `<rpm:entry name="libc" flags="EQ" epoch="0" ver="2.36"/>`,
		"<file>/usr/bin/hello</file></format>",
	} {
		if !strings.Contains(string(parts.Primary), want) {
			t.Errorf("no %s in\n%s", want, parts.Primary)
		}
	}
	if built := `<time file="1700000000" build="1700000000"/>`; !strings.Contains(string(parts.Primary), built) {
		t.Errorf("no %s in\n%s", built, parts.Primary)
	}
	if strings.Contains(string(parts.Primary), "rpmlib(") {
		t.Error("what rpm itself needs is among the requirements")
	}
	if i, j := bytes.Index(parts.Other, []byte("older")), bytes.Index(parts.Other, []byte("newest")); i < 0 || j < i {
		t.Errorf("the changelog is %s", parts.Other)
	}
	for n := range len(b) {
		if n > 2000 && n%7 != 0 { // all of the headers, some of the payload
			continue
		}
		if _, err := read(b[:n]); n < int(f.end)+1 && !errors.Is(err, meta.ErrInvalid) {
			t.Fatalf("cut at %d of %d: %v", n, len(b), err)
		}
	}
	none := errors.New("no memory")
	if _, err := readRPM(bytes.NewReader(b), int64(len(b)), func(int64) error { return none }); !errors.Is(err, none) {
		t.Errorf("without memory: %v", err)
	}
}

// A header that claims more than there is costs no memory for it.
func TestClaims(t *testing.T) {
	b := hello().Bytes()
	f, err := read(b)
	if err != nil {
		t.Fatal(err)
	}
	at := int(f.start)
	for name, change := range map[string]func([]byte){
		"many tags":    func(b []byte) { binary.BigEndian.PutUint32(b[at+8:], 0xffffffff) },
		"a long store": func(b []byte) { binary.BigEndian.PutUint32(b[at+12:], 0xfffffff0) },
		"no magic":     func(b []byte) { b[at] = 0 },
	} {
		bad := bytes.Clone(b)
		change(bad)
		if _, err := read(bad); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Each tag in turn says that it has as many values as can be written.
	for i := range len(f.tags) {
		bad := bytes.Clone(b)
		binary.BigEndian.PutUint32(bad[at+16+16*i+12:], 0x7fffffff)
		f, err := read(bad)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := f.names(); err == nil {
			if _, err := f.render(n, digest.FromBytes(bad), "x"); err != nil && !errors.Is(err, meta.ErrInvalid) {
				t.Errorf("tag %d: %v", i, err)
			}
		}
	}
	long := hello()
	long.Name = "../../etc/passwd"
	if f, err := read(long.Bytes()); err != nil {
		t.Error(err)
	} else if _, err := f.names(); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("a path as a name: %v", err)
	}
	// One long folder under many names.
	const count, folder = 2000, 100_000
	store := make([]byte, 4*count) // all in the first folder
	names := strings.Repeat("x\x00", count)
	store = append(append(store, names...), "/"+strings.Repeat("y", folder)+"\x00"...)
	many := &file{header: header{store: store, tags: map[uint32]entry{
		tagDirIndexes: {typeInt32, 0, count}, tagBaseNames: {typeArray, 4 * count, count}, tagDirNames: {typeArray, uint32(4*count + len(names)), 1},
	}}}
	if files, err := many.files(); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("%d files of %d bytes each: %v", len(files), folder, err)
	}
}

func TestParseFile(t *testing.T) {
	n, err := parseFile("python3-foo-bar-1.2~rc1-3.fc40.noarch.rpm")
	if err != nil || n.Name != "python3-foo-bar" || n.version() != "1.2~rc1-3.fc40.noarch" {
		t.Errorf("%+v, %v", n, err)
	}
	for _, s := range []string{"", "x.rpm", "hello-1.noarch.rpm", "hello-1-1.rpm", "hello-1-1.noarch.deb", "-1-1.noarch.rpm", "a/hello-1-1.noarch.rpm", "hello-1-1.No.rpm"} {
		if n, err := parseFile(s); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%q: %+v, %v", s, n, err)
		}
	}
}

func FuzzReadRPM(f *testing.F) {
	f.Add(hello().Bytes())
	small := rpmtest.Package{Name: "a", Version: "1", Release: "1", Arch: "noarch"}
	f.Add(small.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		rpm, err := read(b)
		if err != nil {
			if !errors.Is(err, meta.ErrInvalid) {
				t.Errorf("%v has no kind", err)
			}
			return
		}
		n, err := rpm.names()
		if err != nil {
			return
		}
		if again, err := parseFile(n.fileName()); err != nil || again.version() != n.version() {
			t.Errorf("%+v is read as %+v of its file: %v", n, again, err)
		}
		parts, err := rpm.render(n, digest.FromBytes(b), "Packages/"+n.fileName())
		if err != nil {
			if !errors.Is(err, meta.ErrInvalid) {
				t.Errorf("%v has no kind", err)
			}
			return
		}
		// What is shown is well-formed XML, whatever the package says.
		for _, part := range [][]byte{parts.Primary, parts.Filelists, parts.Other} {
			d := xml.NewDecoder(bytes.NewReader(part))
			for {
				_, err := d.Token()
				if err != nil {
					if err.Error() != "EOF" {
						t.Errorf("%v in %s", err, part)
					}
					break
				}
			}
		}
		packed, err := pack(parts)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := unpack(bytes.NewReader(packed)); err != nil || !bytes.Equal(again.Primary, parts.Primary) {
			t.Errorf("unpacked: %v", err)
		}
	})
}
