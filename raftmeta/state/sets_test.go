package state

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

func init() { levelSixParts = append(levelSixParts, levelSixSets) }

// signing is a key that is sealed to some servers.
func signing(to ...meta.NodeID) *meta.SigningKey {
	return &meta.SigningKey{
		Public: "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nx\n-----END PGP PUBLIC KEY BLOCK-----\n", Fingerprint: "ABCD", Sealed: []byte("sealed"), To: to,
	}
}

// index is a commit of a set with one document, made from the state of from.
func index(name, document string, from uint64) CommitSets {
	b := blob(document)
	return CommitSets{
		Repo: appRef, Node: "eu-1",
		Set: &meta.Publication{
			Repo: appRef, Name: name, From: from, Sum: document,
			Files: []meta.File{{Path: "dists/" + name + "/Release", Digest: b.Digest, Size: b.PlainBytes}},
		},
		Blobs: []LinkBlob{link(document, "eu-1")},
	}
}

func lease(node meta.NodeID) LeaseSets {
	return LeaseSets{Repo: appRef, Node: node, For: 30 * time.Second}
}

// levelSixSets writes the commands of publications, done and refused.
func levelSixSets(l *logWriter) {
	index := func(name, document string, from uint64) CommitSets {
		c := index(name, document, from)
		c.Blobs[0].Server = "eu-8"
		return c
	}
	image := func(manifest string) Publish {
		p := image(manifest)
		p.Blobs[0].Server = "eu-8"
		return p
	}
	l.add("", lease("eu-1"))
	l.add("", OpenSets{Repo: appRef, Key: signing("eu-1")})
	l.add("", OpenSets{Repo: appRef, Key: signing("us-1")})
	l.add("", index("stable", "first index", 1))
	l.add("", lease("eu-1"))
	l.add("", lease("us-1"))
	l.add("", index("stable", "first index", 1))
	l.add("", image("indexed"))
	second := index("stable", "second index", 5)
	second.Through, second.Format = 5, 1
	l.add("", second)
	l.add("", index("stable", "late index", 2))
	l.add("", index("testing", "second index", 6))
	l.add("", SealSetsKey{Repo: appRef, Sealed: []byte("sealed again"), To: []meta.NodeID{"eu-1", "us-1"}, From: []meta.NodeID{"eu-1"}})
	l.add("", SealSetsKey{Repo: appRef, Sealed: []byte("sealed late"), To: []meta.NodeID{"eu-1"}, From: []meta.NodeID{"eu-1"}})
	l.add("", CommitSets{Repo: appRef, Node: "eu-1", Drop: []string{"testing", "none"}, Through: 7, Format: 1})
	l.now = l.now.Add(time.Hour)
	l.add("", index("stable", "third index", 8))
	l.add("", lease("eu-1"))
	l.add("", index("stable", "third index", 8))
	l.now = l.now.Add(time.Hour)
	l.add("", CollectBlobs{Limit: 100})
	indexed := meta.Repository{
		Ref: meta.RepoRef{Tenant: "acme", Name: "indexed"}, Format: "apt", Kind: meta.KindHosted, Class: meta.ClassStandard,
		Home: "eu", Visibility: meta.VisibilityPrivate,
	}
	l.add("", CreateRepository{Repository: indexed})
	l.add("", OpenSets{Repo: indexed.Ref})
	l.add("", LeaseSets{Repo: indexed.Ref, Node: "eu-1", For: time.Minute})
	for i := range uint64(5) {
		c := index("stable", "short index", i+1)
		c.Repo, c.Set.Repo, c.Blobs[0].Repo = indexed.Ref, indexed.Ref, indexed.Ref
		c.Set.Files = nil
		for n := range meta.MaxSetFiles {
			b := blob("short index")
			c.Set.Files = append(c.Set.Files, meta.File{Path: fmt.Sprintf("dists/stable/%04d", n), Digest: b.Digest, Size: b.PlainBytes})
		}
		l.add("", c)
	}
	l.add("", RemoveRepository{Ref: indexed.Ref}) // a part of it
	l.add("", RemoveRepository{Ref: indexed.Ref})
	l.add("", RemoveRepository{Ref: indexed.Ref})
}

