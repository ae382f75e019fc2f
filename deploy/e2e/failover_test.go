package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/proc"
)

// health is what `shoal region status --json` says of one region.
type health struct {
	State, Kind, Why string
	Incident         uint64
	Backups          []string
	Servers          []struct {
		Server, Blobs              string
		Silent, Unchecked, Checked int64
		Copies, Missing            int
	}
}

type incident struct {
	Region, Kind   string
	Opened, Closed int64
	Events         []struct {
		At                    int64
		Event                 string
		Server, Region, Text  string
		Copies, Missing, More int
	}
}

func (c *cluster) regionStatus(ctx context.Context, at *member, region string) (health, []incident, error) {
	out, err := c.verb(ctx, at, "region", "status", region, "--json")
	if err != nil {
		return health{}, nil, err
	}
	var status struct {
		Regions   []health
		Incidents []incident
	}
	if err := json.Unmarshal([]byte(out), &status); err != nil || len(status.Regions) != 1 {
		return health{}, nil, fmt.Errorf("region status: %w in %s", err, out)
	}
	return status.Regions[0], status.Incidents, nil
}

// awaitHealth waits until a region is in a state, as seen at a server.
func (c *cluster) awaitHealth(ctx context.Context, t *testing.T, at *member, region, state string) {
	t.Helper()
	if err := proc.Await(ctx, "region "+region+" to be "+state, func(ctx context.Context) error {
		h, _, err := c.regionStatus(ctx, at, region)
		if err == nil && h.State != state {
			err = fmt.Errorf("it is %+v", h)
		}
		return err
	}, at.process); err != nil {
		t.Fatal(err)
	}
}

// copies says how many copies of a version's blobs a region has verified and owes.
func (c *cluster) copies(ctx context.Context, at *member, repository, pkg, version, region string) (verified, pending, failed int, err error) {
	path := "/api/v1/repositories/" + repository + "/packages/" + url.PathEscape(pkg) + "/versions/" + url.PathEscape(version) + "/replication"
	response, err := at.registry(c.token).Do(ctx, http.MethodGet, path, nil, nil, 0, http.StatusOK)
	if err != nil {
		return 0, 0, 0, err
	}
	defer response.Body.Close()
	var answer struct {
		Regions []struct {
			Region                    string
			Verified, Pending, Failed int
		}
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return 0, 0, 0, err
	}
	for _, r := range answer.Regions {
		if r.Region == region {
			return r.Verified, r.Pending, r.Failed, nil
		}
	}
	return 0, 0, 0, nil
}

// awaitCopies waits until each of the regions owes nothing of the versions.
func (c *cluster) awaitCopies(ctx context.Context, t *testing.T, at *member, repository, pkg string, versions []string, regions ...string) {
	t.Helper()
	for _, region := range regions {
		for _, v := range versions {
			if err := proc.Await(ctx, "copies of "+v+" in "+region, func(ctx context.Context) error {
				verified, pending, failed, err := c.copies(ctx, at, repository, pkg, v, region)
				if err == nil && (verified == 0 || pending > 0 || failed > 0) {
					err = fmt.Errorf("%d verified, %d pending, %d failed", verified, pending, failed)
				}
				return err
			}, at.process); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// attempt is one try of a client and how it ended.
type attempt struct {
	at   *member
	from time.Time
	to   time.Time
	err  error
}

// hosts pull, or push, at each member without end, each image until it came, as a
// client with retries does.
type hosts struct {
	mu       sync.Mutex
	attempts []attempt
	gaveUp   []error // what was not had within a minute
	group    sync.WaitGroup
	stop     context.CancelFunc
}

// imageCount is more than any host pulls in the test.
const imageCount = 48

// patience is how long a client waits for one answer, and how long it tries again.
const (
	attemptPatience = 10 * time.Second
	clientPatience  = time.Minute
)

func startHosts(ctx context.Context, members []*member, do func(ctx context.Context, m *member, n int) error) *hosts {
	ctx, stop := context.WithCancel(ctx)
	c := &hosts{stop: stop}
	for _, m := range members {
		c.group.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				began := time.Now()
				for {
					from := time.Now()
					limited, cancel := context.WithTimeout(ctx, attemptPatience)
					err := do(limited, m, n)
					cancel()
					if ctx.Err() != nil {
						return // cut off by the end of the test, not by the cluster
					}
					c.mu.Lock()
					c.attempts = append(c.attempts, attempt{m, from, time.Now(), err})
					tired := err != nil && time.Since(began) > clientPatience
					if tired {
						c.gaveUp = append(c.gaveUp, fmt.Errorf("%s, image %d: %w", m.name, n, err))
					}
					c.mu.Unlock()
					if err == nil || tired {
						break
					}
					pause(ctx, 200*time.Millisecond)
				}
				pause(ctx, 100*time.Millisecond)
			}
		})
	}
	return c
}

