package oci_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	godigest "github.com/opencontainers/go-digest"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/protocols/oci"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Media types, written out: a test must not share a typing error with the code.
const (
	mediaImage   = "application/vnd.oci.image.manifest.v1+json"
	mediaIndex   = "application/vnd.oci.image.index.v1+json"
	mediaConfig  = "application/vnd.oci.image.config.v1+json"
	mediaLayer   = "application/vnd.oci.image.layer.v1.tar+gzip"
	mediaEmpty   = "application/vnd.oci.empty.v1+json"
	mediaForeign = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
)

// registry is a client of a running node that speaks as the suites do.
type registry struct {
	*catalogtest.Stack
	t    testing.TB
	name string // of the repository that the client talks about
	user string // admin token, "" for nobody
}

func start(t testing.TB, o catalogtest.Options) *registry {
	s := catalogtest.New(t, o, func(c *catalog.Catalog) []protocol.Protocol { return []protocol.Protocol{oci.New(c, nil)} })
	return &registry{Stack: s, t: t, name: "acme/app/api"}
}

// at is the registry for another repository, in a subtest.
func (r registry) at(t testing.TB, name string) *registry {
	r.t, r.name = t, name
	return &r
}

type answer struct {
	*http.Response
	body []byte
}

// option changes a request.
type option func(*http.Request)

func header(name, value string) option {
	return func(r *http.Request) { r.Header.Add(name, value) }
}

func query(name, value string) option {
	return func(r *http.Request) {
		q := r.URL.Query()
		q.Add(name, value)
		r.URL.RawQuery = q.Encode()
	}
}

// streamed sends the body without a length.
func streamed(r *http.Request) { r.ContentLength = -1 }

