package publication_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/publication"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
	"github.com/shoal-registry/shoal/verify/trust"
)

// lines is a format whose one document lists the versions, signed.
type lines struct {
	rules  atomic.Uint32
	builds atomic.Int64
	fail   atomic.Bool
	failed chan struct{} // of a build that failed, when somebody waits
}

func (l *lines) Format() string { return "lines" }
func (l *lines) Rules() uint32  { return l.rules.Load() }
func (l *lines) Signed() bool   { return true }

func (l *lines) Build(ctx context.Context, b *publication.Build) error {
	l.builds.Add(1)
	if l.fail.Load() {
		select {
		case l.failed <- struct{}{}:
		default:
		}
		return errors.New("out of ink")
	}
	var text strings.Builder
	for v, err := range b.Versions(ctx) {
		if err != nil {
			return err
		}
		fmt.Fprintf(&text, "%s %s\n", v.Package, v.Name)
	}
	doc, err := b.Render(ctx, "list", "text/plain", func(w io.Writer) error {
		_, err := io.WriteString(w, text.String())
		return err
	})
	if err != nil {
		return err
	}
	if now, ok := b.Current["all"]; ok && now.Sum == fmt.Sprint(doc.Digest) {
		b.Keep("all")
		return nil
	}
	sum, err := b.Render(ctx, "list.asc", "text/plain", func(w io.Writer) error { return b.Signer.Detached(w, strings.NewReader(text.String())) })
	if err != nil {
		return err
	}
	return b.Commit(ctx, meta.Publication{Name: "all", Sum: fmt.Sprint(doc.Digest), Files: []meta.File{sum, doc}})
}

var ref = meta.RepoRef{Tenant: "acme", Name: "lines"}

func by() catalog.Caller {
	return catalog.Caller{Who: meta.Principal{Name: "user:ada", Admin: true}}
}

type node struct {
	*catalogtest.Stack
	t      *testing.T
	format *lines
}

func start(t *testing.T) *node {
	n := &node{t: t, format: &lines{failed: make(chan struct{}, 1)}}
	n.format.rules.Store(1)
	n.Stack = catalogtest.New(t, catalogtest.Options{}, func(*catalog.Catalog) []protocol.Protocol { return nil })
	n.Create(t, meta.Repository{Ref: ref, Format: "lines"})
	return n
}

