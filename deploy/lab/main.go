// Command lab runs a launch wave in network namespaces and prints how near it came
// to what the links allow.
//
// `make lab HOSTS=8 RATE=100mbit SIZE=64MiB REGIONS=3` builds the binary and starts
// it. The work is in packages wave and netns; this file reads flags and signals. It
// needs root, touches nothing outside its own namespaces and its folder, and leaves
// neither behind, however it ends.
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
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoal-registry/shoal/deploy/lab/wave"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) (err error) {
	flags := flag.NewFlagSet("lab", flag.ContinueOnError)
	var (
		bin     = flags.String("bin", "bin/shoal", "the shoal `binary`")
		dir     = flags.String("dir", "", "`folder` for the nodes' data; by default in memory when the wave fits there, since the links are measured and not the disk")
		hosts   = flags.Int("hosts", 8, "agents, one a host")
		regions = flags.Int("regions", 1, "regions, with one server each")
		zones   = flags.Int("zones", 1, "zones of each region")
		layers  = flags.Int("layers", 4, "layers of the image")
		rate    = flags.String("rate", "100mbit", "speed of every link, up and down")
		size    = flags.String("size", "64MiB", "bytes of all layers")
		class   = flags.String("class", "cold", "class of the repository; cold leaves other regions empty until the wave")
		seed    = flags.Uint64("seed", 1, "of the image's bytes")
		asJSON  = flags.Bool("json", false, "print the report as JSON")
		check   = flags.Bool("check", false, "fail when a promise is broken, not only when a host has wrong bytes")
		timeout = flags.Duration("timeout", 0, "for the wave; by default generous")
	)
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	plan := wave.Plan{Hosts: *hosts, Regions: *regions, Zones: *zones, Layers: *layers, Class: *class, Seed: *seed, Timeout: *timeout}
	if plan.Rate, err = wave.ParseRate(*rate); err != nil {
		return err
	}
	if plan.Bytes, err = wave.ParseSize(*size); err != nil {
		return err
	}
	if plan.Bin, err = filepath.Abs(*bin); err != nil {
		return err
	}
	if _, err := os.Stat(plan.Bin); err != nil {
		return fmt.Errorf("%w (make build)", err)
	}
	if *dir == "" {
		*dir = dataFolder(plan)
	}
	if plan.Dir, err = os.MkdirTemp(*dir, "shoal-lab-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(plan.Dir)) }()
	began := time.Now()
	plan.Say = func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "%6.1fs  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}

	cluster, err := wave.Start(ctx, plan)
	if err != nil {
		return err
	}
	// Runs in a panic too; after kill -9 the kernel does it, but for the folder.
	defer func() { err = errors.Join(err, cluster.Close()) }()
	report, err := cluster.Wave(ctx)
	if err != nil {
		return err
	}
	if *asJSON {
		encoder := json.NewEncoder(os.Stdout)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(report)
	} else {
		report.Print(os.Stdout)
	}
	if err != nil {
		return err
	}
	if !report.Verdicts()[0].Kept || *check && !report.Kept() {
		return errors.New("the wave broke a promise")
	}
	return nil
}

// dataFolder returns the memory file system when all copies of the wave fit into half
// of it, else the folder for temporary files.
func dataFolder(plan wave.Plan) string {
	const memory = "/dev/shm"
	var fs unix.Statfs_t
	if err := unix.Statfs(memory, &fs); err == nil {
		room := int64(fs.Bavail) * fs.Bsize / 2
		if need := (plan.Bytes + 64<<20) * int64(plan.Hosts+plan.Regions+1); need < room {
			return memory
		}
	}
	return os.TempDir()
}
