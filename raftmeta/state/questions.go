package state

import (
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Page is where a listing goes on: names after After, at most Limit (1 to 10,000;
// 0 is 1,000).
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
}

// GetCluster answers what all nodes share.
type GetCluster struct{}

// GetTenant answers a tenant.
type GetTenant struct {
	Name meta.TenantName `cbor:"1,keyasint,omitempty"`
}

// ListTenants lists tenants in byte order.
type ListTenants struct {
	Page Page `cbor:"1,keyasint,omitempty"`
}

// GetRepository answers a repository.
type GetRepository struct {
	Ref meta.RepoRef `cbor:"1,keyasint,omitempty"`
}

// ListRepositories lists the repositories of a tenant, or of all when Tenant is
// empty. Page.After is `tenant/repository`.
type ListRepositories struct {
	Tenant meta.TenantName `cbor:"1,keyasint,omitempty"`
	Page   Page            `cbor:"2,keyasint,omitempty"`
}

// GetPackage answers a package; one without live versions is not found.
type GetPackage struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
}

// ListPackages lists the packages whose name begins with Prefix.
type ListPackages struct {
	Repo   meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Prefix string       `cbor:"2,keyasint,omitempty"`
	Page   Page         `cbor:"3,keyasint,omitempty"`
}

// GetVersion answers a live version. When its reference list was staged it has
// Draft set and no References: ask ListReferences.
type GetVersion struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
	Version string       `cbor:"3,keyasint,omitempty"`
}

// Resolve takes an alias, or where none has the name, a version's name.
type Resolve struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
	Alias   string       `cbor:"3,keyasint,omitempty"`
}

// ListVersions lists live versions in byte order of their names.
type ListVersions struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
	Page    Page         `cbor:"3,keyasint,omitempty"`
}

// ListReferences lists what a version closes over, in document order, staged or
// not. Page.After is the count of references already seen, in decimal.
type ListReferences struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
	Version string       `cbor:"3,keyasint,omitempty"`
	Page    Page         `cbor:"4,keyasint,omitempty"`
}

// ListFiles lists the files of a version whose path begins with Prefix.
type ListFiles struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
	Version string       `cbor:"3,keyasint,omitempty"`
	Prefix  string       `cbor:"4,keyasint,omitempty"`
	Page    Page         `cbor:"5,keyasint,omitempty"`
}

// GetFile answers a file of a version.
type GetFile struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
	Version string       `cbor:"3,keyasint,omitempty"`
	Path    string       `cbor:"4,keyasint,omitempty"`
}

// ListAliases lists live aliases in byte order.
type ListAliases struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
	Page    Page         `cbor:"3,keyasint,omitempty"`
}

// AliasHistory lists the moves of an alias, newest first. Page.After is a Move, in
// decimal.
type AliasHistory struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
	Alias   string       `cbor:"3,keyasint,omitempty"`
	Page    Page         `cbor:"4,keyasint,omitempty"`
}

// Attachments lists the versions whose subject is Subject, be that there or not;
// of ArtifactType when it is set. Page.After is a version's name.
type Attachments struct {
	Repo         meta.RepoRef  `cbor:"1,keyasint,omitempty"`
	Package      string        `cbor:"2,keyasint,omitempty"`
	Subject      digest.Digest `cbor:"3,keyasint,omitempty"`
	ArtifactType string        `cbor:"4,keyasint,omitempty"`
	Page         Page          `cbor:"5,keyasint,omitempty"`
}

// GetBlob answers a blob only when it is linked in the repository.
type GetBlob struct {
	Repo   meta.RepoRef  `cbor:"1,keyasint,omitempty"`
	Digest digest.Digest `cbor:"2,keyasint,omitempty"`
}

// FindLink answers a repository of the tenant that matches Patterns and links
// Digest (a mount that names no source).
type FindLink struct {
	Tenant   meta.TenantName `cbor:"1,keyasint,omitempty"`
	Patterns []string        `cbor:"2,keyasint,omitempty"`
	Digest   digest.Digest   `cbor:"3,keyasint,omitempty"`
}

// GetNode answers a node of the roster.
type GetNode struct {
	ID meta.NodeID `cbor:"1,keyasint,omitempty"`
}

