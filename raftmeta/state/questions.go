package state

import (
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Page is where a listing goes on: names after After, at most Limit (1 to 10,000;
// 0 is 1,000). A page ends early past 16 MiB of records: an empty one is the end.
type Page struct {
	After string `cbor:"1,keyasint,omitempty"`
	Limit int    `cbor:"2,keyasint,omitempty"`
}

// ResolveAnswer is a version with the alias that led to it, if one did.
type ResolveAnswer struct {
	Alias   meta.Alias   `cbor:"1,keyasint,omitempty"`
	Version meta.Version `cbor:"2,keyasint,omitempty"`
}

// BlobAnswer is a link with its blob.
type BlobAnswer struct {
	Link meta.Link `cbor:"1,keyasint,omitempty"`
	Blob meta.Blob `cbor:"2,keyasint,omitempty"`
	// Since is when the link was last without uses, 0 while it has some; Released says
	// that it was because a version was deleted.
	Since    meta.Time `cbor:"3,keyasint,omitempty"`
	Released bool      `cbor:"4,keyasint,omitempty"`
	// Quarantine, when set, is why readers do not get it: only versions in quarantine
	// use it.
	Quarantine *meta.Quarantine `cbor:"5,keyasint,omitempty"`
}

// GetCluster answers what all nodes share.
type GetCluster struct{}

// Answer implements Question.
func (GetCluster) Answer(v *View) (meta.Cluster, error) {
	return one[meta.Cluster](v, keyCluster, "cluster", "record")
}

// GetLevel answers the cluster level, which decides what commands may enter the log
// (CheckLevel); 0 before Bootstrap.
type GetLevel struct{}

// Answer implements Question.
func (GetLevel) Answer(v *View) (uint32, error) { return levelOf(v) }

// GetTenant answers a tenant.
type GetTenant struct {
	Name meta.TenantName `cbor:"1,keyasint,omitempty"`
}

// Answer implements Question.
func (q GetTenant) Answer(v *View) (meta.Tenant, error) {
	return one[meta.Tenant](v, keyTenant(q.Name), "tenant", q.Name)
}

// ListTenants lists tenants in byte order.
type ListTenants struct {
	Page Page `cbor:"1,keyasint,omitempty"`
}

// Answer implements Question.
func (q ListTenants) Answer(v *View) ([]meta.Tenant, error) {
	prefix := key{spaceTenants}
	return list[meta.Tenant](v, within(prefix).behind(prefix, q.Page.After), q.Page, nil)
}

// GetRepository answers a repository.
type GetRepository struct {
	Ref meta.RepoRef `cbor:"1,keyasint,omitempty"`
}

// Answer implements Question.
func (q GetRepository) Answer(v *View) (meta.Repository, error) {
	return one[meta.Repository](v, keyRepository(q.Ref), "repository", q.Ref)
}

// ListRepositories lists the repositories of a tenant, or of all when Tenant is
// empty. Page.After is `tenant/repository`.
type ListRepositories struct {
	Tenant meta.TenantName `cbor:"1,keyasint,omitempty"`
	Page   Page            `cbor:"2,keyasint,omitempty"`
}

// Answer implements Question.
func (q ListRepositories) Answer(v *View) (a []meta.Repository, _ error) {
	tenant, after, _ := strings.Cut(q.Page.After, "/")
	if q.Tenant != "" {
		if q.Page.After != "" && meta.TenantName(tenant) != q.Tenant {
			return nil, fmt.Errorf("list repositories of %s after %s: %w", q.Tenant, q.Page.After, meta.ErrInvalid)
		}
		prefix := below(string(q.Tenant), inRepositories)
		return list[meta.Repository](v, within(prefix).behind(prefix, after), q.Page, nil)
	}
	limit, err := q.Page.limit()
	if err != nil {
		return nil, err
	}
	tenants := span{lower: keyTenant(meta.TenantName(tenant)), upper: key{spaceTenants}.after()}
	for p, err := range v.scan(tenants) {
		if err != nil {
			return nil, err
		}
		name := string(p.key[1:])
		prefix := below(name, inRepositories)
		s := within(prefix)
		if name == tenant {
			s = s.behind(prefix, after)
		}
		some, err := list[meta.Repository](v, s, Page{Limit: limit - len(a)}, nil)
		if err != nil {
			return nil, err
		}
		if a = append(a, some...); len(a) == limit {
			break
		}
	}
	return a, nil
}

// GetPackage answers a package; one without live versions is not found.
type GetPackage struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
}

// Answer implements Question.
func (q GetPackage) Answer(v *View) (meta.Package, error) {
	p, err := findPackage(v, q.Repo, q.Package)
	return value(p, err)
}

// ListPackages lists the packages whose name begins with Prefix.
type ListPackages struct {
	Repo   meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Prefix string       `cbor:"2,keyasint,omitempty"`
	Page   Page         `cbor:"3,keyasint,omitempty"`
}

// Answer implements Question.
func (q ListPackages) Answer(v *View) ([]meta.Package, error) {
	if _, err := findRepository(v, q.Repo); err != nil {
		return nil, err
	}
	prefix := inRepo(inPackages, q.Repo)
	return list[meta.Package](v, within(slices.Clone(prefix).last(q.Prefix)).behind(prefix, q.Page.After), q.Page, nil)
}

// GetVersion answers a live version. When its reference list was staged it has
// Draft set and no References: ask ListReferences.
type GetVersion struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
	Version string       `cbor:"3,keyasint,omitempty"`
}

