package state

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

var releaseRef = meta.RepoRef{Tenant: "acme", Name: "release"}

// newPromotions returns a bench at level 6 with acme/app and acme/release, both of images.
func newPromotions(t testing.TB) *bench {
	b := newBench(t)
	b.must(SetLevel{Level: 6})
	release := app()
	release.Ref = releaseRef
	b.must(CreateRepository{Repository: release})
	return b
}

func promotee(manifest string, aliases ...string) Promotee {
	return Promotee{From: appRef.Name, Package: "api", Version: string(blob(manifest).Digest), Aliases: aliases}
}

func promote(items ...Promotee) Promote {
	return Promote{To: releaseRef, Items: items, Reason: "it passed"}
}

// TestPromote: an index with its image, signature and staged references is there after one
// entry, readable, owed, with where it came from, and outlives its source.
func TestPromote(t *testing.T) {
	b := newPromotions(t)
	b.must(link("layer", "eu-1"))
	b.must(StageReferences{Repo: appRef, Draft: "long", References: []meta.Reference{{Digest: blob("layer").Digest, Size: 5}}})
	child := image("child")
	child.Version.Draft, child.Version.Labels = "long", meta.Labels{"k": "v"}
	b.must(child)
	index := image("index")
	index.Version.References = []meta.Reference{{Digest: blob("child").Digest, Version: true}}
	b.must(tagged(index, "1.4"))
	signature := image("sig")
	signature.Version.Subject, signature.Version.ArtifactType = blob("index").Digest, "application/sig"
	b.must(signature)
	published := ask(b, GetVersion{Repo: appRef, Package: "api", Version: string(blob("index").Digest)})

	b.refuse(promote(promotee("index")), meta.ErrInvalid, "not in the package")
	check(b)
	if _, err := try(b, GetPackage{Repo: releaseRef, Package: "api"}); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("a refused promotion leaves %v", err)
	}
	r := b.doAs(Origin{Principal: "robot:acme/release", TokenID: "", Time: meta.TimeOf(b.now)},
		promote(promotee("child"), promotee("index", "1.4", "latest"), promotee("sig")))
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	if got := r.Value.(Promoted).Versions; len(got) != 3 || !got[0].Created || got[1].Digest != blob("index").Digest {
		t.Errorf("%+v", got)
	}
	check(b)
	for _, alias := range []string{"1.4", "latest"} {
		v := ask(b, Resolve{Repo: releaseRef, Package: "api", Alias: alias}).Version
		p := v.Promotion
		if v.Digest != blob("index").Digest || v.CreatedBy != "robot:acme/release" || p == nil || *p != (meta.Promotion{
			From: appRef, Revision: published.Revision, CreatedBy: "user:ada", PublishTime: published.PublishTime,
			By: "robot:acme/release", At: meta.TimeOf(b.now), Reason: "it passed",
		}) {
			t.Errorf("%s: %+v, %+v", alias, v, p)
		}
	}
	if got := ask(b, Attachments{Repo: releaseRef, Package: "api", Subject: blob("index").Digest}); len(got) != 1 {
		t.Errorf("attachments %+v", got)
	}
	copied := ask(b, GetVersion{Repo: releaseRef, Package: "api", Version: string(blob("child").Digest)})
	if refs := ask(b, ListReferences{Repo: releaseRef, Package: "api", Version: copied.Name}); len(refs) != 1 || refs[0].Digest != blob("layer").Digest || copied.Labels["k"] != "v" {
		t.Errorf("references %+v of %+v", refs, copied)
	}
	// Again it changes nothing but the aliases.
	r = b.must(promote(promotee("child"), promotee("index", "newest"), promotee("sig")))
	if got := r.Value.(Promoted).Versions; got[0].Created || got[1].Created || ask(b, Resolve{Repo: releaseRef, Package: "api", Alias: "newest"}).Version.Name != string(blob("index").Digest) {
		t.Errorf("again: %+v", got)
	}
	for _, manifest := range []string{"index", "child", "sig"} {
		b.delete(appRef, "api", string(blob(manifest).Digest))
	}
	check(b)
	for _, content := range []string{"layer", "index", "child", "sig"} {
		if a := ask(b, GetBlob{Repo: releaseRef, Digest: blob(content).Digest}); a.Link.Claims == 0 {
			t.Errorf("%s is not used", content)
		}
	}
	for _, manifest := range []string{"index", "child", "sig"} {
		b.delete(releaseRef, "api", string(blob(manifest).Digest))
	}
	check(b)
}

