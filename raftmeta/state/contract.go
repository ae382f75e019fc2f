package state

import (
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Origin says where a command came from; it travels in the envelope.
type Origin struct {
	RequestID string         `cbor:"1,keyasint,omitempty"` // makes a retry safe
	Principal string         `cbor:"2,keyasint,omitempty"`
	TokenID   string         `cbor:"3,keyasint,omitempty"`
	Node      meta.NodeID    `cbor:"4,keyasint,omitempty"`
	Source    string         `cbor:"5,keyasint,omitempty"` // client address
	Trace     string         `cbor:"6,keyasint,omitempty"` // W3C traceparent
	Time      meta.Time      `cbor:"7,keyasint,omitempty"` // stamped by the leader
}

// ---- commands: each gets a file, a number, check and apply ----

type Tick struct{} // ignorable

type Bootstrap struct {
	Cluster meta.Cluster
	Node    meta.Node   // the first server
	Region  meta.Region
}

type CreateTenant struct{ Name meta.TenantName }

// CreateRepository also creates the tenant when CreateTenant is set (dev).
// An identical repository is idempotent; another with the name is ErrExists.
type CreateRepository struct {
	Repository   meta.Repository
	CreateTenant bool
}

// SetRepository changes what may change; nil leaves as it is.
type SetRepository struct {
	Ref        meta.RepoRef
	Class      *meta.Class
	Home       *meta.RegionName
	Second     *meta.RegionName
	Visibility *meta.Visibility
	Immutable  *bool
	Environment *string
}

type RemoveRepository struct{ Ref meta.RepoRef } // only when empty of live versions

// LinkBlob records an uploaded blob and makes it readable in the repository.
// At is where its bytes are: the server that ingested it, a verified copy.
type LinkBlob struct {
	Repo   meta.RepoRef
	Digest digest.Digest // the client's name, sha256 or sha512
	Blob   meta.Blob
	Server meta.NodeID
}

// MountBlob links a blob of one repository into another of the same tenant/context.
type MountBlob struct {
	From, To meta.RepoRef
	Digest   digest.Digest
}

// UnlinkBlob takes a blob from a repository. ErrConflict while a version claims it.
type UnlinkBlob struct {
	Repo   meta.RepoRef
	Digest digest.Digest
}

// StageReferences writes part of a long reference list ahead of its publish.
type StageReferences struct {
	Repo       meta.RepoRef
	Draft      string
	Part       uint32
	References []meta.Reference
}

// Publish makes a version visible: version, files, aliases, attachment, verdict
// and replica demand are one log entry. An identical version is idempotent (the
// aliases still move); another under the name is ErrExists; a tombstone is ErrExists.
type Publish struct {
	Version meta.Version
	Files   []meta.File  // at least the document; each must be linked in the repository
	Blobs   []LinkBlob   // documents ingested by the publish itself, linked in the same entry
	Aliases []string     // moved to the version
	// Base, when set, must be the package's revision (optimistic concurrency).
	Base *uint64
}

type MoveAlias struct {
	Repo          meta.RepoRef
	Package, Name string
	Version       string
}

type DeleteAlias struct {
	Repo          meta.RepoRef
	Package, Name string
}

// DeleteVersion leaves a tombstone and takes its aliases with it.
type DeleteVersion struct {
	Repo             meta.RepoRef
	Package, Version string
}

type SetLabels struct {
	Repo             meta.RepoRef
	Package, Version string // "" labels the package
	Labels           meta.Labels
}

// AdmitNode consumes one use of the token and adds the node to the roster.
type AdmitNode struct {
	TokenSecretHash string
	Node            meta.Node
}

// UpdateNode is a node's own word on its addresses.
type UpdateNode struct{ Node meta.Node }

type RemoveNode struct{ ID meta.NodeID }

type CreateJoinToken struct{ Token meta.JoinToken }

type PutRegion struct{ Region meta.Region }

// SealRootKey stores the CA key sealed to a server.
type SealRootKey struct {
	Node   meta.NodeID
	Sealed []byte
}

type SetLevel struct{ Level uint32 }

// ReportReplicas is a server's word on its own copies. At most 1,000.
type ReportReplicas struct{ Replicas []meta.Replica }

// DemandReplica asks for a copy in a region beyond the class (read-through of cold).
type DemandReplica struct {
	Root   digest.CID
	Region meta.RegionName
}

// ExpireUploads drops unclaimed links and drafts older than Before, at most Limit.
type ExpireUploads struct {
	Before meta.Time
	Limit  uint32
}

// ---- queries: answered by one method on a View; the same on servers and agents ----

// Page is where a listing goes on: names after After, at most Limit (1 to 10,000).
type Page struct {
	After string `cbor:"1,keyasint,omitempty"`
	Limit int    `cbor:"2,keyasint,omitempty"`
}

type (
	GetCluster     struct{}                 // -> meta.Cluster
	GetTenant      struct{ Name meta.TenantName }
	ListTenants    struct{ Page Page }      // -> []meta.Tenant
	GetRepository  struct{ Ref meta.RepoRef }
	ListRepositories struct { Tenant meta.TenantName; Page Page } // "" lists all; After is tenant/repository
	GetPackage     struct{ Repo meta.RepoRef; Package string }
	ListPackages   struct{ Repo meta.RepoRef; Prefix string; Page Page }
	GetVersion     struct{ Repo meta.RepoRef; Package, Version string }
	// Resolve takes an alias or a version name (alias wins only when Alias is set).
	Resolve        struct{ Repo meta.RepoRef; Package, Alias string } // -> ResolveAnswer
	ListVersions   struct{ Repo meta.RepoRef; Package string; Page Page } // -> []meta.Version
	ListFiles      struct{ Repo meta.RepoRef; Package, Version, Prefix string; Page Page } // -> []meta.File
	GetFile        struct{ Repo meta.RepoRef; Package, Version, Path string } // -> meta.File
	ListAliases    struct{ Repo meta.RepoRef; Package string; Page Page } // -> []meta.Alias, byte order, live only
	AliasHistory   struct{ Repo meta.RepoRef; Package, Alias string; Page Page } // -> []meta.Alias, newest first
	// Attachments lists the versions whose subject is Digest.
	Attachments    struct{ Repo meta.RepoRef; Package string; Subject digest.Digest; ArtifactType string; Page Page } // -> []meta.Version
	// GetBlob answers only when the blob is linked in the repository.
	GetBlob        struct{ Repo meta.RepoRef; Digest digest.Digest } // -> BlobAnswer
	// FindLink answers a repository of the context, matching Patterns, that links Digest (anonymous mount).
	FindLink       struct{ Tenant meta.TenantName; Patterns []string; Digest digest.Digest } // -> meta.RepoRef
	GetNode        struct{ ID meta.NodeID }
	ListNodes      struct{ Role meta.Role; Region meta.RegionName; Page Page } // zero values list all
	ListRegions    struct{}
	GetJoinToken   struct{ ID string }
	Replicas       struct{ Root digest.CID } // -> []meta.Replica
	// PendingReplicas lists the demands of a region that are not yet verified, oldest first by root.
	PendingReplicas struct{ Region meta.RegionName; Page Page } // -> []meta.Replica
	// BlobByRoot finds the blob record of a root (any context).
	BlobByRoot     struct{ Root digest.CID } // -> meta.Blob
)

// ResolveAnswer is a version with the alias that led to it.
type ResolveAnswer struct {
	Alias   meta.Alias
	Version meta.Version
}

// BlobAnswer is a link with its blob.
type BlobAnswer struct {
	Link meta.Link
	Blob meta.Blob
}
