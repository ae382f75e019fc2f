package limits_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/shoal-registry/shoal/node/limits"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/limit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var configured = limit.Limits{Up: 10e6, WANDown: 5e6, Tenants: map[string]int64{"acme": 2e6}}

func config(t *testing.T, file string) limits.Config {
	t.Helper()
	b, err := limit.New(limit.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return limits.Config{Configured: configured, Budgets: b, File: file, Write: os.WriteFile, Log: slog.New(slog.DiscardHandler)}
}

func open(t *testing.T, c limits.Config) *limits.Keeper {
	t.Helper()
	k, err := limits.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func to(rate int64) *int64 { return &rate }

func inForce(b *limit.Budgets) limits.Rates {
	all := limits.Rates{}
	for _, r := range b.Limits().List() {
		all[r.Budget] = r.BytesPerSec
	}
	return all
}

func expect(t *testing.T, what string, got, want limits.Rates) {
	t.Helper()
	if !maps.Equal(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// Changes are in force at once, stay over a restart and over another configuration,
// and can be taken back one by one and all.
func TestChangesStay(t *testing.T) {
	file := filepath.Join(t.TempDir(), "limits.json")
	c := config(t, file)
	k := open(t, c)
	expect(t, "configured", inForce(c.Budgets), limits.Rates{"up": 10e6, "wan_down": 5e6, "tenants.acme": 2e6})
	if _, err := k.Change(limits.Changes{"up": to(20e6), "wan_down": to(0), "tenants.acme": to(0), "tenants.beta": to(3e6), "classes.prewarm": to(1e6)}); err != nil {
		t.Fatal(err)
	}
	changed := limits.Rates{"up": 20e6, "tenants.beta": 3e6, "classes.prewarm": 1e6}
	expect(t, "changed", inForce(c.Budgets), changed)

	c = config(t, file)
	c.Configured = limit.Limits{Up: 1e6, Down: 7e6}
	k = open(t, c)
	want := maps.Clone(changed)
	want["down"] = 7e6
	expect(t, "after a restart with another configuration", inForce(c.Budgets), want)
	v, err := k.Change(limits.Changes{"up": nil, "tenants.beta": nil, "tenants.never": nil})
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "taken back", inForce(c.Budgets), limits.Rates{"up": 1e6, "down": 7e6, "classes.prewarm": 1e6})
	expect(t, "shown", v.Limits, inForce(c.Budgets))
	expect(t, "shown as changed", v.Changed, limits.Rates{"wan_down": 0, "tenants.acme": 0, "classes.prewarm": 1e6})
	expect(t, "shown as configured", v.Configured, limits.Rates{"up": 1e6, "down": 7e6})
	if _, err := k.Reset(); err != nil {
		t.Fatal(err)
	}
	c = config(t, file)
	open(t, c)
	expect(t, "after a reset", inForce(c.Budgets), limits.Rates{"up": 10e6, "wan_down": 5e6, "tenants.acme": 2e6})
}

// A change with a fault in it changes nothing, nor does one that cannot be kept.
func TestFaultsChangeNothing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "limits.json")
	c := config(t, file)
	k := open(t, c)
	before := inForce(c.Budgets)
	for name, changes := range map[string]limits.Changes{
		"no budget":            {"up": to(20e6), "sideways": to(1e6)},
		"no budget taken back": {"up": to(20e6), "sideways": nil},
		"too small":            {"up": to(20e6), "down": to(10)},
		"negative":             {"down": to(-1)},
		"no class":             {"classes.slow": to(1e6)},
		"no tenant":            {"tenants.": to(1e6)},
	} {
		if _, err := k.Change(changes); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	many := limits.Changes{}
	for i := range limit.MaxTenants + 1 {
		many["tenants.t"+strings.Repeat("a", i%50)+strings.Repeat("b", i/50)] = to(1e6)
	}
	if _, err := k.Change(many); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("too many tenants: %v", err)
	}
	c.Write = func(string, []byte, os.FileMode) error { return errors.New("disk full") }
	failing := open(t, c)
	if _, err := failing.Change(limits.Changes{"up": to(20e6)}); err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("a change that cannot be kept: %v", err)
	}
	expect(t, "after faults", inForce(c.Budgets), before)
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file was written: %v", err)
	}
}

