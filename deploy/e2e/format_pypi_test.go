package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"mime/multipart"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func init() {
	formats = append(formats, format{
		name: "pypi", tools: []string{"twine", "pip3"}, pkg: "Shoal.E2E_Demo",
		publish: publishPyPI, install: installPyPI, upload: uploadPyPI,
		reference: func(pkg, version string) string { return "/" + pkg + ":" + version },
		says:      []string{"file already exists", "already been used"},
	})
}

var separators = regexp.MustCompile(`[-_.]+`)

// wheelOf makes a wheel by hand, without build tools.
func wheelOf(t *testing.T, pkg, version string, seed uint64) (name string, content []byte) {
	t.Helper()
	stem := strings.ToLower(separators.ReplaceAllString(pkg, "_")) + "-" + version
	info := stem + ".dist-info/"
	return stem + "-py3-none-any.whl", zipped(t, map[string]string{
		"shoal_e2e/data.bin": string(payload(seed)),
		info + "METADATA":    fmt.Sprintf("Metadata-Version: 2.1\nName: %s\nVersion: %s\nSummary: made by a test\nRequires-Python: >=3.7\n\nA test.\n", pkg, version),
		info + "WHEEL":       "Wheel-Version: 1.0\nGenerator: e2e\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
		info + "RECORD":      "shoal_e2e/data.bin,,\n" + info + "METADATA,,\n" + info + "WHEEL,,\n" + info + "RECORD,,\n",
	})
}

func publishPyPI(ctx context.Context, t *testing.T, p place, home, pkg, version string, seed uint64) (string, error) {
	name, content := wheelOf(t, pkg, version, seed)
	file := filepath.Join(home, name)
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return command(ctx, []string{"HOME=" + home, "TWINE_USERNAME=__token__", "TWINE_PASSWORD=" + p.token},
		"twine", "upload", "--non-interactive", "--disable-progress-bar", "--verbose", "--repository-url", p.url("pypi")+"/legacy/", file)
}

// installPyPI reads the index with the token in .netrc, in no URL.
func installPyPI(ctx context.Context, t *testing.T, p place, home, pkg, version string) (map[string]string, string, error) {
	host, _, err := net.SplitHostPort(p.gateway)
	if err != nil {
		t.Fatal(err)
	}
	netrc, site := filepath.Join(home, ".netrc"), filepath.Join(home, "site")
	if p.token != "" {
		write(t, netrc, fmt.Sprintf("machine %s login __token__ password %s\n", host, p.token))
	}
	if version != "" {
		pkg += "==" + version
	}
	out, err := command(ctx, []string{"HOME=" + home, "NETRC=" + netrc, "PIP_CONFIG_FILE=/dev/null"},
		"pip3", "install", "--no-input", "--no-cache-dir", "--no-deps", "--no-compile", "--disable-pip-version-check", "--retries", "0",
		"--index-url", p.url("pypi")+"/simple/", "--trusted-host", host, "--target", site, pkg)
	if err != nil {
		return nil, out, err
	}
	files, err := tree(site)
	return files, out, err
}

func uploadPyPI(t *testing.T, pkg, version string, seed uint64) request {
	t.Helper()
	name, content := wheelOf(t, pkg, version, seed)
	sum := sha256.Sum256(content)
	var b bytes.Buffer
	form := multipart.NewWriter(&b)
	for _, field := range [][2]string{
		{":action", "file_upload"}, {"protocol_version", "1"}, {"metadata_version", "2.1"}, {"name", pkg}, {"version", version},
		{"filetype", "bdist_wheel"}, {"pyversion", "py3"}, {"sha256_digest", hex.EncodeToString(sum[:])},
	} {
		if err := form.WriteField(field[0], field[1]); err != nil {
			t.Fatal(err)
		}
	}
	part, err := form.CreateFormFile("content", name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := part.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := form.Close(); err != nil {
		t.Fatal(err)
	}
	return request{method: http.MethodPost, path: "/legacy/", header: http.Header{"Content-Type": {form.FormDataContentType()}}, body: b.Bytes()}
}
