package catalog_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"

	godigest "github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/uploadid"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify"
	"github.com/shoal-registry/shoal/verify/digest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	app    = meta.RepoRef{Tenant: "acme", Name: "app"}
	other  = meta.RepoRef{Tenant: "acme", Name: "other"}
	closed = meta.RepoRef{Tenant: "acme", Name: "closed"} // nobody but its owner reads it
	rival  = meta.RepoRef{Tenant: "rival", Name: "app"}
	api    = catalog.Package{Repo: app, Name: "api"}
)

// world is a catalog over metadata and content of the test.
type world struct {
	*catalog.Catalog
	*testing.T
	meta    *catalogtest.Metadata
	content *catalogtest.Memory
	by      catalog.Caller
}

func newWorld(t *testing.T, edit func(*catalog.Config)) *world {
	t.Helper()
	w := &world{T: t, meta: catalogtest.NewMetadata(t, catalogtest.Node, catalogtest.Region, nil), content: catalogtest.NewMemory()}
	ids, err := uploadid.NewMinter(catalogtest.Node, bytes.Repeat([]byte("s"), 32))
	if err != nil {
		t.Fatal(err)
	}
	cfg := catalog.Config{
		Metadata: w.meta, Commands: w.meta, Content: w.content, IDs: ids, Node: catalogtest.Node, Region: catalogtest.Region,
		AutoCreate: true, Metrics: prometheus.NewRegistry(),
		May: func(who meta.Principal, action meta.Action, r *meta.Repository) bool {
			return meta.Match(who.Patterns(action), r.Ref)
		},
	}
	if edit != nil {
		edit(&cfg)
	}
	if w.Catalog, err = catalog.New(cfg); err != nil {
		t.Fatal(err)
	}
	w.by = catalog.Caller{Who: meta.Principal{Name: "user:ada"}}
	for _, pattern := range []string{"acme/app", "acme/other"} {
		w.by.Who.Rights = append(w.by.Who.Rights, meta.Right{Actions: []meta.Action{meta.ActionPull, meta.ActionList, meta.ActionPush}, Repository: pattern})
	}
	return w
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) create(refs ...meta.RepoRef) {
	w.Helper()
	for _, ref := range refs {
		_, err := w.ForPush(w.Context(), w.by, ref, "oci", nil)
		w.must(err)
	}
}

func (w *world) blob(repo meta.RepoRef, body string) meta.Reference {
	w.Helper()
	s, up, err := w.Ingest(w.Context(), w.by, repo, bytes.NewReader([]byte(body)), "")
	w.must(err)
	defer up.Close()
	_, err = w.Link(w.Context(), w.by, repo, s)
	w.must(err)
	return meta.Reference{Digest: s.Name, Size: int64(len(body))}
}

func draft(body string, refs ...meta.Reference) catalog.Draft {
	return catalog.Draft{
		Version:   meta.Version{Package: "api", References: refs},
		Documents: []catalog.Document{{Path: "manifest.json", Body: []byte(body)}},
	}
}

func TestPublishAndRead(t *testing.T) {
	w := newWorld(t, nil)
	w.create(app)
	layer := w.blob(app, "layer")
	d := draft("manifest", layer, layer)
	d.Aliases = []string{"1.0", "latest"}
	d.Optional = []meta.Reference{{Digest: digest.FromBytes([]byte("elsewhere")), Size: 9}}
	p, err := w.Publish(t.Context(), w.by, app, d)
	w.must(err)
	if !p.Created || p.Token.Index == 0 || p.Version.Verdict.Decision != verify.DecisionPassed {
		t.Errorf("published %+v", p)
	}
	if len(p.Version.References) != 1 {
		t.Errorf("references %v: each once, what is elsewhere not at all", p.Version.References)
	}
	by := w.by
	by.After = p.Token
	a, asOf, err := w.Resolve(t.Context(), by, api, "latest")
	w.must(err)
	if a.Version.Digest != digest.FromBytes([]byte("manifest")) || a.Version.CreatedBy != "user:ada" || asOf.Index < p.Token.Index {
		t.Errorf("resolved %+v as of %+v", a, asOf)
	}
	body, err := w.Document(t.Context(), by, &a.Version)
	w.must(err)
	if string(body) != "manifest" || w.content.Opened() != 0 {
		t.Errorf("the document is %q after %d opens: it was just pushed", body, w.content.Opened())
	}
	again, err := w.Publish(t.Context(), w.by, app, d)
	w.must(err)
	if again.Created {
		t.Error("the same was created twice")
	}
	aliases, _, err := w.Aliases(t.Context(), by, api, catalog.Page{Limit: 10})
	w.must(err)
	if len(aliases) != 2 || aliases[0].Name != "1.0" {
		t.Errorf("aliases %v", aliases)
	}
	versions, _, err := w.Versions(t.Context(), by, api, catalog.Page{Limit: 10})
	w.must(err)
	packages, _, err := w.Packages(t.Context(), by, app, "a", catalog.Page{Limit: 10})
	w.must(err)
	if len(versions) != 1 || len(packages) != 1 {
		t.Errorf("%d versions, %d packages", len(versions), len(packages))
	}
	token, err := w.DeleteVersion(t.Context(), w.by, api, a.Version.Name)
	w.must(err)
	by.After = token
	if _, _, err := w.Version(t.Context(), by, api, a.Version.Name); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("a deleted version: %v", err)
	}
	history, _, err := w.History(t.Context(), by, api, "latest", catalog.Page{Limit: 10})
	w.must(err)
	if len(history) != 2 || !history[0].Deleted {
		t.Errorf("history %+v", history)
	}
}

