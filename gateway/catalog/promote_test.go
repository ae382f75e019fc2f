package catalog_test

import (
	"errors"
	"testing"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// version publishes a document of the package api in app.
func (w *world) version(body string, change func(*catalog.Draft)) digest.Digest {
	w.Helper()
	d := catalog.Draft{
		Version:   meta.Version{Package: "api", MediaType: "application/vnd.test"},
		Documents: []catalog.Document{{Path: "manifest", MediaType: "application/vnd.test", Body: []byte(body)}},
	}
	if change != nil {
		change(&d)
	}
	p, err := w.Publish(w.Context(), w.by, app, d)
	w.must(err)
	return p.Version.Digest
}

// TestPromote: an index is promoted with its images and what is attached to any of them,
// attachments of attachments too, in an order that the log takes, and nothing else.
func TestPromote(t *testing.T) {
	w := newWorld(t, nil)
	w.create(app, other, closed)
	image := w.version("image", nil)
	index := w.version("index", func(d *catalog.Draft) {
		d.Version.References = []meta.Reference{{Digest: image, Size: int64(len("image")), Version: true}}
		d.Aliases = []string{"1.4"}
	})
	attached := func(body string, to digest.Digest) digest.Digest {
		return w.version(body, func(d *catalog.Draft) { d.Version.Subject, d.Version.ArtifactType = to, "application/sig" })
	}
	signature := attached("signature of the index", index)
	attached("sbom of the image", image)
	attached("signature of the signature", signature)
	odd := attached("odd", index)
	w.version("unrelated", nil)
	_, err := w.meta.Do(t.Context(), state.Origin{Principal: "user:curator"}, state.QuarantineVersion{Repo: app, Package: "api", Version: string(odd), Reason: "odd"})
	w.must(err)

	to, _, err := w.Repository(t.Context(), w.by, other)
	w.must(err)
	promotion := catalog.Promotion{To: to, Reason: "it passed", Items: []catalog.Promotee{
		{From: api, Version: string(index), Aliases: []string{"1.4"}}, {From: api, Version: string(index), Aliases: []string{"stable"}},
	}}
	done, token, err := w.Promote(t.Context(), w.by, promotion)
	w.must(err)
	if len(done.Versions) != 5 || token == (meta.Token{}) {
		t.Errorf("promoted %+v", done)
	}
	into := catalog.Package{Repo: other, Name: "api"}
	versions, _, err := w.Versions(t.Context(), w.by, into, catalog.Page{})
	w.must(err)
	if len(versions) != 5 {
		t.Errorf("%d versions are there", len(versions))
	}
	for _, alias := range []string{"1.4", "stable"} {
		a, _, err := w.Resolve(t.Context(), w.by, into, alias)
		w.must(err)
		if a.Version.Digest != index || a.Version.Promotion == nil || a.Version.Promotion.From != app || a.Version.Promotion.Reason != "it passed" {
			t.Errorf("%s is %+v", alias, a.Version)
		}
		body, err := w.Document(t.Context(), w.by, &a.Version)
		if err != nil || string(body) != "index" {
			t.Errorf("%s reads %q, %v", alias, body, err)
		}
	}
	if found, _, err := w.Attachments(t.Context(), w.by, into, index, "", catalog.Page{}); err != nil || len(found) != 1 {
		t.Errorf("attachments %+v, %v", found, err)
	}

	// What the caller may not read, it is not told of.
	unread := promotion
	unread.Items = []catalog.Promotee{{From: catalog.Package{Repo: closed, Name: "api"}, Version: string(index)}}
	if _, _, err := w.Promote(t.Context(), w.by, unread); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("from an unreadable repository: %v", err)
	}
	unread.Items[0].From.Repo = rival
	if _, _, err := w.Promote(t.Context(), w.by, unread); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("from another tenant: %v", err)
	}
	unread.Items[0].From.Repo, unread.Items[0].Version = app, string(odd)
	var kept *meta.QuarantinedError
	if _, _, err := w.Promote(t.Context(), w.by, unread); !errors.As(err, &kept) {
		t.Errorf("what is in quarantine: %v", err)
	}
}
