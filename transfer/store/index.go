package store

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/verify/digest"
)

// chunkIndex says in which blob of the store a chunk probably is. It holds hints
// only: 32 bits of a chunk's id lead to 32 bits of a root, and who follows them sees
// from the blob's map whether the chunk is there. So it needs no file of its own: it
// is made from the maps that lie beside the blobs. A hint that is lost costs a chunk
// fetched, a wrong one a map read.
//
// Beyond most hints it keeps those of half of the chunks, by a bit of their ids, then of
// a quarter. Ids are random, so the sample shows any two blobs that share more than a
// handful of chunks.
type chunkIndex struct {
	most int

	mu    sync.Mutex
	shift uint              // a chunk is kept whose first 32 bits end in so many zeros
	hints map[uint32]uint32 // chunk id -> root, the first 32 bits of each
}

// indexHints bounds the index to about 10 MiB of memory. That is each chunk of 500 GiB
// in blobs of 1 GiB, or of 128 GiB in blobs of 64 MiB.
const indexHints = 1 << 19

func newChunkIndex(most int) *chunkIndex {
	return &chunkIndex{most: most, hints: map[uint32]uint32{}}
}

func head(c digest.CID) uint32 { return binary.BigEndian.Uint32(c[:]) }

// add notes the chunks of root. Of several blobs with a chunk the last one counts.
func (x *chunkIndex) add(root digest.CID, m *chunk.Map) {
	if bare(m) {
		return // its only chunk is all of it
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, c := range m.Chunks {
		if id := head(c.ID); id&(1<<x.shift-1) == 0 {
			x.hints[id] = head(root)
		}
		for len(x.hints) > x.most {
			x.shift++
			for id := range x.hints {
				if id&(1<<x.shift-1) != 0 {
					delete(x.hints, id)
				}
			}
		}
	}
}

// drop forgets the chunks of root.
func (x *chunkIndex) drop(root digest.CID, m *chunk.Map) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, c := range m.Chunks {
		if id := head(c.ID); x.hints[id] == head(root) {
			delete(x.hints, id)
		}
	}
}

// find returns the first 32 bits of the roots that have chunks of m, that with the
// most first.
func (x *chunkIndex) find(m *chunk.Map) []uint32 {
	counts := map[uint32]int{}
	x.mu.Lock()
	for _, c := range m.Chunks {
		if root, ok := x.hints[head(c.ID)]; ok {
			counts[root]++
		}
	}
	x.mu.Unlock()
	roots := make([]uint32, 0, len(counts))
	for root := range counts {
		roots = append(roots, root)
	}
	slices.SortFunc(roots, func(a, b uint32) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	})
	return roots
}

func (x *chunkIndex) len() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.hints)
}

// learn makes the index from the maps on disk. It runs beside the service; until it is
// done less is found.
func (d *Disk) learn(ctx context.Context) error {
	for n := range 256 {
		dir := d.path(blobsDir, fmt.Sprintf("%02x", n))
		names, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, n := range names {
			if err := ctx.Err(); err != nil {
				return err
			}
			name, isMap := strings.CutSuffix(n.Name(), mapSuffix)
			root, err := digest.ParseHex(name)
			if !isMap || err != nil {
				continue
			}
			// A damaged map is found when its blob is opened.
			if m, err := readMap(filepath.Join(dir, n.Name()), root); err == nil {
				d.index.add(root, m)
			}
		}
	}
	return nil
}

// rooted returns the roots here that begin with the bits of head.
func (d *Disk) rooted(head uint32) ([]digest.CID, error) {
	prefix := hex.EncodeToString(binary.BigEndian.AppendUint32(nil, head))
	names, err := os.ReadDir(d.path(blobsDir, prefix[:2]))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var out []digest.CID
	for _, n := range names {
		name, isMap := strings.CutSuffix(n.Name(), mapSuffix)
		if !isMap || !strings.HasPrefix(name, prefix) {
			continue
		}
		if root, err := digest.ParseHex(name); err == nil {
			out = append(out, root)
		}
	}
	return out, nil
}
