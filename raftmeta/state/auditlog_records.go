package state

import (
	"encoding/binary"
	"encoding/hex"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/shoal-registry/shoal/raftmeta/audit"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// recordKind is a kind of record of which entries of the audit log show what became.
type recordKind struct {
	what   string // what one is called
	skip   int    // bytes of the key before its parts
	decode func(k key, b []byte) (any, error)
	// parts is how many parts with their length come before the last one.
	parts int
	// quietWhenNew leaves new ones out: the command says all of them.
	quietWhenNew bool
}

func recordOf[T any](what string, skip int) *recordKind {
	return &recordKind{what: what, skip: skip, decode: func(k key, b []byte) (any, error) { return decode[T](k, b) }}
}

func (k *recordKind) quiet() *recordKind {
	k.quietWhenNew = true
	return k
}

// below says that n parts come before the last one of the key.
func (k *recordKind) below(n int) *recordKind {
	k.parts = n
	return k
}

// level is a number as a record.
type level struct{ Level uint64 }

var (
	levelRecord   = &recordKind{what: "level", skip: 2, decode: func(_ key, b []byte) (any, error) { return level{binary.BigEndian.Uint64(b)}, nil }}
	clusterRecord = recordOf[meta.Cluster]("cluster", 2)
)

// recordKinds are those that entries show, by the first byte of the key. Counts,
// queues and indexes follow from commands and are left out.
var recordKinds = map[byte]*recordKind{
	spaceTenants: recordOf[meta.Tenant]("tenant", 1),
	spaceNodes:   recordOf[meta.Node]("node", 1),
	spaceRegions: recordOf[regionRecord]("region", 1),
	spaceTokens:  recordOf[meta.JoinToken]("join token", 1),
	spaceBackups: recordOf[meta.Backup]("backup", 1),
	spaceBuckets: recordOf[meta.Bucket]("bucket", 1),
	spaceSealed:  recordOf[meta.Sealed]("secret", 1).below(2),
}

// tenantRecordKinds are those below a tenant, by their letter.
var tenantRecordKinds = map[byte]*recordKind{
	inRepositories: recordOf[meta.Repository]("repository", 0),
	inVersions:     recordOf[meta.Version]("version", 0).quiet(),
	inAliases:      recordOf[meta.Alias]("alias", 0),
}

// letteredRecordKinds are those of spaces with letters, by both.
var letteredRecordKinds = map[[2]byte]*recordKind{
	{spaceAccess, ofAccounts}:        recordOf[meta.Account]("account", 2),
	{spaceAccess, ofRoles}:           recordOf[meta.AccessRole]("role", 2).below(1),
	{spaceAccess, ofBindings}:        recordOf[meta.Binding]("binding", 2).below(1),
	{spaceCredentials, byID}:         recordOf[meta.Credential]("credential", 2),
	{spaceIssuers, issuersOf}:        recordOf[meta.Issuer]("issuer", 2).below(1),
	{spaceRights, inVoidPrincipals}:  recordOf[meta.Revocation]("revocation of principal", 2),
	{spaceRights, inVoidTenants}:     recordOf[meta.Revocation]("revocation of tenant", 2),
	{spaceTrust, keyTrust[1]}:        recordOf[meta.Trust]("trust", 2),
	{spaceRespond, ofCompromises}:    recordOf[meta.Compromise]("compromise", 2),
	{spaceRespond, ofElevations}:     recordOf[meta.Elevation]("elevation", 2),
	{spaceRespond, ofPolicy}:         recordOf[meta.ElevationPolicy]("elevation policy", 2),
	{spaceAuditLog, keyRetention[1]}: recordOf[audit.Retention]("audit retention", 2),
}

func kindOfRecord(k key) *recordKind {
	switch k[0] {
	case spaceTenant:
		size, n := binary.Uvarint(k[1:])
		if n <= 0 || uint64(len(k)) <= 1+uint64(n)+size {
			return nil
		}
		return tenantRecordKinds[k[1+uint64(n)+size]]
	case spaceMachine:
		switch string(k) {
		case string(keyCluster):
			return clusterRecord
		case string(keyLevel):
			return levelRecord
		}
		return nil
	}
	if len(k) > 1 {
		if kind := letteredRecordKinds[[2]byte{k[0], k[1]}]; kind != nil {
			return kind
		}
	}
	return recordKinds[k[0]]
}

// tenant returns the tenant that a record lies below, "" for others.
func (k *recordKind) tenant(of key) string {
	if of[0] != spaceTenant {
		return ""
	}
	tenant, _, _ := cutPart(of[1:])
	return tenant
}

// name says which record it is, as `repository acme/app` or `alias acme/app api latest`.
func (k *recordKind) name(of key) string {
	words := []string{k.what}
	rest := []byte(of[min(k.skip, len(of)):])
	if of[0] == spaceTenant {
		tenant, below, _ := cutPart(of[1:])
		rest = below[1:]
		if k.what == "repository" {
			return k.what + " " + tenant + "/" + string(rest)
		}
		repo, below, _ := cutPart(rest)
		pkg, below, _ := cutPart(below)
		words, rest = append(words, tenant+"/"+repo, pkg), below
	}
	for range k.parts {
		part, below, ok := cutPart(rest)
		if !ok {
			break
		}
		if rest = below; part != "" {
			words = append(words, printable([]byte(part)))
		}
	}
	if len(rest) > 0 {
		words = append(words, printable(rest))
	}
	return strings.Join(words, " ")
}

// printable returns b as a text, or in hex when it is none.
func printable(b []byte) string {
	if utf8.Valid(b) && strings.IndexFunc(string(b), unicode.IsControl) < 0 {
		return string(b)
	}
	return hex.EncodeToString(b)
}
