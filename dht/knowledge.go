package dht

import (
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// known is what a registrar last said of a root.
type known struct {
	encoded []byte // the chunk map, which hashes to the root
	grant   []byte
	expires time.Time
	members int
}

// saved is k as it is written down.
func (k known) saved(root digest.CID) savedGrant {
	return savedGrant{Root: root, Grant: k.grant, Expires: meta.TimeOf(k.expires), Members: uint32(k.members)}
}

// knowledge is a cache of known, bounded in entries and in bytes of maps. It is
// not safe for concurrent use.
type knowledge struct {
	lru             *simplelru.LRU[digest.CID, known]
	bytes, maxBytes int
}

func newKnowledge(roots, maxBytes int) *knowledge {
	k := &knowledge{maxBytes: maxBytes}
	k.lru, _ = simplelru.NewLRU(roots, func(_ digest.CID, v known) { k.bytes -= len(v.encoded) }) // fails for roots <= 0 only
	return k
}

func (k *knowledge) get(root digest.CID) (known, bool) { return k.lru.Get(root) }

func (k *knowledge) put(root digest.CID, v known) {
	k.lru.Remove(root) // Add would replace it without telling
	k.lru.Add(root, v)
	for k.bytes += len(v.encoded); k.bytes > k.maxBytes; {
		k.lru.RemoveOldest()
	}
}