// ListNodes lists the roster; zero values list all. Page.After is a node's id.
type ListNodes struct {
	Role   meta.Role       `cbor:"1,keyasint,omitempty"`
	Region meta.RegionName `cbor:"2,keyasint,omitempty"`
	Page   Page            `cbor:"3,keyasint,omitempty"`
}

// ListRegions lists all regions.
type ListRegions struct{}

// GetJoinToken answers a join token, used up or not, until it has expired and
// another is created.
type GetJoinToken struct {
	ID string `cbor:"1,keyasint,omitempty"`
}

// Replicas lists all that is known of the copies of a root: by region its demand,
// then its servers.
type Replicas struct {
	Root digest.CID `cbor:"1,keyasint,omitempty"`
}

// PendingReplicas lists the demands of a region that are not yet verified, oldest
// first. Page.After is the text of the last root.
type PendingReplicas struct {
	Region meta.RegionName `cbor:"1,keyasint,omitempty"`
	Page   Page            `cbor:"2,keyasint,omitempty"`
}

// BlobByRoot answers a blob of a root, of any context.
type BlobByRoot struct {
	Root digest.CID `cbor:"1,keyasint,omitempty"`
}

// Answer implements Question.
func (q GetCluster) Answer(v *View) (a meta.Cluster, err error) { panic("not built yet") }

// Answer implements Question.
func (q GetTenant) Answer(v *View) (a meta.Tenant, err error) { panic("not built yet") }

// Answer implements Question.
func (q ListTenants) Answer(v *View) (a []meta.Tenant, err error) { panic("not built yet") }

// Answer implements Question.
func (q GetRepository) Answer(v *View) (a meta.Repository, err error) { panic("not built yet") }

// Answer implements Question.
func (q ListRepositories) Answer(v *View) (a []meta.Repository, err error) { panic("not built yet") }

// Answer implements Question.
func (q GetPackage) Answer(v *View) (a meta.Package, err error) { panic("not built yet") }

// Answer implements Question.
func (q ListPackages) Answer(v *View) (a []meta.Package, err error) { panic("not built yet") }

// Answer implements Question.
func (q GetVersion) Answer(v *View) (a meta.Version, err error) { panic("not built yet") }

// Answer implements Question.
func (q Resolve) Answer(v *View) (a ResolveAnswer, err error) { panic("not built yet") }

// Answer implements Question.
func (q ListVersions) Answer(v *View) (a []meta.Version, err error) { panic("not built yet") }

// Answer implements Question.
func (q ListReferences) Answer(v *View) (a []meta.Reference, err error) { panic("not built yet") }

// Answer implements Question.
func (q ListFiles) Answer(v *View) (a []meta.File, err error) { panic("not built yet") }

// Answer implements Question.
func (q GetFile) Answer(v *View) (a meta.File, err error) { panic("not built yet") }

// Answer implements Question.
func (q ListAliases) Answer(v *View) (a []meta.Alias, err error) { panic("not built yet") }

// Answer implements Question.
func (q AliasHistory) Answer(v *View) (a []meta.Alias, err error) { panic("not built yet") }

// Answer implements Question.
func (q Attachments) Answer(v *View) (a []meta.Version, err error) { panic("not built yet") }

// Answer implements Question.
func (q GetBlob) Answer(v *View) (a BlobAnswer, err error) { panic("not built yet") }

// Answer implements Question.
func (q FindLink) Answer(v *View) (a meta.RepoRef, err error) { panic("not built yet") }

// Answer implements Question.
func (q GetNode) Answer(v *View) (a meta.Node, err error) { panic("not built yet") }

// Answer implements Question.
func (q ListNodes) Answer(v *View) (a []meta.Node, err error) { panic("not built yet") }

// Answer implements Question.
func (q ListRegions) Answer(v *View) (a []meta.Region, err error) { panic("not built yet") }

// Answer implements Question.
func (q GetJoinToken) Answer(v *View) (a meta.JoinToken, err error) { panic("not built yet") }

// Answer implements Question.
func (q Replicas) Answer(v *View) (a []meta.Replica, err error) { panic("not built yet") }

// Answer implements Question.
func (q PendingReplicas) Answer(v *View) (a []meta.Replica, err error) { panic("not built yet") }

// Answer implements Question.
func (q BlobByRoot) Answer(v *View) (a meta.Blob, err error) { panic("not built yet") }