// Answer implements Question.
func (q GetVersion) Answer(v *View) (meta.Version, error) {
	version, err := findVersion(v, q.Repo, q.Package, q.Version)
	return value(version, err)
}

// Resolve takes an alias, or where none has the name, a version's name.
type Resolve struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
	Alias   string       `cbor:"3,keyasint,omitempty"`
}

// Answer implements Question.
func (q Resolve) Answer(v *View) (a ResolveAnswer, _ error) {
	alias, err := load[meta.Alias](v, keyAliases(q.Repo, q.Package).last(q.Alias))
	if err != nil {
		return a, err
	}
	name := q.Alias
	if alias != nil {
		a.Alias, name = *alias, alias.Version
	}
	version, err := findVersion(v, q.Repo, q.Package, name)
	a.Version, err = value(version, err)
	return a, err
}

// ListVersions lists live versions in byte order of their names, without their
// References.
type ListVersions struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
	Page    Page         `cbor:"3,keyasint,omitempty"`
}

// Answer implements Question.
func (q ListVersions) Answer(v *View) ([]meta.Version, error) {
	if _, err := findPackage(v, q.Repo, q.Package); err != nil {
		return nil, err
	}
	prefix := inRepo(inVersions, q.Repo).part(q.Package)
	return list(v, within(prefix).behind(prefix, q.Page.After), q.Page, withoutReferences)
}

// ListReferences lists what a version closes over, in document order, staged or
// not. Page.After is the count of references already seen, in decimal.
type ListReferences struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
	Version string       `cbor:"3,keyasint,omitempty"`
	Page    Page         `cbor:"4,keyasint,omitempty"`
}

// Answer implements Question.
func (q ListReferences) Answer(v *View) (a []meta.Reference, _ error) {
	limit, err := q.Page.limit()
	if err != nil {
		return nil, err
	}
	skip, err := q.Page.number()
	if err != nil {
		return nil, err
	}
	version, err := findVersion(v, q.Repo, q.Package, q.Version)
	if err != nil {
		return nil, err
	}
	for ref, err := range references(v, version) {
		if err != nil {
			return nil, err
		}
		if skip > 0 {
			skip--
			continue
		}
		if a = append(a, ref); len(a) == limit {
			break
		}
	}
	return a, nil
}

// ListFiles lists the files of a version whose path begins with Prefix.
type ListFiles struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
	Version string       `cbor:"3,keyasint,omitempty"`
	Prefix  string       `cbor:"4,keyasint,omitempty"`
	Page    Page         `cbor:"5,keyasint,omitempty"`
}

// Answer implements Question.
func (q ListFiles) Answer(v *View) ([]meta.File, error) {
	if _, err := findVersion(v, q.Repo, q.Package, q.Version); err != nil {
		return nil, err
	}
	prefix := keyFiles(q.Repo, q.Package, q.Version)
	return list[meta.File](v, within(slices.Clone(prefix).last(q.Prefix)).behind(prefix, q.Page.After), q.Page, nil)
}

// GetFile answers a file of a version.
type GetFile struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
	Version string       `cbor:"3,keyasint,omitempty"`
	Path    string       `cbor:"4,keyasint,omitempty"`
}

// Answer implements Question.
func (q GetFile) Answer(v *View) (meta.File, error) {
	return one[meta.File](v, keyFiles(q.Repo, q.Package, q.Version).last(q.Path), "file", versionName(q.Repo, q.Package, q.Version)+" "+q.Path)
}

