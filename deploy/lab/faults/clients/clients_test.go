package clients

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/lab/faults/history"
)

// registry is a small registry in memory that does what the product promises, but for
// what sin names.
type registry struct {
	sin string

	atLeast int           // requests
	enough  chan struct{} // closed when there were so many

	mu       sync.Mutex
	index    int
	requests int
	blobs    map[string][]byte
	versions map[string][]byte          // package@digest
	aliases  map[string]string          // package:alias
	first    map[string]string          // releases that were ever set
	old      map[string]map[string]bool // what an alias named before
}

func newRegistry(sin string, atLeast int) *registry {
	return &registry{sin: sin, atLeast: atLeast, enough: make(chan struct{}), blobs: map[string][]byte{}, versions: map[string][]byte{}, aliases: map[string]string{}, first: map[string]string{}, old: map[string]map[string]bool{}}
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(h[:])
}

func (g *registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.requests++; g.requests == g.atLeast {
		close(g.enough)
	}
	sins := func(name string) bool { return g.sin == name && g.requests%7 == 0 }
	h := w.Header()
	h.Set("Shoal-Mode", "strong")
	h.Set("Shoal-Age", "0.000")
	if m, path, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"+Images+"/"), "/blobs/"); ok {
		g.blob(w, r, m, path, body)
		return
	}
	pkg, reference := strings.TrimPrefix(r.URL.Path, "/generic/"), r.URL.Query().Get("version")
	alias := "current"
	var aliases []string
	if name, ref, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/manifests/"); ok {
		pkg, reference, aliases = name, "", r.URL.Query()["tag"]
		if strings.HasPrefix(ref, "sha256:") {
			reference = ref
		} else {
			alias, aliases = ref, []string{ref}
		}
	} else {
		aliases = []string{"current"}
	}
	switch r.Method {
	case http.MethodPut:
		d := sum(body)
		if strings.HasPrefix(pkg, Releases) && g.first[pkg] != "" && g.first[pkg] != d && !sins("overwrite") {
			w.WriteHeader(http.StatusConflict)
			return
		}
		g.index++
		h.Set("Shoal-Token", fmt.Sprintf("0.%d", g.index))
		if sins("lose") {
			w.WriteHeader(http.StatusCreated)
			return
		}
		g.versions[pkg+"@"+d], g.first[pkg] = body, d
		for i, a := range aliases {
			if was := g.aliases[pkg+":"+a]; was != "" {
				if g.old[pkg+":"+a] == nil {
					g.old[pkg+":"+a] = map[string]bool{}
				}
				g.old[pkg+":"+a][was] = true
			}
			if i == 0 || g.sin != "half" {
				g.aliases[pkg+":"+a] = d
			}
		}
		w.WriteHeader(http.StatusCreated)
	case http.MethodDelete:
		if reference == "" {
			if g.aliases[pkg+":"+alias] == "" {
				w.WriteHeader(http.StatusNotFound)
				return
			}
			delete(g.aliases, pkg+":"+alias)
			w.WriteHeader(http.StatusAccepted)
			return
		}
		if g.versions[pkg+"@"+reference] == nil {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		g.index++
		if !sins("undead") {
			delete(g.versions, pkg+"@"+reference)
			for name, d := range g.aliases {
				if d == reference && strings.HasPrefix(name, pkg+":") {
					delete(g.aliases, name)
				}
			}
		}
		w.WriteHeader(http.StatusAccepted)
	default:
		g.get(w, r, pkg, alias, reference, sins)
	}
}

func (g *registry) get(w http.ResponseWriter, r *http.Request, pkg, alias, reference string, sins func(string) bool) {
	h := w.Header()
	index := g.index
	d := reference
	if d == "" {
		d = g.aliases[pkg+":"+alias]
		for was := range g.old[pkg+":"+alias] {
			switch {
			case g.versions[pkg+"@"+was] == nil:
			case sins("stale"):
				d = was
			case sins("older") && r.Header.Get("Shoal-Mode") == "":
				d = was
				h.Set("Shoal-Mode", "bounded")
				h.Set("Shoal-Age", "0.001")
			}
		}
	}
	content := g.versions[pkg+"@"+d]
	if g.sin == "token" && r.Header.Get("Shoal-Token") != "" {
		index = 0
	}
	h.Set("Shoal-Index", fmt.Sprint(index))
	if content == nil {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	h.Set("Etag", `"`+d+`"`)
	if sins("bytes") && r.Method == http.MethodGet {
		content = append([]byte{content[0] ^ 1}, content[1:]...)
	}
	_, _ = w.Write(content)
}

func (g *registry) blob(w http.ResponseWriter, r *http.Request, name, path string, body []byte) {
	key := name + "/" + path
	switch {
	case r.Method == http.MethodPost:
		w.Header().Set("Location", r.URL.Path)
		w.WriteHeader(http.StatusAccepted)
	case r.Method == http.MethodPut:
		g.blobs[name+"/"+r.URL.Query().Get("digest")] = body
		w.WriteHeader(http.StatusCreated)
	case g.blobs[key] == nil || g.sin == "layer" && r.Method == http.MethodGet:
		w.WriteHeader(http.StatusNotFound)
	default:
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(g.blobs[key])))
	}
}

