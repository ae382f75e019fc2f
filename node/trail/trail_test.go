package trail

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/shoal-registry/shoal/gateway"
	"github.com/shoal-registry/shoal/raftmeta/audit"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(killedDir); dir != "" {
		writeForEver(dir)
	}
	goleak.VerifyTestMain(m)
}

func open(t testing.TB, dir string, change ...func(*Config)) *Trail {
	t.Helper()
	c := Config{Dir: dir, Node: "n1", Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry()}
	for _, f := range change {
		f(&c)
	}
	tr, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// during runs tr while f does.
func during(t testing.TB, tr *Trail, f func()) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- tr.Run(ctx) }()
	f()
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func pulled(i int, who string) gateway.CallFacts {
	return gateway.CallFacts{Time: time.Unix(int64(i), 0), Request: fmt.Sprint("r", i), Principal: who, Source: "192.0.2.1:5", Repository: "acme/app", Tenant: "acme", Status: 200}
}

// lines returns all of the chain and what reading it finds.
func lines(t testing.TB, tr *Trail, heads ...audit.Head) ([]audit.Link, audit.ChainReport) {
	t.Helper()
	var text bytes.Buffer
	if err := tr.Read(0, func(_ uint64, line []byte) error {
		text.Write(append(line, '\n'))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	var links []audit.Link
	report, err := audit.ReadChain(&text, heads, func(l audit.Link, _ []byte) error {
		links = append(links, l)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return links, report
}

// TestTrail writes, stops and goes on: one chain, without gaps.
func TestTrail(t *testing.T) {
	dir := t.TempDir()
	for range 3 {
		tr := open(t, dir)
		during(t, tr, func() {
			tr.Pulled(pulled(1, "user:ada"), 42)
			tr.Denied(pulled(2, "user:eve"), "no")
			tr.LoginFailed(pulled(3, ""), "the token is unknown")
			tr.Minted(pulled(4, "user:ada"))
		})
	}
	links, report := lines(t, open(t, dir))
	if len(report.Broken)+len(report.Gaps) > 0 || len(links) != 18 {
		t.Fatalf("%d links: %+v", len(links), report)
	}
	if l := links[7]; l.Kind != audit.LinkPulled || l.Bytes != 42 || l.Request != "r1" || l.Repository != "acme/app" || l.Node != "n1" {
		t.Errorf("a pull is %+v", l)
	}
}

// TestTrailRotates keeps as many files as it may, and what is left is still a chain.
func TestTrailRotates(t *testing.T) {
	dir := t.TempDir()
	small := func(c *Config) { c.FileBytes, c.Files, c.Each = 4<<10, 3, 1<<20 }
	tr := open(t, dir, small)
	during(t, tr, func() {
		for i := range 200 {
			tr.Pulled(pulled(i, "user:ada"), 1)
		}
	})
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 3 {
		t.Fatalf("%d files: %v", len(files), err)
	}
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || info.Size() > 4<<10 {
			t.Errorf("%s has %d bytes: %v", f, info.Size(), err)
		}
	}
	links, report := lines(t, open(t, dir, small), tr.Head())
	if len(report.Broken) > 0 || links[0].Seq == 1 || links[len(links)-1].Seq != 202 {
		t.Errorf("links %d to %d: %+v", links[0].Seq, links[len(links)-1].Seq, report)
	}
}

// TestTrailCounts writes a hundred links of a caller in a minute, and counts the rest.
func TestTrailCounts(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		tr := open(t, dir)
		during(t, tr, func() {
			for i := range 1000 {
				tr.Denied(pulled(i, "user:eve"), "no")
			}
			tr.Denied(pulled(1, "user:ada"), "no")
			tr.Pulled(pulled(1, "user:eve"), 7)
			time.Sleep(61 * time.Second)
			tr.Denied(pulled(1, "user:eve"), "no")
		})
		links, report := lines(t, tr)
		kinds := map[string]int{}
		for _, l := range links {
			kinds[l.Kind]++
			if l.Kind == audit.LinkCounted && (l.Count != 900 || l.Of != audit.LinkDenied || l.Principal != "user:eve") {
				t.Errorf("counted %+v", l)
			}
		}
		if kinds[audit.LinkDenied] != 102 || kinds[audit.LinkCounted] != 1 || kinds[audit.LinkPulled] != 1 || len(report.Broken) > 0 {
			t.Errorf("%v: %+v", kinds, report)
		}
	})
}

// TestHeadIsOnDisk: others are told of nothing that is not synced.
func TestHeadIsOnDisk(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		tr := open(t, dir)
		during(t, tr, func() {
			synctest.Wait()
			if h := tr.Head(); h.Seq != 1 {
				t.Errorf("the head is %+v", h)
			}
			tr.Pulled(pulled(1, "user:ada"), 1)
			time.Sleep(2 * time.Second)
			if h := tr.Head(); h.Seq != 1 {
				t.Errorf("before the sync the head is %+v", h)
			}
			time.Sleep(4 * time.Second)
			if h := tr.Head(); h.Seq != 2 {
				t.Errorf("after the sync the head is %+v", h)
			}
		})
	})
}

