package apt_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"testing"
)

// debOf is a package with some content.
func debOf(t testing.TB, pkg, version, arch, content string) []byte {
	return debWith(t, pkg, version, arch, "", content)
}

// debWith is debOf with another field, a line, in its control file.
func debWith(t testing.TB, pkg, version, arch, field, content string) []byte {
	t.Helper()
	pack := func(name, body string) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(body)), Format: tar.FormatGNU}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(body)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	b := []byte("!<arch>\n")
	control := fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: %s\n%sMaintainer: Ada <ada@example.org>\nDescription: greets\n", pkg, version, arch, field)
	for _, m := range []struct {
		name string
		body []byte
	}{{"debian-binary", []byte("2.0\n")}, {"control.tar", pack("./control", control)}, {"data.tar", pack("./usr/share/"+pkg, content)}} {
		b = fmt.Appendf(b, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", m.name, 0, 0, 0, "100644", len(m.body))
		if b = append(b, m.body...); len(m.body)%2 == 1 {
			b = append(b, '\n')
		}
	}
	return b
}
