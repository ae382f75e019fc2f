package local_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
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
	body, first, last := timed(t, "http://"+where[3]+path, nil)
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
	body, first, last = timed(t, fmt.Sprintf("http://%s%s", where[4], path), map[string]string{"Range": "bytes=8388608-"})
	if !bytes.Equal(body, content[8<<20:]) {
		t.Error("an agent that was restarted reads something else")
	}
	t.Logf("server gone, agent restarted: serves after %v, the first byte of a chunk that it lacks after %v, all after %v", serving, first, last)
}
