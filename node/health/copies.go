package health

import (
	"context"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Copies looks whether the verified copies on record of one server are there.
type Copies struct {
	// Server holds the copies: Self, or its bucket.
	Server   meta.NodeID
	Self     meta.NodeID
	Metadata raftmeta.Asker
	Doer     raftmeta.Doer
	// Look says whether a blob is on the disk whole, which memory may not know. It reads
	// no content: that is the audit's.
	Look func(ctx context.Context, root digest.CID) (whole bool, err error)
}

// checkAtOnce is how many copies one question lists and one command reports.
const checkAtOnce = 500

// Check looks at all of them and reports those that are missing as failed: their
// regions owe them again. Memory is that of one page. With an error missing counts what
// was reported nevertheless.
func (c Copies) Check(ctx context.Context) (copies, missing uint64, err error) {
	q := state.ListCopies{Server: c.Server, State: meta.ReplicaVerified, Limit: checkAtOnce}
	for {
		page, _, err := raftmeta.Ask(ctx, c.Metadata, meta.Local, q)
		if err != nil {
			return copies, missing, err
		}
		var gone []meta.Replica
		for _, r := range page.Copies {
			if ctx.Err() != nil {
				return copies, missing, ctx.Err()
			}
			copies++
			whole, err := c.Look(ctx, r.Root)
			if err != nil {
				return copies, missing, err
			}
			if !whole {
				gone = append(gone, meta.Replica{Root: r.Root, Server: c.Server, State: meta.ReplicaFailed, Reason: "missing after an outage"})
			}
		}
		if len(gone) > 0 {
			if _, err := c.Doer.Do(ctx, state.Origin{Principal: "node:" + string(c.Self)}, state.ReportReplicas{Replicas: gone}); err != nil {
				return copies, missing, err
			}
			missing += uint64(len(gone))
		}
		if page.After.IsZero() {
			return copies, missing, nil
		}
		q.After = page.After
	}
}
