package catalog

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// What garbage collection and a push have to say to one another. Bytes that a client
// sends may lie here from before and be ordered to go; a blob that a client asks for
// before it sends it may be about to expire.

// vouch returns the index of the state up to which this server owes nobody the removal
// of root, of which it has just stored a copy that is held. An order to remove it that
// it has not carried out yet it gives back first. 0 is for a cluster of a level that
// collects nothing.
func (c *Catalog) vouch(ctx context.Context, root digest.CID) (uint64, error) {
	fresh := meta.Local
	for {
		order, asOf, err := raftmeta.Ask(ctx, c.cfg.Metadata, fresh, state.GetOrder{Server: c.cfg.Holder, Root: root})
		switch {
		case err != nil:
			return 0, fmt.Errorf("ask whether %s is to be removed: %w", root, err)
		case !order.Fenced():
			return 0, nil
		}
		if c.cfg.Keep != nil {
			// Whoever carries out that order, or one before, leaves what is younger.
			if _, err := c.cfg.Keep(ctx, root, max(order.Index, order.Collected)); err != nil {
				return 0, err
			}
		}
		if order.Index == 0 {
			return asOf.Index, nil
		}
		receipt, err := c.cfg.Commands.Do(ctx, state.Origin{Principal: "node:" + string(c.cfg.Node), Node: c.cfg.Node},
			state.SettleCollected{Server: c.cfg.Holder, Kept: []state.CollectedCopy{{Root: root, Index: order.Index}}})
		if err != nil {
			return 0, fmt.Errorf("keep %s, which was to be removed: %w", root, err)
		}
		fresh.After = receipt.Token
	}
}

// again runs a command that carries stored content, and once more when some of it was
// collected between Store and the command: it is here still, as its upload is open.
func (c *Catalog) again(ctx context.Context, by Caller, stored []*Stored, run func(Caller) (raftmeta.Receipt, error)) (raftmeta.Receipt, error) {
	const tries = 5
	for try := 1; ; try++ {
		receipt, err := run(by)
		if try == tries || !errors.Is(err, meta.ErrConflict) {
			return receipt, err
		}
		collected := false
		for _, s := range stored {
			order, _, askErr := raftmeta.Ask(ctx, c.cfg.Metadata, meta.Local, state.GetOrder{Server: c.cfg.Holder, Root: s.Blob.Root})
			if askErr != nil {
				return receipt, errors.Join(err, askErr)
			}
			if order.Collected <= s.seen {
				continue
			}
			collected = true
			if s.seen, askErr = c.vouch(ctx, s.Blob.Root); askErr != nil {
				return receipt, errors.Join(err, askErr)
			}
		}
		if !collected {
			return receipt, err
		}
		if by.Origin.RequestID != "" {
			by.Origin.RequestID += ".again" + strconv.Itoa(try)
		}
	}
}

// waning reports whether a blob may be gone before a client that was told of it has
// published what uses it.
func (c *Catalog) waning(b state.BlobAnswer) bool {
	return b.Since != 0 && (b.Released || time.Since(b.Since.Std()) > c.cfg.UploadTTL/4)
}

// Offer is Blob for a client that leaves out the upload when the blob is there. One
// that no version uses any more it keeps for that client; on an agent, which cannot, it
// is as good as absent, so that the client sends it. So is one that no server has. Who
// may not push to the repository sends nothing, and keeps nothing: for them it is Blob.
//
// Errors: as Blob.
func (c *Catalog) Offer(ctx context.Context, by Caller, repo meta.RepoRef, d digest.Digest) (state.BlobAnswer, meta.AsOf, error) {
	b, asOf, err := c.Blob(ctx, by, repo, d)
	if r, _, unknown := askOnce(ctx, c, by, meta.Local, state.GetRepository{Ref: repo}); unknown != nil || !c.cfg.May(by.Who, meta.ActionPush, &r) {
		return b, asOf, err
	}
	if _, kept := errors.AsType[*meta.QuarantinedError](err); kept {
		// What an honest build brings itself is not the quarantined version's any more.
		err = fmt.Errorf("%w: send it again: %w", err, meta.ErrNotFound)
	}
	if err == nil {
		err = c.sendable(ctx, by, b.Blob)
	}
	if err != nil || !c.waning(b) {
		return b, asOf, err
	}
	if c.cfg.Commands != nil {
		if _, err = c.do(ctx, by, stepMount, state.MountBlob{From: repo, To: repo, Digest: d}); err == nil {
			return b, asOf, nil
		}
		if !errors.Is(err, meta.ErrNotFound) {
			return b, asOf, fmt.Errorf("keep %s in %s: %w", d, repo, err)
		}
	}
	return b, asOf, fmt.Errorf("blob %s in %s is about to expire: %w", d, repo, meta.ErrNotFound)
}
