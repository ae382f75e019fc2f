package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/proc"
)

func init() {
	formats = append(formats, format{
		name: "helm", tools: []string{"helm", "curl"}, pkg: "shoal-demo",
		publish: publishHelm, install: installHelm, upload: uploadHelm, remove: removeHelm,
		reference: func(pkg, version string) string { return "/" + pkg + ":" + version },
		says:      []string{"already exists"},
	})
}

// helmHome is where helm keeps what it keeps.
func helmHome(home string) []string {
	return []string{"HOME=" + home, "HELM_CACHE_HOME=" + filepath.Join(home, "cache"), "HELM_CONFIG_HOME=" + filepath.Join(home, "config"), "HELM_DATA_HOME=" + filepath.Join(home, "data")}
}

// publishHelm packs a chart with helm and sends it as ChartMuseum's users do.
func publishHelm(ctx context.Context, t *testing.T, p place, home, pkg, version string, seed uint64) (string, error) {
	chart := filepath.Join(home, "src", pkg)
	write(t, filepath.Join(chart, "Chart.yaml"), fmt.Sprintf("apiVersion: v2\nname: %s\nversion: %s\ndescription: made by a test\n", pkg, version))
	write(t, filepath.Join(chart, "files", "data.bin"), string(payload(seed)))
	out, err := command(ctx, helmHome(home), "helm", "package", chart, "-d", home)
	if err != nil {
		return out, err
	}
	sent, err := command(ctx, nil, "curl", "--silent", "--show-error", "--fail-with-body", "-u", "helm:"+p.token,
		"-F", "chart=@"+filepath.Join(home, pkg+"-"+version+".tgz"), p.url("helm")+"/api/charts")
	return out + sent, err
}

func installHelm(ctx context.Context, t *testing.T, p place, home, pkg, version string) (map[string]string, string, error) {
	env, to := helmHome(home), filepath.Join(home, "to")
	out, err := command(ctx, env, "helm", "repo", "add", "shoal", p.url("helm"), "--username", "helm", "--password", p.token)
	if err != nil {
		return nil, out, err
	}
	pull := []string{"pull", "shoal/" + pkg, "--untar", "--untardir", to}
	if version != "" {
		pull = append(pull, "--version", version)
	}
	pulled, err := command(ctx, env, "helm", pull...)
	if out += pulled; err != nil {
		return nil, out, err
	}
	files, err := tree(to)
	return files, out, err
}

func removeHelm(ctx context.Context, _ *testing.T, p place, _, pkg, version string) (string, error) {
	return command(ctx, nil, "curl", "--silent", "--show-error", "--fail-with-body", "-u", "helm:"+p.token, "-X", "DELETE", p.url("helm")+"/api/charts/"+pkg+"/"+version)
}

func uploadHelm(t *testing.T, pkg, version string, seed uint64) request {
	t.Helper()
	return request{method: http.MethodPost, path: "/api/charts", body: tgz(t, map[string]string{
		pkg + "/Chart.yaml":     fmt.Sprintf("apiVersion: v2\nname: %s\nversion: %s\n", pkg, version),
		pkg + "/files/data.bin": string(payload(seed)),
	})}
}

// A signed chart is verified by helm with the key of who signed it, from the index of an
// agent.
func TestHelmProvenance(t *testing.T) {
	needTools(t, "helm", "gpg", "curl")
	d := startDev(t, "", "--agents", "1")
	p := place{gateway: proc.Address(d.Servers[0].Gateway), repository: "acme/charts", token: d.AdminToken}
	ctx, home := limit(t, 3*time.Minute), folder(t, "")
	env := append(helmHome(home), "GNUPGHOME="+home)
	if err := os.Chmod(home, 0o700); err != nil {
		t.Fatal(err)
	}
	chart := filepath.Join(home, "src", "signed")
	write(t, filepath.Join(chart, "Chart.yaml"), "apiVersion: v2\nname: signed\nversion: 1.0.0\n")
	ring := filepath.Join(home, "ring.gpg")
	out, err := all(ctx, env,
		[]string{"gpg", "--batch", "--passphrase", "", "--quick-generate-key", "Tester <tester@example.com>", "rsa2048", "sign", "never"},
		[]string{"gpg", "--batch", "--output", ring, "--export-secret-keys"},
		[]string{"helm", "package", chart, "-d", home, "--sign", "--key", "Tester", "--keyring", ring},
		[]string{"curl", "--silent", "--show-error", "--fail-with-body", "-u", "helm:" + p.token, "-F", "chart=@" + filepath.Join(home, "signed-1.0.0.tgz"),
			"-F", "prov=@" + filepath.Join(home, "signed-1.0.0.tgz.prov"), p.url("helm") + "/api/charts"})
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	p.gateway = proc.Address(d.Agents[0].Gateway)
	out, err = all(ctx, env,
		[]string{"gpg", "--batch", "--yes", "--output", ring, "--export"},
		[]string{"helm", "repo", "add", "shoal", p.url("helm"), "--username", "helm", "--password", p.token},
		[]string{"helm", "pull", "shoal/signed", "--version", "1.0.0", "-d", filepath.Join(home), "--verify", "--keyring", ring})
	if err = has(out, "Signed by: Tester", err); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}
