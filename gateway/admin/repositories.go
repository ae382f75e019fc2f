package admin

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// tenants lists those that the caller has a right in, to whom may observe all: a page
// may come out shorter than its limit.
func (a *API) tenants(c *protocol.Call) error {
	p, err := pageOf(c)
	if err != nil {
		return err
	}
	all := access.May(c.Who, access.Observe, access.Target{})
	page, err := shownPage(p, func(p state.Page) ([]meta.Tenant, error) { return ask(a, c, state.ListTenants{Page: p}) },
		func(t *meta.Tenant) string { return string(t.Name) },
		func(t *meta.Tenant) (bool, error) { return all || access.SeesTenant(c.Who, t.Name), nil })
	if err != nil {
		return err
	}
	return protocol.WriteJSON(c.W, http.StatusOK, page)
}

// shownPage fills a page with those of a listing that the caller may see. Where to go on
// is the name of the last of them: that of another would tell that it is there.
func shownPage[T any](p state.Page, list func(state.Page) ([]T, error), name func(*T) string, shown func(*T) (bool, error)) (client.Page[T], error) {
	page := client.Page[T]{Items: []T{}}
	for after := p.After; ; {
		some, err := list(state.Page{After: after, Limit: listedAtATime})
		if err != nil || len(some) == 0 {
			return page, err
		}
		for i := range some {
			ok, err := shown(&some[i])
			if err != nil {
				return page, err
			}
			if !ok {
				continue
			}
			if len(page.Items) == p.Limit {
				page.Next = name(&page.Items[p.Limit-1])
				return page, nil
			}
			page.Items = append(page.Items, some[i])
		}
		after = name(&some[len(some)-1])
	}
}

// listedAtATime is how many of a listing are read at a time.
const listedAtATime = 1000

func (a *API) createTenant(c *protocol.Call) error {
	var body client.NewTenant
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return err
	}
	value, err := a.do(c, 0, state.CreateTenant{Name: body.Name, Tier: body.Tier})
	if err != nil {
		return err
	}
	return reply[meta.Tenant](c, http.StatusCreated, value)
}

// repositories lists those that the caller may list; what it may not is not even
// counted.
func (a *API) repositories(c *protocol.Call) error {
	p, err := pageOf(c)
	if err != nil {
		return err
	}
	tenant := meta.TenantName(c.R.URL.Query().Get("tenant"))
	if tenant != "" {
		if err := meta.CheckTenant(tenant); err != nil {
			return err
		}
	}
	page, err := shownPage(p, func(p state.Page) ([]meta.Repository, error) {
		return ask(a, c, state.ListRepositories{Tenant: tenant, Page: p})
	},
		func(r *meta.Repository) string { return r.Ref.String() },
		func(r *meta.Repository) (bool, error) { return access.OfRepository(c.Who, access.List, r), nil })
	if err != nil {
		return err
	}
	return protocol.WriteJSON(c.W, http.StatusOK, page)
}

