package oci_test

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	godigest "github.com/opencontainers/go-digest"

	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/verify/digest"
)

// TestConformance has the cases of the distribution specification's suite, under
// its names: the workflows of 1.1 (Pull, Push, Content Discovery, Content
// Management) and, as Blobs and Data, the API and data cases that the suite of
// the main branch added. They run over HTTP against one whole node.
func TestConformance(t *testing.T) {
	r := start(t, catalogtest.Options{})
	t.Run("Base", func(t *testing.T) {
		a := r.at(t, "x/y").do("GET", "/v2/", nil)
		r.at(t, "").expect(a, 200)
		r.at(t, "").header(a, "Docker-Distribution-Api-Version", "registry/2.0")
	})
	t.Run("Empty", func(t *testing.T) {
		r := r.at(t, "none/none")
		r.expect(r.do("GET", "tags/list", nil), 200, 404)
		if list, _ := r.referrers(digest.FromBytes([]byte("nothing"))); len(list) != 0 {
			t.Errorf("%d referrers in a repository that is not there", len(list))
		}
	})
	t.Run("Pull", func(t *testing.T) { conformPull(t, r) })
	t.Run("Push", func(t *testing.T) { conformPush(t, r) })
	t.Run("Content Discovery", func(t *testing.T) { conformDiscovery(t, r) })
	t.Run("Content Management", func(t *testing.T) { conformManagement(t, r) })
	for _, algorithm := range []godigest.Algorithm{godigest.SHA256, godigest.SHA512} {
		t.Run("Blobs "+algorithm.String(), func(t *testing.T) { conformBlobs(t, r, algorithm) })
	}
	t.Run("Data", func(t *testing.T) { conformData(t, r) })
}

func conformPull(t *testing.T, all *registry) {
	const name = "conformance/pull"
	i := makeImage(t, "pull", 2, godigest.SHA256, nil)
	all.at(t, name).push(i, "tagtest0")
	var layer digest.Digest
	for d := range i.blobs {
		layer = d
	}
	missing := digest.FromBytes([]byte("missing"))
	type test struct {
		name string
		run  func(*registry)
	}
	groups := []struct {
		name  string
		tests []test
	}{
		{"Pull blobs", []test{
			{"HEAD request to nonexistent blob should result in 404 response", func(r *registry) {
				r.expect(r.do("HEAD", "blobs/"+string(missing), nil), 404)
			}},
			{"HEAD request to existing blob should yield 200", func(r *registry) {
				a := r.expect(r.do("HEAD", "blobs/"+string(layer), nil), 200)
				r.header(a, "Docker-Content-Digest", string(layer))
				r.header(a, "Content-Length", strconv.Itoa(len(i.blobs[layer])))
			}},
			{"GET nonexistent blob should result in 404 response", func(r *registry) {
				r.fails(r.do("GET", "blobs/"+string(missing), nil), 404, "BLOB_UNKNOWN")
			}},
			{"GET request to existing blob URL should yield 200", func(r *registry) {
				a := r.expect(r.do("GET", "blobs/"+string(layer), nil), 200)
				if !bytes.Equal(a.body, i.blobs[layer]) {
					r.t.Error("the blob has other bytes")
				}
			}},
		}},
		{"Pull manifests", []test{
			{"HEAD request to nonexistent manifest should return 404", func(r *registry) {
				r.expect(r.do("HEAD", "manifests/.INVALID_MANIFEST_NAME", nil), 404, 400)
				r.expect(r.do("HEAD", "manifests/missing", nil), 404)
			}},
			{"HEAD request to manifest[0] path (digest) should yield 200 response", func(r *registry) {
				a := r.expect(r.do("HEAD", "manifests/"+string(i.digest), nil, header("Accept", mediaImage)), 200)
				r.header(a, "Docker-Content-Digest", string(i.digest))
				r.header(a, "Content-Length", strconv.Itoa(len(i.manifest)))
			}},
			{"HEAD request to manifest path (tag) should yield 200 response", func(r *registry) {
				a := r.expect(r.do("HEAD", "manifests/tagtest0", nil, header("Accept", mediaImage)), 200)
				r.header(a, "Docker-Content-Digest", string(i.digest))
			}},
			{"GET nonexistent manifest should return 404", func(r *registry) {
				r.fails(r.do("GET", "manifests/missing", nil), 404, "MANIFEST_UNKNOWN")
				r.fails(r.do("GET", "manifests/"+string(missing), nil), 404, "MANIFEST_UNKNOWN")
			}},
			{"GET request to manifest path (digest) should yield 200 response", func(r *registry) {
				a := r.expect(r.do("GET", "manifests/"+string(i.digest), nil, header("Accept", mediaImage)), 200)
				if !bytes.Equal(a.body, i.manifest) {
					r.t.Error("the manifest has other bytes")
				}
				r.header(a, "Content-Type", mediaImage)
			}},
			{"GET request to manifest path (tag) should yield 200 response", func(r *registry) {
				a := r.expect(r.do("GET", "manifests/tagtest0", nil, header("Accept", mediaImage)), 200)
				if !bytes.Equal(a.body, i.manifest) {
					r.t.Error("the manifest has other bytes")
				}
			}},
		}},
		{"Error codes", []test{
			{"400 response body should contain OCI-conforming JSON message", func(r *registry) {
				r.fails(r.do("PUT", "manifests/sha256:totallywrong", []byte("blablabla"), header("Content-Type", mediaImage)), 400, "DIGEST_INVALID")
			}},
		}},
	}
	for _, g := range groups {
		t.Run(g.name, func(t *testing.T) {
			for _, c := range g.tests {
				t.Run(c.name, func(t *testing.T) { c.run(all.at(t, name)) })
			}
		})
	}
}

