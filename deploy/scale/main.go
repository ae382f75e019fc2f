// Command scale shows what a package of a million versions costs: it makes two servers'
// data, one with few versions in a package and one with many, starts the real binary on
// each and prints figures side by side.
//
//	go run ./deploy/scale --bin bin/shoal                       1,000,000 versions, 100,000 tags
//	go run ./deploy/scale --bin bin/shoal --versions 100000 --data /srv/scale --keep
//
// A cluster is founded by the binary, filled through the log by the same Store that the
// binary runs, in this process (load.go: a million pushes over HTTP would measure the
// disk), and served by the binary again, of which all but the snapshot is measured over
// HTTP (measure.go). The versions share one manifest, whose bytes are really there: a
// version with a manifest of its own has five more records. With --keep the data stays,
// for other experiments.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"
)

type options struct {
	bin, data     string
	few, versions int
	keep          bool
	requests      int
	width         int
	log           func(format string, args ...any)
}

func main() {
	o := options{log: func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }}
	flag.StringVar(&o.bin, "bin", "bin/shoal", "the binary")
	flag.StringVar(&o.data, "data", "", "where the data is made; empty is a temporary folder")
	flag.IntVar(&o.few, "few", 100, "versions of the small package")
	flag.IntVar(&o.versions, "versions", 1_000_000, "versions of the large one; a tenth of them are tagged")
	flag.IntVar(&o.requests, "requests", 400, "requests for each figure")
	flag.IntVar(&o.width, "width", 64, "commands under way while filling")
	flag.BoolVar(&o.keep, "keep", false, "leave the data where it is")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	if o.data == "" {
		if o.data, err = os.MkdirTemp("", "shoal-scale-"); err != nil {
			return err
		}
		if !o.keep {
			defer os.RemoveAll(o.data)
		}
	}
	var all [2]figures
	for i, n := range []int{o.few, o.versions} {
		dir := filepath.Join(o.data, fmt.Sprint(n))
		if all[i], err = o.measure(ctx, dir, n); err != nil {
			return fmt.Errorf("%d versions: %w", n, err)
		}
	}
	if o.keep {
		o.log("the data is in %s", o.data)
	}
	print(o, all)
	return nil
}

// figures are of one package. Latencies are medians.
type figures struct {
	load                       time.Duration
	perSecond                  float64
	longest                    time.Duration // commit while filling and while copies of the state were made
	snapshot                   time.Duration
	restart, strong            time.Duration
	publish, resolve, strongly latency
	tags, versions             latency
	residentMiB, stateMiB      float64
}

func print(o options, all [2]figures) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "versions\t%d\t%d\tratio\t\n", o.few, o.versions)
	each := func(name string, of func(figures) time.Duration) {
		a, b := of(all[0]), of(all[1])
		fmt.Fprintf(w, "%s\t%s\t%s\t%.2f\t\n", name, short(a), short(b), float64(b)/float64(max(a, 1)))
	}
	for _, l := range []struct {
		name string
		of   func(figures) latency
	}{
		{"publish (PUT manifest, new tag)", func(f figures) latency { return f.publish }},
		{"resolve a tag", func(f figures) latency { return f.resolve }},
		{"resolve a tag, strong", func(f figures) latency { return f.strongly }},
		{"first 100 tags", func(f figures) latency { return f.tags }},
		{"first 100 versions", func(f figures) latency { return f.versions }},
	} {
		each(l.name+", median", func(f figures) time.Duration { return l.of(f).median })
		each(l.name+", p99", func(f figures) time.Duration { return l.of(f).p99 })
	}
	each("start to ready", func(f figures) time.Duration { return f.restart })
	each("start to a strong read", func(f figures) time.Duration { return f.strong })
	each("copy of the state (snapshot for another server)", func(f figures) time.Duration { return f.snapshot })
	each("longest commit meanwhile", func(f figures) time.Duration { return f.longest })
	fmt.Fprintf(w, "state on disk, MiB\t%.1f\t%.1f\t\t\n", all[0].stateMiB, all[1].stateMiB)
	fmt.Fprintf(w, "server resident, MiB\t%.0f\t%.0f\t\t\n", all[0].residentMiB, all[1].residentMiB)
	fmt.Fprintf(w, "filled, versions a second\t%.0f\t%.0f\t\t\n", all[0].perSecond, all[1].perSecond)
	w.Flush()
	fmt.Println("load average", loadAverage())
}

func short(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return d.Round(10 * time.Microsecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}

func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(text))[:3], " ")
}