// ListAliases lists live aliases in byte order.
type ListAliases struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
	Page    Page         `cbor:"3,keyasint,omitempty"`
	// Readable leaves out those that lead to a version in quarantine.
	Readable bool `cbor:"4,keyasint,omitempty"`
}

// Answer implements Question.
func (q ListAliases) Answer(v *View) ([]meta.Alias, error) {
	if _, err := findPackage(v, q.Repo, q.Package); err != nil {
		return nil, err
	}
	prefix := keyAliases(q.Repo, q.Package)
	return list(v, within(prefix).behind(prefix, q.Page.After), q.Page, func(a *meta.Alias) bool { return !q.Readable || !a.Quarantined })
}

// AliasHistory lists the moves of an alias, newest first. Page.After is a Move, in
// decimal.
type AliasHistory struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
	Alias   string       `cbor:"3,keyasint,omitempty"`
	Page    Page         `cbor:"4,keyasint,omitempty"`
}

// Answer implements Question.
func (q AliasHistory) Answer(v *View) ([]meta.Alias, error) {
	before, err := q.Page.number()
	if err != nil {
		return nil, err
	}
	prefix := keyHistory(q.Repo, q.Package, q.Alias)
	s := within(prefix)
	if before > 0 {
		s.upper = slices.Clone(prefix).u64(before)
	}
	s.reverse = true
	return list[meta.Alias](v, s, q.Page, nil)
}

// Attachments lists the versions whose subject is Subject, be that there or not;
// of ArtifactType when it is set; without their References. Page.After is a
// version's name.
type Attachments struct {
	Repo         meta.RepoRef  `cbor:"1,keyasint,omitempty"`
	Package      string        `cbor:"2,keyasint,omitempty"`
	Subject      digest.Digest `cbor:"3,keyasint,omitempty"`
	ArtifactType string        `cbor:"4,keyasint,omitempty"`
	Page         Page          `cbor:"5,keyasint,omitempty"`
	// Readable leaves out those that are in quarantine.
	Readable bool `cbor:"6,keyasint,omitempty"`
}

// Answer implements Question.
func (q Attachments) Answer(v *View) (a []meta.Version, _ error) {
	if _, err := findRepository(v, q.Repo); err != nil {
		return nil, err
	}
	limit, err := q.Page.limit()
	if err != nil {
		return nil, err
	}
	prefix := keyAttachments(q.Repo, q.Package, q.Subject)
	bytes := 0
	for p, err := range v.scan(within(prefix).behind(prefix, q.Page.After)) {
		if err != nil {
			return nil, err
		}
		if q.ArtifactType != "" && string(p.value) != q.ArtifactType {
			continue
		}
		k := keyVersion(q.Repo, q.Package, string(p.key[len(prefix):]))
		b, err := v.get(k)
		if err != nil {
			return nil, err
		}
		version, err := decode[meta.Version](k, b)
		if err != nil {
			return nil, err
		}
		if q.Readable && version.Quarantine != nil {
			continue
		}
		withoutReferences(version)
		a = append(a, *version)
		if bytes += len(b); len(a) == limit || bytes > pageBytes {
			break
		}
	}
	return a, nil
}

// GetBlob answers a blob only when it is linked in the repository.
type GetBlob struct {
	Repo   meta.RepoRef  `cbor:"1,keyasint,omitempty"`
	Digest digest.Digest `cbor:"2,keyasint,omitempty"`
}

// Answer implements Question.
func (q GetBlob) Answer(v *View) (a BlobAnswer, _ error) {
	if _, err := findRepository(v, q.Repo); err != nil {
		return a, err
	}
	l, err := findLink(v, q.Repo, q.Digest)
	if err != nil {
		return a, err
	}
	if l == nil {
		return a, fmt.Errorf("blob %s in %s: %w", q.Digest, q.Repo, meta.ErrNotFound)
	}
	record, err := blobOf(v, l)
	if err != nil {
		return a, err
	}
	a = BlobAnswer{Link: l.Link, Blob: record.Blob}
	a.Link.Digest = q.Digest
	a.Quarantine = l.quarantined()
	if l.Link.Claims == 0 {
		a.Since, a.Released = l.Since, l.Released
	}
	return a, nil
}

// FindLink answers a repository of the tenant that matches Patterns and links
// Digest (a mount that names no source).
type FindLink struct {
	Tenant   meta.TenantName `cbor:"1,keyasint,omitempty"`
	Patterns []string        `cbor:"2,keyasint,omitempty"`
	Digest   digest.Digest   `cbor:"3,keyasint,omitempty"`
}

