package state

import (
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// levelSixParts write the commands of level 6, done and refused, a topic each. The
// order is that of the log.
var levelSixParts = []func(*logWriter){levelSixPackages, levelSixPromotions, levelSixFetched, levelSixQuiet}

// levelSix goes on from level 5 with the commands of level 6.
func levelSix(t *testing.T) []Entry {
	l := writeLevelFive(t)
	l.add("", MarkVersions{Repo: appRef, Package: "api", Versions: []string{"early"}, Marking: meta.Marking{Yanked: new(true)}}) // below its level
	l.add("", SetLevel{Level: 6})
	for _, part := range levelSixParts {
		part(l)
	}
	return l.entries
}

// levelSixPackages writes the commands of packages, groups and proxies.
func levelSixPackages(l *logWriter) {
	hosted := meta.Repository{
		Ref: meta.RepoRef{Tenant: "acme", Name: "npm"}, Format: "npm", Kind: meta.KindHosted, Class: meta.ClassStandard,
		Home: "eu", Visibility: meta.VisibilityPrivate,
	}
	proxy, group, outer := hosted, hosted, hosted
	proxy.Ref.Name, proxy.Kind = "npm-proxy", meta.KindProxy
	proxy.Upstream = &meta.Upstream{URL: "https://registry.example/npm/", Block: []string{"evil*"}, MinReleaseAge: 72 * time.Hour}
	group.Ref.Name, group.Kind, group.Members, group.WriteTo = "npm-all", meta.KindGroup, []string{"npm", "npm-proxy"}, "npm"
	outer.Ref.Name, outer.Kind, outer.Members = "npm-outer", meta.KindGroup, []string{"npm-all"}
	bare := proxy
	bare.Ref.Name, bare.Upstream = "bare", nil
	l.add("", CreateRepository{Repository: hosted})
	l.add("", CreateRepository{Repository: bare})
	l.add("", CreateRepository{Repository: group})
	l.add("", CreateRepository{Repository: proxy})
	l.add("", CreateRepository{Repository: group})
	l.add("", CreateRepository{Repository: group})
	l.add("", CreateRepository{Repository: outer})
	public, members := meta.VisibilityPublic, []string{"npm-proxy", "npm"}
	l.add("", SetRepository{Ref: group.Ref, Visibility: &public})
	l.add("", SetRepository{Ref: group.Ref, Members: &members})
	l.add("", SetRepository{Ref: group.Ref, Members: &[]string{"npm-outer"}})
	l.add("", SetRepository{Ref: proxy.Ref, Upstream: &UpstreamChange{Allow: &[]string{"left-*"}, Credential: new("npm-token")}})
	l.add("", RemoveRepository{Ref: hosted.Ref})

	file := func(path, content string) meta.File {
		return meta.File{Path: path, Digest: blob(content).Digest, Size: blob(content).PlainBytes, Summary: []byte("of " + path), Sums: map[string]string{"sha1": "00112233"}}
	}
	publish := func(name, version string, state meta.VersionState, files ...meta.File) Publish {
		p := Publish{Version: meta.Version{Repo: hosted.Ref, Package: name, Name: version, State: state, Summary: []byte("{}")}, Files: files, Spelling: name}
		if state == meta.StateClosed {
			p.Version.Digest, p.Version.Size = files[0].Digest, files[0].Size
		}
		return p
	}
	for _, content := range []string{"tarball 1", "tarball 2", "wheel 1", "wheel 2"} {
		c := link(content, "eu-8")
		c.Repo = hosted.Ref
		l.add("", c)
	}
	one := publish("left-pad", "1.0.0", meta.StateClosed, file("left-pad-1.0.0.tgz", "tarball 1"))
	one.Spelling = "Left-Pad"
	l.add("", one)
	other := publish("left-pad", "2.0.0", meta.StateClosed, file("left-pad-2.0.0.tgz", "tarball 2"))
	l.add("", other)
	other.NewSpelling = true
	l.add("", other)
	l.add("", publish("wheels", "1.0", meta.StateOpen, file("a.whl", "wheel 1")))
	l.add("", publish("wheels", "1.0", meta.StateOpen, file("b.whl", "wheel 2")))
	l.add("", publish("wheels", "1.0", meta.StateOpen, file("b.whl", "wheel 1")))
	l.add("", CloseVersion{Repo: hosted.Ref, Package: "wheels", Version: "1.0", Quiet: time.Hour})
	l.add("", CloseVersion{Repo: hosted.Ref, Package: "wheels", Version: "1.0"})
	l.add("", publish("wheels", "1.0", meta.StateOpen, file("c.whl", "wheel 1")))
	inGroup := other
	inGroup.Version.Repo = group.Ref
	l.add("", inGroup)
	inProxy := other
	inProxy.Version.Repo = proxy.Ref
	l.add("", inProxy)

	mark := func(m meta.Marking, versions ...string) MarkVersions {
		return MarkVersions{Repo: hosted.Ref, Package: "left-pad", Versions: versions, Marking: m}
	}
	l.add("", mark(meta.Marking{Yanked: new(true), Unlisted: new(true), Reason: "broken"}, "1.0.0", "2.0.0"))
	l.add("", mark(meta.Marking{Deprecated: new(true), Reason: "use\nright-pad"}, "1.0.0"))
	l.add("", mark(meta.Marking{Yanked: new(false)}, "1.0.0"))
	l.add("", mark(meta.Marking{Yanked: new(false)}, "1.0.0"))
	l.add("", mark(meta.Marking{Yanked: new(true)}, "1.0.0", "3.0.0"))

	l.add("", RememberSource{Group: group.Ref, Package: "lodash", Member: "npm-proxy"})
	l.add("", RememberSource{Group: group.Ref, Package: "lodash", Member: "npm"})
	l.add("", RememberSource{Group: group.Ref, Package: "left-pad", Member: "npm-proxy"})
	l.add("", RememberSource{Group: group.Ref, Package: "lodash", Forget: true})
	l.add("", RememberSource{Group: group.Ref, Package: "ramda", Member: "npm-proxy"})
	for _, version := range []string{"1.0.0", "2.0.0"} {
		l.add("", DeleteVersion{Repo: hosted.Ref, Package: "left-pad", Version: version})
	}
	l.add("", RememberSource{Group: group.Ref, Package: "left-pad", Member: "npm-proxy"})
	one.Spelling = "LEFT-PAD"
	l.add("", one)
	one.Spelling = "Left-Pad"
	l.add("", one)
	l.add("", RemoveRepository{Ref: outer.Ref})
	l.add("", RemoveRepository{Ref: group.Ref})
}

// levelSixPromotions writes promotions.
func levelSixPromotions(l *logWriter) {
	release := meta.Repository{
		Ref: meta.RepoRef{Tenant: "acme", Name: "release"}, Format: "oci", Kind: meta.KindHosted, Class: meta.ClassStandard,
		Home: "eu", Visibility: meta.VisibilityPrivate,
	}
	l.add("", CreateRepository{Repository: release})
	publish := func(p Publish) {
		p.Blobs[0].Server = "eu-8"
		l.add("", p)
	}
	l.add("", link("promoted layer", "eu-8"))
	publish(image("child", "promoted layer"))
	index := image("promoted index")
	index.Version.References = []meta.Reference{{Digest: blob("child").Digest, Version: true, MediaType: "m"}}
	publish(tagged(index, "1.4"))
	signature := image("promoted sig")
	signature.Version.Subject, signature.Version.ArtifactType = blob("promoted index").Digest, "application/sig"
	publish(signature)
	l.add("", StageReferences{Repo: appRef, Draft: "long", References: []meta.Reference{{Digest: blob("promoted layer").Digest, Size: 14}}})
	staged := image("long list")
	staged.Version.Draft = "long"
	publish(staged)

	item := func(content string, aliases ...string) Promotee {
		return Promotee{From: appRef.Name, Package: "api", Version: string(blob(content).Digest), Aliases: aliases}
	}
	promote := func(items ...Promotee) { l.add("", Promote{To: release.Ref, Items: items, Reason: "it passed"}) }
	promote(item("promoted index")) // without its image
	promote(item("child"), item("promoted index", "1.4", "latest"), item("promoted sig"), item("long list"))
	promote(item("child"), item("promoted index", "newest"))
	stale := item("child", "old")
	stale.Revision = 1
	promote(stale)
	promote(item("nothing"))
	l.add("", Promote{To: meta.RepoRef{Tenant: "acme", Name: "npm"}, Items: []Promotee{item("child")}})
	l.add("", DeleteVersion{Repo: release.Ref, Package: "api", Version: string(blob("long list").Digest)})
	promote(item("long list"))
	l.add("", QuarantineVersion{Repo: appRef, Package: "api", Version: string(blob("promoted sig").Digest), Reason: "odd"})
	promote(item("promoted sig"))
}
