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
// Memory and disk are bounded: the documents kept in each, the size of one, and while one
// is rendered at most 1 MiB of it is in memory. The package starts no goroutines; a
// render runs in its first caller's, and others who want the same document wait for it.
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
)

// Config is what a Cache is made of. The zero value is good for tests.
type Config struct {
	// Dir is the folder of large documents, made when it is not there and emptied by New;
	// "" is the system's for temporary files.
	Dir string
	// MemoryBytes and DiskBytes bound what is kept, MaxBytes one document; 0 is the
	// default.
	MemoryBytes, DiskBytes, MaxBytes int64
	Metrics                          prometheus.Registerer // nil registers nothing
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
	// Variant tells documents of the same revision apart: by kind, media type, base URL.
	Variant string
}

type id [sha256.Size]byte

func (k Key) id() id {
	var b []byte
	for _, s := range []string{string(k.Repo.Tenant), k.Repo.Name, k.Package, k.Revision, k.Variant} {
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

	mu      sync.Mutex // guards all below
	memory  *tier
	files   *tier
	flights map[id]*flight
}

// flight is a document that is being rendered. The fields hold once done is closed.
type flight struct {
	done chan struct{}
	doc  *Document
	err  error
}

// tier is one place of documents, bounded in bytes and in number.
type tier struct {
	lru        *simplelru.LRU[id, *Document]
	bytes, max int64
}

func newTier(maxBytes int64, entries int) *tier {
	t := &tier{max: maxBytes}
	lru, err := simplelru.NewLRU(entries, func(_ id, d *Document) { t.bytes -= d.Size })
	if err != nil {
		panic(err) // the size is positive
	}
	t.lru = lru
	return t
}

// add keeps a document, and returns how many others went for it.
func (t *tier) add(k id, d *Document) (evicted int) {
	if d.Size > t.max {
		return 0
	}
	before := t.lru.Len() + 1
	t.bytes += d.Size
	t.lru.Add(k, d)
	for t.bytes > t.max {
		t.lru.RemoveOldest()
	}
	return before - t.lru.Len()
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
	c := &Cache{
		cfg: cfg, memory: newTier(cfg.MemoryBytes, maxInMemory), files: newTier(cfg.DiskBytes, maxFiles),
		flights: map[id]*flight{},
	}
	f := promauto.With(cfg.Metrics)
	c.metrics.answers = f.NewCounterVec(prometheus.CounterOpts{
		Name: "shoal_rendered_documents_total", Help: "Rendered documents that were asked for, by how they were had: kept, joined, rendered, failed.",
	}, []string{"how"})
	c.metrics.evicted = f.NewCounter(prometheus.CounterOpts{
		Name: "shoal_rendered_evicted_total", Help: "Rendered documents that made room for others.",
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
// Errors: of render, which nobody keeps; meta.ErrTooLarge above Config.MaxBytes;
// meta.ErrNoSpace; of ctx.
func (c *Cache) Get(ctx context.Context, k Key, render func(io.Writer) error) (*Document, error) {
	key := k.id()
	for {
		c.mu.Lock()
		d, ok := c.memory.lru.Get(key)
		if !ok {
			d, ok = c.files.lru.Get(key)
		}
		if ok {
			c.mu.Unlock()
			c.metrics.answers.WithLabelValues("kept").Inc()
			return d, nil
		}
		f, others := c.flights[key]
		if !others {
			f = &flight{done: make(chan struct{})}
			c.flights[key] = f
		}
		c.mu.Unlock()
		if !others {
			return c.lead(ctx, key, f, render)
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
func (c *Cache) lead(ctx context.Context, key id, f *flight, render func(io.Writer) error) (_ *Document, err error) {
	f.err = errLeft // stays when render panics
	defer func() {
		c.mu.Lock()
		delete(c.flights, key)
		if f.doc != nil {
			t := c.memory
			if f.doc.file != nil {
				t = c.files
			}
			c.metrics.evicted.Add(float64(t.add(key, f.doc)))
		}
		c.mu.Unlock()
		close(f.done)
	}()
	d, err := c.render(render)
	if err != nil {
		c.metrics.answers.WithLabelValues("failed").Inc()
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
	w := &writer{dir: c.cfg.Dir, max: c.cfg.MaxBytes, hash: sha256.New()}
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
	hash hash.Hash
	buf  bytes.Buffer
	file *os.File
	size int64
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
