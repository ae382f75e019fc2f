package state

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// auditRespond counts again what is in quarantine, by version, alias, link and list, and
// compares the indexes of compromises and elevations with their records.
func auditRespond(v *View, have map[string][]byte) error {
	want := map[string]bool{} // keys of spaceRespond's indexes
	links := map[string]uint64{}
	for k, value := range have {
		if k[0] == spaceTenant {
			_, rest, _ := cutPart([]byte(k[1:]))
			switch rest[0] {
			case inVersions:
				ver, err := decode[meta.Version]([]byte(k), value)
				if err != nil {
					return err
				}
				if ver.Quarantine == nil {
					break
				}
				want[string(keyQuarantined(ver))] = true
				err = claimsOf(v, ver, func(d digest.Digest) error {
					l, err := findLink(v, ver.Repo, d)
					if err == nil {
						links[string(keyLink(ver.Repo, l.Link.Blob))]++
					}
					return err
				})
				if err != nil {
					return err
				}
			case inAliases:
				a, err := decode[meta.Alias]([]byte(k), value)
				if err != nil {
					return err
				}
				ver, err := findVersion(v, a.Repo, a.Package, a.Version)
				if err != nil || a.Quarantined != (ver.Quarantine != nil) {
					return fmt.Errorf("alias %s says %v of the quarantine of its version: %v", a.Name, a.Quarantined, err)
				}
			}
			continue
		}
		if k[0] != spaceRespond {
			continue
		}
		switch k[1] {
		case ofActs:
			if _, err := parseAct([]byte(k), value); err != nil {
				return err
			}
		case ofCompromises:
			c, err := decode[meta.Compromise]([]byte(k), value)
			if err != nil {
				return err
			}
			if c.Working() {
				want[string(keyOpenCompromise(c.ID))] = true
			}
			findings, err := ListFindings{ID: c.ID, Page: Page{Limit: maxPage}}.Answer(v)
			if err != nil || uint64(len(findings)) != c.Findings {
				return fmt.Errorf("compromise %s counts %d findings of %d: %v", c.ID, c.Findings, len(findings), err)
			}
		case ofElevations:
			e, err := decode[meta.Elevation]([]byte(k), value)
			if err != nil {
				return err
			}
			if e.State == meta.ElevationActive {
				want[string(keyElevated(e.Principal).last(e.ID))] = true
			}
			if e.State == meta.ElevationActive || e.State == meta.ElevationRequested {
				want[string(keyDue(e))] = true
			}
			if e.Unreviewed() {
				want[string(keyUnreviewed(e.ID))] = true
			}
		}
	}
	for k, value := range have {
		if k[0] == spaceRespond && slices.Contains([]byte{ofOpen, ofQuarantined, ofElevated, ofPending, ofUnreviewed}, k[1]) {
			if !want[k] {
				return fmt.Errorf("entry %q is of nothing", k)
			}
			delete(want, k)
		}
		if k[0] == spaceTenant {
			_, rest, _ := cutPart([]byte(k[1:]))
			if rest[0] == inLinks && !bytes.HasPrefix(value, []byte("sha256:")) {
				l, err := decode[linkRecord]([]byte(k), value)
				if err != nil || l.Quarantined != links[k] || l.Quarantined > l.Link.Claims || (l.Quarantined > 0) != (l.Why != nil) {
					return fmt.Errorf("link %q counts %d claims in quarantine of %d: %v", k, l.Quarantined, links[k], err)
				}
			}
		}
	}
	for k := range want {
		return fmt.Errorf("entry %q is missing", k)
	}
	return nil
}

// levelFiveBench is newBench at level 5, where all of this is.
func levelFiveBench(t testing.TB) *bench {
	b := newBench(t)
	b.must(SetLevel{Level: respondLevel})
	return b
}

// by returns where a command of a principal comes from.
func (b *bench) by(principal, credential string) Origin {
	return Origin{Principal: principal, TokenID: credential, Time: meta.TimeOf(b.now)}
}

func (b *bench) mustAs(principal, credential string, c Command) Result {
	b.Helper()
	r := b.doAs(b.by(principal, credential), c)
	if r.Err != nil {
		b.Fatalf("%s by %s: %v", Name(c), principal, r.Err)
	}
	return r
}

