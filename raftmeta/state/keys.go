package state

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// key is a key of the state. Every part but the last carries its length, so no
// name reaches into another's range; the last is bare, so listings come in byte
// order. DESIGN.md has the table of all keys.
type key []byte

// Spaces: the first byte of a key.
const (
	spaceTenants   = 'T' // tenant -> meta.Tenant
	spaceTenant    = 't' // below a tenant, then one of the letters
	spaceReplicas  = 'R' // root, region, server -> meta.Replica
	spaceQueue     = 'q' // region, demanded at, root -> nothing: demands not yet verified
	spaceBacklog   = 'P' // the same by class and tenant, and counts; backlog.go has the letters
	spaceRoots     = 'o' // root, context -> digest of the blob
	spaceUploads   = 'u' // unclaimed since, kind, repository, name -> nothing
	spaceNodes     = 'n' // node -> meta.Node
	spaceMembers   = 'k' // region, node -> nothing: the nodes of a region
	spaceRegions   = 'g' // region -> regionRecord
	spaceTokens    = 'j' // token id -> meta.JoinToken
	spaceWaves     = 'W' // wave -> meta.Wave
	spaceWaveHosts = 'H' // wave, node -> meta.WaveHost
	spaceLeases    = 'L' // wave, until, node -> nothing: hosts that fetch under a lease
	spaceOpenWaves = 'O' // wave -> nothing: those that are not over
	spaceOverWaves = 'F' // ended at, wave -> nothing: those that are
	// Tenant, repository -> Settlement: what is to be settled anew, all at first.
	spaceSettlements = 'S'
	// Server, root -> why: what a draining server has that is not replaced yet.
	spaceRemains     = 'D'
	spaceIncidents   = 'I' // the health of regions and its history; health.go has the letters
	spaceAudits      = 'Q' // what servers said of their bytes, and lost blobs (audit.go)
	spaceBackups     = 'B' // backup -> meta.Backup
	spaceGarbage     = 'G' // what nobody uses, and what servers are to remove (garbage.go)
	spaceAccess      = 'A' // accounts, roles and bindings (accounts.go)
	spaceRights      = 'K' // the access revision, and what is void (rights.go)
	spaceTrust       = 'N' // the replacement of the root (rotation.go)
	spaceRespond     = 'Z' // acts, compromises, elevations (acts.go)
	spaceComparisons = 'V' // index -> Comparison
	spaceCredentials = 'C' // credentials of principals (credentials.go)
	spaceIssuers     = 'J' // who vouches for jobs (issuers.go)
	spaceRequests    = 'x' // request id -> result
	spaceWindow      = 'y' // sequence -> request id: what to forget next
	spaceFeed        = 'e' // index, seq -> feed.Change
	spaceQuotas      = 'Y' // what tenants use (usage.go has the letters)
	spaceBuckets     = 'X' // bucket -> meta.Bucket
	spaceAuditLog    = 'M' // the audit log; auditlog.go has the letters
	spaceSealed      = 'E' // tenant, repository, [name] -> meta.Sealed
	spaceQuiet       = 'w' // due, tenant, repository, package, [version] -> quietVersion: open ones
	spaceMachine     = 'm' // applied, format, level, cluster ...
)

// Letters below a tenant; [x] is a bare last part.
const (
	inRepositories = 'r' // [repository] -> meta.Repository
	inPackages     = 'p' // repository, [package] -> meta.Package
	inVersions     = 'v' // repository, package, [version] -> meta.Version, live ones
	inGraves       = 'z' // repository, package, [version] -> grave, of deleted ones
	inFiles        = 'f' // repository, package, version, [path] -> meta.File
	inAliases      = 'a' // repository, package, [alias] -> meta.Alias
	inHistory      = 'h' // repository, package, alias, move -> meta.Alias
	inNamings      = 'w' // repository, package, version, [alias] -> nothing
	inAttachments  = 's' // repository, package, subject, [version] -> artifact type
	inLinks        = 'l' // repository, digest -> linkRecord; a sha512 -> its sha256
	inMentions     = 'm' // digest, [repository] -> nothing: who links it
	inBlobs        = 'b' // digest -> blobRecord; the tenant is the context
	inFetched      = 'u' // repository, letter, ... -> what its upstream had (fetched.go has the letters)
	inSets         = 'x' // repository, letter, ... -> publications (sets.go has the letters)
	inDrafts       = 'd' // repository, draft, part -> references; without part the draftRecord
	inNames        = 'o' // owners and sources of names, members (names.go has the letters)
)

