package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/module"
)

func init() {
	formats = append(formats, format{
		name: "go", tools: []string{"go"}, pkg: "corp.example/Shoal/demo", public: true,
		publish: publishGo, install: installGo, upload: uploadGo,
		reference: func(pkg, version string) string { return "/" + pkg + "@" + goVersion(version) },
		says:      []string{"versions of modules never change"},
	})
}

// goVersion keeps to major version 1: another one is another module.
func goVersion(version string) string {
	var major, minor, patch int
	if _, err := fmt.Sscanf(version, "%d.%d.%d", &major, &minor, &patch); err != nil {
		panic(err)
	}
	return fmt.Sprintf("v1.%d.%d", (major-1)*1000+minor, patch)
}

// uploadGo is a publish, for which the go command has no verb.
func uploadGo(t *testing.T, pkg, version string, seed uint64) request {
	t.Helper()
	path, err := module.EscapePath(pkg)
	if err != nil {
		t.Fatal(err)
	}
	v := goVersion(version)
	return request{
		method: http.MethodPut, path: "/" + path + "/@v/" + v + ".zip",
		body: zipped(t, map[string]string{
			pkg + "@" + v + "/go.mod":   "module " + pkg + "\n\ngo 1.21\n",
			pkg + "@" + v + "/demo.go":  "package demo\n",
			pkg + "@" + v + "/data.bin": string(payload(seed)),
		}),
	}
}

func publishGo(ctx context.Context, t *testing.T, p place, _, pkg, version string, seed uint64) (string, error) {
	status, body, err := p.raw(ctx, "go", uploadGo(t, pkg, version, seed))
	if err == nil && status >= 300 {
		err = fmt.Errorf("status %d", status)
	}
	return string(body), err
}

// installGo downloads without a token, which the go command sends over TLS only.
func installGo(ctx context.Context, t *testing.T, p place, home, pkg, version string) (map[string]string, string, error) {
	query := pkg + "@latest"
	if version != "" {
		query = pkg + "@" + goVersion(version)
	}
	host, _, _ := strings.Cut(pkg, "/")
	out, err := command(ctx, []string{
		"HOME=" + home, "GOPATH=" + home, "GOMODCACHE=" + filepath.Join(home, "mod"), "GOCACHE=" + filepath.Join(home, "cache"), "GOENV=off",
		"GOFLAGS=-modcacherw", "GOPROXY=" + p.url("go"), "GONOSUMDB=" + host, "GOTOOLCHAIN=local", "GOWORK=off", "GO111MODULE=on",
	}, "go", "mod", "download", "-json", query)
	if err != nil {
		return nil, out, err
	}
	var got struct{ Dir, Error string }
	if err := json.Unmarshal([]byte(out), &got); err != nil || got.Error != "" {
		return nil, out, fmt.Errorf("go mod download: %s %v", got.Error, err)
	}
	files, err := tree(got.Dir)
	return files, out, err
}
