package local_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/node/config"
	"github.com/shoal-registry/shoal/node/local"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// oneRegion puts all nodes into region r1.
func oneRegion(c *config.Config) { c.Region = "r1" }

// operator is a client of the admin API at node i of the cluster.
func operator(t *testing.T, c *local.Cluster, i int) *client.Client {
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &client.Client{Base: "http://" + c.Nodes()[i].Gateway(), Token: c.Description().AdminToken, HTTP: &http.Client{Transport: transport}}
}

// until asks for a wave until it is as it should be.
func until(t *testing.T, c *client.Client, id string, done func(client.WaveStatus) bool) client.WaveStatus {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		s, err := c.Wave(t.Context(), id)
		if err == nil && done(s) {
			return s
		}
		if time.Now().After(deadline) {
			hosts, listed := collect(c.WaveHosts(t.Context(), id, ""))
			t.Fatalf("the wave does not get there: %+v, %v\nits hosts: %+v, %v\n%s", s, err, hosts, listed, busy())
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// busy shows what the hosts of waves and their fetches wait for.
func busy() string {
	var all, some strings.Builder
	_ = pprof.Lookup("goroutine").WriteTo(&all, 2)
	for stack := range strings.SplitSeq(all.String(), "\n\n") {
		if strings.Contains(stack, "transfer/wave.") || strings.Contains(stack, "shoal/transfer.") || strings.Contains(stack, "raftmeta/remote.") {
			some.WriteString(stack + "\n\n")
		}
	}
	return some.String()
}

func over(s client.WaveStatus) bool { return s.Over() }

// pushIndex puts an index of an image of each architecture, with a layer of so many
// random bytes; it returns what a client of amd64 reads, by path below /v2/, and the
// layers by architecture.
func pushIndex(t *testing.T, gateway, name, tag string, bytesEach int) (pulled map[string][]byte, layers map[string]digest.Digest) {
	t.Helper()
	base := "http://" + gateway + "/v2/" + name
	blob := func(content []byte) digest.Digest {
		d := digest.FromBytes(content)
		res, err := http.Post(base+"/blobs/uploads/", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		target := "http://" + gateway + res.Header.Get("Location") + "?digest=" + string(d)
		if status, answer := request(t, http.MethodPut, target, content); status != http.StatusCreated {
			t.Fatalf("PUT %s: %d %s", target, status, answer)
		}
		return d
	}
	manifest := func(ref, mediaType string, doc any) []byte {
		body, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		if ref == "" {
			ref = string(digest.FromBytes(body))
		}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, base+"/manifests/"+ref, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", mediaType)
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != http.StatusCreated {
			t.Fatalf("PUT %s: %s %s", ref, res.Status, answer)
		}
		return body
	}
	type obj = map[string]any
	const image, index = "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json"
	pulled, layers = map[string][]byte{}, map[string]digest.Digest{}
	var entries []obj
	for _, arch := range []string{"amd64", "arm64"} {
		layer := make([]byte, bytesEach)
		rand.Read(layer)
		config := []byte(`{"architecture":"` + arch + `","os":"linux"}`)
		layers[arch] = blob(layer)
		body := manifest("", image, obj{"schemaVersion": 2, "mediaType": image,
			"config": obj{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": blob(config), "size": len(config)},
			"layers": []obj{{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layers[arch], "size": len(layer)}},
		})
		d := digest.FromBytes(body)
		entries = append(entries, obj{"mediaType": image, "digest": d, "size": len(body), "platform": obj{"os": "linux", "architecture": arch}})
		if arch == "amd64" {
			pulled[name+"/manifests/"+string(d)] = body
			pulled[name+"/blobs/"+string(digest.FromBytes(config))] = config
			pulled[name+"/blobs/"+string(layers[arch])] = layer
		}
	}
	pulled[name+"/manifests/"+tag] = manifest(tag, index, obj{"schemaVersion": 2, "mediaType": index, "manifests": entries})
	return pulled, layers
}

// stored adds up the blobs in an agent's cache.
func stored(t *testing.T, dir string) (bytes int64) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(dir, "blobs", "blobs"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, ".map") || strings.HasSuffix(path, ".have") {
			return err
		}
		info, err := d.Info()
		if err == nil {
			bytes += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}

// received reads how many bytes a node took from peers.
func received(t *testing.T, ops string) (sum float64) {
	t.Helper()
	_, text := request(t, http.MethodGet, "http://"+ops+"/metrics", nil)
	for line := range strings.Lines(string(text)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "} ")
		if !ok || !strings.HasPrefix(name, "shoal_swarm_bytes_total{") || !strings.Contains(name, `direction="received"`) {
			continue
		}
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}

// A wave goes on when the leading server is stopped while it runs; afterwards, with no
// server left, every host pulls the image from its own disk, and none has taken more
// than its platform needs.
func TestWaveThenNoServer(t *testing.T) {
	const agents, layer = 6, 6 << 20
	dir := t.TempDir()
	cluster, _ := start(t, local.Options{Dir: dir, Regions: 3, Agents: agents, Configure: oneRegion})
	first := operator(t, cluster, 0)
	pulled, _ := pushIndex(t, cluster.Nodes()[0].Gateway(), "acme/app/api", "1", layer)

	// All servers vote and there are two copies first: any server may be stopped then.
	deadline := time.Now().Add(patience)
	for done := false; !done; time.Sleep(50 * time.Millisecond) {
		status, err := first.Status(t.Context())
		done = err == nil && len(status.Regions) == 1 && status.Regions[0].Voters == 3
		for path := range pulled {
			if version, ok := strings.CutPrefix(path, "acme/app/api/manifests/sha256:"); ok {
				r, err := first.Replication(t.Context(), meta.RepoRef{Tenant: "acme", Name: "app"}, "api", "sha256:"+version)
				done = done && err == nil && len(r.Regions) > 0 && r.Regions[0].Pending == 0 && r.Regions[0].Verified > 0
			}
		}
		if time.Now().After(deadline) {
			t.Fatal("not all servers vote, or the image is not replicated")
		}
	}
	w, err := first.CreateWave(t.Context(), client.NewWave{
		Refs: []string{"acme/app/api:1"}, MaxParallel: 1, Platform: "linux/amd64", Targets: []meta.WaveTarget{{Region: "r1"}},
	})
	if err != nil || w.Expected != agents {
		t.Fatalf("planned %+v, %v", w, err)
	}
	until(t, first, w.ID, func(s client.WaveStatus) bool { return s.Hosts.Done > 0 })
	leader, other := -1, -1
	await(t, "a leader", func() bool { // an election may be under way
		status, err := first.Status(t.Context())
		if err != nil {
			return false
		}
		leader = -1
		for i, n := range cluster.Nodes()[:3] {
			if n.ID() == status.Leader {
				leader = i
			} else {
				other = i
			}
		}
		return leader >= 0
	})
	if err := cluster.Stop(leader); err != nil {
		t.Error(err)
	}
	stopped := time.Now()
	s := until(t, operator(t, cluster, other), w.ID, over)
	if s.Wave.State != meta.WaveDone || s.Hosts.Done != agents {
		t.Fatalf("it is %+v", s)
	}
	t.Logf("the leader stopped, the wave of %d hosts, one at a time, was done %v later", agents, time.Since(stopped).Round(time.Millisecond))

	for i := range 3 {
		if i != leader {
			if err := cluster.Stop(i); err != nil {
				t.Error(err)
			}
		}
	}
	for i, agent := range cluster.Description().Agents {
		before := received(t, agent.Ops)
		if before < layer {
			t.Errorf("agent %d has taken %.0f bytes", i+1, before)
		}
		for path, content := range pulled {
			if status, answer := request(t, http.MethodGet, "http://"+agent.Gateway+"/v2/"+path, nil); status != http.StatusOK || !bytes.Equal(answer, content) {
				t.Errorf("agent %d, %s: %d, %d bytes of %d", i+1, path, status, len(answer), len(content))
			}
		}
		if after := received(t, agent.Ops); after != before {
			t.Errorf("agent %d took %.0f bytes for the pull", i+1, after-before)
		}
		if bytes := stored(t, filepath.Join(dir, fmt.Sprint("agent-", i+1))); bytes < layer || bytes > layer*3/2 {
			t.Errorf("agent %d keeps %d bytes of an image with a layer of %d", i+1, bytes, layer)
		}
	}
}

// A wave that is cancelled stops; hosts that had not begun never do.
func TestWaveIsCancelled(t *testing.T) {
	const agents = 4
	cluster, _ := start(t, local.Options{Dir: t.TempDir(), Regions: 1, Agents: agents})
	first := operator(t, cluster, 0)
	content := make([]byte, 4<<20)
	rand.Read(content)
	if status, answer := request(t, http.MethodPut, "http://"+cluster.Nodes()[0].Gateway()+"/generic/acme/files/a.bin", content); status != http.StatusCreated {
		t.Fatalf("PUT: %d %s", status, answer)
	}
	w, err := first.CreateWave(t.Context(), client.NewWave{Refs: []string{"acme/files/a.bin"}, MaxParallel: 1})
	if err != nil {
		t.Fatal(err)
	}
	until(t, first, w.ID, func(s client.WaveStatus) bool { return s.Hosts.Fetching > 0 || s.Hosts.Done > 0 })
	if _, err := first.CancelWave(t.Context(), w.ID, "test"); err != nil {
		t.Fatal(err)
	}
	s, err := first.Wave(t.Context(), w.ID)
	if err != nil || s.Wave.State != meta.WaveCancelled {
		t.Fatalf("it is %+v, %v", s, err)
	}
	// A second wave is a fence: when it is done everywhere, every host has heard of the
	// cancel.
	after, err := first.CreateWave(t.Context(), client.NewWave{Refs: []string{"acme/files/a.bin"}, Name: "fence"})
	if err != nil {
		t.Fatal(err)
	}
	until(t, first, after.ID, func(s client.WaveStatus) bool { return s.Hosts.Done == agents })
	if now, err := first.Wave(t.Context(), w.ID); err != nil || now.Hosts.Done > s.Hosts.Done+1 || now.Wave.State != meta.WaveCancelled {
		t.Errorf("cancelled when %d were done, later %+v, %v", s.Hosts.Done, now.Hosts, err)
	}
	if waves, err := collect(first.Waves(context.Background(), true)); err != nil || len(waves) != 1 || waves[0].ID != after.ID {
		t.Errorf("open are %+v, %v", waves, err)
	}
}

func collect[T any](seq func(func(T, error) bool)) (all []T, _ error) {
	for item, err := range seq {
		if err != nil {
			return nil, err
		}
		all = append(all, item)
	}
	return all, nil
}
