package e2e

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// An agent killed at any moment finds its cache warm: what was whole is not fetched
// again, what came in part is completed, and what a kill or a disk damaged is healed.
func TestKilledAgentsCacheIsWarm(t *testing.T) {
	const size, prefix = 32 << 20, 24 << 20
	d := startDev(t, "", "--agents", "1")
	ctx := limit(t, 2*time.Minute)
	call := func(method, url string, body []byte, rangeOf string) (int, []byte) {
		t.Helper()
		r, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if rangeOf != "" {
			r.Header.Set("Range", rangeOf)
		}
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatalf("%s %s: %v", method, url, err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatalf("%s %s: %v", method, url, err)
		}
		return res.StatusCode, b
	}
	received := func() (sum int64) {
		t.Helper()
		_, body := call(http.MethodGet, "http://"+d.Agents[0].Ops+"/metrics", nil, "")
		for line := range strings.Lines(string(body)) {
			if strings.HasPrefix(line, "shoal_swarm_bytes_total{") && strings.Contains(line, `direction="received"`) {
				fields := strings.Fields(line)
				v, err := strconv.ParseFloat(fields[len(fields)-1], 64)
				if err != nil {
					t.Fatal(err)
				}
				sum += int64(v)
			}
		}
		return sum
	}
	random := func(n int) []byte {
		b := make([]byte, n)
		_, _ = rand.NewChaCha8([32]byte{byte(seed()), byte(n >> 20)}).Read(b) // never fails
		return b
	}
	contents := map[string][]byte{}
	add := func(name string, content []byte) {
		t.Helper()
		contents[name] = content
		if status, body := call(http.MethodPut, "http://"+d.Servers[0].Gateway+"/generic/acme/files/"+name, content, ""); status != http.StatusCreated {
			t.Fatalf("PUT %s: %d %s", name, status, body)
		}
	}
	get := func(name string) {
		t.Helper()
		status, body := call(http.MethodGet, "http://"+d.Agents[0].Gateway+"/generic/acme/files/"+name, nil, "")
		if status != http.StatusOK || !bytes.Equal(body, contents[name]) {
			t.Fatalf("GET %s: %d, %d bytes of %d", name, status, len(body), len(contents[name]))
		}
	}
	one := random(size)
	add("1", one)
	add("2", slices.Concat(one[:prefix], random(size-prefix)))
	add("part", random(16<<20))
	get("1")
	if _, body := call(http.MethodGet, "http://"+d.Agents[0].Gateway+"/generic/acme/files/part", nil, "bytes=0-4194303"); len(body) != 4<<20 {
		t.Fatalf("a range has %d bytes", len(body))
	}
	had := received() - size

	d.process.Kill()
	// A kill in the middle of a write may tear a bitmap; the disk may do worse.
	blobs := filepath.Join(d.data, "agent-1", "blobs", "blobs")
	haves, err := filepath.Glob(filepath.Join(blobs, "*", "*.have"))
	if err != nil || len(haves) != 1 {
		t.Fatalf("bitmaps: %v, %v", haves, err)
	}
	if err := os.WriteFile(haves[0], []byte{0xff}, 0o600); err != nil {
		t.Fatal(err)
	}
	d.start(t)
	get("1")
	if got := received(); got != 0 {
		t.Errorf("%d bytes were fetched of a blob that was whole before the kill", got)
	}
	get("part")
	got := received()
	// What was read ahead may come after it was counted, or be lost with the kill.
	if want := int64(16<<20) - had; got < want-2<<20 || got > want+2<<20 {
		t.Errorf("%d bytes were fetched of a blob of which %d had come", got, had)
	}
	get("2")
	if more := received() - got; more < size-prefix || more > (size-prefix)*5/4 {
		t.Errorf("the second version took %d bytes, want %d", more, size-prefix)
	}

	// Damage on disk is healed by what is fetched, chunk by chunk.
	d.process.Kill()
	wholes, err := filepath.Glob(filepath.Join(blobs, "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	damaged := 0
	for _, path := range wholes {
		stat, err := os.Stat(path)
		if err != nil || filepath.Ext(path) != "" || stat.Size() < size {
			continue
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("damage"), size/2); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		damaged++
	}
	if damaged != 2 {
		t.Fatalf("%d files were damaged", damaged)
	}
	d.start(t)
	get("1")
	get("2")
	if got := received(); got == 0 || got > 4<<20 {
		t.Errorf("%d bytes were fetched to heal a chunk of each of two blobs", got)
	}
}