// Answer implements Question.
func (q FindLink) Answer(v *View) (a meta.RepoRef, _ error) {
	prefix := keyMentions(q.Tenant, q.Digest)
	for p, err := range v.scan(within(prefix)) {
		if err != nil {
			return a, err
		}
		ref := meta.RepoRef{Tenant: q.Tenant, Name: string(p.key[len(prefix):])}
		if !meta.Match(q.Patterns, ref) {
			continue
		}
		if repo, err := v.get(keyRepository(ref)); err != nil || repo != nil {
			return ref, err
		}
	}
	return a, fmt.Errorf("blob %s in any repository of %s: %w", q.Digest, q.Tenant, meta.ErrNotFound)
}

// GetNode answers a node of the roster.
type GetNode struct {
	ID meta.NodeID `cbor:"1,keyasint,omitempty"`
}

// Answer implements Question.
func (q GetNode) Answer(v *View) (meta.Node, error) {
	n, err := findNode(v, q.ID)
	return value(n, err)
}

// ListNodes lists the roster by id; zero values list all. Page.After is a node's id.
type ListNodes struct {
	Role   meta.Role       `cbor:"1,keyasint,omitempty"`
	Region meta.RegionName `cbor:"2,keyasint,omitempty"`
	Page   Page            `cbor:"3,keyasint,omitempty"`
}

// Answer implements Question.
func (q ListNodes) Answer(v *View) (a []meta.Node, _ error) {
	limit, err := q.Page.limit()
	if err != nil {
		return nil, err
	}
	ids, err := q.ids(v)
	if err != nil {
		return nil, err
	}
	bytes := 0
	for id, err := range ids {
		if err != nil {
			return nil, err
		}
		b, err := v.get(keyNode(id))
		if err != nil {
			return nil, err
		}
		n, err := decode[meta.Node](keyNode(id), b)
		if err != nil {
			return nil, err
		}
		if q.Role != "" && n.Role != q.Role {
			continue
		}
		a = append(a, *n)
		if bytes += len(b); len(a) == limit || bytes > pageBytes {
			break
		}
	}
	return a, nil
}

// ids yields the nodes behind the page's start from the smallest index that has
// all that are asked for: servers are few, and a region's nodes not all.
func (q ListNodes) ids(v *View) (iter.Seq2[meta.NodeID, error], error) {
	if q.Role != meta.RoleServer {
		prefix := key{spaceNodes}
		if q.Region != "" {
			prefix = keyMembers(q.Region)
		}
		return func(yield func(meta.NodeID, error) bool) {
			for p, err := range v.scan(within(prefix).behind(prefix, q.Page.After)) {
				id := meta.NodeID("")
				if err == nil {
					id = meta.NodeID(p.key[len(prefix):])
				}
				if !yield(id, err) {
					return
				}
			}
		}, nil
	}
	var servers []meta.NodeID
	for r, err := range regions(v) {
		if err != nil {
			return nil, err
		}
		if q.Region == "" || q.Region == r.Region.Name {
			servers = append(servers, r.Servers...)
		}
	}
	slices.Sort(servers)
	from, found := slices.BinarySearch(servers, meta.NodeID(q.Page.After))
	if found {
		from++
	}
	return func(yield func(meta.NodeID, error) bool) {
		for _, id := range servers[from:] {
			if !yield(id, nil) {
				return
			}
		}
	}, nil
}

// ListRegions lists all regions.
type ListRegions struct{}

// Answer implements Question.
func (ListRegions) Answer(v *View) (a []meta.Region, _ error) {
	for r, err := range regions(v) {
		if err != nil {
			return nil, err
		}
		a = append(a, r.Region)
	}
	return a, nil
}

// GetJoinToken answers a join token, used up or not, until it has expired and
// another is created.
type GetJoinToken struct {
	ID string `cbor:"1,keyasint,omitempty"`
}

// Answer implements Question.
func (q GetJoinToken) Answer(v *View) (meta.JoinToken, error) {
	return one[meta.JoinToken](v, keyToken(q.ID), "join token", q.ID)
}

// Replicas lists all that is known of the copies of a root: by region its demand,
// then its servers.
type Replicas struct {
	Root digest.CID `cbor:"1,keyasint,omitempty"`
}

