package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/proc"
)

// kind is a group of rows that one function measures.
type kind struct {
	name string
	run  func(context.Context, *bench) ([]Row, error)
}

// kinds are in the order they run: memory is last, after everything that could use it.
var kinds = []kind{
	{"push-pull", pushPull},
	{"manifest-get", manifestGet},
	{"tiny-images", tinyImages},
	{"tags", tagsList},
	{"memory", memory},
}

func rowNames() []string {
	var names []string
	for _, k := range kinds {
		names = append(names, k.name)
	}
	return names
}

// scaled returns n times the scale, at least low.
func (b *bench) scaled(n, low int) int { return max(low, int(float64(n)*b.scale)) }

func (b *bench) nextSeed() uint64 {
	b.seed++
	return b.seed
}

// turns lets the subjects take turns at work, b.repeat times each, and adds a sample
// of work's value for each to the row. prepare, when not nil, runs before each turn of
// all and is not measured.
func (b *bench) turns(ctx context.Context, row *Row, prepare func(turn int) error, work func(ctx context.Context, s *subject, turn int) (value float64, err error)) error {
	row.Place = b.place
	for turn := range b.repeat {
		if prepare != nil {
			if err := prepare(turn); err != nil {
				return err
			}
		}
		// The order changes, so that nobody always follows the other.
		order := slices.Clone(b.subjects)
		if turn%2 == 1 {
			slices.Reverse(order)
		}
		for _, s := range order {
			u, err := use(s.process, func() (float64, error) { return work(ctx, s, turn) })
			if err != nil {
				return fmt.Errorf("%s: %w\nlog: %s", s.name, err, s.process.LogTail(2048))
			}
			row.add(s.name, u)
		}
	}
	return nil
}

