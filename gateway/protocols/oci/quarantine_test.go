package oci_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	godigest "github.com/opencontainers/go-digest"

	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// TestQuarantine: an image in quarantine is refused by tag, by digest and by its blobs,
// with the reason, and listed nowhere; what others use of it is served, and it can be
// pushed beside.
func TestQuarantine(t *testing.T) {
	r := start(t, catalogtest.Options{})
	do := func(c state.Command) {
		t.Helper()
		if _, err := r.Metadata.Do(t.Context(), state.Origin{Principal: "user:curator"}, c); err != nil {
			t.Fatal(err)
		}
	}
	honest := makeImage(t, "honest", 2, godigest.SHA256, nil)
	bad := makeImage(t, "bad", 2, godigest.SHA256, nil)
	r.push(honest, "good")
	r.push(bad, "latest")
	r.push(bad, "v2")
	signature := makeImage(t, "signature", 1, godigest.SHA256, obj{
		"subject": describe(mediaImage, honest.digest, len(honest.manifest)), "artifactType": "application/vnd.example.signature",
	})
	r.push(signature, "")
	ref := meta.RepoRef{Tenant: "acme", Name: "app"}
	quarantine := func(d digest.Digest) {
		t.Helper()
		do(state.QuarantineVersion{Repo: ref, Package: "api", Version: string(d), Reason: "the runner was taken over"})
	}
	quarantine(bad.digest)
	quarantine(signature.digest)

	refused := func(a *answer) {
		t.Helper()
		r.fails(a, 403, "DENIED")
		if !strings.Contains(string(a.body), "the runner was taken over") || !strings.Contains(string(a.body), "user:curator") {
			t.Errorf("the refusal says %s", a.body)
		}
	}
	for _, reference := range []string{"latest", "v2", string(bad.digest)} {
		refused(r.do("GET", "manifests/"+reference, nil, header("Accept", mediaImage)))
		r.expect(r.do("HEAD", "manifests/"+reference, nil, header("Accept", mediaImage)), 403)
	}
	own := slices.DeleteFunc(slices.Collect(maps.Keys(bad.blobs)), func(d digest.Digest) bool { _, shared := honest.blobs[d]; return shared })
	if len(own) == 0 {
		t.Fatal("the images share all blobs")
	}
	for _, d := range own {
		refused(r.do("GET", "blobs/"+string(d), nil))
	}
	refused(r.do("GET", "blobs/"+string(bad.digest), nil))
	for d := range honest.blobs {
		r.expect(r.do("GET", "blobs/"+string(d), nil), 200)
	}
	r.expect(r.do("GET", "manifests/good", nil, header("Accept", mediaImage)), 200)
	if tags := r.tags(); !slices.Equal(tags, []string{"good"}) {
		t.Errorf("tags are %v", tags)
	}
	if list, _ := r.referrers(honest.digest); len(list) != 0 {
		t.Errorf("referrers are %v", list)
	}

	// It is not spread: by another tag, by a mount into a repository whose reader may
	// then pull it, by a deletion of what is evidence.
	refused(r.do("PUT", "manifests/other", bad.manifest, header("Content-Type", mediaImage)))
	refused(r.do("DELETE", "manifests/"+string(bad.digest), nil))
	other := r.at(t, "acme/other/api")
	r.expect(other.do("POST", "blobs/uploads/", nil, query("mount", string(own[0])), query("from", "acme/app/api")), 202)

	// Who pushes hears that the blob is not there, sends it, and has an image of its own.
	r.expect(r.do("HEAD", "blobs/"+string(own[0]), nil), 404)
	rebuilt := makeImage(t, "bad", 2, godigest.SHA256, obj{"annotations": obj{"rebuilt": "yes"}})
	r.push(rebuilt, "rebuilt")
	r.expect(r.do("GET", "manifests/rebuilt", nil, header("Accept", mediaImage)), 200)
	r.expect(r.do("GET", "blobs/"+string(own[0]), nil), 200)
	refused(r.do("GET", "manifests/latest", nil, header("Accept", mediaImage)))

	do(state.ReleaseVersion{Repo: ref, Package: "api", Version: string(bad.digest), Reason: "it was built from the same commit"})
	r.expect(r.do("GET", "manifests/latest", nil, header("Accept", mediaImage)), 200)
	if tags := r.tags(); !slices.Equal(tags, []string{"good", "latest", "rebuilt", "v2"}) {
		t.Errorf("tags are %v", tags)
	}
}
