package e2e

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/proc"
)

// configured is a client that `shoal setup` has configured in home: it gets version 1.0.0
// of a package by nothing but that, into a folder that is returned.
type configured struct {
	client string
	get    func(ctx context.Context, t *testing.T, home, pkg string) (dir, out string, err error)
}

// plainly are variables that would take the place of the configuration.
func plainly(home string, more ...string) []string {
	return append([]string{
		"HOME=" + home, "XDG_CONFIG_HOME=" + filepath.Join(home, ".config"), "XDG_CACHE_HOME=" + filepath.Join(home, ".cache"), "XDG_DATA_HOME=" + filepath.Join(home, ".data"),
		"npm_config_userconfig=" + filepath.Join(home, ".npmrc"), "npm_config_registry=", "PIP_CONFIG_FILE=", "PIP_INDEX_URL=", "NETRC=" + filepath.Join(home, ".netrc"),
		"CARGO_HOME=" + filepath.Join(home, ".cargo"), "GOPROXY=", "GOENV=", "GOFLAGS=-modcacherw", "GOPATH=" + filepath.Join(home, "go"),
		"GOMODCACHE=" + filepath.Join(home, "go", "mod"), "GOTOOLCHAIN=local", "GOWORK=off",
	}, more...)
}

// configurations are by format.
var configurations = map[string]configured{
	"npm": {"npm", func(ctx context.Context, t *testing.T, home, pkg string) (string, string, error) {
		out, err := command(ctx, plainly(home, "npm_config_cache="+filepath.Join(home, "cache")), "npm", "install", "--no-audit", "--prefix", filepath.Join(home, "project"), pkg+"@1.0.0")
		return filepath.Join(home, "project", "node_modules"), out, err
	}},
	"pypi": {"pip", func(ctx context.Context, t *testing.T, home, pkg string) (string, string, error) {
		out, err := command(ctx, plainly(home), "pip3", "install", "--no-input", "--no-cache-dir", "--no-deps", "--disable-pip-version-check", "--target", filepath.Join(home, "site"), pkg+"==1.0.0")
		return filepath.Join(home, "site"), out, err
	}},
	"go": {"go", func(ctx context.Context, t *testing.T, home, pkg string) (string, string, error) {
		out, err := command(ctx, plainly(home, "GONOSUMDB=*"), "go", "mod", "download", "-json", pkg+"@"+goVersion("1.0.0"))
		return filepath.Join(home, "go", "mod"), out, err
	}},
	"cargo": {"cargo", func(ctx context.Context, t *testing.T, home, pkg string) (string, string, error) {
		project := filepath.Join(home, "project")
		write(t, filepath.Join(project, "Cargo.toml"), "[package]\nname = \"app\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[dependencies]\n"+pkg+" = { version = \"=1.0.0\", registry = \"shoal\" }\n")
		write(t, filepath.Join(project, "src", "lib.rs"), "")
		out, err := command(ctx, plainly(home), "cargo", "fetch", "--manifest-path", filepath.Join(project, "Cargo.toml"))
		return filepath.Join(home, ".cargo", "registry", "src"), out, err
	}},
	"nuget": {"nuget", func(ctx context.Context, t *testing.T, home, pkg string) (string, string, error) {
		to := filepath.Join(home, "packages")
		out, err := command(ctx, plainly(home, "TMPDIR="+home), "nuget-exe", "install", pkg, "-Version", "1.0.0", "-Source", "shoal", "-OutputDirectory", to, "-NonInteractive")
		return to, out, err
	}},
	"helm": {"helm", func(ctx context.Context, t *testing.T, home, pkg string) (string, string, error) {
		to := filepath.Join(home, "charts")
		out, err := command(ctx, plainly(home), "helm", "repo", "update", "shoal")
		if err != nil {
			return to, out, err
		}
		more, err := command(ctx, plainly(home), "helm", "pull", "shoal/"+pkg, "--version", "1.0.0", "--untar", "--untardir", to)
		return to, out + more, err
	}},
}

// setUp installs with a client that has no other configuration than what `shoal setup
// --write` gave it for an agent; setup prints no token, and the second time changes nothing.
func (c *formatted) setUp(t *testing.T, f format) {
	use, ok := configurations[f.name]
	if !ok {
		return
	}
	home := folder(t, "")
	agent := c.agents[1].gateway()
	setup := func() string {
		t.Helper()
		env := append(plainly(home), "SHOAL_TOKEN="+c.token)
		out, err := proc.Run(limit(t, time.Minute), nil, binary, env, "setup", use.client, "--repo", "acme/"+f.name, "--agent", "http://"+agent, "--write")
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(out, c.token) {
			t.Errorf("setup printed the token: %s", out)
		}
		return out
	}
	if out := setup(); !strings.Contains(out, "written") {
		t.Errorf("setup says %s", out)
	}
	if out := setup(); strings.Contains(out, "written") || strings.Contains(out, "changed    ") {
		t.Errorf("the second time setup says %s", out)
	}
	dir, out, err := use.get(limit(t, 3*time.Minute), t, home, f.pkg)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	files, err := tree(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, sum := range files {
		if sum == sumOf(payload(1)) {
			return
		}
	}
	t.Errorf("what was published did not come: %v\n%s", files, out)
}
