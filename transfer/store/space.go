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
	err := unix.Statfs(d.cfg.Dir, &st)
	if errors.Is(err, fs.ErrNotExist) {
		// Somebody removed the directory.
		if err = d.rebuild(); err == nil {
			err = unix.Statfs(d.cfg.Dir, &st)
		}
	}
	if err != nil {
		return 0, fmt.Errorf("ask for free space: %w", err)
	}
	reserve := d.cfg.Reserve
	if reserve == 0 {
		reserve = min(int64(st.Blocks)*st.Frsize/100, defaultReserve)
	}
	return int64(st.Bavail)*st.Frsize - max(reserve, 0), nil
}

// onDisk is what a file of n bytes takes; file systems give out blocks of 4 KiB.
func onDisk(n int64) int64 { return (n + 4095) &^ 4095 }

// footprint is what the files of one blob take.
func footprint(fl files) int64 {
	var sum int64
	for _, path := range []string{fl.whole, fl.part, fl.have, fl.chunkMap} {
		if stat, err := os.Stat(path); err == nil {
			sum += onDisk(stat.Size())
		}
	}
	return sum
}

// account is called before the files of a blob change, under its lock. The function
// that it returns is called afterwards and corrects the count; reserved is what was
// reserved for the change.
func (d *Disk) account(fl files) func(reserved int64) {
	if !exists(fl.dir) {
		if err := d.rebuild(); err != nil {
			d.log.Warn("cannot make the store's directories again", "error", err)
		}
	}
	if err := d.countShard(filepath.Base(fl.dir)); err != nil {
		d.log.Warn("cannot count the blobs of a directory", "directory", fl.dir, "error", err)
	}
	before := footprint(fl)
	return func(reserved int64) { d.used.Add(footprint(fl) - before - reserved) }
}

// reserve counts bytes as used if they fit; a cache makes room first. give takes it back.
//
// Errors: meta.ErrNoSpace.
func (d *Disk) reserve(ctx context.Context, bytes int64) error {
	if err := d.capped(ctx, bytes, false); err != nil {
		return err
	}
	if err := d.room(ctx, bytes); err != nil {
		d.give(bytes)
		return err
	}
	return nil
}

func (d *Disk) give(bytes int64) { d.used.Add(-bytes) }

// capped is the part of reserve that is about the cache's cap. A window may take what
// is kept free of other content.
func (d *Disk) capped(ctx context.Context, bytes int64, window bool) error {
	limit := d.cfg.CacheBytes
	if limit <= 0 {
		d.used.Add(bytes)
		return nil
	}
	most := d.contentCap()
	if window {
		most = limit
	}
	if bytes > most {
		return fmt.Errorf("%s do not fit a cache of %s, which --cache-size can make larger: %w", size(bytes), size(limit), meta.ErrNoSpace)
	}
	// After a kill nobody knows what is here until it was counted.
	if err := d.countAll(ctx); err != nil {
		return err
	}
	for {
		used, windows := d.used.Load(), d.windows.Load()
		if used+bytes <= limit && (window || used-windows+bytes <= most) {
			if !d.used.CompareAndSwap(used, used+bytes) {
				continue
			}
			if used-windows+bytes > d.contentCap()/100*highWater {
				d.wakeEvictor()
			}
			return nil
		}
		target := min(most, limit-windows) - bytes
		removed, err := d.evict(ctx, min(target, d.contentCap()/100*lowWater), target)
		if err != nil {
			return err
		}
		if removed == 0 && d.used.Load() >= used {
			return fmt.Errorf("%s do not fit: of the cache of %s all but %s is pinned or in use, --cache-size can make it larger: %w",
				size(bytes), size(limit), size(max(limit-d.used.Load(), 0)), meta.ErrNoSpace)
		}
	}
}

// content is what is used by other than windows: what eviction can change.
func (d *Disk) content() int64 { return d.used.Load() - d.windows.Load() }