func TestDamagedFile(t *testing.T) {
	for _, content := range []string{"", "{", `{"up": "fast"}`, `{"up": 5}`, `{"sideways": 1000000}`, `[1]`} {
		file := filepath.Join(t.TempDir(), "limits.json")
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := limits.Open(config(t, file)); !errors.Is(err, meta.ErrCorrupt) || !strings.Contains(err.Error(), file) {
			t.Errorf("%q: %v", content, err)
		}
	}
	file := filepath.Join(t.TempDir(), "limits.json")
	if err := os.WriteFile(file, []byte("null"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, config(t, file)).Change(limits.Changes{"up": to(2e6)}); err != nil {
		t.Error(err)
	}
}

func serve(t *testing.T) (*limits.Keeper, limits.Client) {
	t.Helper()
	k := open(t, config(t, filepath.Join(t.TempDir(), "limits.json")))
	s := httptest.NewServer(k.Handler())
	t.Cleanup(s.Close)
	return k, limits.Client{Ops: strings.TrimPrefix(s.URL, "http://")}
}

func TestClient(t *testing.T) {
	_, c := serve(t)
	v, err := c.View(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "seen", v.Limits, limits.Rates{"up": 10e6, "wan_down": 5e6, "tenants.acme": 2e6})
	if v, err = c.Change(t.Context(), limits.Changes{"up": to(0), "down": to(4e6)}); err != nil {
		t.Fatal(err)
	}
	expect(t, "changed", v.Limits, limits.Rates{"down": 4e6, "wan_down": 5e6, "tenants.acme": 2e6})
	if v, err = c.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	expect(t, "reset", v.Limits, limits.Rates{"up": 10e6, "wan_down": 5e6, "tenants.acme": 2e6})
	if _, err = c.Change(t.Context(), limits.Changes{"sideways": to(1e6)}); !errors.Is(err, meta.ErrInvalid) || !strings.Contains(err.Error(), `no budget "sideways"`) {
		t.Errorf("a budget that is none: %v", err)
	}
	if _, err = (limits.Client{Ops: "127.0.0.1:1"}).View(t.Context()); !errors.Is(err, meta.ErrUnavailable) || !strings.Contains(err.Error(), "--ops") {
		t.Errorf("nobody there: %v", err)
	}
	if _, err = (limits.Client{Ops: "::bad"}).View(t.Context()); err == nil {
		t.Error("no address, no error")
	}
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	if _, err = (limits.Client{Ops: strings.TrimPrefix(other.URL, "http://")}).View(t.Context()); err == nil || !strings.Contains(err.Error(), "private listener") {
		t.Errorf("another server: %v", err)
	}
}

// Who is not on the host, or was led here by a web page, changes nothing.
func TestWhoMayChange(t *testing.T) {
	k := open(t, config(t, filepath.Join(t.TempDir(), "limits.json")))
	for name, c := range map[string]struct {
		method, from, host, kind, body string
		want                           int
	}{
		"the operator":        {"PATCH", "127.0.0.1:5", "127.0.0.1:7072", "application/json", `{"up": 3000000}`, 200},
		"over IPv6":           {"PATCH", "[::1]:5", "[::1]:7072", "application/json; charset=utf-8", `{"up": 3000000}`, 200},
		"reset":               {"DELETE", "127.0.0.1:5", "localhost:7072", "", "", 200},
		"another host":        {"PATCH", "10.1.2.3:5", "10.1.2.4:7072", "application/json", `{"up": 3000000}`, 403},
		"another host resets": {"DELETE", "10.1.2.3:5", "10.1.2.4:7072", "", "", 403},
		"another host looks":  {"GET", "10.1.2.3:5", "10.1.2.4:7072", "", "", 200},
		"a name":              {"PATCH", "127.0.0.1:5", "evil.example:7072", "application/json", `{"up": 3000000}`, 403},
		"a form":              {"PATCH", "127.0.0.1:5", "127.0.0.1:7072", "text/plain", `{"up": 3000000}`, 415},
		"a method":            {"POST", "127.0.0.1:5", "127.0.0.1:7072", "application/json", `{}`, 405},
		"no JSON":             {"PATCH", "127.0.0.1:5", "127.0.0.1:7072", "application/json", `up=3`, 400},
		"endless":             {"PATCH", "127.0.0.1:5", "127.0.0.1:7072", "application/json", `{"` + strings.Repeat("a", 1<<20) + `": 1}`, 400},
	} {
		r := httptest.NewRequestWithContext(context.Background(), c.method, limits.Path, strings.NewReader(c.body))
		r.RemoteAddr, r.Host = c.from, c.host
		r.Header.Set("Content-Type", c.kind)
		w := httptest.NewRecorder()
		k.Handler().ServeHTTP(w, r)
		body, _ := io.ReadAll(w.Body)
		if w.Code != c.want || w.Code != 200 && !strings.Contains(string(body), `{"error":`) {
			t.Errorf("%s: %d %s", name, w.Code, body)
		}
	}
}
