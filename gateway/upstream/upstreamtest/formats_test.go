package upstreamtest_test

import (
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/protocols/cargo"
	"github.com/shoal-registry/shoal/gateway/protocols/generic"
	"github.com/shoal-registry/shoal/gateway/protocols/helm"
	"github.com/shoal-registry/shoal/gateway/protocols/npm"
	"github.com/shoal-registry/shoal/gateway/protocols/nuget"
	"github.com/shoal-registry/shoal/gateway/protocols/oci"
	"github.com/shoal-registry/shoal/gateway/protocols/pypi"
	"github.com/shoal-registry/shoal/gateway/rendered"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/gateway/upstream/upstreamtest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// format is a format whose documents name files on other hosts.
type format struct {
	new func(*catalog.Catalog, *rendered.Cache, *upstream.Engine) protocol.Protocol
	// publish puts documents at own that name files at far, version 1.0.0 of a package.
	publish func(own, far *upstreamtest.Registry, content []byte)
	pkg     string
	// ask are paths of ours for all that is at far.
	ask []string
}

var formats = map[string]format{
	npm.Format: {
		new: func(c *catalog.Catalog, pages *rendered.Cache, e *upstream.Engine) protocol.Protocol {
			return npm.New(c, pages, e)
		},
		publish: func(own, far *upstreamtest.Registry, content []byte) {
			sum := sha512.Sum512(content)
			own.Put("demo", fmt.Appendf(nil, `{"name":"demo","dist-tags":{"latest":"1.0.0"},"versions":{"1.0.0":{"name":"demo","version":"1.0.0","dist":{"tarball":"%s/demo.tgz","integrity":"sha512-%s"}}}}`,
				far.URL, base64.StdEncoding.EncodeToString(sum[:])), "Content-Type: application/json")
			far.Put("demo.tgz", content)
		},
		pkg: "demo", ask: []string{"/npm/acme/up/demo/-/demo-1.0.0.tgz"},
	},
	pypi.Format: {
		new: func(c *catalog.Catalog, pages *rendered.Cache, e *upstream.Engine) protocol.Protocol {
			return pypi.New(c, pages, e)
		},
		publish: func(own, far *upstreamtest.Registry, content []byte) {
			sum := digest.FromBytes(content).Encoded()
			own.Put("simple/demo/", fmt.Appendf(nil, `{"meta":{"api-version":"1.0"},"name":"demo","files":[{"filename":"demo-1.0.0-py3-none-any.whl","url":"%s/a/demo-1.0.0-py3-none-any.whl","hashes":{"sha256":"%s"},"core-metadata":{"sha256":"%s"}}]}`,
				far.URL, sum, sum), "Content-Type: application/vnd.pypi.simple.v1+json")
			far.Put("a/demo-1.0.0-py3-none-any.whl", content)
			far.Put("a/demo-1.0.0-py3-none-any.whl.metadata", content)
		},
		pkg: "demo", ask: []string{"/pypi/acme/up/files/demo/demo-1.0.0-py3-none-any.whl", "/pypi/acme/up/files/demo/demo-1.0.0-py3-none-any.whl.metadata"},
	},
	cargo.Format: {
		new: func(c *catalog.Catalog, pages *rendered.Cache, e *upstream.Engine) protocol.Protocol {
			return cargo.New(c, pages, e)
		},
		publish: func(own, far *upstreamtest.Registry, content []byte) {
			own.Put("config.json", fmt.Appendf(nil, `{"dl":"%s/crates/{crate}-{version}.crate"}`, far.URL))
			own.Put("de/mo/demo_up", fmt.Appendf(nil, `{"name":"Demo_Up","vers":"1.0.0","deps":[],"cksum":"%s","features":{},"yanked":false}`+"\n", digest.FromBytes(content).Encoded()))
			far.Put("crates/Demo_Up-1.0.0.crate", content)
		},
		pkg: "demo-up", ask: []string{"/cargo/acme/up/api/v1/crates/Demo_Up/1.0.0/download"},
	},
	helm.Format: {
		new: func(c *catalog.Catalog, pages *rendered.Cache, e *upstream.Engine) protocol.Protocol {
			return helm.New(c, pages, e)
		},
		publish: func(own, far *upstreamtest.Registry, content []byte) {
			own.Put("index.yaml", fmt.Appendf(nil, "apiVersion: v1\nentries:\n  demo:\n  - apiVersion: v2\n    name: demo\n    version: 1.0.0\n    digest: %s\n    created: \"2020-01-01T00:00:00Z\"\n    urls:\n    - %s/demo.tgz\n",
				digest.FromBytes(content).Encoded(), far.URL), "Content-Type: text/yaml")
			far.Put("demo.tgz", content)
			far.Put("demo.tgz.prov", content)
		},
		pkg: "demo", ask: []string{"/helm/acme/up/charts/demo-1.0.0.tgz", "/helm/acme/up/charts/demo-1.0.0.tgz.prov"},
	},
	nuget.Format: {
		new: func(c *catalog.Catalog, pages *rendered.Cache, e *upstream.Engine) protocol.Protocol {
			return nuget.New(c, pages, e)
		},
		publish: func(own, far *upstreamtest.Registry, content []byte) {
			own.Put("v3/index.json", fmt.Appendf(nil, `{"version":"3.0.0","resources":[{"@id":"%[1]s/flat/","@type":"PackageBaseAddress/3.0.0"},{"@id":"%[1]s/reg/","@type":"RegistrationsBaseUrl/3.6.0"},{"@id":"%[1]s/old/","@type":"RegistrationsBaseUrl"}]}`, far.URL))
			sum := sha512.Sum512(content)
			entry := fmt.Appendf(nil, `{"@id":"%s/entry.json","id":"Demo","version":"1.0.0","packageHash":"%s","packageHashAlgorithm":"SHA512"}`, far.URL, base64.StdEncoding.EncodeToString(sum[:]))
			far.Put("flat/demo/index.json", []byte(`{"versions":["1.0.0"]}`))
			far.Put("flat/demo/1.0.0/demo.1.0.0.nupkg", content)
			far.Put("flat/demo/1.0.0/demo.nuspec", content)
			far.Put("entry.json", entry)
			far.Put("page.json", fmt.Appendf(nil, `{"lower":"1.0.0","upper":"1.0.0","count":1,"items":[{"catalogEntry":{"@id":"%s/entry.json","id":"Demo","version":"1.0.0"}}]}`, far.URL))
			far.Put("reg/demo/index.json", fmt.Appendf(nil, `{"count":1,"items":[{"@id":"%s/page.json","lower":"1.0.0","upper":"1.0.0","count":1}]}`, far.URL))
			far.Put("old/demo/index.json", []byte(`{"count":0,"items":[]}`))
		},
		pkg: "demo", ask: []string{"/nuget/acme/up/v3/flat/demo/1.0.0/demo.1.0.0.nupkg", "/nuget/acme/up/v3/flat/demo/1.0.0/demo.nuspec"},
	},
}

// TestAgentsGetWhatDocumentsName: in each format an agent has its server get the files that
// the upstream's documents name on other hosts, and nothing else that is there, whatever it
// says of it.
func TestAgentsGetWhatDocumentsName(t *testing.T) {
	for name, f := range formats {
		t.Run(name, func(t *testing.T) {
			s := upstreamtest.NewAgent(t, catalogtest.Options{Content: catalogtest.NewMemory()}, func(s *catalogtest.Stack, e *upstream.Engine) []protocol.Protocol {
				pages, err := rendered.New(rendered.Config{Dir: t.TempDir()})
				if err != nil {
					t.Fatal(err)
				}
				return []protocol.Protocol{f.new(s.Catalog, pages, e)}
			})
			own, far := upstreamtest.NewRegistry(t), upstreamtest.NewRegistry(t)
			repo := s.Proxy(t, "acme/up", name, own.URL)
			content := []byte("what was published")
			f.publish(own, far, content)
			for _, w := range []upstream.Want{
				{Path: far.URL + "/malware", Kind: upstream.File, Package: f.pkg, Version: "1.0.0"},
				{Path: far.URL + "/malware", Kind: upstream.File},
				{Path: far.URL + "/malware", Package: "other", Version: "1.0.0"},
				{Path: far.URL + "/malware", Package: "../" + f.pkg, Version: "../1.0.0"},
				{Path: far.URL + "/malware?" + f.pkg + "/1.0.0", Package: f.pkg, Version: "1.0.0"},
			} {
				far.Put("malware", []byte("malware"))
				far.Put("malware?"+f.pkg+"/1.0.0", []byte("malware"))
				err := s.Lie(t, &repo, w)
				if err == nil || errors.Is(err, upstream.ErrUnreachable) {
					t.Errorf("%s for %q %q: %v", w.Path, w.Package, w.Version, err)
				}
				if _, _, err := s.Catalog.Fetched(t.Context(), upstreamtest.By(), repo.Ref, w.Path, ""); !errors.Is(err, meta.ErrNotFound) {
					t.Errorf("%s is kept: %v", w.Path, err)
				}
			}
			if n := far.Asked("malware") + far.Asked("malware?"+f.pkg+"/1.0.0"); n != 0 {
				t.Errorf("what nobody named was asked for %d times", n)
			}
			for _, path := range f.ask {
				resp, err := s.Client.Get(s.URL + path)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode != http.StatusOK || string(body) != string(content) {
					t.Errorf("%s: %d %q, %v", path, resp.StatusCode, body, err)
				}
			}
			for path := range far.All() {
				// Named, and of another version: not of what the agent says.
				w := upstream.Want{Path: far.URL + "/" + path, Accept: "other", Package: f.pkg + "x", Version: "2.0.0"}
				if err := s.Lie(t, &repo, w); err == nil || errors.Is(err, upstream.ErrUnreachable) {
					t.Errorf("%s as of %s: %v", path, w.Package, err)
				}
			}
		})
	}
}

// TestListingsArePassing: pages of lists that readers make up are not kept as addresses of
// the upstream are.
func TestListingsArePassing(t *testing.T) {
	s := upstreamtest.New(t, catalogtest.Options{Content: catalogtest.NewMemory()}, func(s *catalogtest.Stack, e *upstream.Engine) []protocol.Protocol {
		return []protocol.Protocol{generic.New(s.Catalog, e), oci.New(s.Catalog, e)}
	})
	registry := upstreamtest.NewRegistry(t)
	registry.Handle(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"name":"image","tags":["a"]}`) }))
	files, images := s.Proxy(t, "acme/files", generic.Format, registry.URL), s.Proxy(t, "acme/images", oci.Format, registry.URL)
	for i := range 3 {
		for _, path := range []string{fmt.Sprintf("/generic/acme/files/dir%d/?last=%d", i, i), fmt.Sprintf("/v2/acme/images/image/tags/list?n=%d&last=x%d", i+1, i)} {
			resp, err := s.Client.Get(s.URL + path)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("%s: %d", path, resp.StatusCode)
			}
		}
	}
	for _, repo := range []meta.Repository{files, images} {
		q := state.Posed[[]meta.Fetched]{Question: state.ListFetched{Repo: repo.Ref, Page: state.Page{Limit: 100}}}
		if _, err := s.Metadata.Answer(t.Context(), meta.Local, &q); err != nil || len(q.Result) == 0 {
			t.Fatal(q.Result, err)
		}
		for _, f := range q.Result {
			if !strings.HasPrefix(f.Path, "?passing=") {
				t.Errorf("%s keeps %s", repo.Ref, f.Path)
			}
		}
	}
}
