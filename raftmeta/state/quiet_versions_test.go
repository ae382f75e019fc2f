package state

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

const quiet = 10 * time.Minute

// arriving is a publish of one more file into an open version.
func arriving(version, path, content string) Publish {
	return Publish{
		Version: meta.Version{Repo: appRef, Package: "org:demo", Name: version, State: meta.StateOpen, Quiet: quiet},
		Files:   []meta.File{{Path: path, Digest: blob(content).Digest, Size: blob(content).PlainBytes}},
		Blobs:   []LinkBlob{link(content, "eu-1")},
	}
}

func levelSixQuiet(l *logWriter) {
	from := func(p Publish) Publish {
		p.Blobs[0].Server = "eu-8"
		return p
	}
	l.add("", from(arriving("1.0", "demo.jar", "jar")))
	l.now = l.now.Add(time.Minute)
	l.add("", from(arriving("1.0", "demo.pom", "pom")))
	l.add("", from(arriving("1.0", "demo.pom", "pom")))
	l.add("", from(arriving("2.0", "demo.jar", "jar")))
	l.add("", from(arriving("3.0", "demo.jar", "jar")))
	l.add("", CloseVersion{Repo: appRef, Package: "org:demo", Version: "1.0", Quiet: quiet})
	l.add("", DeleteVersion{Repo: appRef, Package: "org:demo", Version: "2.0"})
	l.now = l.now.Add(quiet)
	l.add("", CloseVersion{Repo: appRef, Package: "org:demo", Version: "1.0", Quiet: quiet})
	l.add("", from(arriving("1.0", "demo.jar.asc", "signature")))
	forever := from(arriving("4.0", "demo.jar", "jar"))
	forever.Version.Quiet = MaxQuiet
	l.add("", forever)
}

// An open version falls due once no file came for its Quiet, and is forgotten there when
// it is closed or deleted.
func TestQuietVersions(t *testing.T) {
	b := newBench(t)
	b.must(SetLevel{Level: 6})
	due := func() (names []string) {
		for _, v := range ask(b, QuietVersions{Now: meta.TimeOf(b.now), Limit: 10}) {
			if v.Quiet != quiet || v.State != meta.StateOpen {
				t.Errorf("%+v is due", v)
			}
			names = append(names, v.Name)
		}
		return names
	}
	expect := func(what string, want ...string) {
		t.Helper()
		if got := due(); !slices.Equal(got, want) {
			t.Errorf("%s: %v are due, want %v", what, got, want)
		}
		check(b)
	}
	closing := func(version string) CloseVersion {
		return CloseVersion{Repo: appRef, Package: "org:demo", Version: version, Quiet: quiet}
	}
	b.must(arriving("1.0", "demo.jar", "jar"))
	b.must(arriving("2.0", "demo.jar", "jar"))
	long := arriving("5.0", "demo.jar", "jar")
	long.Version.Quiet = MaxQuiet + 1
	if err := long.Check(); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("more than %s: %v", MaxQuiet, err)
	}
	never := arriving("3.0", "demo.jar", "jar")
	never.Version.Quiet = 0
	b.must(never)
	expect("at first")
	b.now = b.now.Add(quiet - time.Second)
	expect("a second before")
	b.must(arriving("1.0", "demo.pom", "pom"))
	b.now = b.now.Add(time.Second)
	expect("with another file", "2.0")
	b.refuse(closing("1.0"), meta.ErrConflict, "gained a file")
	b.must(closing("2.0"))
	expect("when it is closed")
	b.now = b.now.Add(quiet)
	// The same file again is no new one.
	b.must(arriving("1.0", "demo.pom", "pom"))
	expect("much later", "1.0")
	if got := ask(b, QuietVersions{Now: meta.TimeOf(b.now), Limit: 1}); len(got) != 1 {
		t.Errorf("%d of at most one", len(got))
	}
	// Only who opened it adds to it; what all may add to has no Quiet.
	eve := b.by("user:eve", "")
	for _, p := range []Publish{arriving("1.0", "evil.jar", "jar"), arriving("1.0", "demo.jar", "other")} {
		if r := b.doAs(eve, p); !errors.Is(r.Err, meta.ErrExists) {
			t.Errorf("another adds %s: %v", p.Files[0].Path, r.Err)
		}
	}
	same, more := b.doAs(eve, arriving("1.0", "demo.pom", "pom")), arriving("3.0", "more.jar", "jar")
	more.Version.Quiet = 0
	if same.Err != nil {
		t.Errorf("another sends the same file: %v", same.Err)
	}
	if r := b.doAs(eve, more); r.Err != nil {
		t.Errorf("another adds to what stays open: %v", r.Err)
	}
	expect("when others tried", "1.0")
	b.must(DeleteVersion{Repo: appRef, Package: "org:demo", Version: "1.0"})
	expect("when it is deleted")
	b.refuse(arriving("2.0", "late.asc", "signature"), meta.ErrExists, "closed")
	last := arriving("4.0", "demo.jar", "jar")
	b.must(last)
	last.Version.State = meta.StateClosed
	b.must(last)
	b.now = b.now.Add(2 * quiet)
	expect("when the last publish closes it")
}
