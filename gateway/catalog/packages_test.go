package catalog_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// grouped creates a proxy, and groups of app: one that writes to it, one that writes to
// closed, and one that writes nowhere.
func (w *world) grouped() (proxy, all, shut, none meta.Repository) {
	w.Helper()
	w.create(app, closed)
	make := func(r meta.Repository) meta.Repository {
		r.Ref.Tenant, r.Format, r.Class, r.Home, r.Visibility = "acme", "oci", meta.ClassCold, catalogtest.Region, meta.VisibilityPrivate
		receipt, err := w.meta.Do(w.Context(), state.Origin{Principal: "admin:first"}, state.CreateRepository{Repository: r})
		w.must(err)
		return receipt.Value.(meta.Repository)
	}
	proxy = make(meta.Repository{Ref: meta.RepoRef{Name: "proxy"}, Kind: meta.KindProxy, Upstream: &meta.Upstream{URL: "https://registry.example"}})
	all = make(meta.Repository{Ref: meta.RepoRef{Name: "all"}, Kind: meta.KindGroup, Members: []string{"app", "proxy"}, WriteTo: "app"})
	shut = make(meta.Repository{Ref: meta.RepoRef{Name: "shut"}, Kind: meta.KindGroup, Members: []string{"closed"}, WriteTo: "closed"})
	none = make(meta.Repository{Ref: meta.RepoRef{Name: "none"}, Kind: meta.KindGroup, Members: []string{"app"}})
	return proxy, all, shut, none
}

// TestForPushOfKinds: a push to a group goes to its member, for whom may push there; what
// takes none says so.
func TestForPushOfKinds(t *testing.T) {
	w := newWorld(t, nil)
	proxy, all, shut, none := w.grouped()
	got, err := w.ForPush(t.Context(), w.by, all.Ref, "oci", &all)
	if err != nil || got.Ref != app {
		t.Errorf("a group: %+v, %v", got, err)
	}
	if got, err = w.ForPush(t.Context(), w.by, all.Ref, "oci", nil); err != nil || got.Ref != app {
		t.Errorf("a group that is looked up: %+v, %v", got, err)
	}
	if _, err := w.ForPush(t.Context(), w.by, all.Ref, "npm", &all); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("another format: %v", err)
	}
	if _, err := w.ForPush(t.Context(), w.by, shut.Ref, "oci", &shut); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("a member that it may not push to: %v", err)
	}
	if _, err := w.ForChange(t.Context(), w.by, all, "oci", meta.ActionDelete); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("another action: %v", err)
	}
	for _, r := range []meta.Repository{proxy, none} {
		var readOnly *meta.ReadOnlyError
		if _, err := w.ForPush(t.Context(), w.by, r.Ref, "oci", &r); !errors.As(err, &readOnly) || readOnly.Repo != r.Ref || readOnly.Kind != r.Kind {
			t.Errorf("%s: %v", r.Ref, err)
		}
	}
}