// examineSets counts what a publication uses, and wants a replaced one among those that go.
func examineSets(repo meta.RepoRef, k, value []byte, want map[string]bool, use func(meta.RepoRef, digest.Digest) error) error {
	if k[len(inRepo(inSets, repo))] == ofHead {
		return nil
	}
	p, err := decode[meta.Publication](k, value)
	if err != nil {
		return err
	}
	for _, f := range p.Files {
		if err := use(repo, f.Digest); err != nil {
			return err
		}
	}
	if old := k[len(inRepo(inSets, repo))] == ofOld; old != (p.Replaced != 0) {
		return fmt.Errorf("publication %s %s at %x was replaced at %d", repo, p.Name, k, p.Replaced)
	} else if old {
		want[string(keyOldSetTime(p))] = true
	}
	return nil
}

// TestCheckSets has what is refused before it reaches the log.
func TestCheckSets(t *testing.T) {
	with := func(change func(*CommitSets)) CommitSets {
		c := index("stable", "x", 1)
		change(&c)
		return c
	}
	key := func(change func(*meta.SigningKey)) OpenSets {
		k := signing("eu-1")
		change(k)
		return OpenSets{Repo: appRef, Key: k}
	}
	for _, c := range []Command{
		OpenSets{}, key(func(k *meta.SigningKey) { k.Public = "a private one" }), key(func(k *meta.SigningKey) { k.Fingerprint = "" }),
		key(func(k *meta.SigningKey) { k.Sealed = nil }), key(func(k *meta.SigningKey) { k.To = nil }),
		SealSetsKey{}, SealSetsKey{Repo: appRef, Sealed: []byte("x")}, SealSetsKey{Repo: appRef, To: []meta.NodeID{"eu-1"}},
		LeaseSets{}, LeaseSets{Repo: appRef, Node: "eu-1"}, LeaseSets{Repo: appRef, For: 1}, LeaseSets{Repo: appRef, Node: "eu-1", For: maxSetsLease + 1},
		CommitSets{}, CommitSets{Repo: appRef, Node: "eu-1"},
		with(func(c *CommitSets) { c.Node = "" }),
		with(func(c *CommitSets) { c.Set.Name = "" }),
		with(func(c *CommitSets) { c.Set.Name = "../x" }),
		with(func(c *CommitSets) { c.Set.From = 0 }),
		with(func(c *CommitSets) { c.Set.Files = nil }),
		with(func(c *CommitSets) { c.Set.Files = make([]meta.File, meta.MaxSetFiles+1) }),
		with(func(c *CommitSets) { c.Set.Files[0].Path = "/x" }),
		with(func(c *CommitSets) { c.Set.Files[0].Digest = "x" }),
		with(func(c *CommitSets) { c.Set.Files = append(c.Set.Files, c.Set.Files[0]) }),
		with(func(c *CommitSets) { c.Set.Repo.Name = "other" }),
		with(func(c *CommitSets) { c.Blobs[0].Repo.Name = "other" }),
		with(func(c *CommitSets) { c.Set = nil }),
		with(func(c *CommitSets) { c.Drop = make([]string, maxDroppedSets+1) }),
		with(func(c *CommitSets) { c.Drop = []string{""} }),
	} {
		if _, err := Encode(Origin{}, c); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%T %+v: %v", c, c, err)
		}
	}
	full := index("stable", "x", 1)
	for i := range meta.MaxSetFiles - 1 {
		f := full.Set.Files[0]
		f.Path = fmt.Sprintf("dists/stable/%s/binary-architecture%04d/Packages.xz", strings.Repeat("x", 10), i)
		full.Set.Files = append(full.Set.Files, f)
	}
	slices.SortFunc(full.Set.Files, func(a, b meta.File) int { return strings.Compare(a.Path, b.Path) })
	for range 31 {
		full.Blobs = append(full.Blobs, full.Blobs[0])
	}
	if b, err := Encode(Origin{}, full); err != nil {
		t.Errorf("a set of the largest number of files, 32 of which it brings: %d bytes, %v", len(b), err)
	}
}

func setsBench(t *testing.T) *bench {
	b := newBench(t)
	b.must(SetLevel{Level: SetsLevel})
	b.must(CreateTenant{Name: "acme"})
	b.must(CreateRepository{Repository: app()})
	return b
}

