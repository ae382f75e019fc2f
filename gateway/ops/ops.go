// Package ops is a node's private listener: metrics, health, profiles.
//
//	/metrics      Prometheus text format
//	/livez        200 while the process works; a failure asks for a restart
//	/readyz       200 while the node should get traffic
//	/debug/pprof  profiles (net/http/pprof)
//	/view/NAME    what the node does, as JSON (Config.Views)
//	...           what the node adds (Config.Handlers)
//
// Health is a list of named checks; ?verbose answers each as JSON. The listener
// has no authentication and must not be reachable by clients.
//
// Start reading at New. Run owns the goroutines; a check that hangs past its
// deadline keeps its goroutine until it returns, and is not started again
// before.
package ops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Check is a named question about the node.
type Check struct {
	// Name is a short snake-case word: raft, disk, roster.
	Name string
	// Live checks belong to /livez too: when one fails, only a restart helps.
	Live bool
	// Probe returns nil, or why not, as a sentence that says what to do. It gets
	// two seconds.
	Probe func(context.Context) error
}

const (
	probeTimeout = 2 * time.Second
	drainTimeout = 5 * time.Second
)

// Config is what a Server is made of.
type Config struct {
	// Listen is host:port; port 0 takes any.
	Listen  string
	Metrics prometheus.Gatherer
	Checks  []Check
	// Views answer GET /view/NAME with their value as JSON. They read memory only.
	Views map[string]func() any
	// Handlers serve further patterns of http.ServeMux. What changes something has to
	// see for itself that the caller may.
	Handlers map[string]http.Handler
	Log      *slog.Logger
}

// Server serves the private listener.
type Server struct {
	listener net.Listener
	checks   []*check
	http     *http.Server
}

// check keeps a hanging probe from being started over and over.
type check struct {
	Check
	mu      sync.Mutex
	running chan struct{} // closed when the probe under way ends; nil when none is
	last    error         // of the probe that ended last
}

// New checks c and opens the port.
//
// Errors: meta.ErrInvalid for a check without name or probe, or a name twice;
// those of listening.
func New(c Config) (*Server, error) {
	s := &Server{}
	seen := map[string]bool{}
	for _, k := range c.Checks {
		if k.Name == "" || k.Probe == nil || seen[k.Name] {
			return nil, fmt.Errorf("ops: check %q needs a name of its own and a probe: %w", k.Name, meta.ErrInvalid)
		}
		seen[k.Name] = true
		s.checks = append(s.checks, &check{Check: k})
	}
	if c.Metrics == nil || c.Log == nil {
		return nil, fmt.Errorf("ops: Metrics and Log are required: %w", meta.ErrInvalid)
	}
	listener, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return nil, fmt.Errorf("ops: listen: %w", err)
	}
	s.listener = listener
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(c.Metrics, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 20 * time.Second}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, r *http.Request) { s.health(w, r, true) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) { s.health(w, r, false) })
	for name, view := range c.Views {
		mux.HandleFunc("GET /view/"+name, func(w http.ResponseWriter, _ *http.Request) { s.view(w, view()) })
	}
	for pattern, handler := range c.Handlers {
		mux.Handle(pattern, handler)
	}
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	// No cmdline: a join token may be on it.
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	s.http = &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		IdleTimeout:       time.Minute,
		// A profile may be asked for over minutes.
		WriteTimeout:   10 * time.Minute,
		MaxHeaderBytes: 16 << 10,
		ErrorLog:       slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// Addr returns where the server listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Close frees the port of a Server that does not run.
func (s *Server) Close() error { return s.listener.Close() }

// Run serves until ctx ends; it returns nil then. Health stays readable for as
// long as a probe of a load balancer takes.
func (s *Server) Run(ctx context.Context) error {
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		drain, cancel := context.WithTimeout(context.Background(), drainTimeout)
		defer cancel()
		if s.http.Shutdown(drain) != nil {
			s.http.Close()
		}
	}()
	err := s.http.Serve(s.listener)
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("ops: serve: %w", err)
	}
	<-stopped
	return nil
}

// Result is one check's outcome, as /readyz?verbose shows it.
type Result struct {
	Name  string `json:"name"`
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
	// Milliseconds is how long the probe took.
	Milliseconds int64 `json:"ms"`
}

// Report is the body of /livez?verbose and /readyz?verbose.
type Report struct {
	OK     bool     `json:"ok"`
	Checks []Result `json:"checks"`
}

func (s *Server) health(w http.ResponseWriter, r *http.Request, liveOnly bool) {
	var chosen []*check
	for _, c := range s.checks {
		if c.Live || !liveOnly {
			chosen = append(chosen, c)
		}
	}
	report := Report{OK: true, Checks: make([]Result, len(chosen))}
	var probes sync.WaitGroup
	for i, c := range chosen {
		probes.Go(func() {
			started := time.Now()
			result := Result{Name: c.Name, OK: true}
			if err := c.probe(r.Context()); err != nil {
				result.OK, result.Error = false, err.Error()
			}
			result.Milliseconds = time.Since(started).Milliseconds()
			report.Checks[i] = result
		})
	}
	probes.Wait()
	var failed []string
	for _, result := range report.Checks {
		if !result.OK {
			failed = append(failed, result.Name)
		}
	}
	report.OK = len(failed) == 0
	slices.SortFunc(report.Checks, func(a, b Result) int { return strings.Compare(a.Name, b.Name) })
	status := http.StatusOK
	if !report.OK {
		status = http.StatusServiceUnavailable
	}
	w.Header().Set("Cache-Control", "no-store")
	if r.URL.Query().Has("verbose") {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		// Who probes and leaves early reads no error.
		_ = json.NewEncoder(w).Encode(report)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	if report.OK {
		fmt.Fprintln(w, "ok")
	} else {
		fmt.Fprintf(w, "failed: %s; ask ?verbose\n", strings.Join(failed, ", "))
	}
}

func (s *Server) view(w http.ResponseWriter, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body) // who leaves early reads no error
}

// probe runs the check, or waits for the run under way, for at most probeTimeout.
func (c *check) probe(ctx context.Context) error {
	c.mu.Lock()
	running := c.running
	if running == nil {
		running = make(chan struct{})
		c.running = running
		// Not the asker's context: others may be waiting for the same run.
		probe, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeTimeout)
		go func() {
			defer cancel()
			err := c.Probe(probe)
			c.mu.Lock()
			defer c.mu.Unlock()
			c.last, c.running = err, nil
			close(running)
		}()
	}
	c.mu.Unlock()
	deadline := time.NewTimer(probeTimeout)
	defer deadline.Stop()
	select {
	case <-running:
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.last
	case <-deadline.C:
		return fmt.Errorf("no answer in %v: %w", probeTimeout, meta.ErrUnavailable)
	case <-ctx.Done():
		return ctx.Err()
	}
}
