package bucket

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Below the bucket's prefix:
//
//	claim                      whose bucket it is (claim.go)
//	alive                      its date: when who claimed it last used it
//	probe/...                  of tries to write
//	blobs/ROOT/SEEN-NONCE      an object: a blob's stored bytes
//	blobs/ROOT/SEEN-NONCE.map  its chunk map; none for a blob of one chunk
//	blobs/ROOT/SEEN-NONCE.bad  its chunks that were found damaged, a number a line
//
// ROOT is in hex. SEEN, 16 hex digits, is the index of the state of the metadata that
// the writer had seen when it chose the name, NONCE is random.
const (
	blobsDir  = "blobs"
	mapSuffix = ".map"
	badSuffix = ".bad"
)

// object is one copy of a blob in the bucket.
type object struct {
	root    digest.CID
	name    string // SEEN-NONCE
	seen    uint64
	bytes   int64
	hasData bool
	hasMap  bool
	damaged bool // it has a list of damaged chunks
	// modified is when the service got the last of it, by the service's clock.
	modified time.Time

	mu     sync.Mutex
	sure   time.Time // when it was last known to be there
	gone   bool      // it was removed by this process, or found missing
	loaded bool      // bad is what the bucket says
	bad    map[int]struct{}
	under  map[int]*pending // chunks that are being read
	next   int              // where the last run ended
	run    int64            // its length
}

// name makes a name that no other object has.
func nameFor(seen uint64) string {
	var nonce [8]byte
	_, _ = rand.Read(nonce[:]) // never fails
	return fmt.Sprintf("%016x-%s", seen, hex.EncodeToString(nonce[:]))
}

func parseName(name string) (seen uint64, ok bool) {
	high, nonce, found := strings.Cut(name, "-")
	if !found || len(high) != 16 || len(nonce) != 16 {
		return 0, false
	}
	seen, err := strconv.ParseUint(high, 16, 64)
	if _, bad := hex.DecodeString(nonce); err != nil || bad != nil {
		return 0, false
	}
	return seen, true
}

func (b *Bucket) keyOf(root digest.CID, name string) string {
	return b.cfg.Location.key(blobsDir, root.Hex(), name)
}

// whole says that all is there that a reader needs. A blob of at most one chunk has no
// map.
func (o *object) whole() bool { return o.hasData && (o.hasMap || o.bytes <= chunk.MinBytes) }

// found is what the bucket has of a root.
type found struct {
	root digest.CID
	all  []*object // by name, so the one of the highest index last
	// newest is the whole one of the highest index, one that is not damaged if there is.
	newest *object
	// touched is when the last of all was written.
	touched time.Time
}

func (f *found) add(name string, info objectInfo) bool {
	base, suffix := name, ""
	for _, s := range []string{mapSuffix, badSuffix} {
		if cut, ok := strings.CutSuffix(name, s); ok {
			base, suffix = cut, s
		}
	}
	seen, ok := parseName(base)
	if !ok {
		return false
	}
	if len(f.all) == 0 || f.all[len(f.all)-1].name != base {
		f.all = append(f.all, &object{root: f.root, name: base, seen: seen})
	}
	o := f.all[len(f.all)-1]
	switch suffix {
	case mapSuffix:
		o.hasMap = true
	case badSuffix:
		o.damaged = true
	default:
		o.hasData, o.bytes = true, info.bytes
	}
	if info.modified.After(o.modified) {
		o.modified = info.modified
	}
	return true
}

// choose sets newest.
func (f *found) choose() {
	for _, damaged := range []bool{false, true} {
		for _, o := range slices.Backward(f.all) {
			if f.newest == nil && o.whole() && o.damaged == damaged {
				f.newest = o
			}
		}
	}
	for _, o := range f.all {
		if o.modified.After(f.touched) {
			f.touched = o.modified
		}
	}
}

// objectsMost bounds the keys that are looked at of one root: more copies than that are
// nobody's doing but an attacker's, and the newest are read.
const objectsMost = 1000

// objects lists what the bucket has of a root.
func (b *Bucket) objects(ctx context.Context, root digest.CID) (found, error) {
	f := found{root: root}
	prefix := b.keyOf(root, "") + "/"
	err := b.remote.list(ctx, prefix, "", objectsMost, func(info objectInfo) bool {
		f.add(strings.TrimPrefix(info.key, prefix), info)
		return true
	})
	f.choose()
	return f, err
}

// find returns the object to read a root from. Beside one with damaged chunks another
// server may have put a sound one.
//
// Errors: meta.ErrNotFound.
func (b *Bucket) find(ctx context.Context, root digest.CID) (*object, error) {
	if o, ok := b.known.Get(root); ok && !o.isGone() && (o.sound() || o.isSure()) {
		return o, nil
	}
	return b.search(ctx, root)
}

// search is find in the bucket itself.
func (b *Bucket) search(ctx context.Context, root digest.CID) (*object, error) {
	before, known := b.known.Peek(root)
	f, err := b.objects(ctx, root)
	if err != nil {
		return nil, err
	}
	if f.newest == nil {
		if known { // not what was written since
			b.lose(before)
		}
		return nil, fmt.Errorf("it is not in the bucket: %w", meta.ErrNotFound)
	}
	o, err := b.remember(ctx, f.newest)
	if err != nil {
		return nil, err
	}
	o.confirm()
	return o, nil
}