func TestSets(t *testing.T) {
	b := setsBench(t)
	b.refuse(lease("eu-1"), meta.ErrNotFound)
	b.must(OpenSets{Repo: appRef, Key: signing("eu-1")})
	// Who opens them again gets what is there: the first key holds.
	if s := b.must(OpenSets{Repo: appRef, Key: signing("us-1")}).Value.(meta.Sets); s.Key.To[0] != "eu-1" || s.Changed == 0 {
		t.Errorf("opened again: %+v", s)
	}
	if s := ask(b, GetSets{Repo: appRef}); s.Key.Sealed != nil || s.Key.Fingerprint != "ABCD" {
		t.Errorf("agents are answered %+v", s.Key)
	}

	// Only who has the lease builds, and until then.
	b.refuse(index("stable", "first", 1), meta.ErrConflict)
	b.must(lease("eu-1"))
	b.refuse(lease("us-1"), meta.ErrConflict)
	b.must(index("stable", "first", 1))
	b.now = b.now.Add(31 * time.Second)
	b.refuse(index("stable", "second", 2), meta.ErrConflict)
	b.must(lease("us-1"))
	b.refuse(index("stable", "second", 2), meta.ErrConflict)
	b.now = b.now.Add(31 * time.Second)
	b.must(lease("eu-1"))

	// What a version changes is noted, and what is built through.
	before := ask(b, GetSets{Repo: appRef}).Changed
	b.must(image("package"))
	changed := ask(b, GetSets{Repo: appRef}).Changed
	if changed <= before {
		t.Errorf("a publish left the change at %d", changed)
	}
	c := index("stable", "second", changed)
	c.Through, c.Format = changed, 1
	b.must(c)
	if s := ask(b, GetSets{Repo: appRef}); s.Built != changed || s.Format != 1 || s.Changed != changed {
		t.Errorf("%+v", s)
	}
	b.refuse(index("stable", "old", changed-1), meta.ErrConflict)
	if p := ask(b, GetPublication{Repo: appRef, Name: "stable"}); p.Sum != "second" || p.From != changed || p.By != "eu-1" || p.Created == 0 {
		t.Errorf("%+v", p)
	}
	b.must(DeleteVersion{Repo: appRef, Package: "api", Version: string(blob("package").Digest)})
	if now := ask(b, GetSets{Repo: appRef}).Changed; now <= changed {
		t.Errorf("a deletion left the change at %d", now)
	}
	// A publish elsewhere is none of it, and one in a repository without sets neither.
	if got := ask(b, RepositoryVersions{Repo: appRef}); len(got) != 0 {
		t.Errorf("%d versions", len(got))
	}
}

// A key that no server has any more, as after a restore, makes room for another, with
// which all is built anew.
func TestSetsKeyIsLost(t *testing.T) {
	b := setsBench(t)
	b.must(OpenSets{Repo: appRef, Key: signing("eu-1", "eu-2")})
	b.must(lease("us-1"))
	b.must(CommitSets{Repo: appRef, Node: "us-1", Through: 5, Format: 1})
	another := func(to ...meta.NodeID) meta.Sets {
		t.Helper()
		k := signing(to...)
		k.Fingerprint = "BEEF"
		return b.must(OpenSets{Repo: appRef, Key: k}).Value.(meta.Sets)
	}
	b.must(RemoveNode{ID: "eu-1", Force: true})
	if s := another("us-1"); s.Key.Fingerprint != "ABCD" || s.Format != 1 {
		t.Errorf("a server has it: %+v", s)
	}
	b.must(RemoveNode{ID: "eu-2", Force: true})
	if s := another("us-1", "gone"); s.Key.Fingerprint != "ABCD" {
		t.Errorf("a key for nobody: %+v", s)
	}
	if s := b.must(OpenSets{Repo: appRef}).Value.(meta.Sets); s.Key == nil || s.Key.Fingerprint != "ABCD" {
		t.Errorf("without a key: %+v", s)
	}
	if s := another("us-1"); s.Key.Fingerprint != "BEEF" || s.Format != 0 || s.Changed != b.index {
		t.Errorf("%+v", s)
	}
	check(b)
}

