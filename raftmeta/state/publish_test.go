package state

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

func TestPublishIsVisibleAtOnce(t *testing.T) {
	b := newBench(t)
	b.must(link("layer", "eu-1"))
	r := b.must(tagged(image("m1", "layer"), "1", "latest"))
	if got := r.Value.(PublishResult); !got.Created || got.Revision != b.index {
		t.Errorf("published %+v at %d", got, b.index)
	}
	a := ask(b, Resolve{Repo: appRef, Package: "api", Alias: "latest"})
	if a.Version.Digest != blob("m1").Digest || a.Alias.MovedBy != "user:ada" || a.Alias.MovedAt != meta.TimeOf(b.now) || a.Version.CreatedBy != "user:ada" {
		t.Errorf("latest is %+v", a)
	}
	if got := ask(b, Resolve{Repo: appRef, Package: "api", Alias: a.Version.Name}); got.Alias.Name != "" || got.Version.Name != a.Version.Name {
		t.Errorf("by its own name it is %+v", got)
	}
	if got := ask(b, GetBlob{Repo: appRef, Digest: blob("layer").Digest}); got.Link.Claims != 1 || got.Blob.Root != blob("layer").Root {
		t.Errorf("layer is %+v", got)
	}
	if got := ask(b, ListAliases{Repo: appRef, Package: "api"}); len(got) != 2 || got[0].Name != "1" || got[1].Name != "latest" {
		t.Errorf("aliases are %+v", got)
	}
	if got := ask(b, GetPackage{Repo: appRef, Package: "api"}); got.Versions != 1 || got.Revision != b.index {
		t.Errorf("package is %+v", got)
	}
	if got := ask(b, ListPackages{Repo: appRef}); len(got) != 1 || got[0].Name != "api" {
		t.Errorf("packages are %+v", got)
	}
	if got := ask(b, ListFiles{Repo: appRef, Package: "api", Version: a.Version.Name}); len(got) != 1 || got[0].Digest != a.Version.Digest {
		t.Errorf("files are %+v", got)
	}
	check(b)
}