// Refresh learns what the bucket has of root now: the other servers of the region write
// objects, and note which chunks are damaged.
//
// Errors: meta.ErrUnavailable; none when it has nothing.
func (b *Bucket) Refresh(ctx context.Context, root digest.CID) error {
	err := b.patiently(ctx, func() error {
		_, err := b.search(ctx, root)
		return err
	})
	if err != nil && !errors.Is(err, meta.ErrNotFound) {
		return fmt.Errorf("look for %s in the bucket: %w", root, err)
	}
	return nil
}

// remember makes o the one object of its root that readers share.
func (b *Bucket) remember(ctx context.Context, o *object) (*object, error) {
	if err := b.loadBad(ctx, o); err != nil {
		return nil, err
	}
	if old, ok := b.known.Get(o.root); ok && old.name == o.name && !old.isGone() {
		old.learn(o)
		return old, nil
	}
	b.known.Add(o.root, o)
	return o, nil
}

// loadBad learns which chunks of an object are damaged.
func (b *Bucket) loadBad(ctx context.Context, o *object) error {
	o.mu.Lock()
	known := o.loaded || !o.damaged
	o.mu.Unlock()
	if known {
		return nil
	}
	text, err := b.remote.read(ctx, b.keyOf(o.root, o.name+badSuffix), 16<<20)
	if err != nil && !errors.Is(err, meta.ErrNotFound) && !errors.Is(err, meta.ErrCorrupt) {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.loaded = true
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		if i, err := strconv.Atoi(lines.Text()); err == nil && i >= 0 && i < chunk.MaxChunks {
			o.setBad(i)
		}
	}
	return nil
}

// learn takes over which chunks are damaged from the same object as it was listed later.
func (o *object) learn(listed *object) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range listed.bad {
		o.setBad(i)
	}
	o.damaged, o.loaded = o.damaged || listed.damaged, o.loaded || listed.loaded
}

// confirm notes that it is there.
func (o *object) confirm() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.sure = time.Now()
}

func (o *object) setBad(i int) {
	if o.bad == nil {
		o.bad = map[int]struct{}{}
	}
	o.bad[i] = struct{}{}
}

func (o *object) isGone() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.gone
}

// has says whether chunk i can be read from the object, as far as is known.
func (o *object) has(i int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, bad := o.bad[i]
	return !o.gone && !bad
}

// sound says that all of it can. A list of damaged chunks that says nothing is one, too:
// the other servers do not count on the object.
func (o *object) sound() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return !o.gone && !o.damaged && len(o.bad) == 0
}

// lose notes that an object is not there any more.
func (b *Bucket) lose(o *object) {
	o.mu.Lock()
	o.gone = true
	o.mu.Unlock()
	if known, ok := b.known.Peek(o.root); ok && known == o {
		b.known.Remove(o.root)
	}
}

// condemn notes that chunk i of an object is not what the map says, here and in the
// bucket, so that no server of the region counts on it.
func (b *Bucket) condemn(ctx context.Context, o *object, i int) {
	o.mu.Lock()
	_, known := o.bad[i]
	o.setBad(i)
	o.damaged, o.loaded = true, true
	var text []byte
	for k := range o.bad {
		text = strconv.AppendInt(text, int64(k), 10)
		text = append(text, '\n')
	}
	o.mu.Unlock()
	if known {
		return
	}
	b.log.Warn("a chunk in the bucket is damaged", "root", o.root.String(), "object", o.name, "chunk", i)
	b.metrics.corrupt.Inc()
	if err := b.remote.put(ctx, b.keyOf(o.root, o.name+badSuffix), text, false); err != nil {
		b.log.Warn("that a chunk is damaged is not noted in the bucket", "root", o.root.String(), "error", err)
	}
	if b.cfg.OnCorrupt != nil {
		b.cfg.OnCorrupt(o.root, i)
	}
}

// drop deletes an object with what is beside it, the data first: without it the rest
// means nothing.
func (b *Bucket) drop(ctx context.Context, o *object) (freed int64, err error) {
	key := b.keyOf(o.root, o.name)
	for _, suffix := range []string{"", mapSuffix, badSuffix} {
		if suffix == mapSuffix && !o.hasMap || suffix == badSuffix && !o.damaged {
			continue
		}
		if err := b.remote.remove(ctx, key+suffix); err != nil {
			return freed, err
		}
		if suffix == "" && o.hasData {
			freed = o.bytes
		}
	}
	if known, ok := b.known.Peek(o.root); ok && known.name == o.name {
		b.lose(known)
	}
	return freed, nil
}

// roots lists the roots behind after that keep says yes to, at most limit.
func (b *Bucket) roots(ctx context.Context, after digest.CID, limit int, keep func(found) bool) ([]found, error) {
	base := b.cfg.Location.key(blobsDir) + "/"
	start := ""
	if !after.IsZero() {
		start = base + after.Hex() + "0" // '0' follows '/', so this is behind all of after's keys
	}
	var (
		out  []found
		last found
	)
	finish := func() bool {
		if len(last.all) > 0 {
			if last.choose(); keep(last) {
				out = append(out, last)
			}
		}
		return len(out) < limit
	}
	err := b.remote.list(ctx, base, start, min(3*limit+8, 1000), func(info objectInfo) bool {
		hexRoot, name, ok := strings.Cut(strings.TrimPrefix(info.key, base), "/")
		root, err := digest.ParseHex(hexRoot)
		if !ok || err != nil {
			return true // not ours
		}
		if root != last.root || len(last.all) == 0 {
			if !finish() {
				last = found{}
				return false
			}
			last = found{root: root}
		}
		last.add(name, info)
		return true
	})
	if err != nil {
		return nil, err
	}
	if len(out) < limit {
		finish()
	}
	return out, nil
}