func (a *API) createRepository(c *protocol.Call) error {
	var body client.NewRepository
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return err
	}
	if err := a.judge(c, access.Manage, access.Target{
		Repo: body.Ref, Record: &meta.Repository{Ref: body.Ref, Environment: body.Environment},
	}); err != nil {
		return err
	}
	// Who manages a tenant that there is makes none.
	body.CreateTenant = body.CreateTenant && a.judge(c, access.Operate, access.Target{}) == nil
	if !slices.Contains(a.Formats, body.Format) {
		return fmt.Errorf("format %q: this build serves %s: %w", body.Format, strings.Join(a.Formats, ", "), meta.ErrInvalid)
	}
	r := meta.Repository{
		Ref: body.Ref, Format: body.Format, Kind: body.Kind, Class: body.Class, Environment: body.Environment,
		Home: body.Home, Second: body.Second, Visibility: body.Visibility, Immutable: body.Immutable,
		Regions: sorted(body.Regions), CopiesBeforeAck: body.CopiesBeforeAck, DegradedReadMax: body.DegradedReadMax,
		Upstream: body.Upstream, Members: body.Members, WriteTo: body.WriteTo,
	}
	standard(&r.Kind, meta.KindHosted)
	// Below level 6 the metadata does not ask.
	switch {
	case r.Kind == meta.KindProxy && r.Upstream == nil:
		return fmt.Errorf("repository %s: a proxy needs the URL of its upstream: %w", r.Ref, meta.ErrInvalid)
	case r.Kind == meta.KindGroup && len(r.Members) == 0:
		return fmt.Errorf("repository %s: a group needs members: %w", r.Ref, meta.ErrInvalid)
	}
	if r.Upstream != nil {
		if err := checkAge(r.Format, r.Upstream.MinReleaseAge); err != nil {
			return err
		}
	}
	if err := a.mayReadMembers(c, r.Ref.Tenant, r.Members); err != nil {
		return err
	}
	standard(&r.Class, meta.ClassStandard)
	standard(&r.Visibility, meta.VisibilityPrivate)
	standard(&r.Home, a.Self.Region)
	if r.Class == meta.ClassStandard && r.Second == "" && a.Nearest != nil {
		r.Second = a.Nearest(c.R.Context(), r.Home)
	}
	value, err := a.do(c, 0, state.CreateRepository{Repository: r, CreateTenant: body.CreateTenant})
	if err != nil {
		return err
	}
	return reply[meta.Repository](c, http.StatusCreated, value)
}

// sorted returns names in order, each once, as records have them.
func sorted(names []meta.RegionName) []meta.RegionName {
	return slices.Compact(slices.Sorted(slices.Values(names)))
}

func standard[T ~string](field *T, value T) {
	if *field == "" {
		*field = value
	}
}

func (a *API) repository(c *protocol.Call) error {
	r, err := ask(a, c, state.GetRepository{Ref: c.Repo})
	if err != nil {
		return err
	}
	return protocol.WriteJSON(c.W, http.StatusOK, r)
}

func (a *API) setRepository(c *protocol.Call) error {
	var body client.RepositoryChange
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return err
	}
	if body.Environment != nil {
		// The rights to it follow its environment: it takes those of both.
		if err := a.judge(c, access.Manage, access.Target{Repo: c.Repo, Record: &meta.Repository{Ref: c.Repo, Environment: *body.Environment}}); err != nil {
			return err
		}
	}
	if body.Regions != nil {
		*body.Regions = sorted(*body.Regions)
	}
	if body.Members != nil {
		if err := a.mayReadMembers(c, c.Repo.Tenant, *body.Members); err != nil {
			return err
		}
	}
	if u := body.Upstream; u != nil && u.MinReleaseAge != nil {
		r, err := confirmed(a, c, state.GetRepository{Ref: c.Repo})
		if err != nil {
			return err
		}
		if err := checkAge(r.Format, *u.MinReleaseAge); err != nil {
			return err
		}
	}
	value, err := a.do(c, 0, state.SetRepository{
		Ref: c.Repo, Class: body.Class, Home: body.Home, Second: body.Second,
		Visibility: body.Visibility, Immutable: body.Immutable, Environment: body.Environment,
		Regions: body.Regions, CopiesBeforeAck: body.CopiesBeforeAck, DegradedReadMax: body.DegradedReadMax,
		Upstream: (*state.UpstreamChange)(body.Upstream), Members: body.Members, WriteTo: body.WriteTo,
	})
	if err != nil {
		return err
	}
	return reply[meta.Repository](c, http.StatusOK, value)
}

// mayReadMembers refuses whom may not read the repositories that a group is to stand for:
// who reads the group reads them. What must hold of them besides the command checks.
func (a *API) mayReadMembers(c *protocol.Call, tenant meta.TenantName, members []string) error {
	for _, name := range members[:min(len(members), meta.MaxMembers)] {
		ref := meta.RepoRef{Tenant: tenant, Name: name}
		if err := ref.Check(); err != nil {
			return fmt.Errorf("member: give the name of a repository of %s: %w", tenant, err)
		}
		on := access.Target{Repo: ref}
		record, err := confirmed(a, c, state.GetRepository{Ref: ref})
		if err == nil {
			on.Record = &record
		} else if !errors.Is(err, meta.ErrNotFound) {
			return err
		}
		if err := a.judge(c, access.Pull, on); err != nil {
			return fmt.Errorf("member: %w", err)
		}
	}
	return nil
}

