package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/proc"
)

// probeFile is written and removed every other second by each server, which so tries
// whether its disk can be used: it is there at any moment or not.
const probeFile = "probe.tmp"

// diskUsage adds up the files of the blobs of all nodes beneath dir.
func diskUsage(t *testing.T, dir string) (bytes int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && (d.IsDir() || d.Name() == probeFile || !strings.Contains(path, "/blobs/")) {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
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

// shoal runs a client verb against d.
func (d *dev) shoal(ctx context.Context, args ...string) (string, error) {
	return command(ctx, nil, binary, append(args, "--data", d.data)...)
}

// remove deletes a manifest; one that is gone already is no error.
func remove(ctx context.Context, c *image.Client, repository, digest string) error {
	r, err := c.Do(ctx, http.MethodDelete, "/v2/"+repository+"/manifests/"+digest, nil, nil, 0, http.StatusAccepted)
	if err == nil {
		r.Body.Close()
	}
	if image.StatusOf(err) == http.StatusNotFound {
		return nil
	}
	return err
}

// replicated waits until every region that owes a copy of the version says that it has
// verified it.
func (d *dev) replicated(ctx context.Context, t *testing.T, repository, pkg, version string) {
	t.Helper()
	c := registry(d.Servers[0], d.AdminToken)
	path := "/api/v1/repositories/" + repository + "/packages/" + pkg + "/versions/" + version + "/replication"
	err := proc.Await(ctx, "the copies of "+version, func(ctx context.Context) error {
		r, err := c.Do(ctx, http.MethodGet, path, nil, nil, 0, http.StatusOK)
		if err != nil {
			return err
		}
		defer r.Body.Close()
		var state struct {
			Regions []struct {
				Region            string
				Pending, Verified int
			}
		}
		if err := json.NewDecoder(r.Body).Decode(&state); err != nil {
			return err
		}
		for _, region := range state.Regions {
			if region.Pending > 0 {
				return fmt.Errorf("%s lacks %d blobs", region.Region, region.Pending)
			}
		}
		if len(state.Regions) < len(d.Servers) {
			return fmt.Errorf("%d regions", len(state.Regions))
		}
		return nil
	}, d.process)
	if err != nil {
		t.Fatal(err)
	}
}

// What nothing uses any more is gone from every server's disk after a run, what shares
// layers with it is not, and the same image can be pushed again.
func TestGarbageGoes(t *testing.T) {
	needTools(t, "crane")
	d := startDev(t, "", "--regions", "2")
	ctx := limit(t, 5*time.Minute)
	host := proc.Address(d.Servers[0].Gateway)
	crane := openCrane(t)
	kept, gone := makeImage(t, 2, 3<<20), makeImage(t, 3, 12<<20)
	if _, err := crane.push(ctx, kept, host+"/acme/app/api:kept"); err != nil {
		t.Fatal(err)
	}
	d.replicated(ctx, t, "acme/app", "api", kept.Digest())
	before := diskUsage(t, d.data)
	digest, err := crane.push(ctx, gone, host+"/acme/app/api:gone")
	if err != nil {
		t.Fatal(err)
	}
	// Both regions get their copies, so that both have something to remove.
	d.replicated(ctx, t, "acme/app", "api", digest)
	full := diskUsage(t, d.data)
	if err := remove(ctx, registry(d.Servers[0], ""), "acme/app/api", digest); err != nil {
		t.Fatal(err)
	}
	dry, err := d.shoal(ctx, "gc", "run", "--dry-run", "--grace", "0s")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("dry run:\n%s", dry)
	if out, err := d.shoal(ctx, "gc", "run", "--grace", "0s"); err == nil {
		t.Errorf("a shorter grace needs no --force: %s", out)
	}
	if used := diskUsage(t, d.data); used != full {
		t.Errorf("a dry run or a refused one changed the disk: %d to %d bytes", full, used)
	}
	out, err := d.shoal(ctx, "gc", "run", "--grace", "0s", "--force", "--wait", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var ran struct{ Collected, Bytes int64 }
	if err := json.Unmarshal([]byte(out), &ran); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if ran.Collected != 5 || ran.Bytes < gone.Bytes() { // three layers, configuration, manifest
		t.Errorf("collected %+v of an image of %d bytes", ran, gone.Bytes())
	}
	after := diskUsage(t, d.data)
	if after > full-2*gone.Bytes() {
		t.Errorf("%d bytes before, %d after", full, after)
	}
	t.Logf("disk: %d bytes, with the image %d, after the run %d", before, full, after)
	if _, err := crane.pull(ctx, host+"/acme/app/api:kept"); err != nil {
		t.Errorf("what is used: %v", err)
	}
	again, err := crane.push(ctx, gone, host+"/acme/app/api:gone")
	if err != nil || again != digest {
		t.Fatalf("the second push: %s, %v", again, err)
	}
	for _, s := range d.Servers {
		if _, err := crane.pull(ctx, proc.Address(s.Gateway)+"/acme/app/api:gone"); err != nil {
			t.Errorf("after the second push: %v", err)
		}
	}

	// Nobody has to run it.
	d.replicated(ctx, t, "acme/app", "api", digest)
	if err := remove(ctx, registry(d.Servers[0], ""), "acme/app/api", digest); err != nil {
		t.Fatal(err)
	}
	if _, err := d.shoal(ctx, "gc", "set", "--grace", "1s"); err != nil {
		t.Fatal(err)
	}
	err = proc.Await(ctx, "the garbage to go by itself", func(context.Context) error {
		if used := diskUsage(t, d.data); used > full-2*gone.Bytes() {
			return fmt.Errorf("%d bytes", used)
		}
		return nil
	}, d.process)
	if err != nil {
		t.Error(err)
	}
	status, err := d.shoal(ctx, "gc", "status")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("status:\n%s", status)
}

// Clients push the same few images over and over, each under its own tag, others delete
// them, and garbage is collected without any grace all the while, with kills in between:
// no push fails but for a kill, or because a layer that was there when the client looked
// was deleted and, without grace, collected before the manifest came; and what is there
// is whole.
func TestPushesAndCollectionsDoNotMeet(t *testing.T) {
	d := startDev(t, "", "--regions", "2")
	ctx := limit(t, 10*time.Minute)
	const repository = "acme/app/api"
	images := make([]*image.Image, 3)
	for i := range images {
		images[i] = makeImage(t, 2, 64<<10)
	}
	rounds, pushes := 3, 40
	if full {
		rounds, pushes = 10, 150
	}
	var pushed, beaten, deleted, runs atomic.Int64
	for round := range rounds {
		var (
			work, stopped sync.WaitGroup
			kill          = make(chan struct{})
			failures      = make(chan error, 64)
		)
		killed := func() bool {
			select {
			case <-kill:
				return true
			default:
				return false
			}
		}
		failed := func(what string, err error) {
			if err == nil || killed() || ctx.Err() != nil {
				return
			}
			select {
			case failures <- fmt.Errorf("%s: %w", what, err):
			default:
			}
		}
		for w := range 4 {
			work.Go(func() {
				c := registry(d.Servers[w%2], "")
				for n := range pushes {
					if killed() {
						return
					}
					img := images[rand.IntN(len(images))]
					err := c.Push(ctx, repository, fmt.Sprintf("r%d-w%d", round, w), img)
					if err != nil && strings.Contains(err.Error(), "MANIFEST_BLOB_UNKNOWN") {
						beaten.Add(1)
						continue
					}
					failed(fmt.Sprint("push ", n, " of client ", w), err)
					if err == nil {
						pushed.Add(1)
					}
				}
			})
		}
		done := make(chan struct{})
		stopped.Go(func() {
			c := registry(d.Servers[1], "")
			for ended := false; !ended; {
				select {
				case <-done:
					ended = true
				default:
				}
				err := remove(ctx, c, repository, images[rand.IntN(len(images))].Digest())
				failed("delete", err)
				deleted.Add(1)
			}
		})
		stopped.Go(func() {
			for ended := false; !ended; {
				select {
				case <-done:
					ended = true
				default:
				}
				_, err := d.shoal(ctx, "gc", "run", "--grace", "0s", "--force", "--strays")
				failed("gc run", err)
				runs.Add(1)
			}
		})
		if round < rounds-1 {
			// Somewhere in the middle of it all.
			want := pushed.Load() + int64(pushes)
			err := proc.Await(ctx, "pushes", func(context.Context) error {
				if n := pushed.Load(); n < want && len(failures) == 0 {
					return fmt.Errorf("%d of %d", n, want)
				}
				return nil
			}, d.process)
			close(kill)
			d.process.Kill()
			close(done)
			work.Wait()
			stopped.Wait()
			if err != nil {
				t.Fatal(err)
			}
			d.start(t)
		} else {
			work.Wait()
			close(done)
			stopped.Wait()
		}
		close(failures)
		for err := range failures {
			t.Error(err)
		}
		c := registry(d.Servers[0], "")
		tags, err := listTags(ctx, c, repository)
		if err != nil && image.StatusOf(err) != http.StatusNotFound {
			t.Fatal(err)
		}
		for _, s := range d.Servers {
			for _, tag := range tags {
				if _, err := registry(s, "").Pull(ctx, repository, tag); err != nil {
					t.Errorf("round %d: tag %s is there and not whole: %v", round, tag, err)
				}
			}
		}
	}
	t.Logf("%d pushes, %d to be done again, %d deletions, %d runs, %d kills", pushed.Load(), beaten.Load(), deleted.Load(), runs.Load(), rounds-1)

	// With everything deleted, everything goes.
	c := registry(d.Servers[0], "")
	for _, img := range images {
		if err := remove(ctx, c, repository, img.Digest()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.shoal(ctx, "gc", "run", "--grace", "0s", "--force", "--wait"); err != nil {
		t.Fatal(err)
	}
	status, err := d.shoal(ctx, "gc", "status", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var left struct{ Released, Garbage int }
	if err := json.Unmarshal([]byte(status), &left); err != nil || left.Released+left.Garbage != 0 {
		t.Errorf("garbage is left: %+v, %v\n%s", left, err, status)
	}
}
