package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func init() {
	formats = append(formats, format{
		name: "apt", sets: true, tools: []string{"apt-get", "dpkg", "dpkg-deb", "gpgv", "curl"}, pkg: "shoal-hello",
		publish: func(ctx context.Context, t *testing.T, p place, home, pkg, version string, seed uint64) (string, error) {
			file := filepath.Join(home, debName(pkg, version))
			write(t, file, string(debOf(t, pkg, version, seed)))
			return curl(ctx, t, p, home, "--upload-file", file, p.url("apt")+"/pool/stable/main/")
		},
		install:   installDeb,
		reference: func(pkg, version string) string { return "/" + pkg + ":" + version + "_all" },
		says:      []string{"409"},
		upload: func(t *testing.T, pkg, version string, seed uint64) request {
			return request{method: http.MethodPut, path: "/pool/stable/main/" + debName(pkg, version), body: debOf(t, pkg, version, seed)}
		},
		ownGroups: true,
	})
}

// curl calls it with the token in a file.
func curl(ctx context.Context, t *testing.T, p place, home string, args ...string) (string, error) {
	t.Helper()
	host, _, err := net.SplitHostPort(p.gateway)
	if err != nil {
		t.Fatal(err)
	}
	netrc := filepath.Join(home, "netrc")
	write(t, netrc, fmt.Sprintf("machine %s login e2e password %s\n", host, p.token))
	return command(ctx, nil, "curl", append([]string{"--silent", "--show-error", "--fail-with-body", "--netrc-file", netrc}, args...)...)
}

func debName(pkg, version string) string { return pkg + "_" + version + "_all.deb" }

// debOf is a package of one file, as dpkg-deb would build it without compression.
func debOf(t *testing.T, pkg, version string, seed uint64) []byte {
	t.Helper()
	tarOf := func(entries ...*tar.Header) func(...[]byte) []byte {
		return func(bodies ...[]byte) []byte {
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			for i, h := range entries {
				h.Format, h.Size = tar.FormatGNU, int64(len(bodies[i]))
				if err := w.WriteHeader(h); err != nil {
					t.Fatal(err)
				}
				if _, err := w.Write(bodies[i]); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			return b.Bytes()
		}
	}
	dir := func(name string) *tar.Header { return &tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755} }
	control := fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: E2E <e2e@example.org>\nDescription: a test\n", pkg, version)
	var b bytes.Buffer
	b.WriteString("!<arch>\n")
	for _, m := range []struct {
		name string
		body []byte
	}{
		{"debian-binary", []byte("2.0\n")},
		{"control.tar", tarOf(dir("./"), &tar.Header{Name: "./control", Mode: 0o644})(nil, []byte(control))},
		{"data.tar", tarOf(dir("./"), dir("./usr/"), dir("./usr/share/"), dir("./usr/share/"+pkg+"/"),
			&tar.Header{Name: "./usr/share/" + pkg + "/payload", Mode: 0o644})(nil, nil, nil, nil, payload(seed))},
	} {
		fmt.Fprintf(&b, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", m.name, 0, 0, 0, "100644", len(m.body))
		b.Write(m.body)
		if len(m.body)%2 == 1 {
			b.WriteByte('\n')
		}
	}
	return b.Bytes()
}

// installDeb installs into a root folder of its own, so that the machine is untouched.
func installDeb(ctx context.Context, t *testing.T, p place, home, pkg, version string) (map[string]string, string, error) {
	t.Helper()
	for _, dir := range []string{
		"etc/apt/preferences.d", "etc/apt/apt.conf.d", "etc/apt/trusted.gpg.d", "etc/apt/sources.list.d", "var/lib/apt/lists/partial",
		"var/cache/apt/archives/partial", "var/lib/dpkg/updates", "var/lib/dpkg/info", "var/lib/dpkg/triggers", "var/log/apt",
	} {
		if err := os.MkdirAll(filepath.Join(home, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	in := func(name string) string { return filepath.Join(home, name) }
	write(t, in("var/lib/dpkg/status"), "")
	write(t, in("etc/apt/auth.conf"), fmt.Sprintf("machine http://%s/ login e2e password %s\n", p.gateway, p.token))
	write(t, in("etc/apt/sources.list"), fmt.Sprintf("deb [signed-by=%s] %s stable main\n", in("key.asc"), p.url("apt")))
	write(t, in("apt.conf"), strings.ReplaceAll(`Dir "HOME/";
Dir::State::status "HOME/var/lib/dpkg/status";
Dir::Bin::methods "/usr/lib/apt/methods";
Dir::Bin::dpkg "/usr/bin/dpkg";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "0";
DPkg::Options { "--root=HOME"; "--force-not-root"; "--force-bad-path"; "--log=HOME/var/log/dpkg.log"; };
`, "HOME", home))
	env := []string{"APT_CONFIG=" + in("apt.conf")}
	said, err := curl(ctx, t, p, home, "--output", in("key.asc"), p.url("apt")+"/key.asc")
	if err != nil {
		return nil, said, err
	}
	// An update that fails is a warning to apt unless it is told otherwise.
	if said, err = command(ctx, env, "apt-get", "-o", "APT::Update::Error-Mode=any", "update"); err != nil {
		return nil, said, err
	}
	if version != "" {
		pkg += "=" + version
	}
	more, err := command(ctx, env, "apt-get", "--yes", "install", pkg)
	if said += more; err != nil {
		return nil, said, err
	}
	files, err := tree(in("usr/share"))
	return files, said, err
}