const (
	robot = "robot:acme/ci"
	thief = "stolen-token"
)

// contain lets a compromise be worked on until it is contained, a few acts at a time.
func (b *bench) contain(id string, limit uint32) meta.Compromise {
	b.Helper()
	for range 1000 {
		c := b.must(AdvanceCompromise{ID: id, Limit: limit}).Value.(meta.Compromise)
		check(b)
		if c.State != meta.CompromiseContaining {
			return c
		}
	}
	b.Fatalf("compromise %s is never contained", id)
	return meta.Compromise{}
}

func quarantineOf(b *bench, manifest string) *meta.Quarantine {
	b.Helper()
	return ask(b, GetVersion{Repo: appRef, Package: "api", Version: string(blob(manifest).Digest)}).Quarantine
}

func blobQuarantine(b *bench, content string) *meta.Quarantine {
	b.Helper()
	return ask(b, GetBlob{Repo: appRef, Digest: blob(content).Digest}).Quarantine
}

// TestCompromise is the drill: a stolen token published three versions, moved an alias
// of an honest one and deleted one; the same robot published with another token, too.
func TestCompromise(t *testing.T) {
	for _, limit := range []uint32{1, 2, 1000} {
		t.Run(fmt.Sprint("page of ", limit), func(t *testing.T) {
			b := levelFiveBench(t)
			for _, l := range []string{"base", "bad layer", "honest layer"} {
				b.must(link(l, "eu-1"))
			}
			at := func(principal, credential string, c Command) {
				b.now = b.now.Add(time.Second)
				b.mustAs(principal, credential, c)
			}
			at("user:ada", "adas", tagged(image("v1", "base", "honest layer"), "latest", "stable"))
			at(robot, "good-token", tagged(image("v2", "base"), "edge"))
			before := meta.TimeOf(b.now)
			at(robot, thief, tagged(image("bad1", "base", "bad layer"), "latest"))
			at(robot, thief, tagged(image("bad2", "bad layer"), "new"))
			at(robot, thief, image("bad3"))
			at(robot, thief, MoveAlias{Repo: appRef, Package: "api", Name: "stable", Version: string(blob("v2").Digest)})
			at("user:ada", "adas", image("victim", "base"))
			at(robot, thief, DeleteVersion{Repo: appRef, Package: "api", Version: string(blob("victim").Digest)})
			at(robot, "good-token", tagged(image("v3", "base"), "edge"))
			check(b)

			r := b.do(OpenCompromise{ID: "c1", Credential: thief, Reason: "the runner was taken over", RestoreAliases: true})
			if r.Err != nil {
				t.Fatal(r.Err)
			}
			c := r.Value.(meta.Compromise)
			if c.Principal != robot || c.State != meta.CompromiseContaining || c.Recorded == 0 || c.Recorded > before {
				t.Errorf("opened as %+v", c)
			}
			if w := ask(b, GetRespondWork{}); len(w.Compromises) != 1 {
				t.Errorf("a leader has to work on %+v", w)
			}
			b.refuse(CloseCompromise{ID: "c1", Note: "over"}, meta.ErrConflict, "contained")
			c = b.contain("c1", limit)
			if c.State != meta.CompromiseChecking || c.Quarantined != 3 || c.Findings != 7 || c.Restored != 2 {
				t.Fatalf("contained as %+v", c)
			}

			for _, bad := range []string{"bad1", "bad2", "bad3"} {
				if q := quarantineOf(b, bad); q == nil || q.Compromise != "c1" || q.Reason != "the runner was taken over" || q.By != "user:ada" {
					t.Errorf("%s has the quarantine %+v", bad, q)
				}
			}
			for _, honest := range []string{"v1", "v2", "v3"} {
				if q := quarantineOf(b, honest); q != nil {
					t.Errorf("%s has the quarantine %+v", honest, q)
				}
			}
			for content, kept := range map[string]bool{"bad layer": true, "bad1": true, "base": false, "honest layer": false, "v1": false} {
				if q := blobQuarantine(b, content); (q != nil) != kept {
					t.Errorf("blob %q has the quarantine %+v", content, q)
				}
			}
			resolve := func(alias string) meta.Version {
				return ask(b, Resolve{Repo: appRef, Package: "api", Alias: alias}).Version
			}
			for alias, manifest := range map[string]string{"latest": "v1", "stable": "v1", "edge": "v3", "new": "bad2"} {
				if v := resolve(alias); v.Name != string(blob(manifest).Digest) {
					t.Errorf("%s leads to %s, want %s", alias, v.Name, manifest)
				}
			}
			var shown []string
			for _, a := range ask(b, ListAliases{Repo: appRef, Package: "api", Readable: true}) {
				shown = append(shown, a.Name)
			}
			if fmt.Sprint(shown) != "[edge latest stable]" {
				t.Errorf("listed are %v", shown)
			}
			if listed := ask(b, ListQuarantined{Tenant: "acme"}); len(listed) != 3 {
				t.Errorf("%d versions are listed as in quarantine", len(listed))
			}

			findings := ask(b, ListFindings{ID: "c1"})
			counts := map[meta.Outcome]int{}
			for i, f := range findings {
				counts[f.Outcome]++
				if f.Number != uint64(i+1) || f.Act.Credential != thief || f.Act.Principal != robot || f.Act.At <= before || f.Act.Index == 0 {
					t.Errorf("finding %+v", f)
				}
			}
			// latest and stable are back, new named nothing before, a deletion is for people.
			if counts[meta.OutcomeQuarantined] != 3 || counts[meta.OutcomeRestored] != 2 || counts[meta.OutcomeListed] != 2 {
				t.Errorf("outcomes are %v in %+v", counts, findings)
			}

			// What is in quarantine is evidence, and goes nowhere.
			name := func(manifest string) string { return string(blob(manifest).Digest) }
			b.refuse(DeleteVersion{Repo: appRef, Package: "api", Version: name("bad1")}, meta.ErrDenied, "quarantine", "taken over")
			b.refuse(MoveAlias{Repo: appRef, Package: "api", Name: "x", Version: name("bad1")}, meta.ErrDenied, "quarantine")
			b.refuse(tagged(image("bad1", "base", "bad layer"), "y"), meta.ErrDenied, "quarantine")
			b.must(CreateRepository{Repository: func() meta.Repository { r := app(); r.Ref.Name = "other"; return r }()})
			b.refuse(MountBlob{From: appRef, To: meta.RepoRef{Tenant: "acme", Name: "other"}, Digest: blob("bad layer").Digest}, meta.ErrNotFound, "quarantine")
			b.must(MountBlob{From: appRef, To: meta.RepoRef{Tenant: "acme", Name: "other"}, Digest: blob("base").Digest})

			// Its bytes are read again, then all is contained.
			for _, f := range findings {
				if f.Outcome == meta.OutcomeQuarantined {
					c = b.must(ReportRecheck{ID: "c1", Number: f.Number, Result: meta.Recheck{Node: "eu-1", Files: 1, Bytes: 4}}).Value.(meta.Compromise)
					check(b)
				}
			}
			if c.State != meta.CompromiseContained || c.Rechecked != 3 || c.Bad != 0 {
				t.Errorf("after reading all again: %+v", c)
			}
			if w := ask(b, GetRespondWork{}); len(w.Compromises) != 0 {
				t.Errorf("a leader has to work on %+v", w)
			}

			// A release gives one back, and the finding says so.
			b.must(ReleaseVersion{Repo: appRef, Package: "api", Version: name("bad2"), Reason: "built from the same commit, byte for byte"})
			check(b)
			if quarantineOf(b, "bad2") != nil || blobQuarantine(b, "bad layer") != nil || blobQuarantine(b, "bad1") == nil {
				t.Error("the release freed too little or too much")
			}
			b.refuse(ReleaseVersion{Repo: appRef, Package: "api", Version: name("bad2"), Reason: "again"}, meta.ErrConflict)
			released := 0
			for _, f := range ask(b, ListFindings{ID: "c1"}) {
				if f.Released != 0 && f.ReleasedBy == "user:ada" && f.Act.Name == name("bad2") {
					released++
				}
			}
			if c := ask(b, GetCompromise{ID: "c1"}); c.Released != 1 || released != 1 {
				t.Errorf("%d released, %d findings say so", c.Released, released)
			}
			b.must(CloseCompromise{ID: "c1", Note: "the runner was rebuilt"})
			b.refuse(CloseCompromise{ID: "c1", Note: "again"}, meta.ErrConflict)
			b.refuse(OpenCompromise{ID: "c1", Credential: thief, Reason: "again"}, meta.ErrExists)
			check(b)
		})
	}
}