// work lets clients work with a registry for a number of requests, and judges.
func work(t *testing.T, sin string, requests int) (history.Totals, []history.Finding, Faults, *Audit) {
	t.Helper()
	g := newRegistry(sin, requests)
	server := httptest.NewServer(g)
	defer server.Close()
	record, err := history.Create(filepath.Join(t.TempDir(), "history"), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	w := New(Config{Clients: 6, Keys: 8, Rate: 1e6, Timeout: time.Minute, Seed: 1, Say: func(string, ...any) {}}, record)
	nodes := []Node{{Name: "a", Base: server.URL, HTTP: server.Client()}, {Name: "b", Base: server.URL, HTTP: server.Client()}}
	w.SetNodes(nodes)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Run(ctx)
	}()
	<-g.enough
	cancel()
	<-done
	w.Finish(t.Context())
	totals, findings, err := record.Close()
	if err != nil {
		t.Fatal(err)
	}
	patience := time.Minute
	if sin != "" { // what is lost stays lost
		patience = 20 * time.Millisecond
	}
	return totals, findings, w.Faults(), w.Audit(t.Context(), nodes, 2, patience)
}

func TestAGoodRegistryPasses(t *testing.T) {
	totals, findings, faults, audit := work(t, "", 6000)
	if len(findings) > 0 || faults.Any() || len(audit.Lost)+len(audit.Alive)+len(audit.Moved)+len(audit.Wrong) > 0 {
		t.Errorf("findings %+v, faults %+v, audit %+v", findings, faults, audit)
	}
	if totals.Operations < 3000 || totals.Strong == 0 || totals.Writes == 0 || totals.Unknown > 0 || audit.Artifacts == 0 || audit.Gone == 0 || audit.Aliases == 0 {
		t.Errorf("little was checked: %+v, %+v", totals, audit)
	}
	out, err := json.Marshal(audit)
	if err != nil || !strings.Contains(string(out), `"artifacts"`) {
		t.Errorf("%s, %v", out, err)
	}
}

// Each sin is seen by what is there to see it.
func TestClientsSeeSins(t *testing.T) {
	for sin, seen := range map[string]func(f []history.Finding, s Faults, a *Audit) bool{
		"lose":      func(f []history.Finding, _ Faults, a *Audit) bool { return len(f) > 0 && len(a.Lost) > 0 },
		"stale":     func(f []history.Finding, _ Faults, _ *Audit) bool { return has(f, history.Wrong) },
		"older":     func(f []history.Finding, _ Faults, _ *Audit) bool { return has(f, history.Younger) },
		"overwrite": func(f []history.Finding, _ Faults, _ *Audit) bool { return has(f, history.Wrong) },
		"half":      func(f []history.Finding, _ Faults, _ *Audit) bool { return has(f, history.Wrong) },
		"undead":    func(f []history.Finding, _ Faults, a *Audit) bool { return has(f, history.Wrong) && len(a.Alive) > 0 },
		"bytes":     func(_ []history.Finding, s Faults, _ *Audit) bool { return len(s.Bytes) > 0 },
		"token":     func(_ []history.Finding, s Faults, _ *Audit) bool { return len(s.Tokens) > 0 },
		"layer":     func(_ []history.Finding, s Faults, a *Audit) bool { return len(s.Missing) > 0 && len(a.Lost) > 0 },
	} {
		t.Run(sin, func(t *testing.T) {
			t.Parallel()
			_, findings, faults, audit := work(t, sin, 3000)
			if !seen(findings, faults, audit) {
				t.Errorf("nobody saw it: %d findings, %+v, lost %d, alive %d", len(findings), faults, len(audit.Lost), len(audit.Alive))
			}
		})
	}
}

func has(findings []history.Finding, r history.Result) bool {
	for _, f := range findings {
		if f.Result == r {
			return true
		}
	}
	return false
}

func TestAvailability(t *testing.T) {
	p := newPulse()
	p.begun = time.Now().Add(-4 * time.Second)
	// Two seconds with an operation in each tenth, one without, one with a single one.
	p.beats = make([]uint16, 40)
	for i := range 20 {
		p.beats[i] = 2
	}
	p.beats[35] = 1
	got := p.Availability(p.begun, p.begun.Add(4*time.Second))
	if got != (Availability{Acknowledged: 41, Tenths: 21.0 / 40, Seconds: 0.75, LongestSec: 1.5}) {
		t.Errorf("%+v", got)
	}
}
