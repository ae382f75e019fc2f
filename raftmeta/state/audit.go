package state

import (
	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Below spaceAudits: what servers said of their bytes, and what is lost.
const (
	inAudits = 'a' // [server] -> meta.Audit
	inLost   = 'l' // root -> meta.LostBlob
)

func keyAudit(server meta.NodeID) key { return key{spaceAudits, inAudits}.last(string(server)) }
func keyLost(root digest.CID) key     { return append(key{spaceAudits, inLost}, root[:]...) }

// lostLevel is the level from which lost blobs are listed.
const lostLevel = 4

// judge keeps the list of lost blobs right after a copy or the links of a root have
// changed: a blob is lost when a repository links it, its copies have been reported,
// and none of them is verified. It reads the records of the root, one a server.
func (t *tx) judge(root digest.CID, reason string) error {
	level, err := levelOf(t)
	if err != nil || level < lostLevel {
		return err
	}
	k := keyLost(root)
	old, err := load[meta.LostBlob](t, k)
	if err != nil {
		return err
	}
	lost, err := t.nobodyHas(root)
	if err != nil || lost == (old != nil) {
		return err
	}
	if lost {
		if lost, err = linked(t, root); err != nil || !lost {
			return err
		}
		b, err := blobByRoot(t, root)
		if err != nil {
			return err
		}
		t.put(k, meta.LostBlob{Root: root, Context: b.Context, Digest: b.Digest, StoredBytes: b.StoredBytes, Since: t.now, Reason: reason})
	} else {
		t.del(k)
	}
	t.emit(feed.Change{Kind: feed.KindLost, Root: root, Deleted: !lost})
	return nil
}

// nobodyHas says that no server of the roster, and no bucket of one, has a verified copy
// of root.
func (t *tx) nobodyHas(root digest.CID) (bool, error) {
	for p, err := range t.scan(within(keyReplicas(root))) {
		if err != nil {
			return false, err
		}
		r, err := decode[meta.Replica](p.key, p.value)
		if err != nil {
			return false, err
		}
		if r.Server == "" || r.State != meta.ReplicaVerified {
			continue
		}
		// The record of a server that was removed stays.
		if there, err := isHolder(t, r.Server); err != nil || there {
			return false, err
		}
	}
	return true, nil
}

// forgetLost takes a root that nobody links any more from the list.
func (t *tx) forgetLost(root digest.CID) error {
	old, err := t.get(keyLost(root))
	if err != nil || old == nil {
		return err
	}
	t.del(keyLost(root))
	t.emit(feed.Change{Kind: feed.KindLost, Root: root, Deleted: true})
	return nil
}