func conformPush(t *testing.T, all *registry) {
	r := all.at(t, "conformance/push")
	i := makeImage(t, "push", 4, godigest.SHA256, nil)
	digests := slices.Sorted(maps.Keys(i.blobs))
	t.Run("Blob Upload Streamed", func(t *testing.T) {
		r := r.at(t, r.name)
		d := digests[0]
		t.Run("PATCH request with blob in body should yield 202 response", func(t *testing.T) {
			r := r.at(t, r.name)
			begun := r.expect(r.do("POST", "blobs/uploads/", nil), 202)
			a := r.expect(r.do("PATCH", begun.Header.Get("Location"), i.blobs[d], streamed, header("Content-Type", "application/octet-stream")), 202)
			r.header(a, "Range", fmt.Sprintf("0-%d", len(i.blobs[d])-1))
			t.Run("PUT request to session URL with digest should yield 201 response", func(t *testing.T) {
				r := r.at(t, r.name)
				done := r.expect(r.do("PUT", a.Header.Get("Location"), nil, query("digest", string(d))), 201)
				got := r.expect(r.do("GET", done.Header.Get("Location"), nil), 200)
				if !bytes.Equal(got.body, i.blobs[d]) {
					t.Error("the blob has other bytes")
				}
			})
		})
	})
	t.Run("Blob Upload Monolithic", func(t *testing.T) {
		t.Run("GET nonexistent blob should result in 404 response", func(t *testing.T) {
			r := r.at(t, r.name)
			r.fails(r.do("GET", "blobs/"+string(digest.FromBytes([]byte("dummy"))), nil), 404, "BLOB_UNKNOWN")
		})
		t.Run("POST request with digest and blob should yield a 201 or 202", func(t *testing.T) {
			r := r.at(t, r.name)
			d := digests[1]
			a := r.expect(r.do("POST", "blobs/uploads/", i.blobs[d], query("digest", string(d))), 201)
			r.header(a, "Docker-Content-Digest", string(d))
			r.expect(r.do("GET", a.Header.Get("Location"), nil), 200)
		})
		t.Run("POST request should yield a session ID", func(t *testing.T) {
			r := r.at(t, r.name)
			d := digests[2]
			a := r.expect(r.do("POST", "blobs/uploads/", nil), 202)
			if a.Header.Get("Location") == "" || a.Header.Get("Docker-Upload-Uuid") == "" {
				t.Errorf("no session in %v", a.Header)
			}
			t.Run("PUT upload of a blob should yield a 201 Response", func(t *testing.T) {
				r := r.at(t, r.name)
				r.expect(r.do("PUT", a.Header.Get("Location"), i.blobs[d], query("digest", string(d))), 201)
			})
		})
		t.Run("GET request to existing layer should yield 200 response", func(t *testing.T) {
			r := r.at(t, r.name)
			r.expect(r.do("GET", "blobs/"+string(digests[1]), nil), 200)
		})
	})
	t.Run("Blob Upload Chunked", func(t *testing.T) {
		r := r.at(t, r.name)
		blob := bytes.Repeat([]byte("chunked "), 1000)
		half := len(blob) / 2
		begun := r.expect(r.do("POST", "blobs/uploads/", nil, header("Content-Length", "0")), 202)
		location := begun.Header.Get("Location")
		chunk := func(r *registry, from, to int, statuses ...int) *answer {
			a := r.do("PATCH", location, blob[from:to], header("Content-Type", "application/octet-stream"), header("Content-Range", fmt.Sprintf("%d-%d", from, to-1)))
			r.expect(a, statuses...)
			location = a.Header.Get("Location")
			return a
		}
		t.Run("Out-of-order blob upload should return 416", func(t *testing.T) { chunk(r.at(t, r.name), half, len(blob), 416) })
		t.Run("PATCH request with first chunk should return 202", func(t *testing.T) {
			r := r.at(t, r.name)
			a := chunk(r, 0, half, 202)
			r.header(a, "Range", fmt.Sprintf("0-%d", half-1))
		})
		t.Run("Retry previous blob chunk should return 416", func(t *testing.T) {
			r := r.at(t, r.name)
			a := chunk(r, 0, half, 416)
			r.header(a, "Range", fmt.Sprintf("0-%d", half-1))
		})
		t.Run("Get on stale blob upload should return 204 with a range and location", func(t *testing.T) {
			r := r.at(t, r.name)
			a := r.expect(r.do("GET", location, nil), 204)
			r.header(a, "Range", fmt.Sprintf("0-%d", half-1))
			location = a.Header.Get("Location")
		})
		t.Run("PATCH request with second chunk should return 202", func(t *testing.T) { chunk(r.at(t, r.name), half, len(blob), 202) })
		t.Run("PUT request with digest should return 201", func(t *testing.T) {
			r := r.at(t, r.name)
			a := r.expect(r.do("PUT", location, nil, query("digest", string(digest.FromBytes(blob)))), 201)
			got := r.expect(r.do("GET", a.Header.Get("Location"), nil), 200)
			if !bytes.Equal(got.body, blob) {
				t.Error("the blob has other bytes")
			}
		})
	})
	t.Run("Cross-Repository Blob Mount", func(t *testing.T) {
		from, to := r.at(t, "conformance/push"), r.at(t, "conformance/mounted")
		d := from.pushBlob([]byte("to be mounted"))
		elsewhere := r.at(t, "another/push").pushBlob([]byte("of another tenant"))
		t.Run("Cross-mounting of a blob without the from argument should yield session id", func(t *testing.T) {
			to := to.at(t, to.name)
			a := to.expect(to.do("POST", "blobs/uploads/", nil, query("mount", string(d))), 201, 202)
			if a.StatusCode != 201 {
				t.Error("a blob of the tenant that the caller may read was not mounted")
			}
		})
		t.Run("POST request to mount another repository's blob should return 201 or 202", func(t *testing.T) {
			to := to.at(t, "conformance/mounted2")
			a := to.expect(to.do("POST", "blobs/uploads/", nil, query("mount", string(d)), query("from", from.name)), 201)
			to.expect(to.do("GET", a.Header.Get("Location"), nil), 200)
		})
		t.Run("GET request to test digest within cross-mount namespace should return 200", func(t *testing.T) {
			to := to.at(t, to.name)
			to.expect(to.do("GET", "blobs/"+string(d), nil), 200)
		})
		t.Run("Cross-mounting of nonexistent blob should yield session id", func(t *testing.T) {
			to := to.at(t, to.name)
			a := to.expect(to.do("POST", "blobs/uploads/", nil, query("mount", string(digest.FromBytes([]byte("unknown")))), query("from", from.name)), 202)
			if !strings.Contains(a.Header.Get("Location"), "/blobs/uploads/") {
				t.Errorf("Location is %q", a.Header.Get("Location"))
			}
		})
		t.Run("Cross-mounting of another tenant's blob should yield session id", func(t *testing.T) {
			to := to.at(t, to.name)
			to.expect(to.do("POST", "blobs/uploads/", nil, query("mount", string(elsewhere)), query("from", "another/push")), 202)
			to.expect(to.do("POST", "blobs/uploads/", nil, query("mount", string(elsewhere))), 202)
			to.expect(to.do("HEAD", "blobs/"+string(elsewhere), nil), 404)
		})
	})
	t.Run("Manifest Upload", func(t *testing.T) {
		t.Run("GET nonexistent manifest should return 404", func(t *testing.T) {
			r := r.at(t, r.name)
			r.expect(r.do("GET", "manifests/"+string(digest.FromBytes([]byte("no"))), nil), 404)
		})
		t.Run("PUT should accept a manifest upload", func(t *testing.T) {
			r := r.at(t, r.name)
			r.pushBlobs(i)
			for n := range 4 {
				a := r.expect(r.do("PUT", fmt.Sprintf("manifests/test%d", n), i.manifest, header("Content-Type", mediaImage)), 201)
				if a.Header.Get("Location") == "" {
					t.Error("no Location")
				}
				r.header(a, "Docker-Content-Digest", string(i.digest))
			}
		})
		t.Run("Registry should accept a manifest upload with no layers", func(t *testing.T) {
			r := r.at(t, r.name)
			r.push(makeImage(t, "no layers", 0, godigest.SHA256, nil), "emptylayer")
		})
		t.Run("GET request to manifest URL (digest) should yield 200 response", func(t *testing.T) {
			r := r.at(t, r.name)
			r.expect(r.do("GET", "manifests/"+string(i.digest), nil), 200)
		})
		t.Run("Manifest over 4 MiB should be refused with 413", func(t *testing.T) {
			r := r.at(t, r.name)
			big := makeImage(t, "big", 0, godigest.SHA256, obj{"annotations": obj{"x": strings.Repeat("A", 4<<20)}})
			r.fails(r.do("PUT", "manifests/big", big.manifest, header("Content-Type", mediaImage)), 413, "SIZE_INVALID")
			r.fails(r.do("PUT", "manifests/big", big.manifest, header("Content-Type", mediaImage), streamed), 413, "SIZE_INVALID")
		})
		t.Run("Manifest with unknown blobs should be refused with MANIFEST_BLOB_UNKNOWN", func(t *testing.T) {
			r := r.at(t, r.name)
			a := r.do("PUT", "manifests/unknown", makeImage(t, "never pushed", 2, godigest.SHA256, nil).manifest, header("Content-Type", mediaImage))
			r.fails(a, 400, "MANIFEST_BLOB_UNKNOWN")
			if n := len(r.codes(a)); n != 3 {
				t.Errorf("%d errors for three blobs that are not there", n)
			}
		})
	})
}

