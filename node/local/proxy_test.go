package local_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/node/config"
	"github.com/shoal-registry/shoal/node/local"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// 500 clients of three agents want a large file that a proxy does not have yet: the
// upstream is asked once, all have its beginning before it has sent its end, and the
// agents take it from one another as well.
func TestManyFirstPullsOfAProxyAreOneRequest(t *testing.T) {
	const half = 5 << 20
	pulls := 500
	if testing.Short() {
		pulls = 100
	}
	content := make([]byte, 2*half)
	rand.Read(content)
	want := sha256.Sum256(content)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var asked, begun atomic.Int64
	all := make(chan struct{}) // of the clients have bytes
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		_, _ = w.Write(content[:half])
		_ = http.NewResponseController(w).Flush()
		// Little by little: one on which nothing moves is given up, and asked again.
		sent, tick := half, time.NewTicker(time.Second)
		defer tick.Stop()
		for waits := true; waits; {
			select {
			case <-all:
				waits = false
			case <-ctx.Done():
				waits = false
			case <-tick.C:
				_, _ = w.Write(content[sent : sent+1])
				_ = http.NewResponseController(w).Flush()
				sent++
			}
		}
		_, _ = w.Write(content[sent:])
	}))
	defer upstream.Close()
	cluster, _ := start(t, local.Options{Dir: t.TempDir(), Regions: 1, Agents: 3, Configure: func(cfg *config.Config) {
		cfg.OutgoingAllow = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	}})
	d := cluster.Description()
	c := &client.Client{Base: "http://" + d.Servers[0].Gateway, Token: d.AdminToken, HTTP: http.DefaultClient}
	if _, err := c.CreateRepository(t.Context(), client.NewRepository{
		Ref: meta.RepoRef{Tenant: "acme", Name: "cache"}, Format: "generic", Kind: meta.KindProxy, Home: "r1", CreateTenant: true,
		Upstream: &meta.Upstream{URL: upstream.URL},
	}); err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 10, MaxConnsPerHost: 200}
	defer transport.CloseIdleConnections()
	var group sync.WaitGroup
	for i := range pulls {
		group.Go(func() {
			r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.Agents[i%3].Gateway+"/generic/acme/cache/large.bin", nil)
			if err != nil {
				t.Error(err)
				return
			}
			res, err := transport.RoundTrip(r)
			if err != nil {
				t.Error(err)
				return
			}
			defer res.Body.Close()
			if res.StatusCode != http.StatusOK {
				said, _ := io.ReadAll(res.Body)
				t.Errorf("pull %d: %s %s", i, res.Status, said)
				return
			}
			h := sha256.New()
			if _, err := io.CopyN(h, res.Body, 1<<20); err != nil {
				t.Errorf("pull %d: %v", i, err)
				return
			}
			if begun.Add(1) == int64(pulls) {
				close(all)
			}
			if _, err := io.Copy(h, res.Body); err != nil || !bytes.Equal(h.Sum(nil), want[:]) {
				t.Errorf("pull %d: %v, or other bytes", i, err)
			}
		})
	}
	group.Wait()
	if n := asked.Load(); n != 1 {
		t.Errorf("the upstream was asked %d times", n)
	}
	out := view(t, d.Servers[0]).Totals.Out.Region
	t.Logf("%d clients of 3 agents: the upstream sent one copy, the server %.2f", pulls, float64(out)/float64(len(content)))
}

// 200 clients of three agents install the same packages that a proxy does not have yet:
// the upstream is asked once for each document and each file.
func TestManyColdInstallsAreOneRequestAFile(t *testing.T) {
	const installs, packages = 200, 5
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var mu sync.Mutex
	asked := map[string]int{}
	files := map[string][]byte{}
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked[r.URL.Path]++
		body, ok := files[r.URL.Path]
		mu.Unlock()
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(body)
	}))
	defer upstream.Close()
	for i := range packages {
		name, ball := fmt.Sprintf("dep%d", i), make([]byte, 300_000)
		rand.Read(ball)
		path := "/" + name + "/-/" + name + "-1.0.0.tgz"
		sum := sha512.Sum512(ball)
		files[path] = ball
		files["/"+name] = fmt.Appendf(nil, `{"name":%q,"dist-tags":{"latest":"1.0.0"},"versions":{"1.0.0":{"name":%q,"version":"1.0.0","dist":{"tarball":%q,"integrity":"sha512-%s"}}}}`,
			name, name, upstream.URL+path, base64.StdEncoding.EncodeToString(sum[:]))
	}
	cluster, _ := start(t, local.Options{Dir: t.TempDir(), Regions: 1, Agents: 3, Configure: func(cfg *config.Config) {
		cfg.OutgoingAllow = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	}})
	d := cluster.Description()
	c := &client.Client{Base: "http://" + d.Servers[0].Gateway, Token: d.AdminToken, HTTP: http.DefaultClient}
	if _, err := c.CreateRepository(t.Context(), client.NewRepository{
		Ref: meta.RepoRef{Tenant: "acme", Name: "npm"}, Format: "npm", Kind: meta.KindProxy, Home: "r1", CreateTenant: true,
		Upstream: &meta.Upstream{URL: upstream.URL},
	}); err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 50, MaxConnsPerHost: 100}
	defer transport.CloseIdleConnections()
	get := func(url string) ([]byte, error) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return nil, err
		}
		res, err := transport.RoundTrip(r)
		if err != nil {
			return nil, err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err == nil && res.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s %s", url, res.Status, body)
		}
		return body, err
	}
	var group sync.WaitGroup
	for i := range installs {
		group.Go(func() {
			base := "http://" + d.Agents[i%3].Gateway + "/npm/acme/npm/"
			for n := range packages {
				name := fmt.Sprintf("dep%d", (i+n)%packages)
				text, err := get(base + name)
				var doc struct {
					Versions map[string]struct{ Dist struct{ Tarball string } }
				}
				if err == nil {
					err = json.Unmarshal(text, &doc)
				}
				var ball []byte
				if err == nil {
					ball, err = get(doc.Versions["1.0.0"].Dist.Tarball)
				}
				if err == nil && !bytes.Equal(ball, files["/"+name+"/-/"+name+"-1.0.0.tgz"]) {
					err = fmt.Errorf("%s is another file", name)
				}
				if err != nil {
					t.Errorf("install %d: %v", i, err)
					return
				}
			}
		})
	}
	group.Wait()
	mu.Lock()
	defer mu.Unlock()
	for path := range files {
		if asked[path] != 1 {
			t.Errorf("%s was asked for %d times", path, asked[path])
		}
	}
	if len(asked) != len(files) {
		t.Errorf("the upstream was asked for %v", asked)
	}
}
