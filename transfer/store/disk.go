package store

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/verify/digest"
)

// DiskConfig is what a Disk needs. Only Dir is required.
type DiskConfig struct {
	// Dir is made when absent; one process at a time may have it open.
	Dir string
	// Fsync makes commits durable before they return: the file, then its rename,
	// then the directory. Without it, content from before a crash of the machine
	// is hashed again when it is first opened.
	Fsync bool
	// CacheBytes is the most that files may take; then the least recently used blobs
	// that are neither open nor pinned go. A blob that does not fit passes through, a
	// part at a time (Blob.Window). 0 is no limit, and nothing ever goes.
	CacheBytes int64
	// HotBytes bounds the verified chunks kept in memory. 0 is 64 MiB with Fsync
	// (servers) and 6 MiB without (agents); negative is none.
	HotBytes int64
	// Reserve bytes of the file system stay free: new content is refused below it.
	// 0 is 1 % of the file system, at most 512 MiB; negative is none.
	Reserve int64
	// MaxUploads bounds the upload sessions, open or waiting; 0 is 10,000.
	MaxUploads int
	// UploadTTL is how long a session may rest before Run removes it; 0 is 24 h.
	UploadTTL time.Duration
	// Last says whether this host has the last copy of a blob in its region. Such a
	// blob is evicted only when new content does not fit otherwise. It is asked
	// without a lock of a blob, may take a while and may guess; nil is never.
	Last func(root digest.CID) bool
	// OnCorrupt is told of each chunk found damaged; it must not block.
	OnCorrupt func(root digest.CID, i int)
	// Log is silent when nil, Metrics unregistered when nil.
	Log     *slog.Logger
	Metrics prometheus.Registerer

	observe func(what string) // a test's, told before each sync
}

const (
	idleEntries    = 256 // open files kept for blobs that nobody has open
	idleSessions   = 64  // upload sessions kept in memory that nobody has open
	pipelinedMost  = 8   // uploads that use several blocks at once
	maintainEvery  = time.Hour
	touchEvery     = time.Minute
	highWater      = 95 // per cent of CacheBytes where eviction starts
	lowWater       = 85 // and where it stops
	markFile       = "mark"
	lockFile       = "lock"
	blobsDir       = "blobs"
	uploadsDir     = "uploads"
	bootIDFile     = "/proc/sys/kernel/random/boot_id"
	defaultReserve = 512 << 20
	soundMost      = 1 << 14 // roots remembered as sound; a forgotten one is written again
)

// Disk is a Store on a local directory. OpenDisk builds it, Run maintains it, Close
// frees it; it serves without Run, but then nothing expires or is evicted ahead.
type Disk struct {
	cfg     DiskConfig
	log     *slog.Logger
	metrics *metrics
	hot     *hotCache
	fresh   fresh
	pins    *pins
	syncs   dirSyncs
	lock    *os.File
	started time.Time
	// What was written before the machine went down may not have reached the disk.
	// crashed is when it last came back while the store was open, restarted when it
	// last came back at all; zero is never. Complete blobs of a store that does not
	// sync are in doubt after a crash, unfinished content after any restart.
	crashed, restarted time.Time

	// used is what files take: blobs, partial ones in full, their maps and bitmaps, and
	// uploads; and what is reserved for those that are about to be.
	used      atomic.Int64
	windows   atomic.Int64 // of used, what passing blobs may take
	counted   atomic.Bool  // used is right: from a clean shutdown, or counted
	evicting  sync.Mutex
	evictWake chan struct{}
	pipelines chan struct{}

	counting      sync.Mutex
	shardsCounted map[string]bool // until counted

	// lives counts how often the directories had to be made again, looked is the last
	// count that Present has looked at; mended counts maps and bitmaps made again.
	lives, looked, mended atomic.Int64
	rebuilding            sync.Mutex
	mark                  mark     // as it is on disk
	early                 []string // of countMended, before there are metrics
	aside                 aside

	index       *chunkIndex
	copying     chan struct{} // one a chunk that is copied for Reuse
	cannotClone atomic.Bool
	reused      atomic.Int64 // bytes
	traffic     atomic.Int64 // bytes that were read and written, but by a scrub
	// sound are blobs that this process has received or verified whole.
	sound *lru.Cache[digest.CID, struct{}]

	mu       sync.Mutex
	closed   bool
	entries  map[digest.CID]*entry
	idle     *list.List // of *entry with refs == 0, most recent first
	sessions map[string]*session
	resting  *list.List // of *session with refs == 0, most recent first
	uploads  int        // sessions that exist, in memory or not
}