func TestRefusedPublishLeavesNothing(t *testing.T) {
	b := newBench(t)
	_, before, err := b.Hash(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	lost := blob("lost").Digest
	b.refuse(tagged(image("m1", "lost"), "latest"), meta.ErrInvalid, string(lost), "upload it first")
	missing(b, GetBlob{Repo: appRef, Digest: blob("m1").Digest})
	missing(b, GetPackage{Repo: appRef, Package: "api"})
	_, after, err := b.Hash(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if before != after {
		t.Error("the refused publish changed the state")
	}
	if changes, _, err := b.Changes(b.index-1, 10); err != nil || len(changes) != 0 {
		t.Errorf("the refused publish told %v, %v", changes, err)
	}
}

func TestRefusalWithinABatchKeepsTheOthers(t *testing.T) {
	b := newBench(t)
	var entries []Entry
	for i, c := range []Command{image("m1"), image("m2", "lost"), tagged(image("m3"), "latest")} {
		command, err := Encode(Origin{Principal: "user:ada", RequestID: fmt.Sprint(i)}, c)
		if err != nil {
			t.Fatal(err)
		}
		b.index++
		entries = append(entries, Entry{Index: b.index, Term: 1, Command: command})
	}
	results, err := b.ApplyBatch(entries)
	if err != nil {
		t.Fatal(err)
	}
	if results[0].Err != nil || results[1].Err == nil || results[2].Err != nil {
		t.Fatalf("results are %+v", results)
	}
	if got := ask(b, ListVersions{Repo: appRef, Package: "api"}); len(got) != 2 {
		t.Errorf("versions are %+v", got)
	}
	missing(b, GetBlob{Repo: appRef, Digest: blob("m2").Digest})
	check(b)
}

func TestVersionIsCreatedOnce(t *testing.T) {
	b := newBench(t)
	b.must(link("a", "eu-1"))
	b.must(link("b", "eu-1"))
	release := func(content string) Publish {
		return Publish{
			Version: meta.Version{Repo: appRef, Package: "lib", Name: "1.0", Digest: blob(content).Digest, State: meta.StateClosed},
			Files:   []meta.File{{Path: "lib.tgz", Digest: blob(content).Digest}},
		}
	}
	b.must(release("a"))
	before := b.index
	r := b.must(release("a"))
	if got := r.Value.(PublishResult); got.Created || got.Revision != before {
		t.Errorf("an identical publish did %+v", got)
	}
	b.refuse(release("b"), meta.ErrExists, "1.0", string(blob("a").Digest))
	more := release("a")
	more.Files = append(more.Files, meta.File{Path: "more.txt", Digest: blob("b").Digest})
	b.refuse(more, meta.ErrExists, "closed", "more.txt")

	b.must(DeleteVersion{Repo: appRef, Package: "lib", Version: "1.0"})
	missing(b, GetVersion{Repo: appRef, Package: "lib", Version: "1.0"})
	b.refuse(release("b"), meta.ErrExists, "deleted")
	b.must(release("a"))
	check(b)
}

func TestOpenVersionGainsFiles(t *testing.T) {
	b := newBench(t)
	for _, content := range []string{"whl", "sdist", "other"} {
		b.must(link(content, "eu-1"))
	}
	upload := func(path, content string, state meta.VersionState) Publish {
		return Publish{
			Version: meta.Version{Repo: appRef, Package: "py", Name: "1.0", State: state},
			Files:   []meta.File{{Path: path, Digest: blob(content).Digest}},
		}
	}
	b.must(upload("a.whl", "whl", meta.StateOpen))
	b.must(upload("a.tar.gz", "sdist", meta.StateOpen))
	b.refuse(upload("a.whl", "other", meta.StateOpen), meta.ErrExists, "a.whl")
	if got := ask(b, ListFiles{Repo: appRef, Package: "py", Version: "1.0"}); len(got) != 2 {
		t.Errorf("files are %+v", got)
	}
	b.must(upload("a.whl", "whl", meta.StateClosed))
	b.refuse(upload("b.whl", "other", meta.StateOpen), meta.ErrExists, "closed")
	check(b)
	// A version without a digest of its own has nothing to prove that it is the same.
	b.must(DeleteVersion{Repo: appRef, Package: "py", Version: "1.0"})
	b.refuse(upload("a.whl", "whl", meta.StateOpen), meta.ErrExists, "deleted")
	check(b)
}

func TestBaseRevision(t *testing.T) {
	b := newBench(t)
	based := func(manifest string, base uint64) Publish {
		p := image(manifest)
		p.Base = &base
		return p
	}
	b.must(based("m1", 0))
	at := b.index
	b.refuse(based("m2", at-1), meta.ErrConflict, "read it again")
	b.must(based("m2", at))
}

func TestAliasHistory(t *testing.T) {
	b := newBench(t)
	b.must(tagged(image("m1"), "latest"))
	b.now = b.now.Add(time.Second)
	b.must(tagged(image("m2"), "latest"))
	b.must(tagged(image("m2"), "latest")) // No move.
	b.must(DeleteAlias{Repo: appRef, Package: "api", Name: "latest"})
	missing(b, Resolve{Repo: appRef, Package: "api", Alias: "latest"})
	b.refuse(DeleteAlias{Repo: appRef, Package: "api", Name: "latest"}, meta.ErrNotFound)
	b.must(MoveAlias{Repo: appRef, Package: "api", Name: "latest", Version: string(blob("m1").Digest)})

	history := ask(b, AliasHistory{Repo: appRef, Package: "api", Alias: "latest"})
	var moves []string
	for _, a := range history {
		name := map[digest.Digest]string{blob("m1").Digest: "m1", blob("m2").Digest: "m2"}[a.Digest]
		moves = append(moves, fmt.Sprint(a.Move, name, a.Deleted, a.MovedBy))
	}
	want := []string{"4m1falseuser:ada", "3m2trueuser:ada", "2m2falseuser:ada", "1m1falseuser:ada"}
	if strings.Join(moves, " ") != strings.Join(want, " ") {
		t.Errorf("history is %v, want %v", moves, want)
	}
	page := ask(b, AliasHistory{Repo: appRef, Package: "api", Alias: "latest", Page: Page{After: "3", Limit: 1}})
	if len(page) != 1 || page[0].Move != 2 {
		t.Errorf("the page behind move 3 is %+v", page)
	}
	check(b)
}

func TestImmutableRepository(t *testing.T) {
	b := newBench(t)
	yes, no := true, false
	b.must(tagged(image("m1"), "1"))
	b.must(SetRepository{Ref: appRef, Immutable: &yes})
	b.must(tagged(image("m1"), "1"))
	b.refuse(tagged(image("m2"), "1"), meta.ErrExists, "immutable", "new alias")
	b.must(tagged(image("m2"), "2"))
	b.refuse(MoveAlias{Repo: appRef, Package: "api", Name: "1", Version: string(blob("m2").Digest)}, meta.ErrExists)
	b.refuse(DeleteAlias{Repo: appRef, Package: "api", Name: "1"}, meta.ErrDenied, "immutable")
	// Aliases go with their version, and leave a tombstone.
	b.must(DeleteVersion{Repo: appRef, Package: "api", Version: string(blob("m1").Digest)})
	b.refuse(MoveAlias{Repo: appRef, Package: "api", Name: "1", Version: string(blob("m2").Digest)}, meta.ErrExists)
	b.must(tagged(image("m1"), "1"))
	b.must(SetRepository{Ref: appRef, Immutable: &no})
	b.must(tagged(image("m2"), "1"))
	check(b)
}

func TestAttachmentsMayComeFirst(t *testing.T) {
	b := newBench(t)
	signature := func(manifest, artifact string) Publish {
		p := image(manifest)
		p.Version.Subject, p.Version.ArtifactType = blob("m1").Digest, artifact
		return p
	}
	b.must(signature("sig", "application/sig"))
	b.must(image("m1"))
	b.must(signature("sbom", "application/sbom"))
	of := func(artifact string) int {
		return len(ask(b, Attachments{Repo: appRef, Package: "api", Subject: blob("m1").Digest, ArtifactType: artifact}))
	}
	if of("") != 2 || of("application/sig") != 1 || of("none") != 0 {
		t.Errorf("attachments: %d, %d, %d", of(""), of("application/sig"), of("none"))
	}
	b.must(DeleteVersion{Repo: appRef, Package: "api", Version: string(blob("sig").Digest)})
	if of("") != 1 {
		t.Errorf("after deletion: %d", of(""))
	}
	check(b)
}

func TestDeleteVersionReleases(t *testing.T) {
	b := newBench(t)
	b.must(link("layer", "eu-1"))
	b.must(tagged(image("m1", "layer"), "1", "latest"))
	b.must(image("m2", "layer"))
	layer := blob("layer").Digest
	b.refuse(UnlinkBlob{Repo: appRef, Digest: layer}, meta.ErrConflict, "delete them first")
	b.must(DeleteVersion{Repo: appRef, Package: "api", Version: string(blob("m1").Digest)})
	if got := ask(b, GetBlob{Repo: appRef, Digest: layer}); got.Link.Claims != 1 {
		t.Errorf("claims are %d", got.Link.Claims)
	}
	if got := ask(b, ListAliases{Repo: appRef, Package: "api"}); len(got) != 0 {
		t.Errorf("aliases are %+v", got)
	}
	if got := ask(b, AliasHistory{Repo: appRef, Package: "api", Alias: "latest"}); len(got) != 2 || !got[0].Deleted {
		t.Errorf("history is %+v", got)
	}
	b.must(DeleteVersion{Repo: appRef, Package: "api", Version: string(blob("m2").Digest)})
	missing(b, GetPackage{Repo: appRef, Package: "api"})
	b.must(UnlinkBlob{Repo: appRef, Digest: layer})
	missing(b, GetBlob{Repo: appRef, Digest: layer})
	b.must(RemoveRepository{Ref: appRef})
	check(b)
}

// The digest of a version vouches for its document only: under the path of another
// file no other bytes come back either.
func TestDeletedFilesComeBackTheSame(t *testing.T) {
	b := newBench(t)
	for _, content := range []string{"x", "y", "z"} {
		b.must(link(content, "eu-1"))
	}
	with := func(files ...string) Publish {
		p := image("m1")
		for i := 0; i < len(files); i += 2 {
			p.Files = append(p.Files, meta.File{Path: files[i], Digest: blob(files[i+1]).Digest})
		}
		return p
	}
	gone := DeleteVersion{Repo: appRef, Package: "api", Version: with().Version.Name}
	b.must(with("a", "x", "b", "y"))
	b.must(gone)
	b.refuse(with("a", "z", "b", "y"), meta.ErrExists, "deleted")
	b.refuse(with("a", "x"), meta.ErrExists, "deleted")
	b.refuse(with(), meta.ErrExists, "deleted")
	b.must(with("b", "y", "a", "x"))
	b.must(gone)
	b.refuse(with("a", "y", "b", "x"), meta.ErrExists, "deleted")
	check(b)
}

func TestIndexNeedsItsVersions(t *testing.T) {
	b := newBench(t)
	index := image("index")
	index.Version.References = []meta.Reference{{Digest: blob("m1").Digest, Version: true}}
	b.refuse(index, meta.ErrInvalid, string(blob("m1").Digest))
	b.must(image("m1"))
	b.must(index)
	check(b)
}

func TestStagedReferences(t *testing.T) {
	b := newBench(t)
	var parts [2][]meta.Reference
	for i := range parts {
		for j := range 3 {
			content := fmt.Sprint("layer", i, j)
			b.must(link(content, "eu-1"))
			parts[i] = append(parts[i], meta.Reference{Digest: blob(content).Digest, Size: 6})
		}
	}
	stage := func(part uint32, refs []meta.Reference) StageReferences {
		return StageReferences{Repo: appRef, Draft: "d1", Part: part, References: refs}
	}
	b.must(stage(0, parts[0]))
	b.must(stage(0, parts[0]))
	b.refuse(stage(0, parts[1]), meta.ErrExists)
	b.refuse(stage(2, parts[1]), meta.ErrConflict, "part 1")
	b.must(stage(1, parts[1]))
	p := image("big")
	p.Version.Draft = "d2"
	b.refuse(p, meta.ErrInvalid, "d2")
	p.Version.Draft = "d1"
	b.must(p)
	b.refuse(stage(2, parts[1]), meta.ErrConflict)

	all := ask(b, ListReferences{Repo: appRef, Package: "api", Version: p.Version.Name})
	if len(all) != 6 || all[3] != parts[1][0] {
		t.Errorf("references are %+v", all)
	}
	page := ask(b, ListReferences{Repo: appRef, Package: "api", Version: p.Version.Name, Page: Page{After: "4", Limit: 1}})
	if len(page) != 1 || page[0] != all[4] {
		t.Errorf("the page behind 4 is %+v", page)
	}
	if got := ask(b, GetBlob{Repo: appRef, Digest: all[5].Digest}); got.Link.Claims != 1 {
		t.Errorf("claims are %d", got.Link.Claims)
	}
	// The draft is the version's, and does not expire.
	b.now = b.now.Add(time.Hour)
	b.must(ExpireUploads{Before: meta.TimeOf(b.now), Limit: 100})
	check(b)
	b.must(DeleteVersion{Repo: appRef, Package: "api", Version: p.Version.Name})
	if got := ask(b, GetBlob{Repo: appRef, Digest: all[5].Digest}); got.Link.Claims != 0 {
		t.Errorf("claims are %d", got.Link.Claims)
	}
	check(b)
}

func TestLabels(t *testing.T) {
	b := newBench(t)
	b.must(image("m1"))
	name := string(blob("m1").Digest)
	b.must(SetLabels{Repo: appRef, Package: "api", Labels: meta.Labels{"team": "a"}})
	b.must(SetLabels{Repo: appRef, Package: "api", Version: name, Labels: meta.Labels{"tier": "1"}})
	b.refuse(SetLabels{Repo: appRef, Package: "other"}, meta.ErrNotFound)
	if got := ask(b, GetPackage{Repo: appRef, Package: "api"}); got.Labels["team"] != "a" || got.Revision != b.index-1 {
		t.Errorf("package is %+v at %d", got, b.index)
	}
	if got := ask(b, GetVersion{Repo: appRef, Package: "api", Version: name}); got.Labels["tier"] != "1" {
		t.Errorf("version is %+v", got)
	}
}