var (
	keyApplied  = key{spaceMachine, 'a'} // u64 index, u64 term; not part of the hash
	keyFormat   = key{spaceMachine, 'f'} // the format's name
	keyCluster  = key{spaceMachine, 'c'} // meta.Cluster
	keyLevel    = key{spaceMachine, 'l'} // u64
	keyRequests = key{spaceMachine, 'r'} // window
	keyFloor    = key{spaceMachine, 'e'} // u64: the feed is complete above this index
	keyDraining = key{spaceMachine, 'd'} // the servers that are draining, sorted
	keyHold     = key{spaceMachine, 'h'} // u64: the level is not raised above it
)

func (k key) part(s string) key { return append(binary.AppendUvarint(k, uint64(len(s))), s...) }
func (k key) last(s string) key { return append(k, s...) }
func (k key) u64(n uint64) key  { return binary.BigEndian.AppendUint64(k, n) }
func (k key) u32(n uint32) key  { return binary.BigEndian.AppendUint32(k, n) }

// Algorithms in keys.
const (
	algText   = 0 // a text that is no digest, so that it names nothing stored
	algSHA256 = 1
	algSHA512 = 2
)

// digest appends the algorithm and the hash, a third of the text's length.
func (k key) digest(d digest.Digest) key {
	if _, err := digest.Parse(string(d)); err != nil {
		return append(k, algText).part(string(d))
	}
	alg := byte(algSHA256)
	if d.Algorithm() == "sha512" {
		alg = algSHA512
	}
	hash, _ := hex.DecodeString(d.Encoded()) // Parse has checked it.
	return append(append(k, alg), hash...)
}

func below(tenant string, letter byte) key {
	k := make(key, 0, 96)
	return append(append(k, spaceTenant).part(tenant), letter)
}

func inRepo(letter byte, r meta.RepoRef) key { return below(string(r.Tenant), letter).part(r.Name) }

func keyTenant(t meta.TenantName) key { return key{spaceTenants}.last(string(t)) }
func keyRepository(r meta.RepoRef) key {
	return below(string(r.Tenant), inRepositories).last(r.Name)
}
func keyPackage(r meta.RepoRef, pkg string) key { return inRepo(inPackages, r).last(pkg) }
func keyVersion(r meta.RepoRef, pkg, version string) key {
	return inRepo(inVersions, r).part(pkg).last(version)
}
func keyGrave(r meta.RepoRef, pkg, version string) key {
	return inRepo(inGraves, r).part(pkg).last(version)
}
func keyFiles(r meta.RepoRef, pkg, version string) key {
	return inRepo(inFiles, r).part(pkg).part(version)
}
func keyAliases(r meta.RepoRef, pkg string) key { return inRepo(inAliases, r).part(pkg) }
func keyHistory(r meta.RepoRef, pkg, alias string) key {
	return inRepo(inHistory, r).part(pkg).part(alias)
}
func keyNamings(r meta.RepoRef, pkg, version string) key {
	return inRepo(inNamings, r).part(pkg).part(version)
}
func keyAttachments(r meta.RepoRef, pkg string, subject digest.Digest) key {
	return inRepo(inAttachments, r).part(pkg).digest(subject)
}
func keyLink(r meta.RepoRef, d digest.Digest) key { return inRepo(inLinks, r).digest(d) }
func keyMentions(t meta.TenantName, d digest.Digest) key {
	return below(string(t), inMentions).digest(d)
}
func keyBlob(context string, d digest.Digest) key { return below(context, inBlobs).digest(d) }
func keyDraft(r meta.RepoRef, draft string) key   { return inRepo(inDrafts, r).part(draft) }

func keyReplicas(root digest.CID) key { return append(key{spaceReplicas}, root[:]...) }

// keyReplica is the region's demand when server is empty, and sorts before its servers.
func keyReplica(root digest.CID, region meta.RegionName, server meta.NodeID) key {
	return keyReplicas(root).part(string(region)).last(string(server))
}
func keyQueue(region meta.RegionName) key { return key{spaceQueue}.part(string(region)) }
func keyQueued(r meta.Replica) key {
	return append(keyQueue(r.Region).u64(clock(r.Demand)), r.Root[:]...)
}

