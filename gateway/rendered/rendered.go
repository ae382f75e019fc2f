// Package rendered keeps documents that protocols render from the metadata: the page of
// a package with all its versions, an index of a repository. Such a document is a pure
// function of what its Key names, so it is rendered once on a node, and kept for as long
// as there is room.
//
// Start reading at Cache.Get. A document of up to 1 MiB is kept in memory, a larger one
// in a file of the node's temporary folder that has no name: when nothing refers to it
// any more its room is given back, whatever becomes of the process. Nothing here is ever
// stale: a package that changes has another revision, and what is of the old one goes as
// the least recently used.
//
// Memory and disk are bounded: the documents kept in each, the size of one, how many are
// rendered at a time (turns.go), and while one is rendered at most 1 MiB of it is in
// memory. A client chooses the base URL that it asks by, so of a document those of a few
// are kept. Config.Room keeps the reserve of the disk. The package starts no goroutines;
// a render runs in its first caller's, and others who want the same document wait for it.
package rendered

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Bounds. MemoryDocumentBytes is how large a document may be to be kept in memory.
const (
	MemoryDocumentBytes = 1 << 20
	DefaultMemoryBytes  = 64 << 20
	DefaultDiskBytes    = 1 << 30
	DefaultMaxBytes     = 512 << 20

	// An entry costs memory beside its bytes, and in a file a descriptor.
	maxInMemory = 16_384
	maxFiles    = 256

	// maxBases is for how many base URLs a document is kept: a registry has a few names.
	maxBases = 16
	// roomEvery is after how many bytes of a file Room is asked again.
	roomEvery = 1 << 20
)

// Room is what the disk of large documents has room for.
type Room int

// RoomNone is a disk at its reserve: no file is made. With RoomPassing one is made for
// who asks, and none is kept.
const (
	RoomPlenty Room = iota
	RoomPassing
	RoomNone
)

// Config is what a Cache is made of. The zero value is good for tests.
type Config struct {
	// Dir is the folder of large documents, made when it is not there and emptied by New;
	// "" is the system's for temporary files.
	Dir string
	// MemoryBytes and DiskBytes bound what is kept, MaxBytes one document; 0 is the
	// default.
	MemoryBytes, DiskBytes, MaxBytes int64
	// Room says what the disk of Dir has room for; nil is always plenty.
	Room    func() Room
	Metrics prometheus.Registerer // nil registers nothing
}

// Key names a document by all that it is a function of.
type Key struct {
	// Repo is the repository that is asked, Package the package, "" for a document of the
	// whole repository.
	Repo    meta.RepoRef
	Package string
	// Revisions are those of the packages that it is rendered from, in order; Revision is
	// whatever else says what it is of, like the digest of an upstream's document.
	Revisions []uint64
	Revision  string
	// Variant tells documents of the same revision apart: by kind, media type.
	Variant string
	// Base is what a document's links begin with when that is as the client asked for it,
	// which is any number of URLs. Those of a few are kept, the last that were asked for.
	Base string
}

type id [sha256.Size]byte

func (k Key) id() id {
	var b []byte
	for _, s := range []string{string(k.Repo.Tenant), k.Repo.Name, k.Package, k.Revision, k.Variant, k.Base} {
		b = append(binary.AppendUvarint(b, uint64(len(s))), s...)
	}
	for _, r := range k.Revisions {
		b = binary.BigEndian.AppendUint64(b, r)
	}
	return sha256.Sum256(b)
}

// Cache keeps documents. It is safe for concurrent use.
type Cache struct {
	cfg     Config
	metrics metrics
	turns   *turns

	mu      sync.Mutex // guards all below
	memory  *tier
	files   *tier
	flights map[id]*flight
	// bases lists what is kept of one document for several base URLs, by the id without
	// them, the least recently used first.
	bases map[id][]id
}

// flight is a document that is being rendered. The fields hold once done is closed.
type flight struct {
	done chan struct{}
	doc  *Document
	err  error
}

// tier is one place of documents, bounded in bytes and in number.
type tier struct {
	lru        *simplelru.LRU[id, *kept]
	bytes, max int64
}

// kept is a document in its tier; of is the id without the base URL, zero when it has
// none.
type kept struct {
	*Document
	of id
}

func (c *Cache) newTier(maxBytes int64, entries int) *tier {
	t := &tier{max: maxBytes}
	lru, err := simplelru.NewLRU(entries, func(k id, d *kept) {
		t.bytes -= d.Size
		c.metrics.evicted.Inc()
		if d.of != (id{}) {
			c.unlist(d.of, k)
		}
	})
	if err != nil {
		panic(err) // the size is positive
	}
	t.lru = lru
	return t
}

// add keeps a document, and lets others go for it.
func (t *tier) add(k id, d *kept) bool {
	if d.Size > t.max {
		return false
	}
	t.bytes += d.Size
	t.lru.Add(k, d)
	for t.bytes > t.max {
		t.lru.RemoveOldest()
	}
	return true
}