func TestPublishRefuses(t *testing.T) {
	w := newWorld(t, nil)
	w.create(app, other)
	elsewhere := w.blob(other, "of another repository")
	wrong := w.blob(app, "layer")
	wrong.Size++
	for name, d := range map[string]catalog.Draft{
		"another repository's blob": draft("m", elsewhere),
		"a wrong size":              draft("m", wrong),
		"a version that is a blob":  draft("m", meta.Reference{Digest: wrong.Digest, Size: 5, Version: true}),
		"a wrong name": {Version: meta.Version{Package: "api"},
			Documents: []catalog.Document{{Path: "m", Name: digest.FromBytes([]byte("x")), Body: []byte("y")}}},
	} {
		_, err := w.Publish(t.Context(), w.by, app, d)
		var refused *catalog.RefusedError
		if !errors.As(err, &refused) || !errors.Is(err, meta.ErrInvalid) || len(refused.Findings) == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := w.Publish(t.Context(), w.by, app, catalog.Draft{Version: meta.Version{Package: "api"}}); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("without files: %v", err)
	}
	if _, _, err := w.Package(t.Context(), w.by, api); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("something of what was refused is there: %v", err)
	}
	var stale uint64 = 7
	d := draft("m")
	d.Base = &stale
	if _, err := w.Publish(t.Context(), w.by, app, d); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("at another revision: %v", err)
	}
}

// A list of references that no command can hold is staged, and read back whole.
func TestPublishLong(t *testing.T) {
	w := newWorld(t, nil)
	w.create(app)
	var refs []meta.Reference
	for i := range 3000 {
		refs = append(refs, w.blob(app, fmt.Sprint("blob ", i)))
	}
	p, err := w.Publish(t.Context(), w.by, app, draft("long", refs...))
	w.must(err)
	if p.Version.Draft == "" || p.Version.References != nil {
		t.Errorf("%d references are in the command", len(p.Version.References))
	}
	var got []meta.Reference
	for {
		page, _, err := raftmeta.Ask(t.Context(), w.meta, meta.Local, state.ListReferences{
			Repo: app, Package: "api", Version: p.Version.Name, Page: state.Page{After: fmt.Sprint(len(got)), Limit: 1000},
		})
		w.must(err)
		if got = append(got, page...); len(page) < 1000 {
			break
		}
	}
	if !slices.Equal(got, refs) {
		t.Errorf("%d references came back of %d", len(got), len(refs))
	}
}

func TestForPush(t *testing.T) {
	w := newWorld(t, nil)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := w.ForPush(t.Context(), w.by, app, "oci", nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	r, _, err := w.Repository(t.Context(), w.by, app)
	w.must(err)
	if r.Kind != meta.KindHosted || r.Class != meta.ClassStandard || r.Home != catalogtest.Region || r.Visibility != meta.VisibilityPrivate {
		t.Errorf("the first push created %+v", r)
	}
	if _, err := w.ForPush(t.Context(), w.by, app, "npm", nil); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("a push of another format: %v", err)
	}
	if _, err := w.ForPush(t.Context(), w.by, meta.RepoRef{Tenant: "A", Name: "b"}, "oci", nil); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("a name that cannot be: %v", err)
	}
	strict := newWorld(t, func(c *catalog.Config) { c.AutoCreate = false })
	if _, err := strict.ForPush(t.Context(), w.by, app, "oci", nil); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("a push to nothing: %v", err)
	}
}