// pushPull pushes and pulls an image of 1 GiB in 4 layers with crane, new bytes at each turn.
func pushPull(ctx context.Context, b *bench) ([]Row, error) {
	const layers = 4
	bytes := int64(b.scaled(1<<30, layers<<10))
	mib := float64(bytes) / (1 << 20)
	title := fmt.Sprintf("%.0f MiB image of %d layers with crane", mib, layers)
	push := Row{Name: "push " + title, Unit: "MiB/s"}
	pull := Row{Name: "pull " + title, Unit: "MiB/s"}
	// What crane reads and writes stays in memory, so that only the servers' disks differ.
	scratch, err := os.MkdirTemp("/dev/shm", "shoal-bench-crane-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(scratch)
	layout, out := filepath.Join(scratch, "layout"), filepath.Join(scratch, "out")
	reference := func(s *subject, turn int) string {
		return fmt.Sprintf("%s/bench/large/image:%d-%d", s.address, turn, b.repeat)
	}
	prepare := func(int) error {
		if err := os.RemoveAll(layout); err != nil {
			return err
		}
		img, err := image.Make(b.nextSeed(), layers, bytes)
		if err != nil {
			return err
		}
		return img.WriteLayout(layout, "bench")
	}
	if err := b.turns(ctx, &push, prepare, func(ctx context.Context, s *subject, turn int) (float64, error) {
		start := time.Now()
		_, err := proc.Run(ctx, nil, b.bins.crane, nil, "push", layout, reference(s, turn))
		return mib / time.Since(start).Seconds(), err
	}); err != nil {
		return nil, err
	}
	err = b.turns(ctx, &pull, nil, func(ctx context.Context, s *subject, turn int) (float64, error) {
		if err := os.RemoveAll(out); err != nil {
			return 0, err
		}
		start := time.Now()
		_, err := proc.Run(ctx, nil, b.bins.crane, nil, "pull", "--format", "oci", reference(s, turn), out)
		return mib / time.Since(start).Seconds(), err
	})
	return []Row{push, pull}, err
}

// manifestGet asks for one manifest by tag from 200 connections.
func manifestGet(ctx context.Context, b *bench) ([]Row, error) {
	const clients = 200
	total := b.scaled(20_000, clients)
	rate := Row{Name: fmt.Sprintf("manifest GET, %d clients", clients), Unit: "requests/s"}
	perCPU := Row{Name: "the same by the server's CPU", Unit: "requests/CPU-s", Place: b.place}
	img, err := image.Make(b.nextSeed(), 1, 1024)
	if err != nil {
		return nil, err
	}
	for _, s := range b.subjects {
		if err := s.client.Push(ctx, "bench/get/image", "1", img); err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
	}
	err = b.turns(ctx, &rate, nil, func(ctx context.Context, s *subject, _ int) (float64, error) {
		start := time.Now()
		err := getLoad(ctx, s.address, "/v2/bench/get/image/manifests/1", clients, total, len(img.Manifest))
		return float64(total) / time.Since(start).Seconds(), err
	})
	for name, samples := range rate.Samples {
		for _, u := range samples {
			if u.ServerCPUSec > 0 {
				u.Value = float64(total) / u.ServerCPUSec
				perCPU.add(name, u)
			}
		}
	}
	return []Row{rate, perCPU}, err
}

// tinyImages pushes 1,000 images of a layer of 1 KiB into one repository, 8 at a time:
// each image two blobs and a manifest, each blob a HEAD, a POST and a PUT.
func tinyImages(ctx context.Context, b *bench) ([]Row, error) {
	const clients = 8
	count := b.scaled(1000, clients)
	row := Row{Name: fmt.Sprintf("%d tiny images into one repository, %d clients", count, clients), Unit: "images/s"}
	images := make([]*image.Image, count)
	prepare := func(int) (err error) {
		for i := range images {
			if images[i], err = image.Make(b.nextSeed(), 1, 1024); err != nil {
				return err
			}
		}
		return nil
	}
	err := b.turns(ctx, &row, prepare, func(ctx context.Context, s *subject, turn int) (float64, error) {
		start := time.Now()
		err := parallel(ctx, clients, count, func(ctx context.Context, i int) error {
			return s.client.Push(ctx, "bench/tiny/image", fmt.Sprintf("%d-%d", turn, i), images[i])
		})
		return float64(count) / time.Since(start).Seconds(), err
	})
	return []Row{row}, err
}

// tagsList gives one manifest 5,000 tags and lists them, at once and in pages of 100.
func tagsList(ctx context.Context, b *bench) ([]Row, error) {
	const clients, page = 8, 100
	count := b.scaled(5000, page)
	tagging := Row{Name: fmt.Sprintf("tag pushes up to %d tags, %d clients", count, clients), Unit: "pushes/s"}
	full := Row{Name: fmt.Sprintf("list of %d tags at once", count), Unit: "ms", Less: true}
	pages := Row{Name: fmt.Sprintf("the same in pages of %d", page), Unit: "ms", Less: true}
	img, err := image.Make(b.nextSeed(), 1, 1024)
	if err != nil {
		return nil, err
	}
	repository := func(turn int) string { return fmt.Sprintf("bench/tags/image-%d", turn) }
	if err := b.turns(ctx, &tagging, nil, func(ctx context.Context, s *subject, turn int) (float64, error) {
		if err := s.client.Push(ctx, repository(turn), "0", img); err != nil {
			return 0, err
		}
		start := time.Now()
		err := parallel(ctx, clients, count-1, func(ctx context.Context, i int) error {
			return s.client.PutManifest(ctx, repository(turn), fmt.Sprint(i+1), img.Manifest)
		})
		return float64(count-1) / time.Since(start).Seconds(), err
	}); err != nil {
		return nil, err
	}
	list := func(path string) func(context.Context, *subject, int) (float64, error) {
		return func(ctx context.Context, s *subject, _ int) (float64, error) {
			start := time.Now()
			total, err := countTags(ctx, s.client, path)
			if err == nil && total != count {
				err = fmt.Errorf("listed %d of %d tags", total, count)
			}
			return float64(time.Since(start).Microseconds()) / 1000, err
		}
	}
	if err := b.turns(ctx, &full, nil, list(fmt.Sprintf("/v2/%s/tags/list", repository(0)))); err != nil {
		return nil, err
	}
	err = b.turns(ctx, &pages, nil, list(fmt.Sprintf("/v2/%s/tags/list?n=%d", repository(0), page)))
	return []Row{tagging, full, pages}, err
}

// countTags follows a tags list through its pages and counts the tags.
func countTags(ctx context.Context, c *image.Client, path string) (int, error) {
	total := 0
	for requests := 0; path != ""; requests++ {
		if requests > 10_000 {
			return total, errors.New("a tags list without end")
		}
		response, err := c.Do(ctx, http.MethodGet, path, nil, nil, 0, http.StatusOK)
		if err != nil {
			return total, err
		}
		body, err := io.ReadAll(io.LimitReader(response.Body, 64<<20))
		response.Body.Close()
		if err != nil {
			return total, err
		}
		var list struct{ Tags []string }
		if err := json.Unmarshal(body, &list); err != nil {
			return total, err
		}
		total += len(list.Tags)
		path = nextPage(response.Header.Get("Link"))
	}
	return total, nil
}

// nextPage returns the path of a Link header with rel="next", "" when there is none.
func nextPage(link string) string {
	target, rel, ok := strings.Cut(strings.TrimPrefix(link, "<"), ">")
	if !ok || !strings.Contains(rel, `rel="next"`) {
		return ""
	}
	return target
}

// memory reads what the servers hold after the rows before it.
func memory(_ context.Context, b *bench) ([]Row, error) {
	peak := Row{Name: "memory at most, after all of this", Unit: "MiB", Less: true, Place: b.place}
	now := Row{Name: "memory at the end", Unit: "MiB", Less: true, Place: b.place}
	for _, s := range b.subjects {
		m, err := s.process.Memory()
		if err != nil {
			return nil, err
		}
		peak.add(s.name, usage{Value: float64(m.Peak) / (1 << 20)})
		now.add(s.name, usage{Value: float64(m.Now) / (1 << 20)})
	}
	return []Row{peak, now}, nil
}

// parallel calls f for 0 to n-1 from width goroutines and returns the first error.
func parallel(ctx context.Context, width, n int, f func(context.Context, int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var running sync.WaitGroup
	for range width {
		running.Add(1)
		go func() {
			defer running.Done()
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if err := f(ctx, i); err != nil {
					cancel(err)
				}
			}
		}()
	}
	running.Wait()
	return context.Cause(ctx)
}