func (a *API) removeRepository(c *protocol.Call) error {
	// What a proxy keeps is the upstream's, and no reason to keep the proxy.
	if r, err := confirmed(a, c, state.GetRepository{Ref: c.Repo}); err == nil && r.Kind == meta.KindProxy {
		if err := a.inNoGroup(c); err != nil {
			return err
		}
		if _, err := a.forget(c, state.ForgetFetched{Repo: c.Repo}); err != nil {
			return err
		}
	}
	for step := 1 << 20; ; step++ {
		value, err := a.do(c, step, state.RemoveRepository{Ref: c.Repo})
		if err != nil {
			return err
		}
		if r, _ := value.(state.RepositoryRemoved); !r.More {
			break
		}
	}
	c.W.WriteHeader(http.StatusNoContent)
	return nil
}

// inNoGroup refuses a repository that a group has as a member, as its removal would, but
// before anything of it is forgotten.
//
// Errors: meta.ErrConflict.
func (a *API) inNoGroup(c *protocol.Call) error {
	for after := ""; ; {
		all, err := ask(a, c, state.ListRepositories{Tenant: c.Repo.Tenant, Page: state.Page{After: after, Limit: 1000}})
		if err != nil || len(all) == 0 {
			return err
		}
		for i := range all {
			if slices.Contains(all[i].Members, c.Repo.Name) {
				return fmt.Errorf("remove repository %s: it is a member of %s, take it out with `shoal repo set` first: %w", c.Repo, all[i].Ref, meta.ErrConflict)
			}
		}
		after = all[len(all)-1].Ref.String()
	}
}

func (a *API) packages(c *protocol.Call) error {
	p, err := pageOf(c)
	if err != nil {
		return err
	}
	packages, err := ask(a, c, state.ListPackages{Repo: c.Repo, Prefix: c.R.URL.Query().Get("prefix"), Page: p})
	if err != nil {
		return err
	}
	return writePage(c, p, packages, func(p meta.Package) string { return p.Name })
}

func (a *API) versions(c *protocol.Call) error {
	p, err := pageOf(c)
	if err != nil {
		return err
	}
	name, err := packageOf(c)
	if err != nil {
		return err
	}
	versions, err := ask(a, c, state.ListVersions{Repo: c.Repo, Package: name, Page: p})
	if err != nil {
		return err
	}
	return writePage(c, p, versions, func(v meta.Version) string { return v.Name })
}

func packageOf(c *protocol.Call) (string, error) {
	name := c.Params.Get("package")
	return name, meta.CheckPackage(name)
}

func versionOf(c *protocol.Call) (pkg, version string, err error) {
	if pkg, err = packageOf(c); err != nil {
		return "", "", err
	}
	version = c.Params.Get("version")
	return pkg, version, meta.CheckVersion(version)
}

func (a *API) version(c *protocol.Call) error {
	pkg, version, err := versionOf(c)
	if err != nil {
		return err
	}
	v, err := ask(a, c, state.GetVersion{Repo: c.Repo, Package: pkg, Version: version})
	if err != nil {
		return err
	}
	return protocol.WriteJSON(c.W, http.StatusOK, v)
}

func (a *API) aliases(c *protocol.Call) error {
	p, err := pageOf(c)
	if err != nil {
		return err
	}
	name, err := packageOf(c)
	if err != nil {
		return err
	}
	aliases, err := ask(a, c, state.ListAliases{Repo: c.Repo, Package: name, Page: p})
	if err != nil {
		return err
	}
	return writePage(c, p, aliases, func(a meta.Alias) string { return a.Name })
}

