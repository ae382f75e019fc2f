// Command bench runs shoal and the distribution registry (CNCF, the one behind
// registry:3) side by side on this machine and prints what each did, with ratios.
//
// `make bench` builds both. Start reading at rows.go, which has a function for each
// row; subject.go starts the two servers, load.go is the manifest GET loop, table.go
// prints. Both servers get the same loopback, the same file system, fsync as they
// ship it, and take turns within each row, so that a noisy neighbour troubles both.
//
// Every loop is bounded in requests and time, and talks to 127.0.0.0/8 alone.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	var (
		bin    = flags.String("bin", "bin/shoal", "the shoal `binary`")
		tools  = flags.String("tools", "", "`folder` of crane and registry, as deploy/tools/setup path prints it")
		scale  = flags.Float64("scale", 1, "of sizes and counts; 0.1 for a quick look")
		repeat = flags.Int("repeat", 3, "turns of each row; the median counts")
		on     = flags.String("on", "tmpfs,disk", "file systems, in this order")
		disk   = flags.String("disk", os.TempDir(), "`folder` on the disk")
		memory = flags.String("memory", "/dev/shm", "`folder` on tmpfs")
		only   = flags.String("rows", "", "comma-separated rows to run, of: "+strings.Join(rowNames(), ", "))
		asJSON = flags.Bool("json", false, "print JSON")
		limit  = flags.Duration("timeout", time.Hour, "for everything")
	)
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if *scale <= 0 || *scale > 16 || *repeat < 1 || *repeat > 100 {
		return errors.New("--scale is above 0 and at most 16, --repeat 1 to 100")
	}
	ctx, cancel := context.WithTimeoutCause(ctx, *limit, fmt.Errorf("the benchmark took more than %v", *limit))
	defer cancel()
	bins := binaries{}
	for name, path := range map[*string]string{
		&bins.shoal: *bin, &bins.registry: filepath.Join(*tools, "registry"), &bins.crane: filepath.Join(*tools, "crane"),
	} {
		absolute, err := filepath.Abs(path)
		if err != nil {
			return err
		}
		if _, err := os.Stat(absolute); err != nil {
			return fmt.Errorf("%w (make build tools)", err)
		}
		*name = absolute
	}
	chosen := slices.DeleteFunc(strings.Split(*only, ","), func(s string) bool { return s == "" })
	for _, name := range chosen {
		if !slices.Contains(rowNames(), name) {
			return fmt.Errorf("no row %q; there are %s", name, strings.Join(rowNames(), ", "))
		}
	}

	report := Report{Scale: *scale, Repeat: *repeat, Started: time.Now().UTC(), LoadBefore: loadAverage(), Cores: cores()}
	for place := range strings.SplitSeq(*on, ",") {
		folder := map[string]string{"tmpfs": *memory, "disk": *disk}[place]
		if folder == "" {
			return fmt.Errorf("--on %q: tmpfs or disk", place)
		}
		if isMemory, err := onTmpfs(folder); err != nil {
			return err
		} else if isMemory != (place == "tmpfs") {
			return fmt.Errorf("%s is not on %s; name a folder with --disk or --memory", folder, place)
		}
		rows, err := runPlace(ctx, place, folder, bins, *scale, *repeat, chosen)
		report.Rows = append(report.Rows, rows...)
		if err != nil {
			return errors.Join(err, report.print(os.Stderr))
		}
	}
	report.LoadAfter = loadAverage()
	if *asJSON {
		encoder := json.NewEncoder(os.Stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(report)
	}
	return report.print(os.Stdout)
}

// runPlace runs the chosen rows (none: all) with both servers' data in a new folder.
func runPlace(ctx context.Context, place, folder string, bins binaries, scale float64, repeat int, chosen []string) (_ []Row, err error) {
	dir, err := os.MkdirTemp(folder, "shoal-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b := &bench{place: place, dir: dir, bins: bins, scale: scale, repeat: repeat}
	defer b.close()
	if err := b.start(ctx); err != nil {
		return nil, err
	}
	var rows []Row
	for _, kind := range kinds {
		if len(chosen) > 0 && !slices.Contains(chosen, kind.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s: %s\n", place, kind.name)
		more, err := kind.run(ctx, b)
		rows = append(rows, more...)
		if err != nil {
			return rows, fmt.Errorf("%s on %s: %w", kind.name, place, err)
		}
	}
	return rows, nil
}

func onTmpfs(folder string) (bool, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(folder, &fs); err != nil {
		return false, fmt.Errorf("%s: %w", folder, err)
	}
	return fs.Type == unix.TMPFS_MAGIC, nil
}
