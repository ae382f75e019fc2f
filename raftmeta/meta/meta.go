// Package meta holds the nouns: what the metadata says exists, how it is named,
// and the kinds of error every room speaks.
//
// Start reading at Repository, Version, Alias and Blob; design.md's list of
// words is their dictionary. Records are encoded by raftmeta/codec, so a field's
// number is for ever. Names are checked here and nowhere else (names.go).
//
// The package is a leaf: every room may import it, it imports no room but the
// leaf verify/digest. It starts no goroutines.
package meta

import (
	"slices"
	"time"

	"github.com/shoal-registry/shoal/verify/digest"
)

// Names of things that must not mix up.
type (
	// NodeID is a node's libp2p peer id as text; also its Raft ServerID.
	NodeID string
	// RegionName names a failure and latency domain.
	RegionName string
	// TenantName names an owner of repositories.
	TenantName string
)

// Time is an instant as Unix nanoseconds, stamped by the leader; 0 is never.
type Time int64

// TimeOf converts from the standard form; the zero time is 0.
func TimeOf(t time.Time) Time {
	if t.IsZero() {
		return 0
	}
	return Time(t.UnixNano())
}

// Std converts to the standard form, in UTC.
func (t Time) Std() time.Time {
	if t == 0 {
		return time.Time{}
	}
	return time.Unix(0, int64(t)).UTC()
}

// Role is what a node is.
type Role string

// Roles of nodes.
const (
	RoleServer Role = "server"
	RoleAgent  Role = "agent"
)

// RepoRef names a repository: `tenant/repository`.
type RepoRef struct {
	Tenant TenantName `cbor:"1,keyasint,omitempty" json:"tenant"`
	Name   string     `cbor:"2,keyasint,omitempty" json:"name"`
}

func (r RepoRef) String() string { return string(r.Tenant) + "/" + r.Name }

// Kind is how a repository gets its content.
type Kind string

// Kinds of repository.
const (
	KindHosted Kind = "hosted"
	KindProxy  Kind = "proxy"
	KindGroup  Kind = "group"
)

// Class is how a repository's blobs are spread over regions.
type Class string

// Classes: critical to all primary regions, standard to home and a second, cold
// to home, elsewhere on demand.
const (
	ClassCritical Class = "critical"
	ClassStandard Class = "standard"
	ClassCold     Class = "cold"
)

// Visibility is who may read a repository without a right to it.
type Visibility string

// Visibilities.
const (
	VisibilityPrivate Visibility = "private"
	VisibilityPublic  Visibility = "public"
)

// Labels are free key-value pairs on packages and versions, at most 64, keys to
// 63 and values to 255 bytes.
type Labels map[string]string

// Tenant owns repositories.
type Tenant struct {
	Name      TenantName `cbor:"1,keyasint,omitempty" json:"name"`
	Created   Time       `cbor:"2,keyasint,omitempty" json:"created"`
	CreatedBy string     `cbor:"3,keyasint,omitempty" json:"created_by"`
	// Tier is the tenant's weight where tenants wait for one another; "" is standard.
	Tier Tier `cbor:"4,keyasint,omitempty" json:"tier,omitempty"`
	// Limits bound what the tenant takes, from cluster level 5 on.
	Limits TenantLimits `cbor:"5,keyasint,omitzero" json:"limits,omitzero"`
}

