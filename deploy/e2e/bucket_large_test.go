package e2e

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/transfer/bucket/buckettest"
)

// One stream above 10 GiB goes into a bucket in parts and comes back from there, and the
// server's memory does not grow with it. The cache, the service's parts and the object
// that it joins take the stream three times, and somebody else needs the disk too: with
// less than 52 GiB free the stream is shorter, and the test says so.
func TestALargeStreamIntoABucket(t *testing.T) {
	if !full {
		t.Skip("SKIPPED: SHOAL_E2E=full writes 33 GiB")
	}
	const (
		want  = int64(11 << 30)
		spare = int64(8 << 30)
		most  = int64(512 << 20) // of memory: 128 MiB of parts and reading ahead, and what a server has anyway
	)
	var disk syscall.Statfs_t
	if err := syscall.Statfs(os.TempDir(), &disk); err != nil {
		t.Fatal(err)
	}
	free := int64(disk.Bavail) * disk.Bsize
	length := min(want, (free-spare)/4)
	if length < want {
		t.Logf("SCALED DOWN: %d MiB are free, so the stream has %d MiB and not %d", free>>20, length>>20, want>>20)
	}
	if length < 256<<20 {
		skip(t, "%d MiB are free", free>>20)
	}
	service := buckettest.Start(t)
	c := &cluster{dir: folder(t, ""), env: buckettest.Env()}
	c.start(t, 1, 0, "--blobs", service.URL("large"), "--cache-size", fmt.Sprint(length+1<<30))
	server := c.servers[0]
	ctx := limit(t, 2*time.Hour)
	c.shoal(t, server, "tenant", "create", "acme")
	c.shoal(t, server, "repo", "create", "acme/files", "--format", "generic", "--home", "r1")

	call := func(method string, body io.Reader) *http.Response {
		t.Helper()
		request, err := http.NewRequestWithContext(ctx, method, "http://"+server.gateway()+"/generic/acme/files/large", body)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", "Bearer "+c.token)
		if body != nil {
			request.ContentLength = length
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		return response
	}
	told := func(what string, began time.Time) {
		t.Helper()
		memory, err := server.process.Memory()
		if err != nil {
			t.Fatal(err)
		}
		took := time.Since(began)
		t.Logf("%s: %d MiB in %v, %.0f MiB/s; the server's memory is %d MiB, it was %d MiB at most",
			what, length>>20, took.Round(100*time.Millisecond), float64(length>>20)/took.Seconds(), memory.Now>>20, memory.Peak>>20)
		if memory.Peak > most {
			t.Errorf("%s takes %d MiB of memory", what, memory.Peak>>20)
		}
	}
	began, sent := time.Now(), sha256.New()
	response := call(http.MethodPut, io.TeeReader(io.LimitReader(noise(), length), sent))
	answer, err := io.ReadAll(response.Body)
	response.Body.Close()
	if err != nil || response.StatusCode != http.StatusCreated {
		t.Fatalf("%d %s, %v", response.StatusCode, answer, err)
	}
	told("pushed", began)
	var objects, largest int64
	for _, n := range service.Files("large/blobs") {
		objects, largest = objects+1, max(largest, n)
	}
	t.Logf("the bucket has %d objects, the largest of %d MiB", objects, largest>>20)
	if largest < length {
		t.Errorf("the largest object has %d bytes", largest)
	}

	// Without what it has cached, all of it comes from the bucket.
	if err := server.process.Stop(time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(server.node.Data, "cache")); err != nil {
		t.Fatal(err)
	}
	server.again()
	c.launch(t, server)
	began = time.Now()
	response = call(http.MethodGet, nil)
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Fatalf("%d", response.StatusCode)
	}
	got := sha256.New()
	if n, err := io.Copy(got, response.Body); err != nil || n != length || !same(got, sent) {
		t.Errorf("%d bytes of %d came back, the same: %v, %v", n, length, same(got, sent), err)
	}
	told("pulled from the bucket", began)
}

func same(a, b hash.Hash) bool { return string(a.Sum(nil)) == string(b.Sum(nil)) }

// noise is a stream that nothing compresses and no other run has.
func noise() io.Reader {
	var key [32]byte
	for i := range key {
		key[i] = byte(rand.Uint32())
	}
	return rand.NewChaCha8(key)
}
