package oci_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	godigest "github.com/opencontainers/go-digest"

	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// A fallback tag that came along from a registry without referrers is read as
// one list with what refers by its own subject.
func TestFallbackTag(t *testing.T) {
	r := start(t, catalogtest.Options{})
	subject := makeImage(t, "subject", 1, godigest.SHA256, nil)
	r.push(subject, "1.0")
	own := makeImage(t, "own", 1, godigest.SHA256, obj{"artifactType": "application/vnd.a", "subject": subject.descriptor()})
	r.push(own, "")
	old := makeImage(t, "old", 1, godigest.SHA256, nil) // no subject: only the tag says what it is about
	r.push(old, "")
	entry := old.descriptor()
	entry["artifactType"], entry["annotations"] = "application/vnd.b", obj{"k": "v"}
	ownEntry := own.descriptor()
	ownEntry["artifactType"] = "application/vnd.a"
	list := encode(t, obj{"schemaVersion": 2, "mediaType": mediaIndex, "manifests": []obj{entry, ownEntry}})
	r.pushManifest(list, mediaIndex, "sha256-"+subject.digest.Encoded(), digest.FromBytes(list))
	got, _ := r.referrers(subject.digest)
	if len(got) != 2 || !has(got, own.digest) || !has(got, old.digest) {
		t.Errorf("referrers are %+v", got)
	}
	got, _ = r.referrers(subject.digest, query("artifactType", "application/vnd.b"))
	if len(got) != 1 || got[0].Digest != old.digest || got[0].Annotations["k"] != "v" {
		t.Errorf("referrers of a type are %+v", got)
	}
	r.expect(r.do("DELETE", "manifests/"+string(old.digest), nil), 202)
	if got, _ = r.referrers(subject.digest); len(got) != 1 {
		t.Errorf("a deleted manifest is listed by the tag: %+v", got)
	}
}

// Annotations that are too long for the metadata come from the document.
func TestLongAnnotations(t *testing.T) {
	r := start(t, catalogtest.Options{})
	subject := makeImage(t, "subject", 0, godigest.SHA256, nil)
	r.push(subject, "1.0")
	long := strings.Repeat("A", 100_000)
	i := makeImage(t, "signature", 0, godigest.SHA256, obj{"subject": subject.descriptor(), "annotations": obj{"long": long}})
	r.push(i, "")
	got, _ := r.referrers(subject.digest)
	if len(got) != 1 || got[0].Annotations["long"] != long || len(got[0].Annotations) != 1 {
		t.Errorf("%d referrers, annotations of the first: %d", len(got), len(got[0].Annotations))
	}
}

// Many large referrers come in pages that a client can read.
func TestReferrersPages(t *testing.T) {
	r := start(t, catalogtest.Options{Content: catalogtest.NewMemory()})
	subject := makeImage(t, "subject", 0, godigest.SHA256, nil)
	r.push(subject, "1.0")
	const count = 30
	for n := range count {
		r.push(makeImage(t, fmt.Sprint(n), 0, godigest.SHA256, obj{
			"subject": subject.descriptor(), "annotations": obj{"long": strings.Repeat("A", 200_000)},
		}), "")
	}
	seen := map[digest.Digest]bool{}
	pages := 0
	for next := "referrers/" + string(subject.digest); next != "" && pages < count; pages++ {
		a := r.expect(r.do("GET", next, nil), 200)
		if len(a.body) > 4<<20 {
			t.Errorf("a page of %d bytes", len(a.body))
		}
		var doc struct{ Manifests []descriptor }
		decode(t, a.body, &doc)
		for _, d := range doc.Manifests {
			if seen[d.Digest] {
				t.Errorf("%s is listed twice", d.Digest)
			}
			seen[d.Digest] = true
		}
		next = linkNext(a)
	}
	if len(seen) != count || pages < 3 {
		t.Errorf("%d referrers on %d pages", len(seen), pages)
	}
}