// TestPromoteRefusals: all of a promotion or nothing.
func TestPromoteRefusals(t *testing.T) {
	b := newPromotions(t)
	b.must(CreateTenant{Name: "other"})
	for _, r := range []meta.Repository{npmRepo("npm", meta.KindHosted), npmRepo("proxy", meta.KindProxy), npmRepo("all", meta.KindGroup, "npm")} {
		b.must(CreateRepository{Repository: r})
	}
	for _, manifest := range []string{"m1", "m2", "stolen"} {
		b.must(image(manifest))
	}
	staged := image("staged")
	staged.Version.State = meta.StateStaged
	b.must(staged)
	b.must(QuarantineVersion{Repo: appRef, Package: "api", Version: string(blob("stolen").Digest), Reason: "odd"})
	b.must(b.tarball("api", "1.0", "tarball"))
	yes := true
	b.must(SetRepository{Ref: releaseRef, Immutable: &yes})
	b.must(promote(promotee("m1", "1")))

	stale, tarball, other := promotee("m2"), promotee("m2"), promotee("m2")
	stale.Revision = 1
	tarball.From, tarball.Version = "npm", "1.0"
	other.From = "release"
	for name, test := range map[string]struct {
		c    Promote
		kind error
		word string
	}{
		"quarantine":         {promote(promotee("m2"), promotee("stolen")), meta.ErrDenied, "quarantine"},
		"staged":             {promote(promotee("m2"), promotee("staged")), meta.ErrConflict, "staged"},
		"it changed":         {promote(stale), meta.ErrConflict, "changed"},
		"unknown":            {promote(promotee("m2"), promotee("m3")), meta.ErrNotFound, ""},
		"another format":     {promote(tarball), meta.ErrConflict, "npm"},
		"an alias that is":   {promote(promotee("m2", "1")), meta.ErrExists, "immutable"},
		"to itself":          {promote(other), meta.ErrInvalid, "own"},
		"nothing":            {promote(), meta.ErrInvalid, ""},
		"into a proxy":       {Promote{To: npmRef("proxy"), Items: []Promotee{tarball}}, meta.ErrConflict, "takes no writes"},
		"into a group":       {Promote{To: npmRef("all"), Items: []Promotee{tarball}}, meta.ErrInvalid, ""},
		"a long reason":      {Promote{To: releaseRef, Items: []Promotee{promotee("m2")}, Reason: strings.Repeat("x", meta.MaxReasonBytes+1)}, meta.ErrInvalid, "reason"},
		"into another's":     {Promote{To: meta.RepoRef{Tenant: "other", Name: "release"}, Items: []Promotee{promotee("m2")}}, meta.ErrNotFound, ""},
		"too many at a time": {promote(make([]Promotee, MaxPromoted+1)...), meta.ErrInvalid, ""},
	} {
		err := b.do(test.c).Err
		if name == "into a group" {
			test.kind = meta.ErrConflict
		}
		if !errors.Is(err, test.kind) || !strings.Contains(err.Error(), test.word) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := try(b, GetVersion{Repo: releaseRef, Package: "api", Version: string(blob("m2").Digest)}); !errors.Is(err, meta.ErrNotFound) {
			t.Fatalf("%s left something: %v", name, err)
		}
	}
	check(b)
}

// TestPromoteOverOtherContent: what is under a name at the target, or was, stays.
func TestPromoteOverOtherContent(t *testing.T) {
	b := newPackages(t)
	b.must(CreateRepository{Repository: npmRepo("release", meta.KindHosted)})
	b.must(b.tarball("p", "1.0", "dev's"))
	b.must(b.tarballInto(releaseRef, "p", "1.0", "ours"))
	c := Promote{To: releaseRef, Items: []Promotee{{From: "npm", Package: "p", Version: "1.0"}}}
	b.refuse(c, meta.ErrExists, "digest")
	b.delete(releaseRef, "p", "1.0")
	b.refuse(c, meta.ErrExists, "deleted")
	b.must(b.tarballInto(releaseRef, "p", "1.0", "ours"))
	// Marks and spelling come along.
	p := b.tarball("my-pkg", "1.0", "spelled")
	p.Spelling = "My_Pkg"
	b.must(p)
	b.must(MarkVersions{Repo: npmRef("npm"), Package: "my-pkg", Versions: []string{"1.0"}, Marking: meta.Marking{Deprecated: new(true), Reason: "old"}})
	c.Items[0].Package = "my-pkg"
	b.must(c)
	if v := ask(b, GetVersion{Repo: releaseRef, Package: "my-pkg", Version: "1.0"}); v.Marks.Deprecated == nil || v.Marks.Deprecated.Reason != "old" {
		t.Errorf("%+v", v.Marks)
	}
	if p := ask(b, GetPackage{Repo: releaseRef, Package: "my-pkg"}); p.Spelling != "My_Pkg" || p.Versions != 1 {
		t.Errorf("%+v", p)
	}
	check(b)
}

