package scenario

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/lab/wave"
)

var memory = Scenario{
	Name:  "memory",
	Claim: "64 clients read ranges of a 10 GiB blob while it arrives at their agent",
	Full:  wave.Plan{Hosts: 1, Bytes: 10 << 30, Layers: 1},
	Quick: wave.Plan{Hosts: 1, Bytes: 256 << 20, Layers: 1},
	Run: func(ctx context.Context, l *Lab) error {
		const readers = 64
		if fit, err := halfOfDisk(l.dir); err != nil {
			return err
		} else if l.Plan.Kept() > fit {
			fit = max(fit/4, 64<<20)
			l.Say("%d bytes at two nodes do not fit in half of what is free here: SCALED DOWN to %d", l.Plan.Bytes, fit)
			l.Plan.Bytes = fit
		}
		c, err := l.Start(ctx)
		if err != nil {
			return err
		}
		img, err := c.Image(0, 1, l.Plan.Bytes)
		if err != nil {
			return err
		}
		layer := img.Parsed.Layers[0]
		parts, err := describeParts(img.Layer(0), layer.Size, readers)
		if err != nil {
			return err
		}
		const name = wave.Repository + "/large"
		if err := c.Push(ctx, name, "1", img); err != nil {
			return err
		}
		if err := c.Warm(ctx); err != nil {
			return err
		}
		agent := c.Agents[0]
		before, err := agent.Process().Memory()
		if err != nil {
			return err
		}
		l.Say("%d readers", len(parts))
		errs := make([]error, len(parts))
		var reading sync.WaitGroup
		var offset int64
		for i, part := range parts {
			reading.Add(1)
			go func(offset int64) {
				defer reading.Done()
				errs[i] = c.Registry(agent, "").PullRange(ctx, name, layer.Digest, offset, part)
			}(offset)
			offset += part.Size
		}
		reading.Wait()
		right := 0
		for i, err := range errs {
			if err == nil {
				right++
			} else {
				l.Say("reader %d: %v", i, err)
			}
		}
		after, err := agent.Process().Memory()
		if err != nil {
			return err
		}
		l.Must("readers with the right bytes", fmt.Sprint(len(parts)), right == len(parts), "%d", right)
		l.AtMost("memory of the agent, MiB resident at most", "%.0f", mib(after.Peak), 256)
		l.Note("before the readers came, MiB", "%.0f", mib(before.Now))
		l.Note("size of the blob, MiB", "%.0f", mib(layer.Size))
		return nil
	},
}

// halfOfDisk returns half of the free bytes where folder is.
func halfOfDisk(folder string) (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(folder, &fs); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: folder, Err: err}
	}
	return int64(fs.Bavail) * fs.Bsize / 2, nil
}

// describeParts cuts a stream of total bytes into n parts of about the same length and
// returns their sizes and digests.
func describeParts(r io.Reader, total int64, n int) ([]image.Descriptor, error) {
	var parts []image.Descriptor
	for i := range int64(n) {
		var sum hash.Hash = sha256.New()
		size := total*(i+1)/int64(n) - total*i/int64(n)
		if _, err := io.CopyN(sum, r, size); err != nil {
			return nil, err
		}
		parts = append(parts, image.Descriptor{Digest: "sha256:" + hex.EncodeToString(sum.Sum(nil)), Size: size})
	}
	return parts, nil
}
