package local_test

import (
	"bytes"
	"crypto/rand"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/shoal-registry/shoal/node/config"
	"github.com/shoal-registry/shoal/node/local"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// metric sums a counter of a node over the label sets that contain label.
func metric(t *testing.T, ops, name, label string) int64 {
	t.Helper()
	status, body := request(t, http.MethodGet, "http://"+ops+"/metrics", nil)
	if status != http.StatusOK {
		t.Fatalf("metrics of %s: %d", ops, status)
	}
	var sum float64
	for line := range strings.Lines(string(body)) {
		if !strings.HasPrefix(line, name+"{") && !strings.HasPrefix(line, name+" ") || !strings.Contains(line, label) {
			continue
		}
		fields := strings.Fields(line)
		value, err := strconv.ParseFloat(fields[len(fields)-1], 64)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		sum += value
	}
	return int64(sum)
}

// An agent's cache: of a new version only the difference is fetched; after a restart
// nothing is fetched that is here, and a blob that came by halves is completed.
func TestAgentCache(t *testing.T) {
	const size, prefix = 64 << 20, 48 << 20
	opts := local.Options{Dir: t.TempDir(), Regions: 1, Agents: 1}
	cluster, stop := start(t, opts)
	d := cluster.Description()
	server, agent := "http://"+d.Servers[0].Gateway, "http://"+d.Agents[0].Gateway
	ops := d.Agents[0].Ops
	put := func(path string, content []byte) {
		t.Helper()
		if status, answer := request(t, http.MethodPut, server+path, content); status != http.StatusCreated {
			t.Fatalf("PUT %s: %d %s", path, status, answer)
		}
	}
	get := func(path string, content []byte) {
		t.Helper()
		if status, answer := request(t, http.MethodGet, agent+path, nil); status != http.StatusOK || !bytes.Equal(answer, content) {
			t.Fatalf("GET %s: %d, %d bytes of %d", path, status, len(answer), len(content))
		}
	}
	received := func() int64 { return metric(t, ops, "shoal_swarm_bytes_total", `direction="received"`) }

	one, tail, third := make([]byte, size), make([]byte, size-prefix), make([]byte, 8<<20)
	rand.Read(one)
	rand.Read(tail)
	rand.Read(third)
	two := slices.Concat(one[:prefix], tail)
	put("/generic/acme/files/model-1.bin", one)
	put("/generic/acme/files/model-2.bin", two)
	put("/generic/acme/files/other.bin", third)

	get("/generic/acme/files/model-1.bin", one)
	before := received()
	if before < size || before > size*11/10 {
		t.Errorf("the first version took %d bytes", before)
	}
	get("/generic/acme/files/model-2.bin", two)
	got := received() - before
	reused := metric(t, ops, "shoal_store_reused_bytes_total", "")
	t.Logf("of the second version %.1f MiB were fetched and %.1f MiB reused", float64(got)/(1<<20), float64(reused)/(1<<20))
	if got < size-prefix || got > (size-prefix)*11/10 || reused != prefix {
		t.Errorf("the second version took %d bytes, want %d; %d were reused", got, size-prefix, reused)
	}
	// Part of a third one.
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, agent+"/generic/acme/files/other.bin", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Range", "bytes=0-1048575")
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	var part bytes.Buffer
	_, err = part.ReadFrom(res.Body)
	res.Body.Close()
	if err != nil || !bytes.Equal(part.Bytes(), third[:1<<20]) {
		t.Fatalf("a range: %d bytes, %v", part.Len(), err)
	}
	had := received() - before - got
	stop()

	start(t, opts)
	get("/generic/acme/files/model-1.bin", one)
	get("/generic/acme/files/model-2.bin", two)
	if got := received(); got != 0 {
		t.Errorf("%d bytes were fetched that were here before the restart", got)
	}
	get("/generic/acme/files/other.bin", third)
	if got := received(); got < 8<<20-had || got > 8<<20-had+1<<20 {
		t.Errorf("%d bytes were fetched of a blob of which %d had come", got, had)
	}
}

// A cache that is smaller than what is pulled through it serves all of it.
func TestSmallAgentCache(t *testing.T) {
	const limit = 20 << 20
	opts := local.Options{Dir: t.TempDir(), Regions: 1, Agents: 1, Configure: func(c *config.Config) {
		if c.Role == meta.RoleAgent {
			c.CacheBytes = limit
		}
	}}
	cluster, _ := start(t, opts)
	d := cluster.Description()
	content := make([]byte, 10<<20)
	rand.Read(content)
	for i := range 6 {
		content[0] = byte(i)
		path := "/generic/acme/files/" + strconv.Itoa(i)
		if status, answer := request(t, http.MethodPut, "http://"+d.Servers[0].Gateway+path, content); status != http.StatusCreated {
			t.Fatalf("PUT %s: %d %s", path, status, answer)
		}
		status, answer := request(t, http.MethodGet, "http://"+d.Agents[0].Gateway+path, nil)
		if status != http.StatusOK || !bytes.Equal(answer, content) {
			t.Errorf("GET %s: %d, %d bytes: %.200s", path, status, len(answer), answer)
		}
		if used := metric(t, d.Agents[0].Ops, "shoal_store_used_bytes", ""); used > limit {
			t.Errorf("%d bytes are used of %d", used, limit)
		}
	}
	// Larger than the cache: it passes through, for one reader or several.
	large := make([]byte, 50<<20)
	rand.Read(large)
	if status, answer := request(t, http.MethodPut, "http://"+d.Servers[0].Gateway+"/generic/acme/files/large", large); status != http.StatusCreated {
		t.Fatalf("PUT: %d %s", status, answer)
	}
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			status, answer := request(t, http.MethodGet, "http://"+d.Agents[0].Gateway+"/generic/acme/files/large", nil)
			if status != http.StatusOK || !bytes.Equal(answer, large) {
				t.Errorf("GET of a file larger than the cache: %d, %d bytes: %.200s", status, len(answer), answer)
			}
		})
	}
	readers.Wait()
	if used := metric(t, d.Agents[0].Ops, "shoal_store_used_bytes", ""); used > limit {
		t.Errorf("%d bytes are used of %d", used, limit)
	}
	t.Logf("%d MiB were received for two readers of %d MiB",
		(metric(t, d.Agents[0].Ops, "shoal_swarm_bytes_total", `direction="received"`)-60<<20)>>20, len(large)>>20)
}
