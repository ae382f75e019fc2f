package main

import (
	"bufio"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/shoal-registry/shoal/deploy/image"
)

func TestGetLoadSendsExactlyTotal(t *testing.T) {
	var served atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		served.Add(1)
		_, _ = w.Write([]byte("manifest"))
	}))
	defer server.Close()
	address := strings.TrimPrefix(server.URL, "http://")
	if err := getLoad(t.Context(), address, "/x", 7, 100, 8); err != nil {
		t.Fatal(err)
	}
	if served.Load() != 100 {
		t.Errorf("served %d requests", served.Load())
	}
	if err := getLoad(t.Context(), address, "/x", 2, 10, 9); err == nil {
		t.Error("a short answer went through")
	}
}

func TestReadAnswer(t *testing.T) {
	for text, want := range map[string]int{
		"HTTP/1.1 200 OK\r\nA: b\r\ncontent-length: 3\r\n\r\nabc": 3,
		"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n":     -1,
		"HTTP/1.1 200 OK\r\n\r\n":                                 -1,
		"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc":         -1,
		"": -1,
	} {
		n, err := readAnswer(bufio.NewReader(strings.NewReader(text)))
		if (err != nil) != (want < 0) || want >= 0 && n != want {
			t.Errorf("%q: %d, %v", text, n, err)
		}
	}
}

func TestCountTagsFollowsPages(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("last") == "" {
			w.Header().Set("Link", `</v2/x/tags/list?n=2&last=b>; rel="next"`)
			_, _ = w.Write([]byte(`{"name":"x","tags":["a","b"]}`))
			return
		}
		_, _ = w.Write([]byte(`{"name":"x","tags":["c"]}`))
	}))
	defer server.Close()
	n, err := countTags(t.Context(), &image.Client{Base: server.URL}, "/v2/x/tags/list?n=2")
	if err != nil || n != 3 {
		t.Errorf("%d tags, %v", n, err)
	}
	if nextPage(`</x>; rel="prev"`) != "" || nextPage("") != "" {
		t.Error("a page after the last")
	}
}

func TestParallelStopsAtTheFirstError(t *testing.T) {
	broken := errors.New("broken")
	var calls atomic.Int64
	err := parallel(t.Context(), 4, 1_000_000, func(_ context.Context, i int) error {
		calls.Add(1)
		if i == 10 {
			return broken
		}
		return nil
	})
	if !errors.Is(err, broken) || calls.Load() == 1_000_000 {
		t.Errorf("%d calls, %v", calls.Load(), err)
	}
	if err := parallel(t.Context(), 4, 10, func(context.Context, int) error { return nil }); err != nil {
		t.Error(err)
	}
}

func TestRowsCompareMedians(t *testing.T) {
	more := Row{Name: "rate", Place: "tmpfs", Unit: "x/s"}
	less := Row{Name: "time", Place: "disk", Unit: "ms", Less: true}
	for _, v := range []float64{30, 10, 20} {
		more.add("shoal", usage{Value: v})
		less.add("shoal", usage{Value: v, ElapsedSec: 10, ServerCPUSec: 1, BusyCPUSec: 2})
	}
	more.add("distribution", usage{Value: 10})
	less.add("distribution", usage{Value: 10})
	if more.ratio() != 2 || less.ratio() != 0.5 {
		t.Errorf("ratios %v and %v", more.ratio(), less.ratio())
	}
	if more.limit() != "" || !strings.HasPrefix(less.limit(), "waiting in turn") {
		t.Errorf("limits %q and %q", more.limit(), less.limit())
	}
	report := Report{Rows: []Row{more, less}}
	var b strings.Builder
	if err := report.print(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"2.00", "0.50 *", "time on disk, 0.50: waiting"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

func TestParseMachine(t *testing.T) {
	busy, wait := parseMachine("cpu  100 200 300 4000 500 60 70 80 90 0\ncpu0 1 2 3\n")
	if busy != 8.1 || wait != 5 {
		t.Errorf("busy %v, wait %v", busy, wait)
	}
}