// Answer implements Question.
func (q Replicas) Answer(v *View) ([]meta.Replica, error) {
	return list[meta.Replica](v, within(keyReplicas(q.Root)), Page{Limit: maxPage}, nil)
}

// PendingReplicas lists the demands of a region that are not yet verified, oldest
// first. Page.After is PendingAfter of the last one, or the text of its root while it
// is owed.
type PendingReplicas struct {
	Region meta.RegionName `cbor:"1,keyasint,omitempty"`
	Page   Page            `cbor:"2,keyasint,omitempty"`
}

// Answer implements Question.
func (q PendingReplicas) Answer(v *View) (a []meta.Replica, _ error) {
	limit, err := q.Page.limit()
	if err != nil {
		return nil, err
	}
	s := within(keyQueue(q.Region))
	if q.Page.After != "" {
		last, err := q.last(v)
		if err != nil {
			return nil, err
		}
		last.Region = q.Region
		s.lower = append(keyQueued(*last), 0)
	}
	prefix := len(keyQueue(q.Region).u64(0))
	for p, err := range v.scan(s) {
		if err != nil {
			return nil, err
		}
		root := digest.CID(p.key[prefix:])
		d, err := find[meta.Replica](v, keyReplica(root, q.Region, ""), "demand", root)
		if err != nil {
			return nil, err
		}
		if a = append(a, *d); len(a) == limit {
			break
		}
	}
	return a, nil
}

// BlobByRoot answers a blob of a root, of any context.
type BlobByRoot struct {
	Root digest.CID `cbor:"1,keyasint,omitempty"`
}

// Answer implements Question.
func (q BlobByRoot) Answer(v *View) (meta.Blob, error) {
	b, err := blobByRoot(v, q.Root)
	return value(b, err)
}

// PendingAfter is where a listing goes on behind d: there also once d is settled,
// gone, or owed anew.
func PendingAfter(d meta.Replica) string {
	return strconv.FormatInt(int64(d.Demand), 10) + "~" + d.Root.String()
}

// last finds the place of the demand that a page ended with.
func (q PendingReplicas) last(v *View) (*meta.Replica, error) {
	fail := func(err error) error {
		return fmt.Errorf("page after %q: %w: %w", q.Page.After, err, meta.ErrInvalid)
	}
	at, root, exact := strings.Cut(q.Page.After, "~")
	if !exact {
		root = at
	}
	id, err := digest.ParseCID(root)
	if err != nil {
		return nil, fail(err)
	}
	if !exact {
		return find[meta.Replica](v, keyReplica(id, q.Region, ""), "demand", root)
	}
	demanded, err := strconv.ParseInt(at, 10, 64)
	if err != nil {
		return nil, fail(err)
	}
	return &meta.Replica{Root: id, Demand: meta.Time(demanded)}, nil
}

// NextSettlement answers what SettleDemands has to do next.
//
// Errors: meta.ErrNotFound when everything is settled.
type NextSettlement struct{}

// Answer implements Question.
func (NextSettlement) Answer(v *View) (Settlement, error) {
	s, err := nextSettlement(v)
	if err == nil && s == nil {
		err = fmt.Errorf("settlement: %w", meta.ErrNotFound)
	}
	return value(s, err)
}

// LastCopies looks for blobs of which all verified copies are at servers that are
// about to leave: they would be lost. Only what a repository links counts.
type LastCopies struct {
	Leaving []meta.NodeID `cbor:"1,keyasint,omitempty"`
	// After is the root to go on behind, zero at the start.
	After digest.CID `cbor:"2,keyasint,omitzero"`
}

// LastCopiesAnswer is what one LastCopies found: at most 100 roots, after reading at
// most some 50,000 records.
type LastCopiesAnswer struct {
	Roots []digest.CID `cbor:"1,keyasint,omitempty"`
	// After is where to go on, zero when all was looked at.
	After digest.CID `cbor:"2,keyasint,omitzero"`
}