// pause is a client's own, between two of its requests.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (c *hosts) end() {
	c.stop()
	c.group.Wait()
}

// since counts what a member's attempts that began after t came to.
func (c *hosts) since(t time.Time, m *member) (good, bad int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range c.attempts {
		switch {
		case a.at != m || a.from.Before(t):
		case a.err == nil:
			good++
		default:
			bad++
		}
	}
	return good, bad
}

// each waits until every member has had so many successes that began after t.
func (c *hosts) each(ctx context.Context, t *testing.T, since time.Time, members []*member, want int) {
	t.Helper()
	var alive []*proc.Process
	for _, m := range members {
		alive = append(alive, m.process)
	}
	if err := proc.Await(ctx, "clients to get on", func(context.Context) error {
		for _, m := range members {
			if good, bad := c.since(since, m); good < want {
				return fmt.Errorf("%s: %d successes and %d failures", m.name, good, bad)
			}
		}
		return nil
	}, alive...); err != nil {
		t.Fatal(err)
	}
}

// outage returns the longest time that a client of one of the members waited from
// began, or from its first attempt after it, until it got on.
func (c *hosts) outage(began time.Time, members []*member) (longest time.Duration, at string, retries int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range members {
		waiting := began // an attempt that was under way counts, too
		for _, a := range c.attempts {
			if a.at != m || a.to.Before(began) {
				continue
			}
			if waiting.IsZero() {
				waiting = a.from
			}
			if a.err != nil {
				retries++
				continue
			}
			if d := a.to.Sub(waiting); d > longest {
				longest, at = d, m.name
			}
			waiting = time.Time{}
		}
	}
	return longest, at, retries
}

