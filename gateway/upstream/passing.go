package upstream

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// record is the key of what is kept of a Want. What is Passing shares 256 of a repository,
// which is a byte of a sum: two that meet in one take turns, and are told apart by
// Fetched.Upstream.
func (w *Want) record() (path, accept string) {
	if !w.Passing {
		return w.Path, w.Accept
	}
	sum := sha256.Sum256([]byte(w.Path + "\x00" + w.Accept))
	// No address of an upstream is a query alone.
	return fmt.Sprintf("?passing=%d", sum[0]), ""
}

// upstream is what Fetched.Upstream has to be in the record of a Want; of what is Passing
// it names the address, too.
func (w *Want) upstream(repo *meta.Repository) string {
	of := upstreamOf(repo, w.Path)
	if !w.Passing {
		return of
	}
	sum := sha256.Sum256([]byte(of + "\x00" + w.Path + "\x00" + w.Accept))
	return hex.EncodeToString(sum[:])
}
