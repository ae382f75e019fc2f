package e2e

import (
	"context"
	endian "encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"testing"
)

func init() {
	formats = append(formats, format{
		name: "cargo", tools: []string{"cargo"}, pkg: "Shoal_Demo",
		publish: publishCargo, install: installCargo, upload: uploadCargo,
		reference: func(pkg, version string) string { return "/" + pkg + "@" + version },
		says:      []string{"already exists"},
	})
}

func crateManifest(pkg, version string) string {
	return fmt.Sprintf("[package]\nname = %q\nversion = %q\nedition = \"2021\"\ndescription = \"made by a test\"\nlicense = \"MIT\"\n", pkg, version)
}

// uploadCargo is what cargo sends: metadata and crate, each behind its length.
func uploadCargo(t *testing.T, pkg, version string, seed uint64) request {
	t.Helper()
	about, err := json.Marshal(map[string]any{"name": pkg, "vers": version, "deps": []string{}, "features": map[string]string{}})
	if err != nil {
		t.Fatal(err)
	}
	folder := pkg + "-" + version + "/"
	crate := tgz(t, map[string]string{folder + "Cargo.toml": crateManifest(pkg, version), folder + "src/lib.rs": "", folder + "data.bin": string(payload(seed))})
	body := append(endian.LittleEndian.AppendUint32(nil, uint32(len(about))), about...)
	body = append(endian.LittleEndian.AppendUint32(body, uint32(len(crate))), crate...)
	return request{method: http.MethodPut, path: "/api/v1/crates/new", body: body}
}

// cargoEnv is a home of its own for cargo, which knows one registry and its token.
func cargoEnv(t *testing.T, p place, home string) []string {
	t.Helper()
	write(t, filepath.Join(home, "config.toml"), fmt.Sprintf("[registries.shoal]\nindex = \"sparse+%s/\"\n[registry]\nglobal-credential-providers = [\"cargo:token\"]\n[net]\nretry = 0\n", p.url("cargo")))
	return []string{"CARGO_HOME=" + home, "CARGO_REGISTRIES_SHOAL_TOKEN=" + p.token}
}

// publishCargo returns when cargo has seen the crate in the index.
func publishCargo(ctx context.Context, t *testing.T, p place, home, pkg, version string, seed uint64) (string, error) {
	// cargo reads config.json before it pushes, so that its first push makes no
	// repository of a lone shoal.
	if status, _, err := p.raw(ctx, "cargo", request{method: http.MethodGet, path: "/config.json"}); err != nil {
		return "", err
	} else if status == http.StatusNotFound {
		if status, body, err := p.raw(ctx, "cargo", uploadCargo(t, "opening", "0.0.1", 0)); err != nil || status >= 300 {
			return "", fmt.Errorf("the first publish: %d %s %v", status, body, err)
		}
	}
	project := filepath.Join(home, "project")
	write(t, filepath.Join(project, "Cargo.toml"), crateManifest(pkg, version))
	write(t, filepath.Join(project, "src", "lib.rs"), "")
	write(t, filepath.Join(project, "data.bin"), string(payload(seed)))
	return command(ctx, cargoEnv(t, p, home), "cargo", "publish", "--registry", "shoal", "--allow-dirty", "--no-verify", "--manifest-path", filepath.Join(project, "Cargo.toml"))
}

func installCargo(ctx context.Context, t *testing.T, p place, home, pkg, version string) (map[string]string, string, error) {
	wanted := "*"
	if version != "" {
		wanted = "=" + version
	}
	project := filepath.Join(home, "project")
	write(t, filepath.Join(project, "Cargo.toml"), fmt.Sprintf("[package]\nname = \"app\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[dependencies]\n%s = { version = %q, registry = \"shoal\" }\n", pkg, wanted))
	write(t, filepath.Join(project, "src", "lib.rs"), "")
	out, err := command(ctx, cargoEnv(t, p, home), "cargo", "fetch", "--manifest-path", filepath.Join(project, "Cargo.toml"))
	if err != nil {
		return nil, out, err
	}
	// src/REGISTRY/CRATE-VERSION, where REGISTRY has the address that differs by gateway.
	folders, err := filepath.Glob(filepath.Join(home, "registry", "src", "*"))
	if err != nil || len(folders) != 1 {
		return nil, out, fmt.Errorf("cargo unpacked into %v, %v", folders, err)
	}
	files, err := tree(folders[0])
	return files, out, err
}