func TestUpload(t *testing.T) {
	w := newWorld(t, nil)
	w.create(app, other)
	up, err := w.Begin(t.Context(), w.by, app, false)
	w.must(err)
	_, err = up.Append(t.Context(), bytes.NewReader([]byte("one ")))
	w.must(err)
	w.must(up.Close())
	// The id is for one repository and one principal.
	eve := w.by
	eve.Who.Name = "user:eve"
	for name, f := range map[string]func() error{
		"another repository": func() error { _, err := w.Resume(t.Context(), w.by, other, up.ID()); return err },
		"another principal":  func() error { _, err := w.Resume(t.Context(), eve, app, up.ID()); return err },
		"another id":         func() error { _, err := w.Resume(t.Context(), w.by, app, up.ID()+"x"); return err },
	} {
		if err := f(); !errors.Is(err, meta.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	up, err = w.Resume(t.Context(), w.by, app, up.ID())
	w.must(err)
	if up.Offset() != 4 {
		t.Errorf("the upload has %d bytes", up.Offset())
	}
	_, err = up.Append(t.Context(), bytes.NewReader([]byte("two")))
	w.must(err)
	// A name that is given only at the end is computed then.
	want := godigest.SHA512.FromString("one two")
	s, token, err := up.Commit(t.Context(), want)
	w.must(err)
	by := w.by
	by.After = token
	for _, d := range []digest.Digest{want, s.Blob.Digest} {
		b, _, err := w.Blob(t.Context(), by, app, d)
		w.must(err)
		r, err := w.Open(t.Context(), b.Blob)
		w.must(err)
		got, err := io.ReadAll(r)
		w.must(err)
		if string(got) != "one two" {
			t.Errorf("%s has %q", d, got)
		}
	}
	if _, _, err := w.Blob(t.Context(), by, other, want); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("a blob of another repository: %v", err)
	}
	bad, err := w.Begin(t.Context(), w.by, app, false)
	w.must(err)
	var mismatch *digest.MismatchError
	if _, _, err := bad.Commit(t.Context(), godigest.SHA512.FromString("nothing of the kind")); !errors.As(err, &mismatch) {
		t.Errorf("a wrong sha512: %v", err)
	}
	if _, err := w.Resume(t.Context(), w.by, app, bad.ID()); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("an upload that cannot become right any more: %v", err)
	}
}

func TestMount(t *testing.T) {
	w := newWorld(t, nil)
	w.create(app, other, closed, rival)
	open, secret, foreign := w.blob(app, "open"), w.blob(closed, "secret"), w.blob(rival, "foreign")
	mount := func(from *meta.RepoRef, d digest.Digest) error {
		_, err := w.Mount(t.Context(), w.by, other, from, d)
		return err
	}
	for name, test := range map[string]struct {
		from *meta.RepoRef
		d    digest.Digest
	}{
		"what the caller may not read":             {&closed, secret.Digest},
		"the same without a name":                  {nil, secret.Digest},
		"another tenant's":                         {&rival, foreign.Digest},
		"the same without a name of another":       {nil, foreign.Digest},
		"what is not there":                        {&app, secret.Digest},
		"what is nowhere":                          {nil, digest.FromBytes([]byte("nowhere"))},
		"a repository that is not there":           {&meta.RepoRef{Tenant: "acme", Name: "none"}, open.Digest},
		"what another tenant's repository has too": {&rival, open.Digest},
	} {
		if err := mount(test.from, test.d); !errors.Is(err, meta.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
		if _, _, err := w.Blob(t.Context(), w.by, other, test.d); !errors.Is(err, meta.ErrNotFound) {
			t.Errorf("%s is visible: %v", name, err)
		}
	}
	w.must(mount(nil, open.Digest))
	w.must(mount(&app, open.Digest)) // there already
	_, _, err := w.Blob(t.Context(), w.by, other, open.Digest)
	w.must(err)
	if err := mount(&app, "sha256:x"); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("a digest that is none: %v", err)
	}
}

