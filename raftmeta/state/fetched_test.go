package state

import (
	"fmt"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

var proxyRef = meta.RepoRef{Tenant: "acme", Name: "cache"}

func proxyRepo() meta.Repository {
	return meta.Repository{
		Ref: proxyRef, Format: "npm", Kind: meta.KindProxy, Class: meta.ClassStandard, Home: "eu", Second: "us",
		Visibility: meta.VisibilityPrivate, Upstream: &meta.Upstream{URL: "https://registry.example/"},
	}
}

// fetchedBytes records content that came from path.
func fetchedBytes(path, content string) RecordFetched {
	blob := linkInto(proxyRef, content, "eu-1")
	return RecordFetched{
		Fetched: meta.Fetched{Repo: proxyRef, Path: path, Digest: blob.Digest, Size: blob.Blob.PlainBytes, MediaType: "text/plain", ETag: `"1"`},
		Blob:    &blob,
	}
}

func fetchedNothing(path string) RecordFetched {
	return RecordFetched{Fetched: meta.Fetched{Repo: proxyRef, Path: path, Status: 404}}
}

func again(c RecordFetched) RecordFetched {
	c.Blob = nil
	return c
}

// levelSixFetched writes the commands of proxies and of sealed secrets.
func levelSixFetched(l *logWriter) {
	repo := proxyRepo()
	l.add("", fetchedNothing("early"))
	l.add("", CreateRepository{Repository: repo})
	from := func(c RecordFetched) RecordFetched {
		c.Blob.Server = "eu-8"
		return c
	}
	l.add("", from(fetchedBytes("left-pad", "one")))
	l.add("", again(fetchedBytes("left-pad", "one")))
	l.add("", from(fetchedBytes("left-pad", "two")))
	l.add("", again(fetchedBytes("right-pad", "nobody has it")))
	l.add("", from(fetchedBytes("copy-of-left-pad", "two")))
	l.add("", fetchedNothing("absent"))
	l.add("", fetchedNothing("absent"))
	l.add("", from(fetchedBytes("absent", "it came")))
	l.add("", fetchedNothing("left-pad"))
	l.add("", fetchedNothing("another"))
	wrong := from(fetchedBytes("left-pad", "one"))
	wrong.Fetched.Repo, wrong.Blob.Repo = appRef, appRef
	l.add("", wrong)
	l.add("", RemoveRepository{Ref: proxyRef})
	l.add("", ForgetFetched{Repo: proxyRef, Limit: 1, Path: "another"})
	l.add("", PutSealed{Sealed: meta.Sealed{Repo: proxyRef, Name: meta.SealedUpstream, Public: []byte("ada"), Seals: map[meta.NodeID][]byte{"eu-8": []byte("sealed")}}})
	l.add("", PutSealed{Base: new(uint64), Sealed: meta.Sealed{Repo: proxyRef, Name: meta.SealedUpstream, Seals: map[meta.NodeID][]byte{"eu-8": []byte("other")}}})
	l.add("", PutSealed{Sealed: meta.Sealed{Repo: proxyRef, Name: "key", Seals: map[meta.NodeID][]byte{"nobody": []byte("sealed")}}})
	l.add("", SealSecret{Repo: proxyRef, Name: meta.SealedUpstream, Version: 1, Node: "eu-8", Seal: []byte("sealed too")})
	l.add("", SealSecret{Repo: proxyRef, Name: meta.SealedUpstream, Version: 2, Node: "eu-8", Seal: []byte("sealed too")})
	l.add("", RemoveSealed{Repo: proxyRef, Name: meta.SealedUpstream})
	l.add("", RemoveSealed{Repo: proxyRef, Name: meta.SealedUpstream})
	l.add("", ForgetFetched{Repo: proxyRef, Limit: 1})
	l.add("", from(fetchedBytes("last", "last")))
}

// examineFetched checks what belongs to what proxies have.
func examineFetched(v *View, k, value []byte, want map[string]bool, use func(meta.RepoRef, digest.Digest) error) error {
	tenant, rest, _ := cutPart(k[1:])
	name, rest, _ := cutPart(rest[1:])
	repo := meta.RepoRef{Tenant: meta.TenantName(tenant), Name: name}
	switch rest[0] {
	case fetchedRecords:
		f, err := decode[meta.Fetched](k, value)
		if err != nil {
			return err
		}
		if string(keyFetched(f.Repo, f.Path, f.Accept)) != string(k) || f.Repo != repo {
			return fmt.Errorf("the record of %s lies under %q", f.Path, k)
		}
		if !f.Absent() {
			return use(f.Repo, f.Digest)
		}
		want[string(keyAbsence(f))] = true
		if n, err := number(v, inFetchedOf(repo, fetchedCount)); err != nil || n == 0 {
			return fmt.Errorf("%s has absences and counts none: %v", repo, err)
		}
	case fetchedCount:
		have := uint64(0)
		for _, err := range v.scan(within(inFetchedOf(repo, fetchedAbsences))) {
			if err != nil {
				return err
			}
			have++
		}
		n, err := number(v, k)
		if err != nil || n != have || n == 0 {
			return fmt.Errorf("%s counts %d absences of %d: %v", repo, n, have, err)
		}
	}
	return nil
}

func newProxyBench(t testing.TB) *bench {
	b := newBench(t)
	b.must(SetLevel{Level: proxyLevel})
	b.must(CreateRepository{Repository: proxyRepo()})
	return b
}

func proxyClaims(b *bench, content string) uint64 {
	b.Helper()
	return ask(b, GetBlob{Repo: proxyRef, Digest: blob(content).Digest}).Link.Claims
}

// TestFetchedClaims: what a record names stays, what a newer one replaced expires as
// anything that nobody uses.
func TestFetchedClaims(t *testing.T) {
	b := newProxyBench(t)
	b.must(fetchedBytes("left-pad", "one"))
	first := ask(b, GetFetched{Repo: proxyRef, Path: "left-pad"})
	if first.Blob.Digest != blob("one").Digest || first.Fetched.Stored == 0 || first.Fetched.Checked != first.Fetched.Stored {
		t.Fatalf("%+v", first)
	}
	if n := len(ask(b, Replicas{Root: blob("one").Root})); n != 3 { // the copy, and demands of eu and us
		t.Errorf("%d records of copies", n)
	}
	b.now = b.now.Add(time.Minute)
	b.must(again(fetchedBytes("left-pad", "one")))
	second := ask(b, GetFetched{Repo: proxyRef, Path: "left-pad"})
	if second.Fetched.Checked <= first.Fetched.Checked || second.Fetched.Stored != first.Fetched.Stored || second.Fetched.Revision != first.Fetched.Revision {
		t.Errorf("confirmed: %+v, was %+v", second.Fetched, first.Fetched)
	}
	b.must(fetchedBytes("copy", "one"))
	if n := proxyClaims(b, "one"); n != 2 {
		t.Errorf("%d claims", n)
	}
	b.must(fetchedBytes("left-pad", "two"))
	b.must(fetchedNothing("copy"))
	if n := proxyClaims(b, "one"); n != 0 {
		t.Errorf("%d claims of what was replaced", n)
	}
	check(b)
	b.now = b.now.Add(48 * time.Hour)
	b.must(ExpireUploads{Before: meta.TimeOf(b.now), Limit: 100})
	b.must(CollectBlobs{Limit: 1000})
	if n := proxyClaims(b, "two"); n != 1 {
		t.Errorf("%d claims of what is kept", n)
	}
	check(b)
	b.refuse(RemoveRepository{Ref: proxyRef}, meta.ErrConflict, "fetched")
	for more := true; more; {
		r := b.must(ForgetFetched{Repo: proxyRef, Limit: 1}).Value.(ForgottenFetched)
		more = r.More
	}
	if n := proxyClaims(b, "two"); n != 0 {
		t.Errorf("%d claims of what was forgotten", n)
	}
	check(b)
	b.must(RemoveRepository{Ref: proxyRef})
	check(b)
}

// TestAbsencesAreBounded: names that strangers make up do not stay.
func TestAbsencesAreBounded(t *testing.T) {
	b := newProxyBench(t)
	count := func() int { return len(ask(b, ListFetched{Repo: proxyRef, Page: Page{Limit: 10_000}})) }
	for i := range 100 {
		b.must(fetchedNothing(fmt.Sprint("a", i)))
	}
	b.must(fetchedNothing("a7")) // once more is one
	if n := count(); n != 100 {
		t.Fatalf("%d records", n)
	}
	check(b)
	b.now = b.now.Add(absenceKept + time.Second)
	for i := range 50 {
		b.must(fetchedNothing(fmt.Sprint("b", i)))
	}
	if n := count(); n != 50 {
		t.Errorf("%d records are left", n)
	}
	check(b)
}

func TestFetchedIsOfProxies(t *testing.T) {
	b := newProxyBench(t)
	c := fetchedBytes("x", "x")
	c.Fetched.Repo, c.Blob.Repo = appRef, appRef
	b.refuse(c, meta.ErrConflict, "hosted")
	c = fetchedBytes("x", "x")
	b.refuse(again(c), meta.ErrInvalid, "not in the repository")
	c.Fetched.Digest = blob("y").Digest
	b.refuse(c, meta.ErrInvalid, "another")
	for _, path := range []string{"../x", "a/../b", "ftp://h/x", "https://user:pw@h/x", "//h/x", "a b", "x#y", "a/%2e%2e/b", "http:x"} {
		c = fetchedNothing(path)
		b.refuse(c, meta.ErrInvalid)
	}
	for _, path := range []string{"", "@acme%2fdemo", "simple/left/", "https://files.example/a/b.whl", "a?b=c%20d", "%21acme/x/@v/list"} {
		b.must(fetchedNothing(path))
	}
	check(b)
}

func TestSealedSecrets(t *testing.T) {
	b := newProxyBench(t)
	secret := meta.Sealed{Repo: proxyRef, Name: meta.SealedUpstream, Seals: map[meta.NodeID][]byte{"eu-1": []byte("a"), "us-1": []byte("b")}}
	none, one := uint64(0), uint64(1)
	b.must(PutSealed{Sealed: secret, Base: &none})
	b.refuse(PutSealed{Sealed: secret, Base: &none}, meta.ErrConflict, "version 1")
	if lacks := ask(b, ListSealed{Lacks: "eu-2"}); len(lacks) != 1 {
		t.Errorf("%d secrets that eu-2 lacks", len(lacks))
	}
	b.must(RemoveNode{ID: "us-1", Force: true})
	b.must(SealSecret{Repo: proxyRef, Name: meta.SealedUpstream, Version: 1, Node: "eu-2", Seal: []byte("c")})
	if s := ask(b, GetSealed{Repo: proxyRef, Name: meta.SealedUpstream}); len(s.Seals) != 2 || string(s.Seals["eu-2"]) != "c" || s.SetBy != "user:ada" {
		t.Errorf("%+v", s)
	}
	b.must(PutSealed{Sealed: meta.Sealed{Repo: proxyRef, Name: meta.SealedUpstream, Seals: map[meta.NodeID][]byte{"eu-1": []byte("d")}}, Base: &one})
	b.refuse(SealSecret{Repo: proxyRef, Name: meta.SealedUpstream, Version: 1, Node: "eu-2", Seal: []byte("c")}, meta.ErrConflict)
	b.must(RemoveRepository{Ref: proxyRef})
	if left := ask(b, ListSealed{}); len(left) != 0 {
		t.Errorf("%d secrets of a repository that is gone", len(left))
	}
	check(b)
}