// TestPromoteOpen: an open version is promoted as it is, and again when it has grown.
func TestPromoteOpen(t *testing.T) {
	b := newPackages(t)
	b.must(CreateRepository{Repository: npmRepo("release", meta.KindHosted)})
	publish := func(path, content string) {
		p := b.tarball("w", "1.0", content)
		p.Version.State, p.Version.Digest, p.Version.Size, p.Files[0].Path = meta.StateOpen, "", 0, path
		b.must(p)
	}
	c := Promote{To: releaseRef, Items: []Promotee{{From: "npm", Package: "w", Version: "1.0"}}}
	state := func() (meta.VersionState, int64, int) {
		v := ask(b, GetVersion{Repo: releaseRef, Package: "w", Version: "1.0"})
		return v.State, v.Size, len(ask(b, ListFiles{Repo: releaseRef, Package: "w", Version: "1.0"}))
	}
	publish("a.whl", "one")
	b.must(c)
	if s, size, files := state(); s != meta.StateOpen || size != 3 || files != 1 {
		t.Errorf("%s, %d bytes, %d files", s, size, files)
	}
	publish("b.whl", "three")
	b.must(c)
	b.must(c)
	b.must(CloseVersion{Repo: npmRef("npm"), Package: "w", Version: "1.0"})
	b.must(c)
	if s, size, files := state(); s != meta.StateClosed || size != 8 || files != 2 {
		t.Errorf("%s, %d bytes, %d files", s, size, files)
	}
	check(b)
}

