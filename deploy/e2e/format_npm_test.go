package e2e

import (
	"context"
	"crypto/sha1" //nolint:gosec // npm's shasum
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/proc"
)

func init() {
	formats = append(formats, format{
		name: "npm", tools: []string{"npm"}, pkg: "@e2e/shoal-demo",
		publish: publishNPM, install: installNPM, remove: removeNPM, upload: uploadNPM,
		reference: func(pkg, version string) string { return "/" + pkg + "@" + version },
		says:      []string{"cannot publish over the previously published version"},
	})
}

// nodeHome configures npm, pnpm and yarn in home for a repository, with caches of their
// own, and returns their environment.
func nodeHome(t *testing.T, p place, home string) []string {
	t.Helper()
	base := p.url("npm") + "/"
	rc := fmt.Sprintf("registry=%s\naudit=false\nfund=false\nupdate-notifier=false\nfetch-retries=0\nstore-dir=%s\n", base, filepath.Join(home, "store"))
	if p.token != "" {
		rc += fmt.Sprintf("%s:_authToken=%s\n", strings.TrimPrefix(base, "http:"), p.token)
	}
	write(t, filepath.Join(home, ".npmrc"), rc)
	return []string{
		"HOME=" + home, "XDG_CACHE_HOME=" + filepath.Join(home, "xdg"), "npm_config_cache=" + filepath.Join(home, "cache"),
		"npm_config_userconfig=" + filepath.Join(home, ".npmrc"), "YARN_CACHE_FOLDER=" + filepath.Join(home, "yarn"), "CI=1",
	}
}

// nodePackage lays a package out in a folder of home.
func nodePackage(t *testing.T, home, pkg, version string, seed uint64) string {
	t.Helper()
	dir := filepath.Join(home, "package-"+version)
	write(t, filepath.Join(dir, "package.json"), nodeManifest(pkg, version))
	write(t, filepath.Join(dir, "data.bin"), string(payload(seed)))
	return dir
}

func nodeManifest(pkg, version string) string {
	return fmt.Sprintf(`{"name":%q,"version":%q,"description":"made by a test","license":"MIT"}`, pkg, version)
}

func publishNPM(ctx context.Context, t *testing.T, p place, home, pkg, version string, seed uint64) (string, error) {
	env := nodeHome(t, p, home)
	return command(ctx, env, "npm", "publish", nodePackage(t, home, pkg, version, seed))
}

func installNPM(ctx context.Context, t *testing.T, p place, home, pkg, version string) (map[string]string, string, error) {
	env := nodeHome(t, p, home)
	if version != "" {
		version = "@" + version
	}
	project := filepath.Join(home, "project")
	out, err := command(ctx, env, "npm", "install", "--prefix", project, pkg+version)
	if err != nil {
		return nil, out, err
	}
	files, err := tree(filepath.Join(project, "node_modules", filepath.FromSlash(pkg)))
	return files, out, err
}

func removeNPM(ctx context.Context, t *testing.T, p place, home, pkg, version string) (string, error) {
	return command(ctx, nodeHome(t, p, home), "npm", "unpublish", pkg+"@"+version)
}

