package node

import (
	"errors"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocols/generic"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/metatest"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// A host takes only what its own clients might read, and says what to do about the
// rest; what they will ask of the metadata has then been asked.
func TestExpand(t *testing.T) {
	s := metatest.New(t)
	content := []byte("foo")
	d := digest.FromBytes(content)
	for name, format := range map[string]string{"files": "generic", "odd": "cobol"} {
		ref := meta.RepoRef{Tenant: "acme", Name: name}
		s.Must(state.CreateRepository{CreateTenant: true, Repository: meta.Repository{
			Ref: ref, Format: format, Kind: meta.KindHosted, Class: meta.ClassCold, Home: "eu", Visibility: meta.VisibilityPrivate,
		}})
		s.Must(state.Publish{
			Version: meta.Version{Repo: ref, Package: "foo", Name: string(d), Digest: d, State: meta.StateClosed, Size: 3},
			Files:   []meta.File{{Path: "foo", Digest: d, Size: 3}},
			Blobs: []state.LinkBlob{{Repo: ref, Digest: d, Server: "s1", Blob: meta.Blob{
				Context: "acme", Digest: d, PlainBytes: 3, StoredBytes: 3, Root: digest.Sum(content),
			}}},
			Aliases: []string{"current"},
		})
	}
	names, err := catalog.New(catalog.Config{Metadata: s, Content: catalogtest.NewMemory()})
	if err != nil {
		t.Fatal(err)
	}
	expand := func(repo, version string, read ...string) ([]meta.Blob, error) {
		host := access.HostPrincipal(meta.Node{ID: "a1", Role: meta.RoleAgent, Read: read})
		e := expander{
			names: names, formats: packages(protocols(names, nil, nil, nil)), metadata: s, host: host, readable: access.Readable,
		}
		return e.Expand(t.Context(), meta.WaveRef{
			Repo: meta.RepoRef{Tenant: "acme", Name: repo}, Package: "foo", Alias: "current", Version: version,
		}, "linux/amd64")
	}
	if packages(protocols(names, nil, nil, nil))[generic.Format] == nil {
		t.Fatal("generic files have no closure")
	}
	before := s.Asked("Resolve")
	if blobs, err := expand("files", string(d), "acme/f*"); err != nil || len(blobs) != 1 || blobs[0].Root != digest.Sum(content) {
		t.Errorf("got %+v, %v", blobs, err)
	}
	if s.Asked("Resolve") == before {
		t.Error("what the alias leads to was not asked")
	}
	if _, err := expand("files", string(d), "other/*"); !errors.Is(err, meta.ErrDenied) || transient(err) || !strings.Contains(err.Error(), "host:a1 may not read acme/files") || !strings.Contains(err.Error(), "--read acme/files") {
		t.Errorf("without the right: %v", err)
	}
	if _, err := expand("files", "sha256:gone", "*"); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("a version that was deleted: %v", err)
	}
	if _, err := expand("none", string(d), "*"); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("a repository that was removed: %v", err)
	}
	if _, err := expand("odd", string(d), "*"); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("a format of a later build: %v", err)
	}
	s.Break(&meta.UnavailableError{Reason: "no_server"})
	if _, err := expand("files", string(d), "*"); !transient(err) {
		t.Errorf("without servers: %v", err)
	}
}

// transient says that a wave tries again.
func transient(err error) bool { return errors.Is(err, meta.ErrUnavailable) }