// TestCompromiseOfPrincipal goes through all credentials of a principal, in a window.
func TestCompromiseOfPrincipal(t *testing.T) {
	b := levelFiveBench(t)
	var at []meta.Time
	for i := range 6 {
		b.now = b.now.Add(time.Minute)
		at = append(at, meta.TimeOf(b.now))
		b.mustAs(robot, fmt.Sprint("token", i%2), image(fmt.Sprint("m", i)))
		b.mustAs("user:ada", "adas", image(fmt.Sprint("a", i)))
	}
	b.must(OpenCompromise{ID: "c1", Principal: robot, Since: at[1], Until: at[4], Reason: "who knows"})
	c := b.contain("c1", 2)
	if c.Quarantined != 4 || c.Findings != 4 {
		t.Errorf("contained as %+v", c)
	}
	for i := range 6 {
		if q := quarantineOf(b, fmt.Sprint("m", i)); (q != nil) != (i >= 1 && i <= 4) {
			t.Errorf("m%d has the quarantine %+v", i, q)
		}
		if quarantineOf(b, fmt.Sprint("a", i)) != nil {
			t.Errorf("a%d is ada's", i)
		}
	}
	if r := ask(b, GetRevocation{Principal: robot}); r.At != meta.TimeOf(b.now) {
		t.Errorf("revoked at %v", r)
	}
	b.refuse(OpenCompromise{ID: "c2", Credential: "never seen", Reason: "x"}, meta.ErrNotFound, "token list")
	for _, bad := range []OpenCompromise{
		{ID: "c2", Reason: "x"},
		{ID: "c2", Credential: "a", Principal: robot, Reason: "x"},
		{ID: "c2", Principal: "node:eu-1", Reason: "x"},
		{ID: "c2", Principal: robot},
		{ID: "c2", Principal: robot, Reason: "x", Since: 2, Until: 1},
		{ID: "c2", Credential: allCredentials, Reason: "x"},
	} {
		b.refuse(bad, meta.ErrInvalid)
	}
}

