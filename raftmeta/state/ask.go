package state

import (
	"fmt"
	"reflect"

	"github.com/shoal-registry/shoal/raftmeta/audit"
	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Question is a query: a struct that one method answers from a View, on servers
// and on agents alike.
type Question[A any] interface {
	// Answer reads v. Errors: meta.ErrNotFound, meta.ErrInvalid; *IOError.
	Answer(v *View) (A, error)
}

// Asked is a question of any type with room for its answer.
type Asked interface {
	// Name is the question's name in Questions.
	Name() string
	// Args is the question, for encoding.
	Args() any
	// Run answers from v and keeps the answer.
	Run(v *View) error
	// Into points at the answer, for encoding and decoding.
	Into() any
}

// Posed is q with its answer.
type Posed[A any] struct {
	Question Question[A]
	Result   A
}

// Name implements Asked.
func (p *Posed[A]) Name() string { return reflect.TypeOf(p.Question).Name() }

// Args implements Asked.
func (p *Posed[A]) Args() any { return p.Question }

// Run implements Asked.
func (p *Posed[A]) Run(v *View) (err error) {
	p.Result, err = p.Question.Answer(v)
	return err
}

// Into implements Asked.
func (p *Posed[A]) Into() any { return &p.Result }

// Questions reads the arguments of each question by its name, for the remote
// plane. The names are on the wire: none is reused.
var Questions = table(
	question[GetCluster, meta.Cluster], question[GetLevel, uint32], question[GetHold, uint32], question[Remains, RemainsAnswer], question[GetTenant, meta.Tenant], question[ListTenants, []meta.Tenant],
	question[GetRepository, meta.Repository], question[ListRepositories, []meta.Repository],
	question[GetPackage, meta.Package], question[ListPackages, []meta.Package],
	question[GetVersion, meta.Version], question[GetTombstone, Tombstone], question[Resolve, ResolveAnswer], question[ListVersions, []meta.Version],
	question[QuietVersions, []meta.Version], question[ListReferences, []meta.Reference], question[ListFiles, []meta.File], question[CountFiles, int], question[GetFile, meta.File],
	question[ListAliases, []meta.Alias], question[AliasHistory, []meta.Alias], question[Attachments, []meta.Version],
	question[GetUsage, TenantUsage], question[ListUsage, []TenantUsage], question[ListRepositoryUsage, []RepositoryUsage], question[Uncounted, []meta.TenantName],
	question[GetFetched, FetchedAnswer], question[ListFetched, []meta.Fetched], question[GetSealed, meta.Sealed], question[ListSealed, []meta.Sealed],
	question[GetBlob, BlobAnswer], question[FindLink, meta.RepoRef],
	question[GetSources, SourcesAnswer], question[Members, []meta.Repository], question[ListPackageFiles, []PackageFile], question[Search, SearchAnswer],
	question[GetNode, meta.Node], question[ListNodes, []meta.Node], question[ListRegions, []meta.Region],
	question[GetJoinToken, meta.JoinToken],
	question[ListJoinTokens, []meta.JoinToken], question[GetTrust, meta.Trust], question[ListHolders, []RootHolder],
	question[GetWave, meta.Wave], question[ListWaves, []meta.Wave],
	question[WaveHosts, []meta.WaveHost], question[ListWaveHosts, []meta.WaveHost],
	question[Replicas, []meta.Replica], question[PendingReplicas, []meta.Replica], question[BlobByRoot, meta.Blob],
	question[NextSettlement, Settlement], question[LastCopies, LastCopiesAnswer],
	question[ListBacklogs, []Backlog], question[TenantBacklogs, []Backlog], question[PendingInLane, []meta.Replica],
	question[Replication, ReplicationAnswer], question[CopiesOf, []uint32], question[ListBuckets, []meta.Bucket],
	question[OpenBackups, []meta.Backup], question[UsedBlobs, UsedBlobsAnswer],
	question[ListAudits, []meta.Audit], question[GetAudit, meta.Audit], question[ListLost, []meta.LostBlob], question[IsLost, bool],
	question[ListCopies, Copies], question[UsesOf, Uses],
	question[GetGC, GCStatus], question[GarbageDue, bool], question[ListGarbage, []Garbage],
	question[ListOrders, []Order], question[GetOrder, OrderAnswer], question[StrayRoots, StrayAnswer],
	question[ListComparisons, []Comparison],
	question[GetCaller, Caller], question[GetAccount, meta.Account], question[ListAccounts, []meta.Account],
	question[GetRole, meta.AccessRole], question[ListRoles, []meta.AccessRole],
	question[GetBinding, meta.Binding], question[ListBindings, []meta.Binding],
	question[GetCredential, meta.Credential], question[ListCredentials, []meta.Credential], question[CredentialsEnded, bool],
	question[GetIssuer, meta.Issuer], question[ListIssuers, []meta.Issuer], question[IssuersAt, []meta.Issuer],
	question[GetAccessHead, meta.AccessHead], question[GetRevocation, meta.Revocation], question[MayHold, Holding],
	question[GetAuditLog, AuditLog], question[Prunable, bool], question[ListEntries, Entries], question[ProveEntry, EntryProof],
	question[ProveContinuation, [][]byte], question[ListCheckpoints, []audit.Signed], question[ListChains, []audit.Chain], question[GetChain, audit.Chain],
	question[RegionHealth, []meta.RegionHealth], question[ListIncidents, []meta.Incident],
	question[GetCompromise, meta.Compromise], question[ListCompromises, []meta.Compromise], question[ListFindings, []meta.Finding], question[GetFinding, meta.Finding],
	question[ListQuarantined, []meta.Version], question[ListActs, ActsAnswer], question[GetRespondWork, RespondWork],
	question[GetElevation, meta.Elevation], question[ListElevations, []meta.Elevation], question[GetElevationPolicy, meta.ElevationPolicy],
	question[GetSets, meta.Sets], question[GetSigningKey, meta.SigningKey], question[GetPublication, meta.Publication],
	question[ListPublications, []meta.Publication], question[RepositoryVersions, []meta.Version],
)

// DecodeQuestion reads the question of that name from its encoded arguments.
//
// Errors: meta.ErrInvalid.
func DecodeQuestion(name string, args []byte) (Asked, error) {
	decode, ok := Questions[name]
	if !ok {
		return nil, fmt.Errorf("question %q is unknown to this build: %w", name, meta.ErrInvalid)
	}
	return decode(args)
}

func question[Q Question[A], A any]() (string, func([]byte) (Asked, error)) {
	name := reflect.TypeFor[Q]().Name()
	return name, func(args []byte) (Asked, error) {
		var q Q
		if err := codec.Unmarshal(args, &q); err != nil {
			return nil, fmt.Errorf("question %s: %w: %w", name, err, meta.ErrInvalid)
		}
		return &Posed[A]{Question: q}, nil
	}
}

func table(entries ...func() (string, func([]byte) (Asked, error))) map[string]func([]byte) (Asked, error) {
	t := make(map[string]func([]byte) (Asked, error), len(entries))
	for _, entry := range entries {
		name, decode := entry()
		t[name] = decode
	}
	return t
}
