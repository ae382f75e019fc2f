package catalog

import (
	"context"
	"fmt"
	"io"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// Publication looks up the set of documents of a repository that is in place under a
// name.
//
// Errors: meta.ErrNotFound, confirmed; meta.ErrUnavailable.
func (c *Catalog) Publication(ctx context.Context, by Caller, repo meta.RepoRef, name string) (meta.Publication, meta.AsOf, error) {
	p, asOf, err := ask(ctx, c, by, meta.Bounded, state.GetPublication{Repo: repo, Name: name})
	if err != nil {
		return p, asOf, about(err, "publication %s of %s", name, repo)
	}
	return p, asOf, nil
}

// Publications lists the sets of documents of a repository, by name; none is no error.
func (c *Catalog) Publications(ctx context.Context, by Caller, repo meta.RepoRef, page Page) ([]meta.Publication, meta.AsOf, error) {
	return list(ctx, c, by, "publications of "+repo.String(), state.ListPublications{Repo: repo, Page: page})
}

// Sets looks up how the publications of a repository stand, and their public key.
//
// Errors: meta.ErrNotFound, confirmed, when it has none yet; meta.ErrUnavailable.
func (c *Catalog) Sets(ctx context.Context, by Caller, repo meta.RepoRef) (meta.Sets, meta.AsOf, error) {
	s, asOf, err := ask(ctx, c, by, meta.Bounded, state.GetSets{Repo: repo})
	if err != nil {
		return s, asOf, about(err, "publications of %s", repo)
	}
	return s, asOf, nil
}

// IngestSet is Ingest of a document that a publication is made of: it is made for the
// tenant, so nothing is reserved of its quota.
func (c *Catalog) IngestSet(ctx context.Context, by Caller, repo meta.RepoRef, r io.Reader) (Stored, *Upload, error) {
	u, err := c.begin(ctx, by, repo, false, true)
	if err != nil {
		return Stored{}, nil, err
	}
	return u.ingested(ctx, r, "")
}

// maxSetBlobs is how many blobs a commit of a set brings with it; those beyond are
// linked ahead of it, so that the command stays within its size.
const maxSetBlobs = 32

// CommitSets sends cmd, with the content that its set is made of and this node has
// stored; what each upload holds must stay open until it has ended.
//
// Errors: as state.CommitSets has them; meta.ErrUnavailable.
func (c *Catalog) CommitSets(ctx context.Context, by Caller, cmd state.CommitSets, content []Stored) (meta.Token, error) {
	for len(content) > maxSetBlobs {
		s := content[len(content)-1]
		ahead := by
		ahead.Origin.RequestID = ""
		if _, err := c.Link(ctx, ahead, cmd.Repo, s); err != nil {
			return meta.Token{}, err
		}
		content = content[:len(content)-1]
	}
	stored := make([]*Stored, len(content))
	for i := range content {
		stored[i] = &content[i]
		stored[i].Name = stored[i].Blob.Digest
	}
	receipt, err := c.again(ctx, by, stored, func(by Caller) (raftmeta.Receipt, error) {
		cmd.Blobs = nil
		for _, s := range stored {
			cmd.Blobs = append(cmd.Blobs, c.link(cmd.Repo, *s))
		}
		return c.do(ctx, by, stepPublish, cmd)
	})
	if err != nil {
		return meta.Token{}, fmt.Errorf("commit publications of %s: %w", cmd.Repo, err)
	}
	return receipt.Token, nil
}