// Repository holds packages of one format.
type Repository struct {
	Ref         RepoRef    `cbor:"1,keyasint,omitempty" json:"ref"`
	Format      string     `cbor:"2,keyasint,omitempty" json:"format"` // oci, generic, npm ...
	Kind        Kind       `cbor:"3,keyasint,omitempty" json:"kind"`
	Class       Class      `cbor:"4,keyasint,omitempty" json:"class"`
	Environment string     `cbor:"5,keyasint,omitempty" json:"environment,omitempty"`
	Home        RegionName `cbor:"6,keyasint,omitempty" json:"home"`             // where pushes replicate first
	Second      RegionName `cbor:"7,keyasint,omitempty" json:"second,omitempty"` // the other region of class standard
	Visibility  Visibility `cbor:"8,keyasint,omitempty" json:"visibility"`
	// Immutable forbids moving or deleting an alias once set; deleted ones leave a tombstone.
	Immutable bool   `cbor:"9,keyasint,omitempty" json:"immutable,omitempty"`
	Created   Time   `cbor:"10,keyasint,omitempty" json:"created"`
	CreatedBy string `cbor:"11,keyasint,omitempty" json:"created_by"`
	// Revision is the log index of the last change to the repository record.
	Revision uint64 `cbor:"12,keyasint,omitempty" json:"revision"`
	// Regions, when there are any, owe copies instead of those that the class names;
	// sorted, each once, at most MaxRepositoryRegions.
	Regions []RegionName `cbor:"13,keyasint,omitempty" json:"regions,omitempty"`
	// CopiesBeforeAck is how many servers have a verified copy of all that a version
	// uses before its publish is answered: 1 (0 is that too) or 2.
	CopiesBeforeAck uint32 `cbor:"14,keyasint,omitempty" json:"copies_before_ack,omitempty"`
	// DegradedReadMax is how long a node that reaches no server goes on serving private
	// reads; nil is 15 minutes, 0 not at all. From cluster level 5.
	DegradedReadMax *time.Duration `cbor:"15,keyasint,omitempty" json:"degraded_read_max,omitempty"`
	// Upstream is what a proxy caches; nil for other kinds. From cluster level 6, as those
	// below.
	Upstream *Upstream `cbor:"16,keyasint,omitempty" json:"upstream,omitempty"`
	// Members are the repositories of a group, of its tenant and format, in the order in
	// which they are asked, each once, at most MaxMembers.
	Members []string `cbor:"17,keyasint,omitempty" json:"members,omitempty"`
	// WriteTo is the hosted member that a push to the group goes to, "" when it takes none.
	WriteTo string `cbor:"18,keyasint,omitempty" json:"write_to,omitempty"`
}

// MaxRepositoryRegions bounds Repository.Regions.
const MaxRepositoryRegions = 16

// MaxCopiesBeforeAck bounds Repository.CopiesBeforeAck.
const MaxCopiesBeforeAck = 2

// Package is a named thing in a repository.
type Package struct {
	Repo   RepoRef `cbor:"1,keyasint,omitempty" json:"repo"`
	Name   string  `cbor:"2,keyasint,omitempty" json:"name"`
	Labels Labels  `cbor:"3,keyasint,omitempty" json:"labels,omitempty"`
	// Revision is the log index of the last change to anything in the package;
	// generated documents are functions of it.
	Revision uint64 `cbor:"4,keyasint,omitempty" json:"revision"`
	Created  Time   `cbor:"5,keyasint,omitempty" json:"created"`
	// Versions counts live versions, so that an empty package can go.
	Versions uint64 `cbor:"6,keyasint,omitempty" json:"versions"`
	// Spelling is the name as its first publisher wrote it, where Name is a normalized
	// form of it; "" when they are the same. From cluster level 6.
	Spelling string `cbor:"7,keyasint,omitempty" json:"spelling,omitempty"`
}

// VersionState is how far a version has come.
type VersionState string

// States of a version. Deleted is the tombstone: its name never takes other bytes.
const (
	StateStaged  VersionState = "staged"
	StateOpen    VersionState = "open"
	StateClosed  VersionState = "closed"
	StateDeleted VersionState = "deleted"
)

// Reference is content that a version closes over, in document order.
type Reference struct {
	Digest    digest.Digest `cbor:"1,keyasint,omitempty" json:"digest"`
	Size      int64         `cbor:"2,keyasint,omitempty" json:"size"`
	MediaType string        `cbor:"3,keyasint,omitempty" json:"media_type,omitempty"`
	// Version says that the digest is another version of the package (an image
	// of an index), not a blob.
	Version bool `cbor:"4,keyasint,omitempty" json:"version,omitempty"`
}