// builder makes one that is not running yet.
func (n *node) builder(self meta.NodeID, open func([]byte) ([]byte, error), every time.Duration) *publication.Builder {
	n.t.Helper()
	b, err := publication.New(publication.Config{
		Self: self, Formats: []publication.Format{n.format}, Metadata: n.Metadata, Commands: n.Metadata, Catalog: n.Catalog,
		Open: open, Dir: n.t.TempDir(), Every: every, KeyBits: 2048,
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return b
}

// run runs it until stop, or the test, ends.
func (n *node) run(b *publication.Builder) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	ended := false
	stop = func() {
		if ended {
			return
		}
		ended = true
		cancel()
		if err := <-done; err != nil {
			n.t.Errorf("run: %v", err)
		}
	}
	n.t.Cleanup(stop)
	return stop
}

func (n *node) publish(pkg, version string) meta.Token {
	n.t.Helper()
	p, err := n.Catalog.Publish(n.t.Context(), by(), ref, catalog.Draft{
		Version:   meta.Version{Package: pkg, Name: version, State: meta.StateClosed},
		Documents: []catalog.Document{{Path: "x", Body: []byte(pkg + version)}},
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return p.Token
}

// built waits until the documents contain index, and returns how they stand.
func (n *node) built(index uint64) meta.Sets {
	n.t.Helper()
	for _, err := range n.Metadata.Watch(n.t.Context(), 0) {
		if err != nil {
			n.t.Fatal(err)
		}
		if s, _, err := n.Catalog.Sets(n.t.Context(), by(), ref); err == nil && s.Built >= index && s.Format == n.format.Rules() {
			return s
		}
	}
	return meta.Sets{}
}

// list returns the document that is in place, whose signature holds.
func (n *node) list() string {
	n.t.Helper()
	p, _, err := n.Catalog.Publication(n.t.Context(), by(), ref, "all")
	if err != nil {
		n.t.Fatal(err)
	}
	var text [2][]byte
	for i, f := range p.Files {
		b, _, err := n.Catalog.Blob(n.t.Context(), by(), ref, f.Digest)
		if err != nil {
			n.t.Fatal(err)
		}
		r, err := n.Catalog.Open(n.t.Context(), b.Blob)
		if err != nil {
			n.t.Fatal(err)
		}
		if text[i], err = io.ReadAll(r); err != nil {
			n.t.Fatal(err)
		}
		r.Close()
	}
	s, _, err := n.Catalog.Sets(n.t.Context(), by(), ref)
	if err != nil {
		n.t.Fatal(err)
	}
	keys, err := openpgp.ReadArmoredKeyRing(strings.NewReader(s.Key.Public))
	if err != nil {
		n.t.Fatal(err)
	}
	if _, err := openpgp.CheckArmoredDetachedSignature(keys, bytes.NewReader(text[0]), bytes.NewReader(text[1]), nil); err != nil {
		n.t.Errorf("signature: %v", err)
	}
	return string(text[0])
}

// What is published while a build rests is in the next one, and whoever published is told
// when.
func TestCoalesce(t *testing.T) {
	n := start(t)
	b := n.builder(catalogtest.Node, n.Metadata.Key.Open, 300*time.Millisecond)
	n.run(b)
	n.built(1)
	before := n.format.builds.Load()
	const count = 50
	var last meta.Token
	for i := range count {
		last = n.publish("hello", fmt.Sprintf("%03d", i))
	}
	n.built(last.Index)
	if got := n.format.builds.Load() - before; got >= count/2 {
		t.Errorf("%d publishes made %d builds", count, got)
	}
	if got := strings.Count(n.list(), "\n"); got != count {
		t.Errorf("%d versions are listed, want %d", got, count)
	}
	token := n.publish("hello", "one more")
	if after := b.Await(t.Context(), ref, token); after.Index < token.Index || !strings.Contains(n.list(), "one more") {
		t.Errorf("at %v, of a publish at %v, the list is %s", after, token, n.list())
	}
	// Who waits for what nobody builds gets the commit's own point.
	n.format.fail.Store(true)
	token = n.publish("hello", "not built")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if after := b.Await(ctx, ref, token); after != token {
		t.Errorf("%v, want %v", after, token)
	}
	var none *publication.Builder
	if none.Await(t.Context(), ref, token) != token {
		t.Error("an agent waits")
	}
}

// A build that fails is tried again, and one of other rules is made anew.
func TestAgain(t *testing.T) {
	n := start(t)
	n.format.fail.Store(true)
	n.run(n.builder(catalogtest.Node, n.Metadata.Key.Open, 20*time.Millisecond))
	<-n.format.failed
	n.format.fail.Store(false)
	token := n.publish("hello", "1")
	n.built(token.Index)
	if n.list() != "hello 1\n" {
		t.Errorf("%q", n.list())
	}
	n.format.rules.Store(2)
	n.publish("hello", "2")
	if s := n.built(token.Index); s.Format != 2 {
		t.Errorf("%+v", s)
	}
}

// A document that no server has any more is built again though nothing was published; what
// else is lost is not the builder's.
func TestLostDocument(t *testing.T) {
	n := start(t)
	n.run(n.builder(catalogtest.Node, n.Metadata.Key.Open, 20*time.Millisecond))
	token := n.publish("hello", "1")
	n.built(token.Index)
	in := func() meta.Publication {
		t.Helper()
		p, _, err := n.Catalog.Publication(t.Context(), by(), ref, "all")
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	isLost := func(root digest.CID) bool {
		t.Helper()
		lost, _, err := raftmeta.Ask(t.Context(), n.Metadata, meta.Local, state.IsLost{Root: root})
		if err != nil {
			t.Fatal(err)
		}
		return lost
	}
	lose := func(d digest.Digest) digest.CID {
		t.Helper()
		b, _, err := n.Catalog.Blob(t.Context(), by(), ref, d)
		if err != nil {
			t.Fatal(err)
		}
		n.do(state.ReportReplicas{Replicas: []meta.Replica{{Root: b.Blob.Root, Server: catalogtest.Node, State: meta.ReplicaFailed, Reason: "its file is gone"}}})
		return b.Blob.Root
	}
	before := in()
	files := lose(digest.FromBytes([]byte("hello1")))
	if !isLost(files) {
		t.Fatal("the package is not lost")
	}
	for i := range before.Files { // one after another, a signature and a list
		was := in()
		root := lose(was.Files[i].Digest)
		for c, err := range n.Metadata.Watch(t.Context(), was.Revision) {
			if err != nil {
				t.Fatal(err)
			}
			if c.Kind == feed.KindSets && c.Name == "all" && in().Revision > was.Revision {
				break
			}
		}
		if file := in().Files[i]; file.Path != was.Files[i].Path || isLost(root) && file.Digest == was.Files[i].Digest {
			t.Errorf("%s is %+v, and lost still", was.Files[i].Path, file)
		}
		if n.list() != "hello 1\n" {
			t.Errorf("%q", n.list())
		}
	}
	if !isLost(files) {
		t.Error("the package is there again")
	}
}

// Another server goes on where the builder ended: with the same key, which is sealed to
// it by a server that can open it. One that cannot says so and changes nothing.
func TestSucceeds(t *testing.T) {
	n := start(t)
	first := n.run(n.builder(catalogtest.Node, n.Metadata.Key.Open, 20*time.Millisecond))
	before := n.built(n.publish("hello", "1").Index)
	first()

	stranger, err := trust.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	tried := make(chan struct{}, 1)
	lost := n.run(n.builder(catalogtest.Node, func(sealed []byte) ([]byte, error) {
		select {
		case tried <- struct{}{}:
		default:
		}
		return stranger.Open(sealed)
	}, 20*time.Millisecond))
	token := n.publish("hello", "2")
	<-tried
	lost()
	if s, _, err := n.Catalog.Sets(t.Context(), by(), ref); err != nil || s.Built >= token.Index {
		t.Errorf("without the key it built through %d: %v", s.Built, err)
	}

	second, err := trust.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	n.admit("12D3KooWother", second)
	again := n.run(n.builder(catalogtest.Node, n.Metadata.Key.Open, 20*time.Millisecond))
	n.built(token.Index)
	again()
	s, _, err := n.Catalog.Sets(t.Context(), by(), ref)
	if err != nil || s.Key.Fingerprint != before.Key.Fingerprint || len(s.Key.To) != 2 {
		t.Errorf("the key is %+v: %v", s.Key, err)
	}

	// The first is taken out: the second builds at once, as the lease of the first is over.
	n.do(state.DrainServer{ID: catalogtest.Node, Drain: true})
	n.do(state.LeaseSets{Repo: ref, Node: catalogtest.Node, For: 1})
	n.run(n.builder("12D3KooWother", second.Open, 20*time.Millisecond))
	n.built(n.publish("hello", "3").Index)
	if p, _, err := n.Catalog.Publication(t.Context(), by(), ref, "all"); err != nil || p.By != "12D3KooWother" {
		t.Errorf("built by %s: %v", p.By, err)
	}
	if n.list() != "hello 1\nhello 2\nhello 3\n" {
		t.Errorf("%q", n.list())
	}
}

// The key is sealed to a server that joins though nothing is to be built, so that it may
// be the only one that stays.
func TestKeyIsShared(t *testing.T) {
	n := start(t)
	first := n.run(n.builder(catalogtest.Node, n.Metadata.Key.Open, 20*time.Millisecond))
	n.built(n.publish("hello", "1").Index)
	key, err := trust.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	n.admit("12D3KooWother", key)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	shared := false
	for _, err := range n.Metadata.Watch(ctx, 0) {
		if err != nil {
			t.Fatal(err)
		}
		s, _, err := n.Catalog.Sets(ctx, by(), ref)
		if shared = err == nil && len(s.Key.To) == 2; shared {
			break
		}
	}
	if !shared {
		t.Fatal("the key is not sealed to the server that joined")
	}
	first()
	n.do(state.DrainServer{ID: catalogtest.Node, Drain: true})
	n.do(state.LeaseSets{Repo: ref, Node: catalogtest.Node, For: 1})
	n.run(n.builder("12D3KooWother", key.Open, 20*time.Millisecond))
	n.built(n.publish("hello", "2").Index)
	if n.list() != "hello 1\nhello 2\n" {
		t.Errorf("%q", n.list())
	}
}

// A key that no server has any more, as after a restore, is replaced, and all is signed
// with the new one.
func TestKeyIsLost(t *testing.T) {
	n := start(t)
	key, err := trust.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	n.admit("12D3KooWother", key)
	n.do(state.DrainServer{ID: catalogtest.Node, Drain: true}) // so that the other alone has it
	other := n.run(n.builder("12D3KooWother", key.Open, 20*time.Millisecond))
	before := n.built(n.publish("hello", "1").Index)
	other()
	n.do(state.LeaseSets{Repo: ref, Node: "12D3KooWother", For: 1})
	n.do(state.DrainServer{ID: catalogtest.Node})
	removed, err := n.Metadata.Do(t.Context(), state.Origin{Principal: "admin:bootstrap"}, state.RemoveNode{ID: "12D3KooWother", Force: true})
	if err != nil {
		t.Fatal(err)
	}
	n.run(n.builder(catalogtest.Node, n.Metadata.Key.Open, 20*time.Millisecond))
	if after := n.built(removed.Token.Index); after.Key.Fingerprint == before.Key.Fingerprint {
		t.Error("the key is the old one")
	}
	if n.list() != "hello 1\n" {
		t.Errorf("%q", n.list())
	}
}

// A server that cannot open the key takes no lease: it would keep those from building who
// can.
func TestNoLeaseWithoutTheKey(t *testing.T) {
	n := start(t)
	first := n.run(n.builder(catalogtest.Node, n.Metadata.Key.Open, 20*time.Millisecond))
	n.built(n.publish("hello", "1").Index)
	first()
	n.do(state.LeaseSets{Repo: ref, Node: catalogtest.Node, For: 1})
	stranger, err := trust.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	n.admit("12D3KooWother", stranger)
	n.do(state.DrainServer{ID: catalogtest.Node, Drain: true}) // so that it is the other's turn
	tried := make(chan struct{}, 1)
	other := n.run(n.builder("12D3KooWother", func(sealed []byte) ([]byte, error) {
		select {
		case tried <- struct{}{}:
		default:
		}
		return stranger.Open(sealed)
	}, 20*time.Millisecond))
	n.publish("hello", "2")
	<-tried
	other()
	if s, _, err := n.Catalog.Sets(t.Context(), by(), ref); err != nil || s.Builder == "12D3KooWother" {
		t.Errorf("built by %s: %v", s.Builder, err)
	}
}

// A group in a group that changes its members changes the documents of both.
func TestGroupOfGroups(t *testing.T) {
	n := start(t)
	n.run(n.builder(catalogtest.Node, n.Metadata.Key.Open, 20*time.Millisecond))
	n.built(n.publish("hello", "1").Index)
	other, inner, outer := ref, ref, ref
	other.Name, inner.Name, outer.Name = "other", "inner", "outer"
	n.Create(t, meta.Repository{Ref: other, Format: "lines"})
	n.Create(t, meta.Repository{Ref: inner, Format: "lines", Kind: meta.KindGroup, Members: []string{"other"}})
	n.Create(t, meta.Repository{Ref: outer, Format: "lines", Kind: meta.KindGroup, Members: []string{"inner"}})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	// await waits until the outer group's document has that.
	await := func(want string) {
		t.Helper()
		for range n.Metadata.Watch(ctx, 0) {
			if p, _, err := n.Catalog.Publication(ctx, by(), outer, "all"); err == nil && n.text(outer, p.Files[0].Digest) == want {
				return
			}
		}
		t.Fatalf("the outer group has not %q", want)
	}
	await("")
	members := []string{"other", "lines"}
	n.do(state.SetRepository{Ref: inner, Members: &members})
	await("hello 1\n")
}

// text reads a blob.
func (n *node) text(repo meta.RepoRef, d digest.Digest) string {
	n.t.Helper()
	b, _, err := n.Catalog.Blob(n.t.Context(), by(), repo, d)
	if err != nil {
		n.t.Fatal(err)
	}
	r, err := n.Catalog.Open(n.t.Context(), b.Blob)
	if err != nil {
		n.t.Fatal(err)
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	if err != nil {
		n.t.Fatal(err)
	}
	return string(text)
}

func (n *node) do(c state.Command) {
	n.t.Helper()
	if _, err := n.Metadata.Do(n.t.Context(), state.Origin{Principal: "admin:bootstrap"}, c); err != nil {
		n.t.Fatalf("%T: %v", c, err)
	}
}

// admit adds a server.
func (n *node) admit(id meta.NodeID, key *trust.Key) {
	n.t.Helper()
	hash := strings.Repeat("ab", 32)
	n.do(state.CreateJoinToken{Token: meta.JoinToken{ID: hash, Role: meta.RoleServer, Region: catalogtest.Region, Uses: 1, Expires: meta.TimeOf(time.Now().Add(time.Hour))}})
	n.do(state.AdmitNode{TokenSecretHash: hash, Node: meta.Node{
		ID: id, Role: meta.RoleServer, Region: catalogtest.Region, Gateway: "127.0.0.2:5000", Seal: key.Recipient(),
		Swarm: []string{"/ip4/127.0.0.2/tcp/7070"}, Raft: []string{"/ip4/127.0.0.2/tcp/7071"},
	}})
}

// A builder needs its parts.
func TestNew(t *testing.T) {
	if _, err := publication.New(publication.Config{}); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("%v", err)
	}
}
