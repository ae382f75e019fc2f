package store

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/verify/digest"
)

// chunkBuffers holds buffers of one chunk.
var chunkBuffers = buffers{size: chunk.MaxStoredBytes}

// buffers is a pool of equal buffers.
type buffers struct {
	size int
	pool sync.Pool
}

type buffer struct{ b []byte }

func (p *buffers) get() *buffer {
	if b, ok := p.pool.Get().(*buffer); ok {
		return b
	}
	return &buffer{make([]byte, p.size)}
}

func (p *buffers) put(b *buffer) { p.pool.Put(b) }

// free returns the bytes of the file system that are left above the reserve.
func (d *Disk) free() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(d.cfg.Dir, &st); err != nil {
		return 0, fmt.Errorf("ask for free space: %w", err)
	}
	reserve := d.cfg.Reserve
	if reserve == 0 {
		reserve = min(int64(st.Blocks)*st.Frsize/100, defaultReserve)
	}
	return int64(st.Bavail)*st.Frsize - max(reserve, 0), nil
}

// room says whether bytes more fit; a cache makes room first.
//
// Errors: meta.ErrNoSpace.
func (d *Disk) room(ctx context.Context, bytes int64) error {
	if d.cfg.CacheBytes > 0 {
		if bytes > d.cfg.CacheBytes {
			return fmt.Errorf("%d bytes are more than the whole cache of %d: %w", bytes, d.cfg.CacheBytes, meta.ErrNoSpace)
		}
		if used := d.used.Load(); used+bytes > d.cfg.CacheBytes {
			if err := d.evict(ctx, min(d.cfg.CacheBytes-bytes, d.cfg.CacheBytes/100*lowWater)); err != nil {
				return err
			}
			if d.used.Load()+bytes > d.cfg.CacheBytes {
				d.refuse("space")
				return fmt.Errorf("%d bytes do not fit, all else in the cache is in use: %w", bytes, meta.ErrNoSpace)
			}
		} else if used+bytes > d.cfg.CacheBytes/100*highWater {
			select {
			case d.evictWake <- struct{}{}:
			default:
			}
		}
	}
	free, err := d.free()
	if err != nil {
		return err
	}
	if free < bytes && d.cfg.CacheBytes > 0 {
		if err := d.evict(ctx, max(0, d.used.Load()-(bytes-free))); err != nil {
			return err
		}
		if free, err = d.free(); err != nil {
			return err
		}
	}
	if free < bytes {
		d.refuse("space")
		return fmt.Errorf("%d bytes do not fit, %d are free above the reserve: %w", bytes, max(free, 0), meta.ErrNoSpace)
	}
	return nil
}

func (d *Disk) refuse(reason string) {
	if d.metrics != nil {
		d.metrics.refused.WithLabelValues(reason).Inc()
	}
}

// evictAhead keeps the cache below its high water mark, so that new content seldom
// waits for room.
func (d *Disk) evictAhead(ctx context.Context) error {
	if d.cfg.CacheBytes <= 0 || d.used.Load() <= d.cfg.CacheBytes/100*highWater {
		return nil
	}
	return d.evict(ctx, d.cfg.CacheBytes/100*lowWater)
}

// evictBatch is how many candidates one pass over the directories collects; it bounds
// the memory of evicting from a cache of any number of blobs.
const evictBatch = 4096

// evict removes the least recently used blobs until at most target bytes are used,
// or all that is left is open or pinned.
func (d *Disk) evict(ctx context.Context, target int64) error {
	d.evicting.Lock()
	defer d.evicting.Unlock()
	for d.used.Load() > target {
		oldest, err := d.oldest(ctx)
		if err != nil {
			return fmt.Errorf("evict: %w", err)
		}
		removed := 0
		for _, info := range oldest {
			if d.used.Load() <= target {
				break
			}
			gone, err := d.evictOne(info.Root)
			if err != nil {
				return fmt.Errorf("evict %s: %w", info.Root, err)
			}
			if gone {
				removed++
				d.metrics.countEvicted(info.StoredBytes)
			}
		}
		if removed == 0 {
			return nil
		}
	}
	return nil
}

// oldest returns the least recently used blobs that may go, oldest first, and
// corrects the count of used bytes on the way.
func (d *Disk) oldest(ctx context.Context) ([]Info, error) {
	var h newestFirst
	err := d.count(ctx, func(info Info) {
		if d.pins.has(info.Root) || d.isOpen(info.Root) {
			return
		}
		if len(h) < evictBatch {
			heap.Push(&h, info)
		} else if info.LastUse.Before(h[0].LastUse) {
			h[0] = info
			heap.Fix(&h, 0)
		}
	})
	if err != nil {
		return nil, err
	}
	out := make([]Info, len(h))
	for i := len(h) - 1; i >= 0; i-- {
		out[i] = heap.Pop(&h).(Info)
	}
	return out, nil
}

