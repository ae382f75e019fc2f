package local_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/node"
	"github.com/shoal-registry/shoal/node/local"
)

// timed reads url and says when the first byte came and when the last.
func timed(t *testing.T, url string, headers map[string]string) (body []byte, first, last time.Duration) {
	t.Helper()
	client := &http.Client{Timeout: patience}
	defer client.CloseIdleConnections()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range headers {
		r.Header.Set(name, value)
	}
	began := time.Now()
	res, err := client.Do(r)
	if err != nil {
		t.Fatalf("GET %s: %v", url, err)
	}
	defer res.Body.Close()
	if res.StatusCode >= 300 {
		text, _ := io.ReadAll(res.Body)
		t.Fatalf("GET %s: %s %s", url, res.Status, text)
	}
	one := make([]byte, 1)
	if _, err := io.ReadFull(res.Body, one); err != nil {
		t.Fatalf("GET %s: %v", url, err)
	}
	first = time.Since(began)
	rest, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("GET %s: %v", url, err)
	}
	return append(one, rest...), first, time.Since(began)
}

func ready(t *testing.T, n *node.Node) {
	t.Helper()
	select {
	case <-n.Ready():
	case <-time.After(patience):
		t.Fatalf("node %s does not get ready", n.ID())
	}
}

// Registrar and leader are gone after the start: who was introduced finishes by its
// peers, also after a restart, when all that it has is on its disk. How long it took
// to find them is printed.
func TestTheSwarmGoesOnWithoutServers(t *testing.T) {
	cluster, _ := start(t, local.Options{Dir: t.TempDir(), Regions: 1, Agents: 4})
	where := gateways(cluster)
	content := make([]byte, 32<<20)
	rand.Read(content)
	const path = "/generic/acme/files/wave.bin"
	if status, answer := request(t, http.MethodPut, "http://"+where[0]+path, content); status != http.StatusCreated {
		t.Fatalf("PUT: %d %s", status, answer)
	}
	for _, agent := range where[1:3] {
		if body, _, _ := timed(t, "http://"+agent+path, nil); !bytes.Equal(body, content) {
			t.Fatal("the first agents read something else")
		}
	}
	for _, agent := range where[3:] { // these have a part of it
		if body, _, _ := timed(t, "http://"+agent+path, map[string]string{"Range": "bytes=0-99"}); !bytes.Equal(body, content[:100]) {
			t.Fatal("a part is something else")
		}
	}
	if err := cluster.Stop(4); err != nil {
		t.Fatal(err)
	}
	if err := cluster.Stop(0); err != nil {
		t.Fatal(err)
	}
	body, _, last := timed(t, "http://"+where[3]+path, nil)
	if !bytes.Equal(body, content) {
		t.Error("an agent that was running reads something else")
	}
	t.Logf("server gone, agent running: the rest of 32 MiB in %v", last)

	began := time.Now()
	if err := cluster.Start(t.Context(), 4); err != nil {
		t.Fatal(err)
	}
	ready(t, cluster.Nodes()[4])
	serving := time.Since(began)
	body, first, last := timed(t, fmt.Sprintf("http://%s%s", where[4], path), map[string]string{"Range": "bytes=8388608-"})
	if !bytes.Equal(body, content[8<<20:]) {
		t.Error("an agent that was restarted reads something else")
	}
	t.Logf("server gone, agent restarted: serves after %v, the first byte of a chunk that it lacks after %v, all after %v", serving, first, last)
}

// pushImage pushes layers and a manifest of them as an OCI client does, and returns
// the digests of the layers.
func pushImage(t *testing.T, gateway, name string, layers ...[]byte) (digests []string) {
	t.Helper()
	base := "http://" + gateway + "/v2/" + name
	put := func(content []byte) string {
		d := "sha256:" + fmt.Sprintf("%x", sha256.Sum256(content))
		if status, answer := request(t, http.MethodPost, base+"/blobs/uploads/?digest="+d, content); status != http.StatusCreated {
			t.Fatalf("push a blob: %d %s", status, answer)
		}
		return d
	}
	var list []string
	for _, l := range layers {
		d := put(l)
		digests = append(digests, d)
		list = append(list, fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}`, d, len(l)))
	}
	config := []byte("{}")
	manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",`+
		`"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[%s]}`, put(config), len(config), strings.Join(list, ","))
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, base+"/manifests/1", strings.NewReader(manifest))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusCreated {
		answer, _ := io.ReadAll(res.Body)
		t.Fatalf("push a manifest: %s %s", res.Status, answer)
	}
	return digests
}

// The layers that a client has not asked for when all servers are lost come from
// peers: its agent looked ahead.
func TestAPullEndsWithoutServers(t *testing.T) {
	dir := t.TempDir()
	cluster, _ := start(t, local.Options{Dir: dir, Regions: 1, Agents: 2})
	where := gateways(cluster)
	layers := [][]byte{make([]byte, 1<<20), make([]byte, 3<<20), make([]byte, 5<<20)}
	for _, l := range layers {
		rand.Read(l)
	}
	digests := pushImage(t, where[0], "acme/app/api", layers...)
	pull := func(agent int, digest string, want []byte) {
		t.Helper()
		if body, _, _ := timed(t, "http://"+where[agent]+"/v2/acme/app/api/blobs/"+digest, nil); !bytes.Equal(body, want) {
			t.Errorf("agent %d reads something else", agent)
		}
	}
	for i, d := range digests {
		pull(1, d, layers[i])
	}
	timed(t, "http://"+where[2]+"/v2/acme/app/api/manifests/1", map[string]string{"Accept": "application/vnd.oci.image.manifest.v1+json"})
	pull(2, digests[0], layers[0])
	// A grant each for manifest, config and three layers.
	await(t, "the look ahead", func() bool { return frames(filepath.Join(dir, "agent-2", "grants")) == 5 })
	if err := cluster.Stop(0); err != nil {
		t.Fatal(err)
	}
	pull(2, digests[1], layers[1])
	pull(2, digests[2], layers[2])
}

// frames counts the length-prefixed records of a file.
func frames(path string) (n int) {
	b, _ := os.ReadFile(path) // it may not be there yet
	for len(b) > 0 {
		size, used := binary.Uvarint(b)
		if used <= 0 || uint64(len(b)-used) < size {
			break
		}
		b = b[used+int(size):]
		n++
	}
	return n
}

// await polls for what has no event to wait for.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
