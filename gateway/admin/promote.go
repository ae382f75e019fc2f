package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// Promoter makes versions those of another repository. It is a *catalog.Catalog.
type Promoter interface {
	Promote(ctx context.Context, by catalog.Caller, p catalog.Promotion) (state.Promoted, meta.Token, error)
}

// repositoryFor returns a repository to which the caller may do the action; anybody else
// gets the answer that the gate gives on its routes.
func (a *API) repositoryFor(c *protocol.Call, action access.Action, ref meta.RepoRef) (*meta.Repository, error) {
	var known *meta.Repository
	repo, err := confirmed(a, c, state.GetRepository{Ref: ref})
	switch {
	case err == nil:
		known = &repo
	case !errors.Is(err, meta.ErrNotFound):
		return nil, err
	}
	if err := a.judge(c, action, access.Target{Repo: ref, Record: known}); err != nil {
		return nil, err
	}
	if known == nil {
		return nil, fmt.Errorf("repository %s: %w", ref, meta.ErrNotFound)
	}
	return known, nil
}

// promote makes the versions that references name those of another repository, with the
// aliases that led there and those that were given.
func (a *API) promote(c *protocol.Call) error {
	var body client.NewPromotion
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return err
	}
	if len(body.References) == 0 || len(body.References) > state.MaxPromoted {
		return fmt.Errorf("%d references, use 1 to %d: %w", len(body.References), state.MaxPromoted, meta.ErrInvalid)
	}
	if err := body.To.Check(); err != nil {
		return err
	}
	to, err := a.repositoryFor(c, access.Promote, body.To)
	if err != nil {
		return err
	}
	if a.Promoter == nil {
		return fmt.Errorf("an agent changes nothing: %w", meta.ErrUnavailable)
	}
	p := catalog.Promotion{To: *to, Reason: body.Reason}
	for _, text := range body.References {
		item, err := a.promotee(c, text)
		if err != nil {
			return fmt.Errorf("reference %s: %w", text, err)
		}
		for _, alias := range body.Aliases {
			if !slices.Contains(item.Aliases, alias) {
				item.Aliases = append(item.Aliases, alias)
			}
		}
		p.Items = append(p.Items, item)
	}
	by := catalog.Caller{Who: c.Who, Origin: c.Origin(), After: c.After}
	done, token, err := a.Promoter.Promote(c.R.Context(), by, p)
	if err != nil {
		return err
	}
	c.Committed(token)
	return protocol.WriteJSON(c.W, http.StatusOK, done)
}

// promotee resolves a whole reference, `tenant/repository` and what its format writes
// behind it, to a version that the caller may read.
func (a *API) promotee(c *protocol.Call, text string) (item catalog.Promotee, _ error) {
	tenant, rest, ok := strings.Cut(text, "/")
	end := strings.IndexAny(rest, "/:@")
	if !ok || end <= 0 || len(text) > 2*maxReferenceBytes {
		return item, fmt.Errorf("write tenant/repository and what the format puts behind it, as acme/dev/app:1.4: %w", meta.ErrInvalid)
	}
	ref := meta.RepoRef{Tenant: meta.TenantName(tenant), Name: rest[:end]}
	if err := ref.Check(); err != nil {
		return item, err
	}
	repo, err := a.repositoryFor(c, access.Pull, ref)
	if err != nil {
		return item, err
	}
	v, alias, err := a.named(c, *repo, rest[end:])
	if err != nil {
		return item, err
	}
	item = catalog.Promotee{From: catalog.Package{Repo: ref, Name: v.Package}, Version: v.Name}
	if alias != "" {
		item.Aliases = []string{alias}
	}
	return item, nil
}