// TestCompromiseIsPaged: one command goes through no more than it may, also of tokens that
// did nothing in the window.
func TestCompromiseIsPaged(t *testing.T) {
	b := levelFiveBench(t)
	const tokens, limit = 40, 10
	for i := range tokens {
		b.mustAs(robot, fmt.Sprintf("old%02d", i), image("m"+fmt.Sprint(i)))
	}
	b.now = b.now.Add(time.Hour)
	since := meta.TimeOf(b.now)
	b.mustAs(robot, "young", image("late"))

	all := actor{Principal: robot, All: true, Since: since}
	var acts []meta.Act
	pages := 0
	view, err := b.View()
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	for after := []byte(nil); pages == 0 || after != nil; pages++ {
		page, next, err := actsOf(view, all, meta.TimeOf(b.now), after, limit)
		if err != nil {
			t.Fatal(err)
		}
		acts, after = append(acts, page...), next
	}
	if len(acts) != 1 || acts[0].Credential != "young" || pages < tokens/limit {
		t.Errorf("%d pages have %+v", pages, acts)
	}

	b.must(OpenCompromise{ID: "c1", Principal: robot, Since: since, Reason: "who knows"})
	if c := b.contain("c1", limit); c.Quarantined != 1 || c.Findings != 1 {
		t.Errorf("contained as %+v", c)
	}

	// Tokens of which nothing came cost one each.
	b.must(CreateAccount{Name: "user:eve"})
	for i := range tokens {
		b.mustAs("user:eve", thief, CreateCredential{Life: time.Hour, Credential: meta.Credential{
			ID: fmt.Sprintf("child%02d", i), Hash: make([]byte, 32), Principal: "user:eve", Kind: meta.CredentialToken,
		}})
	}
	b.must(OpenCompromise{ID: "c2", Credential: thief, Reason: "who knows"})
	steps := 0
	for c := (meta.Compromise{State: meta.CompromiseContaining}); c.State == meta.CompromiseContaining; steps++ {
		c = b.must(AdvanceCompromise{ID: "c2", Limit: limit}).Value.(meta.Compromise)
	}
	if steps < 2*tokens/limit {
		t.Errorf("%d tokens and what was done with them take %d commands of %d", tokens, steps, limit)
	}
	check(b)
}

