package state

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Publications, from level 6 on: documents of a whole repository, which one server at a
// time builds and one command puts in place. The repository's head notes each change to
// a version, so that a publish costs one small record more, whoever builds.

// SetsLevel is the level of publications.
const SetsLevel = 6

// Below inSets and the repository.
const (
	ofHead    = 'h' // meta.Sets
	ofCurrent = 's' // [name] -> meta.Publication
	ofOld     = 'o' // name, [revision-u64] -> meta.Publication: those that others replaced
)

func keySets(r meta.RepoRef) key                 { return append(inRepo(inSets, r), ofHead) }
func keyCurrentSets(r meta.RepoRef) key          { return append(inRepo(inSets, r), ofCurrent) }
func keyOldSets(r meta.RepoRef, name string) key { return append(inRepo(inSets, r), ofOld).part(name) }

// What stays of a set that was replaced: readers who hold its index ask for the rest of
// it by hash. Then CollectBlobs takes it away, and its files are garbage like any.
const (
	keepOldSets = 32
	keepOldFor  = 15 * time.Minute
	// dropsOldSets bounds what of its predecessors one commit drops: more than one, so
	// that their number falls.
	dropsOldSets = 2
	// dropsFiles bounds the files of sets that one entry releases; the last set of it may
	// have more.
	dropsFiles = 1000
)

// keyOldSetTime is the place of a replaced set among those that go.
func keyOldSetTime(p *meta.Publication) key {
	return inGarbage(ofOldSets).u64(clock(p.Replaced)).part(string(p.Repo.Tenant)).part(p.Repo.Name).part(p.Name).u64(p.Revision)
}

// oldSetOf returns the key of the set that has a place among those that go.
func oldSetOf(k []byte) (key, error) {
	_, rest, err := parseTimed(k)
	if err != nil {
		return nil, err
	}
	tenant, rest, ok1 := cutPart(rest)
	repo, rest, ok2 := cutPart(rest)
	name, rest, ok3 := cutPart(rest)
	if !ok1 || !ok2 || !ok3 || len(rest) != 8 {
		return nil, &StorageError{Cause: fmt.Errorf("key %x is no replaced publication", k)}
	}
	return append(keyOldSets(meta.RepoRef{Tenant: meta.TenantName(tenant), Name: repo}, name), rest...), nil
}

// versionChanged notes in the head of a repository, if it has one, that a version did.
func (t *tx) versionChanged(repo meta.RepoRef) error {
	head, err := load[meta.Sets](t, keySets(repo))
	if err != nil || head == nil || head.Changed == t.index {
		return err
	}
	head.Changed = t.index
	t.put(keySets(repo), head)
	return nil
}

func findSets(r reader, repo meta.RepoRef) (*meta.Sets, error) {
	return find[meta.Sets](r, keySets(repo), "publications of", repo)
}

// checkSetName checks the name of a publication.
func checkSetName(name string) error {
	if name == "" || len(name) > meta.MaxSetName {
		return fmt.Errorf("publication %q: a name of 1 to %d bytes: %w", name, meta.MaxSetName, meta.ErrInvalid)
	}
	return meta.CheckPath(name)
}

// setUser claims what a publication consists of.
func (t *tx) setUser(repo *meta.Repository, name string) *publication {
	alone := *repo
	alone.CopiesBeforeAck = 0 // What is built from versions can be built again.
	return &publication{tx: t, repo: &alone, version: &meta.Version{Repo: repo.Ref, Package: "publication", Name: name}}
}

// dropSet takes a publication away and releases what it claimed.
func (t *tx) dropSet(k key, p *meta.Publication) error {
	for _, f := range p.Files {
		if err := t.release(p.Repo, f.Digest); err != nil {
			return err
		}
	}
	t.del(k)
	if p.Replaced != 0 {
		t.del(keyOldSetTime(p))
	}
	return nil
}

// retire keeps a publication that is no longer in place for a while.
func (t *tx) retire(p *meta.Publication) {
	p.Replaced = t.now
	t.put(keyOldSets(p.Repo, p.Name).u64(p.Revision), p)
	t.mark(keyOldSetTime(p))
}

// dropOldSets drops a few of those that were kept long enough or are too many.
func (t *tx) dropOldSets(repo meta.RepoRef, name string) error {
	count := 0
	var oldest []pair
	for p, err := range t.scan(within(keyOldSets(repo, name))) {
		if err != nil {
			return err
		}
		if count++; count <= dropsOldSets {
			oldest = append(oldest, pair{bytes.Clone(p.key), bytes.Clone(p.value)})
		}
	}
	for _, p := range oldest {
		set, err := decode[meta.Publication](p.key, p.value)
		if err != nil {
			return err
		}
		if count <= keepOldSets && set.Replaced > t.now-meta.Time(keepOldFor) {
			break
		}
		if err := t.dropSet(p.key, set); err != nil {
			return err
		}
		count--
	}
	return nil
}

