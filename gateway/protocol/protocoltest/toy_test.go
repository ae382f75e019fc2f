package protocoltest

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestToy(t *testing.T) {
	ref, absent := meta.RepoRef{Tenant: "acme", Name: "there"}, meta.RepoRef{Tenant: "acme", Name: "hence"}
	records := &Records{}
	records.PutRepository(meta.Repository{Ref: ref, Format: "toy", Visibility: meta.VisibilityPrivate})
	toy := &Toy{}
	toy.Put(ref, "a/b", "hello")
	Run(t, Case{
		Protocol: toy, Metadata: records, Repo: ref, Absent: absent,
		Reads:      []Request{{Method: "GET", Path: "/toy/acme/there/a/b"}},
		Writes:     []Request{{Method: "PUT", Path: "/toy/acme/there/a/b", Body: []byte("x")}},
		CheckError: CheckToyError,
	})
}
