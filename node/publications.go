package node

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocols/apt"
	"github.com/shoal-registry/shoal/gateway/protocols/rpm"
	"github.com/shoal-registry/shoal/gateway/publication"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// publications makes the builder of the documents that repositories have as a whole, on
// a server. A format with publications has a line here beside that in protocols.
func (n *Node) publications(records *raftmeta.Store, names *catalog.Catalog, self meta.NodeID) (*publication.Builder, error) {
	dir := filepath.Join(n.cfg.Data, "sets")
	// What an earlier run was writing is of no use.
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("folder of publications: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("folder of publications: %w", err)
	}
	b, err := publication.New(publication.Config{
		Self: self, Formats: []publication.Format{apt.Indexes{}, rpm.Metadata{}},
		Metadata: records, Commands: records, Catalog: names, Open: n.key.Open, Dir: dir, Metrics: n.metrics, Log: n.log,
	})
	if err != nil {
		return nil, err
	}
	n.parts.Add("publications", b.Run)
	return b, nil
}
