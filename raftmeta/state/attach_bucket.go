package state

import (
	"fmt"
	"slices"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// AttachBucket says that a server keeps its blobs in a bucket, which it shares with
// others of its region: from then on the bucket is a holder of the region's copies, and
// the server is none by itself. It is for servers that have no copies of their own; what
// the records say of such is dropped. Repeated it changes nothing. Result: meta.Bucket.
//
// Errors: meta.ErrNotFound for the server; meta.ErrConflict when the bucket is another
// region's, or the server is in another one.
type AttachBucket struct {
	Server meta.NodeID `cbor:"1,keyasint,omitempty"`
	Bucket meta.Bucket `cbor:"2,keyasint,omitempty"` // ID and Location
}

// Type implements Command.
func (AttachBucket) Type() uint16 { return typeAttachBucket }

// Check implements Command.
func (c AttachBucket) Check() error {
	if c.Server == "" || len(c.Server) > maxNodeBytes {
		return fmt.Errorf("attach bucket: an id has 1 to %d bytes: %w", maxNodeBytes, meta.ErrInvalid)
	}
	return c.Bucket.Check()
}

func (c AttachBucket) apply(t *tx) (any, error) {
	n, err := findServer(t, c.Server)
	if err != nil {
		return nil, err
	}
	b, err := load[meta.Bucket](t, keyBucket(c.Bucket.ID))
	if err != nil {
		return nil, err
	}
	switch {
	case b != nil && b.Region != n.Region:
		return nil, fmt.Errorf("attach bucket %s to server %s of region %s: it is region %s's: %w", b.ID, n.ID, n.Region, b.Region, meta.ErrConflict)
	case b != nil && n.Bucket == b.ID && b.Location == c.Bucket.Location:
		return *b, nil
	case n.Bucket != "" && n.Bucket != c.Bucket.ID:
		return nil, fmt.Errorf("attach bucket %s to server %s: it keeps its blobs in %s; add another server and remove this one: %w", c.Bucket.ID, n.ID, n.Bucket, meta.ErrConflict)
	case b == nil:
		b = &meta.Bucket{ID: c.Bucket.ID, Region: n.Region, Attached: t.now}
	}
	b.Location, b.Servers = c.Bucket.Location, insert(b.Servers, n.ID)
	t.put(keyBucket(b.ID), b)
	if n.Bucket == b.ID {
		return *b, nil // the same one elsewhere
	}
	n.Bucket = b.ID
	t.putNode(n)
	r, err := find[regionRecord](t, keyRegion(n.Region), "region", n.Region)
	if err != nil {
		return nil, err
	}
	r.Sharing = append(slices.Clip(r.Sharing), sharing{Server: n.ID, Bucket: b.ID})
	slices.SortFunc(r.Sharing, func(x, y sharing) int { return compareIDs(x.Server, y.Server) })
	t.putRegion(r)
	return *b, t.unsettle(meta.RepoRef{}, false)
}

func compareIDs(x, y meta.NodeID) int {
	switch {
	case x < y:
		return -1
	case x > y:
		return 1
	}
	return 0
}

// detach takes a server that goes from its bucket; the caller stores r. A bucket that
// nobody uses any more is forgotten, with what is in it.
func (t *tx) detach(r *regionRecord, n *meta.Node) error {
	if n.Bucket == "" {
		return nil
	}
	r.Sharing = slices.DeleteFunc(slices.Clone(r.Sharing), func(s sharing) bool { return s.Server == n.ID })
	if len(r.Sharing) == 0 {
		r.Sharing = nil
	}
	b, err := load[meta.Bucket](t, keyBucket(n.Bucket))
	if err != nil || b == nil {
		return err
	}
	if b.Servers = slices.DeleteFunc(b.Servers, func(id meta.NodeID) bool { return id == n.ID }); len(b.Servers) == 0 {
		t.del(keyBucket(b.ID))
		return nil
	}
	t.put(keyBucket(b.ID), b)
	return nil
}

func keyBucket(id meta.NodeID) key { return append(key{spaceBuckets}, id...) }

// sharing says that a server's copies are in a bucket.
type sharing struct {
	Server meta.NodeID `cbor:"1,keyasint,omitempty"`
	Bucket meta.NodeID `cbor:"2,keyasint,omitempty"`
}

// holderOf returns who holds what a server of the region keeps.
func (r *regionRecord) holderOf(server meta.NodeID) meta.NodeID {
	for _, s := range r.Sharing {
		if s.Server == server {
			return s.Bucket
		}
	}
	return server
}

// behind returns the servers of the region through which a holder's copies are read: of
// a server that holds its own itself, of a bucket those that use it; none of one that is
// no holder here.
func (r *regionRecord) behind(holder meta.NodeID) []meta.NodeID {
	var servers []meta.NodeID
	for _, id := range r.Servers {
		if r.holderOf(id) == holder {
			servers = append(servers, id)
		}
	}
	return servers
}

// findHolder returns the region of a server, or a bucket, that vouches for its own
// copies.
//
// Errors: meta.ErrNotFound; meta.ErrConflict for a server whose copies are in a bucket.
func findHolder(r reader, id meta.NodeID) (meta.RegionName, error) {
	if id.IsBucket() {
		b, err := find[meta.Bucket](r, keyBucket(id), "bucket", id)
		if err != nil {
			return "", err
		}
		return b.Region, nil
	}
	n, err := findServer(r, id)
	if err != nil {
		return "", err
	}
	if n.Bucket != "" {
		return "", fmt.Errorf("server %s keeps its blobs in %s, which holds the copies: %w", id, n.Bucket, meta.ErrConflict)
	}
	return n.Region, nil
}

// isHolder says whether there is a node or a bucket of that id.
func isHolder(r reader, id meta.NodeID) (bool, error) {
	k := keyNode(id)
	if id.IsBucket() {
		k = keyBucket(id)
	}
	b, err := r.get(k)
	return b != nil, err
}

// serversBehind returns the servers through which a holder's copies are read.
func serversBehind(r reader, id meta.NodeID) ([]meta.NodeID, error) {
	if !id.IsBucket() {
		return []meta.NodeID{id}, nil
	}
	b, err := load[meta.Bucket](r, keyBucket(id))
	if err != nil || b == nil {
		return nil, err
	}
	return b.Servers, nil
}

// ListBuckets answers the buckets of all regions, or of one.
type ListBuckets struct {
	Region meta.RegionName `cbor:"1,keyasint,omitempty"`
}

// Answer implements Question.
func (q ListBuckets) Answer(v *View) ([]meta.Bucket, error) {
	all, err := list[meta.Bucket](v, within(key{spaceBuckets}), Page{Limit: maxPage}, nil)
	if err != nil || q.Region == "" {
		return all, err
	}
	return slices.DeleteFunc(all, func(b meta.Bucket) bool { return b.Region != q.Region }), nil
}
