package scenario

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
	"time"

	"github.com/shoal-registry/shoal/deploy/lab/wave"
)

var cache = Scenario{
	Name:  "cache",
	Claim: "an agent with a cache of 100 MiB, in which a wave has pinned 20 MiB, pulls 500 MiB",
	Full:  wave.Plan{Hosts: 1, Rate: 1e9, Bytes: 500 << 20, Layers: 1},
	Quick: wave.Plan{Hosts: 1, Rate: 1e9, Bytes: 100 << 20, Layers: 1},
	Run: func(ctx context.Context, l *Lab) error {
		const images = 10
		limit := l.Plan.Bytes / 5
		l.Plan.AgentArgs = []string{"--cache-size", fmt.Sprintf("%dMiB", limit>>20)}
		c, err := l.Start(ctx)
		if err != nil {
			return err
		}
		agent := c.Agents[0]
		sampling, stop := context.WithCancel(ctx)
		defer stop()
		sampled := make(chan diskUse, 1)
		go func() { sampled <- sampleDisk(sampling, filepath.Join(agent.Node.Data, "blobs")) }()
		pinned, err := c.Image(images, l.Plan.Layers, limit/5)
		if err != nil {
			return err
		}
		const pinnedName = wave.Repository + "/pinned"
		if err := c.Push(ctx, pinnedName, "1", pinned); err != nil {
			return err
		}
		planned, err := createWave(ctx, c, pinnedName)
		if err != nil {
			return err
		}
		if _, err := planned.await(ctx, c.Origin(), "the pins", func(s waveStatus) bool { return s.Hosts.Done == 1 }); err != nil {
			return err
		}
		var results []wave.Result
		for n := range images {
			img, err := c.Image(uint64(n), l.Plan.Layers, l.Plan.Bytes/images)
			if err != nil {
				return err
			}
			name := fmt.Sprintf("%s/cached-%d", wave.Repository, n)
			if err := c.Push(ctx, name, "1", img); err != nil {
				return err
			}
			pulled, err := c.Pull(ctx, c.Agents, name, img, nil)
			if err != nil {
				return err
			}
			results = append(results, pulled...)
		}
		before, err := fetched(ctx, c.Agents)
		if err != nil {
			return err
		}
		again, err := c.Pull(ctx, c.Agents, pinnedName, pinned, nil)
		if err != nil {
			return err
		}
		after, err := fetched(ctx, c.Agents)
		if err != nil {
			return err
		}
		stop()
		use := <-sampled
		l.rightBytes(append(results, again...))
		l.Must("bytes of the pinned image fetched again", "0", after == before, "%.0f", after-before)
		l.Must("most on disk, MiB", fmt.Sprintf("<= %d", limit>>20), use.most <= limit, "%.1f (of %d samples)", mib(use.most), use.samples)
		return nil
	},
}

// diskUse is what a folder held.
type diskUse struct {
	most    int64 // bytes of disk
	samples int
}

// sampleDisk measures a folder every 10 ms until ctx ends.
func sampleDisk(ctx context.Context, folder string) (use diskUse) {
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for {
		use.most = max(use.most, atOnce(filesOf(folder), filesOf(folder)))
		use.samples++
		select {
		case <-ctx.Done():
			return use
		case <-ticker.C:
		}
	}
}

// atOnce returns what two listings, one after the other, say was on disk between them: of
// what both have the lesser. One alone may count a file that goes while it is made, and
// then the one that takes its room.
func atOnce(before, after map[string]int64) (bytes int64) {
	for name, had := range before {
		bytes += min(had, after[name])
	}
	return bytes
}

// filesOf returns the bytes of disk that each file in a folder takes, as du counts them.
// Files that vanish meanwhile are left out.
func filesOf(folder string) map[string]int64 {
	files := make(map[string]int64)
	_ = filepath.WalkDir(folder, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return nil
		}
		if info, err := entry.Info(); err == nil {
			if stat, ok := info.Sys().(*syscall.Stat_t); ok {
				files[name] = stat.Blocks * 512
			}
		}
		return nil
	})
	return files
}
