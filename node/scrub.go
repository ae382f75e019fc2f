package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/transfer/repair"
	"github.com/shoal-registry/shoal/transfer/scrub"
	"github.com/shoal-registry/shoal/verify/digest"
)

// errBlobsRemoved is why a store's copies are looked at anew.
var errBlobsRemoved = errors.New("the directory of the blobs, or a part of it, was removed while the server ran")

// scrubFile is where a server keeps how far its scrub is, in its data directory.
const scrubFile = "scrub"

// newScrub builds what looks at the bytes of this server, and shows how far it is at
// /view/scrub.
func (n *Node) newScrub(records *raftmeta.Store, kept *blobs, replicas *repair.Loop, lost func()) (*scrub.Scrubber, error) {
	s, err := scrub.New(scrub.Config{
		Self: n.ID(), Store: kept.audited(), Repair: replicas, Foreign: kept.disk.Traffic, Lost: lost,
		Records: audits{metadata: records, doer: records, self: n.ID(), holder: kept.holder, mine: kept.mine, region: n.id.Node.Region},
		File:    filepath.Join(n.cfg.Data, scrubFile), Write: WriteFileAtomic,
		Log: n.log, Metrics: n.metrics,
	})
	if err != nil {
		return nil, err
	}
	n.views["scrub"] = func() any { return s.Status() }
	n.parts.Add("scrub", s.Run)
	return s, nil
}

// audits is what the scrub asks of the metadata.
type audits struct {
	metadata raftmeta.Asker
	doer     raftmeta.Doer
	self     meta.NodeID
	holder   meta.NodeID
	mine     func(root digest.CID) bool // of those that share a bucket, which one looks
	region   meta.RegionName
}

func (a audits) Copies(ctx context.Context, after digest.CID, limit int) ([]meta.Replica, digest.CID, error) {
	found, _, err := raftmeta.Ask(ctx, a.metadata, meta.Local, state.ListCopies{Server: a.holder, After: after, Limit: limit})
	return slices.DeleteFunc(found.Copies, func(r meta.Replica) bool { return !a.mine(r.Root) }), found.After, err
}

func (a audits) Copy(ctx context.Context, root digest.CID) (meta.Replica, error) {
	all, _, err := raftmeta.Ask(ctx, a.metadata, meta.Local, state.Replicas{Root: root})
	if err != nil {
		return meta.Replica{}, err
	}
	for _, r := range all {
		if r.Server == a.holder {
			return r, nil
		}
	}
	return meta.Replica{}, fmt.Errorf("copy of %s: %w", root, meta.ErrNotFound)
}

func (a audits) Blob(ctx context.Context, root digest.CID) (meta.Blob, error) {
	b, _, err := raftmeta.Ask(ctx, a.metadata, meta.Local, state.BlobByRoot{Root: root})
	return b, err
}

func (a audits) Wanted(ctx context.Context) (meta.AuditRequest, error) {
	own, _, err := raftmeta.Ask(ctx, a.metadata, meta.Local, state.GetAudit{Server: a.self})
	return own.Wanted, err
}

func (a audits) Report(ctx context.Context, r meta.AuditReport) error {
	_, err := a.doer.Do(ctx, state.Origin{Principal: "node:" + string(a.self)}, state.ReportAudit{Server: a.self, Report: r})
	if errors.Is(err, meta.ErrConflict) {
		return nil // the cluster's level is below: its other servers do not know of audits yet
	}
	return err
}