// size writes a number of bytes for people.
func size(n int64) string {
	if n < 1<<20 {
		return fmt.Sprintf("%d bytes", n)
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}

func (d *Disk) wakeEvictor() {
	select {
	case d.evictWake <- struct{}{}:
	default:
	}
}

// room says whether the file system has bytes above its reserve; a cache makes room first.
//
// Errors: meta.ErrNoSpace.
func (d *Disk) room(ctx context.Context, bytes int64) error {
	free, err := d.free()
	if err != nil {
		return err
	}
	if free < bytes && d.cfg.CacheBytes > 0 {
		target := max(0, d.content()-(bytes-free))
		if _, err := d.evict(ctx, target, target); err != nil {
			return err
		}
		if free, err = d.free(); err != nil {
			return err
		}
	}
	if free < bytes {
		return fmt.Errorf("%s do not fit, %s are free above the reserve: %w", size(bytes), size(max(free, 0)), meta.ErrNoSpace)
	}
	return nil
}

func (d *Disk) refuse(reason string) {
	if d.metrics != nil {
		d.metrics.refused.WithLabelValues(reason).Inc()
	}
}

// evictAhead keeps the cache below its high water mark, so that new content seldom
// waits for room. What may not go yet is left for when room is needed.
func (d *Disk) evictAhead(ctx context.Context) error {
	limit := d.contentCap()
	if limit <= 0 || d.content() <= limit/100*highWater {
		return nil
	}
	_, err := d.evict(ctx, limit/100*lowWater, limit)
	return err
}

const (
	// evictBatch is how many candidates one pass over the directories collects; it
	// bounds the memory of evicting from a cache of any number of blobs.
	evictBatch = 4096
	// lastWithin is how long one eviction asks which blobs are last copies.
	lastWithin = 2 * time.Second
)

// evict removes the least recently used blobs until at most target bytes of content are
// left, or all of them are open, pinned or the last copy of their region. Last copies
// go too, but only until at most yield bytes are left.
func (d *Disk) evict(ctx context.Context, target, yield int64) (removed int, err error) {
	d.evicting.Lock()
	defer d.evicting.Unlock()
	until := time.Now().Add(lastWithin)
	for d.content() > target {
		oldest, err := d.oldest(ctx)
		if err != nil {
			return removed, fmt.Errorf("evict: %w", err)
		}
		before := removed
		var last []Info
		for _, info := range oldest {
			if d.content() <= target {
				break
			}
			if d.cfg.Last != nil && time.Now().Before(until) && d.cfg.Last(info.Root) {
				last = append(last, info)
				continue
			}
			if err := d.evictOne(ctx, info, &removed); err != nil {
				return removed, err
			}
		}
		for _, info := range last {
			if d.content() <= max(yield, target) {
				d.metrics.countSpared()
				continue
			}
			if err := d.evictOne(ctx, info, &removed); err != nil {
				return removed, err
			}
		}
		if removed == before {
			break
		}
	}
	return removed, nil
}

// oldest returns the least recently used blobs that may go, oldest first.
func (d *Disk) oldest(ctx context.Context) ([]Info, error) {
	var h newestFirst
	err := d.each(ctx, func(info Info) {
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
	return e != nil && e.refs > e.yields
}

// evictOne removes a blob unless somebody has opened or pinned it meanwhile.
func (d *Disk) evictOne(ctx context.Context, info Info, removed *int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	e := d.hold(info.Root)
	defer d.drop(e)
	if !e.seize() {
		return nil
	}
	defer e.unlock()
	if err := e.removeFiles(d.files(info.Root)); err != nil {
		return fmt.Errorf("evict %s: %w", info.Root, err)
	}
	*removed++
	d.metrics.countEvicted(info.StoredBytes)
	return nil
}

// each visits every blob.
func (d *Disk) each(ctx context.Context, visit func(Info)) error {
	for n := range 256 {
		if err := ctx.Err(); err != nil {
			return err
		}
		infos, err := d.shard(n)
		if err != nil {
			return err
		}
		for _, info := range infos {
			visit(info)
		}
	}
	return nil
}

// countAll makes used right after an unclean end.
func (d *Disk) countAll(ctx context.Context) error {
	if d.counted.Load() {
		return nil
	}
	for n := range 256 {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := d.countShard(fmt.Sprintf("%02x", n)); err != nil {
			return fmt.Errorf("count blobs: %w", err)
		}
	}
	d.counted.Store(true)
	return nil
}

// countShard adds the files of one directory to used, once in a process and before the
// process changes any of them; from then on the changes are added.
func (d *Disk) countShard(shard string) error {
	if d.counted.Load() {
		return nil
	}
	d.counting.Lock()
	defer d.counting.Unlock()
	if d.shardsCounted[shard] {
		return nil
	}
	names, err := os.ReadDir(d.path(blobsDir, shard))
	if err != nil {
		return err
	}
	var sum int64
	for _, n := range names {
		stat, err := n.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if filepath.Ext(n.Name()) != tempSuffix {
			sum += onDisk(stat.Size())
		} else if stat.ModTime().Before(d.started) {
			// Of a process that was killed; of ours it is reserved already.
			if err := unlink(d.path(blobsDir, shard, n.Name())); err != nil {
				return err
			}
		}
	}
	d.used.Add(sum)
	d.shardsCounted[shard] = true
	return nil
}

// scan counts after an unclean end and removes what a killed process left behind.
func (d *Disk) scan(ctx context.Context) error {
	if err := d.countAll(ctx); err != nil {
		return err
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
		settle := d.account(d.files(root))
		defer func() { settle(0) }()
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