func conformDiscovery(t *testing.T, all *registry) {
	r := all.at(t, "conformance/discovery")
	i := makeImage(t, "discovery", 1, godigest.SHA256, nil)
	want := []string{"TagTest1", "_tag", "tag.test2", "tagtest0", "tagtest1", "tagtest2", "tagtest3"}
	for _, tag := range want {
		r.push(i, tag)
	}
	t.Run("Test content discovery endpoints (listing tags)", func(t *testing.T) {
		t.Run("GET request to list tags should yield 200 response and be in sorted order", func(t *testing.T) {
			r := r.at(t, r.name)
			if got := r.tags(); !slices.Equal(got, want) {
				t.Errorf("tags are %v, want %v", got, want)
			}
		})
		t.Run("GET number of tags should be limitable by `n` query parameter", func(t *testing.T) {
			r := r.at(t, r.name)
			for n := range len(want) + 2 {
				if got := r.tags(query("n", strconv.Itoa(n))); !slices.Equal(got, want[:min(n, len(want))]) {
					t.Errorf("n=%d: tags are %v", n, got)
				}
			}
		})
		t.Run("GET start of tag is set by `last` query parameter", func(t *testing.T) {
			r := r.at(t, r.name)
			for n, last := range want {
				if got := r.tags(query("last", last)); !slices.Equal(got, want[n+1:]) {
					t.Errorf("last=%s: tags are %v", last, got)
				}
			}
			if got := r.tags(query("last", "tagtest0x"), query("n", "1")); !slices.Equal(got, []string{"tagtest1"}) {
				t.Errorf("after a tag that is not there: %v", got)
			}
		})
		t.Run("Pages follow Link", func(t *testing.T) {
			r := r.at(t, r.name)
			var got []string
			next := "tags/list?n=3"
			for pages := 0; next != "" && pages < 9; pages++ {
				a := r.expect(r.do("GET", next, nil), 200)
				var list struct{ Tags []string }
				decode(t, a.body, &list)
				got = append(got, list.Tags...)
				next = linkNext(a)
			}
			if !slices.Equal(got, want) {
				t.Errorf("pages have %v", got)
			}
		})
	})
	t.Run("Test content discovery endpoints (listing references)", func(t *testing.T) {
		const typeA, typeB = "application/vnd.nhl.peanut.butter.bagel", "application/vnd.nba.strawberry.jam.croissant"
		subject := obj{"subject": i.descriptor()}
		with := func(more obj) obj { m := maps.Clone(subject); maps.Copy(m, more); return m }
		empty := describe(mediaEmpty, digest.FromBytes([]byte("{}")), 2)
		r.pushBlob([]byte("{}"))
		refA := makeImage(t, "a", 1, godigest.SHA256, with(obj{"artifactType": typeA, "annotations": obj{"org.opencontainers.conformance.test": "a"}}))
		refB := makeImage(t, "b", 1, godigest.SHA256, with(obj{"artifactType": typeB}))
		refConfig := makeImage(t, "c", 0, godigest.SHA256, with(obj{"config": describe(typeA, digest.FromBytes([]byte("{}")), 2), "layers": []obj{empty}}))
		missing := digest.FromBytes([]byte("a subject that comes later"))
		refMissing := makeImage(t, "m", 1, godigest.SHA256, obj{"artifactType": typeA, "subject": describe(mediaImage, missing, 99)})
		indexDoc := encode(t, with(obj{"schemaVersion": 2, "mediaType": mediaIndex, "artifactType": typeB, "manifests": []obj{i.descriptor()}, "annotations": obj{"k": "v"}}))
		for _, ref := range []image{refA, refB, refConfig} {
			a := r.push(ref, "")
			r.header(a, "OCI-Subject", string(i.digest))
		}
		a := r.pushManifest(indexDoc, mediaIndex, "", digest.FromBytes(indexDoc))
		r.header(a, "OCI-Subject", string(i.digest))
		r.header(r.push(refMissing, "artifact-of-nothing"), "OCI-Subject", string(missing))
		t.Run("GET request to nonexistent blob should result in empty 200 response", func(t *testing.T) {
			r := r.at(t, r.name)
			if list, _ := r.referrers(digest.FromBytes([]byte("no subject"))); len(list) != 0 {
				t.Errorf("referrers: %v", list)
			}
		})
		t.Run("GET request to existing blob should yield 200", func(t *testing.T) {
			r := r.at(t, r.name)
			list, _ := r.referrers(i.digest)
			if len(list) != 4 {
				t.Fatalf("%d referrers, want 4: %v", len(list), list)
			}
			for _, d := range list {
				switch d.Digest {
				case refA.digest:
					if d.ArtifactType != typeA || d.MediaType != mediaImage || d.Size != int64(len(refA.manifest)) || d.Annotations["org.opencontainers.conformance.test"] != "a" {
						t.Errorf("descriptor is %+v", d)
					}
				case refConfig.digest:
					if d.ArtifactType != typeA {
						t.Errorf("without an artifactType it is the config's type, not %q", d.ArtifactType)
					}
				case digest.FromBytes(indexDoc):
					if d.ArtifactType != typeB || d.MediaType != mediaIndex || d.Annotations["k"] != "v" {
						t.Errorf("descriptor is %+v", d)
					}
				}
			}
		})
		t.Run("GET request to existing blob with filter should yield 200", func(t *testing.T) {
			r := r.at(t, r.name)
			list, a := r.referrers(i.digest, query("artifactType", typeA))
			r.header(a, "OCI-Filters-Applied", "artifactType")
			if len(list) != 2 || !has(list, refA.digest) || !has(list, refConfig.digest) {
				t.Errorf("filtered referrers are %v", list)
			}
		})
		t.Run("GET request to missing manifest should yield 200", func(t *testing.T) {
			r := r.at(t, r.name)
			if list, _ := r.referrers(missing); len(list) != 1 || !has(list, refMissing.digest) {
				t.Errorf("referrers are %v", list)
			}
		})
		t.Run("Deleted referrers are gone", func(t *testing.T) {
			r := r.at(t, r.name)
			r.expect(r.do("DELETE", "manifests/"+string(refB.digest), nil), 202)
			if list, _ := r.referrers(i.digest); has(list, refB.digest) {
				t.Errorf("referrers are %v", list)
			}
		})
	})
	t.Run("Listing repositories", func(t *testing.T) {
		r := r.at(t, r.name)
		for _, name := range []string{"catalog/one", "catalog/one/img", "catalog/two/a/b"} {
			r.at(t, name).push(i, "x")
		}
		var got []string
		for next, pages := "/v2/_catalog?n=2&last=catalog/", 0; next != "" && pages < 99; pages++ {
			if pages == 0 {
				next = "/v2/_catalog?n=2"
			}
			a := r.expect(r.do("GET", next, nil), 200)
			var list struct{ Repositories []string }
			decode(t, a.body, &list)
			if len(list.Repositories) > 2 {
				t.Errorf("n=2 answers %v", list.Repositories)
			}
			got = append(got, list.Repositories...)
			next = linkNext(a)
		}
		for _, name := range []string{"catalog/one", "catalog/one/img", "catalog/two/a/b", "conformance/discovery", "conformance/pull"} {
			if n := len(slices.DeleteFunc(slices.Clone(got), func(s string) bool { return s != name })); n != 1 {
				t.Errorf("%s is listed %d times in %v", name, n, got)
			}
		}
	})
}