// TestCompromiseLeavesOthersAlone: what was deleted and published again by another, and
// what somebody had in quarantine before.
func TestCompromiseLeavesOthersAlone(t *testing.T) {
	b := levelFiveBench(t)
	name := func(manifest string) string { return string(blob(manifest).Digest) }
	for _, m := range []string{"again", "gone", "before"} {
		b.now = b.now.Add(time.Second)
		b.mustAs(robot, thief, image(m))
	}
	for _, m := range []string{"again", "gone"} {
		b.must(DeleteVersion{Repo: appRef, Package: "api", Version: name(m)})
	}
	b.now = b.now.Add(time.Second)
	b.must(image("again"))
	b.must(QuarantineVersion{Repo: appRef, Package: "api", Version: name("before"), Reason: "odd"})
	b.refuse(QuarantineVersion{Repo: appRef, Package: "api", Version: name("before"), Reason: "odd"}, meta.ErrConflict, "odd")
	b.refuse(QuarantineVersion{Repo: appRef, Package: "api", Version: name("nothing"), Reason: "odd"}, meta.ErrNotFound)
	b.refuse(QuarantineVersion{Repo: appRef, Package: "api", Version: name("again")}, meta.ErrInvalid)
	check(b)
	b.must(OpenCompromise{ID: "c1", Credential: thief, Reason: "stolen"})
	c := b.contain("c1", 1000)
	got := map[string]meta.Outcome{}
	for _, f := range ask(b, ListFindings{ID: "c1"}) {
		got[f.Act.Name] = f.Outcome
	}
	want := map[string]meta.Outcome{name("again"): meta.OutcomeReplaced, name("gone"): meta.OutcomeGone, name("before"): meta.OutcomeAlready}
	if !maps.Equal(got, want) || c.State != meta.CompromiseContained || quarantineOf(b, "again") != nil || quarantineOf(b, "before").Reason != "odd" {
		t.Errorf("outcomes are %v, want %v; %+v", got, want, c)
	}
}

// TestQuarantineKeepsBytes: what is in quarantine is neither collected nor expired, and
// copies of it are owed as before.
func TestQuarantineKeepsBytes(t *testing.T) {
	b := levelFiveBench(t)
	b.must(link("layer", "eu-1"))
	b.must(image("m", "layer"))
	owed := len(ask(b, PendingReplicas{Region: "us"}))
	b.must(QuarantineVersion{Repo: appRef, Package: "api", Version: string(blob("m").Digest), Reason: "odd"})
	none := time.Duration(0)
	b.must(SetGC{Grace: &none})
	b.now = b.now.Add(48 * time.Hour)
	b.must(ExpireUploads{Before: meta.TimeOf(b.now), Limit: 100})
	b.must(CollectBlobs{Limit: 100, Grace: &none})
	check(b)
	if q := blobQuarantine(b, "layer"); q == nil {
		t.Error("the layer is not kept from readers")
	}
	if got := len(ask(b, PendingReplicas{Region: "us"})); got != owed || owed == 0 {
		t.Errorf("%d copies are owed, were %d", got, owed)
	}
	b.refuse(UnlinkBlob{Repo: appRef, Digest: blob("layer").Digest}, meta.ErrConflict)
}