// Answer implements Question.
func (q LastCopies) Answer(v *View) (a LastCopiesAnswer, _ error) {
	const mostRoots, mostRecords = 100, 50_000
	s := within(key{spaceReplicas})
	if !q.After.IsZero() {
		s.lower = keyReplicas(q.After).after()
	}
	var root digest.CID
	here, elsewhere, records := false, false, 0
	ended := func() error {
		if !here || elsewhere {
			return nil
		}
		is, err := linked(v, root)
		if is {
			a.Roots = append(a.Roots, root)
		}
		return err
	}
	for p, err := range v.scan(s) {
		if err != nil {
			return a, err
		}
		r, err := decode[meta.Replica](p.key, p.value)
		if err != nil {
			return a, err
		}
		if r.Root != root {
			if err := ended(); err != nil {
				return a, err
			}
			if len(a.Roots) == mostRoots || records >= mostRecords {
				a.After = root
				return a, nil
			}
			root, here, elsewhere = r.Root, false, false
		}
		records++
		if r.Server != "" && r.State == meta.ReplicaVerified {
			servers, err := serversBehind(v, r.Server)
			if err != nil {
				return a, err
			}
			stay := slices.DeleteFunc(slices.Clone(servers), func(id meta.NodeID) bool { return slices.Contains(q.Leaving, id) })
			here = here || len(servers) > 0 && len(stay) == 0
			for _, id := range stay {
				n, err := load[meta.Node](v, keyNode(id))
				if err != nil {
					return a, err
				}
				if n == nil {
					continue // It has left.
				}
				sure, err := counts(v, n)
				if err != nil {
					return a, err
				}
				elsewhere = elsewhere || sure
			}
		}
	}
	return a, ended()
}

// GetWave answers a wave.
type GetWave struct {
	ID string `cbor:"1,keyasint,omitempty"`
}

// Answer implements Question.
func (q GetWave) Answer(v *View) (meta.Wave, error) {
	return one[meta.Wave](v, keyWave(q.ID), "wave", q.ID)
}

// ListWaves lists waves against the order of their ids, so the newest first, or
// only those that are not over. Page.After is an id.
type ListWaves struct {
	Open bool `cbor:"1,keyasint,omitempty"`
	Page Page `cbor:"2,keyasint,omitempty"`
}

// Answer implements Question.
func (q ListWaves) Answer(v *View) (a []meta.Wave, _ error) {
	prefix := key{spaceWaves}
	if q.Open {
		prefix = key{spaceOpenWaves}
	}
	s := within(prefix)
	if q.Page.After != "" {
		s.upper = slices.Clone(prefix).last(q.Page.After)
	}
	s.reverse = true
	if !q.Open {
		return list[meta.Wave](v, s, q.Page, nil)
	}
	limit, err := q.Page.limit()
	if err != nil {
		return nil, err
	}
	for p, err := range v.scan(s) {
		if err != nil {
			return nil, err
		}
		w, err := findWave(v, string(p.key[1:]))
		if err != nil {
			return nil, err
		}
		if a = append(a, *w); len(a) == limit {
			break
		}
	}
	return a, nil
}

// WaveHosts answers what a wave has of hosts, in the order in which they are named;
// of one that was never admitted only Node is set.
type WaveHosts struct {
	Wave  string        `cbor:"1,keyasint,omitempty"`
	Nodes []meta.NodeID `cbor:"2,keyasint,omitempty"` // up to 500
}

// Answer implements Question.
func (q WaveHosts) Answer(v *View) ([]meta.WaveHost, error) {
	if len(q.Nodes) > MaxWaveHosts {
		return nil, fmt.Errorf("%d hosts of a wave, at most %d: %w", len(q.Nodes), MaxWaveHosts, meta.ErrInvalid)
	}
	a := make([]meta.WaveHost, len(q.Nodes))
	for i, id := range q.Nodes {
		h, err := load[meta.WaveHost](v, keyWaveHosts(q.Wave).last(string(id)))
		if err != nil {
			return nil, err
		}
		a[i].Node = id
		if h != nil {
			a[i] = *h
		}
	}
	return a, nil
}

// ListWaveHosts lists the hosts that took part in a wave by their ids, of one state
// or region when they are set. Page.After is a node's id.
type ListWaveHosts struct {
	Wave   string          `cbor:"1,keyasint,omitempty"`
	State  meta.HostState  `cbor:"2,keyasint,omitempty"`
	Region meta.RegionName `cbor:"3,keyasint,omitempty"`
	Page   Page            `cbor:"4,keyasint,omitempty"`
}

// Answer implements Question.
func (q ListWaveHosts) Answer(v *View) ([]meta.WaveHost, error) {
	if _, err := findWave(v, q.Wave); err != nil {
		return nil, err
	}
	prefix := keyWaveHosts(q.Wave)
	return list(v, within(prefix).behind(prefix, q.Page.After), q.Page, func(h *meta.WaveHost) bool {
		return (q.State == "" || h.State == q.State) && (q.Region == "" || h.Region == q.Region)
	})
}
