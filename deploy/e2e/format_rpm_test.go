package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/gateway/protocols/rpm/rpmtest"
)

func init() {
	formats = append(formats, format{
		name: "rpm", sets: true, tools: []string{"dnf", "curl"}, pkg: "shoal-hello",
		publish: func(ctx context.Context, t *testing.T, p place, home, pkg, version string, seed uint64) (string, error) {
			made := rpmOf(pkg, version, seed)
			file := filepath.Join(home, made.File())
			write(t, file, string(made.Bytes()))
			return curl(ctx, t, p, home, "--upload-file", file, p.url("rpm")+"/Packages/")
		},
		install:   installRPM,
		reference: func(pkg, version string) string { return "/" + pkg + ":" + version + "-1.noarch" },
		says:      []string{"409"},
		upload: func(t *testing.T, pkg, version string, seed uint64) request {
			made := rpmOf(pkg, version, seed)
			return request{method: http.MethodPut, path: "/Packages/" + made.File(), body: made.Bytes()}
		},
		ownGroups: true,
	})
}

func rpmOf(pkg, version string, seed uint64) rpmtest.Package {
	return rpmtest.Package{
		Name: pkg, Version: version, Release: "1", Arch: "noarch", Summary: "a test",
		Files: map[string][]byte{"/usr/share/" + pkg + "/payload": payload(seed)},
	}
}

// installRPM installs into a root folder of its own, so that the machine is untouched,
// and has dnf check the signature of the metadata.
func installRPM(ctx context.Context, t *testing.T, p place, home, pkg, version string) (map[string]string, string, error) {
	t.Helper()
	in := func(name string) string { return filepath.Join(home, name) }
	if err := os.MkdirAll(in("root"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, in("dnf.conf"), fmt.Sprintf(strings.ReplaceAll(`[main]
plugins=0
reposdir=HOME/none
varsdir=HOME/none
cachedir=HOME/cache
logdir=HOME/log
persistdir=HOME/state
gpgcheck=0
retries=1
timeout=60
[shoal]
name=shoal
baseurl=%s
username=e2e
password=%s
repo_gpgcheck=1
gpgkey=file://HOME/key.asc
`, "HOME", home), p.url("rpm"), p.token))
	said, err := curl(ctx, t, p, home, "--output", in("key.asc"), p.url("rpm")+"/key.asc")
	if err != nil {
		return nil, said, err
	}
	if version != "" {
		pkg += "-" + version
	}
	said, err = command(ctx, []string{"HOME=" + home}, "dnf", "--config", in("dnf.conf"), "--installroot", in("root"), "--releasever", "1", "--assumeyes", "install", pkg)
	if err != nil {
		return nil, said, err
	}
	files, err := tree(in("root/usr/share"))
	return files, said, err
}