// Verdict is the recorded outcome of the gates for a version.
type Verdict struct {
	Decision string   `cbor:"1,keyasint,omitempty" json:"decision"` // passed, failed, waived
	Policy   string   `cbor:"2,keyasint,omitempty" json:"policy,omitempty"`
	Reasons  []string `cbor:"3,keyasint,omitempty" json:"reasons,omitempty"`
	At       Time     `cbor:"4,keyasint,omitempty" json:"at,omitempty"`
	// Attestation and Signer are the provenance that the decision rests on.
	Attestation digest.Digest `cbor:"5,keyasint,omitempty" json:"attestation,omitempty"`
	Signer      string        `cbor:"6,keyasint,omitempty" json:"signer,omitempty"`
	// Elevation is the break-glass elevation that it was published under.
	Elevation string `cbor:"7,keyasint,omitempty" json:"elevation,omitempty"`
}

// Version is an immutable release of a package.
type Version struct {
	Repo        RepoRef       `cbor:"1,keyasint,omitempty" json:"repo"`
	Package     string        `cbor:"2,keyasint,omitempty" json:"package"`
	Name        string        `cbor:"3,keyasint,omitempty" json:"name"` // design.md, Names; for oci the manifest digest
	Digest      digest.Digest `cbor:"4,keyasint,omitempty" json:"digest"`
	MediaType   string        `cbor:"5,keyasint,omitempty" json:"media_type,omitempty"`
	Size        int64         `cbor:"6,keyasint,omitempty" json:"size"`
	State       VersionState  `cbor:"7,keyasint,omitempty" json:"state"`
	CreatedBy   string        `cbor:"8,keyasint,omitempty" json:"created_by"`
	PublishTime Time          `cbor:"9,keyasint,omitempty" json:"publish_time"`
	// Subject is the digest that this version is an attachment of.
	Subject      digest.Digest     `cbor:"10,keyasint,omitempty" json:"subject,omitempty"`
	ArtifactType string            `cbor:"11,keyasint,omitempty" json:"artifact_type,omitempty"`
	Annotations  map[string]string `cbor:"12,keyasint,omitempty" json:"annotations,omitempty"`
	References   []Reference       `cbor:"13,keyasint,omitempty" json:"references,omitempty"`
	// Draft names the reference list written ahead when it is over 48 KiB.
	Draft    string  `cbor:"14,keyasint,omitempty" json:"draft,omitempty"`
	Labels   Labels  `cbor:"15,keyasint,omitempty" json:"labels,omitempty"`
	Verdict  Verdict `cbor:"16,keyasint,omitempty" json:"verdict"`
	Revision uint64  `cbor:"17,keyasint,omitempty" json:"revision"`
	// SHA512 is the second name of the version's document, when it has one.
	SHA512 digest.Digest `cbor:"18,keyasint,omitempty" json:"sha512,omitempty"`
	// Credential is what it was published with, from cluster level 5.
	Credential string `cbor:"19,keyasint,omitempty" json:"credential,omitempty"`
	// Quarantine, when set, is why nobody may read it.
	Quarantine *Quarantine `cbor:"20,keyasint,omitempty" json:"quarantine,omitempty"`
	// Summary is the format's own compact record of the version, from which documents are
	// rendered without opening a blob, at most MaxSummaryBytes. From cluster level 6, as
	// those below.
	Summary []byte `cbor:"21,keyasint,omitempty" json:"summary,omitempty"`
	// Marks say what is to be thought of the version; none hides its bytes.
	Marks Marks `cbor:"22,keyasint,omitzero" json:"marks,omitzero"`
	// Extended is when the last file was added to an open version.
	Extended Time `cbor:"23,keyasint,omitempty" json:"extended,omitempty"`
	// Promotion says where it was promoted from, nil for one that was published.
	Promotion *Promotion `cbor:"24,keyasint,omitempty" json:"promotion,omitempty"`
	// Quiet is how long an open version waits for a new file before it closes by itself; 0
	// is for ever. One that closes by itself is a single delivery: only who opened it adds
	// to it.
	Quiet time.Duration `cbor:"25,keyasint,omitempty" json:"quiet,omitempty"`
}

