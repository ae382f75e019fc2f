package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/proc"
)

// curl is the client of the generic protocol and of anyone who debugs the OCI one.
func TestCurl(t *testing.T) {
	needTools(t, "curl")
	d := startDev(t, "", "--regions", "2", "--agents", "1")
	ctx := limit(t, 2*time.Minute)
	dir := folder(t, "")
	file := filepath.Join(dir, "file")
	content := make([]byte, 3<<20)
	if _, err := image.Random(seed()).Read(content); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	curl := func(t *testing.T, args ...string) string {
		t.Helper()
		out, err := command(ctx, []string{"HOME=" + dir}, "curl", append([]string{"--silent", "--show-error"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	status := func(t *testing.T, want string, args ...string) {
		t.Helper()
		if got := curl(t, append([]string{"--output", "/dev/null", "--write-out", "%{http_code}"}, args...)...); got != want {
			t.Errorf("curl %s: %s, want %s", strings.Join(args, " "), got, want)
		}
	}
	first := "http://" + proc.Address(d.Servers[0].Gateway)
	url := first + "/generic/acme/files/dir/file.bin"

	t.Run("generic put and get", func(t *testing.T) {
		curl(t, "--fail", "--upload-file", file, url)
		for _, p := range pullers(d) {
			out := filepath.Join(dir, "out")
			curl(t, "--fail", "--output", out, "http://"+proc.Address(p.node.Gateway)+"/generic/acme/files/dir/file.bin")
			if got, err := os.ReadFile(out); err != nil || image.DigestOf(got) != image.DigestOf(content) {
				t.Errorf("%s: %d bytes, %v", p.name, len(got), err)
			}
		}
	})
	t.Run("generic ranges and conditions", func(t *testing.T) {
		if got := curl(t, "--fail", "--range", "1000-1099", url); got != string(content[1000:1100]) {
			t.Errorf("range of %d bytes", len(got))
		}
		status(t, "206", "--range", "0-0", url)
		status(t, "416", "--range", "9999999-", url)
		status(t, "200", "--head", url)
		headers := curl(t, "--fail", "--head", url)
		var etag string
		for line := range strings.Lines(headers) {
			if key, value, _ := strings.Cut(line, ":"); strings.EqualFold(key, "ETag") {
				etag = strings.TrimSpace(value)
			}
		}
		if etag == "" {
			t.Fatalf("no ETag in %s", headers)
		}
		status(t, "304", "--header", "If-None-Match: "+etag, url)
		status(t, "412", "--upload-file", file, "--header", "If-None-Match: *", url)
		status(t, "404", first+"/generic/acme/files/dir/nothing")
	})
	t.Run("generic delete", func(t *testing.T) {
		other := first + "/generic/acme/files/other"
		curl(t, "--fail", "--upload-file", file, other)
		curl(t, "--fail", "--request", "DELETE", other)
		status(t, "404", other)
		status(t, "200", url)
	})
	t.Run("oci by hand", func(t *testing.T) {
		base := first + "/v2/acme/curl/image"
		status(t, "200", first+"/v2/")
		headers := curl(t, "--fail", "--head", "--request", "POST", base+"/blobs/uploads/")
		var location string
		for line := range strings.Lines(headers) {
			if key, value, _ := strings.Cut(line, ":"); strings.EqualFold(key, "Location") {
				location = strings.TrimSpace(value)
			}
		}
		if strings.HasPrefix(location, "/") {
			location = first + location
		}
		join := "?"
		if strings.Contains(location, "?") {
			join = "&"
		}
		status(t, "201", "--upload-file", file, location+join+"digest="+image.DigestOf(content))
		blob := base + "/blobs/" + image.DigestOf(content)
		if got := curl(t, "--fail", "--range", "2000000-2000009", blob); got != string(content[2000000:2000010]) {
			t.Errorf("range of a blob: %q", got)
		}
		if headers := curl(t, "--fail", "--head", blob); !strings.Contains(strings.ToLower(headers), "immutable") {
			t.Errorf("a blob's headers do not say immutable:\n%s", headers)
		}
	})
}

// oras attaches an artifact to an image and finds it again.
func TestReferrers(t *testing.T) {
	needTools(t, "oras")
	d := startDev(t, "", "--regions", "2")
	ctx := limit(t, 2*time.Minute)
	dir := folder(t, "")
	img := makeImage(t, 1, 1000)
	if err := registry(d.Servers[0], "").Push(ctx, "acme/refs/image", "1", img); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sbom.json"), []byte(`{"bomFormat":"CycloneDX"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	oras := func(args ...string) string {
		t.Helper()
		out, err := command(ctx, []string{"HOME=" + dir}, "sh", append([]string{"-c", `cd "$HOME" && exec oras "$@"`, "oras"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	subject := proc.Address(d.Servers[0].Gateway) + "/acme/refs/image:1"
	out := oras("attach", "--plain-http", "--artifact-type", "application/vnd.cyclonedx+json", subject, "sbom.json:application/json")
	digest, err := lastDigest(out)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range d.Servers {
		there := proc.Address(s.Gateway) + "/acme/refs/image@" + img.Digest()
		if out := oras("discover", "--plain-http", "--format", "json", there); !strings.Contains(out, digest) {
			t.Errorf("%s does not find %s:\n%s", s.Gateway, digest, out)
		}
	}
}
