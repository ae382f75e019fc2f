package node

import (
	"context"
	"fmt"
	"math"
	"testing"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// logged takes what fits in the log.
type logged struct {
	roots []digest.CID
	seen  uint64 // by all
}

func (*logged) Answer(_ context.Context, _ meta.Freshness, q state.Asked) (meta.AsOf, error) {
	*q.Into().(*uint32) = state.Level
	return meta.AsOf{Index: 1 << 40}, nil
}

func (l *logged) Do(_ context.Context, o state.Origin, c state.Command) (raftmeta.Receipt, error) {
	if _, err := state.Encode(o, c); err != nil {
		return raftmeta.Receipt{}, err
	}
	for _, r := range c.(state.ReportReplicas).Replicas {
		l.roots = append(l.roots, r.Root)
		l.seen = min(l.seen, r.Seen)
	}
	return raftmeta.Receipt{}, nil
}

// A full batch of reports is larger than a command may be; all of them must arrive,
// in order, or the loop would repeat the batch for ever.
func TestReportsOfAnySizeArrive(t *testing.T) {
	self := meta.NodeID("12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUj2kj6vnc6iDEp")
	replicas := make([]meta.Replica, state.MaxReportedReplicas)
	for i := range replicas {
		replicas[i] = meta.Replica{Root: digest.Sum(fmt.Append(nil, i)), Region: "eu-central", Server: self, State: meta.ReplicaVerified}
	}
	log := &logged{seen: math.MaxUint64}
	if err := (reporter{log, log, self}).Report(t.Context(), replicas); err != nil {
		t.Fatal(err)
	}
	if len(log.roots) != len(replicas) {
		t.Fatalf("%d of %d reports arrived", len(log.roots), len(replicas))
	}
	if log.seen != 1<<40 {
		t.Errorf("the reports are of index %d", log.seen)
	}
	for i, root := range log.roots {
		if root != replicas[i].Root {
			t.Fatalf("report %d is of %s, want %s", i, root, replicas[i].Root)
		}
	}
}