// TestARegionIsLost stops the servers of one region of three, its repositories' home:
// once by kill -9, once by SIGSTOP, where connections stay and nobody answers. Clients
// of all regions pull critical images that their hosts do not have yet, and push.
func TestARegionIsLost(t *testing.T) {
	for _, how := range []struct {
		name string
		lose func(*member) error
		back func(*testing.T, *cluster, *member)
	}{
		{"killed", func(m *member) error { m.process.Kill(); return nil }, func(t *testing.T, c *cluster, m *member) {
			m.again()
			if err := c.begin(m); err != nil {
				t.Fatal(err)
			}
		}},
		{"stopped", func(m *member) error { return m.process.Signal(syscall.SIGSTOP) }, func(t *testing.T, c *cluster, m *member) {
			if err := m.process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(how.name, func(t *testing.T) {
			ctx := limit(t, 4*time.Minute)
			c := startCluster(t, 3, 6)
			lost, seen := c.servers[0], c.servers[1]
			c.createRepo(t, "crit", "--class", "critical")
			const repository, pkg, pushed = "acme/crit/image", "image", "acme/crit/pushed"

			// What r1 will lose is an image that nobody reads: a reader may find a blob
			// missing, and fetch it again, before r1 looks.
			unread := pushImages(ctx, t, lost.registry(c.token), repository, 1)[0].Digest()
			c.awaitCopies(ctx, t, seen, "acme/crit", pkg, []string{unread}, "r1", "r2", "r3")
			lose, err := blobFiles(lost)
			if err != nil || len(lose) == 0 {
				t.Fatalf("%s has %d blobs: %v", lost.name, len(lose), err)
			}

			images := pushImages(ctx, t, lost.registry(c.token), repository, imageCount)
			var digests []string
			for _, img := range images {
				digests = append(digests, img.Digest())
			}
			c.awaitCopies(ctx, t, seen, "acme/crit", pkg, digests, "r1", "r2", "r3")

			t.Logf("%d critical images are in all regions", len(images))

			ledger := newLedger()
			readers := startHosts(ctx, c.agents, func(ctx context.Context, m *member, n int) error {
				// Each host begins elsewhere, so what it asks for is seldom at its neighbours.
				at := (n + 8*slices.Index(c.agents, m)) % len(images)
				_, err := m.registry("").Pull(ctx, repository, images[at].Digest())
				return err
			})
			writers := startHosts(ctx, c.agents, func(ctx context.Context, m *member, n int) error {
				tag := fmt.Sprintf("%s-%d", m.name, n)
				img, err := image.Make(rand.Uint64()>>9, 1, 4096)
				if err != nil {
					return err
				}
				ledger.try(tag, img.Digest())
				if err := m.registry(c.token).Push(ctx, pushed, tag, img); err != nil {
					return err
				}
				ledger.acknowledge(tag)
				return nil
			})
			defer readers.end()
			defer writers.end()
			readers.each(ctx, t, time.Now(), c.agents, 3)
			writers.each(ctx, t, time.Now(), c.agents, 2)

			began := time.Now()
			if err := how.lose(lost); err != nil {
				t.Fatal(err)
			}
			c.awaitHealth(ctx, t, seen, "r1", "down")
			t.Logf("region r1 %s: recorded as down after %.1f s", how.name, time.Since(began).Seconds())
			readers.each(ctx, t, began, c.agents, 5)
			writers.each(ctx, t, began, c.agents, 3)
			h, _, err := c.regionStatus(ctx, seen, "r1")
			if err != nil || len(h.Backups) == 0 {
				t.Errorf("r1 is %+v, %v: nobody takes its writes", h, err)
			}
			reads, at, retries := readers.outage(began, c.agents)
			t.Logf("reads: no client waited longer than %.1f s (goal 10 s), at %s; %d retries", reads.Seconds(), at, retries)
			writes, at, retries := writers.outage(began, c.agents)
			t.Logf("writes: no client waited longer than %.1f s (goal 5 s), at %s; %d retries", writes.Seconds(), at, retries)

			// What is pushed now is in two regions, and r1 is known to owe it.
			late := pushImages(ctx, t, c.agents[0].registry(c.token), repository, 2)
			c.awaitCopies(ctx, t, seen, "acme/crit", pkg, []string{late[0].Digest(), late[1].Digest()}, "r2", "r3")
			if verified, pending, _, err := c.copies(ctx, seen, "acme/crit", pkg, late[0].Digest(), "r1"); err != nil || verified != 0 || pending == 0 {
				t.Errorf("r1 has %d verified and %d pending copies of what was pushed without it, %v", verified, pending, err)
			}

			// While nobody sees it, r1 loses a part of what it is said to have.
			for file := range lose {
				if err := os.Remove(filepath.Join(lost.node.Data, "blobs", "blobs", file)); err != nil {
					t.Fatal(err)
				}
			}
			back := time.Now()
			how.back(t, c, lost)
			c.awaitHealth(ctx, t, seen, "r1", "healthy")
			t.Logf("r1 is back: recorded as healthy after %.1f s", time.Since(back).Seconds())
			_, incidents, err := c.regionStatus(ctx, seen, "r1")
			if err != nil || len(incidents) == 0 {
				t.Fatalf("incidents are %+v, %v", incidents, err)
			}
			judgeTimeline(t, incidents[0], len(lose))
			c.awaitCopies(ctx, t, seen, "acme/crit", pkg, append(digests, unread, late[0].Digest(), late[1].Digest()), "r1")

			returned := time.Now()
			readers.each(ctx, t, returned, c.agents, 3)
			writers.each(ctx, t, returned, c.agents, 2)
			readers.end()
			writers.end()
			for _, err := range append(readers.gaveUp, writers.gaveUp...) {
				t.Errorf("given up after %v: %v", clientPatience, err)
			}
			for _, s := range c.servers {
				if err := ledger.audit(ctx, s.registry(c.token), pushed); err != nil {
					t.Errorf("%s: %v", s.name, err)
				}
			}
			t.Logf("%d pulls and %d pushes tried, %d pushes acknowledged, none missing", len(readers.attempts), len(writers.attempts), ledger.count())
			t.Logf("\n%s", c.shoal(t, seen, "region", "status", "r1"))
		})
	}
}

// pushImages pushes so many small images, four at a time.
func pushImages(ctx context.Context, t *testing.T, to *image.Client, repository string, count int) []*image.Image {
	t.Helper()
	images := make([]*image.Image, count)
	errs := make([]error, count)
	var group sync.WaitGroup
	slots := make(chan struct{}, 4)
	for i := range images {
		images[i] = makeImage(t, 1, 40<<10) // more than rides in a registrar's reply
		group.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			errs[i] = to.Push(ctx, repository, fmt.Sprintf("i%d-%d", i, rand.Uint32()), images[i])
		})
	}
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return images
}