// File is a path of a version bound to a blob.
type File struct {
	Path      string        `cbor:"1,keyasint,omitempty" json:"path"`
	Digest    digest.Digest `cbor:"2,keyasint,omitempty" json:"digest"`
	Size      int64         `cbor:"3,keyasint,omitempty" json:"size"`
	MediaType string        `cbor:"4,keyasint,omitempty" json:"media_type,omitempty"`
	// Summary is the format's own compact record of the file, at most MaxSummaryBytes. From
	// cluster level 6, as those below.
	Summary []byte `cbor:"5,keyasint,omitempty" json:"summary,omitempty"`
	// Sums are other checksums of it: algorithm, as md5 or sha1, to lower-case hex.
	Sums map[string]string `cbor:"6,keyasint,omitempty" json:"sums,omitempty"`
	// Uploaded and By are when it was added, and by whom.
	Uploaded Time   `cbor:"7,keyasint,omitempty" json:"uploaded,omitempty"`
	By       string `cbor:"8,keyasint,omitempty" json:"by,omitempty"`
}

// Alias is a movable name for a version.
type Alias struct {
	Repo    RepoRef       `cbor:"1,keyasint,omitempty" json:"repo"`
	Package string        `cbor:"2,keyasint,omitempty" json:"package"`
	Name    string        `cbor:"3,keyasint,omitempty" json:"name"`
	Version string        `cbor:"4,keyasint,omitempty" json:"version"`
	Digest  digest.Digest `cbor:"5,keyasint,omitempty" json:"digest"`
	// Move counts the moves, from 1; its records are the history.
	Move    uint64 `cbor:"6,keyasint,omitempty" json:"move"`
	MovedBy string `cbor:"7,keyasint,omitempty" json:"moved_by"`
	MovedAt Time   `cbor:"8,keyasint,omitempty" json:"moved_at"`
	// Deleted marks the tombstone, and in the history the move that deleted.
	Deleted  bool   `cbor:"9,keyasint,omitempty" json:"deleted,omitempty"`
	Revision uint64 `cbor:"10,keyasint,omitempty" json:"revision"`
	// Quarantined says that the version is in quarantine.
	Quarantined bool `cbor:"11,keyasint,omitempty" json:"quarantined,omitempty"`
}

// PublicContext is the context of bytes that anyone may read.
const PublicContext = "public"

// Blob is immutable content, keyed by (context, sha256).
type Blob struct {
	Context     string        `cbor:"1,keyasint,omitempty" json:"context"`
	Digest      digest.Digest `cbor:"2,keyasint,omitempty" json:"digest"`
	SHA512      digest.Digest `cbor:"3,keyasint,omitempty" json:"sha512,omitempty"`
	PlainBytes  int64         `cbor:"4,keyasint,omitempty" json:"plain_bytes"`
	StoredBytes int64         `cbor:"5,keyasint,omitempty" json:"stored_bytes"`
	Root        digest.CID    `cbor:"6,keyasint,omitempty" json:"root"`
	Seal        string        `cbor:"7,keyasint,omitempty" json:"seal,omitempty"` // "" is unsealed
	Key         string        `cbor:"8,keyasint,omitempty" json:"key,omitempty"`  // encryption key reference
}

// Link makes a blob readable in a repository. Digest is the name the client used.
type Link struct {
	Digest digest.Digest `cbor:"1,keyasint,omitempty" json:"digest"`
	Blob   digest.Digest `cbor:"2,keyasint,omitempty" json:"blob"` // canonical sha256
	// Uploaded is when an upload made it; Claims counts the versions that use it.
	// An unclaimed link expires.
	Uploaded  Time   `cbor:"3,keyasint,omitempty" json:"uploaded"`
	Claims    uint64 `cbor:"4,keyasint,omitempty" json:"claims"`
	MediaType string `cbor:"5,keyasint,omitempty" json:"media_type,omitempty"`
}