// TestBelowLevelFive: versions and aliases are as they were, and nothing is recorded.
func TestBelowLevelFive(t *testing.T) {
	old := Level - 1
	b := newBench(t)
	if level := ask(b, GetLevel{}); level > old {
		t.Skip("a new cluster begins at this build's level")
	}
	r := b.doAs(Origin{Principal: robot, TokenID: thief, Elevation: "e", Time: meta.TimeOf(b.now)}, image("m"))
	v := ask(b, GetVersion{Repo: appRef, Package: "api", Version: string(blob("m").Digest)})
	if r.Err != nil || v.Credential != "" || v.Verdict.Elevation != "" {
		t.Errorf("published as %+v: %v", v, r.Err)
	}
	if acts := ask(b, ListActs{Principal: robot}); len(acts.Acts) != 0 {
		t.Errorf("recorded are %+v", acts)
	}
}

// quarantineModel is what quarantine must look like: who published what with which
// layers, and what is in quarantine.
type quarantineModel struct {
	layers      map[string][]string
	by          map[string]string
	quarantined map[string]string // version -> compromise, or "by hand"
	tags        map[string]string
}

// TestQuarantineModel runs random publications, deletions, quarantines, releases and
// compromises against the machine and the model.
func TestQuarantineModel(t *testing.T) {
	layers := []string{"l1", "l2", "l3"}
	manifests := []string{"m1", "m2", "m3", "m4"}
	credentials := []string{"k1", "k2"}
	rapid.Check(t, func(r *rapid.T) {
		b := levelFiveBench(t)
		m := quarantineModel{layers: map[string][]string{}, by: map[string]string{}, quarantined: map[string]string{}, tags: map[string]string{}}
		for _, l := range layers {
			b.must(link(l, "eu-1"))
		}
		lists := map[string][]string{}
		for _, manifest := range manifests {
			lists[manifest] = rapid.SliceOfNDistinct(rapid.SampledFrom(layers), 0, 2, rapid.ID).Draw(r, "layers of "+manifest)
		}
		opened := 0
		for range rapid.IntRange(1, 25).Draw(r, "steps") {
			b.now = b.now.Add(time.Second)
			manifest := rapid.SampledFrom(manifests).Draw(r, "manifest")
			who := rapid.SampledFrom(credentials).Draw(r, "who")
			tag := rapid.SampledFrom([]string{"a", "b"}).Draw(r, "tag")
			name := string(blob(manifest).Digest)
			_, there := m.by[manifest]
			_, kept := m.quarantined[manifest]
			var c Command
			var want error
			var then func()
			switch rapid.IntRange(0, 5).Draw(r, "command") {
			case 0, 1:
				c = tagged(image(manifest, lists[manifest]...), tag)
				if kept {
					want = meta.ErrDenied
				}
				then = func() {
					if !there {
						m.by[manifest], m.layers[manifest] = who, append([]string{manifest}, lists[manifest]...)
					}
					m.tags[tag] = manifest
				}
			case 2:
				c = DeleteVersion{Repo: appRef, Package: "api", Version: name}
				if !there {
					want = meta.ErrNotFound
				} else if kept {
					want = meta.ErrDenied
				}
				then = func() {
					delete(m.by, manifest)
					delete(m.layers, manifest)
					maps.DeleteFunc(m.tags, func(_, v string) bool { return v == manifest })
				}
			case 3:
				c = QuarantineVersion{Repo: appRef, Package: "api", Version: name, Reason: "odd"}
				if !there {
					want = meta.ErrNotFound
				} else if kept {
					want = meta.ErrConflict
				}
				then = func() { m.quarantined[manifest] = "by hand" }
			case 4:
				c = ReleaseVersion{Repo: appRef, Package: "api", Version: name, Reason: "fine"}
				if !there {
					want = meta.ErrNotFound
				} else if !kept {
					want = meta.ErrConflict
				}
				then = func() { delete(m.quarantined, manifest) }
			case 5:
				opened++
				id := fmt.Sprint("c", opened)
				c = OpenCompromise{ID: id, Credential: who, Reason: "stolen"}
				if acted, err := try(b, ListActs{Principal: robot, Credential: who}); err != nil || len(acted.Acts) == 0 {
					want = meta.ErrNotFound
				}
				then = func() {
					b.contain(id, uint32(rapid.IntRange(1, 3).Draw(r, "page")))
					for manifest, by := range m.by {
						if _, kept := m.quarantined[manifest]; by == who && !kept {
							m.quarantined[manifest] = id
						}
					}
				}
			}
			result := b.doAs(b.by(robot, who), c)
			if want != nil {
				if !errors.Is(result.Err, want) {
					r.Fatalf("%s %s: got %v, want %v", Name(c), manifest, result.Err, want)
				}
				continue
			}
			if result.Err != nil {
				r.Fatalf("%s %s: %v", Name(c), manifest, result.Err)
			}
			then()
			check(b)
			compareQuarantine(b, &m, append(slices.Clone(layers), manifests...))
		}
	})
}

