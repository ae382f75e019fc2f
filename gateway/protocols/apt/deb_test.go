package apt

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/shoal-registry/shoal/gateway/archive/archivetest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// member is a file of an ar archive.
func member(name string, body []byte) []byte {
	b := fmt.Appendf(nil, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", name, 0, 0, 0, "100644", len(body))
	if b = append(b, body...); len(body)%2 == 1 {
		b = append(b, '\n')
	}
	return b
}

// tarOf is a tarball of entries that all have the same control file in them.
func tarOf(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		body := ""
		if h.Typeflag == 0 {
			body = helloControl
		}
		h.Mode, h.Size, h.Format = 0o644, int64(len(body)), tar.FormatGNU
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func compressed(t testing.TB, suffix string, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	switch suffix {
	case "":
		return b
	case ".gz":
		w = gzip.NewWriter(&out)
	case ".xz":
		w, err = xz.NewWriter(&out)
	case ".zst":
		w, err = zstd.NewWriter(&out)
	}
	if err == nil {
		_, err = w.Write(b)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

const helloControl = "Package: hello\nVersion: 1:2.10-3\nArchitecture: amd64\nMaintainer: Ada <ada@example.org>\nDescription: greets\n the world\n .\n politely\n"

// deb is a package with that control file.
func deb(t testing.TB, control, suffix, data string) []byte {
	t.Helper()
	b := []byte("!<arch>\n")
	b = append(b, member("debian-binary", []byte("2.0\n"))...)
	b = append(b, member("control.tar"+suffix, compressed(t, suffix, archivetest.Tar(t, "./control", control)))...)
	return append(b, member("data.tar"+suffix, compressed(t, suffix, archivetest.Tar(t, "./usr/share/doc/hello", data)))...)
}

func TestReadDeb(t *testing.T) {
	for _, suffix := range []string{"", ".gz", ".xz", ".zst"} {
		b := deb(t, helloControl, suffix, "hello")
		got, err := readDeb(bytes.NewReader(b), int64(len(b)))
		if err != nil || string(got) != helloControl {
			t.Errorf("control.tar%s: %q, %v", suffix, got, err)
		}
		// Whatever is cut off, it is refused and nothing else.
		for n := range len(b) - 1 {
			if _, err := readDeb(bytes.NewReader(b[:n]), int64(n)); !errors.Is(err, meta.ErrInvalid) {
				t.Fatalf("control.tar%s cut at %d of %d: %v", suffix, n, len(b), err)
			}
		}
	}
}

func TestReadDebRefuses(t *testing.T) {
	ar := func(members ...[]byte) []byte { return append([]byte("!<arch>\n"), bytes.Join(members, nil)...) }
	version, data := member("debian-binary", []byte("2.0\n")), member("data.tar", archivetest.Tar(t, "x", "x"))
	good := member("control.tar", archivetest.Tar(t, "./control", helloControl))
	zeros := compressed(t, ".gz", archivetest.Tar(t, "./postinst", strings.Repeat("\x00", maxControlPlain+1)))
	for name, b := range map[string][]byte{
		"nothing":             nil,
		"a zip":               []byte("PK\x03\x04 and so on, long enough to have a header"),
		"no version":          ar(good, data),
		"another format":      ar(member("debian-binary", []byte("3.0\n")), good, data),
		"no control":          ar(version, data),
		"no control file":     ar(version, member("control.tar", archivetest.Tar(t, "./postinst", "#!/bin/sh")), data),
		"a long control file": ar(version, member("control.tar", archivetest.Tar(t, "./control", strings.Repeat("x", maxControl+1))), data),
		"a bomb":              ar(version, member("control.tar.gz", zeros), data),
		"an odd compression":  ar(version, member("control.tar.lz4", []byte("x")), data),
		"control twice":       ar(version, member("control.tar", tarOf(t, tar.Header{Name: "./control"}, tar.Header{Name: "control"})), data),
		"control at the root": ar(version, member("control.tar", tarOf(t, tar.Header{Name: "./control"}, tar.Header{Name: "/control"})), data),
		"control as a link":   ar(version, member("control.tar", tarOf(t, tar.Header{Name: "./control"}, tar.Header{Name: "x/../control", Typeflag: tar.TypeSymlink, Linkname: "other"})), data),
		"no data":             ar(version, good),
		"another member":      ar(version, good, member("control.tar", nil), data),
		"a negative size":     ar(version, []byte(fmt.Sprintf("%-16s%-12d%-6d%-6d%-8s%-10d`\n", "control.tar", 0, 0, 0, "100644", -1))),
	} {
		if _, err := readDeb(bytes.NewReader(b), int64(len(b))); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	b := ar(version, good, member("_extra", []byte("odd")), data)
	if _, err := readDeb(bytes.NewReader(b), int64(len(b))); err != nil {
		t.Errorf("a member that is to be skipped: %v", err)
	}
}

func TestParseControl(t *testing.T) {
	c, err := parseControl([]byte("# a comment\n" + helloControl + "Filename: ../../etc/passwd\nSHA256: 00\n 11\nSize: 1\n\n"))
	if err != nil || c.Package != "hello" || c.Version != "1:2.10-3" || c.Architecture != "amd64" || c.fileName() != "hello_2.10-3_amd64.deb" || c.stanza != helloControl {
		t.Errorf("%+v, %v", c, err)
	}
	field := func(name, value string) string {
		return strings.Replace(helloControl, name+": ", name+": "+value, 1)
	}
	for name, s := range map[string]string{
		"nothing":                "",
		"no version":             "Package: hello\nArchitecture: amd64\n",
		"a path as name":         field("Package", "../"),
		"capitals":               field("Package", "H"),
		"a blank in the version": field("Version", "1 "),
		"a slash in the version": field("Version", "1/"),
		"two paragraphs":         helloControl + "\nPackage: other\n",
		"a field twice":          helloControl + "package: other\n",
		"a source":               strings.Replace(helloControl, "amd64", "source", 1),
		"no field":               helloControl + "hello\n",
		"a continuation first":   " hello\n" + helloControl,
		"control characters":     helloControl + "X: \x1b[31m\n",
		"bytes":                  helloControl + "X: \xff\n",
	} {
		if c, err := parseControl([]byte(s)); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
}

func TestParseFile(t *testing.T) {
	if pkg, v, err := parseFile("lib+x.y-1_2.10-3~rc1_all.deb"); err != nil || pkg != "lib+x.y-1" || v != "2.10-3~rc1_all" {
		t.Error(pkg, v, err)
	}
	for _, s := range []string{"hello.deb", "hello_1.deb", "hello_1_amd64.udeb", "Hello_1_amd64.deb", "hello_1_x_amd64.deb", "hello_1:1_amd64.deb"} {
		if pkg, v, err := parseFile(s); !errors.Is(err, meta.ErrInvalid) {
			t.Error(s, pkg, v, err)
		}
	}
	if p, file, err := parsePool("stable/main/x.deb"); err != nil || p != (place{"stable", "main"}) || p.pool(file) != "pool/stable/main/x.deb" {
		t.Error(p, file, err)
	}
	for _, s := range []string{"", "x.deb", "stable/x.deb", "a/b/c/x.deb", "/main/x.deb", "sta ble/main/x.deb"} {
		if _, _, err := parsePool(s); !errors.Is(err, meta.ErrInvalid) {
			t.Error(s, err)
		}
	}
}

func FuzzReadDeb(f *testing.F) {
	for _, suffix := range []string{"", ".gz", ".xz", ".zst"} {
		f.Add(deb(f, helloControl, suffix, "data"))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		text, err := readDeb(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			if !errors.Is(err, meta.ErrInvalid) {
				t.Errorf("%v has no kind", err)
			}
			return
		}
		c, err := parseControl(text)
		if err != nil {
			return
		}
		// What is shown parses as what was read, and adds no field of ours.
		again, err := parseControl([]byte(c.stanza))
		if err != nil || again != c {
			t.Errorf("%+v again is %+v: %v", c, again, err)
		}
		if _, _, err := parseFile(c.fileName()); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	})
}
