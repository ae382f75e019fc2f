package client

import (
	"context"
	"iter"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Search is what to look for; empty fields are anything.
type Search struct {
	// Tenant, and the name of a Repository of it, "" for all that the caller may list.
	Tenant     meta.TenantName
	Repository string
	// Name begins the name of the package, Contains is part of it.
	Name, Contains string
	// Labels are `name=value`, or `name` for any value; a package or version has all of them.
	Labels []string
	// Digest is of something in the version, Publisher who published it: with one of the
	// two, versions are found, else packages.
	Digest    digest.Digest
	Publisher string
	Format    string
}

// Match is one thing that a search found.
type Match struct {
	Repo     meta.RepoRef `json:"repo"`
	Format   string       `json:"format"`
	Package  string       `json:"package"`
	Spelling string       `json:"spelling,omitempty"`
	Labels   meta.Labels  `json:"labels,omitempty"`
	Versions uint64       `json:"versions"` // live ones of the package
	// Of a version, when those were looked for. Path is the file that has the digest.
	Version     string        `json:"version,omitempty"`
	Digest      digest.Digest `json:"digest,omitempty"`
	Publisher   string        `json:"publisher,omitempty"`
	Published   *time.Time    `json:"published,omitempty"`
	Quarantined bool          `json:"quarantined,omitempty"`
	Path        string        `json:"path,omitempty"`
}

// Search finds packages or versions, by repository and then by name.
func (c *Client) Search(ctx context.Context, s Search) iter.Seq2[Match, error] {
	q := query("tenant", string(s.Tenant), "repository", s.Repository, "name", s.Name, "contains", s.Contains,
		"digest", string(s.Digest), "publisher", s.Publisher, "format", s.Format)
	for _, label := range s.Labels {
		q.Add("label", label)
	}
	return all[Match](ctx, c, "search", q)
}