// TestPackageOfFiles: an open version gains files, which are found by version and over all
// versions; marks, closing and sources go through the catalog.
func TestPackageOfFiles(t *testing.T) {
	w := newWorld(t, nil)
	_, all, _, _ := w.grouped()
	pkg := catalog.Package{Repo: app, Name: "wheel"}
	publish := func(version, path, body string) error {
		_, err := w.Publish(t.Context(), w.by, app, catalog.Draft{
			Version: meta.Version{Package: "wheel", Name: version, State: meta.StateOpen},
			Documents: []catalog.Document{{
				Path: path, Body: []byte(body), Summary: []byte("about " + path), Sums: map[string]string{"md5": strings.Repeat("ab", 16)},
			}},
			Spelling: "Wheel", NewSpelling: true,
		})
		return err
	}
	w.must(publish("1.0", "a.whl", "one"))
	w.must(publish("1.0", "b.whl", "two"))
	w.must(publish("2.0", "c.whl", "three"))
	if err := publish("1.0", "b.whl", "other"); !errors.Is(err, meta.ErrExists) {
		t.Errorf("other bytes: %v", err)
	}
	v, _, err := w.Version(t.Context(), w.by, pkg, "1.0")
	if err != nil || v.Digest != "" || v.Size != 6 || v.State != meta.StateOpen {
		t.Errorf("%+v, %v", v, err)
	}
	if p, _, err := w.Package(t.Context(), w.by, pkg); err != nil || p.Spelling != "Wheel" {
		t.Errorf("%+v, %v", p, err)
	}
	f, _, err := w.File(t.Context(), w.by, pkg, "1.0", "b.whl")
	if err != nil || string(f.Summary) != "about b.whl" || f.Sums["md5"] == "" || f.By != "user:ada" || f.Uploaded == 0 {
		t.Errorf("%+v, %v", f, err)
	}
	if _, _, err := w.File(t.Context(), w.by, pkg, "1.0", "c.whl"); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("a file that is not there: %v", err)
	}
	if files, _, err := w.Files(t.Context(), w.by, pkg, "1.0", catalog.Page{}); err != nil || len(files) != 2 {
		t.Errorf("%+v, %v", files, err)
	}
	if _, _, err := w.Files(t.Context(), w.by, pkg, "3.0", catalog.Page{}); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("files of nothing: %v", err)
	}
	if files, _, err := w.PackageFiles(t.Context(), w.by, pkg, catalog.Page{}); err != nil || len(files) != 3 {
		t.Errorf("%+v, %v", files, err)
	}
	if files, _, err := w.PackageFiles(t.Context(), w.by, catalog.Package{Repo: app, Name: "nope"}, catalog.Page{}); err != nil || len(files) != 0 {
		t.Errorf("of nothing: %+v, %v", files, err)
	}
	_, err = w.Mark(t.Context(), w.by, pkg, "1.0", meta.Marking{Yanked: new(true), Reason: "broken"})
	w.must(err)
	_, err = w.MarkAll(t.Context(), w.by, pkg, []string{"1.0", "2.0"}, meta.Marking{Deprecated: new(true), Reason: "old"})
	w.must(err)
	if v, _, err = w.Version(t.Context(), w.by, pkg, "1.0"); err != nil || v.Marks.Yanked == nil || v.Marks.Deprecated == nil {
		t.Errorf("%+v, %v", v.Marks, err)
	}
	_, err = w.Close(t.Context(), w.by, pkg, "1.0")
	w.must(err)
	if err := publish("1.0", "d.whl", "four"); !errors.Is(err, meta.ErrExists) {
		t.Errorf("a closed one: %v", err)
	}
	sources, _, err := w.Sources(t.Context(), w.by, all.Ref, "wheel")
	if err != nil || len(sources.Owners) != 1 || sources.Owners[0].Package.Versions != 2 || len(sources.Proxies) != 1 {
		t.Errorf("%+v, %v", sources, err)
	}
	if members, _, err := w.Members(t.Context(), w.by, all.Ref); err != nil || len(members) != 2 {
		t.Errorf("%+v, %v", members, err)
	}
	if a, b := w.by.Nth(1), w.by; a.Origin.RequestID != b.Origin.RequestID {
		t.Errorf("a call without a request id gets %q", a.Origin.RequestID)
	}
	b := w.by
	b.Origin.RequestID = "r"
	for i, version := range []string{"1.0", "2.0"} {
		_, err = w.DeleteVersion(t.Context(), b.Nth(i), pkg, version)
		w.must(err)
	}
	if sources, _, err = w.Sources(t.Context(), w.by, all.Ref, "wheel"); err != nil || len(sources.Owners) != 1 || sources.Owners[0].Package.Name != "" {
		t.Errorf("deleted: %+v, %v", sources, err)
	}
	for _, q := range []string{"wheel", "nope"} {
		if _, _, err := w.Sources(t.Context(), w.by, meta.RepoRef{Tenant: "acme", Name: "nope"}, q); !errors.Is(err, meta.ErrNotFound) {
			t.Errorf("sources in no repository: %v", err)
		}
	}
}

// TestOpenVersionIsBounded: an open version takes so many files and no more, for what takes
// it away changes all of them in one entry.
func TestOpenVersionIsBounded(t *testing.T) {
	w := newWorld(t, nil)
	w.create(app)
	content := w.blob(app, "wheel")
	next := 0
	publish := func(count int) error {
		d := catalog.Draft{Version: meta.Version{Package: "wheel", Name: "1.0", State: meta.StateOpen}}
		for range count {
			d.Files = append(d.Files, meta.File{Path: fmt.Sprintf("%06d.whl", next), Digest: content.Digest, Size: content.Size})
			next++
		}
		_, err := w.Publish(t.Context(), w.by, app, d)
		return err
	}
	for next < state.MaxVersionFiles {
		w.must(publish(min(200, state.MaxVersionFiles-next)))
	}
	if err := publish(1); !errors.Is(err, meta.ErrTooLarge) {
		t.Errorf("a file too many: %v", err)
	}
	_, err := w.DeleteVersion(t.Context(), w.by, catalog.Package{Repo: app, Name: "wheel"}, "1.0")
	w.must(err)
}