// TestPromotedWithTheStolen: a compromise reaches what was promoted from what it found, and
// from that, but nothing else.
func TestPromotedWithTheStolen(t *testing.T) {
	b := newPromotions(t)
	final := app()
	final.Ref.Name = "final"
	b.must(CreateRepository{Repository: final})
	as := func(principal, token string, c Command) {
		t.Helper()
		if r := b.doAs(Origin{Principal: principal, TokenID: token, Time: meta.TimeOf(b.now)}, c); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	as("admin:first", "stolen", image("stolen"))
	as("user:ada", "", image("sound"))
	b.must(promote(promotee("stolen", "1"), promotee("sound", "2")))
	onward := promotee("stolen")
	onward.From = "release"
	b.must(Promote{To: final.Ref, Items: []Promotee{onward}})
	b.must(OpenCompromise{ID: "c1", Credential: "stolen", Reason: "it leaked"})
	for range 10 {
		b.doAs(Origin{Principal: "node:eu-1", Time: meta.TimeOf(b.now)}, AdvanceCompromise{ID: "c1", Limit: 100})
	}
	for _, ref := range []meta.RepoRef{appRef, releaseRef, final.Ref} {
		if v := ask(b, GetVersion{Repo: ref, Package: "api", Version: string(blob("stolen").Digest)}); v.Quarantine == nil || v.Quarantine.Compromise != "c1" {
			t.Errorf("in %s it is free", ref)
		}
	}
	if v := ask(b, GetVersion{Repo: releaseRef, Package: "api", Version: string(blob("sound").Digest)}); v.Quarantine != nil {
		t.Error("what is sound is in quarantine")
	}
	if c := ask(b, GetCompromise{ID: "c1"}); c.Quarantined != 3 {
		t.Errorf("%+v", c)
	}
	check(b)
}

// TestPromotedFromWhatIsGone: who deletes what was stolen does not hide what was promoted
// from it.
func TestPromotedFromWhatIsGone(t *testing.T) {
	b := newPromotions(t)
	for _, c := range []Command{image("stolen"), image("other")} {
		if r := b.doAs(Origin{Principal: "admin:first", TokenID: "stolen", Time: meta.TimeOf(b.now)}, c); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	b.must(promote(promotee("stolen", "1")))
	for _, manifest := range []string{"stolen", "other"} {
		b.delete(appRef, "api", string(blob(manifest).Digest))
	}
	b.must(OpenCompromise{ID: "c1", Credential: "stolen", Reason: "it leaked"})
	for range 10 {
		b.doAs(Origin{Principal: "node:eu-1", Time: meta.TimeOf(b.now)}, AdvanceCompromise{ID: "c1", Limit: 100})
	}
	if v := ask(b, GetVersion{Repo: releaseRef, Package: "api", Version: string(blob("stolen").Digest)}); v.Quarantine == nil || v.Quarantine.Compromise != "c1" {
		t.Error("what was promoted is free")
	}
	gone := 0
	for _, f := range ask(b, ListFindings{ID: "c1"}) {
		if f.Outcome == meta.OutcomeGone {
			gone++
		}
	}
	if c := ask(b, GetCompromise{ID: "c1"}); c.Quarantined != 1 || gone != 2 {
		t.Errorf("%d are gone, %+v", gone, c)
	}
	check(b)
}

// TestPromoteModel promotes, deletes and publishes at random: what is at the target is what
// was promoted, and all counts hold.
func TestPromoteModel(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		b := newPromotions(t)
		b.must(link("layer", "eu-1"))
		at := map[meta.RepoRef]map[string]bool{appRef: {}, releaseRef: {}}
		for range rapid.IntRange(1, 25).Draw(r, "steps") {
			manifest := rapid.SampledFrom([]string{"m1", "m2", "m3"}).Draw(r, "manifest")
			switch rapid.IntRange(0, 3).Draw(r, "command") {
			case 0:
				b.must(image(manifest, "layer"))
				at[appRef][manifest] = true
			case 1, 2:
				other := rapid.SampledFrom([]string{"m1", "m2", "m3"}).Draw(r, "other")
				items := []Promotee{promotee(manifest, "stable")}
				if other != manifest {
					items = append(items, promotee(other))
				}
				err := b.do(promote(items...)).Err
				if want := at[appRef][manifest] && at[appRef][other]; (err == nil) != want {
					r.Fatalf("promote %s and %s: %v", manifest, other, err)
				}
				if err == nil {
					at[releaseRef][manifest], at[releaseRef][other] = true, true
				}
			case 3:
				ref := rapid.SampledFrom([]meta.RepoRef{appRef, releaseRef}).Draw(r, "repository")
				err := b.do(DeleteVersion{Repo: ref, Package: "api", Version: string(blob(manifest).Digest)}).Err
				if (err == nil) != at[ref][manifest] {
					r.Fatalf("delete %s of %s: %v", manifest, ref, err)
				}
				delete(at[ref], manifest)
			}
			check(b)
		}
		for ref, manifests := range at {
			for _, manifest := range []string{"m1", "m2", "m3"} {
				_, err := try(b, GetVersion{Repo: ref, Package: "api", Version: string(blob(manifest).Digest)})
				if (err == nil) != manifests[manifest] {
					r.Fatalf("%s in %s: %v", manifest, ref, err)
				}
			}
		}
	})
}

// TestPromoteMany: as many as one promotion may, in one entry that fits the log.
func TestPromoteMany(t *testing.T) {
	b := newPromotions(t)
	var items []Promotee
	for i := range MaxPromoted {
		manifest := fmt.Sprint("m", i)
		b.must(image(manifest))
		items = append(items, promotee(manifest))
		items[i].Revision = ask(b, GetVersion{Repo: appRef, Package: "api", Version: items[i].Version}).Revision
	}
	if got := b.must(promote(items...)).Value.(Promoted).Versions; len(got) != MaxPromoted || got[0].Digest != digest.Digest(items[0].Version) {
		t.Errorf("%d versions", len(got))
	}
	check(b)
}

// TestPromoteFiles: as many files as one promotion may have; one more is refused, and of it
// nothing is there.
func TestPromoteFiles(t *testing.T) {
	b, items := withFiles(t, maxPromotedUses+1)
	b.refuse(promote(items...), meta.ErrTooLarge, "promote fewer versions")
	if _, err := try(b, GetPackage{Repo: releaseRef, Package: "api"}); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("what is left of it is %v", err)
	}
	b.must(promote(items[:len(items)-1]...))
	b.must(promote(items[len(items)-1:]...))
	check(b)
}