// Node is a process of the roster.
type Node struct {
	ID     NodeID     `cbor:"1,keyasint,omitempty" json:"id"`
	Role   Role       `cbor:"2,keyasint,omitempty" json:"role"`
	Region RegionName `cbor:"3,keyasint,omitempty" json:"region"`
	Zone   string     `cbor:"4,keyasint,omitempty" json:"zone,omitempty"`
	Rack   string     `cbor:"5,keyasint,omitempty" json:"rack,omitempty"`
	// Swarm, Raft are libp2p multiaddrs without peer id; Gateway is host:port.
	Swarm   []string `cbor:"6,keyasint,omitempty" json:"swarm"`
	Raft    []string `cbor:"7,keyasint,omitempty" json:"raft,omitempty"`
	Gateway string   `cbor:"8,keyasint,omitempty" json:"gateway"`
	// Read holds the `tenant/repository` patterns that the host may read.
	Read     []string `cbor:"9,keyasint,omitempty" json:"read,omitempty"`
	Admitted Time     `cbor:"10,keyasint,omitempty" json:"admitted"`
	// Seal is the recipient that cluster secrets are sealed to (OpenSSH ed25519 public key).
	Seal     string `cbor:"11,keyasint,omitempty" json:"seal,omitempty"`
	Revision uint64 `cbor:"12,keyasint,omitempty" json:"revision"`
	// Draining is set while a server is being emptied, from cluster level 4.
	Draining *Drain `cbor:"13,keyasint,omitempty" json:"draining,omitempty"`
	// Tenants holds the patterns of tenants of which an agent may have anything that is
	// not public; none is all. From cluster level 5.
	Tenants []string `cbor:"14,keyasint,omitempty" json:"tenants,omitempty"`
	// Bucket is where a server keeps its blobs, when not on its own disk. From cluster
	// level 5.
	Bucket NodeID `cbor:"15,keyasint,omitempty" json:"bucket,omitempty"`
}

// Drain is why a server does not count any more: what it holds is being copied to
// others, and nothing new comes to it.
type Drain struct {
	Since Time `cbor:"1,keyasint,omitempty" json:"since"`
	// By is who asked: a principal, or DrainAutopilot.
	By string `cbor:"2,keyasint,omitempty" json:"by"`
}

// DrainAutopilot is the By of a server that was away too long. It is taken back when
// the server returns.
const DrainAutopilot = "autopilot"

// ReplicaState is what is known of a required copy.
type ReplicaState string

// States of a replica.
const (
	ReplicaPending  ReplicaState = "pending"
	ReplicaVerified ReplicaState = "verified"
	ReplicaFailed   ReplicaState = "failed"
)

// Replica is a copy that placement requires, of the blob named by Root, at a
// server; with an empty Server it is the region's demand.
type Replica struct {
	Root        digest.CID   `cbor:"1,keyasint,omitempty" json:"root"`
	Region      RegionName   `cbor:"2,keyasint,omitempty" json:"region"`
	Server      NodeID       `cbor:"3,keyasint,omitempty" json:"server,omitempty"`
	State       ReplicaState `cbor:"4,keyasint,omitempty" json:"state"`
	Verified    Time         `cbor:"5,keyasint,omitempty" json:"verified,omitempty"`
	StoredBytes int64        `cbor:"6,keyasint,omitempty" json:"stored_bytes"`
	Class       Class        `cbor:"7,keyasint,omitempty" json:"class,omitempty"`
	// Blob is the (context, digest) by which a server checks the plain bytes.
	Context string        `cbor:"8,keyasint,omitempty" json:"context,omitempty"`
	Digest  digest.Digest `cbor:"9,keyasint,omitempty" json:"digest,omitempty"`
	Demand  Time          `cbor:"10,keyasint,omitempty" json:"demand,omitempty"` // when the demand arose
	Reason  string        `cbor:"11,keyasint,omitempty" json:"reason,omitempty"` // of failed
	// Seen is, in a report, the index of the state that the server had seen when it
	// began to look at its copy, 0 when it does not say; in a listing of demands the
	// index that the listing is of. It is not stored.
	Seen uint64 `cbor:"13,keyasint,omitempty" json:"-"`
	// Counted is what a demand counts as in its region's backlog.
	Counted DemandCount `cbor:"12,keyasint,omitempty" json:"-"`
}