// do sends a request. target is a path below /v2/<name>/, or a Location.
func (r *registry) do(method, target string, body []byte, opts ...option) *answer {
	r.t.Helper()
	base, err := url.Parse(r.URL + "/v2/" + r.name + "/")
	if err != nil {
		r.t.Fatal(err)
	}
	u, err := base.Parse(target)
	if err != nil {
		r.t.Fatal(err)
	}
	var from io.Reader
	if body != nil {
		from = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(r.t.Context(), method, u.String(), from)
	if err != nil {
		r.t.Fatal(err)
	}
	if r.user != "" {
		req.SetBasicAuth("anybody", r.user)
	}
	for _, o := range opts {
		o(req)
	}
	resp, err := r.Client.Do(req)
	if err != nil {
		r.t.Fatalf("%s %s: %v", method, target, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatalf("%s %s: read the answer: %v", method, target, err)
	}
	return &answer{resp, b}
}

// expect fails the test unless the answer has one of the statuses.
func (r *registry) expect(a *answer, statuses ...int) *answer {
	r.t.Helper()
	if !slices.Contains(statuses, a.StatusCode) {
		r.t.Fatalf("%s %s answers %d %s, want %v", a.Request.Method, a.Request.URL, a.StatusCode, a.body, statuses)
	}
	return a
}

func (r *registry) header(a *answer, name, want string) {
	r.t.Helper()
	if got := a.Header.Get(name); got != want {
		r.t.Errorf("%s %s: %s is %q, want %q", a.Request.Method, a.Request.URL, name, got, want)
	}
}

// codes returns the codes of an error answer, checking its form.
func (r *registry) codes(a *answer) []string {
	r.t.Helper()
	var doc struct {
		Errors []struct{ Code, Message string }
	}
	if err := json.Unmarshal(a.body, &doc); err != nil || len(doc.Errors) == 0 {
		r.t.Fatalf("%s %s: %d with no error document: %s", a.Request.Method, a.Request.URL, a.StatusCode, a.body)
	}
	var codes []string
	for _, e := range doc.Errors {
		if e.Code == "" || e.Message == "" {
			r.t.Errorf("error without code or message: %s", a.body)
		}
		codes = append(codes, e.Code)
	}
	return codes
}

func (r *registry) fails(a *answer, status int, code string) {
	r.t.Helper()
	r.expect(a, status)
	if codes := r.codes(a); codes[0] != code {
		r.t.Errorf("%s %s: code %v, want %s: %s", a.Request.Method, a.Request.URL, codes, code, a.body)
	}
}

// pushBlob pushes by POST and PUT and returns the digest.
func (r *registry) pushBlob(b []byte) digest.Digest {
	r.t.Helper()
	d := digest.FromBytes(b)
	r.pushBlobAs(b, d)
	return d
}

func (r *registry) pushBlobAs(b []byte, d digest.Digest) {
	r.t.Helper()
	begun := r.expect(r.do("POST", "blobs/uploads/", nil), 202)
	r.expect(r.do("PUT", begun.Header.Get("Location"), b, query("digest", string(d)), header("Content-Type", "application/octet-stream")), 201)
}

type obj = map[string]any

func encode(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func describe(mediaType string, d digest.Digest, size int) obj {
	return obj{"mediaType": mediaType, "digest": d, "size": size}
}

// image is a manifest with what it needs, not yet pushed.
type image struct {
	manifest []byte
	digest   digest.Digest
	blobs    map[digest.Digest][]byte
}

func (i image) descriptor() obj { return describe(mediaImage, i.digest, len(i.manifest)) }

// makeImage makes an image of random content; extra goes over its fields.
func makeImage(t testing.TB, seed string, layers int, algorithm godigest.Algorithm, extra obj) image {
	t.Helper()
	i := image{blobs: map[digest.Digest][]byte{}}
	config := encode(t, obj{"architecture": "amd64", "os": "linux", "seed": seed})
	i.blobs[algorithm.FromBytes(config)] = config
	list := []obj{}
	for n := range layers {
		layer := bytes.Repeat([]byte(fmt.Sprintf("%s layer %d;", seed, n)), 50)
		d := algorithm.FromBytes(layer)
		i.blobs[d] = layer
		list = append(list, describe(mediaLayer, d, len(layer)))
	}
	doc := obj{
		"schemaVersion": 2, "mediaType": mediaImage,
		"config": describe(mediaConfig, algorithm.FromBytes(config), len(config)), "layers": list,
	}
	maps.Copy(doc, extra)
	i.manifest = encode(t, doc)
	i.digest = algorithm.FromBytes(i.manifest)
	return i
}

func (r *registry) pushBlobs(i image) {
	r.t.Helper()
	for d, b := range i.blobs {
		r.pushBlobAs(b, d)
	}
}

// push pushes an image by its digest, or under a tag.
func (r *registry) push(i image, tag string) *answer {
	r.t.Helper()
	r.pushBlobs(i)
	return r.pushManifest(i.manifest, mediaImage, tag, i.digest)
}

func (r *registry) pushManifest(b []byte, mediaType, tag string, d digest.Digest) *answer {
	r.t.Helper()
	ref := tag
	if ref == "" {
		ref = string(d)
	}
	a := r.expect(r.do("PUT", "manifests/"+ref, b, header("Content-Type", mediaType)), 201)
	if tag == "" {
		r.header(a, "Docker-Content-Digest", string(d))
	}
	got := r.expect(r.do("GET", a.Header.Get("Location"), nil, header("Accept", mediaType)), 200)
	if !bytes.Equal(got.body, b) {
		r.t.Errorf("the manifest's Location has other bytes")
	}
	r.header(got, "Content-Type", mediaType)
	return a
}

func (r *registry) tags(opts ...option) []string {
	r.t.Helper()
	a := r.expect(r.do("GET", "tags/list", nil, opts...), 200)
	var list struct {
		Name string
		Tags []string
	}
	if err := json.Unmarshal(a.body, &list); err != nil || list.Name != r.name || list.Tags == nil {
		r.t.Fatalf("tags list is %s: %v", a.body, err)
	}
	return list.Tags
}

type descriptor struct {
	MediaType, ArtifactType string
	Digest                  digest.Digest
	Size                    int64
	Annotations             map[string]string
}

func (r *registry) referrers(d digest.Digest, opts ...option) ([]descriptor, *answer) {
	r.t.Helper()
	a := r.expect(r.do("GET", "referrers/"+string(d), nil, opts...), 200)
	r.header(a, "Content-Type", mediaIndex)
	var list struct {
		SchemaVersion int
		MediaType     string
		Manifests     []descriptor
	}
	if err := json.Unmarshal(a.body, &list); err != nil || list.SchemaVersion != 2 || list.MediaType != mediaIndex || list.Manifests == nil {
		r.t.Fatalf("referrers are %s: %v", a.body, err)
	}
	return list.Manifests, a
}

func has(list []descriptor, d digest.Digest) bool {
	return slices.ContainsFunc(list, func(x descriptor) bool { return x.Digest == d })
}

func linkNext(a *answer) string {
	link := a.Header.Get("Link")
	target, _, ok := strings.Cut(strings.TrimPrefix(link, "<"), ">")
	if !ok || !strings.Contains(link, `rel="next"`) {
		return ""
	}
	return target
}

func decode(t testing.TB, b []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
}

func digestOf(s string) digest.Digest { return digest.FromBytes([]byte(s)) }

func blobsOf(bodies ...string) map[digest.Digest][]byte {
	blobs := map[digest.Digest][]byte{}
	for _, b := range bodies {
		blobs[digestOf(b)] = []byte(b)
	}
	return blobs
}
