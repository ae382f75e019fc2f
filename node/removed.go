package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/shoal-registry/shoal/node/doctor"
	"github.com/shoal-registry/shoal/node/join"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// A node that was removed from the cluster is refused by everybody, and its own state
// may end before the entry that removed it. So when it finds itself missing, or its
// state does not become fresh, it asks any server over HTTPS whether it still belongs.

// RemovedError says that a node does not belong to its cluster any more.
type RemovedError struct {
	Cluster string
	Node    meta.NodeID
	Data    string
}

func (e *RemovedError) Error() string {
	return fmt.Sprintf("node %s was removed from cluster %s; nothing in %s is needed there any more. To use this machine again, start with another, empty --data and a new token of `shoal token join`",
		e.Node, e.Cluster, e.Data)
}

// checkRemoved refuses to start on the data of a node that was removed.
//
// Errors: of the disk; one with the words of the RemovedError.
func checkRemoved(dir string) error {
	words, err := os.ReadFile(filepath.Join(dir, doctor.RemovedFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	return errors.New(string(words))
}

// doubtAfter is how old a node's state becomes before it asks.
const doubtAfter = 15 * time.Second

// watchStanding looks in steps of every whether this node may have been removed, and
// ends with a RemovedError once a server says so.
func (n *Node) watchStanding(every time.Duration) func(context.Context) error {
	return func(ctx context.Context) error {
		tick := time.NewTicker(every)
		defer tick.Stop()
		started := time.Now()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
			if n.doubts(ctx, started) && n.expelled(ctx) {
				return n.removed()
			}
		}
	}
}

// doubts says whether there is reason to ask: the node is missing in the roster that it
// knows, or what it knows is old.
func (n *Node) doubts(ctx context.Context, started time.Time) bool {
	_, asOf, err := raftmeta.Ask(ctx, n.metadata, meta.Local, state.GetNode{ID: n.ID()})
	if err != nil || asOf.Age == meta.UnknownAge {
		return errors.Is(err, meta.ErrNotFound) || time.Since(started) > doubtAfter
	}
	return asOf.Age > doubtAfter
}

// removed writes down that this node is out.
func (n *Node) removed() error {
	removed := &RemovedError{Cluster: n.id.Cluster, Node: n.ID(), Data: n.cfg.Data}
	if err := WriteFileAtomic(filepath.Join(n.cfg.Data, doctor.RemovedFile), []byte(removed.Error()), 0o600); err != nil {
		n.log.Warn("that this node was removed is not written down", "error", err)
	}
	return removed
}

// expelled asks the servers in turn until one knows.
func (n *Node) expelled(ctx context.Context) bool {
	asked := map[string]bool{}
	for _, s := range append(n.swarmHost.Nodes("", meta.RoleServer), n.id.Servers...) {
		if s.ID == n.ID() || asked[s.Gateway] || ctx.Err() != nil {
			continue
		}
		asked[s.Gateway] = true
		limited, cancel := context.WithTimeout(ctx, 5*time.Second)
		member, err := join.Standing(limited, "https://"+s.Gateway, n.cred.Newest().Hash(), n.key)
		cancel()
		if err == nil {
			return !member
		}
		n.log.Debug("a server does not say whether this node belongs", "node", s.ID, "error", err)
	}
	return false
}
