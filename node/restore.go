package node

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/shoal-registry/shoal/node/backup"
	"github.com/shoal-registry/shoal/node/config"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/verify/digest"
	"github.com/shoal-registry/shoal/verify/trust"
)

// RestoreOptions say what to make of a backup.
type RestoreOptions struct {
	// Data is the new data directory, Blobs where its blobs go ("" is within Data).
	Data, Blobs string
	Region      meta.RegionName
	// Identity opens the backup's root key: the content of an age identity file or of an
	// OpenSSH private key. With it the same cluster goes on in a new epoch; without it the
	// restored one is another cluster, with its own id and root.
	Identity []byte
	// KeepTokens lets tokens of before count on, also those that were revoked since the
	// backup was taken: it does not know.
	KeepTokens bool
	Log        *slog.Logger
	// Say is told what is done.
	Say func(format string, args ...any)
}

// Restored is what a Restore made.
type Restored struct {
	Backup  string `json:"backup"`
	Cluster string `json:"cluster"`
	Epoch   uint64 `json:"epoch"`
	// Same says that it is the backup's cluster, and not another.
	Same bool        `json:"same_cluster"`
	Node meta.NodeID `json:"node"`
	// Blobs of StoredBytes are there, verified; Needed have to come from peers.
	Blobs       int64 `json:"blobs"`
	StoredBytes int64 `json:"stored_bytes"`
	Needed      int64 `json:"needed"`
	// Names are of those, and Findings what was wrong with the damaged among them; at
	// most 100 each.
	Names    []string `json:"needed_from_peers"`
	Findings []string `json:"findings"`
}

// Restore makes, in an empty directory, the data directory of a first server from a
// backup: a new epoch with this server as its only one. Every digest is checked. Blobs
// that the backup lacks, or has damaged, are owed by the regions as before, and come from
// whoever joins with a copy. An interrupted Restore is repeated and goes on.
//
// Errors: meta.ErrConflict for a directory with other things in it; meta.ErrCorrupt for
// metadata that is not what it was; meta.ErrDenied for an Identity that the key was not
// sealed to; meta.ErrNoSpace.
func Restore(ctx context.Context, p *backup.Point, o RestoreOptions) (r Restored, err error) {
	if o.Say == nil {
		o.Say = func(string, ...any) {}
	}
	if err := meta.CheckRegion(o.Region); err != nil {
		return r, err
	}
	if config.IsBucket(o.Blobs) {
		return r, fmt.Errorf("a restore brings blobs to a disk: restore without --blobs s3://..., start that server, join one with --blobs s3://... (and --take-bucket with the old cluster's id, if this is to be another cluster), then remove the first: %w", meta.ErrInvalid)
	}
	defer func() {
		if errors.Is(err, syscall.ENOSPC) {
			err = fmt.Errorf("the disk is full; make room and restore again, it goes on from here: %w: %w", err, meta.ErrNoSpace)
		}
	}()
	if err := os.MkdirAll(o.Data, 0o700); err != nil {
		return r, err
	}
	lock, err := LockDir(o.Data)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, lock.Release()) }()
	again, err := isRestorable(o.Data, p.ID)
	if err != nil {
		return r, err
	}
	if again {
		o.Say("going on with the restore of backup %s", p.ID)
	} else if err := WriteFileAtomic(filepath.Join(o.Data, restoringFile), []byte(p.ID+"\n"), 0o600); err != nil {
		return r, err
	}
	key, err := trust.LoadOrCreateKey(filepath.Join(o.Data, "node.key"))
	if err != nil {
		return r, err
	}
	r.Backup, r.Node = p.ID, key.ID()
	next := filepath.Join(o.Data, recoveryDir)
	if err := os.RemoveAll(next); err != nil {
		return r, err
	}
	metadata, err := raftmeta.OpenRefounding(next, o.Log)
	if err != nil {
		return r, err
	}
	defer func() {
		if metadata != nil {
			err = errors.Join(err, metadata.Close())
		}
	}()
	o.Say("checking and loading the metadata of index %d", p.Index)
	if err := loadMetadata(ctx, p, metadata); err != nil {
		return r, err
	}
	if err := restoreBlobs(ctx, p, o, metadata, &r); err != nil {
		return r, err
	}
	id, err := foundRestored(ctx, p, o, key, metadata, &r)
	if err != nil {
		return r, err
	}
	if err := errors.Join(id.save(next), metadata.Close()); err != nil {
		return r, err
	}
	metadata = nil
	return r, commitRecovery(o.Data)
}

func loadMetadata(ctx context.Context, p *backup.Point, metadata *raftmeta.Refounding) error {
	stream, err := p.State()
	if err != nil {
		return err
	}
	err = metadata.Load(bufio.NewReaderSize(stream, 256<<10))
	if err = errors.Join(err, stream.Close()); err != nil {
		return fmt.Errorf("backup %s: %w", p.ID, err)
	}
	index, sum, err := metadata.Hash(ctx)
	if err != nil {
		return err
	}
	if got := hex.EncodeToString(sum[:]); index != p.Index || got != p.StateHash {
		return fmt.Errorf("backup %s: its metadata is of index %d with the hash %s, the manifest says %d and %s: %w", p.ID, index, got, p.Index, p.StateHash, meta.ErrCorrupt)
	}
	return nil
}

