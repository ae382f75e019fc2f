package node

import (
	"context"

	"github.com/shoal-registry/shoal/dht/host"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/trust"
)

// What tests of whole nodes look at from outside the package, and do in a server's name.

// Do commits c at a server.
func (n *Node) Do(ctx context.Context, c state.Command) (any, error) {
	r, err := n.doer.Do(ctx, state.Origin{Principal: meta.AdminBootstrap}, c)
	return r.Value, err
}

// Metadata is the node's.
func (n *Node) Metadata() raftmeta.Asker { return n.metadata }

// SwarmHost is the node's.
func (n *Node) SwarmHost() *host.Host { return n.swarmHost }

// Cluster is the cluster's id.
func (n *Node) Cluster() string { return n.id.Cluster }

// SignGrant signs a grant with the node's key, whatever it says.
func (n *Node) SignGrant(g trust.Grant) ([]byte, error) { return n.key.SignGrant(n.id.Cluster, g) }

// Counted sums a counter over its labels, or those with a value of one.
func (n *Node) Counted(name, label string) (sum float64) {
	families, _ := n.metrics.Gather() // what cannot be gathered counts nothing
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			has := label == ""
			for _, l := range m.GetLabel() {
				has = has || l.GetValue() == label
			}
			if has {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}
