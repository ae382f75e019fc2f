package node

import (
	"fmt"
	"time"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Rejoin sets the damaged metadata of a stopped server aside and returns where it is
// now. At its next start the server has the leader take it out of the Raft
// configuration, joins anew under its key, without a vote at first, and takes the
// metadata from the others. Its blobs stay.
//
// Errors: meta.ErrInvalid for a directory of no server, or of one that knows no other
// server: its metadata is nowhere else; that the directory is in use.
func Rejoin(data string, now time.Time) (aside string, err error) {
	lock, err := LockDir(data)
	if err != nil {
		return "", err
	}
	defer lock.Release() //nolint:errcheck // the process ends
	id, err := loadIdentity(data)
	switch {
	case err != nil:
		return "", err
	case id == nil || id.Node.Role != meta.RoleServer:
		return "", fmt.Errorf("%s is not the data directory of a server: %w", data, meta.ErrInvalid)
	case id.Begin != nil || !hasOthers(id):
		return "", fmt.Errorf("the server of %s knows no other server that has the metadata: restore a backup instead: %w", data, meta.ErrInvalid)
	}
	if err := movable(data, replaced); err != nil {
		return "", err
	}
	return raftmeta.SetAside(data, "aside-"+now.UTC().Format("20060102T150405.000000Z"))
}

func hasOthers(id *identity) bool {
	for _, s := range id.Servers {
		if s.ID != id.Node.ID {
			return true
		}
	}
	return false
}