// keySettlement is that of all without repo, and then sorts before the others.
func keySettlement(repo meta.RepoRef) key {
	if repo == (meta.RepoRef{}) {
		return key{spaceSettlements}
	}
	return key{spaceSettlements}.part(string(repo.Tenant)).last(repo.Name)
}
func keyRemains(server meta.NodeID) key { return key{spaceRemains}.part(string(server)) }
func keyRoots(root digest.CID) key      { return append(key{spaceRoots}, root[:]...) }

func keyNode(id meta.NodeID) key            { return key{spaceNodes}.last(string(id)) }
func keyMembers(region meta.RegionName) key { return key{spaceMembers}.part(string(region)) }
func keyRegion(name meta.RegionName) key    { return key{spaceRegions}.last(string(name)) }
func keyToken(id string) key                { return key{spaceTokens}.last(id) }
func keyBackup(id string) key               { return key{spaceBackups}.last(id) }
func keyRequest(id string) key              { return key{spaceRequests}.last(id) }
func keyWindow(seq uint64) key              { return key{spaceWindow}.u64(seq) }
func keyFeed(index uint64) key              { return key{spaceFeed}.u64(index) }

// clock orders instants; those before 1970 are one.
func clock(t meta.Time) uint64 { return uint64(max(t, 0)) }

// upload is what the uploads space orders: a link without claims, or a draft.
type upload struct {
	Since meta.Time
	Repo  meta.RepoRef
	Link  digest.Digest
	Draft string // when Link is ""
}

func (u upload) key() key {
	k := key{spaceUploads}.u64(clock(u.Since))
	if u.Link != "" {
		return append(k, inLinks).part(string(u.Repo.Tenant)).part(u.Repo.Name).digest(u.Link)
	}
	return append(k, inDrafts).part(string(u.Repo.Tenant)).part(u.Repo.Name).last(u.Draft)
}

func parseUpload(k []byte) (upload, error) {
	var u upload
	fail := fmt.Errorf("key %x is no upload", k)
	if len(k) < 10 || k[0] != spaceUploads {
		return u, fail
	}
	u.Since = meta.Time(binary.BigEndian.Uint64(k[1:]))
	letter := k[9]
	tenant, rest, ok1 := cutPart(k[10:])
	repo, rest, ok2 := cutPart(rest)
	if !ok1 || !ok2 || u.Since < 0 {
		return u, fail
	}
	u.Repo = meta.RepoRef{Tenant: meta.TenantName(tenant), Name: repo}
	switch letter {
	case inLinks:
		d, ok := parseDigest(rest)
		if !ok {
			return u, fail
		}
		u.Link = d
	case inDrafts:
		if len(rest) == 0 {
			return u, fail
		}
		u.Draft = string(rest)
	default:
		return u, fail
	}
	return u, nil
}

// parseLinkOwner returns the repository of a key of links.
func parseLinkOwner(k []byte) (tenant, repo string, err error) {
	if len(k) > 0 && k[0] == spaceTenant {
		tenant, rest, ok := cutPart(k[1:])
		if ok && len(rest) > 0 && rest[0] == inLinks {
			if repo, _, ok = cutPart(rest[1:]); ok {
				return tenant, repo, nil
			}
		}
	}
	return "", "", fmt.Errorf("key %x is no link", k)
}

// cutPart takes a part with its length from the front of k.
func cutPart(k []byte) (part string, rest []byte, ok bool) {
	size, n := binary.Uvarint(k)
	if n <= 0 || size > uint64(len(k)-n) {
		return "", nil, false
	}
	return string(k[n : n+int(size)]), k[n+int(size):], true
}

func parseDigest(b []byte) (digest.Digest, bool) {
	switch {
	case len(b) == 33 && b[0] == algSHA256:
		return digest.Digest("sha256:" + hex.EncodeToString(b[1:])), true
	case len(b) == 65 && b[0] == algSHA512:
		return digest.Digest("sha512:" + hex.EncodeToString(b[1:])), true
	}
	return "", false
}

// after returns the first key behind all that begin with k; nil when there is none.
func (k key) after() key {
	end := append(key(nil), k...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}
