package oci_test

import (
	"flag"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

var update = flag.Bool("update", false, "write the answers of conversations anew")

func TestConversationErrors(t *testing.T) {
	catalogtest.Converse(t, start(t, catalogtest.Options{}).Stack, "testdata/errors.txtar", *update, "")
}

// private is a server that challenges, with repositories.
func private(t *testing.T) *registry {
	r := start(t, catalogtest.Options{Private: true})
	for _, repo := range []meta.Repository{
		{Ref: meta.RepoRef{Tenant: "acme", Name: "app"}, Format: "oci"},
		{Ref: meta.RepoRef{Tenant: "acme", Name: "files"}, Format: "generic"},
		{Ref: meta.RepoRef{Tenant: "acme", Name: "fixed"}, Format: "oci", Immutable: true},
		{Ref: meta.RepoRef{Tenant: "acme", Name: "open"}, Format: "oci", Visibility: meta.VisibilityPublic},
	} {
		r.Create(t, repo)
	}
	return r
}

func TestConversationAnonymous(t *testing.T) {
	catalogtest.Converse(t, private(t).Stack, "testdata/anonymous.txtar", *update, "")
}

func TestConversationAdmin(t *testing.T) {
	catalogtest.Converse(t, private(t).Stack, "testdata/admin.txtar", *update, catalogtest.AdminToken)
}

func TestConversationFullDisk(t *testing.T) {
	content := catalogtest.NewMemory()
	r := start(t, catalogtest.Options{Content: content})
	content.Fill(true)
	catalogtest.Converse(t, r.Stack, "testdata/full.txtar", *update, "")
	content.Fill(false)
	r.push(image{manifest: []byte(emptyImage), digest: digestOf(emptyImage), blobs: blobsOf("{}")}, "1.0")
}

func TestConversationWithoutQuorum(t *testing.T) {
	r := start(t, catalogtest.Options{}).at(t, "acme/app")
	r.push(image{manifest: []byte(emptyImage), digest: digestOf(emptyImage), blobs: blobsOf("{}")}, "1.0")
	r.Metadata.Break(func(mode meta.Mode) error {
		if mode == meta.ModeLocal {
			return nil
		}
		return &meta.UnavailableError{Reason: "no_quorum", RetryAfter: 2 * time.Second}
	})
	catalogtest.Converse(t, r.Stack, "testdata/noquorum.txtar", *update, "")
}

const emptyImage = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}`