// judgeTimeline holds an incident against what has happened.
func judgeTimeline(t *testing.T, i incident, gone int) {
	t.Helper()
	if i.Kind != "region_down" || i.Closed == 0 {
		t.Errorf("the incident is %+v", i)
	}
	var kinds []string
	missing := 0
	for _, e := range i.Events {
		kinds = append(kinds, e.Event)
		missing += e.Missing
	}
	last := -1
	for _, want := range []string{"opened", "writes_moved", "copies_checked", "closed"} {
		at := slices.Index(kinds, want)
		if at <= last {
			t.Errorf("the timeline is %v, %q is not where it has to be", kinds, want)
		}
		last = at
	}
	for _, want := range []string{"server_silent", "server_heard", "writes_returned"} {
		if !slices.Contains(kinds, want) {
			t.Errorf("the timeline is %v, without %q", kinds, want)
		}
	}
	if missing != gone {
		t.Errorf("%d copies were found missing, %d blobs were removed", missing, gone)
	}
}

// TestABlobStoreIsLost takes the blob store of a region's only server away while the
// server lives, so that it cannot make another in its place: what needs bytes is served
// from other regions, at the server itself, too, and returns when the store does.
func TestABlobStoreIsLost(t *testing.T) {
	ctx := limit(t, 8*time.Minute)
	c := startCluster(t, 3, 3)
	lost, seen := c.servers[0], c.servers[1]
	c.createRepo(t, "crit", "--class", "critical")
	const repository, pkg = "acme/crit/image", "image"
	images := pushImages(ctx, t, lost.registry(c.token), repository, imageCount)
	var digests []string
	for _, img := range images {
		digests = append(digests, img.Digest())
	}
	c.awaitCopies(ctx, t, seen, "acme/crit", pkg, digests, "r1", "r2", "r3")
	here := []*member{lost, c.agents[0]}
	readers := startHosts(ctx, here, func(ctx context.Context, m *member, n int) error {
		_, err := m.registry(c.token).Pull(ctx, repository, images[(n+len(images)/2*slices.Index(here, m))%len(images)].Digest())
		return err
	})
	writers := startHosts(ctx, here, func(ctx context.Context, m *member, n int) error {
		img, err := image.Make(rand.Uint64()>>9, 1, 4096)
		if err != nil {
			return err
		}
		return m.registry(c.token).Push(ctx, repository, fmt.Sprintf("%s-%d", m.name, n), img)
	})
	defer readers.end()
	defer writers.end()
	readers.each(ctx, t, time.Now(), here, 3)
	writers.each(ctx, t, time.Now(), here, 2)

	dir, aside := filepath.Join(lost.node.Data, "blobs"), filepath.Join(c.dir, "aside")
	began := time.Now()
	if err := os.Rename(dir, aside); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, []byte("no directory"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.awaitHealth(ctx, t, seen, "r1", "degraded")
	readers.each(ctx, t, time.Now(), here, 5)
	writers.each(ctx, t, time.Now(), here, 3)
	if err := proc.Await(ctx, "r1 to hand its writes over", func(ctx context.Context) error {
		h, _, err := c.regionStatus(ctx, seen, "r1")
		if err == nil && (h.Kind != "blobs_lost" || !strings.HasPrefix(h.Why, "blobs: ") || len(h.Backups) == 0) {
			err = fmt.Errorf("r1 is %+v", h)
		}
		return err
	}, seen.process); err != nil {
		t.Fatal(err)
	}
	reads, at, retries := readers.outage(began, here)
	t.Logf("reads: no client waited longer than %.1f s (goal 10 s), at %s; %d retries", reads.Seconds(), at, retries)
	writes, at, retries := writers.outage(began, here)
	t.Logf("writes: no client waited longer than %.1f s, at %s; %d retries", writes.Seconds(), at, retries)
	late := pushImages(ctx, t, lost.registry(c.token), repository, 2)
	c.awaitCopies(ctx, t, seen, "acme/crit", pkg, []string{late[0].Digest(), late[1].Digest()}, "r2", "r3")

	back := time.Now()
	if err := errors.Join(os.Remove(dir), os.Rename(aside, dir)); err != nil {
		t.Fatal(err)
	}
	c.awaitHealth(ctx, t, seen, "r1", "healthy")
	t.Logf("the store is back: recorded as healthy after %.1f s", time.Since(back).Seconds())
	c.awaitCopies(ctx, t, seen, "acme/crit", pkg, append(digests, late[0].Digest(), late[1].Digest()), "r1")
	readers.each(ctx, t, back, here, 3)
	readers.end()
	writers.end()
	for _, err := range append(readers.gaveUp, writers.gaveUp...) {
		t.Errorf("given up after %v: %v", clientPatience, err)
	}
	t.Logf("\n%s", c.shoal(t, seen, "region", "status", "r1"))
}