// What a replaced set has stays for a while and then is garbage, and so is all that a
// repository had.
func TestSetsReleaseTheirBlobs(t *testing.T) {
	b := setsBench(t)
	b.must(OpenSets{Repo: appRef})
	claims := func(document string) uint64 {
		a, err := try(b, GetBlob{Repo: appRef, Digest: blob(document).Digest})
		if err != nil {
			return 0
		}
		return a.Link.Claims
	}
	commit := func(document string, from uint64) {
		t.Helper()
		b.must(lease("eu-1"))
		b.must(index("stable", document, from))
	}
	commit("one", 1)
	commit("two", 2)
	if claims("one") != 1 || claims("two") != 1 {
		t.Errorf("claims are %d and %d: who reads the first set finds it", claims("one"), claims("two"))
	}
	b.now = b.now.Add(keepOldFor + time.Second)
	commit("three", 3)
	if claims("one") != 0 || claims("two") != 1 {
		t.Errorf("claims are %d and %d", claims("one"), claims("two"))
	}
	// The number is bounded, too.
	for i := range 2 * keepOldSets {
		commit(fmt.Sprint("many ", i), uint64(4+i))
	}
	kept := 0
	for i := range 2 * keepOldSets {
		kept += int(claims(fmt.Sprint("many ", i)))
	}
	if kept != keepOldSets+1 {
		t.Errorf("%d sets are kept", kept)
	}
	check(b)
	b.must(RemoveRepository{Ref: appRef})
	check(b)
	for i := range 2 * keepOldSets {
		if n := claims(fmt.Sprint("many ", i)); n != 0 {
			t.Fatalf("index %d is claimed by %d of a repository that is gone", i, n)
		}
	}
	if _, err := try(b, GetSets{Repo: appRef}); err == nil {
		t.Error("the sets of a repository that is gone are there")
	}
}

// What was replaced goes after a quarter of an hour though nothing is published again, a
// bounded part of it at a time; so does what is no more.
func TestOldSetsGo(t *testing.T) {
	b := setsBench(t)
	b.must(OpenSets{Repo: appRef})
	b.must(lease("eu-1"))
	const names, replaced = 5, 3
	for n := range names {
		for i := range replaced + 1 {
			b.must(index(fmt.Sprint("dist-", n), fmt.Sprint(n, " document ", i), uint64(i+1)))
		}
	}
	b.must(CommitSets{Repo: appRef, Node: "eu-1", Drop: []string{"dist-0"}})
	if _, err := try(b, GetPublication{Repo: appRef, Name: "dist-0"}); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("a set that is no more is %v", err)
	}
	check(b)
	claimed := func() (n int) {
		for name := range names {
			for i := range replaced + 1 {
				if a, err := try(b, GetBlob{Repo: appRef, Digest: blob(fmt.Sprint(name, " document ", i)).Digest}); err == nil && a.Link.Claims > 0 {
					n++
				}
			}
		}
		return n
	}
	due := func() bool { return ask(b, GarbageDue{Now: meta.TimeOf(b.now)}) }
	b.now = b.now.Add(keepOldFor - time.Second)
	if b.must(CollectBlobs{Limit: 100}); due() || claimed() != names*(replaced+1) {
		t.Errorf("%d are claimed a second before, due is %v", claimed(), due())
	}
	b.now = b.now.Add(2 * time.Second)
	rounds := 0
	for due() {
		before := claimed()
		r := b.must(CollectBlobs{Limit: 4}).Value.(CollectResult) // a set is two records
		if went := before - claimed(); went > 2 || went == 0 && r.More {
			t.Fatalf("%d sets went at once, more is %v", went, r.More)
		}
		if rounds++; rounds > 100 {
			t.Fatal("it does not end")
		}
	}
	if n := claimed(); n != names-1 || rounds < names*replaced/2 {
		t.Errorf("%d are claimed after %d rounds", n, rounds)
	}
	check(b)
}

// One that is dropped and comes back over and over keeps no more than any.
func TestDroppedSetsAreBounded(t *testing.T) {
	b := setsBench(t)
	b.must(OpenSets{Repo: appRef})
	b.must(lease("eu-1"))
	for i := range 3 * keepOldSets {
		b.must(index("stable", fmt.Sprint("document ", i), uint64(i+1)))
		b.must(CommitSets{Repo: appRef, Node: "eu-1", Drop: []string{"stable"}})
	}
	kept := 0
	for i := range 3 * keepOldSets {
		if a, err := try(b, GetBlob{Repo: appRef, Digest: blob(fmt.Sprint("document ", i)).Digest}); err == nil && a.Link.Claims > 0 {
			kept++
		}
	}
	if kept > keepOldSets+1 {
		t.Errorf("%d sets are kept", kept)
	}
	check(b)
}