// mark is the record that tells a start how the process and the machine ended.
type mark struct {
	Version   uint      `cbor:"1,keyasint,omitempty"`
	Boot      string    `cbor:"2,keyasint,omitempty"`
	Clean     bool      `cbor:"3,keyasint,omitempty"`
	Counted   bool      `cbor:"4,keyasint,omitempty"` // UsedBytes is right, as of Clean
	UsedBytes int64     `cbor:"5,keyasint,omitempty"`
	Crashed   meta.Time `cbor:"6,keyasint,omitempty"`
	Restarted meta.Time `cbor:"7,keyasint,omitempty"`
}

// markVersion 2 counts maps, bitmaps and uploads in UsedBytes, too; 3 has a BLAKE3 of
// itself behind it.
const markVersion = 3

// OpenDisk opens the store in cfg.Dir. It reads no blob, so that a large store
// starts as fast as an empty one.
//
// Errors: meta.ErrUnavailable when another process has the directory open.
func OpenDisk(cfg DiskConfig) (*Disk, error) {
	if cfg.HotBytes == 0 {
		cfg.HotBytes = 6 << 20
		if cfg.Fsync {
			cfg.HotBytes = 64 << 20
		}
	}
	if cfg.MaxUploads == 0 {
		cfg.MaxUploads = 10_000
	}
	if cfg.UploadTTL == 0 {
		cfg.UploadTTL = 24 * time.Hour
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	d := &Disk{
		cfg: cfg, log: log, hot: newHotCache(cfg.HotBytes), started: time.Now(),
		evictWake: make(chan struct{}, 1), pipelines: make(chan struct{}, pipelinedMost),
		entries: map[digest.CID]*entry{}, idle: list.New(),
		sessions: map[string]*session{}, resting: list.New(),
		shardsCounted: map[string]bool{}, index: newChunkIndex(indexHints), copying: make(chan struct{}, reuseAtOnce),
	}
	d.sound, _ = lru.New[digest.CID, struct{}](soundMost) // fails for no size only
	if err := d.open(); err != nil {
		d.release()
		return nil, fmt.Errorf("open store %s: %w", cfg.Dir, err)
	}
	d.metrics = newMetrics(cfg.Metrics, d)
	for _, kind := range d.early {
		d.metrics.mended.WithLabelValues(kind).Inc()
	}
	return d, nil
}

func (d *Disk) open() error {
	if err := d.makeDirs(); err != nil {
		return err
	}
	var err error
	if d.lock, err = takeLock(d.path(lockFile)); err != nil {
		return err
	}
	if err := d.readMark(); err != nil {
		return err
	}
	if d.pins, err = openPins(d.path(pinsFile)); err != nil {
		return err
	}
	if n := d.pins.damaged; n > 0 {
		d.log.Warn("lines of the file of pins are damaged; what they pinned may be evicted", "count", n)
		d.countMended("pins")
	}
	count, bytes, err := d.countUploads()
	if err != nil {
		return err
	}
	if d.uploads = count; !d.counted.Load() {
		d.used.Add(bytes)
	}
	return nil
}

// countUploads returns how many uploads there are and what their files take.
func (d *Disk) countUploads() (count int, bytes int64, err error) {
	names, err := os.ReadDir(d.path(uploadsDir))
	for _, n := range names {
		if !strings.HasSuffix(n.Name(), partSuffix) {
			continue
		}
		count++
		if stat, err := n.Info(); err == nil {
			bytes += stat.Size()
		}
	}
	return count, bytes, err
}

// readMark learns how the last process ended and leaves the mark of this one.
func (d *Disk) readMark() error {
	boot, err := os.ReadFile(bootIDFile)
	if err != nil {
		// Without a boot id, each unclean start is taken for a crash of the machine.
		boot = []byte(d.started.String())
	}
	now := mark{Version: markVersion, Boot: strings.TrimSpace(string(boot))}
	started := meta.TimeOf(d.started)
	var last mark
	b, err := os.ReadFile(d.path(markFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		last = mark{Version: markVersion, Boot: now.Boot, Clean: true, Counted: true} // a new store is empty
	case err != nil:
		return err
	default:
		var ok bool
		if last, ok = parseMark(b); !ok {
			// Nothing is known of the last end: it is taken for a crash of the machine.
			d.log.Warn("the store's mark is damaged; what is not complete is checked again")
			d.countMended("mark")
		}
	}
	now.Crashed, now.Restarted = last.Crashed, last.Restarted
	if last.Boot != now.Boot {
		now.Restarted = started
		if !last.Clean {
			now.Crashed = started
		}
	}
	// With the same boot id the kernel lives: even a killed process has written what
	// it has written.
	d.crashed, d.restarted = now.Crashed.Std(), now.Restarted.Std()
	if !last.Clean {
		// A process that is killed between the name of a blob and its sync leaves a
		// whole blob that the next commit of the same content relies on.
		for i := range 256 {
			if err := d.syncDir(d.path(blobsDir, fmt.Sprintf("%02x", i))); err != nil {
				return err
			}
		}
	}
	if last.Clean && last.Counted && last.Version >= 2 {
		d.used.Store(last.UsedBytes)
		d.counted.Store(true)
	}
	return d.writeMark(now)
}

func (d *Disk) writeMark(m mark) error {
	if err := writeAtomic(d.path(markFile), m.encode(), true); err != nil {
		return err
	}
	d.mark = m
	return fsyncDir(d.cfg.Dir)
}

func (m mark) encode() []byte {
	b := codec.Encode(m)
	sum := digest.Sum(b)
	return append(b, sum[:]...)
}

// parseMark reads what writeMark wrote; up to version 2 it had no sum.
func parseMark(b []byte) (m mark, ok bool) {
	if n := len(b) - len(digest.CID{}); n > 0 && digest.Sum(b[:n]) == digest.CID(b[n:]) {
		return m, codec.Unmarshal(b[:n], &m) == nil
	}
	if codec.Unmarshal(b, &m) != nil || m.Version >= markVersion {
		return mark{}, false
	}
	return m, true
}

// Run counts what is there, expires uploads and evicts until ctx ends.
func (d *Disk) Run(ctx context.Context) error {
	if err := d.scan(ctx); err != nil && ctx.Err() == nil {
		return fmt.Errorf("scan store: %w", err)
	}
	if err := d.learn(ctx); err != nil && ctx.Err() == nil {
		d.log.Warn("cannot find out which chunks are here", "error", err)
	}
	ticker := time.NewTicker(maintainEvery)
	defer ticker.Stop()
	for {
		if err := d.Sweep(ctx, time.Now().Add(-d.cfg.UploadTTL)); err != nil && ctx.Err() == nil {
			d.log.Warn("expiring uploads failed", "error", err)
		}
		d.expireAside(time.Now())
		if err := d.evictAhead(ctx); err != nil && ctx.Err() == nil {
			d.log.Warn("evicting failed", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-d.evictWake:
		case <-ticker.C:
		}
	}
}

// Close saves the upload sessions and frees the directory. What is still open must
// not be used afterwards.
func (d *Disk) Close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	sessions := make([]*session, 0, len(d.sessions))
	for _, s := range d.sessions {
		sessions = append(sessions, s)
	}
	d.mu.Unlock()
	clean := true
	for _, s := range sessions {
		if !s.park() {
			clean = false
		}
	}
	d.mu.Lock()
	for _, e := range d.entries {
		if e.refs > 0 {
			clean = false
		}
		e.close()
	}
	d.mu.Unlock()
	d.hot.close()
	var err error
	if clean {
		err = d.markClean()
	}
	return errors.Join(err, d.release())
}

// markClean says that the process ended well.
func (d *Disk) markClean() error {
	m := d.mark
	m.Clean, m.Counted, m.UsedBytes = true, d.counted.Load(), d.used.Load()
	return d.writeMark(m)
}

func (d *Disk) release() error {
	d.metrics.unregister()
	var err error
	if d.pins != nil {
		err = d.pins.close()
	}
	if d.lock != nil {
		err = errors.Join(err, d.lock.Close())
	}
	return err
}

func (d *Disk) path(elem ...string) string {
	return filepath.Join(append([]string{d.cfg.Dir}, elem...)...)
}

// Pin keeps the blob, here or to come, from eviction and removal until owner unpins
// it. Pins survive a restart. Owners are words of this program or ids, without
// white space.
func (d *Disk) Pin(root digest.CID, owner string) error { return d.pins.set(root, owner, true) }

// Unpin takes back owner's Pin; without one it does nothing.
func (d *Disk) Unpin(root digest.CID, owner string) error { return d.pins.set(root, owner, false) }

// hold returns the entry of root, which may be of nothing; drop it after use.
func (d *Disk) hold(root digest.CID) *entry {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.entries[root]
	if e == nil {
		e = &entry{d: d, root: root}
		d.entries[root] = e
	} else if e.rest != nil {
		d.idle.Remove(e.rest)
		e.rest = nil
	}
	e.refs++
	return e
}

// drop gives back what hold returned. The files of a few idle blobs stay open.
func (d *Disk) drop(e *entry) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e.refs--; e.refs > 0 {
		return
	}
	if d.closed || !e.worthKeeping() {
		d.forget(e)
		return
	}
	e.rest = d.idle.PushFront(e)
	if d.idle.Len() > idleEntries {
		oldest := d.idle.Back().Value.(*entry)
		d.idle.Remove(oldest.rest)
		d.forget(oldest)
	}
}

func (d *Disk) forget(e *entry) {
	delete(d.entries, e.root)
	e.close()
}

// Open implements Store.
func (d *Disk) Open(ctx context.Context, root digest.CID) (Blob, error) {
	e := d.hold(root)
	if err := e.open(ctx, nil); err != nil {
		d.drop(e)
		return nil, fmt.Errorf("open blob %s: %w", root, err)
	}
	return &handle{e: e}, nil
}

// Holds says whether the whole blob is here. It is no use that eviction goes by.
func (d *Disk) Holds(ctx context.Context, root digest.CID) bool {
	e := d.hold(root)
	defer d.drop(e)
	if e.peek(ctx) != nil {
		return false
	}
	state, _ := e.snapshot()
	return state == complete
}

// Create implements Store.
func (d *Disk) Create(ctx context.Context, m *chunk.Map) (Blob, error) {
	root := m.Root()
	e := d.hold(root)
	// What the blob can be made of is held while room is made for it, or that might go
	// first. If nothing else can, it goes.
	from := d.sourcesOf(ctx, root, m)
	err := e.open(ctx, m)
	if from != nil && errors.Is(err, meta.ErrNoSpace) {
		from.close()
		from = nil
		err = e.open(ctx, m)
	}
	if errors.Is(err, meta.ErrNoSpace) {
		if e.pass(ctx, m) == nil {
			err = nil
		}
	}
	if err != nil {
		if errors.Is(err, meta.ErrNoSpace) {
			d.refuse("space")
		}
		from.close()
		d.drop(e)
		return nil, fmt.Errorf("create blob %s: %w", root, err)
	}
	h := &handle{e: e}
	h.sources.Store(from)
	return h, nil
}

// Remove implements Store.
func (d *Disk) Remove(ctx context.Context, root digest.CID) error {
	if d.pins.has(root) {
		return fmt.Errorf("remove blob %s: it is pinned: %w", root, meta.ErrConflict)
	}
	e := d.hold(root)
	defer d.drop(e)
	if err := e.remove(); err != nil {
		return fmt.Errorf("remove blob %s: %w", root, err)
	}
	return nil
}

// Verify reads every chunk of root that is here from the disk, not from memory, and
// returns how many were damaged; these are then missing.
//
// Errors: meta.ErrNotFound, ctx's.
func (d *Disk) Verify(ctx context.Context, root digest.CID) (bad int, err error) {
	s, err := d.Scrub(ctx, root, ScrubOptions{})
	return s.Damaged, err
}

func scrubError(root digest.CID, err error) error {
	return fmt.Errorf("verify blob %s: %w", root, err)
}

// List implements Store.
func (d *Disk) List(ctx context.Context, after digest.CID, limit int) ([]Info, error) {
	var out []Info
	for shard := int(after[0]); shard < 256 && len(out) < limit; shard++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		infos, err := d.shard(shard)
		if err != nil {
			return nil, fmt.Errorf("list blobs: %w", err)
		}
		for _, info := range infos {
			if len(out) < limit && string(info.Root[:]) > string(after[:]) {
				info.Pinned = d.pins.has(info.Root)
				out = append(out, info)
			}
		}
	}
	return out, nil
}