// What is found needs no round, what is not found has one; without a quorum what
// is known is served, labelled, and nothing is said not to exist.
func TestFreshness(t *testing.T) {
	w := newWorld(t, nil)
	w.create(app)
	layer := w.blob(app, "layer")
	d := draft("manifest", layer)
	d.Aliases = []string{"1.0"}
	p, err := w.Publish(t.Context(), w.by, app, d)
	w.must(err)
	rounds := func(f func()) int {
		before := w.meta.Asked(meta.ModeStrong)
		f()
		return w.meta.Asked(meta.ModeStrong) - before
	}
	if n := rounds(func() {
		_, asOf, err := w.Resolve(t.Context(), w.by, api, "1.0")
		w.must(err)
		_, _, err = w.Version(t.Context(), w.by, api, p.Version.Name)
		w.must(err)
		_, _, err = w.Blob(t.Context(), w.by, app, layer.Digest)
		w.must(err)
		if asOf.Mode != meta.ModeBounded || asOf.Stale {
			t.Errorf("an alias is %+v", asOf)
		}
	}); n != 0 {
		t.Errorf("%d strong rounds for what is there", n)
	}
	if n := rounds(func() {
		if _, _, err := w.Resolve(t.Context(), w.by, api, "none"); !errors.Is(err, meta.ErrNotFound) {
			t.Error(err)
		}
	}); n != 1 {
		t.Errorf("%d strong rounds before a 404", n)
	}
	if n := rounds(func() {
		_, asOf, err := w.Resolve(t.Context(), w.by, catalog.Package{Repo: app, Name: "none"}, "1.0")
		if !errors.Is(err, meta.ErrNotFound) || w.Known(t.Context(), w.by, catalog.Package{Repo: app, Name: "none"}, asOf) || !w.Known(t.Context(), w.by, api, asOf) {
			t.Error(err)
		}
	}); n != 1 {
		t.Errorf("%d strong rounds to explain a 404", n)
	}
	if n := rounds(func() {
		refs := []meta.Reference{layer}
		for i := range 50 {
			refs = append(refs, meta.Reference{Digest: digest.FromBytes([]byte{byte(i)}), Size: 1})
		}
		if _, err := w.Publish(t.Context(), w.by, app, draft("many are missing", refs...)); err == nil {
			t.Error("published")
		}
	}); n != 1 {
		t.Errorf("%d strong rounds for fifty references that are not there", n)
	}
	gone := &meta.UnavailableError{Reason: "no_quorum"}
	w.meta.Break(func(mode meta.Mode) error {
		if mode == meta.ModeLocal {
			return nil
		}
		return gone
	})
	_, asOf, err := w.Resolve(t.Context(), w.by, api, "1.0")
	w.must(err)
	if !asOf.Stale || asOf.Mode != meta.ModeLocal {
		t.Errorf("without a quorum an alias is %+v", asOf)
	}
	by := w.by
	by.After = p.Token
	if _, _, err := w.Resolve(t.Context(), by, api, "1.0"); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("with a token: %v", err)
	}
	if _, _, err := w.Resolve(t.Context(), w.by, api, "none"); !errors.Is(err, meta.ErrUnavailable) || errors.Is(err, meta.ErrNotFound) {
		t.Errorf("what is not known: %v", err)
	}
	if _, err := w.Publish(t.Context(), w.by, app, d); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("a publish: %v", err)
	}
	// A mode that the caller named is served, or nothing is.
	asks := func(mode string) catalog.Caller {
		by := w.by
		var err error
		by.Asked, err = meta.ParseFreshness(mode)
		w.must(err)
		return by
	}
	for _, mode := range []string{"strong", "bounded", "bounded=1h"} {
		if _, _, err := w.Resolve(t.Context(), asks(mode), api, "1.0"); !errors.Is(err, meta.ErrUnavailable) {
			t.Errorf("%s without a quorum: %v", mode, err)
		}
	}
	if _, asOf, err := w.Resolve(t.Context(), asks("local"), api, "1.0"); err != nil || asOf.Stale || asOf.Mode != meta.ModeLocal {
		t.Errorf("local: %+v, %v", asOf, err)
	}
	w.meta.Break(nil)
	for _, mode := range []string{"strong", "bounded", "local"} {
		by := asks(mode)
		var absent meta.AsOf
		by.Absent = func(a meta.AsOf) { absent = a }
		before := w.meta.Asked(meta.ModeStrong)
		if _, _, err := w.Resolve(t.Context(), by, api, "none"); !errors.Is(err, meta.ErrNotFound) || string(absent.Mode) != mode {
			t.Errorf("%s: the absence is %+v, %v", mode, absent, err)
		}
		want := 0
		if mode == "strong" {
			want = 1
		}
		if n := w.meta.Asked(meta.ModeStrong) - before; n != want {
			t.Errorf("%s: %d strong rounds", mode, n)
		}
		if _, asOf, err := w.Version(t.Context(), by, api, p.Version.Name); err != nil || string(asOf.Mode) != mode {
			t.Errorf("%s: a version is %+v, %v", mode, asOf, err)
		}
	}
}

