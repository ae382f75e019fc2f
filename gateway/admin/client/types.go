// Package client speaks the admin API: its types, shared with the server
// (gateway/admin), and Client, a method an endpoint.
//
// Start reading at Client. Records are those of raftmeta/meta in their JSON form;
// instants are Unix nanoseconds. The package starts no goroutines.
package client

import (
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Page is one page of a listing. Next is the `after` of the next one, "" at the end.
type Page[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next,omitempty"`
}

// MaxPage is the largest limit of a page; more is cut to it.
const MaxPage = 1000

// NewTenant is the body of POST /api/v1/tenants.
type NewTenant struct {
	Name meta.TenantName `json:"name"`
	Tier meta.Tier       `json:"tier,omitempty"` // "" is standard
}

// NewRepository is the body of POST /api/v1/repositories. Empty fields take the
// standard: hosted, standard, private, at home in the region of the server that
// answers, the second region the nearest.
type NewRepository struct {
	Ref          meta.RepoRef    `json:"ref"`
	Format       string          `json:"format"`
	Kind         meta.Kind       `json:"kind,omitempty"`
	Class        meta.Class      `json:"class,omitempty"`
	Environment  string          `json:"environment,omitempty"`
	Home         meta.RegionName `json:"home,omitempty"`
	Second       meta.RegionName `json:"second,omitempty"`
	Visibility   meta.Visibility `json:"visibility,omitempty"`
	Immutable    bool            `json:"immutable,omitempty"`
	CreateTenant bool            `json:"create_tenant,omitempty"`
	// Regions, when given, owe copies instead of those of the class.
	Regions []meta.RegionName `json:"regions,omitempty"`
	// CopiesBeforeAck is how many servers have a verified copy before a publish is
	// answered, 1 or 2; 0 is 1.
	CopiesBeforeAck uint32 `json:"copies_before_ack,omitempty"`
	// DegradedReadMax is how long a node that reaches no server goes on serving private
	// reads; nil is 15 minutes, 0 not at all. In JSON it is nanoseconds.
	DegradedReadMax *time.Duration `json:"degraded_read_max,omitempty"`
	// Upstream is what a proxy caches, Members and WriteTo are of a group: names of
	// repositories of its tenant.
	Upstream *meta.Upstream `json:"upstream,omitempty"`
	Members  []string       `json:"members,omitempty"`
	WriteTo  string         `json:"write_to,omitempty"`
}

// UpstreamChange changes the upstream of a proxy; nil stays. Durations are nanoseconds in
// JSON.
type UpstreamChange struct {
	URL           *string        `json:"url,omitempty"`
	Credential    *string        `json:"credential,omitempty"`
	Allow         *[]string      `json:"allow,omitempty"`
	Block         *[]string      `json:"block,omitempty"`
	MinReleaseAge *time.Duration `json:"min_release_age,omitempty"`
	DocumentTTL   *time.Duration `json:"document_ttl,omitempty"`
	NegativeTTL   *time.Duration `json:"negative_ttl,omitempty"`
}

// RepositoryChange is the body of PATCH /api/v1/repositories/T/R; nil stays.
type RepositoryChange struct {
	Class       *meta.Class      `json:"class,omitempty"`
	Home        *meta.RegionName `json:"home,omitempty"`
	Second      *meta.RegionName `json:"second,omitempty"`
	Visibility  *meta.Visibility `json:"visibility,omitempty"`
	Immutable   *bool            `json:"immutable,omitempty"`
	Environment *string          `json:"environment,omitempty"`
	// Regions replace those of the class; an empty list gives them back.
	Regions         *[]meta.RegionName `json:"regions,omitempty"`
	CopiesBeforeAck *uint32            `json:"copies_before_ack,omitempty"`
	DegradedReadMax *time.Duration     `json:"degraded_read_max,omitempty"`
	Upstream        *UpstreamChange    `json:"upstream,omitempty"`
	// Members replace those of a group; WriteTo "" ends that it takes pushes.
	Members *[]string `json:"members,omitempty"`
	WriteTo *string   `json:"write_to,omitempty"`
}

// NewRevocation is the body of POST /api/v1/revocations: one of Principal and Tenant.
type NewRevocation struct {
	Principal string          `json:"principal,omitempty"`
	Tenant    meta.TenantName `json:"tenant,omitempty"`
	Reason    string          `json:"reason,omitempty"`
}

// Region is a region with what its nodes make of it.
type Region struct {
	meta.Region
	Servers int `json:"servers"`
	Voters  int `json:"voters"`
	Agents  int `json:"agents"`
	// Zones are those that its servers name; Draining counts the servers that drain.
	Zones    []string `json:"zones,omitempty"`
	Draining int      `json:"draining,omitempty"`
	// Owed, in a listing of regions, is what the region is to have, and what of that it
	// does not have yet: it is being back-filled. Counted is false while not all is
	// counted.
	Owed    Owed `json:"owed"`
	Counted bool `json:"counted"`
	// SafeToLose says that the other regions keep a majority of the voters; losing
	// one that is not needs `shoal recover`.
	SafeToLose bool `json:"safe_to_lose"`
	// Health is how it fares, and Why when it is not healthy; Client.Health says more.
	Health meta.HealthState `json:"health,omitempty"`
	Why    string           `json:"why,omitempty"`
}

// Owed counts blobs that a region is to have, and of those the ones that wait for
// copies. Bytes are as stored.
type Owed struct {
	Blobs        uint64 `json:"blobs"`
	Bytes        int64  `json:"bytes"`
	WaitingBlobs uint64 `json:"waiting_blobs"`
	WaitingBytes int64  `json:"waiting_bytes"`
}

// RegionChange is the body of PUT /api/v1/regions/NAME.
type RegionChange struct {
	Primary bool `json:"primary"`
}

// Removed is the answer of DELETE /api/v1/regions/NAME.
type Removed struct {
	Nodes []meta.NodeID `json:"nodes"`
	// Done says that the region is gone. Until then it is being emptied, and Waiting
	// says for what: ask again.
	Done    bool     `json:"done"`
	Waiting []string `json:"waiting,omitempty"`
}

// Status is what a node knows of the cluster.
type Status struct {
	Cluster string          `json:"cluster"`
	Version string          `json:"version"`
	Node    meta.NodeID     `json:"node"`
	Role    meta.Role       `json:"role"`
	Region  meta.RegionName `json:"region"`
	// Level is the cluster level, Epoch counts recoveries.
	Level uint32 `json:"level"`
	Epoch uint64 `json:"epoch"`
	// Index is the log index that the answer is of; AgeSeconds bounds how far it
	// lies behind, negative when no bound is known.
	Index      uint64  `json:"index"`
	AgeSeconds float64 `json:"age_seconds"`
	Mode       string  `json:"mode"`
	Stale      bool    `json:"stale,omitempty"`
	// QuorumKnown says that the node sees the Raft group: agents do not, and then
	// Leader, Voter, Voters and SafeToLose say nothing.
	QuorumKnown bool `json:"quorum_known"`
	// Leader is "" while none is known.
	Leader  meta.NodeID `json:"leader,omitempty"`
	Regions []Region    `json:"regions"`
	Servers []Server    `json:"servers"`
	// Reported are peers of the answering server's region that sent wrong chunks
	// within the last ten minutes.
	Reported []ReportedPeer `json:"reported,omitempty"`
	// Unrepairable counts blobs in use of which no server has a sound copy, up to 1,000.
	Unrepairable int `json:"unrepairable"`
	// Quotas are the tenants, at most 100, that have passed a threshold of one.
	Quotas []Usage `json:"quotas,omitempty"`
	// Elevations are the break-glass elevations that are asked for or active.
	Elevations []meta.Elevation `json:"elevations,omitempty"`
	// Audit is what the answering node knows to be wrong with the audit log.
	Audit AuditTrouble `json:"audit,omitzero"`
}

// AuditTrouble says that the audit log was rewritten, or that chains of nodes were cut.
type AuditTrouble struct {
	// Rewound is why the log does not continue what the node has seen; "" while it does.
	Rewound string `json:"rewound,omitempty"`
	// Chains are those, at most 100, that once did not continue; only servers know.
	Chains []BrokenChain `json:"chains,omitempty"`
}

// BrokenChain is a node whose chain of denials, failed logins and pulls has lost lines.
type BrokenChain struct {
	Node  meta.NodeID `json:"node"`
	Times uint64      `json:"times"`
	Last  meta.Time   `json:"last"` // when that was seen last
	Lost  uint64      `json:"lost"` // lines, in all
}

// ReportedPeer is a node that others say sent them wrong chunks: its memory or disk
// is bad, or its owner.
type ReportedPeer struct {
	ID meta.NodeID `json:"id"`
	// By is how many nodes said so; from two on it is kept away until then.
	By        int       `json:"by"`
	Last      time.Time `json:"last"`
	KeptAway  bool      `json:"kept_away"`
	KeptUntil time.Time `json:"kept_until,omitzero"`
}

// Server is a server of the roster as a node sees it.
type Server struct {
	ID      meta.NodeID     `json:"id"`
	Region  meta.RegionName `json:"region"`
	Zone    string          `json:"zone,omitempty"`
	Gateway string          `json:"gateway"`
	Voter   bool            `json:"voter"`
	Leader  bool            `json:"leader,omitempty"`
	// Bucket is where it keeps its blobs, when not on its own disk.
	Bucket meta.NodeID `json:"bucket,omitempty"`
}

// NewJoinToken is the body of POST /api/v1/join-tokens. Zero TTLSeconds is ten
// minutes, zero Uses is one.
type NewJoinToken struct {
	Role       meta.Role       `json:"role"`
	Region     meta.RegionName `json:"region"`
	TTLSeconds int64           `json:"ttl_seconds,omitempty"`
	Uses       uint64          `json:"uses,omitempty"`
	// Read holds the patterns that an agent's host may read.
	Read []string `json:"read,omitempty"`
	// Tenants holds the patterns of tenants of which an agent may have what is not
	// public; none is all.
	Tenants []string `json:"tenants,omitempty"`
}

// JoinToken is an issued one. Token is the secret text; it is shown once.
type JoinToken struct {
	Token   string          `json:"token"`
	ID      string          `json:"id"`
	Role    meta.Role       `json:"role"`
	Region  meta.RegionName `json:"region"`
	Uses    uint64          `json:"uses"`
	Expires time.Time       `json:"expires"`
}

// Trust is the cluster's trust root.
type Trust struct {
	Cluster string `json:"cluster"`
	// Certificate is PEM; SHA256 the hex hash of its DER form, which join tokens carry.
	Certificate string        `json:"certificate"`
	SHA256      string        `json:"sha256"`
	NotAfter    time.Time     `json:"not_after"`
	Holders     []meta.NodeID `json:"holders"` // servers that hold the root key, sealed
	// Next is the root that takes over, since Started; nil when none does.
	Next    *Root     `json:"next,omitempty"`
	Started meta.Time `json:"started,omitempty"`
	// Former is the hash of the root that was replaced last, at Finished.
	Former   string    `json:"former,omitempty"`
	Finished meta.Time `json:"finished,omitempty"`
}

// Root is a root certificate, like that of Trust.
type Root struct {
	Certificate string    `json:"certificate"`
	SHA256      string    `json:"sha256"`
	NotAfter    time.Time `json:"not_after"`
}

// RootHolder is a node, and whether it has a certificate of the next root.
type RootHolder struct {
	ID      meta.NodeID     `json:"id"`
	Role    meta.Role       `json:"role"`
	Region  meta.RegionName `json:"region"`
	Gateway string          `json:"gateway"`
	Has     bool            `json:"has"`
}

// Replication is how far a version is in one region.
type Replication struct {
	Region   meta.RegionName `json:"region"`
	Pending  int             `json:"pending"`
	Verified int             `json:"verified"`
	Failed   int             `json:"failed"`
	// LastVerified is when the last copy was verified.
	LastVerified meta.Time `json:"last_verified,omitempty"`
	Reasons      []string  `json:"reasons,omitempty"` // of failures, at most 10
}

// VersionReplication is the answer of .../versions/V/replication. Blobs is how
// many blobs were looked at; Complete says that those are all.
type VersionReplication struct {
	Blobs    int           `json:"blobs"`
	Complete bool          `json:"complete"`
	Regions  []Replication `json:"regions"`
}

// Principal is who the caller is to the gateway.
type Principal struct {
	Name   string       `json:"name"`
	Admin  bool         `json:"admin"`
	Rights []meta.Right `json:"rights,omitempty"`
	// Limits narrow the rights: each list must allow, too.
	Limits [][]meta.Right `json:"limits,omitempty"`
	// Token is the id of the credential that was shown, "" without one.
	Token string `json:"token,omitempty"`
}

// ErrorBody is the body of every refusal.
type ErrorBody struct {
	Error ErrorDetail `json:"error"`
}

// ErrorDetail is the kind (of meta.Kinds, or method_not_allowed, unauthorized,
// internal) and the sentence.
type ErrorDetail struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
}