func conformManagement(t *testing.T, all *registry) {
	r := all.at(t, "conformance/management")
	i := makeImage(t, "management", 1, godigest.SHA256, nil)
	r.push(i, "tagtest0")
	r.push(i, "other")
	t.Run("Manifest delete", func(t *testing.T) {
		t.Run("DELETE request to manifest tag should return 202, unless tag deletion is disallowed (400/405)", func(t *testing.T) {
			r := r.at(t, r.name)
			r.expect(r.do("DELETE", "manifests/tagtest0", nil), 202)
			r.expect(r.do("HEAD", "manifests/tagtest0", nil), 404)
			r.expect(r.do("HEAD", "manifests/other", nil), 200)
		})
		t.Run("Blob of a manifest is not deleted", func(t *testing.T) {
			r := r.at(t, r.name)
			for d := range i.blobs {
				r.fails(r.do("DELETE", "blobs/"+string(d), nil), 405, "UNSUPPORTED")
			}
		})
		t.Run("DELETE request to manifest (digest) should yield 202 response unless already deleted", func(t *testing.T) {
			r := r.at(t, r.name)
			r.expect(r.do("DELETE", "manifests/"+string(i.digest), nil), 202)
		})
		t.Run("GET request to deleted manifest URL should yield 404 response, unless delete is disallowed", func(t *testing.T) {
			r := r.at(t, r.name)
			r.expect(r.do("GET", "manifests/"+string(i.digest), nil), 404)
			r.expect(r.do("GET", "manifests/other", nil), 404)
			r.expect(r.do("DELETE", "manifests/"+string(i.digest), nil), 404)
		})
		t.Run("GET request to tags list should reflect manifest deletion", func(t *testing.T) {
			r := r.at(t, r.name)
			r.expect(r.do("GET", "tags/list", nil), 200, 404)
		})
	})
	t.Run("Blob delete", func(t *testing.T) {
		t.Run("DELETE request to blob URL should yield 202 response", func(t *testing.T) {
			r := r.at(t, r.name)
			for d := range i.blobs {
				r.expect(r.do("DELETE", "blobs/"+string(d), nil), 202)
			}
		})
		t.Run("GET request to deleted blob URL should yield 404 response", func(t *testing.T) {
			r := r.at(t, r.name)
			for d := range i.blobs {
				r.fails(r.do("GET", "blobs/"+string(d), nil), 404, "BLOB_UNKNOWN")
				r.fails(r.do("DELETE", "blobs/"+string(d), nil), 404, "BLOB_UNKNOWN")
			}
		})
	})
	t.Run("The same content comes back", func(t *testing.T) {
		r := r.at(t, r.name)
		r.push(i, "again")
		r.expect(r.do("GET", "manifests/again", nil), 200)
	})
}

