package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/shoal-registry/shoal/node/config"
	"github.com/shoal-registry/shoal/raftmeta/consensus"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// reserve is what a disk with metadata keeps free. Below low this server takes no
// more pushes and does not lead; below full its log takes nothing either.
type reserve struct{ low, full int64 }

// reserveOf returns the reserve of a disk of so many bytes: below full fit two
// segments of the log and what the state writes while it tidies up.
func reserveOf(total int64) reserve {
	full := 2*int64(segmentOf(total)) + 32<<20
	return reserve{low: max(2*full, min(total/100, 1<<30)), full: full}
}

// segmentOf returns the bytes of a file of the raft log, which are taken at once.
func segmentOf(total int64) int {
	if total < 8<<30 {
		return 8 << 20
	}
	return 64 << 20
}

// roomOf says what so many free bytes are, after was. To rise takes a quarter more
// than to fall, so that a disk at the edge does not flap.
func (r reserve) roomOf(was consensus.Room, free int64) consensus.Room {
	above := func(limit int64, level consensus.Room) bool {
		if was >= level {
			limit += limit / 4
		}
		return free >= limit
	}
	switch {
	case above(r.low, consensus.RoomLow):
		return consensus.RoomPlenty
	case above(r.full, consensus.RoomFull):
		return consensus.RoomLow
	}
	return consensus.RoomFull
}

// room watches the disks of a server's metadata: log and state may each be a mount of
// their own. A ballast file is held where the state is, and given back when somebody
// else has filled that disk: with it the state can still be closed, opened and tidied.
type room struct {
	dirs    []string
	ballast string
	usage   func(dir string) (total, free int64, err error)
	log     *slog.Logger
	gauge   *prometheus.GaugeVec

	mu    sync.Mutex
	level consensus.Room
	why   string // of the level, of the disk that is worst
}

const ballastFile = "ballast"

func openRoom(data string, reg prometheus.Registerer, log *slog.Logger) (*room, error) {
	r := &room{
		dirs: []string{filepath.Join(data, "state"), filepath.Join(data, "raft")}, ballast: filepath.Join(data, "state", ballastFile),
		usage: diskUsage, log: log,
		gauge: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "shoal_metadata_disk_free_bytes", Help: "Free bytes of the disks that hold this server's metadata, by directory.",
		}, []string{"directory"}),
	}
	readOnly := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "shoal_read_only", Help: "1 while this server takes no pushes because a disk of its metadata is at its reserve.",
	}, func() float64 {
		if r.Writable() != nil {
			return 1
		}
		return 0
	})
	for _, dir := range r.dirs {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	// A start on a full disk needs what the ballast holds.
	if r.Room() == consensus.RoomFull {
		r.release()
	}
	return r, errors.Join(reg.Register(r.gauge), reg.Register(readOnly))
}

func diskUsage(dir string) (total, free int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, fmt.Errorf("ask for free space: %w", err)
	}
	return int64(st.Blocks) * st.Frsize, int64(st.Bavail) * st.Frsize, nil
}

// Room is what the disk that is worst has. One that cannot be asked is left out: the
// next write finds out.
func (r *room) Room() consensus.Room {
	r.mu.Lock()
	defer r.mu.Unlock()
	worst, why := consensus.RoomPlenty, ""
	for _, dir := range r.dirs {
		total, free, err := r.usage(dir)
		if err != nil {
			continue
		}
		r.gauge.WithLabelValues(filepath.Base(dir)).Set(float64(free))
		keep := reserveOf(total)
		if now := keep.roomOf(r.level, free); now > worst {
			worst = now
			why = fmt.Sprintf("the disk of %s has %s free, %s are its reserve", dir, config.Bytes(free), config.Bytes(keep.low))
		}
	}
	if worst != r.level {
		r.log.Warn("room of the metadata's disks changed", "level", [...]string{"plenty", "low", "full"}[worst], "reason", why)
	}
	r.level, r.why = worst, why
	return worst
}

// readOnlyRetry is when a client should try again: somebody has to make room.
const readOnlyRetry = 10 * time.Second

// Writable refuses what adds content while a disk is at its reserve. What takes away
// is let through.
//
// Errors: *meta.UnavailableError with disk_reserve.
func (r *room) Writable() error {
	r.mu.Lock()
	level, why := r.level, r.why
	r.mu.Unlock()
	if level == consensus.RoomPlenty {
		return nil
	}
	return fmt.Errorf("this server takes no new content, %s: %w", why, &meta.UnavailableError{Reason: "disk_reserve", RetryAfter: readOnlyRetry})
}

// blobs returns the reserve of a blob directory: above that of the metadata where they
// share a disk, so that blobs never make this server read-only.
func (r *room) blobs(dir string, configured int64) int64 {
	var a, b unix.Stat_t
	if unix.Stat(dir, &b) != nil && unix.Stat(filepath.Dir(dir), &b) != nil {
		return configured
	}
	for _, d := range r.dirs {
		if unix.Stat(d, &a) != nil || a.Dev != b.Dev {
			continue
		}
		if total, _, err := r.usage(d); err == nil {
			keep := reserveOf(total)
			configured = max(configured, keep.low+keep.low/4)
		}
	}
	return configured
}

// segment returns the bytes of a file of the raft log.
func (r *room) segment() int {
	total, _, err := r.usage(r.dirs[1])
	if err != nil {
		return 0
	}
	return segmentOf(total)
}

// release gives the ballast back.
func (r *room) release() {
	if err := os.Remove(r.ballast); err == nil {
		r.log.Warn("the ballast of the metadata's disk was given back: make room on it", "file", r.ballast)
	}
}

// run looks at the disks, and keeps the ballast while there is plenty.
func (r *room) run(ctx context.Context) error {
	const every = 250 * time.Millisecond
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		switch r.Room() {
		case consensus.RoomPlenty:
			r.hold()
		case consensus.RoomFull:
			r.release()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// hold makes the ballast when it is not there and fits twice above the reserve.
func (r *room) hold() {
	// An empty one is of a process that was killed before it had its blocks.
	if stat, err := os.Stat(r.ballast); err == nil && stat.Size() > 0 || err != nil && !errors.Is(err, fs.ErrNotExist) {
		return
	}
	total, free, err := r.usage(r.dirs[0])
	keep := reserveOf(total)
	if err != nil || free < keep.low+2*keep.full {
		return
	}
	f, err := os.OpenFile(r.ballast, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	err = errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, keep.full), f.Close())
	if err != nil {
		r.log.Debug("no ballast on this disk", "error", err)
		_ = os.Remove(r.ballast) // a part of it helps nobody
	}
}