// removeSets takes publications of a repository that goes away; more says that there are
// others, which the next entry takes. Should the repository stay after all, they are
// built anew.
func (t *tx) removeSets(repo meta.RepoRef) (more bool, err error) {
	prefix := inRepo(inSets, repo)
	files := 0
	var head *meta.Sets
	for pair, err := range t.scan(within(prefix)) {
		if err != nil {
			return false, err
		}
		if pair.key[len(prefix)] == ofHead {
			// The head is the first of them.
			if head, err = decode[meta.Sets](pair.key, pair.value); err != nil {
				return false, err
			}
			continue
		}
		if files >= dropsFiles {
			if head != nil {
				head.Changed = t.index
				t.put(keySets(repo), head)
			}
			return true, nil
		}
		set, err := decode[meta.Publication](pair.key, pair.value)
		if err != nil {
			return false, err
		}
		files += len(set.Files)
		if err := t.dropSet(bytes.Clone(pair.key), set); err != nil {
			return false, err
		}
	}
	t.del(keySets(repo))
	return false, nil
}

func (t *tx) putSets(head *meta.Sets) {
	t.put(keySets(head.Repo), head)
	t.emit(feed.Change{Kind: feed.KindSets, Repo: head.Repo})
}

// GetSets answers how the publications of a repository stand, without their key.
type GetSets struct {
	Repo meta.RepoRef `cbor:"1,keyasint,omitempty"`
}

// Answer implements Question. Errors: meta.ErrNotFound when it has none.
func (q GetSets) Answer(v *View) (meta.Sets, error) {
	s, err := one[meta.Sets](v, keySets(q.Repo), "publications of", q.Repo)
	if s.Key != nil {
		s.Key.Sealed = nil
	}
	return s, err
}

// GetSigningKey answers the key of a repository as it is sealed to servers. It is for
// servers.
type GetSigningKey struct {
	Repo meta.RepoRef `cbor:"1,keyasint,omitempty"`
}

func (GetSigningKey) serversOnly() {}

// Answer implements Question. Errors: meta.ErrNotFound when it has none.
func (q GetSigningKey) Answer(v *View) (meta.SigningKey, error) {
	s, err := one[meta.Sets](v, keySets(q.Repo), "publications of", q.Repo)
	if err != nil {
		return meta.SigningKey{}, err
	}
	if s.Key == nil {
		return meta.SigningKey{}, fmt.Errorf("signing key of %s: %w", q.Repo, meta.ErrNotFound)
	}
	return *s.Key, nil
}

// GetPublication answers the publication of a repository that is in place.
type GetPublication struct {
	Repo meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Name string       `cbor:"2,keyasint,omitempty"`
}

// Answer implements Question. Errors: meta.ErrNotFound.
func (q GetPublication) Answer(v *View) (meta.Publication, error) {
	return one[meta.Publication](v, keyCurrentSets(q.Repo).last(q.Name), "publication", q.Repo.String()+" "+q.Name)
}

// ListPublications lists the publications of a repository that are in place, by name.
type ListPublications struct {
	Repo meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Page Page         `cbor:"2,keyasint,omitempty"`
}

// Answer implements Question.
func (q ListPublications) Answer(v *View) ([]meta.Publication, error) {
	prefix := keyCurrentSets(q.Repo)
	return list[meta.Publication](v, within(prefix).behind(prefix, q.Page.After), q.Page, nil)
}

// RepositoryVersions lists the live versions of all packages of a repository, in the
// order of their keys, without their references. It is for servers: who builds reads
// them all.
type RepositoryVersions struct {
	Repo meta.RepoRef `cbor:"1,keyasint,omitempty"`
	// After is the last version of the page before, zero for the first page.
	AfterPackage string `cbor:"2,keyasint,omitempty"`
	AfterVersion string `cbor:"3,keyasint,omitempty"`
	Limit        int    `cbor:"4,keyasint,omitempty"`
}

func (RepositoryVersions) serversOnly() {}

// Answer implements Question.
func (q RepositoryVersions) Answer(v *View) ([]meta.Version, error) {
	s := within(inRepo(inVersions, q.Repo))
	if q.AfterPackage != "" {
		s.lower = append(keyVersion(q.Repo, q.AfterPackage, q.AfterVersion), 0)
	}
	return list(v, s, Page{Limit: q.Limit}, withoutReferences)
}

// isArmored reports whether s looks like an armored public key.
func isArmored(s string) bool {
	return strings.HasPrefix(s, "-----BEGIN PGP PUBLIC KEY BLOCK-----") && len(s) <= meta.MaxPublicKey
}