// unlist takes a document that goes from those of its base URLs.
func (c *Cache) unlist(of, k id) {
	left := slices.DeleteFunc(c.bases[of], func(other id) bool { return other == k })
	if len(left) == 0 {
		delete(c.bases, of)
		return
	}
	c.bases[of] = left
}

// list makes a document the last used one of its base URLs, and lets the first go of too
// many.
func (c *Cache) list(of, k id) {
	if of == (id{}) {
		return
	}
	others := slices.DeleteFunc(c.bases[of], func(other id) bool { return other == k })
	c.bases[of] = append(others, k)
	if len(others) >= maxBases {
		first := others[0]
		c.memory.lru.Remove(first)
		c.files.lru.Remove(first)
	}
}

// kept returns a document that is there.
func (c *Cache) kept(k id) (*kept, bool) {
	d, ok := c.memory.lru.Get(k)
	if !ok {
		d, ok = c.files.lru.Get(k)
	}
	if ok {
		c.list(d.of, k)
	}
	return d, ok
}

func (c *Cache) keep(k, of id, d *Document) {
	t := c.memory
	if d.file != nil {
		t = c.files
	}
	if t.add(k, &kept{d, of}) {
		c.list(of, k)
	}
}

// shed lets all large documents go when the disk is short of room, and refuses another
// when it has none left: the file of one stays for as long as somebody reads it.
func (c *Cache) shed() error {
	room := c.cfg.Room()
	if room == RoomPlenty {
		return nil
	}
	c.mu.Lock()
	c.files.lru.Purge()
	c.mu.Unlock()
	if room == RoomPassing {
		return nil
	}
	return errors.New("the disk of rendered documents is down to its reserve, make room on it")
}

type metrics struct {
	answers *prometheus.CounterVec
	evicted prometheus.Counter
}

// New returns a cache, and removes what a crash left in its folder.
//
// Errors: of the file system.
func New(cfg Config) (*Cache, error) {
	standard(&cfg.MemoryBytes, DefaultMemoryBytes)
	standard(&cfg.DiskBytes, DefaultDiskBytes)
	standard(&cfg.MaxBytes, DefaultMaxBytes)
	if cfg.Room == nil {
		cfg.Room = func() Room { return RoomPlenty }
	}
	if cfg.Dir != "" {
		if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
			return nil, fmt.Errorf("folder of rendered documents: %w", err)
		}
		left, err := filepath.Glob(filepath.Join(cfg.Dir, filePrefix+"*"))
		for _, path := range left {
			err = errors.Join(err, os.Remove(path))
		}
		if err != nil {
			return nil, fmt.Errorf("folder of rendered documents: %w", err)
		}
	}
	c := &Cache{cfg: cfg, turns: newTurns(), flights: map[id]*flight{}, bases: map[id][]id{}}
	c.memory, c.files = c.newTier(cfg.MemoryBytes, maxInMemory), c.newTier(cfg.DiskBytes, maxFiles)
	f := promauto.With(cfg.Metrics)
	c.metrics.answers = f.NewCounterVec(prometheus.CounterOpts{
		Name: "shoal_rendered_documents_total", Help: "Rendered documents that were asked for, by how they were had: kept, joined, rendered, failed, or busy when too many others were rendered.",
	}, []string{"how"})
	c.metrics.evicted = f.NewCounter(prometheus.CounterOpts{
		Name: "shoal_rendered_evicted_total", Help: "Rendered documents that were let go, to make room for others or on the disk.",
	})
	for place, t := range map[string]*tier{"memory": c.memory, "disk": c.files} {
		f.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "shoal_rendered_bytes", Help: "Bytes of rendered documents that are kept, by where.", ConstLabels: prometheus.Labels{"place": place},
		}, func() float64 {
			c.mu.Lock()
			defer c.mu.Unlock()
			return float64(t.bytes)
		})
	}
	return c, nil
}

func standard(field *int64, value int64) {
	if *field == 0 {
		*field = value
	}
}

// Document is a rendered document. It stays readable for as long as somebody has it, also
// when the cache has let it go.
type Document struct {
	Size int64
	// Digest is of its bytes, ETag the strong tag of that, quoted as protocol.Content has
	// it.
	Digest digest.Digest
	ETag   string

	body []byte   // when file is nil
	file *os.File // without a name; closed when nobody has it any more
}

// Open returns a reader from the beginning. Any number read at a time.
func (d *Document) Open() (io.ReadSeekCloser, error) {
	if d.file == nil {
		return reader{io.NewSectionReader(bytes.NewReader(d.body), 0, d.Size), d}, nil
	}
	return reader{io.NewSectionReader(d.file, 0, d.Size), d}, nil
}

// reader holds its document, and so its file.
type reader struct {
	*io.SectionReader
	of *Document
}

func (reader) Close() error { return nil }

