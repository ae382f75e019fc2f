package state

import (
	"errors"
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// ReportReplicas is a server's word on its own copies, or on those of its bucket, which
// is then the Server; of each replica it reads Root, Server, State, Reason and Seen. A region's demand is verified once min(2, servers
// in the region) of them have verified, and pending again when fewer do.
//
// Errors: meta.ErrNotFound when the server is not in the roster.
type ReportReplicas struct {
	Replicas []meta.Replica `cbor:"1,keyasint,omitempty"` // 1 to 1,000
}

// MaxReportedReplicas bounds one report.
const MaxReportedReplicas = 1000

// Type implements Command.
func (ReportReplicas) Type() uint16 { return typeReportReplicas }

func (c ReportReplicas) since() uint32 {
	for _, r := range c.Replicas {
		if r.Seen != 0 {
			return GCLevel
		}
	}
	return 0
}

// Check implements Command.
func (c ReportReplicas) Check() error {
	if n := len(c.Replicas); n == 0 || n > MaxReportedReplicas {
		return fmt.Errorf("report of %d replicas, use 1 to %d: %w", n, MaxReportedReplicas, meta.ErrInvalid)
	}
	for _, r := range c.Replicas {
		switch {
		case r.Root.IsZero() || r.Server == "":
			return fmt.Errorf("reported replica without root or server: %w", meta.ErrInvalid)
		case r.State != meta.ReplicaPending && r.State != meta.ReplicaVerified && r.State != meta.ReplicaFailed:
			return fmt.Errorf("reported replica %s: state %q: %w", r.Root, r.State, meta.ErrInvalid)
		case len(r.Reason) > 1024:
			return fmt.Errorf("reported replica %s: reason of %d bytes, at most 1024: %w", r.Root, len(r.Reason), meta.ErrInvalid)
		}
	}
	return nil
}

func (c ReportReplicas) apply(t *tx) (any, error) {
	for _, r := range c.Replicas {
		blob, err := blobByRoot(t, r.Root)
		if errors.Is(err, meta.ErrNotFound) {
			continue // It went while the server looked; the rest of the report holds.
		}
		if err != nil {
			return nil, err
		}
		if r.State == meta.ReplicaVerified {
			// What was collected since it was looked at may be gone; it is looked at again.
			if ok, err := trusted(t, r.Root, r.Seen); err != nil {
				return nil, err
			} else if !ok {
				continue
			}
		}
		if err := t.reportCopy(blob, r.Server, r.State, r.Reason); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// reportCopy records a server's word on its copy of a blob and settles what the
// region is owed.
func (t *tx) reportCopy(b *meta.Blob, server meta.NodeID, state meta.ReplicaState, reason string) error {
	if err := t.recordCopy(b, server, state, reason); err != nil {
		return err
	}
	return t.remark(b.Root)
}

func (t *tx) recordCopy(b *meta.Blob, server meta.NodeID, state meta.ReplicaState, reason string) error {
	in, err := findHolder(t, server)
	if err != nil {
		return err
	}
	k := keyReplica(b.Root, in, server)
	r, err := load[meta.Replica](t, k)
	if err != nil {
		return err
	}
	if r == nil {
		r = &meta.Replica{Root: b.Root, Region: in, Server: server, StoredBytes: b.StoredBytes, Context: b.Context, Digest: b.Digest}
	}
	r.State, r.Reason = state, reason
	if state == meta.ReplicaVerified {
		r.Verified = t.now
	}
	t.put(k, r)
	if err := t.judge(b.Root, reason); err != nil {
		return err
	}

	d, err := load[meta.Replica](t, keyReplica(b.Root, in, ""))
	if err != nil || d == nil {
		return err
	}
	was := d.State
	have, want, err := t.copiesOf(d)
	if err != nil {
		return err
	}
	if have < want && was == meta.ReplicaVerified {
		if garbage, err := t.isGarbage(d.Root); err != nil {
			return err
		} else if garbage {
			return t.dropDemand(d) // As undemand does with what is pending.
		}
	}
	if err := t.putDemand(d, have, want); err != nil {
		return err
	}
	if d.State != was {
		t.emit(feed.Change{Kind: feed.KindReplica, Root: b.Root, Region: in, Node: server, Deleted: d.State != meta.ReplicaVerified})
	}
	return nil
}

// settle stores a region's demand as verified when enough of the region's servers
// are, else as pending and in the queues.
func (t *tx) settle(d *meta.Replica) error {
	have, want, err := t.copiesOf(d)
	if err != nil {
		return err
	}
	return t.putDemand(d, have, want)
}

// copiesOf counts the holders of the region that have a verified copy, up to as many
// as are to.
func (t *tx) copiesOf(d *meta.Replica) (have, want int, err error) {
	region, err := t.region(d.Region)
	if err != nil {
		return 0, 0, err
	}
	var servers []meta.NodeID
	if region != nil {
		servers = region.holders()
	}
	want = min(max(len(servers), 1), regionCopies)
	for _, server := range servers {
		if have == want {
			break
		}
		r, err := load[meta.Replica](t, keyReplica(d.Root, d.Region, server))
		if err != nil {
			return 0, 0, err
		}
		if r != nil && r.State == meta.ReplicaVerified {
			have++
		}
	}
	return have, want, nil
}

// regionCopies is how many servers of a region keep a demanded blob, when the
// region has as many.
const regionCopies = 2
