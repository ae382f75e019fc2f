package apt_test

import (
	"fmt"
	"testing"

	"github.com/shoal-registry/shoal/gateway/archive/archivetest"
)

// debOf is a package with some content.
func debOf(t testing.TB, pkg, version, arch, content string) []byte {
	return debWith(t, pkg, version, arch, "", content)
}

// debWith is debOf with another field, a line, in its control file.
func debWith(t testing.TB, pkg, version, arch, field, content string) []byte {
	t.Helper()
	b := []byte("!<arch>\n")
	control := fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: %s\n%sMaintainer: Ada <ada@example.org>\nDescription: greets\n", pkg, version, arch, field)
	for _, m := range []struct {
		name string
		body []byte
	}{{"debian-binary", []byte("2.0\n")}, {"control.tar", archivetest.Tar(t, "./control", control)}, {"data.tar", archivetest.Tar(t, "./usr/share/"+pkg, content)}} {
		b = fmt.Appendf(b, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", m.name, 0, 0, 0, "100644", len(m.body))
		if b = append(b, m.body...); len(m.body)%2 == 1 {
			b = append(b, '\n')
		}
	}
	return b
}
