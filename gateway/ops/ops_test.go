package ops

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, checks ...Check) string {
	t.Helper()
	return startWith(t, Config{Checks: checks})
}

// startWith fills in what c leaves out.
func startWith(t *testing.T, c Config) string {
	t.Helper()
	registry := prometheus.NewRegistry()
	counter := prometheus.NewCounter(prometheus.CounterOpts{Name: "shoal_test_total", Help: "A test's."})
	registry.MustRegister(counter)
	c.Listen, c.Metrics, c.Log = "127.0.0.1:0", registry, slog.New(slog.DiscardHandler)
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return "http://" + s.Addr().String()
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestHealth(t *testing.T) {
	var ready error = errors.New("the roster is not here yet, wait for a server")
	base := start(t,
		Check{Name: "process", Live: true, Probe: func(context.Context) error { return nil }},
		Check{Name: "roster", Probe: func(context.Context) error { return ready }})
	if code, _ := get(t, base+"/livez"); code != http.StatusOK {
		t.Errorf("livez is %d though only a readiness check fails", code)
	}
	code, body := get(t, base+"/readyz")
	if code != http.StatusServiceUnavailable || !strings.Contains(body, "roster") {
		t.Errorf("readyz: %d %q", code, body)
	}
	code, body = get(t, base+"/readyz?verbose")
	var report Report
	if err := json.Unmarshal([]byte(body), &report); err != nil || code != http.StatusServiceUnavailable {
		t.Fatalf("verbose: %d %q: %v", code, body, err)
	}
	if len(report.Checks) != 2 || report.OK || !report.Checks[0].OK || report.Checks[1].Error != ready.Error() {
		t.Errorf("report: %+v", report)
	}
	ready = nil
	if code, body := get(t, base+"/readyz"); code != http.StatusOK || body != "ok\n" {
		t.Errorf("readyz after recovery: %d %q", code, body)
	}
}

// A probe that hangs fails its check, and is not piled up by further askers.
func TestHangingProbe(t *testing.T) {
	release := make(chan struct{})
	started := make(chan struct{}, 10)
	base := start(t, Check{Name: "disk", Probe: func(context.Context) error {
		started <- struct{}{}
		<-release
		return nil
	}})
	for range 2 {
		if code, body := get(t, base+"/readyz?verbose"); code != http.StatusServiceUnavailable || !strings.Contains(body, "no answer") {
			t.Errorf("hanging: %d %q", code, body)
		}
	}
	if n := len(started); n != 1 {
		t.Errorf("the probe was started %d times", n)
	}
	close(release)
}

func TestMetricsAndProfiles(t *testing.T) {
	base := start(t)
	if code, body := get(t, base+"/metrics"); code != http.StatusOK || !strings.Contains(body, "shoal_test_total") {
		t.Errorf("metrics: %d %q", code, body)
	}
	if code, _ := get(t, base+"/debug/pprof/goroutine?debug=1"); code != http.StatusOK {
		t.Errorf("pprof: %d", code)
	}
}

func TestNewRefuses(t *testing.T) {
	probe := func(context.Context) error { return nil }
	for name, checks := range map[string][]Check{
		"no name": {{Probe: probe}}, "no probe": {{Name: "a"}}, "twice": {{Name: "a", Probe: probe}, {Name: "a", Probe: probe}},
	} {
		_, err := New(Config{Listen: "127.0.0.1:0", Metrics: prometheus.NewRegistry(), Checks: checks, Log: slog.New(slog.DiscardHandler)})
		if !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestViews(t *testing.T) {
	calls := 0
	base := startWith(t, Config{Views: map[string]func() any{
		"swarm": func() any { calls++; return map[string]int{"roots": calls} },
		"odd":   func() any { return func() {} },
	}})
	for want := 1; want <= 2; want++ {
		if status, body := get(t, base+"/view/swarm"); status != http.StatusOK || body != `{"roots":`+strconv.Itoa(want)+`}` {
			t.Errorf("call %d: %d %s", want, status, body)
		}
	}
	if status, _ := get(t, base+"/view/none"); status != http.StatusNotFound {
		t.Errorf("a view that is not there: %d", status)
	}
	if status, body := get(t, base+"/view/odd"); status != http.StatusInternalServerError || !strings.Contains(body, "unsupported type") {
		t.Errorf("what is no JSON: %d %s", status, body)
	}
}