// foundRestored begins the new epoch in the restored metadata.
func foundRestored(ctx context.Context, p *backup.Point, o RestoreOptions, key *trust.Key, metadata *raftmeta.Refounding, r *Restored) (*identity, error) {
	v, err := metadata.View()
	if err != nil {
		return nil, err
	}
	cluster, err := state.GetCluster{}.Answer(v)
	if err := errors.Join(err, v.Close()); err != nil {
		return nil, err
	}
	now := time.Now()
	authority, err := authorityOf(p, cluster, o.Identity, now)
	if err != nil {
		return nil, err
	}
	r.Same, r.Cluster, r.Epoch = len(o.Identity) > 0, authority.Root().Cluster(), cluster.Epoch+1
	der, err := authority.KeyDER()
	if err != nil {
		return nil, err
	}
	recipient, err := trust.ParseRecipient(key.Recipient())
	if err != nil {
		return nil, err
	}
	sealed, err := trust.Seal(der, recipient)
	if err != nil {
		return nil, err
	}
	// Nobody may know the old administrator's token any more, and who stole a backup
	// must not learn the new one.
	token := trust.NewAdminToken()
	if err := WriteFileAtomic(filepath.Join(o.Data, AdminTokenFile), []byte(token.Reveal()), 0o600); err != nil {
		return nil, err
	}
	node := meta.Node{ID: key.ID(), Role: meta.RoleServer, Region: o.Region, Seal: key.Recipient()}
	statement := authority.SignEpoch(trust.Epoch{Number: r.Epoch, First: node.ID, At: meta.TimeOf(now)})
	begin := state.BeginEpoch{
		Epoch: r.Epoch, Node: node, Sealed: sealed, AdminToken: trust.HashToken(token),
		Recovery: meta.Recovery{
			At: meta.TimeOf(now), First: node.ID, Index: p.Index, Time: meta.TimeOf(p.Created), Backup: p.ID, Statement: statement,
		},
		VoidTokens: !o.KeepTokens,
	}
	if !r.Same {
		begin.Foreign, begin.ID, begin.Root = true, r.Cluster, authority.Root().DER()
	}
	if err := metadata.Begin(ctx, node.ID, now, true, begin); err != nil {
		return nil, fmt.Errorf("begin epoch %d: %w", r.Epoch, err)
	}
	// Dated back, so that the server's first act is to give itself a certificate with the
	// names that it is then reached by.
	chain, err := authority.Issue(node, nil, now.Add(-trust.RenewAfter))
	if err != nil {
		return nil, err
	}
	return &identity{
		Cluster: r.Cluster, Root: authority.Root().DER(), Chain: chain, Node: node, Servers: []meta.Node{node},
		Epoch: r.Epoch, Statement: statement,
	}, nil
}

// authorityOf opens the backup's root key, or makes another cluster's.
func authorityOf(p *backup.Point, cluster meta.Cluster, identity []byte, now time.Time) (*trust.Authority, error) {
	if len(identity) == 0 {
		return trust.NewAuthority(newClusterID(), now)
	}
	sealed, err := p.Key()
	if err != nil {
		return nil, err
	}
	if sealed == nil {
		return nil, fmt.Errorf("backup %s has no root key, it was created without --recipient; restore without --identity, as a new cluster: %w", p.ID, meta.ErrConflict)
	}
	der, err := trust.OpenWith(sealed, identity)
	if err != nil {
		return nil, fmt.Errorf("the root key of backup %s: %w", p.ID, err)
	}
	return trust.LoadAuthority(cluster.Root, der)
}

// restoreBlobs brings the backup's blobs into the store, chunk by chunk.
func restoreBlobs(ctx context.Context, p *backup.Point, o RestoreOptions, metadata *raftmeta.Refounding, r *Restored) (err error) {
	const maxNames, each = 100, 1000
	dir := o.Blobs
	if dir == "" {
		dir = filepath.Join(o.Data, "blobs")
	}
	disk, err := store.OpenDisk(store.DiskConfig{Dir: dir, Fsync: true, Log: o.Log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, disk.Close()) }()
	v, err := metadata.View()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	var last digest.CID
	return p.Entries(func(e backup.Entry) error {
		if e.Here == '+' {
			if e.Blob.Root == last {
				return nil
			}
			last = e.Blob.Root
			err := restoreBlob(ctx, p.Dir(), disk, e.Blob)
			if err == nil {
				r.Blobs++
				r.StoredBytes += e.Blob.StoredBytes
				if r.Blobs%each == 0 {
					o.Say("%d of %d blobs are restored", r.Blobs, p.Blobs)
				}
				return nil
			}
			if ctx.Err() != nil || !errors.Is(err, meta.ErrCorrupt) && !errors.Is(err, meta.ErrNotFound) {
				return fmt.Errorf("restore blob %s: %w", e.Blob.Root, err)
			}
			if len(r.Findings) < maxNames {
				r.Findings = append(r.Findings, err.Error())
			}
		}
		r.Needed++
		if len(r.Names) < maxNames {
			r.Names = append(r.Names, backup.NamesOf(v, state.UsedBlob{Blob: e.Blob, Repo: e.Repo})...)
		}
		return nil
	})
}

// restoreBlob writes one blob; a damaged one leaves nothing.
func restoreBlob(ctx context.Context, from *backup.Dir, to store.Store, b meta.Blob) error {
	if there, err := to.Open(ctx, b.Root); err == nil {
		complete := there.Complete()
		if err := there.Close(); err != nil || complete {
			return err
		}
	}
	var blob store.Blob
	err := from.Read(ctx, b, func(m *chunk.Map, i int, bytes []byte) (err error) {
		if blob == nil {
			if blob, err = to.Create(ctx, m); err != nil {
				return err
			}
		}
		return blob.WriteChunk(ctx, i, bytes)
	})
	if empty := chunk.Of(nil); blob == nil && err == nil && empty.Root() == b.Root {
		blob, err = to.Create(ctx, empty) // It has no chunks.
	}
	if blob != nil {
		err = errors.Join(err, blob.Close())
	}
	if err != nil {
		err = errors.Join(err, to.Remove(context.WithoutCancel(ctx), b.Root))
	}
	return err
}
