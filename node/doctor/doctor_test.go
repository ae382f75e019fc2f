package doctor_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/node/doctor"
)

func find(t *testing.T, findings []doctor.Finding, check string) doctor.Finding {
	t.Helper()
	for _, f := range findings {
		if f.Check == check {
			return f
		}
	}
	t.Fatalf("no finding of %q in %+v", check, findings)
	return doctor.Finding{}
}

func TestDataDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(dir, "open")
	if err := os.Mkdir(open, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, dir string
		level     doctor.Level
	}{
		{"good", dir, doctor.OK},
		{"absent", filepath.Join(dir, "absent"), doctor.Warn},
		{"a file", file, doctor.Fail},
		{"open to others", open, doctor.Warn},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := find(t, doctor.Run(t.Context(), doctor.Local(c.dir)), "data directory")
			if f.Level != c.level {
				t.Errorf("got %+v, want level %s", f, c.level)
			}
			if f.Level != doctor.OK && f.Advice == "" {
				t.Errorf("%+v gives no advice", f)
			}
		})
	}
}

func TestReady(t *testing.T) {
	ops := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/readyz" {
			http.NotFound(w, r)
			return
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		w.Write([]byte(`{"ready":false,"checks":[{"name":"metadata","ok":false,"detail":"no leader"},{"name":"store","ok":true}]}`))
	}))
	defer ops.Close()
	findings := doctor.Ready(t.Context(), ops.Client(), strings.TrimPrefix(ops.URL, "http://"))
	if f := find(t, findings, "node: metadata"); f.Level != doctor.Fail || f.Detail != "no leader" {
		t.Errorf("got %+v", f)
	}
	if f := find(t, findings, "node: store"); f.Level != doctor.OK {
		t.Errorf("got %+v", f)
	}
	if doctor.Worst(findings) != doctor.Fail {
		t.Error("the worst is not fail")
	}
	ops.Close()
	if f := find(t, doctor.Ready(t.Context(), http.DefaultClient, strings.TrimPrefix(ops.URL, "http://")), "node"); f.Level != doctor.Fail {
		t.Errorf("a node that is down: %+v", f)
	}
}