func (a *API) aliasHistory(c *protocol.Call) error {
	p, err := pageOf(c)
	if err != nil {
		return err
	}
	name, err := packageOf(c)
	if err != nil {
		return err
	}
	alias := c.Params.Get("alias")
	if err := meta.CheckAlias(alias); err != nil {
		return err
	}
	moves, err := ask(a, c, state.AliasHistory{Repo: c.Repo, Package: name, Alias: alias, Page: p})
	if err != nil {
		return err
	}
	return writePage(c, p, moves, func(a meta.Alias) string { return strconv.FormatUint(a.Move, 10) })
}

// setLabels labels a version, or on the route without one the package.
func (a *API) setLabels(c *protocol.Call) error {
	var labels meta.Labels
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &labels); err != nil {
		return err
	}
	if _, err := a.do(c, 0, state.SetLabels{Repo: c.Repo, Package: c.Params.Get("package"), Version: c.Params.Get("version"), Labels: labels}); err != nil {
		return err
	}
	c.W.WriteHeader(http.StatusNoContent)
	return nil
}

// maxReplicationBlobs bounds the blobs looked at for one answer.
const maxReplicationBlobs = 500

// replication counts the copies of everything a version closes over, by region.
func (a *API) replication(c *protocol.Call) error {
	pkg, version, err := versionOf(c)
	if err != nil {
		return err
	}
	blobs, complete, err := a.closure(c, pkg, version)
	if err != nil {
		return err
	}
	regions := map[meta.RegionName]*client.Replication{}
	for _, d := range blobs {
		blob, err := ask(a, c, state.GetBlob{Repo: c.Repo, Digest: d})
		if err != nil {
			return err
		}
		replicas, err := ask(a, c, state.Replicas{Root: blob.Blob.Root})
		if err != nil {
			return err
		}
		for _, replica := range replicas {
			if replica.Server != "" {
				continue // the region's record has the sum
			}
			r := regions[replica.Region]
			if r == nil {
				r = &client.Replication{Region: replica.Region}
				regions[replica.Region] = r
			}
			switch replica.State {
			case meta.ReplicaVerified:
				r.Verified++
				r.LastVerified = max(r.LastVerified, replica.Verified)
			case meta.ReplicaFailed:
				r.Failed++
				if replica.Reason != "" && len(r.Reasons) < 10 {
					r.Reasons = append(r.Reasons, replica.Reason)
				}
			default:
				r.Pending++
			}
		}
	}
	answer := client.VersionReplication{Blobs: len(blobs), Complete: complete, Regions: []client.Replication{}}
	for _, r := range regions {
		answer.Regions = append(answer.Regions, *r)
	}
	slices.SortFunc(answer.Regions, func(a, b client.Replication) int { return strings.Compare(string(a.Region), string(b.Region)) })
	return protocol.WriteJSON(c.W, http.StatusOK, answer)
}

// closure lists the blobs of a version and of the versions it refers to (the
// images of an index).
func (a *API) closure(c *protocol.Call, pkg, version string) (blobs []digest.Digest, complete bool, err error) {
	seen := map[digest.Digest]bool{}
	add := func(d digest.Digest) {
		if !seen[d] {
			seen[d] = true
			blobs = append(blobs, d)
		}
	}
	visited := map[string]bool{version: true}
	for queue := []string{version}; len(queue) > 0; queue = queue[1:] {
		v, err := ask(a, c, state.GetVersion{Repo: c.Repo, Package: pkg, Version: queue[0]})
		if err != nil {
			return nil, false, err
		}
		add(v.Digest)
		references := v.References
		if v.Draft != "" {
			if references, err = ask(a, c, state.ListReferences{Repo: c.Repo, Package: pkg, Version: v.Name, Page: state.Page{Limit: maxReplicationBlobs + 1}}); err != nil {
				return nil, false, err
			}
		}
		for _, r := range references {
			if len(blobs) >= maxReplicationBlobs || len(visited) >= maxReplicationBlobs {
				return blobs, false, nil
			}
			name := string(r.Digest)
			switch {
			case !r.Version:
				add(r.Digest)
			case !visited[name]:
				visited[name] = true
				queue = append(queue, name)
			}
		}
	}
	return blobs, true, nil
}
