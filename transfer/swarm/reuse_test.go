package swarm_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/transfer/swarm"
)

func disk(t *testing.T, cfg store.DiskConfig) *store.Disk {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	cfg.Reserve = -1 // the machine's disk is not under test
	d, err := store.OpenDisk(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// Of a new version only what differs from an old one is fetched.
func TestANewVersionIsFetchedByItsDifference(t *testing.T) {
	const size, prefix = 64 << 20, 48 << 20
	w := newTown(t)
	seed := w.add(server)
	one := random(size)
	two := slices.Concat(one[:prefix], random(size-prefix))
	agent := w.add(holding(disk(t, store.DiskConfig{CacheBytes: 1 << 30})))
	first := w.put(seed, one)
	want(t, agent, first, one)
	received := agent.bytes("received", "")
	if received < size || received > size*11/10 {
		t.Errorf("the first version took %d bytes", received)
	}
	want(t, agent, w.put(seed, two), two)
	got := agent.bytes("received", "") - received
	t.Logf("%d MiB of %d were fetched, %.0f MiB found here", got>>20, size>>20, agent.counter("shoal_swarm_local_bytes_total")/(1<<20))
	if got < size-prefix || got > (size-prefix)*11/10 {
		t.Errorf("the second version took %d bytes, want %d", got, size-prefix)
	}
	if found := agent.counter("shoal_swarm_local_bytes_total"); found != prefix {
		t.Errorf("%.0f bytes are counted as found here, want %d", found, prefix)
	}
	// A version that is made of the others needs nobody.
	three := slices.Concat(two[:size-4<<20], one[size-4<<20:])
	received = agent.bytes("received", "")
	want(t, agent, w.put(seed, three), three)
	if got := agent.bytes("received", "") - received; got != 0 {
		t.Errorf("%d bytes were fetched that are here", got)
	}
}

// A reader of a chunk that has to come from elsewhere does not wait for copies, and
// copies that fail are fetched.
func TestReuseKeepsNoReaderWaiting(t *testing.T) {
	w := newTown(t)
	seed := w.add(server)
	one := random(16 * chunk.MinBytes)
	two := slices.Concat(random(chunk.MinBytes), one[chunk.MinBytes:])
	copying := make(chan struct{})
	mem := store.NewMemory()
	g := &gate{Store: mem}
	agent := w.add(holding(g))
	first := w.put(seed, one)
	want(t, agent, first, one)
	g.write = func(i int) {
		if i > 0 {
			<-copying
		}
	}
	session, err := agent.Fetch(within(t), w.put(seed, two), swarm.FetchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	got, err := read(within(t), session, 0, 1)
	if err != nil || !bytes.Equal(got, two[:chunk.MinBytes]) {
		t.Fatalf("the first chunk: %d bytes, %v", len(got), err)
	}
	close(copying)
	if got, err := read(within(t), session, 0, -1); err != nil || !bytes.Equal(got, two) {
		t.Errorf("the whole: %d bytes, %v", len(got), err)
	}
}

// Damage in the old version is fetched, not copied.
func TestReuseOfADamagedVersion(t *testing.T) {
	w := newTown(t)
	seed := w.add(server)
	one := random(16 * chunk.MinBytes)
	two := slices.Concat(one[:12*chunk.MinBytes], random(4*chunk.MinBytes))
	dir := t.TempDir()
	agent := w.add(holding(disk(t, store.DiskConfig{Dir: dir, HotBytes: -1})))
	first := w.put(seed, one)
	want(t, agent, first, one)
	path := filepath.Join(dir, "blobs", first.Hex()[:2], first.Hex())
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(random(100), 3*chunk.MinBytes); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	received := agent.bytes("received", "")
	want(t, agent, w.put(seed, two), two)
	if got := (agent.bytes("received", "") - received) / chunk.MinBytes; got < 5 || got > 8 {
		t.Errorf("%d chunks were fetched, want 5", got)
	}
}

// A fetch that was cut off by a restart goes on with what is missing, whatever of the
// rest another blob has meanwhile.
func TestAFetchGoesOnAfterARestart(t *testing.T) {
	w := newTown(t)
	seed := w.add(server)
	content := random(32 * chunk.MinBytes)
	root := w.put(seed, content)
	dir := t.TempDir()
	d := disk(t, store.DiskConfig{Dir: dir})
	agent := w.add(holding(d))
	w.mu.Lock() // nothing comes before it is said what is wanted, so nothing comes after that
	session, err := agent.Fetch(within(t), root, swarm.FetchOptions{})
	if err == nil {
		session.Prefer(0, 20)
	}
	w.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := read(within(t), session, 0, 20); err != nil || !bytes.Equal(got, content[:20*chunk.MinBytes]) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	blob, _ := session.Blob(within(t))
	had := blob.Have().Count()
	_ = session.Close()
	agent.kill()
	_ = d.Close()

	d = disk(t, store.DiskConfig{Dir: dir})
	agent = w.add(holding(d))
	want(t, agent, root, content)
	if got := int(agent.bytes("received", "") / chunk.MinBytes); got < 32-had || got > 32-had+4 {
		t.Errorf("%d chunks were fetched, %d were missing", got, 32-had)
	}
	agent.kill()
	_ = d.Close()

	// Whole, it is served without anybody.
	seed.kill()
	agent = w.add(holding(disk(t, store.DiskConfig{Dir: dir})))
	want(t, agent, root, content)
	if got := agent.bytes("received", ""); got != 0 {
		t.Errorf("%d bytes were fetched of what is here", got)
	}
}

// A cache is not filled by what was just pulled: blobs that only linger go.
func TestASmallCacheTakesManyBlobs(t *testing.T) {
	w := newTown(t)
	seed := w.add(server)
	agent := w.add(holding(disk(t, store.DiskConfig{CacheBytes: 5 << 20})))
	for range 6 {
		content := random(2 << 20)
		want(t, agent, w.put(seed, content), content)
	}
}
