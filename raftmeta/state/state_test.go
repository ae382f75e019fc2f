package state

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// bench is a machine under test that counts its own log.
type bench struct {
	testing.TB
	*Machine
	index uint64
	now   time.Time
}

func openMachine(t testing.TB, dir string) *Machine {
	t.Helper()
	m, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// newBench returns a machine with a cluster of regions eu, us and ap, servers eu-1,
// eu-2, us-1 and ap-1, the tenant acme and its repository acme/app, standard with
// home eu and second us.
func newBench(t testing.TB) *bench {
	t.Helper()
	b := &bench{TB: t, Machine: openMachine(t, t.TempDir()), now: time.Unix(1_800_000_000, 0)}
	b.must(Bootstrap{Cluster: meta.Cluster{ID: "c1", Epoch: 1}, Node: server("eu-1", "eu"), Region: meta.Region{Name: "eu", Primary: true}})
	for i, n := range []meta.Node{server("eu-2", "eu"), server("us-1", "us"), server("ap-1", "ap")} {
		token := fmt.Sprint("token", i)
		b.must(CreateJoinToken{Token: meta.JoinToken{ID: token, Role: meta.RoleServer, Region: n.Region, Uses: 1, Expires: meta.TimeOf(b.now.Add(time.Hour))}})
		b.must(AdmitNode{TokenSecretHash: token, Node: n})
	}
	b.must(CreateTenant{Name: "acme"})
	b.must(CreateRepository{Repository: app()})
	return b
}

func server(id meta.NodeID, region meta.RegionName) meta.Node {
	return meta.Node{ID: id, Role: meta.RoleServer, Region: region, Swarm: []string{"/ip4/127.0.0.1/tcp/7070"}, Gateway: "127.0.0.1:5000"}
}

var appRef = meta.RepoRef{Tenant: "acme", Name: "app"}

func app() meta.Repository {
	return meta.Repository{
		Ref: appRef, Format: "oci", Kind: meta.KindHosted, Class: meta.ClassStandard,
		Home: "eu", Second: "us", Visibility: meta.VisibilityPrivate,
	}
}

// do applies c as ada and returns its result.
func (b *bench) do(c Command) Result {
	b.Helper()
	return b.doAs(Origin{Principal: "user:ada", Time: meta.TimeOf(b.now)}, c)
}

func (b *bench) doAs(o Origin, c Command) Result {
	b.Helper()
	command, err := Encode(o, c)
	if err != nil {
		return Result{Err: err}
	}
	b.index++
	r, err := b.Apply(b.index, 1, command)
	if err != nil {
		b.Fatalf("%s: %v", Name(c), err)
	}
	return r
}

func (b *bench) must(c Command) Result {
	b.Helper()
	r := b.do(c)
	if r.Err != nil {
		b.Fatalf("%s: %v", Name(c), r.Err)
	}
	return r
}

// refuse applies c, which must be refused with kind and a sentence that has the words.
func (b *bench) refuse(c Command, kind error, words ...string) {
	b.Helper()
	r := b.do(c)
	if !errors.Is(r.Err, kind) {
		b.Fatalf("%s: got %v, want %v", Name(c), r.Err, kind)
	}
	for _, w := range words {
		if !strings.Contains(r.Err.Error(), w) {
			b.Errorf("%s: %q does not say %q", Name(c), r.Err, w)
		}
	}
}

func ask[A any](b *bench, q Question[A]) A {
	b.Helper()
	a, err := try(b, q)
	if err != nil {
		b.Fatalf("%T: %v", q, err)
	}
	return a
}

func try[A any](b *bench, q Question[A]) (A, error) {
	b.Helper()
	v, err := b.View()
	if err != nil {
		b.Fatal(err)
	}
	defer v.Close()
	return q.Answer(v)
}

func missing[A any](b *bench, q Question[A]) {
	b.Helper()
	if a, err := try(b, q); !errors.Is(err, meta.ErrNotFound) {
		b.Fatalf("%T: got %v, %v, want not found", q, a, err)
	}
}

// blob names made-up content.
func blob(content string) meta.Blob {
	return meta.Blob{
		Context: "acme", Digest: digest.FromBytes([]byte(content)), PlainBytes: int64(len(content)),
		StoredBytes: int64(len(content)), Root: digest.Sum([]byte(content)),
	}
}

func link(content string, at meta.NodeID) LinkBlob {
	b := blob(content)
	return LinkBlob{Repo: appRef, Digest: b.Digest, Blob: b, Server: at}
}

// image is the publish of a manifest that uses the blobs, ingested at eu-1.
func image(manifest string, blobs ...string) Publish {
	doc := link(manifest, "eu-1")
	p := Publish{
		Version: meta.Version{
			Repo: appRef, Package: "api", Name: string(doc.Digest), Digest: doc.Digest,
			MediaType: "application/vnd.oci.image.manifest.v1+json", Size: doc.Blob.PlainBytes, State: meta.StateClosed,
		},
		Files: []meta.File{{Path: "manifest.json", Digest: doc.Digest, Size: doc.Blob.PlainBytes}},
		Blobs: []LinkBlob{doc},
	}
	for _, content := range blobs {
		d := blob(content)
		p.Version.References = append(p.Version.References, meta.Reference{Digest: d.Digest, Size: d.PlainBytes})
	}
	return p
}

func tagged(p Publish, aliases ...string) Publish {
	p.Aliases = aliases
	return p
}

func mustMarshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := codec.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