// JoinToken admits nodes. The secret is with the operator; ID is its sha256.
type JoinToken struct {
	ID      string     `cbor:"1,keyasint,omitempty" json:"id"`
	Role    Role       `cbor:"2,keyasint,omitempty" json:"role"`
	Region  RegionName `cbor:"3,keyasint,omitempty" json:"region"`
	Expires Time       `cbor:"4,keyasint,omitempty" json:"expires"`
	Uses    uint64     `cbor:"5,keyasint,omitempty" json:"uses"` // left
	Read    []string   `cbor:"6,keyasint,omitempty" json:"read,omitempty"`
	// Tenants becomes Node.Tenants. From cluster level 5.
	Tenants []string `cbor:"7,keyasint,omitempty" json:"tenants,omitempty"`
}

// Region is what is decided about a region beyond its nodes.
type Region struct {
	Name    RegionName `cbor:"1,keyasint,omitempty" json:"name"`
	Primary bool       `cbor:"2,keyasint,omitempty" json:"primary"` // holds critical repositories
	Created Time       `cbor:"3,keyasint,omitempty" json:"created"`
	// Leaving is since when the region is being given up, 0 when it is not: it is
	// owed nothing, and takes neither servers nor repositories.
	Leaving Time `cbor:"4,keyasint,omitempty" json:"leaving,omitempty"`
}

// Cluster is what all nodes share.
type Cluster struct {
	ID string `cbor:"1,keyasint,omitempty" json:"id"`
	// Root is the DER certificate of the cluster CA; RootKey its private key
	// (PKCS #8 DER) sealed to each server by agessh.
	Root    []byte            `cbor:"2,keyasint,omitempty" json:"root"`
	RootKey map[NodeID][]byte `cbor:"3,keyasint,omitempty" json:"-"`
	// Level gates new command types: none above it enters the log.
	Level uint32 `cbor:"4,keyasint,omitempty" json:"level"`
	// Epoch counts recoveries from a lost quorum; tokens carry it.
	Epoch uint64 `cbor:"5,keyasint,omitempty" json:"epoch"`
	// AdminToken is the sha256 of the bootstrap admin token.
	AdminToken []byte `cbor:"6,keyasint,omitempty" json:"-"`
	// Recovery is how the present epoch began, nil in the first.
	Recovery *Recovery `cbor:"7,keyasint,omitempty" json:"recovery,omitempty"`
}

// Principal is who acts. Name is `kind:id`: user:ada, robot:acme/ci, host:<node>,
// admin:bootstrap, anonymous. What it may is for gateway/access to say.
type Principal struct {
	Name string
	// Admin may do all: who has the admin token.
	Admin bool
	// Node is set when a node acts with its certificate.
	Node NodeID
	Role Role
	// Rights are what it may, as of At: when the caller was found out. One that
	// expires does not count in a Principal without At, but a Deny does.
	Rights []Right
	At     Time
	// Limits narrow the rights: each list must allow, too. The first is the
	// credential's, a token of /token adds its scopes. An empty list allows nothing.
	Limits [][]Right
	// Token identifies the credential, for audit and revocation.
	Token string
	// Elevation is the break-glass elevation that the principal acts under, "" without.
	Elevation string
}

// Tenant returns the tenant that the principal belongs to, "" for those of the
// cluster.
func (p Principal) Tenant() TenantName { return TenantOf(p.Name) }

// MayHaveWritten reports whether the principal can be one that published through
// another gateway: it showed a credential, or may write without one (dev).
func (p Principal) MayHaveWritten() bool {
	return p.Token != "" || slices.ContainsFunc(p.Rights, func(r Right) bool { return !r.Deny && r.Has(ActionPush) })
}

// Anonymous is the principal of a call without credentials.
var Anonymous = Principal{Name: "anonymous"}