// One load serves all that wait for a document; wrong bytes are never served.
func TestDocument(t *testing.T) {
	w := newWorld(t, func(c *catalog.Config) { c.CacheBytes = 1 << 20 })
	w.create(app)
	p, err := w.Publish(t.Context(), w.by, app, draft("manifest"))
	w.must(err)
	// Another catalog over the same has an empty cache.
	second := newWorld(t, func(c *catalog.Config) { c.Metadata, c.Commands, c.Content = w.meta, w.meta, w.content })
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if body, err := second.Document(t.Context(), w.by, &p.Version); err != nil || string(body) != "manifest" {
				t.Errorf("%q, %v", body, err)
			}
		})
	}
	wg.Wait()
	if n := w.content.Opened(); n != 1 {
		t.Errorf("opened %d times", n)
	}
	w.content.Flip()
	third := newWorld(t, func(c *catalog.Config) { c.Metadata, c.Commands, c.Content = w.meta, w.meta, w.content })
	if _, err := third.Document(t.Context(), w.by, &p.Version); !errors.Is(err, meta.ErrCorrupt) {
		t.Errorf("flipped bytes: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := third.Reserve(ctx, 1<<40); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("more than there is, without time: %v", err)
	}
}

// An agent reads, and says of a write where it must go.
func TestAgent(t *testing.T) {
	w := newWorld(t, nil)
	w.create(app)
	p, err := w.Publish(t.Context(), w.by, app, draft("manifest"))
	w.must(err)
	agent := newWorld(t, func(c *catalog.Config) {
		c.Metadata, c.Commands, c.IDs, c.Content = w.meta, nil, nil, w.content
	})
	_, _, err = agent.Version(t.Context(), w.by, api, p.Version.Name)
	agent.must(err)
	for name, f := range map[string]func() error{
		"publish": func() error { _, err := agent.Publish(t.Context(), w.by, app, draft("x")); return err },
		"begin":   func() error { _, err := agent.Begin(t.Context(), w.by, app, false); return err },
		"resume":  func() error { _, err := agent.Resume(t.Context(), w.by, app, "x"); return err },
		"delete":  func() error { _, err := agent.DeleteVersion(t.Context(), w.by, api, p.Version.Name); return err },
	} {
		if err := f(); !errors.Is(err, meta.ErrUnavailable) {
			t.Errorf("%s on an agent: %v", name, err)
		}
	}
}

// A request that is forwarded twice is done once.
func TestRepeatedRequest(t *testing.T) {
	w := newWorld(t, nil)
	w.create(app)
	by := w.by
	by.Origin.RequestID = "request-1"
	first, err := w.Publish(t.Context(), by, app, draft("manifest"))
	w.must(err)
	second, err := w.Publish(t.Context(), by, app, draft("manifest"))
	w.must(err)
	if first.Token != second.Token || !second.Created {
		t.Errorf("%+v and %+v", first, second)
	}
}

func TestHead(t *testing.T) {
	w := newWorld(t, nil)
	w.create(app)
	_, revision, found, err := w.Head(t.Context(), w.by, api, "1.0")
	w.must(err)
	if found || revision != 0 {
		t.Errorf("nothing is at revision %d", revision)
	}
	d := draft("manifest")
	d.Aliases, d.Base = []string{"1.0"}, &revision
	_, err = w.Publish(t.Context(), w.by, app, d)
	w.must(err)
	a, revision, found, err := w.Head(t.Context(), w.by, api, "1.0")
	w.must(err)
	if !found || revision == 0 || a.Version.Digest != digest.FromBytes([]byte("manifest")) {
		t.Errorf("head is %+v at %d", a, revision)
	}
	zero := uint64(0)
	d = draft("another")
	d.Base = &zero
	if _, err := w.Publish(t.Context(), w.by, app, d); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("at the revision before: %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, cfg := range []catalog.Config{
		{}, {Metadata: &catalogtest.Metadata{}},
		{Metadata: &catalogtest.Metadata{}, Content: catalogtest.NewMemory(), Commands: &catalogtest.Metadata{}},
	} {
		if _, err := catalog.New(cfg); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
}
