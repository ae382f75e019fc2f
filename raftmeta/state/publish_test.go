package state

import (
	"testing"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func TestPublishIsVisibleAtOnce(t *testing.T) {
	b := newBench(t)
	b.must(link("layer", "eu-1"))
	r := b.must(tagged(image("m1", "layer"), "1", "latest"))
	if got := r.Value.(PublishResult); !got.Created || got.Revision != b.index {
		t.Errorf("published %+v at %d", got, b.index)
	}
	a := ask(b, Resolve{Repo: appRef, Package: "api", Alias: "latest"})
	if a.Version.Digest != blob("m1").Digest || a.Alias.MovedBy != "user:ada" || a.Alias.MovedAt != meta.TimeOf(b.now) || a.Version.CreatedBy != "user:ada" {
		t.Errorf("latest is %+v", a)
	}
	if got := ask(b, GetBlob{Repo: appRef, Digest: blob("layer").Digest}); got.Link.Claims != 1 || got.Blob.Root != blob("layer").Root {
		t.Errorf("layer is %+v", got)
	}
	if got := ask(b, ListAliases{Repo: appRef, Package: "api"}); len(got) != 2 || got[0].Name != "1" || got[1].Name != "latest" {
		t.Errorf("aliases are %+v", got)
	}
	if got := ask(b, GetPackage{Repo: appRef, Package: "api"}); got.Versions != 1 || got.Revision != b.index {
		t.Errorf("package is %+v", got)
	}
}
