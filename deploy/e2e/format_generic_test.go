package e2e

import (
	"context"
	"net/http"
	"path/filepath"
	"testing"
)

func init() {
	formats = append(formats, format{
		name: "generic", tools: []string{"curl"}, pkg: "tool", noLatest: true, files: true,
		publish: putGeneric, install: getGeneric,
		reference: func(pkg, version string) string { return "/" + pkg + "/" + version + ".bin" },
		says:      []string{"409", "412"},
		upload: func(_ *testing.T, pkg, version string, seed uint64) request {
			return request{method: http.MethodPut, path: "/" + pkg + "/" + version + ".bin", header: http.Header{"If-None-Match": {"*"}}, body: payload(seed)}
		},
	})
}

// putGeneric puts what is not there yet.
func putGeneric(ctx context.Context, t *testing.T, p place, home, pkg, version string, seed uint64) (string, error) {
	file := filepath.Join(home, "file")
	write(t, file, string(payload(seed)))
	return command(ctx, []string{"HOME=" + home}, "curl", "--silent", "--show-error", "--fail", "--user", "e2e:"+p.token,
		"--header", "If-None-Match: *", "--upload-file", file, p.url("generic")+"/"+pkg+"/"+version+".bin")
}

func getGeneric(ctx context.Context, _ *testing.T, p place, home, pkg, version string) (map[string]string, string, error) {
	out, err := command(ctx, []string{"HOME=" + home}, "curl", "--silent", "--show-error", "--fail", "--user", "e2e:"+p.token,
		"--output", filepath.Join(home, "file"), p.url("generic")+"/"+pkg+"/"+version+".bin")
	if err != nil {
		return nil, out, err
	}
	files, err := tree(home)
	return files, out, err
}
