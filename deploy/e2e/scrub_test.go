package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/proc"
)

// blobFiles returns what each file of a server's blobs holds: names below blobs/, and the
// sha256 of the content. Nothing else changes there while nobody pushes.
func blobFiles(m *member) (map[string][32]byte, error) {
	dir := filepath.Join(m.node.Data, "blobs", "blobs")
	files := map[string][32]byte{}
	err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it went meanwhile
			}
			return err
		}
		if e.IsDir() || e.Name() == probeFile {
			return nil
		}
		content, err := os.ReadFile(name)
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		short, err := filepath.Rel(dir, name)
		files[short] = sha256.Sum256(content)
		return err
	})
	return files, err
}

// settled returns the files of all servers once each has all blobs of all, whole.
func (c *cluster) settled(t *testing.T, blobs int) []map[string][32]byte {
	t.Helper()
	all := make([]map[string][32]byte, len(c.servers))
	if err := proc.Await(limit(t, 3*time.Minute), "a copy of every blob at every server", func(context.Context) error {
		for i, s := range c.servers {
			files, err := blobFiles(s)
			if err != nil {
				return err
			}
			whole := 0
			for name := range files {
				switch filepath.Ext(name) {
				case "":
					whole++
				case ".map":
				default:
					return fmt.Errorf("%s has %s", s.name, name)
				}
			}
			if whole != blobs {
				return fmt.Errorf("%s has %d blobs of %d", s.name, whole, blobs)
			}
			all[i] = files
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// scrub reads every byte of all servers and waits until what was found is repaired.
func (c *cluster) scrub(t *testing.T) {
	t.Helper()
	if out, err := c.verb(limit(t, 5*time.Minute), c.servers[0], "scrub", "run", "--full", "--wait"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// readers pull images at all servers until they are stopped.
type readers struct {
	stop   context.CancelFunc
	group  sync.WaitGroup
	pulls  atomic.Int64
	failed atomic.Int64
	mu     sync.Mutex
	first  error
}

func (c *cluster) startReaders(ctx context.Context, repository string, tags []string, images map[string]*image.Image) *readers {
	ctx, stop := context.WithCancel(ctx)
	r := &readers{stop: stop}
	for i, s := range c.servers {
		r.group.Go(func() {
			client := s.registry(c.token)
			for n := i; ctx.Err() == nil; n++ {
				tag := tags[n%len(tags)]
				// Pull checks every digest; that of the manifest is checked here.
				pulled, err := client.Pull(ctx, repository, tag)
				if err == nil && !bytes.Equal(pulled.Manifest, images[tag].Manifest) {
					err = errors.New("it is another manifest")
				}
				switch {
				case ctx.Err() != nil:
				case err != nil:
					r.failed.Add(1)
					r.mu.Lock()
					if r.first == nil {
						r.first = fmt.Errorf("%s at %s: %w", tag, s.name, err)
					}
					r.mu.Unlock()
				default:
					r.pulls.Add(1)
				}
			}
		})
	}
	return r
}

// end stops the readers and reports how often they read what.
func (r *readers) end(t *testing.T, most int64) {
	t.Helper()
	r.stop()
	r.group.Wait()
	t.Logf("%d pulls beside it, %d failed", r.pulls.Load(), r.failed.Load())
	if r.failed.Load() > most {
		t.Errorf("%d pulls failed, the first: %v", r.failed.Load(), r.first)
	}
}

// pushSome pushes images of layers of many sizes, from documents to many chunks, and
// returns how many blobs they are.
func (c *cluster) pushSome(ctx context.Context, t *testing.T, repository string, count int) (tags []string, images map[string]*image.Image, blobs int) {
	t.Helper()
	images = map[string]*image.Image{}
	for i := range count {
		img := makeImage(t, 1+i%3, []int64{2 << 10, 300 << 10, 5 << 20, 40 << 10, 1 << 20}[i%5])
		tag := fmt.Sprint("v", i)
		if err := c.servers[i%len(c.servers)].registry(c.token).Push(ctx, repository, tag, img); err != nil {
			t.Fatal(err)
		}
		tags, images[tag] = append(tags, tag), img
		blobs += len(img.Blobs()) + 1
	}
	return tags, images, blobs
}

// Bytes are flipped all over the stored files of a running cluster, while clients read:
// every one is found and repaired before anybody is served it, as long as one copy is
// sound. SHOAL_E2E=full flips 500.
func TestFlippedBytes(t *testing.T) {
	flips, perRound := 50, 25
	if full {
		flips, perRound = 500, 50
	}
	c := startCluster(t, 3, 0)
	c.createRepo(t, "flips", "--class", "critical")
	ctx := limit(t, 15*time.Minute)
	const repository = "acme/flips/image"
	tags, images, blobs := c.pushSome(ctx, t, repository, 15)
	want := c.settled(t, blobs)
	c.scrub(t) // all copies are on record, and sound

	random := rand.New(rand.NewPCG(seed(), 1))
	readers := c.startReaders(ctx, repository, tags, images)
	began := time.Now()
	kinds := map[string]int{}
	missed := 0
	for done := 0; done < flips; {
		keepers := map[string]int{} // root -> the server whose copy stays sound this round
		flipped := map[string]string{}
		for n := 0; n < perRound && done < flips; {
			at := random.IntN(len(c.servers))
			names := make([]string, 0, len(want[at]))
			for name := range want[at] {
				names = append(names, name)
			}
			name := names[random.IntN(len(names))]
			root, kind := strings.TrimSuffix(name, ".map"), filepath.Ext(name)
			keeper, ok := keepers[root]
			if !ok {
				keeper = random.IntN(len(c.servers))
				keepers[root] = keeper
			}
			// A map can be made again from the bytes, so maps are flipped everywhere.
			if at == keeper && kind == "" {
				continue
			}
			path := filepath.Join(c.servers[at].node.Data, "blobs", "blobs", name)
			offset, err := flipByte(random, path)
			if err != nil {
				continue // it is being repaired since a flip before
			}
			if kind == "" {
				kind = "blob"
			}
			kinds[kind]++
			flipped[path] = fmt.Sprintf("%s of %s, byte %d", name, c.servers[at].name, offset)
			done++
			n++
		}
		c.scrub(t)
		now := c.settled(t, blobs)
		for i := range now {
			for name, sum := range want[i] {
				if now[i][name] != sum {
					missed++
					path := filepath.Join(c.servers[i].node.Data, "blobs", "blobs", name)
					t.Errorf("not what it was: %s of %s (%s)", name, c.servers[i].name, flipped[path])
				}
			}
		}
	}
	readers.end(t, 0)
	took := time.Since(began)

	// The files beside the blobs are read at a start.
	for _, s := range c.servers {
		if err := s.process.Stop(time.Minute); err != nil {
			t.Error(err)
		}
		if _, err := flipByte(random, filepath.Join(s.node.Data, "blobs", "mark")); err != nil {
			t.Fatal(err)
		}
		kinds["mark"]++
		if _, err := flipByte(random, filepath.Join(s.node.Data, "scrub")); err != nil {
			t.Fatal(err)
		}
		kinds["scrub's cursor"]++
		s.again()
		c.launch(t, s)
		if err := proc.Await(limit(t, time.Minute), "a damaged mark in the metric of "+s.name, func(ctx context.Context) error {
			found, err := s.metric(ctx, `shoal_store_damaged_files_total{kind="mark"}`)
			if err == nil && found != 1 {
				err = fmt.Errorf("it counts %v", found)
			}
			return err
		}, s.process); err != nil {
			t.Error(err)
			missed++
		}
		if log := s.process.LogTail(1 << 20); !strings.Contains(log, "where the scrub was is not known any more") {
			t.Errorf("%s does not say that the scrub's cursor was damaged", s.name)
			missed++
		}
	}
	for _, s := range c.servers {
		for _, tag := range tags {
			if _, err := s.registry(c.token).Pull(ctx, repository, tag); err != nil {
				t.Errorf("%s: %v", s.name, err)
			}
		}
	}
	total := 0
	for _, n := range kinds {
		total += n
	}
	t.Logf("%d bytes flipped in stored files (%v), %d not found or not repaired, in %v", total, kinds, missed, took.Round(time.Second))
}

// flipByte changes one byte of a file and returns which.
func flipByte(random *rand.Rand, name string) (int64, error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return 0, errors.Join(err, fmt.Errorf("%s is empty", name))
	}
	var b [1]byte
	at := random.Int64N(info.Size())
	if _, err := f.ReadAt(b[:], at); err != nil {
		return 0, err
	}
	b[0] ^= byte(1 + random.IntN(255))
	_, err = f.WriteAt(b[:], at)
	return at, err
}

// The whole directory of the blobs of a live server is removed while clients read there:
// reads go on, its copies are reported failed and made again, the server lives.
func TestBlobsOfALiveServerRemoved(t *testing.T) {
	c := startCluster(t, 2, 0)
	c.createRepo(t, "gone", "--class", "critical")
	ctx := limit(t, 5*time.Minute)
	const repository = "acme/gone/image"
	tags, images, blobs := c.pushSome(ctx, t, repository, 8)
	want := c.settled(t, blobs)
	c.scrub(t)

	victim := c.servers[0]
	// What is read comes back by that; the rest only because the loss is noticed.
	read, unread := tags[:3], 0
	for _, tag := range tags[3:] {
		unread += len(images[tag].Blobs()) + 1
	}
	readers := c.startReaders(ctx, repository, read, images)
	if err := removeDir(filepath.Join(victim.node.Data, "blobs")); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	got := c.settled(t, blobs)
	t.Logf("all %d blobs are back after %v", blobs, time.Since(began).Round(time.Millisecond))
	for name, sum := range want[0] {
		if got[0][name] != sum {
			t.Errorf("%s is not what it was", name)
		}
	}
	// What was on record as verified was reported failed.
	if err := proc.Await(limit(t, time.Minute), "failed copies in the server's report", func(ctx context.Context) error {
		failed, repaired, open, err := c.found(ctx, victim)
		if err != nil {
			return err
		}
		if failed < unread || repaired < unread || open != 0 {
			return fmt.Errorf("%d copies failed, %d repaired, %d open, of %d that nobody read", failed, repaired, open, unread)
		}
		return nil
	}, victim.process); err != nil {
		t.Error(err)
	}
	// Pushes are accepted again, which its health may have forbidden for a moment.
	after := makeImage(t, 2, 1<<20)
	if err := proc.Await(limit(t, time.Minute), "a push at the server", func(ctx context.Context) error {
		return victim.registry(c.token).Push(ctx, repository, "after", after)
	}, victim.process); err != nil {
		t.Error(err)
	}
	readers.end(t, 0)
	c.scrub(t)
	select {
	case <-victim.process.Done():
		t.Errorf("the server ended: %v", victim.process.Err())
	default:
	}
}

// found asks the metadata what a server's scrub has found.
func (c *cluster) found(ctx context.Context, m *member) (failed, repaired, open int, err error) {
	out, err := c.verb(ctx, m, "scrub", "status", "--json")
	if err != nil {
		return 0, 0, 0, err
	}
	var s struct {
		Servers []struct {
			Server string
			Report struct {
				Failed   int `json:"failed_copies"`
				Repaired int `json:"repaired"`
				Open     int `json:"open"`
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		return 0, 0, 0, err
	}
	status, err := c.verb(ctx, m, "status", "--json")
	if err != nil {
		return 0, 0, 0, err
	}
	var self struct{ Node string }
	if err := json.Unmarshal([]byte(status), &self); err != nil {
		return 0, 0, 0, err
	}
	for _, a := range s.Servers {
		if a.Server == self.Node {
			return a.Report.Failed, a.Report.Repaired, a.Report.Open, nil
		}
	}
	return 0, 0, 0, fmt.Errorf("no report of %s", m.name)
}

// removeDir removes a directory whose owner puts files into it meanwhile.
func removeDir(dir string) error {
	gone := dir + ".gone"
	if err := os.Rename(dir, gone); err != nil {
		return err
	}
	return os.RemoveAll(gone)
}