func uploadNPM(t *testing.T, pkg, version string, seed uint64) request {
	t.Helper()
	ball := tgz(t, map[string]string{"package/package.json": nodeManifest(pkg, version), "package/data.bin": string(payload(seed))})
	s1, s512 := sha1.Sum(ball), sha512.Sum512(ball) //nolint:gosec // npm's shasum
	manifest := map[string]any{"name": pkg, "version": version, "dist": map[string]string{
		"shasum": hex.EncodeToString(s1[:]), "integrity": "sha512-" + base64.StdEncoding.EncodeToString(s512[:])}}
	body, err := json.Marshal(map[string]any{
		"_id": pkg, "name": pkg, "dist-tags": map[string]string{"latest": version}, "versions": map[string]any{version: manifest},
		"_attachments": map[string]any{pkg + "-" + version + ".tgz": map[string]any{
			"content_type": "application/octet-stream", "data": base64.StdEncoding.EncodeToString(ball), "length": len(ball)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return request{method: http.MethodPut, path: "/" + strings.ReplaceAll(pkg, "/", "%2f"), header: http.Header{"Content-Type": {"application/json"}}, body: body}
}

// nodeClients are those that speak to npm registries; each publishes a folder, and
// installs into a project.
var nodeClients = []struct {
	name             string
	publish, install func(version string) []string
}{
	{"npm", func(string) []string { return []string{"npm", "publish"} },
		func(pkg string) []string { return []string{"npm", "install", pkg} }},
	{"pnpm", func(string) []string { return []string{"pnpm", "publish", "--no-git-checks"} },
		func(pkg string) []string { return []string{"pnpm", "add", "--config.minimumReleaseAge=0", pkg} }},
	{"yarn", func(version string) []string {
		return []string{"yarn", "publish", "--new-version", version, "--non-interactive", "--no-git-tag-version"}
	}, func(pkg string) []string { return []string{"yarn", "add", "--non-interactive", pkg} }},
}

// inside runs a command in a folder.
func inside(ctx context.Context, env []string, dir string, line []string) (string, error) {
	return command(ctx, env, "sh", append([]string{"-c", `cd "$0" && exec "$@"`, dir}, line...)...)
}

// TestNodeClients: npm, pnpm and yarn publish, and each installs what each published; then
// what npm does besides: tags, deprecation, search, audit, ping, and taking back.
func TestNodeClients(t *testing.T) {
	if _, err := exec.LookPath("npm"); err != nil {
		skip(t, "no npm on this machine")
	}
	d := startDev(t, "")
	p := place{gateway: proc.Address(d.Servers[0].Gateway), repository: "acme/node", token: d.AdminToken}
	ctx := limit(t, 5*time.Minute)
	var published []string
	for i, client := range nodeClients {
		if _, err := exec.LookPath(client.name); err != nil {
			t.Logf("no %s on this machine", client.name)
			continue
		}
		home, pkg := folder(t, ""), "@e2e/by-"+client.name
		env := nodeHome(t, p, home)
		for _, version := range []string{"1.0.0", "1.1.0"} {
			if out, err := inside(ctx, env, nodePackage(t, home, pkg, version, uint64(i)), client.publish(version)); err != nil {
				t.Fatalf("%s publishes: %v\n%s", client.name, err, out)
			}
		}
		published = append(published, pkg)
	}
	for _, client := range nodeClients {
		if _, err := exec.LookPath(client.name); err != nil {
			continue
		}
		for i, pkg := range published {
			home := folder(t, "")
			env, project := nodeHome(t, p, home), filepath.Join(home, "project")
			write(t, filepath.Join(project, "package.json"), `{"name":"project","version":"1.0.0","license":"MIT","private":true}`)
			if out, err := inside(ctx, env, project, client.install(pkg)); err != nil {
				t.Fatalf("%s installs %s: %v\n%s", client.name, pkg, err, out)
			}
			// pnpm links packages in.
			real, err := filepath.EvalSymlinks(filepath.Join(project, "node_modules", filepath.FromSlash(pkg)))
			if err != nil {
				t.Fatalf("%s installed no %s: %v", client.name, pkg, err)
			}
			files, err := tree(real)
			if err != nil || !slices.Contains(slices.Collect(maps.Values(files)), sumOf(payload(uint64(i)))) {
				t.Errorf("%s installed of %s %v, %v", client.name, pkg, files, err)
			}
		}
	}

	env := nodeHome(t, p, folder(t, ""))
	for _, step := range []struct {
		line []string
		says string // "" says nothing
	}{
		{[]string{"npm", "dist-tag", "add", "@e2e/by-npm@1.0.0", "stable"}, "+stable: @e2e/by-npm@1.0.0"},
		{[]string{"npm", "dist-tag", "ls", "@e2e/by-npm"}, "latest: 1.1.0\nstable: 1.0.0"},
		{[]string{"npm", "dist-tag", "rm", "@e2e/by-npm", "stable"}, "-stable: @e2e/by-npm@1.0.0"},
		{[]string{"npm", "deprecate", "@e2e/by-npm@<1.1", "use 1.1"}, ""},
		{[]string{"npm", "view", "@e2e/by-npm@1.0.0", "deprecated"}, "use 1.1"},
		{[]string{"npm", "search", "--parseable", "by-npm"}, "@e2e/by-npm\tmade by a test"},
		{[]string{"npm", "whoami"}, "admin"},
		{[]string{"npm", "ping"}, "PONG"},
		{[]string{"npm", "unpublish", "@e2e/by-npm@1.1.0"}, "- @e2e/by-npm@1.1.0"},
		{[]string{"npm", "view", "@e2e/by-npm", "dist-tags.latest"}, "1.0.0"},
		{[]string{"npm", "unpublish", "--force", "@e2e/by-npm"}, "- @e2e/by-npm"},
	} {
		out, err := command(ctx, env, step.line[0], step.line[1:]...)
		if err != nil || !strings.Contains(out, step.says) {
			t.Errorf("%s: %v\n%s\nwant %q", strings.Join(step.line, " "), err, out, step.says)
		}
	}
	if out, err := command(ctx, env, "npm", "view", "@e2e/by-npm"); err == nil || !strings.Contains(out, "E404") {
		t.Errorf("what was unpublished is viewed: %v %s", err, out)
	}
}
