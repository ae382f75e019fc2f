package catalog

import (
	"context"
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// What proxy repositories have of their upstreams. The proxy engine (gateway/upstream)
// decides what is asked for, and when; here is what it keeps.

// Fetched returns what a proxy repository has of an address of its upstream, as far as
// this node knows: that it has nothing is not confirmed, the upstream can be asked.
//
// Errors: meta.ErrNotFound; *meta.QuarantinedError; meta.ErrUnavailable.
func (c *Catalog) Fetched(ctx context.Context, by Caller, repo meta.RepoRef, path, accept string) (state.FetchedAnswer, meta.AsOf, error) {
	a, asOf, err := askOnce(ctx, c, by, meta.Local, state.GetFetched{Repo: repo, Path: path, Accept: accept})
	if err != nil {
		return a, asOf, about(err, "what was fetched of %s", path)
	}
	if a.Quarantine != nil {
		return a, asOf, &meta.QuarantinedError{What: "blob " + string(a.Fetched.Digest) + " of " + repo.String(), Quarantine: *a.Quarantine}
	}
	if c.cfg.Asked != nil && !a.Fetched.Absent() {
		c.cfg.Asked(a.Blob, repo, a.Fetched.Digest)
	}
	return a, asOf, nil
}

// KeepFetched records what the upstream of f.Repo has: what s holds, or, when s is nil,
// what f says of bytes that are there, or of nothing. The answer is what holds then.
//
// Errors: as state.RecordFetched has them; meta.ErrUnavailable.
func (c *Catalog) KeepFetched(ctx context.Context, by Caller, f meta.Fetched, s *Stored) (state.FetchedAnswer, meta.AsOf, error) {
	var stored []*Stored
	if s != nil {
		stored = []*Stored{s}
	}
	receipt, err := c.again(ctx, by, stored, func(by Caller) (raftmeta.Receipt, error) {
		command := state.RecordFetched{Fetched: f}
		if s != nil {
			link := c.link(f.Repo, *s)
			// The record names bytes by their sha256, whatever the client calls them.
			command.Blob, command.Fetched.Digest, command.Fetched.Size = &link, s.Blob.Digest, s.Blob.PlainBytes
		}
		return c.do(ctx, by, stepLink, command)
	})
	if err != nil {
		return state.FetchedAnswer{}, meta.AsOf{}, fmt.Errorf("keep %s of %s: %w", f.Path, f.Repo, err)
	}
	c.settled(f.Repo, stored...)
	by.After, by.Asked, by.Absent = receipt.Token, meta.Freshness{}, nil
	a, _, err := c.Fetched(ctx, by, f.Repo, f.Path, f.Accept)
	return a, meta.AsOf{Epoch: receipt.Token.Epoch, Index: receipt.Token.Index, Mode: meta.ModeStrong}, err
}

// KnownBlob is Blob for who can get it elsewhere: that it is not there is not confirmed,
// and one of which no server has a sound copy is as good as absent.
func (c *Catalog) KnownBlob(ctx context.Context, by Caller, repo meta.RepoRef, d digest.Digest) (state.BlobAnswer, meta.AsOf, error) {
	b, asOf, err := askOnce(ctx, c, by, meta.Local, state.GetBlob{Repo: repo, Digest: d})
	if err == nil {
		err = c.sendable(ctx, by, b.Blob)
	}
	if err != nil {
		return b, asOf, about(err, "blob %s of %s", d, repo)
	}
	if b.Quarantine != nil {
		return b, asOf, &meta.QuarantinedError{What: "blob " + string(d) + " of " + repo.String(), Quarantine: *b.Quarantine}
	}
	if c.cfg.Asked != nil {
		c.cfg.Asked(b.Blob, repo, d)
	}
	return b, asOf, nil
}

// Readable reports whether who may read r.
func (c *Catalog) Readable(who meta.Principal, r *meta.Repository) bool {
	return c.cfg.May(who, meta.ActionPull, r)
}

// AllRepositories lists the repositories of all tenants, whoever may read them: what of
// them a caller is told is for who asks to see to.
func (c *Catalog) AllRepositories(ctx context.Context, page Page) ([]meta.Repository, meta.AsOf, error) {
	return list(ctx, c, Caller{}, "all repositories", state.ListRepositories{Page: page})
}