// conformBlobs has every way to push a blob, under names of one algorithm.
func conformBlobs(t *testing.T, all *registry, algorithm godigest.Algorithm) {
	name := "conformance/blobs-" + algorithm.String()
	blobOf := func(seed string, size int) ([]byte, digest.Digest) {
		b := bytes.Repeat([]byte(seed+algorithm.String()), size/len(seed)+1)[:size]
		return b, algorithm.FromBytes(b)
	}
	check := func(r *registry, a *answer, b []byte, d digest.Digest) {
		r.t.Helper()
		r.header(a, "Docker-Content-Digest", string(d))
		got := r.expect(r.do("GET", a.Header.Get("Location"), nil), 200)
		if !bytes.Equal(got.body, b) {
			r.t.Error("the blob has other bytes")
		}
		head := r.expect(r.do("HEAD", "blobs/"+string(d), nil), 200)
		r.header(head, "Content-Length", strconv.Itoa(len(b)))
		r.expect(r.do("DELETE", "blobs/"+string(d), nil), 202)
		r.expect(r.do("HEAD", "blobs/"+string(d), nil), 404)
	}
	begin := func(r *registry) string {
		return r.expect(r.do("POST", "blobs/uploads/", nil), 202).Header.Get("Location")
	}
	chunks := func(r *registry, b []byte, d digest.Digest, outOfOrder, lastInPut, bad bool) {
		r.t.Helper()
		location := begin(r)
		size := len(b)/3 + 1
		for from := 0; from < len(b); from += size {
			send := func(from int, statuses ...int) *answer {
				to := min(from+size, len(b))
				method, opts := "PATCH", []option{header("Content-Range", fmt.Sprintf("%d-%d", from, to-1))}
				if to == len(b) && lastInPut {
					method, opts = "PUT", append(opts, query("digest", string(d)))
				}
				a := r.expect(r.do(method, location, b[from:to], opts...), statuses...)
				if l := a.Header.Get("Location"); l != "" {
					location = l
				}
				return a
			}
			if outOfOrder {
				wrong := from + size
				if wrong >= len(b) {
					wrong = 0
				}
				send(wrong, 416)
				a := r.expect(r.do("GET", location, nil), 204)
				if from > 0 {
					r.header(a, "Range", fmt.Sprintf("0-%d", from-1))
				}
			}
			if from+size >= len(b) && lastInPut {
				if bad {
					r.fails(send(from, 400), 400, "DIGEST_INVALID")
					return
				}
				check(r, send(from, 201), b, d)
				return
			}
			send(from, 202)
		}
		if bad {
			r.fails(r.do("PUT", location, nil, query("digest", string(d))), 400, "DIGEST_INVALID")
			return
		}
		check(r, r.expect(r.do("PUT", location, nil, query("digest", string(d))), 201), b, d)
	}
	for _, test := range []struct {
		name string
		size int
		run  func(r *registry, b []byte, d digest.Digest)
	}{
		{"get-missing", 512, func(r *registry, _ []byte, d digest.Digest) {
			r.expect(r.do("GET", "blobs/"+string(d), nil), 404)
		}},
		{"post only", 512, func(r *registry, b []byte, d digest.Digest) {
			check(r, r.expect(r.do("POST", "blobs/uploads/", b, query("digest", string(d))), 201), b, d)
		}},
		{"post+put", 512, func(r *registry, b []byte, d digest.Digest) {
			check(r, r.expect(r.do("PUT", begin(r), b, query("digest", string(d))), 201), b, d)
		}},
		{"chunked single", 512, func(r *registry, b []byte, d digest.Digest) {
			a := r.expect(r.do("POST", "blobs/uploads/", nil, query("digest-algorithm", algorithm.String())), 202)
			if n, err := strconv.Atoi(a.Header.Get("OCI-Chunk-Min-Length")); err != nil || n <= 0 {
				r.t.Errorf("OCI-Chunk-Min-Length: %v", err)
			}
			a = r.expect(r.do("PATCH", a.Header.Get("Location"), b, header("Content-Range", fmt.Sprintf("0-%d", len(b)-1))), 202)
			check(r, r.expect(r.do("PUT", a.Header.Get("Location"), nil, query("digest", string(d))), 201), b, d)
		}},
		{"stream", 512, func(r *registry, b []byte, d digest.Digest) {
			a := r.expect(r.do("PATCH", begin(r), b, streamed), 202)
			check(r, r.expect(r.do("PUT", a.Header.Get("Location"), nil, query("digest", string(d))), 201), b, d)
		}},
		{"post cancel", 512, func(r *registry, b []byte, d digest.Digest) {
			location := begin(r)
			r.expect(r.do("DELETE", location, nil), 204)
			r.fails(r.do("GET", location, nil), 404, "BLOB_UPLOAD_UNKNOWN")
			r.fails(r.do("PUT", location, b, query("digest", string(d))), 404, "BLOB_UPLOAD_UNKNOWN")
		}},
		{"mount", 512, func(r *registry, b []byte, d digest.Digest) {
			r.at(r.t, "conformance/blobs-2").pushBlobAs(b, d)
			check(r, r.expect(r.do("POST", "blobs/uploads/", nil, query("mount", string(d)), query("from", "conformance/blobs-2")), 201), b, d)
		}},
		{"mount anonymous", 512, func(r *registry, b []byte, d digest.Digest) {
			r.at(r.t, "conformance/blobs-2").pushBlobAs(b, d)
			check(r, r.expect(r.do("POST", "blobs/uploads/", nil, query("mount", string(d))), 201), b, d)
		}},
		{"mount missing", 512, func(r *registry, b []byte, d digest.Digest) {
			a := r.expect(r.do("POST", "blobs/uploads/", nil, query("mount", string(d)), query("from", "conformance/blobs-2")), 202)
			check(r, r.expect(r.do("PUT", a.Header.Get("Location"), b, query("digest", string(d))), 201), b, d)
		}},
		{"chunked multi", 3067, func(r *registry, b []byte, d digest.Digest) { chunks(r, b, d, false, false, false) }},
		{"chunked multi and put chunk", 3067, func(r *registry, b []byte, d digest.Digest) { chunks(r, b, d, false, true, false) }},
		{"chunked out-of-order", 3067, func(r *registry, b []byte, d digest.Digest) { chunks(r, b, d, true, false, false) }},
		{"chunked out-of-order and put chunk", 3067, func(r *registry, b []byte, d digest.Digest) { chunks(r, b, d, true, true, false) }},
		{"empty", 0, func(r *registry, b []byte, d digest.Digest) {
			check(r, r.expect(r.do("PUT", begin(r), b, query("digest", string(d))), 201), b, d)
			check(r, r.expect(r.do("POST", "blobs/uploads/", b, query("digest", string(d))), 201, 202), b, d)
		}},
		{"bad digest post only", 3067, func(r *registry, b []byte, d digest.Digest) {
			r.fails(r.do("POST", "blobs/uploads/", append(b, "oh no"...), query("digest", string(d))), 400, "DIGEST_INVALID")
		}},
		{"bad digest post+put", 3067, func(r *registry, b []byte, d digest.Digest) {
			r.fails(r.do("PUT", begin(r), append(b, "oh no"...), query("digest", string(d))), 400, "DIGEST_INVALID")
		}},
		{"bad digest chunked", 3067, func(r *registry, b []byte, d digest.Digest) {
			chunks(r, append(b, "oh no"...), d, false, false, true)
			r.expect(r.do("HEAD", "blobs/"+string(d), nil), 404)
		}},
		{"bad digest chunked and put chunk", 3067, func(r *registry, b []byte, d digest.Digest) {
			chunks(r, append(b, "oh no"...), d, false, true, true)
		}},
		{"range requests", 2048, func(r *registry, b []byte, d digest.Digest) {
			r.pushBlobAs(b, d)
			for _, c := range []struct {
				ask          string
				status       int
				contentRange string
				from, to     int
			}{
				{"bytes=500-1499", 206, "bytes 500-1499/2048", 500, 1500},
				{"bytes=500-", 206, "bytes 500-2047/2048", 500, 2048},
				{"bytes=-500", 206, "bytes 1548-2047/2048", 1548, 2048},
				{"bytes=2000-5000", 206, "bytes 2000-2047/2048", 2000, 2048},
				{"bytes=500-0", 416, "bytes */2048", 0, 0},
				{"bytes=5000-10000", 416, "bytes */2048", 0, 0},
			} {
				a := r.expect(r.do("GET", "blobs/"+string(d), nil, header("Range", c.ask)), c.status)
				r.header(a, "Content-Range", c.contentRange)
				if c.status == 206 && !bytes.Equal(a.body, b[c.from:c.to]) {
					r.t.Errorf("%s has other bytes", c.ask)
				}
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b, d := blobOf(test.name, test.size)
			test.run(all.at(t, name), b, d)
		})
	}
}

// conformData pushes each kind of manifest, lists, pulls and deletes it.
func conformData(t *testing.T, all *registry) {
	r := all.at(t, "conformance/data")
	cycle := func(t *testing.T, i image, mediaType, tag string) {
		t.Helper()
		r := r.at(t, r.name)
		r.pushBlobs(i)
		r.pushManifest(i.manifest, mediaType, "", i.digest)
		ref := string(i.digest)
		if tag != "" {
			r.pushManifest(i.manifest, mediaType, tag, i.digest)
			if !slices.Contains(r.tags(), tag) {
				t.Errorf("%s is not listed", tag)
			}
			ref = tag
		}
		head := r.expect(r.do("HEAD", "manifests/"+ref, nil, header("Accept", mediaIndex), header("Accept", mediaImage)), 200)
		r.header(head, "Docker-Content-Digest", string(i.digest))
		r.header(head, "Content-Length", strconv.Itoa(len(i.manifest)))
		got := r.expect(r.do("GET", "manifests/"+ref, nil, header("Accept", mediaIndex), header("Accept", mediaImage)), 200)
		if !bytes.Equal(got.body, i.manifest) {
			t.Error("the manifest has other bytes")
		}
		if tag != "" {
			r.expect(r.do("DELETE", "manifests/"+tag, nil), 202)
			r.expect(r.do("HEAD", "manifests/"+tag, nil), 404)
		}
	}
	remove := func(t *testing.T, images ...image) {
		t.Helper()
		r := r.at(t, r.name)
		for _, i := range images {
			r.expect(r.do("DELETE", "manifests/"+string(i.digest), nil), 202)
			r.expect(r.do("HEAD", "manifests/"+string(i.digest), nil), 404)
		}
		for _, i := range images {
			for d := range i.blobs {
				r.expect(r.do("DELETE", "blobs/"+string(d), nil), 202, 404)
				r.expect(r.do("HEAD", "blobs/"+string(d), nil), 404)
			}
		}
	}
	index := func(t *testing.T, algorithm godigest.Algorithm, extra obj, entries ...obj) image {
		if entries == nil {
			entries = []obj{}
		}
		doc := obj{"schemaVersion": 2, "mediaType": mediaIndex, "manifests": entries}
		maps.Copy(doc, extra)
		b := encode(t, doc)
		return image{manifest: b, digest: algorithm.FromBytes(b)}
	}
	sub := func(i image, mediaType string) obj { return describe(mediaType, i.digest, len(i.manifest)) }
	t.Run("Image", func(t *testing.T) {
		i := makeImage(t, "image", 3, godigest.SHA256, nil)
		cycle(t, i, mediaImage, "image")
		remove(t, i)
	})
	t.Run("Image with Large Manifest", func(t *testing.T) {
		annotations := obj{}
		for n := range 390 {
			annotations[fmt.Sprintf("large-annotation-%d", n)] = strings.Repeat("A", 10000)
		}
		i := makeImage(t, "large", 1, godigest.SHA256, obj{"annotations": annotations})
		cycle(t, i, mediaImage, "large-manifest")
		remove(t, i)
	})
	t.Run("Index, Nested Index, Empty Index", func(t *testing.T) {
		one, two := makeImage(t, "one", 1, godigest.SHA256, nil), makeImage(t, "two", 1, godigest.SHA256, nil)
		cycle(t, one, mediaImage, "")
		cycle(t, two, mediaImage, "")
		inner := index(t, godigest.SHA256, nil, sub(one, mediaImage), sub(two, mediaImage))
		cycle(t, inner, mediaIndex, "index")
		outer := index(t, godigest.SHA256, nil, sub(inner, mediaIndex), sub(two, mediaImage))
		cycle(t, outer, mediaIndex, "index-of-index")
		empty := index(t, godigest.SHA256, nil)
		cycle(t, empty, mediaIndex, "empty")
		remove(t, empty, outer, inner, two, one)
	})
	t.Run("Artifact without Layers", func(t *testing.T) {
		r := r.at(t, r.name)
		r.pushBlob([]byte("{}"))
		empty := describe(mediaEmpty, digest.FromBytes([]byte("{}")), 2)
		b := encode(t, obj{"schemaVersion": 2, "mediaType": mediaImage, "artifactType": "application/vnd.example.config", "config": empty, "layers": []obj{empty}})
		i := image{manifest: b, digest: digest.FromBytes(b)}
		cycle(t, i, mediaImage, "artifact")
		remove(t, i)
	})
	t.Run("Data Field", func(t *testing.T) {
		r := r.at(t, r.name)
		r.pushBlob([]byte("{}"))
		empty := describe(mediaEmpty, digest.FromBytes([]byte("{}")), 2)
		empty["data"] = []byte("{}")
		b := encode(t, obj{"schemaVersion": 2, "mediaType": mediaImage, "artifactType": "application/vnd.example", "config": empty, "layers": []obj{empty}})
		i := image{manifest: b, digest: digest.FromBytes(b)}
		cycle(t, i, mediaImage, "data-field")
		remove(t, i)
	})
	t.Run("Non-distributable Layers", func(t *testing.T) {
		base := makeImage(t, "nd", 1, godigest.SHA256, nil)
		var layer obj
		for d, b := range base.blobs {
			if bytes.HasPrefix(b, []byte("nd layer")) {
				layer = describe(mediaLayer, d, len(b))
			}
		}
		foreign := describe(mediaForeign, digest.FromBytes([]byte("elsewhere")), 123456)
		foreign["urls"] = []string{"https://store.example.com/blobs/x"}
		i := makeImage(t, "nd", 1, godigest.SHA256, obj{"layers": []obj{foreign, layer}})
		cycle(t, i, mediaImage, "non-distributable")
		remove(t, i)
	})
	t.Run("Docker Image and List", func(t *testing.T) {
		const dockerImage, dockerList = "application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.distribution.manifest.list.v2+json"
		i := makeImage(t, "docker", 2, godigest.SHA256, obj{"mediaType": dockerImage})
		cycle(t, i, dockerImage, "docker")
		x := index(t, godigest.SHA256, obj{"mediaType": dockerList}, sub(i, dockerImage))
		cycle(t, x, dockerList, "docker-list")
		remove(t, x, i)
	})
	t.Run("Artifact Manifest", func(t *testing.T) {
		const artifact = "application/vnd.oci.artifact.manifest.v1+json"
		r := r.at(t, r.name)
		subject := makeImage(t, "artifact subject", 0, godigest.SHA256, nil)
		cycle(t, subject, mediaImage, "")
		blob := []byte("an sbom")
		b := encode(t, obj{"mediaType": artifact, "artifactType": "application/vnd.sbom", "blobs": []obj{describe("text/plain", r.pushBlob(blob), len(blob))}, "subject": sub(subject, mediaImage)})
		i := image{manifest: b, digest: digest.FromBytes(b)}
		cycle(t, i, artifact, "")
		if list, _ := r.referrers(subject.digest); len(list) != 1 || list[0].ArtifactType != "application/vnd.sbom" || list[0].MediaType != artifact {
			t.Errorf("referrers are %+v", list)
		}
		remove(t, i, subject)
	})
	t.Run("Custom Fields", func(t *testing.T) {
		i := makeImage(t, "custom", 1, godigest.SHA256, obj{"org.example.extra": obj{"a": []int{1, 2}}})
		cycle(t, i, mediaImage, "custom-fields")
		remove(t, i)
	})
	t.Run("Index with Subject", func(t *testing.T) {
		i := makeImage(t, "index subject", 1, godigest.SHA256, nil)
		cycle(t, i, mediaImage, "")
		x := index(t, godigest.SHA256, obj{"subject": sub(i, mediaImage), "artifactType": "application/vnd.example"}, sub(i, mediaImage))
		cycle(t, x, mediaIndex, "tagged-artifact")
		if list, _ := r.at(t, r.name).referrers(i.digest); !has(list, x.digest) {
			t.Errorf("referrers are %v", list)
		}
		remove(t, x, i)
	})
	t.Run("Digest Algorithm sha512", func(t *testing.T) {
		i := makeImage(t, "sha512", 2, godigest.SHA512, nil)
		cycle(t, i, mediaImage, "")
		x := index(t, godigest.SHA512, nil, sub(i, mediaImage))
		cycle(t, x, mediaIndex, "")
		remove(t, x, i)
	})
	for _, algorithm := range []godigest.Algorithm{godigest.SHA256, godigest.SHA512} {
		t.Run("Tag Param "+algorithm.String(), func(t *testing.T) {
			r := r.at(t, r.name)
			i := makeImage(t, "tag param "+algorithm.String(), 1, algorithm, nil)
			r.pushBlobs(i)
			tags := []string{"p-1", "p-2", "p-3"}
			opts := []option{header("Content-Type", mediaImage)}
			for _, tag := range tags {
				opts = append(opts, query("tag", tag))
			}
			a := r.expect(r.do("PUT", "manifests/"+string(i.digest), i.manifest, opts...), 201)
			if got := a.Header.Values("OCI-Tag"); !slices.Equal(got, tags) {
				t.Errorf("OCI-Tag is %v", got)
			}
			for _, tag := range tags {
				r.header(r.expect(r.do("HEAD", "manifests/"+tag, nil), 200), "Docker-Content-Digest", string(i.digest))
			}
			remove(t, i)
		})
	}
	t.Run("Bad Digest Image", func(t *testing.T) {
		r := r.at(t, r.name)
		i := makeImage(t, "bad digest", 1, godigest.SHA256, nil)
		r.pushBlobs(i)
		r.fails(r.do("PUT", "manifests/"+string(i.digest), append(i.manifest, "  "...), header("Content-Type", mediaImage)), 400, "DIGEST_INVALID")
	})
	t.Run("Invalid Manifest Digest", func(t *testing.T) {
		r := r.at(t, r.name)
		r.expect(r.do("GET", "manifests/sha256:baddigeststring", nil), 400, 404)
		r.expect(r.do("PUT", "manifests/sha256:baddigeststring", []byte("{}"), header("Content-Type", mediaImage)), 400)
	})
}
