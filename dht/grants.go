package dht

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

const (
	// keepGrants is how long after its end a grant is worth keeping: longer than
	// peers honour one that has ended while no server is reachable.
	keepGrants = time.Hour
	// saveAfter is by how much a renewed grant must outlive the one written down to be
	// written again: renewals come every few seconds.
	saveAfter = 20 * time.Second
	// maxGrantFrame bounds a record of the file.
	maxGrantFrame = 2048
)

// savedGrant is a record of the file: a frame (raftmeta/codec), later ones win.
type savedGrant struct {
	Root    digest.CID `cbor:"1,keyasint,omitempty"`
	Grant   []byte     `cbor:"2,keyasint,omitempty"`
	Expires meta.Time  `cbor:"3,keyasint,omitempty"`
	Members uint32     `cbor:"4,keyasint,omitempty"`
}

// grantFile keeps the grants of a node's roots over restarts, so that it is served
// by its peers when it comes back and no server answers. A grant names its node, so
// it is of no use to others. The file only grows until it is written anew, with at
// most knownRoots records; it is not synced: what a machine's crash takes costs the
// next start a server. A nil grantFile keeps nothing. It is safe for concurrent use.
type grantFile struct {
	path string

	mu      sync.Mutex
	file    *os.File
	records int
	saved   map[digest.CID]time.Time // expiry written down; bounded by records
}

// openGrants reads the file's grants that are worth something at now, and writes it
// anew with those. A damaged tail, which a kill leaves, ends the reading.
//
// Errors: of the file system.
func openGrants(path string, now time.Time) (*grantFile, map[digest.CID]savedGrant, error) {
	kept := map[digest.CID]savedGrant{}
	old, err := os.Open(path)
	switch {
	case err == nil:
		in := bufio.NewReader(old)
		for {
			frame, err := codec.ReadFrame(in, maxGrantFrame)
			if err != nil {
				break
			}
			var g savedGrant
			if codec.Unmarshal(frame, &g) != nil || g.Root.IsZero() {
				break
			}
			if delete(kept, g.Root); now.Sub(g.Expires.Std()) < keepGrants && len(kept) < knownRoots {
				kept[g.Root] = g
			}
		}
		_ = old.Close() // it was only read
	case !errors.Is(err, fs.ErrNotExist):
		return nil, nil, fmt.Errorf("read the grants of before: %w", err)
	}
	f := &grantFile{path: path}
	if err := f.rewrite(kept); err != nil {
		return nil, nil, err
	}
	return f, kept, nil
}

// rewrite replaces the file. f.mu is held, or nobody else has f.
func (f *grantFile) rewrite(grants map[digest.CID]savedGrant) error {
	tmp, err := os.OpenFile(f.path+".tmp", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write the grants: %w", err)
	}
	w := bufio.NewWriter(tmp)
	saved := make(map[digest.CID]time.Time, len(grants))
	for root, g := range grants {
		if err = codec.WriteMessage(w, g); err != nil {
			break
		}
		saved[root] = g.Expires.Std()
	}
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = os.Rename(f.path+".tmp", f.path)
	}
	if err != nil {
		return fmt.Errorf("write the grants: %w", errors.Join(err, tmp.Close()))
	}
	if f.file != nil {
		_ = f.file.Close() // replaced
	}
	f.file, f.records, f.saved = tmp, len(grants), saved
	return nil
}

// due reports whether a grant for root that ends at expires is to be saved.
func (f *grantFile) due(root digest.CID, expires time.Time) bool {
	if f == nil {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return expires.Sub(f.saved[root]) >= saveAfter
}

// save writes a grant down; all lists what is to stay when the file is too long.
//
// Errors: of the file system; the next save tries again.
func (f *grantFile) save(g savedGrant, all func() map[digest.CID]savedGrant) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.file == nil {
		return nil // closed
	}
	if f.records >= 2*knownRoots {
		grants := all()
		grants[g.Root] = g
		return f.rewrite(grants)
	}
	// One write a record: a kill leaves whole ones.
	if _, err := f.file.Write(codec.AppendFrame(nil, codec.Encode(g))); err != nil {
		f.records = 2 * knownRoots // what is behind half a record is not read: begin anew
		return fmt.Errorf("write down a grant: %w", err)
	}
	f.records++
	f.saved[g.Root] = g.Expires.Std()
	return nil
}

func (f *grantFile) close() {
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.file != nil {
		_ = f.file.Close() // each record was written at once
		f.file = nil
	}
}