// TestTrailFindsChanges: a changed byte, a line left out, the end cut off, against the
// chain itself and against heads that were anchored.
func TestTrailFindsChanges(t *testing.T) {
	dir := t.TempDir()
	tr := open(t, dir)
	during(t, tr, func() {
		for i := range 20 {
			tr.Pulled(pulled(i, "user:ada"), 1)
		}
	})
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	whole, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	all := strings.SplitAfter(strings.TrimSuffix(string(whole), "\n"), "\n")
	head := tr.Head()
	for name, text := range map[string]string{
		"changed": strings.Replace(string(whole), `"bytes":1,`, `"bytes":2,`, 1),
		"dropped": strings.Join(append(append([]string{}, all[:5]...), all[6:]...), ""),
		"cut":     strings.Join(all[:10], ""),
		"last":    strings.Replace(string(whole), `"kind":"closed"`, `"kind":"opened"`, 1),
		"":        string(whole),
	} {
		report, err := audit.ReadChain(strings.NewReader(text), []audit.Head{head}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if found := len(report.Broken) > 0; found != (name != "") {
			t.Errorf("%q: %+v", name, report)
		}
	}
}

const killedDir = "SHOAL_TEST_TRAIL_DIR"

// writeForEver writes until it is killed, and says which heads it had.
func writeForEver(dir string) {
	tr, err := Open(Config{
		Dir: dir, Node: "n1", Flush: time.Millisecond, Sync: 5 * time.Millisecond, Each: 1 << 40, FileBytes: 64 << 10, Files: 1 << 20,
		Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
	})
	if err != nil {
		panic(err)
	}
	go func() { _ = tr.Run(context.Background()) }()
	told := uint64(0)
	for i := 0; ; i++ {
		tr.Pulled(pulled(i, "user:ada"), 1)
		if h := tr.Head(); h.Seq > told {
			told = h.Seq
			line, _ := json.Marshal(h)
			fmt.Printf("%s\n", line)
		}
		if i%50 == 0 {
			time.Sleep(time.Millisecond)
		}
	}
}

// TestTrailKilled kills a process that writes: what it told of is on disk, the chain
// goes on, and that something may be missing is marked.
func TestTrailKilled(t *testing.T) {
	dir := t.TempDir()
	var heads []audit.Head
	for range 5 {
		child := exec.Command(os.Args[0], "-test.run=^$")
		child.Env = append(os.Environ(), killedDir+"="+dir)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		in := json.NewDecoder(out)
		for range 20 {
			var h audit.Head
			if err := in.Decode(&h); err != nil {
				t.Fatal(err)
			}
			heads = append(heads, h)
		}
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = child.Wait() // It was killed.
	}
	tr := open(t, dir)
	during(t, tr, func() {})
	_, report := lines(t, tr, heads...)
	if len(report.Broken) > 0 {
		t.Errorf("the chain is broken: %v", report.Broken)
	}
	if len(report.Gaps) != 5 {
		t.Errorf("%d kills are marked: %v", len(report.Gaps), report.Gaps)
	}
}
