package npm_test

import (
	"bytes"
	"context"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/protocols/npm"
	"github.com/shoal-registry/shoal/gateway/uploadid"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// lists stands before the metadata of a node, and hears of each list of versions that is
// asked for, and of its answer.
type lists struct {
	raftmeta.Asker
	before func()
	behind func(f meta.Freshness, all *[]meta.Version)
}

func (l *lists) Answer(ctx context.Context, f meta.Freshness, q raftmeta.Request) (meta.AsOf, error) {
	asked, is := q.(*state.Posed[[]meta.Version])
	if is && l.before != nil {
		l.before()
	}
	asOf, err := l.Asker.Answer(ctx, f, q)
	if is && l.behind != nil {
		l.behind(f, &asked.Result)
	}
	return asOf, err
}

// startBehind is start with l before the metadata.
func startBehind(t *testing.T, l *lists) *registry {
	t.Helper()
	return &registry{catalogtest.NewWith(t, catalogtest.Options{Content: catalogtest.NewMemory()}, func(s *catalogtest.Stack) []protocol.Protocol {
		l.Asker = s.Metadata
		ids, err := uploadid.NewMinter(catalogtest.Node, bytes.Repeat([]byte("s"), 32))
		if err != nil {
			t.Fatal(err)
		}
		c, err := catalog.New(catalog.Config{
			Metadata: l, Commands: s.Metadata, Content: s.Content, IDs: ids, Node: catalogtest.Node, Region: catalogtest.Region,
			AutoCreate: true, May: access.OfRepository,
		})
		if err != nil {
			t.Fatal(err)
		}
		return []protocol.Protocol{npm.New(c, pages(t), nil)}
	}), t}
}

// A version that is published while another is taken away is in nobody's document: it
// stays.
func TestUnpublishMeanwhile(t *testing.T) {
	var meanwhile atomic.Pointer[func()]
	l := &lists{before: func() {
		if f := meanwhile.Swap(nil); f != nil {
			(*f)()
		}
	}}
	r := startBehind(t, l)
	for _, v := range []string{"1.0.0", "1.1.0"} {
		r.expect(r.publish("demo", v, v, nil), 201)
	}
	for i, remove := range []func(rev string, doc object) catalogtest.Answer{
		func(rev string, doc object) catalogtest.Answer {
			delete(doc["versions"].(object), "1.1.0")
			doc["dist-tags"] = object{"latest": "1.0.0"}
			return r.send("demo/-rev/"+rev, doc)
		},
		func(rev string, _ object) catalogtest.Answer { return r.do(http.MethodDelete, "demo/-rev/"+rev, nil) },
	} {
		doc := r.back("demo")
		late := []string{"2.0.0", "3.0.0"}[i]
		publish := func() { r.expect(r.publish("demo", late, late, nil), 201) }
		meanwhile.Store(&publish)
		if a := remove(doc["_rev"].(string), doc); a.StatusCode != http.StatusConflict {
			t.Errorf("%d %s", a.StatusCode, a.Text)
		}
		for _, v := range []string{"1.0.0", "1.1.0", late} {
			r.expect(r.do("GET", "demo/-/demo-"+v+".tgz", nil), 200)
		}
	}
}

// A document that is kept under a revision has all of that revision, also where another
// server than the one that said the revision is behind it.
func TestDocumentIsOfItsRevision(t *testing.T) {
	l := &lists{behind: func(f meta.Freshness, all *[]meta.Version) {
		if f.Mode == meta.ModeBounded && f.After == (meta.Token{}) {
			*all = slices.DeleteFunc(*all, func(v meta.Version) bool { return v.Name == "1.1.0" })
		}
	}}
	r := startBehind(t, l)
	for _, v := range []string{"1.0.0", "1.1.0"} {
		r.expect(r.publish("demo", v, v, nil), 201)
	}
	if p := r.packument("demo"); len(p.Versions) != 2 || p.Tags["latest"] != "1.1.0" {
		t.Errorf("%+v", p)
	}
}