// What moves must be asked for again, what is named by its digest never.
func TestCaching(t *testing.T) {
	r := start(t, catalogtest.Options{Private: true})
	r.user = catalogtest.AdminToken
	r.Create(t, meta.Repository{Ref: meta.RepoRef{Tenant: "acme", Name: "open"}, Format: "oci", Visibility: meta.VisibilityPublic})
	r.Create(t, meta.Repository{Ref: meta.RepoRef{Tenant: "acme", Name: "app"}, Format: "oci"})
	i := makeImage(t, "caching", 1, godigest.SHA256, nil)
	var layer digest.Digest
	for d := range i.blobs {
		layer = d
	}
	for name, scope := range map[string]string{"acme/open": "public", "acme/app": "private"} {
		r := r.at(t, name)
		r.push(i, "1.0")
		for target, want := range map[string]string{
			"manifests/1.0":                 scope + ", no-cache",
			"manifests/" + string(i.digest): scope + ", max-age=31536000, immutable",
			"blobs/" + string(layer):        scope + ", max-age=31536000, immutable",
			"tags/list":                     scope + ", no-cache",
		} {
			a := r.expect(r.do("GET", target, nil), 200)
			r.header(a, "Cache-Control", want)
			again := r.expect(r.do("GET", target, nil, header("If-None-Match", a.Header.Get("Etag"))), 304)
			if len(again.body) != 0 {
				t.Errorf("a 304 with %d bytes", len(again.body))
			}
		}
	}
	// Nobody without a right sees that the private one is there.
	r.user = ""
	r.at(t, "acme/open").expect(r.at(t, "acme/open").do("GET", "manifests/1.0", nil), 200)
	private := r.at(t, "acme/app")
	there, absent := private.do("GET", "manifests/1.0", nil), r.at(t, "acme/none").do("GET", "manifests/1.0", nil)
	if there.StatusCode != 401 || absent.StatusCode != 401 || len(there.body) != len(absent.body) {
		t.Errorf("there: %d %s, absent: %d %s", there.StatusCode, there.body, absent.StatusCode, absent.body)
	}
}

// Several Accept lines count as one.
func TestAcceptLines(t *testing.T) {
	r := start(t, catalogtest.Options{})
	i := makeImage(t, "accept", 0, godigest.SHA256, nil)
	r.push(i, "1.0")
	for want, accepts := range map[string][]string{
		"":        {"application/vnd.docker.distribution.manifest.v2+json", mediaIndex, mediaImage},
		"warned":  {"application/vnd.docker.distribution.manifest.v2+json", mediaIndex},
		"nothing": nil,
	} {
		var opts []option
		for _, a := range accepts {
			opts = append(opts, header("Accept", a))
		}
		a := r.expect(r.do("GET", "manifests/1.0", nil, opts...), 200)
		if (a.Header.Get("Warning") != "") != (want == "warned") {
			t.Errorf("accepts %v: Warning %q", accepts, a.Header.Get("Warning"))
		}
	}
}

// A client that goes away in the middle of a chunk goes on where its bytes end.
func TestResume(t *testing.T) {
	r := start(t, catalogtest.Options{})
	begun := r.expect(r.do("POST", "blobs/uploads/", nil), 202)
	location := begun.Header.Get("Location")
	blob := bytes.Repeat([]byte("resume "), 100_000)
	pr, pw := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), "PATCH", r.URL+location, pr)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		pw.Write(blob[:300_000])
		pw.CloseWithError(io.ErrUnexpectedEOF)
	}()
	if resp, err := r.Client.Do(req); err == nil {
		resp.Body.Close()
		t.Fatalf("a chunk that broke off answers %d", resp.StatusCode)
	}
	var have int
	for { // the node may still be reading what arrived
		a := r.do("GET", location, nil)
		if a.StatusCode == 409 {
			continue
		}
		r.expect(a, 204)
		if _, err := fmt.Sscanf(a.Header.Get("Range"), "0-%d", &have); err != nil {
			t.Fatal(err)
		}
		have++
		p := r.do("PATCH", location, blob[have:], header("Content-Range", fmt.Sprintf("%d-%d", have, len(blob)-1)))
		if p.StatusCode == 202 {
			break
		}
		r.expect(p, 409, 416)
	}
	if have > 300_000 {
		t.Errorf("the upload had %d bytes of 300,000 sent", have)
	}
	a := r.expect(r.do("PUT", location, nil, query("digest", string(digest.FromBytes(blob)))), 201)
	if got := r.expect(r.do("GET", a.Header.Get("Location"), nil), 200); !bytes.Equal(got.body, blob) {
		t.Error("the blob has other bytes")
	}
}

