package oci_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	godigest "github.com/opencontainers/go-digest"

	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
)

// BenchmarkManifestGet backs the claim of 10,000 manifest requests a second a
// node: GET by tag over 200 connections, clients and node on the same cores.
func BenchmarkManifestGet(b *testing.B) {
	r := start(b, catalogtest.Options{})
	i := makeImage(b, "bench", 8, godigest.SHA256, nil)
	r.push(i, "latest")
	for _, c := range []struct{ name, ref string }{{"tag", "latest"}, {"digest", string(i.digest)}} {
		b.Run(c.name, func(b *testing.B) {
			url := r.URL + "/v2/" + r.name + "/manifests/" + c.ref
			b.SetParallelism(100) // times 2 cores
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					req, _ := http.NewRequest("GET", url, nil)
					req.Header.Set("Accept", mediaImage)
					resp, err := r.Client.Do(req)
					if err != nil {
						b.Error(err)
						return
					}
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
		})
	}
}

// BenchmarkManifestServe is the node's side alone: no sockets, no client.
func BenchmarkManifestServe(b *testing.B) {
	r := start(b, catalogtest.Options{})
	i := makeImage(b, "bench", 8, godigest.SHA256, nil)
	r.push(i, "latest")
	req, _ := http.NewRequest("GET", "/v2/"+r.name+"/manifests/latest", nil)
	req.RemoteAddr, req.Host = "127.0.0.1:1", "127.0.0.1:5000"
	req.Header.Set("Accept", mediaImage)
	b.ReportAllocs()
	for b.Loop() {
		w := discard{header: http.Header{}}
		r.Handler.ServeHTTP(&w, req)
		if w.status != 200 {
			b.Fatal(w.status)
		}
	}
}

type discard struct {
	header http.Header
	status int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) WriteHeader(status int)      { d.status = status }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }

// BenchmarkTinyPush backs «cost per push independent of the number of tags»: one
// layer, one config, one manifest under a new tag of one repository, by 8 clients.
func BenchmarkTinyPush(b *testing.B) {
	r := start(b, catalogtest.Options{})
	var n atomic.Int64
	b.SetParallelism(4)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			seed := fmt.Sprintf("tiny-%d", n.Add(1))
			r.push(makeImage(b, seed, 1, godigest.SHA256, nil), seed)
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "images/s")
}

// BenchmarkTags lists 5,000 tags, whole and in pages of 100.
func BenchmarkTags(b *testing.B) {
	r := start(b, catalogtest.Options{Content: catalogtest.NewMemory()})
	i := makeImage(b, "tags", 1, godigest.SHA256, nil)
	r.pushBlobs(i)
	for from := 0; from < 5000; from += 50 {
		var q []string
		for k := range 50 {
			q = append(q, fmt.Sprintf("tag=tag-%05d", from+k))
		}
		r.expect(r.do("PUT", "manifests/"+string(i.digest)+"?"+strings.Join(q, "&"), i.manifest, header("Content-Type", mediaImage)), 201)
	}
	b.Run("whole", func(b *testing.B) {
		for b.Loop() {
			r.expect(r.do("GET", "tags/list", nil), 200)
		}
	})
	b.Run("pages of 100", func(b *testing.B) {
		for b.Loop() {
			pages := 0
			for next := "tags/list?n=100"; next != ""; pages++ {
				next = linkNext(r.expect(r.do("GET", next, nil), 200))
			}
			if pages != 51 {
				b.Fatalf("%d pages", pages)
			}
		}
	})
}
