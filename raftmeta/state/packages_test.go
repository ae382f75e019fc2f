package state

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// newPackages returns a bench at level 6 with a hosted repository npm, a proxy and a group
// of both that writes to npm, all of format npm.
func newPackages(t testing.TB) *bench {
	b := newBench(t)
	b.must(SetLevel{Level: 6})
	b.must(CreateRepository{Repository: npmRepo("npm", meta.KindHosted)})
	b.must(CreateRepository{Repository: npmRepo("proxy", meta.KindProxy)})
	b.must(CreateRepository{Repository: npmRepo("all", meta.KindGroup, "npm", "proxy")})
	return b
}

func npmRepo(name string, kind meta.Kind, members ...string) meta.Repository {
	r := app()
	r.Ref.Name, r.Format, r.Kind = name, "npm", kind
	switch kind {
	case meta.KindProxy:
		r.Upstream = &meta.Upstream{URL: "https://registry.example"}
	case meta.KindGroup:
		r.Members, r.WriteTo = members, members[0]
	}
	return r
}

func npmRef(name string) meta.RepoRef { return meta.RepoRef{Tenant: "acme", Name: name} }

// TestPublishIntoWhatTakesNone: a proxy has what its upstream has, a group what its
// members have.
func TestPublishIntoWhatTakesNone(t *testing.T) {
	b := newPackages(t)
	for _, name := range []string{"proxy", "all"} {
		p := b.tarballInto(npmRef(name), "left-pad", "1.0.0", "content of "+name)
		b.refuse(p, meta.ErrConflict, npmRef(name).String())
		if _, err := try(b, GetPackage{Repo: npmRef(name), Package: "left-pad"}); !errors.Is(err, meta.ErrNotFound) {
			t.Errorf("%s has %v", name, err)
		}
	}
	check(b)
}

// tarball is a publish of one file into acme/npm, which it links.
func (b *bench) tarball(pkg, version, content string) Publish {
	return b.tarballInto(npmRef("npm"), pkg, version, content)
}

func (b *bench) tarballInto(repo meta.RepoRef, pkg, version, content string) Publish {
	b.Helper()
	l := link(content, "eu-1")
	l.Repo = repo
	b.must(l)
	bl := blob(content)
	return Publish{
		Version: meta.Version{Repo: repo, Package: pkg, Name: version, State: meta.StateClosed, Digest: bl.Digest, Size: bl.PlainBytes},
		Files:   []meta.File{{Path: pkg + "-" + version + ".tgz", Digest: bl.Digest, Size: bl.PlainBytes}},
	}
}

func (b *bench) delete(repo meta.RepoRef, pkg, version string) {
	b.Helper()
	b.must(DeleteVersion{Repo: repo, Package: pkg, Version: version})
}

// TestSixIsOfLevelSix: nothing of level 6 enters the log of a cluster below.
func TestSixIsOfLevelSix(t *testing.T) {
	b := newBench(t)
	b.must(SetLevel{Level: 5})
	hosted := npmRepo("npm", meta.KindHosted)
	b.must(CreateRepository{Repository: hosted})
	plain := b.tarball("p", "1", "content")
	for name, change := range map[string]func(*Publish){
		"summary":      func(p *Publish) { p.Version.Summary = []byte("s") },
		"file summary": func(p *Publish) { p.Files[0].Summary = []byte("s") },
		"sums":         func(p *Publish) { p.Files[0].Sums = map[string]string{"md5": "00112233"} },
		"uploaded":     func(p *Publish) { p.Files[0].Uploaded = 1 },
		"by":           func(p *Publish) { p.Files[0].By = "user:eve" },
		"spelling":     func(p *Publish) { p.Spelling = "P" },
		"marks":        func(p *Publish) { p.Version.Marks.Yanked = &meta.Mark{} },
		"promotion":    func(p *Publish) { p.Version.Promotion = &meta.Promotion{} },
		"extended":     func(p *Publish) { p.Version.Extended = 1 },
	} {
		p := plain
		p.Files = slices.Clone(p.Files)
		change(&p)
		if err := b.do(p).Err; !errors.Is(err, meta.ErrConflict) || !strings.Contains(err.Error(), "cluster level 6") {
			t.Errorf("%s: %v", name, err)
		}
	}
	b.refuse(CreateRepository{Repository: npmRepo("proxy", meta.KindProxy)}, meta.ErrConflict, "cluster level 6")
	b.refuse(CreateRepository{Repository: npmRepo("all", meta.KindGroup, "npm")}, meta.ErrConflict, "cluster level 6")
	b.refuse(SetRepository{Ref: hosted.Ref, Members: &[]string{"x"}}, meta.ErrConflict, "cluster level 6")
	b.must(plain)
	if f := ask(b, GetFile{Repo: hosted.Ref, Package: "p", Version: "1", Path: "p-1.tgz"}); f.Uploaded != 0 || f.By != "" {
		t.Errorf("below level 6 a file is stamped: %+v", f)
	}
	// What went before level 6 is known by its tombstones.
	b.delete(hosted.Ref, "p", "1")
	b.must(SetLevel{Level: 6})
	if a := ask(b, GetSources{Repo: hosted.Ref, Package: "p"}); len(a.Owners) != 1 || a.Owners[0].Package.Name != "" {
		t.Errorf("a name deleted before level 6 is owned by %+v", a)
	}
	check(b)
}