type newestFirst []Info

func (h newestFirst) Len() int           { return len(h) }
func (h newestFirst) Less(i, j int) bool { return h[i].LastUse.After(h[j].LastUse) }
func (h newestFirst) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *newestFirst) Push(x any)        { *h = append(*h, x.(Info)) }
func (h *newestFirst) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

func (d *Disk) isOpen(root digest.CID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.entries[root]
	return e != nil && e.refs > 0
}

// evictOne removes root unless somebody has opened or pinned it meanwhile.
func (d *Disk) evictOne(root digest.CID) (bool, error) {
	e := d.hold(root)
	defer d.drop(e)
	e.life.Lock()
	defer e.unlock()
	d.mu.Lock()
	alone := e.refs == 1
	d.mu.Unlock()
	// Who opens it from now on waits for life and then finds it absent.
	if !alone || d.pins.has(root) {
		return false, nil
	}
	return true, e.removeFiles(d.files(root))
}

// count visits every blob and sets used to their sum. What is created or removed
// meanwhile may be counted twice or not at all; the next count corrects that.
func (d *Disk) count(ctx context.Context, visit func(Info)) error {
	var sum int64
	for n := range 256 {
		if err := ctx.Err(); err != nil {
			return err
		}
		infos, err := d.shard(n)
		if err != nil {
			return err
		}
		for _, info := range infos {
			sum += info.StoredBytes
			visit(info)
		}
	}
	d.used.Store(sum)
	d.counted.Store(true)
	return nil
}

// scan counts after an unclean end and removes what a killed process left behind.
func (d *Disk) scan(ctx context.Context) error {
	if !d.counted.Load() {
		if err := d.count(ctx, func(Info) {}); err != nil {
			return err
		}
	}
	dirs := []string{d.path(uploadsDir)}
	for n := range 256 {
		dirs = append(dirs, d.path(blobsDir, fmt.Sprintf("%02x", n)))
	}
	for _, dir := range dirs {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := d.tidy(dir); err != nil {
			return err
		}
	}
	return nil
}

// tidy removes files of dir that mean nothing: temporary ones of before this
// process, a bitmap without a partial blob, a map without any.
func (d *Disk) tidy(dir string) error {
	names, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	there := make(map[string]bool, len(names))
	for _, n := range names {
		there[n.Name()] = true
	}
	for _, n := range names {
		name := n.Name()
		var stray bool
		switch base, suffix := cutSuffix(name); suffix {
		case tempSuffix:
			stray = true
		case haveSuffix:
			stray = !there[base+partSuffix] || there[base]
		case mapSuffix:
			stray = !there[base+partSuffix] && !there[base]
		case partSuffix:
			stray = there[base]
		case stateSuffix:
			stray = !there[base+partSuffix]
		}
		if !stray {
			continue
		}
		stat, err := n.Info()
		if err == nil && stat.ModTime().Before(d.started) {
			err = d.removeStray(dir, name)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func cutSuffix(name string) (base, suffix string) {
	suffix = filepath.Ext(name)
	return strings.TrimSuffix(name, suffix), suffix
}

// removeStray removes a stray file unless its blob has come to life meanwhile.
func (d *Disk) removeStray(dir, name string) error {
	base, _, _ := strings.Cut(name, ".")
	if root, err := digest.ParseHex(base); err == nil {
		e := d.hold(root)
		defer d.drop(e)
		e.life.Lock()
		defer e.unlock()
		switch state, _ := e.snapshot(); {
		case state == partial:
			return nil
		case state == complete && strings.HasSuffix(name, mapSuffix):
			return nil
		}
		// One that is not loaded may have got its other files since they were listed.
		if stat, err := os.Stat(filepath.Join(dir, name)); err != nil || !stat.ModTime().Before(d.started) {
			return err
		}
	}
	return unlink(filepath.Join(dir, name))
}

// Sweep ends the upload sessions that received nothing since a time. Sessions in use
// stay.
func (d *Disk) Sweep(ctx context.Context, before time.Time) error {
	names, err := os.ReadDir(d.path(uploadsDir))
	if err != nil {
		return fmt.Errorf("sweep uploads: %w", err)
	}
	swept := 0
	for _, n := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		id, suffix := cutSuffix(n.Name())
		if suffix != partSuffix {
			continue
		}
		stat, err := n.Info()
		if err != nil || !stat.ModTime().Before(before) {
			continue // gone meanwhile, or fresh
		}
		switch err := d.expire(id); {
		case err == nil:
			swept++
		case !errors.Is(err, meta.ErrConflict):
			return fmt.Errorf("sweep uploads: %w", err)
		}
	}
	if swept > 0 {
		d.log.Info("expired unfinished uploads", "count", swept)
	}
	return nil
}