// bigSet is a set of the largest number of files, which are all there.
func bigSet(b *bench, name string, from uint64) CommitSets {
	c := index(name, fmt.Sprint(name, " 0"), from)
	c.Blobs, c.Set.Files = nil, nil
	for i := range meta.MaxSetFiles {
		document := fmt.Sprint(name, " ", i)
		if from == 1 {
			b.must(link(document, "eu-1"))
		}
		d := blob(document)
		c.Set.Files = append(c.Set.Files, meta.File{Path: fmt.Sprintf("dists/%s/%04d", name, i), Digest: d.Digest, Size: d.PlainBytes})
	}
	return c
}

// TestRemoveRepositoryInPages: the publications of a repository that goes take several
// entries, none of which releases more than a bounded number of files; one that stays
// after all is to be built anew.
func TestRemoveRepositoryInPages(t *testing.T) {
	b := setsBench(t)
	b.must(OpenSets{Repo: appRef})
	b.must(lease("eu-1"))
	const names = 6
	for n := range names {
		for from := range uint64(2) {
			c := bigSet(b, fmt.Sprint("dist-", n), from+1)
			c.Through = b.index
			b.must(c)
		}
	}
	claims := func() (n uint64) {
		for name := range names {
			for i := range meta.MaxSetFiles {
				if a, err := try(b, GetBlob{Repo: appRef, Digest: blob(fmt.Sprint("dist-", name, " ", i)).Digest}); err == nil {
					n += a.Link.Claims
				}
			}
		}
		return n
	}
	const all = names * 2 * meta.MaxSetFiles
	if n := claims(); n != all {
		t.Fatalf("%d claims", n)
	}
	pages := 0
	for left := uint64(all); ; pages++ {
		r, _ := b.must(RemoveRepository{Ref: appRef}).Value.(RepositoryRemoved)
		now := claims()
		if left-now > dropsFiles+meta.MaxSetFiles {
			t.Fatalf("an entry released %d files", left-now)
		}
		check(b)
		left = now
		if !r.More {
			break
		}
		if s := ask(b, GetSets{Repo: appRef}); s.Changed != b.index || s.Changed <= s.Built {
			t.Fatalf("what lost sets is not to be built: %+v", s)
		}
		changes, _, err := b.Changes(b.index-1, 100)
		if err != nil || !slices.ContainsFunc(changes, func(c feed.Change) bool { return c.Kind == feed.KindRepository && c.Repo == appRef && !c.Deleted }) {
			t.Fatalf("builders are told of %+v, %v", changes, err)
		}
	}
	if pages < all/(dropsFiles+meta.MaxSetFiles) || claims() != 0 {
		t.Errorf("%d pages, %d claims are left", pages, claims())
	}
	if _, err := try(b, GetSets{Repo: appRef}); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("what is left of the sets is %v", err)
	}
	b.refuse(RemoveRepository{Ref: appRef}, meta.ErrNotFound)
	for b.must(CollectBlobs{Limit: 1000}).Value.(CollectResult).More {
		// It looks through what was there before.
	}
	if ask(b, GarbageDue{Now: meta.TimeOf(b.now.Add(keepOldFor + time.Second))}) {
		t.Error("replaced sets of a repository that is gone wait to go")
	}
}

// A page of versions goes on behind its last one, over all packages.
func TestRepositoryVersions(t *testing.T) {
	b := setsBench(t)
	want := 0
	for _, pkg := range []string{"z", "aa", "api"} {
		for i := range 3 {
			p := image(fmt.Sprint(pkg, i))
			p.Version.Package = pkg
			b.must(p)
			want++
		}
	}
	seen := map[string]bool{}
	q := RepositoryVersions{Repo: appRef, Limit: 2}
	for {
		page := ask(b, q)
		if len(page) == 0 {
			break
		}
		for _, v := range page {
			seen[v.Package+" "+v.Name] = true
		}
		last := page[len(page)-1]
		q.AfterPackage, q.AfterVersion = last.Package, last.Name
	}
	if len(seen) != want {
		t.Errorf("%d of %d versions: %v", len(seen), want, seen)
	}
}