// TestStampedFiles: files say who added them and when, whatever the publisher says, with
// summaries and checksums as they came.
func TestStampedFiles(t *testing.T) {
	b := newPackages(t)
	p := b.tarball("p", "1", "content")
	p.Version.Summary, p.Version.Marks.Yanked, p.Version.Promotion = []byte("{}"), &meta.Mark{By: "eve"}, &meta.Promotion{By: "eve"}
	p.Files[0].Uploaded, p.Files[0].By, p.Files[0].Summary, p.Files[0].Sums = 1, "user:eve", []byte("of file"), map[string]string{"sha1": strings.Repeat("0a", 20)}
	b.must(p)
	f := ask(b, GetFile{Repo: npmRef("npm"), Package: "p", Version: "1", Path: "p-1.tgz"})
	if f.Uploaded != meta.TimeOf(b.now) || f.By != "user:ada" || string(f.Summary) != "of file" || f.Sums["sha1"] == "" {
		t.Errorf("%+v", f)
	}
	v := ask(b, GetVersion{Repo: npmRef("npm"), Package: "p", Version: "1"})
	if string(v.Summary) != "{}" || v.Marks != (meta.Marks{}) || v.Promotion != nil {
		t.Errorf("%+v", v)
	}
	for name, change := range map[string]func(*Publish){
		"summary":      func(p *Publish) { p.Version.Summary = make([]byte, meta.MaxSummaryBytes+1) },
		"file summary": func(p *Publish) { p.Files[0].Summary = make([]byte, meta.MaxSummaryBytes+1) },
		"algorithm":    func(p *Publish) { p.Files[0].Sums = map[string]string{"SHA1": "00112233"} },
		"upper case":   func(p *Publish) { p.Files[0].Sums = map[string]string{"sha1": "00AA2233"} },
		"odd":          func(p *Publish) { p.Files[0].Sums = map[string]string{"sha1": "0011223"} },
	} {
		q := b.tarball("p", "2", "content 2")
		change(&q)
		if err := b.do(q).Err; !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestOpenVersion: an open version gains files until it is closed, has no digest, and a
// path of it never takes other bytes.
func TestOpenVersion(t *testing.T) {
	b := newPackages(t)
	publish := func(path, content, summary string) Publish {
		p := b.tarball("w", "1.0", content)
		p.Version.State, p.Version.Digest, p.Version.Size, p.Version.Summary = meta.StateOpen, "", 0, []byte(summary)
		p.Files[0].Path = path
		return p
	}
	b.must(publish("a.whl", "one", "first"))
	first := b.now
	b.now = b.now.Add(time.Minute)
	b.must(publish("b.whl", "second", "newer"))
	b.must(publish("b.whl", "second", "late"))
	b.refuse(publish("b.whl", "other", ""), meta.ErrExists, "b.whl")
	v := ask(b, GetVersion{Repo: npmRef("npm"), Package: "w", Version: "1.0"})
	if v.Digest != "" || v.Size != 9 || v.State != meta.StateOpen || string(v.Summary) != "newer" || v.PublishTime != meta.TimeOf(first) || v.Extended != meta.TimeOf(b.now) {
		t.Errorf("%+v", v)
	}
	b.refuse(CloseVersion{Repo: npmRef("npm"), Package: "w", Version: "1.0", Quiet: time.Minute}, meta.ErrConflict)
	b.now = b.now.Add(time.Minute)
	before := ask(b, GetPackage{Repo: npmRef("npm"), Package: "w"}).Revision
	closed := b.must(CloseVersion{Repo: npmRef("npm"), Package: "w", Version: "1.0", Quiet: time.Minute}).Value.(meta.Version)
	if closed.State != meta.StateClosed || ask(b, GetPackage{Repo: npmRef("npm"), Package: "w"}).Revision <= before {
		t.Errorf("%+v", closed)
	}
	b.must(CloseVersion{Repo: npmRef("npm"), Package: "w", Version: "1.0"})
	b.refuse(publish("c.whl", "third", ""), meta.ErrExists, "closed")
	b.must(publish("a.whl", "one", ""))
	b.refuse(CloseVersion{Repo: npmRef("npm"), Package: "w", Version: "2.0"}, meta.ErrNotFound)
	b.delete(npmRef("npm"), "w", "1.0")
	b.refuse(publish("a.whl", "one", ""), meta.ErrExists, "deleted")
	check(b)
}

// TestMarks: marks are set and taken away with reason, principal and time, of all named
// versions or of none, and a mark that is there already changes nothing.
func TestMarks(t *testing.T) {
	b := newPackages(t)
	for _, version := range []string{"1", "2", "3"} {
		b.must(b.tarball("p", version, "content "+version))
	}
	mark := func(m meta.Marking, versions ...string) MarkVersions {
		return MarkVersions{Repo: npmRef("npm"), Package: "p", Versions: versions, Marking: m}
	}
	marks := func(version string) meta.Marks {
		return ask(b, GetVersion{Repo: npmRef("npm"), Package: "p", Version: version}).Marks
	}
	revision := func() uint64 { return ask(b, GetPackage{Repo: npmRef("npm"), Package: "p"}).Revision }
	if r := b.must(mark(meta.Marking{Yanked: new(true), Unlisted: new(true), Reason: "broken"}, "1", "2")); r.Value.(Marked).Changed != 2 {
		t.Errorf("%+v", r)
	}
	for _, version := range []string{"1", "2"} {
		m := marks(version)
		if m.Yanked == nil || *m.Yanked != (meta.Mark{Reason: "broken", By: "user:ada", At: meta.TimeOf(b.now)}) || m.Unlisted == nil || m.Deprecated != nil {
			t.Errorf("%s: %+v", version, m)
		}
	}
	was, at := revision(), marks("1").Yanked.At
	b.now = b.now.Add(time.Minute)
	if r := b.must(mark(meta.Marking{Yanked: new(true), Deprecated: new(false), Reason: "broken"}, "1")); r.Value.(Marked).Changed != 0 || revision() != was || marks("1").Yanked.At != at {
		t.Errorf("a repeated yank changes %+v", r)
	}
	b.must(mark(meta.Marking{Yanked: new(true), Reason: "worse"}, "1"))
	if m := marks("1"); m.Yanked.Reason != "worse" || m.Unlisted.Reason != "broken" || revision() == was {
		t.Errorf("%+v", m)
	}
	b.must(mark(meta.Marking{Yanked: new(false), Unlisted: new(false)}, "1"))
	if m := marks("1"); m != (meta.Marks{}) {
		t.Errorf("%+v", m)
	}
	b.refuse(mark(meta.Marking{Deprecated: new(true), Reason: "x"}, "3", "4"), meta.ErrNotFound)
	if m := marks("3"); m != (meta.Marks{}) {
		t.Errorf("a refused marking left %+v", m)
	}
	var all []string
	for i := range MaxMarked + 1 {
		all = append(all, fmt.Sprint(i))
	}
	for name, c := range map[string]MarkVersions{
		"nothing":    mark(meta.Marking{Reason: "x"}, "1"),
		"no version": mark(meta.Marking{Yanked: new(true)}),
		"twice":      mark(meta.Marking{Yanked: new(true)}, "1", "1"),
		"too many":   mark(meta.Marking{Yanked: new(true)}, all...),
		"a long why": mark(meta.Marking{Yanked: new(true), Reason: strings.Repeat("x", meta.MaxMarkReasonBytes+1)}, "1"),
		"a bell":     mark(meta.Marking{Yanked: new(true), Reason: "\a"}, "1"),
	} {
		if err := c.Check(); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	check(b)
}

// TestSpelling: the first publisher spells a package, and a deleted one keeps its spelling.
func TestSpelling(t *testing.T) {
	b := newPackages(t)
	publish := func(version, spelling string, same bool) Publish {
		p := b.tarball("my-pkg", version, "content "+version)
		p.Spelling, p.NewSpelling = spelling, same
		return p
	}
	spelled := func() string { return ask(b, GetPackage{Repo: npmRef("npm"), Package: "my-pkg"}).Spelling }
	b.must(publish("1", "My_Pkg", false))
	b.refuse(publish("2", "my.pkg", false), meta.ErrExists, "My_Pkg")
	b.must(publish("2", "my.pkg", true))
	b.must(publish("3", "My_Pkg", false))
	b.must(publish("4", "", false))
	if spelled() != "My_Pkg" {
		t.Errorf("it is spelled %s", spelled())
	}
	for _, version := range []string{"1", "2", "3", "4"} {
		b.delete(npmRef("npm"), "my-pkg", version)
		check(b)
	}
	b.refuse(publish("5", "MY-PKG", false), meta.ErrExists, "My_Pkg")
	b.must(publish("5", "my-pkg", true))
	if spelled() != "My_Pkg" {
		t.Errorf("after its deletion it is spelled %s", spelled())
	}
	// One that was never spelled is spelled as its name.
	b.must(b.tarball("plain", "1", "plain 1"))
	p := b.tarball("plain", "2", "plain 2")
	p.Spelling = "Plain"
	b.refuse(p, meta.ErrExists, "plain")
	p.Spelling = "plain"
	b.must(p)
	check(b)
}

// TestNamesStayOwned: what a hosted member of a group has or had is never anybody else's.
func TestNamesStayOwned(t *testing.T) {
	b := newPackages(t)
	sources := func(pkg string) SourcesAnswer { return ask(b, GetSources{Repo: npmRef("all"), Package: pkg}) }
	if a := sources("internal"); len(a.Owners) != 0 || len(a.Hosted) != 1 || len(a.Proxies) != 1 || a.Remembered != "" {
		t.Errorf("nobody's: %+v", a)
	}
	b.must(RememberSource{Group: npmRef("all"), Package: "internal", Member: "proxy"})
	if a := sources("internal"); a.Remembered != "proxy" {
		t.Errorf("remembered: %+v", a)
	}
	b.must(b.tarball("internal", "1", "content"))
	owned := func(when string, live bool) {
		t.Helper()
		a := sources("internal")
		if len(a.Owners) != 1 || a.Owners[0].Repository.Ref != npmRef("npm") || (a.Owners[0].Package.Name != "") != live || a.Remembered != "" {
			t.Errorf("%s: %+v", when, a)
		}
		b.refuse(RememberSource{Group: npmRef("all"), Package: "internal", Member: "proxy"}, meta.ErrConflict, "owns the name")
	}
	owned("published", true)
	b.delete(npmRef("npm"), "internal", "1")
	owned("deleted", false)
	b.must(b.tarball("internal", "2", "content 2"))
	owned("published again", true)
	b.delete(npmRef("npm"), "internal", "2")
	owned("deleted again", false)
	// Also of the repository itself, and of a member within a member.
	b.must(CreateRepository{Repository: npmRepo("outer", meta.KindGroup, "npm", "all")})
	for _, name := range []string{"npm", "outer"} {
		if a := ask(b, GetSources{Repo: npmRef(name), Package: "internal"}); len(a.Owners) != 1 {
			t.Errorf("of %s: %+v", name, a)
		}
	}
	if got := ask(b, Members{Repo: npmRef("outer")}); len(got) != 2 || got[0].Ref.Name != "npm" || got[1].Ref.Name != "proxy" {
		t.Errorf("members %+v", got)
	}
	check(b)
}

// TestRememberedSource: the first proxy that was found holds, until it leaves or is
// forgotten.
func TestRememberedSource(t *testing.T) {
	b := newPackages(t)
	b.must(CreateRepository{Repository: npmRepo("second", meta.KindProxy)})
	b.must(SetRepository{Ref: npmRef("all"), Members: &[]string{"npm", "proxy", "second"}})
	remember := func(member string) string {
		t.Helper()
		return b.must(RememberSource{Group: npmRef("all"), Package: "lodash", Member: member}).Value.(Source).Member
	}
	remembered := func() string { return ask(b, GetSources{Repo: npmRef("all"), Package: "lodash"}).Remembered }
	if got := remember("second"); got != "second" || remembered() != got {
		t.Errorf("remembered %s", got)
	}
	if got := remember("proxy"); got != "second" {
		t.Errorf("the second one to find it makes it %s", got)
	}
	b.must(SetRepository{Ref: npmRef("all"), Members: &[]string{"npm", "proxy"}})
	if remembered() != "" || remember("proxy") != "proxy" {
		t.Errorf("after it left %s is remembered", remembered())
	}
	b.must(RememberSource{Group: npmRef("all"), Package: "lodash", Forget: true})
	if remembered() != "" {
		t.Errorf("forgotten, and %s", remembered())
	}
	b.refuse(RememberSource{Group: npmRef("all"), Package: "lodash", Member: "npm"}, meta.ErrInvalid)
	b.refuse(RememberSource{Group: npmRef("all"), Package: "lodash", Member: "second"}, meta.ErrInvalid)
	b.refuse(RememberSource{Group: npmRef("nope"), Package: "lodash", Member: "second"}, meta.ErrNotFound)
	remember("proxy")
	b.must(RemoveRepository{Ref: npmRef("all")})
	b.must(CreateRepository{Repository: npmRepo("all", meta.KindGroup, "npm", "proxy")})
	if remembered() != "" {
		t.Errorf("a group of the same name remembers %s", remembered())
	}
	check(b)
}

// TestKindsOfRepository: proxies and groups are refused that would not work, or would show
// what is private.
func TestKindsOfRepository(t *testing.T) {
	b := newPackages(t)
	group := func(change func(*meta.Repository)) CreateRepository {
		r := npmRepo("new", meta.KindGroup, "npm")
		change(&r)
		return CreateRepository{Repository: r}
	}
	oci := app()
	oci.Ref.Name = "images"
	b.must(CreateRepository{Repository: oci})
	b.must(CreateRepository{Repository: npmRepo("outer", meta.KindGroup, "npm", "all")})
	for name, test := range map[string]struct {
		c     Command
		words string
	}{
		"a hosted one with members":  {group(func(r *meta.Repository) { r.Kind = meta.KindHosted }), "only a group"},
		"a group with an upstream":   {group(func(r *meta.Repository) { r.Upstream = &meta.Upstream{URL: "https://x"} }), "only a proxy"},
		"a group of nothing":         {group(func(r *meta.Repository) { r.Members, r.WriteTo = nil, "" }), "needs members"},
		"a proxy of nothing":         {CreateRepository{Repository: func() meta.Repository { r := npmRepo("new", meta.KindProxy); r.Upstream = nil; return r }()}, "upstream"},
		"an unknown member":          {group(func(r *meta.Repository) { r.Members = []string{"npm", "nope"} }), "does not exist"},
		"another format":             {group(func(r *meta.Repository) { r.Members = []string{"npm", "images"} }), "oci"},
		"itself":                     {group(func(r *meta.Repository) { r.Members = []string{"npm", "new"} }), ""},
		"a member twice":             {group(func(r *meta.Repository) { r.Members = []string{"npm", "npm"} }), "twice"},
		"too many":                   {group(func(r *meta.Repository) { r.Members = make([]string, meta.MaxMembers+1) }), "limit"},
		"writes to no member":        {group(func(r *meta.Repository) { r.WriteTo = "proxy" }), "no member"},
		"writes to a proxy":          {group(func(r *meta.Repository) { r.Members, r.WriteTo = []string{"proxy"}, "proxy" }), "hosted"},
		"private members in public":  {group(func(r *meta.Repository) { r.Visibility = meta.VisibilityPublic }), "private"},
		"groups three deep":          {group(func(r *meta.Repository) { r.Members, r.WriteTo = []string{"outer"}, "" }), "two deep"},
		"a group into an inner one":  {SetRepository{Ref: npmRef("all"), Members: &[]string{"npm", "outer"}}, "two deep"},
		"itself, later":              {SetRepository{Ref: npmRef("outer"), Members: &[]string{"npm", "outer"}}, "itself"},
		"no member is left":          {SetRepository{Ref: npmRef("outer"), Members: &[]string{}, WriteTo: new("")}, "needs members"},
		"a member that it writes to": {SetRepository{Ref: npmRef("all"), Members: &[]string{"proxy"}}, "no member"},
		"a hosted one with upstream": {SetRepository{Ref: npmRef("npm"), Upstream: &UpstreamChange{URL: new("https://x")}}, "only a proxy"},
		"a user in the URL":          {SetRepository{Ref: npmRef("proxy"), Upstream: &UpstreamChange{URL: new("https://me:pw@x")}}, "sealed"},
		"a file":                     {SetRepository{Ref: npmRef("proxy"), Upstream: &UpstreamChange{URL: new("file:///etc/passwd")}}, "URL"},
	} {
		r := b.do(test.c)
		if !errors.Is(r.Err, meta.ErrInvalid) || !strings.Contains(r.Err.Error(), test.words) || strings.Contains(r.Err.Error(), "pw") {
			t.Errorf("%s: %v", name, r.Err)
		}
	}
	// Public all the way down, and it stays so.
	public := meta.VisibilityPublic
	for _, name := range []string{"npm", "proxy", "all"} {
		b.must(SetRepository{Ref: npmRef(name), Visibility: &public})
	}
	private := meta.VisibilityPrivate
	b.refuse(SetRepository{Ref: npmRef("npm"), Visibility: &private}, meta.ErrConflict, "acme/all")
	b.refuse(RemoveRepository{Ref: npmRef("npm")}, meta.ErrConflict, "member of")
	b.must(RemoveRepository{Ref: npmRef("outer")})
	b.must(RemoveRepository{Ref: npmRef("all")})
	b.must(SetRepository{Ref: npmRef("npm"), Visibility: &private})
	b.must(RemoveRepository{Ref: npmRef("npm")})
	// Each setting of an upstream changes on its own, and empty lists are none.
	got := b.must(SetRepository{Ref: npmRef("proxy"), Upstream: &UpstreamChange{Block: &[]string{"evil*"}, MinReleaseAge: new(72 * time.Hour)}}).Value.(meta.Repository)
	if got.Upstream.URL != "https://registry.example" || !slices.Equal(got.Upstream.Block, []string{"evil*"}) || got.Upstream.MinReleaseAge != 72*time.Hour {
		t.Errorf("%+v", got.Upstream)
	}
	got = b.must(SetRepository{Ref: npmRef("proxy"), Upstream: &UpstreamChange{Block: &[]string{}, MinReleaseAge: new(time.Duration(0))}}).Value.(meta.Repository)
	same := npmRepo("proxy", meta.KindProxy)
	same.Visibility, same.Upstream.Allow = public, []string{}
	if r := b.do(CreateRepository{Repository: same}); r.Err != nil || got.Upstream.Block != nil {
		t.Errorf("an equal proxy: %v, %+v", r.Err, got)
	}
	check(b)
}

// TestPackageFiles pages the files of all versions, and shows none in quarantine.
func TestPackageFiles(t *testing.T) {
	b := newPackages(t)
	var want []string
	for _, version := range []string{"1", "10", "2", "bad", "a longer one"} {
		p := b.tarball("p", version, "content "+version)
		more := b.tarball("p", version, "more of "+version)
		more.Files[0].Path = "extra"
		p.Files = append(p.Files, more.Files...)
		b.must(p)
		if version != "bad" {
			want = append(want, version+" extra", version+" p-"+version+".tgz")
		}
	}
	b.must(b.tarball("other", "1", "of another"))
	b.must(QuarantineVersion{Repo: npmRef("npm"), Package: "p", Version: "bad", Reason: "stolen"})
	b.must(MarkVersions{Repo: npmRef("npm"), Package: "p", Versions: []string{"2"}, Marking: meta.Marking{Yanked: new(true)}})
	for _, limit := range []int{1, 3, 100} {
		var got []string
		for after := ""; ; {
			page := ask(b, ListPackageFiles{Repo: npmRef("npm"), Package: "p", Page: Page{After: after, Limit: limit}})
			for _, f := range page {
				got = append(got, f.Version+" "+f.File.Path)
				if (f.Marks.Yanked != nil) != (f.Version == "2") || f.State != meta.StateClosed || f.File.By != "user:ada" {
					t.Errorf("%+v", f)
				}
			}
			if len(page) == 0 {
				break
			}
			after = page[len(page)-1].After()
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("in pages of %d: %q", limit, got)
		}
	}
	if _, err := try(b, ListPackageFiles{Repo: npmRef("npm"), Package: "p", Page: Page{After: "x"}}); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("after nothing: %v", err)
	}
	if _, err := try(b, ListPackageFiles{Repo: npmRef("npm"), Package: "nope"}); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("of nothing: %v", err)
	}
}

// TestGroupTakesNothing: what a protocol forgets to resolve the log refuses.
func TestGroupTakesNothing(t *testing.T) {
	b := newPackages(t)
	b.refuse(b.tarballInto(npmRef("all"), "p", "1", "content"), meta.ErrConflict, "takes no writes")
}

// TestNamesModel publishes and deletes at random: a name is owned from its first version
// on, and a group's remembered source counts only while nobody owns it.
func TestNamesModel(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		b := newPackages(t)
		ever, live, remembered := map[string]bool{}, map[string]map[string]bool{}, map[string]bool{}
		used := 0
		for range rapid.IntRange(1, 25).Draw(r, "steps") {
			pkg := rapid.SampledFrom([]string{"a", "b", "a-b"}).Draw(r, "package")
			version := rapid.SampledFrom([]string{"1", "2"}).Draw(r, "version")
			switch rapid.IntRange(0, 2).Draw(r, "command") {
			case 0:
				used++
				c := b.tarball(pkg, version, fmt.Sprint("content ", used))
				if b.do(c).Err == nil {
					ever[pkg] = true
					if live[pkg] == nil {
						live[pkg] = map[string]bool{}
					}
					live[pkg][version] = true
				}
			case 1:
				err := b.do(DeleteVersion{Repo: npmRef("npm"), Package: pkg, Version: version}).Err
				if (err == nil) != live[pkg][version] {
					r.Fatalf("delete %s %s: %v", pkg, version, err)
				}
				delete(live[pkg], version)
			case 2:
				err := b.do(RememberSource{Group: npmRef("all"), Package: pkg, Member: "proxy"}).Err
				if (err == nil) == ever[pkg] {
					r.Fatalf("remember %s, owned %v: %v", pkg, ever[pkg], err)
				}
				remembered[pkg] = remembered[pkg] || err == nil
			}
			for _, pkg := range []string{"a", "b", "a-b"} {
				a := ask(b, GetSources{Repo: npmRef("all"), Package: pkg})
				if (len(a.Owners) > 0) != ever[pkg] || len(a.Owners) > 0 && (a.Owners[0].Package.Versions != uint64(len(live[pkg]))) ||
					(a.Remembered != "") != (remembered[pkg] && !ever[pkg]) {
					r.Fatalf("%s, owned %v, versions %v: %+v", pkg, ever[pkg], live[pkg], a)
				}
			}
		}
		check(b)
	})
}

// FuzzAfter feeds bytes as the place where a listing of files goes on.
func FuzzAfter(f *testing.F) {
	f.Add("1\x00a")
	f.Add("")
	f.Add("\x00\x00")
	b := newPackages(f)
	b.must(b.tarball("p", "1", "content"))
	v, err := b.View()
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = v.Close() })
	f.Fuzz(func(t *testing.T, after string) {
		page, err := ListPackageFiles{Repo: npmRef("npm"), Package: "p", Page: Page{After: after}}.Answer(v)
		if err != nil && !errors.Is(err, meta.ErrInvalid) {
			t.Fatal(err)
		}
		for _, got := range page {
			first, second, err := cutAfter(got.After())
			if err != nil || first != got.Version || second != got.File.Path || got.After() == after {
				t.Fatalf("%+v after %q: %v", got, after, err)
			}
		}
	})
}
