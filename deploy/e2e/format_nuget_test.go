package e2e

import (
	"bytes"
	"context"
	"fmt"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"testing"
)

func init() {
	formats = append(formats, format{
		name: "nuget", tools: []string{"mono", "nuget-exe"}, pkg: "Shoal.E2E.Demo",
		publish: publishNuGet, install: installNuGet, upload: uploadNuGet,
		reference: func(pkg, version string) string { return "/" + pkg + "@" + version },
		says:      []string{"conflict"},
	})
}

// nupkgOf makes a package with a file of the seed's payload.
func nupkgOf(t *testing.T, pkg, version string, seed uint64) []byte {
	t.Helper()
	return zipped(t, map[string]string{
		pkg + ".nuspec": fmt.Sprintf(`<?xml version="1.0" encoding="utf-8"?>
<package xmlns="http://schemas.microsoft.com/packaging/2013/05/nuspec.xsd"><metadata>
<id>%s</id><version>%s</version><authors>e2e</authors><description>A test.</description></metadata></package>`, pkg, version),
		"content/data.bin": string(payload(seed)),
	})
}

// nuget runs nuget.exe on mono with a home of its own, of which all its caches are.
func nuget(ctx context.Context, home string, args ...string) (string, error) {
	return command(ctx, []string{"HOME=" + home, "XDG_DATA_HOME=" + home + "/data", "XDG_CONFIG_HOME=" + home + "/config", "TMPDIR=" + home},
		"nuget-exe", append(args, "-NonInteractive", "-ForceEnglishOutput")...)
}

// nugetConfig names the repository as the only source, with credentials for it.
func nugetConfig(t *testing.T, home, url, token string) string {
	t.Helper()
	credentials := ""
	if token != "" {
		credentials = fmt.Sprintf(`<packageSourceCredentials><shoal><add key="Username" value="e2e"/><add key="ClearTextPassword" value="%s"/></shoal></packageSourceCredentials>`, token)
	}
	file := filepath.Join(home, "nuget.config")
	write(t, file, fmt.Sprintf(`<?xml version="1.0" encoding="utf-8"?>
<configuration><packageSources><clear/><add key="shoal" value="%s"/></packageSources>%s</configuration>`, url, credentials))
	return file
}

// publishNuGet packs with the client, and pushes with the token as API key.
func publishNuGet(ctx context.Context, t *testing.T, p place, home, pkg, version string, seed uint64) (string, error) {
	if err := os.WriteFile(filepath.Join(home, "data.bin"), payload(seed), 0o600); err != nil {
		t.Fatal(err)
	}
	spec := filepath.Join(home, pkg+".nuspec")
	write(t, spec, fmt.Sprintf(`<?xml version="1.0" encoding="utf-8"?>
<package xmlns="http://schemas.microsoft.com/packaging/2013/05/nuspec.xsd"><metadata>
<id>%s</id><version>%s</version><authors>e2e</authors><description>A test.</description></metadata>
<files><file src="data.bin" target="content/data.bin"/></files></package>`, pkg, version))
	packed, err := nuget(ctx, home, "pack", spec, "-OutputDirectory", home, "-NoDefaultExcludes")
	if err != nil {
		return packed, err
	}
	index := p.url("nuget") + "/v3/index.json"
	args := []string{"push", filepath.Join(home, pkg+"."+version+".nupkg"), "-Source", index, "-ConfigFile", nugetConfig(t, home, index, p.token)}
	if p.token != "" {
		args = append(args, "-ApiKey", p.token)
	}
	pushed, err := nuget(ctx, home, args...)
	return packed + pushed, err
}

func installNuGet(ctx context.Context, t *testing.T, p place, home, pkg, version string) (map[string]string, string, error) {
	to := filepath.Join(home, "packages")
	args := []string{"install", pkg, "-ConfigFile", nugetConfig(t, home, p.url("nuget")+"/v3/index.json", p.token), "-OutputDirectory", to, "-NoCache", "-DirectDownload"}
	if version != "" {
		args = append(args, "-Version", version)
	}
	out, err := nuget(ctx, home, args...)
	if err != nil {
		return nil, out, err
	}
	files, err := tree(to)
	return files, out, err
}

func uploadNuGet(t *testing.T, pkg, version string, seed uint64) request {
	var b bytes.Buffer
	form := multipart.NewWriter(&b)
	part, err := form.CreateFormFile("package", "package.nupkg")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := part.Write(nupkgOf(t, pkg, version, seed)); err != nil {
		t.Fatal(err)
	}
	if err := form.Close(); err != nil {
		t.Fatal(err)
	}
	return request{method: http.MethodPut, path: "/v3/package/", header: http.Header{"Content-Type": {form.FormDataContentType()}}, body: b.Bytes()}
}