// Get returns the document of a key, which render writes when it is not there. One of
// several callers renders, for all; when that one's ctx ends another does.
//
// render does not call Get: it has a turn, and waits for none.
//
// Errors: of render, which nobody keeps; meta.ErrTooLarge above Config.MaxBytes;
// meta.ErrNoSpace; *meta.UnavailableError when too many others are rendered for too long;
// of ctx.
func (c *Cache) Get(ctx context.Context, k Key, render func(io.Writer) error) (*Document, error) {
	key := k.id()
	for {
		c.mu.Lock()
		if d, ok := c.kept(key); ok {
			c.mu.Unlock()
			c.metrics.answers.WithLabelValues("kept").Inc()
			return d.Document, nil
		}
		f, others := c.flights[key]
		if !others {
			f = &flight{done: make(chan struct{})}
			c.flights[key] = f
		}
		c.mu.Unlock()
		if !others {
			return c.lead(ctx, k, f, render)
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return nil, fmt.Errorf("rendered document: %w", context.Cause(ctx))
		}
		if f.err == nil || !errors.Is(f.err, errLeft) {
			c.metrics.answers.WithLabelValues("joined").Inc()
			return f.doc, f.err
		}
	}
}

// errLeft marks the failure of a render whose caller has gone.
var errLeft = errors.New("who rendered it has left")

// lead renders for all who wait for f.
func (c *Cache) lead(ctx context.Context, k Key, f *flight, render func(io.Writer) error) (_ *Document, err error) {
	f.err = errLeft // stays when render panics
	defer func() {
		key, of := k.id(), id{}
		if k.Base != "" {
			k.Base = ""
			of = k.id()
		}
		keep := f.doc != nil && (f.doc.file == nil || c.cfg.Room() == RoomPlenty)
		c.mu.Lock()
		delete(c.flights, key)
		if keep {
			c.keep(key, of, f.doc)
		}
		c.mu.Unlock()
		close(f.done)
	}()
	how := "busy"
	give, err := c.turns.take(ctx, k.Repo.Tenant)
	var d *Document
	if err == nil {
		defer give()
		how = "failed"
		d, err = c.render(render)
	}
	if err != nil {
		c.metrics.answers.WithLabelValues(how).Inc()
		f.err = err
		if ctx.Err() != nil {
			f.err = errLeft
		}
		return nil, err
	}
	c.metrics.answers.WithLabelValues("rendered").Inc()
	f.doc, f.err = d, nil
	return d, nil
}

func (c *Cache) render(render func(io.Writer) error) (*Document, error) {
	w := &writer{dir: c.cfg.Dir, max: c.cfg.MaxBytes, hash: sha256.New(), room: c.shed}
	err := render(w)
	if err = errors.Join(err, w.err); err != nil {
		w.drop()
		return nil, err
	}
	d := &Document{Size: w.size, Digest: digest.Digest(fmt.Sprintf("sha256:%x", w.hash.Sum(nil))), file: w.file}
	d.ETag = `"` + string(d.Digest) + `"`
	if w.file == nil {
		d.body = bytes.Clone(w.buf.Bytes())
	}
	return d, nil
}

// filePrefix begins the names of files, which they have for a moment.
const filePrefix = "rendered-"

// writer takes a document, in memory at first.
type writer struct {
	dir  string
	max  int64
	room func() error // an error when there is no room for more of a file
	hash hash.Hash
	buf  bytes.Buffer
	file *os.File
	size int64
	next int64 // the size at which room is asked for
	err  error // the first, that render may have swallowed
}

func (w *writer) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	if w.err = w.write(p); w.err != nil {
		return 0, w.err
	}
	return len(p), nil
}

func (w *writer) write(p []byte) error {
	if w.size+int64(len(p)) > w.max {
		return fmt.Errorf("rendered document is over the limit of %d bytes: %w", w.max, meta.ErrTooLarge)
	}
	if to := w.size + int64(len(p)); to > MemoryDocumentBytes && to > w.next {
		if err := w.room(); err != nil {
			return fmt.Errorf("rendered document: %w: %w", err, meta.ErrNoSpace)
		}
		w.next = to + roomEvery
	}
	if w.file == nil && w.size+int64(len(p)) > MemoryDocumentBytes {
		if err := w.spill(); err != nil {
			return fmt.Errorf("rendered document: %w: %w", meta.ErrNoSpace, err)
		}
	}
	if w.file == nil {
		w.buf.Write(p)
	} else if _, err := w.file.Write(p); err != nil {
		return fmt.Errorf("rendered document: %w: %w", meta.ErrNoSpace, err)
	}
	w.hash.Write(p)
	w.size += int64(len(p))
	return nil
}

// spill goes on in a file that loses its name at once.
func (w *writer) spill() error {
	f, err := os.CreateTemp(w.dir, filePrefix)
	if err != nil {
		return err
	}
	err = os.Remove(f.Name())
	if err == nil {
		_, err = f.Write(w.buf.Bytes())
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	w.file, w.buf = f, bytes.Buffer{}
	return nil
}

// drop frees what a failed render wrote.
func (w *writer) drop() {
	if w.file != nil {
		_ = w.file.Close() // It has no name: nothing is left of it.
	}
}
