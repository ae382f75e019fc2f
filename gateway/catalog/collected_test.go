package catalog_test

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// collect ends what nobody links, at once.
func (w *world) collect() state.CollectResult {
	w.Helper()
	grace := time.Duration(0)
	r, err := w.meta.Do(w.Context(), state.Origin{}, state.CollectBlobs{Limit: 1000, Grace: &grace})
	w.must(err)
	return r.Value.(state.CollectResult)
}

func (w *world) order(body string) state.OrderAnswer {
	w.Helper()
	b := w.find(body)
	a, _, err := raftmeta.Ask(w.Context(), w.meta, meta.Local, state.GetOrder{Server: catalogtest.Node, Root: b})
	w.must(err)
	return a
}

// find returns the root of a body, as the content has it.
func (w *world) find(body string) digest.CID {
	w.Helper()
	s, up, err := w.Ingest(w.Context(), w.by, app, bytes.NewReader([]byte(body)), "")
	w.must(err)
	w.must(up.Close())
	return s.Blob.Root
}

// stored takes a body in and leaves its upload open.
func (w *world) stored(body string) catalog.Stored {
	w.Helper()
	s, up, err := w.Ingest(w.Context(), w.by, app, bytes.NewReader([]byte(body)), "")
	w.must(err)
	w.Cleanup(func() { w.must(up.Close()) })
	return s
}

// What is collected between the last byte of an upload and its link is linked all the
// same, and the server no longer has to remove it; so is what a publish brings.
func TestCollectedBeforeTheLink(t *testing.T) {
	w := newWorld(t, nil)
	w.create(app)
	for _, body := range []string{"layer", "manifest"} {
		ref := w.blob(app, body)
		_, err := w.Unlink(t.Context(), w.by, app, ref.Digest)
		w.must(err)
	}
	layer := w.stored("layer")
	if r := w.collect(); r.Collected != 2 {
		t.Fatalf("collected %+v", r)
	}
	w.by.Origin.RequestID = "r1"
	if _, err := w.Link(t.Context(), w.by, app, layer); err != nil {
		t.Fatal(err)
	}
	if o := w.order("layer"); o.Index != 0 || o.Collected == 0 {
		t.Errorf("the layer's order is %+v", o)
	}
	w.by.Origin.RequestID = "r2"
	ref := meta.Reference{Digest: layer.Name, Size: 5}
	if _, err := w.Publish(t.Context(), w.by, app, draft("manifest", ref)); err != nil {
		t.Fatal(err)
	}
	if o := w.order("manifest"); o.Index != 0 {
		t.Errorf("the manifest's order is %+v", o)
	}
	if r := w.collect(); r.Collected != 0 {
		t.Errorf("collected what is used: %+v", r)
	}

	// The same with content that a publish takes along.
	file := w.blob(app, "file")
	_, err := w.Unlink(t.Context(), w.by, app, file.Digest)
	w.must(err)
	content := w.stored("file")
	w.collect()
	w.by.Origin.RequestID = "r3"
	_, err = w.Publish(t.Context(), w.by, app, catalog.Draft{
		Version: meta.Version{Package: "file"}, Content: []catalog.StoredFile{{Path: "file", Stored: content}},
	})
	w.must(err)
}

// A conflict that has nothing to do with garbage is told, and told once.
func TestOtherConflictsAreTold(t *testing.T) {
	w := newWorld(t, nil)
	w.create(app)
	stale := uint64(99)
	d := draft("manifest")
	d.Base = &stale
	if _, err := w.Publish(t.Context(), w.by, app, d); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("a publish at another revision: %v", err)
	}
}

// A client that asks for a blob of a deleted version, and leaves out the upload, keeps
// it: on a server by asking, on an agent it is told to send it.
func TestOfferKeepsWhatWasDeleted(t *testing.T) {
	w := newWorld(t, nil)
	w.create(app, other)
	agent := newWorld(t, func(c *catalog.Config) { c.Metadata, c.Commands = w.meta, nil })
	layer := w.blob(app, "layer")
	for name, keep := range map[string]func() error{
		"asked for": func() error {
			_, _, err := w.Offer(t.Context(), w.by, app, layer.Digest)
			return err
		},
		"mounted from where it is": func() error {
			_, err := w.Mount(t.Context(), w.by, app, nil, layer.Digest)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := w.Publish(t.Context(), w.by, app, draft("manifest of "+name, layer))
			w.must(err)
			_, err = w.DeleteVersion(t.Context(), w.by, api, p.Version.Name)
			w.must(err)
			if _, _, err := agent.Offer(t.Context(), w.by, app, layer.Digest); !errors.Is(err, meta.ErrNotFound) {
				t.Errorf("an agent promises a blob that is about to go: %v", err)
			}
			w.must(keep())
			w.collect()
			if _, err = w.Publish(t.Context(), w.by, app, draft("again "+name, layer)); err != nil {
				t.Errorf("the manifest came too late: %v", err)
			}
			if _, _, err := agent.Offer(t.Context(), w.by, app, layer.Digest); err != nil {
				t.Errorf("an agent does not know a blob that is used: %v", err)
			}
			_, err = w.DeleteVersion(t.Context(), w.by, api, digest.FromBytes([]byte("again "+name)).String())
			w.must(err)
		})
	}
	// Who only reads sends nothing: the question changes nothing, and is answered as any
	// read is.
	reader := w.by
	reader.Who.Rights = []meta.Right{{Actions: []meta.Action{meta.ActionPull}, Repository: app.String()}}
	for at, c := range map[string]*catalog.Catalog{"server": w.Catalog, "agent": agent.Catalog} {
		if _, _, err := c.Offer(t.Context(), reader, app, layer.Digest); err != nil {
			t.Errorf("a reader at the %s: %v", at, err)
		}
	}
	w.collect()
	if _, _, err := w.Offer(t.Context(), w.by, app, layer.Digest); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("what was collected is offered, or a reader has kept it: %v", err)
	}
	if _, err := w.Mount(t.Context(), w.by, other, &app, layer.Digest); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("what was collected is mounted: %v", err)
	}
}
