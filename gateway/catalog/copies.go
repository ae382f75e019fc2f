package catalog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// A repository may want two copies of everything before a publish is acknowledged. They
// are made before the version enters the log: what is stored here is linked, demanded
// where the repository's regions want it, and waited for. So nothing half safe is ever
// visible, and a publish that gives up leaves uploads, which the next try finds.

// DefaultAckWait is how long a publish waits for second copies.
const DefaultAckWait = 20 * time.Second

// stepSecure is the first of the steps of the commands before a publish: behind those
// of staged references, of which there are some hundreds at most.
const stepSecure = stepStage + 1<<16

// secured is a blob that a second server has to have.
type secured struct {
	digest digest.Digest
	root   digest.CID
}

// secure waits until as many servers have verified copies of all that a version uses as
// the repository wants before it acknowledges; mostly that is one, and it does nothing.
//
// Errors: *meta.UnavailableError when the copies do not come in time.
func (c *Catalog) secure(ctx context.Context, by Caller, repo meta.RepoRef, stored []*Stored, files []meta.File, refs []meta.Reference) error {
	r, _, err := askOnce(ctx, c, by, meta.Local, state.GetRepository{Ref: repo})
	if err != nil || r.CopiesBeforeAck < 2 {
		return err
	}
	step := stepSecure
	after := by.After
	left := make([]secured, 0, len(files)+len(refs))
	seen := map[digest.Digest]bool{}
	for _, s := range stored {
		receipt, err := c.again(ctx, by, []*Stored{s}, func(by Caller) (raftmeta.Receipt, error) { return c.do(ctx, by, step, c.link(repo, *s)) })
		if err != nil {
			return fmt.Errorf("link %s: %w", s.Name, err)
		}
		step++
		after = receipt.Token
		seen[s.Blob.Digest] = true
		left = append(left, secured{s.Blob.Digest, s.Blob.Root})
	}
	fresh := meta.Local
	fresh.After = after
	add := func(d digest.Digest) error {
		if seen[d] {
			return nil
		}
		seen[d] = true
		b, _, err := raftmeta.Ask(ctx, c.cfg.Metadata, fresh, state.GetBlob{Repo: repo, Digest: d})
		if err != nil {
			return err
		}
		left = append(left, secured{b.Blob.Digest, b.Blob.Root})
		return nil
	}
	for _, f := range files {
		if err := add(f.Digest); err != nil {
			return err
		}
	}
	for _, ref := range refs {
		if ref.Version {
			continue // It was published with its own copies.
		}
		if err := add(ref.Digest); err != nil {
			return err
		}
	}
	if left, err = c.lacking(ctx, fresh, left, r.CopiesBeforeAck); err != nil || len(left) == 0 {
		return err
	}
	if err := c.demand(ctx, by, repo, left, step); err != nil {
		return err
	}
	if err := c.secondServer(ctx, &r, left[0].root); err != nil {
		return err
	}
	return c.awaitCopies(ctx, &r, left)
}

// awaitCopies waits for what is lacking, for as long as the catalog may.
func (c *Catalog) awaitCopies(ctx context.Context, r *meta.Repository, left []secured) (err error) {
	all := len(left)
	deadline := time.NewTimer(c.cfg.AckWait)
	defer deadline.Stop()
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, 250*time.Millisecond) {
		next := time.NewTimer(pause)
		select {
		case <-next.C:
		case <-deadline.C:
			next.Stop()
			return fmt.Errorf("%d of %d blobs, the first %s, have no second verified copy after %v; nothing was published, the copies go on being made, repeat the push: %w",
				len(left), all, left[0].digest, c.cfg.AckWait, &meta.UnavailableError{Reason: "not_replicated", RetryAfter: 2 * time.Second})
		case <-ctx.Done():
			next.Stop()
			return fmt.Errorf("wait for copies: %w", context.Cause(ctx))
		}
		if left, err = c.lacking(ctx, meta.Local, left, r.CopiesBeforeAck); err != nil || len(left) == 0 {
			return err
		}
	}
}

// lacking returns those of which fewer than want servers have copies.
func (c *Catalog) lacking(ctx context.Context, f meta.Freshness, all []secured, want uint32) (left []secured, _ error) {
	const atOnce = state.MaxReportedReplicas
	for len(all) > 0 {
		part := all[:min(atOnce, len(all))]
		all = all[len(part):]
		roots := make([]digest.CID, len(part))
		for i, s := range part {
			roots[i] = s.root
		}
		counts, _, err := raftmeta.Ask(ctx, c.cfg.Metadata, f, state.CopiesOf{Roots: roots})
		if err != nil {
			return nil, fmt.Errorf("count copies: %w", err)
		}
		for i, n := range counts {
			if n < want {
				left = append(left, part[i])
			}
		}
	}
	return left, nil
}

// demand asks for copies where the repository's regions want them.
func (c *Catalog) demand(ctx context.Context, by Caller, repo meta.RepoRef, blobs []secured, step int) error {
	for len(blobs) > 0 {
		part := blobs[:min(state.MaxDemandedBlobs, len(blobs))]
		blobs = blobs[len(part):]
		names := make([]digest.Digest, len(part))
		for i, s := range part {
			names[i] = s.digest
		}
		if _, err := c.do(ctx, by, step, state.DemandBlobs{Repo: repo, Blobs: names}); err != nil {
			return fmt.Errorf("demand %d blobs: %w", len(names), err)
		}
		step++
	}
	return nil
}

// secondServer refuses at once what cannot come: a second copy where the regions that
// owe one have a single server.
func (c *Catalog) secondServer(ctx context.Context, r *meta.Repository, root digest.CID) error {
	replicas, _, err := raftmeta.Ask(ctx, c.cfg.Metadata, meta.Local, state.Replicas{Root: root})
	if err != nil {
		return err
	}
	servers := 0
	for _, d := range replicas {
		if d.Server != "" {
			continue
		}
		nodes, _, err := raftmeta.Ask(ctx, c.cfg.Metadata, meta.Local, state.ListNodes{Role: meta.RoleServer, Region: d.Region, Page: state.Page{Limit: 2}})
		if err != nil {
			return err
		}
		for _, n := range nodes {
			if n.ID != c.cfg.Node {
				servers++
			}
		}
	}
	if servers == 0 {
		return fmt.Errorf("repository %s wants %d copies before it acknowledges, and its regions have no other server than this one; add one, or name more regions with `shoal repo set %s --regions`: %w",
			r.Ref, r.CopiesBeforeAck, r.Ref, &meta.UnavailableError{Reason: "no_second_server", RetryAfter: 10 * time.Second})
	}
	return nil
}

// bringForward begins the second copy of a blob that was just uploaded to a repository
// that will want it, so that the publish waits less. It fails silently: the publish
// does the same.
func (c *Catalog) bringForward(ctx context.Context, by Caller, repo meta.RepoRef, b meta.Blob) {
	r, _, err := askOnce(ctx, c, by, meta.Local, state.GetRepository{Ref: repo})
	if err == nil && r.CopiesBeforeAck > 1 {
		err = c.demand(ctx, by, repo, []secured{{b.Digest, b.Root}}, stepSecure)
	}
	if err != nil && !errors.Is(err, meta.ErrNotFound) {
		c.log.Debug("a second copy is not begun with the upload", "repository", repo.String(), "digest", b.Digest, "error", err)
	}
}