func compareQuarantine(b *bench, m *quarantineModel, contents []string) {
	b.Helper()
	for manifest := range m.by {
		q := quarantineOf(b, manifest)
		why, kept := m.quarantined[manifest]
		if (q != nil) != kept || q != nil && why != "by hand" && q.Compromise != why {
			b.Fatalf("%s has the quarantine %+v, want %q", manifest, q, why)
		}
	}
	for _, content := range contents {
		used, free := false, false
		for manifest, uses := range m.layers {
			if slices.Contains(uses, content) {
				_, kept := m.quarantined[manifest]
				used, free = true, free || !kept
			}
		}
		a, err := try(b, GetBlob{Repo: appRef, Digest: blob(content).Digest})
		if errors.Is(err, meta.ErrNotFound) && !used {
			continue
		}
		if err != nil || (a.Quarantine != nil) != (used && !free) {
			b.Fatalf("blob %s has the quarantine %+v, used %v, by a readable version %v: %v", content, a.Quarantine, used, free, err)
		}
	}
	var shown []string
	aliases, err := try(b, ListAliases{Repo: appRef, Package: "api", Readable: true})
	if err != nil && !errors.Is(err, meta.ErrNotFound) {
		b.Fatal(err)
	}
	for _, a := range aliases {
		shown = append(shown, a.Name)
	}
	var want []string
	for _, tag := range slices.Sorted(maps.Keys(m.tags)) {
		if _, kept := m.quarantined[m.tags[tag]]; !kept {
			want = append(want, tag)
		}
	}
	if strings.Join(shown, " ") != strings.Join(want, " ") {
		b.Fatalf("listed are %v, want %v", shown, want)
	}
}

// TestQuarantineInTheSwarm: an agent may have no blob that only versions in quarantine
// use, wherever it is linked; servers go on making copies of it.
func TestQuarantineInTheSwarm(t *testing.T) {
	b := levelFiveBench(t)
	b.must(link("layer", "eu-1"))
	b.must(image("m", "layer"))
	agent := meta.Node{ID: "a", Role: meta.RoleAgent}
	may := func(n meta.Node) bool {
		_, err := try(b, MayHold{Root: blob("layer").Root, Node: n})
		if err != nil && !errors.Is(err, meta.ErrNotFound) {
			t.Fatal(err)
		}
		return err == nil
	}
	if !may(agent) {
		t.Error("before, an agent may not have it")
	}
	b.must(QuarantineVersion{Repo: appRef, Package: "api", Version: string(blob("m").Digest), Reason: "odd"})
	if may(agent) || !may(server("eu-2", "eu")) {
		t.Error("in quarantine, an agent may have it, or a server may not")
	}
	other := app()
	other.Ref.Name = "other"
	b.must(CreateRepository{Repository: other})
	l := link("layer", "eu-1")
	l.Repo = other.Ref
	b.must(l)
	if !may(agent) {
		t.Error("what another repository has is kept from an agent")
	}
}

// Who writes a stolen token where its id belongs does not read it again in an error.
func TestCompromiseErrorHidesTheToken(t *testing.T) {
	text := "shoal_aaaaaaaaaaaaaaaa_" + strings.Repeat("secret", 10)
	if err := (OpenCompromise{ID: "i1", Credential: text, Reason: "stolen"}).Check(); !errors.Is(err, meta.ErrInvalid) || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v", err)
	}
}
