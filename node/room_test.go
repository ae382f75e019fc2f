package node

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/gateway/rendered"
	"github.com/shoal-registry/shoal/raftmeta/consensus"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func TestRoomOf(t *testing.T) {
	const mib = 1 << 20
	small, large := reserveOf(512*mib), reserveOf(1<<40)
	if small != (reserve{low: 96 * mib, full: 48 * mib}) || large != (reserve{low: 1 << 30, full: 160 * mib}) {
		t.Errorf("reserves are %+v, %+v", small, large)
	}
	level := consensus.RoomPlenty
	for i, step := range []struct {
		free int64
		want consensus.Room
	}{
		{200, consensus.RoomPlenty}, {96, consensus.RoomPlenty}, {95, consensus.RoomLow}, {100, consensus.RoomLow}, {119, consensus.RoomLow},
		{120, consensus.RoomPlenty}, {96, consensus.RoomPlenty}, {47, consensus.RoomFull}, {48, consensus.RoomFull}, {59, consensus.RoomFull},
		{60, consensus.RoomLow}, {48, consensus.RoomLow}, {10, consensus.RoomFull}, {119, consensus.RoomLow}, {10, consensus.RoomFull}, {500, consensus.RoomPlenty},
	} {
		if level = small.roomOf(level, step.free*mib); level != step.want {
			t.Errorf("step %d: %d MiB free is %d, want %d", i, step.free, level, step.want)
		}
	}
}

// TestPageRoom: rendered documents leave the reserve of blobs alone, and that of the
// metadata on the same disk however many are made for who asks.
func TestPageRoom(t *testing.T) {
	const gib = 1 << 30
	shared := reserveOf(1000 * gib)
	blobs := shared.low + shared.low/4
	for _, c := range []struct {
		reserve, total, free int64
		want                 rendered.Room
	}{
		{0, 10 * gib, gib / 10, rendered.RoomPlenty}, {0, 10 * gib, gib / 10 * 95 / 100, rendered.RoomPassing}, {0, 10 * gib, gib / 20, rendered.RoomNone},
		{0, 1000 * gib, gib / 2, rendered.RoomPlenty}, {0, 1000 * gib, gib/2 - 1, rendered.RoomPassing}, {0, 1000 * gib, 0, rendered.RoomNone},
		{blobs, 1000 * gib, blobs, rendered.RoomPlenty}, {blobs, 1000 * gib, blobs - 1, rendered.RoomPassing},
		{blobs, 1000 * gib, shared.low + shared.low/9, rendered.RoomNone}, {blobs, 1000 * gib, shared.low, rendered.RoomNone},
	} {
		if got := pageRoom(c.reserve, c.total, c.free, meta.RoleServer); got != c.want {
			t.Errorf("%d free of %d with a reserve of %d is %d, want %d", c.free, c.total, c.reserve, got, c.want)
		}
	}
	for free, want := range map[int64]rendered.Room{100: rendered.RoomPlenty, 50: rendered.RoomPlenty, 45: rendered.RoomPassing, 44: rendered.RoomNone} {
		if got := pageRoom(100, 1000, free, meta.RoleAgent); got != want {
			t.Errorf("%d free of an agent's disk is %d, want %d", free, got, want)
		}
	}
}

// TestPageReserve: what blobs leave free of a disk of their own is nothing to documents.
func TestPageReserve(t *testing.T) {
	dir := t.TempDir()
	for blobs, want := range map[string]int64{dir: 5, filepath.Join(dir, "none"): 5, "/proc": 0} {
		if got := pageReserve(dir, blobs, 5); got != want {
			t.Errorf("beside blobs in %s: %d", blobs, got)
		}
	}
}

// Pushes are refused while a disk is at its reserve and taken again when it is not;
// the ballast comes and goes with the room.
func TestRoom(t *testing.T) {
	dir := t.TempDir()
	r, err := openRoom(dir, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	const mib = 1 << 20
	var free atomic.Int64
	r.usage = func(string) (int64, int64, error) { return 512 * mib, free.Load(), nil }
	free.Store(400 * mib)
	if r.Room() != consensus.RoomPlenty || r.Writable() != nil {
		t.Errorf("400 MiB: %v", r.Writable())
	}
	r.hold()
	for _, when := range []string{"made", "made whole after a start that was killed over it"} {
		if stat, err := os.Stat(r.ballast); err != nil || stat.Size() != 48*mib {
			t.Errorf("ballast, %s: %v, %v", when, stat, err)
		}
		if err := os.Truncate(r.ballast, 0); err != nil {
			t.Fatal(err)
		}
		r.hold()
	}
	free.Store(90 * mib)
	r.Room()
	unavailable, ok := errors.AsType[*meta.UnavailableError](r.Writable())
	if !ok || unavailable.Reason != "disk_reserve" || unavailable.RetryAfter <= 0 || !strings.Contains(r.Writable().Error(), "90MiB") {
		t.Errorf("90 MiB: %v", r.Writable())
	}
	free.Store(1 * mib)
	if r.Room() != consensus.RoomFull {
		t.Error("1 MiB is not full")
	}
	r.release()
	if _, err := os.Stat(r.ballast); !os.IsNotExist(err) {
		t.Errorf("the ballast is kept: %v", err)
	}
	free.Store(300 * mib)
	if r.Room() != consensus.RoomPlenty || r.Writable() != nil {
		t.Errorf("300 MiB: %v", r.Writable())
	}
	if got := r.blobs(dir, 5); got != 120*mib {
		t.Errorf("blobs beside the metadata keep %d free", got)
	}
	if got := r.blobs("/proc", 5); got != 5 {
		t.Errorf("blobs on a disk of their own keep %d free", got)
	}
}