// The catalogue shows what the caller may read, of OCI repositories.
func TestCatalogShowsReadable(t *testing.T) {
	r := start(t, catalogtest.Options{Private: true})
	for _, repo := range []meta.Repository{
		{Ref: meta.RepoRef{Tenant: "acme", Name: "app"}, Format: "oci"},
		{Ref: meta.RepoRef{Tenant: "acme", Name: "files"}, Format: "generic"},
	} {
		r.Create(t, repo)
	}
	r.user = catalogtest.AdminToken
	r.at(t, "acme/app/api").push(makeImage(t, "x", 0, godigest.SHA256, nil), "1.0")
	var list struct{ Repositories []string }
	decode(t, r.expect(r.do("GET", "/v2/_catalog", nil), 200).body, &list)
	if !slices.Equal(list.Repositories, []string{"acme/app/api"}) {
		t.Errorf("the catalogue has %v", list.Repositories)
	}
	r.expect(r.do("GET", "/v2/_catalog?last=acme/app/api", nil), 200)
	r.fails(r.do("GET", "/v2/_catalog?last=acme", nil), 400, "NAME_INVALID")
}

// An index whose entries are blobs, as build caches push it, and one of images of
// which some are missing.
func TestIndexEntries(t *testing.T) {
	r := start(t, catalogtest.Options{})
	layer := r.pushBlob([]byte("a layer of a cache"))
	cache := encode(t, obj{"schemaVersion": 2, "mediaType": mediaIndex, "manifests": []obj{describe(mediaLayer, layer, 18)}})
	r.pushManifest(cache, mediaIndex, "cache", digest.FromBytes(cache))
	sparse := encode(t, obj{"schemaVersion": 2, "mediaType": mediaIndex, "manifests": []obj{describe(mediaImage, digestOf("not pushed"), 10)}})
	r.fails(r.do("PUT", "manifests/sparse", sparse, header("Content-Type", mediaIndex)), 400, "MANIFEST_BLOB_UNKNOWN")
	// A blob does not pass for an image.
	wrong := encode(t, obj{"schemaVersion": 2, "mediaType": mediaIndex, "manifests": []obj{describe(mediaImage, layer, 18)}})
	r.fails(r.do("PUT", "manifests/wrong", wrong, header("Content-Type", mediaIndex)), 400, "MANIFEST_BLOB_UNKNOWN")
}

// Push, pull and read-your-writes with the token of the write.
func TestToken(t *testing.T) {
	r := start(t, catalogtest.Options{})
	i := makeImage(t, "token", 0, godigest.SHA256, nil)
	r.pushBlobs(i)
	a := r.expect(r.do("PUT", "manifests/1.0", i.manifest, header("Content-Type", mediaImage)), 201)
	token := a.Header.Get("Shoal-Token")
	got := r.expect(r.do("GET", "manifests/1.0", nil, header("Shoal-Token", token)), 200)
	if token == "" || got.Header.Get("Shoal-Index") == "" || got.Header.Get("Shoal-Mode") != "bounded" {
		t.Errorf("token %q, answer %v", token, got.Header)
	}
	r.expect(r.do("GET", "manifests/1.0", nil, header("Shoal-Token", "nonsense")), 400)
}

// A mount from a name that cannot be is a mount of nothing: the client uploads.
func TestMountFromNowhere(t *testing.T) {
	r := start(t, catalogtest.Options{})
	d := string(r.pushBlob([]byte("here")))
	for _, from := range []string{"acme", "acme/", "acme/UP..x", "../..", "acme/none/x", strings.Repeat("a", 3000), "acme/\x00"} {
		r.at(t, "acme/to").expect(r.at(t, "acme/to").do("POST", "blobs/uploads/", nil, query("mount", d), query("from", from)), 202)
	}
}
