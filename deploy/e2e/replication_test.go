package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/proc"
)

// file is a file that was published, as the metadata has it.
type file struct {
	repository, path, digest string
}

// put publishes random bytes as a file and returns the digest.
func put(ctx context.Context, m *member, token, repository, path string, size int) (string, error) {
	body := make([]byte, size)
	r := rand.NewChaCha8([32]byte{})
	r.Seed([32]byte([]byte(fmt.Sprintf("%-32d", seed()))))
	_, _ = r.Read(body)
	res, err := m.registry(token).Do(ctx, http.MethodPut, "/generic/"+repository+"/"+path, nil, bytes.NewReader(body), int64(size), http.StatusCreated, http.StatusOK)
	if err != nil {
		return "", err
	}
	res.Body.Close()
	return image.DigestOf(body), nil
}

// api reads a document of the admin API.
func api(ctx context.Context, m *member, token, path string, v any) error {
	res, err := m.registry(token).Do(ctx, http.MethodGet, "/api/v1/"+path, nil, nil, 0, http.StatusOK)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	return json.NewDecoder(res.Body).Decode(v)
}

// lags returns by region how long after it was published a file was verified there;
// pending is true while some region has not.
func (c *cluster) lags(ctx context.Context, f file) (by map[string]time.Duration, pending bool, err error) {
	at := "repositories/" + f.repository + "/packages/" + strings.ReplaceAll(f.path, "/", "%2F") + "/versions/" + f.digest
	var version struct {
		PublishTime int64 `json:"publish_time"`
	}
	var state struct {
		Regions []struct {
			Region       string
			Pending      int
			LastVerified int64 `json:"last_verified"`
		}
	}
	if err := api(ctx, c.servers[0], c.token, at, &version); err != nil {
		return nil, false, err
	}
	if err := api(ctx, c.servers[0], c.token, at+"/replication", &state); err != nil {
		return nil, false, err
	}
	by = map[string]time.Duration{}
	for _, r := range state.Regions {
		if r.Pending > 0 {
			pending = true
			continue
		}
		by[r.Region] = max(time.Duration(r.LastVerified-version.PublishTime), 0)
	}
	return by, pending, nil
}

// awaitLags waits until files are verified everywhere and returns their lags by region.
func (c *cluster) awaitLags(ctx context.Context, t *testing.T, files []file) map[string][]time.Duration {
	t.Helper()
	all := map[string][]time.Duration{}
	for _, f := range files {
		if err := proc.Await(ctx, "the copies of "+f.path, func(ctx context.Context) error {
			by, pending, err := c.lags(ctx, f)
			if err != nil {
				return err
			}
			if pending {
				return fmt.Errorf("verified only in %v", by)
			}
			for region, lag := range by {
				all[region] = append(all[region], lag)
			}
			return nil
		}, c.servers[0].process); err != nil {
			t.Fatal(err)
		}
	}
	for _, lags := range all {
		slices.Sort(lags)
	}
	return all
}

// publishing publishes files to a repository, so many a second, until ctx ends or as
// long as it is allowed; what the server refuses with 429 it publishes later.
func (c *cluster) publishing(ctx context.Context, t *testing.T, repository, prefix string, size int, perSec float64, files *[]file, refused *int) {
	tick := time.NewTicker(time.Duration(float64(time.Second) / perSec))
	defer tick.Stop()
	var (
		group sync.WaitGroup
		mu    sync.Mutex
		slots = make(chan struct{}, 16)
	)
	defer group.Wait()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		select {
		case slots <- struct{}{}:
		default:
			continue // The server does not take more than that.
		}
		group.Go(func() {
			defer func() { <-slots }()
			path := fmt.Sprintf("%s/%d", prefix, i)
			digest, err := put(context.WithoutCancel(ctx), c.servers[0], c.token, repository, path, size)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				*files = append(*files, file{repository, path, digest})
			case image.StatusOf(err) == http.StatusTooManyRequests:
				*refused++
			default:
				t.Errorf("publish %s/%s: %v", repository, path, err)
			}
		})
	}
}

func at(lags []time.Duration, part float64) time.Duration {
	if len(lags) == 0 {
		return 0
	}
	return lags[int(part*float64(len(lags)-1))].Round(time.Millisecond)
}

// repo makes a tenant and a repository of files.
func (c *cluster) repo(t *testing.T, name string, flags ...string) {
	t.Helper()
	tenant, _, _ := strings.Cut(name, "/")
	c.shoal(t, c.servers[0], "tenant", "create", tenant)
	c.shoal(t, c.servers[0], append([]string{"repo", "create", name, "--format", "generic", "--home", "r1"}, flags...)...)
}

// The lag of each class by region while three publishers work, and what the command
// line says of it; then a region that is new fills up, and a cold file that is read in
// another region is kept there.
func TestReplicationLagAndBackfill(t *testing.T) {
	c := startCluster(t, 3, 0)
	ctx := limit(t, 6*time.Minute)
	classes := []string{"critical", "standard", "cold"}
	published := map[string]*[]file{}
	load, end := context.WithTimeout(ctx, 20*time.Second)
	defer end()
	var group sync.WaitGroup
	var refused int
	for _, class := range classes {
		c.repo(t, "acme/"+class, "--class", class, "--second", "r2")
		files := new([]file)
		published[class] = files
		group.Go(func() { c.publishing(load, t, "acme/"+class, "files", 256<<10, 5, files, &refused) })
	}
	group.Wait()
	t.Logf("while they published:\n%s", c.shoal(t, c.servers[1], "replication", "status"))
	for _, class := range classes {
		lags := c.awaitLags(ctx, t, *published[class])
		for _, region := range []string{"r1", "r2", "r3"} {
			if l := lags[region]; len(l) > 0 {
				t.Logf("%-8s %s: %d files of 256 KiB, lag median %v, 95th percentile %v, longest %v", class, region, len(l), at(l, 0.5), at(l, 0.95), at(l, 1))
			}
		}
		if want := map[string]int{"critical": 3, "standard": 2, "cold": 1}[class]; len(lags) != want {
			t.Errorf("%s is in %d regions, want %d", class, len(lags), want)
		}
	}
	if refused > 0 {
		t.Errorf("%d files were refused", refused)
	}
	// Each server knows it when it has applied what the others have.
	if err := proc.Await(ctx, "no lag in the metric", func(ctx context.Context) error {
		v, err := c.servers[1].metric(ctx, `shoal_replication_lag_seconds{class="critical",region="r3"}`)
		if err == nil && v != 0 {
			err = fmt.Errorf("it is %v", v)
		}
		return err
	}, c.servers[1].process); err != nil {
		t.Error(err)
	}

	// A cold file is read where nobody keeps it.
	cold := (*published["cold"])[0]
	res, err := c.servers[2].registry(c.token).Do(ctx, http.MethodGet, "/generic/"+cold.repository+"/"+cold.path, nil, nil, 0, http.StatusOK)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if err := proc.Await(ctx, "a copy of the cold file in r3", func(ctx context.Context) error {
		by, _, err := c.lags(ctx, cold)
		if _, here := by["r3"]; err == nil && !here {
			err = fmt.Errorf("it is in %v", by)
		}
		return err
	}, c.servers[2].process); err != nil {
		t.Fatal(err)
	}

	// A new region.
	began := time.Now()
	m := c.member("server", "server-r4", "r4")
	m.node.Join, m.node.Token = "https://"+c.servers[0].gateway(), c.joinToken(t, "server", "r4")
	c.servers = append(c.servers, m)
	c.launch(t, m)
	owed := len(*published["critical"])
	last := ""
	if err := proc.Await(ctx, "the back-fill of r4", func(ctx context.Context) error {
		var s struct {
			Classes []struct {
				Region, Class string
				DemandedBlobs int     `json:"demanded_blobs"`
				VerifiedBlobs int     `json:"verified_blobs"`
				Progress      float64 `json:"progress"`
			}
			Settlement *struct {
				Phase string
				Part  float64
			}
		}
		if err := api(ctx, c.servers[0], c.token, "replication", &s); err != nil {
			return err
		}
		now := "nothing is demanded yet"
		if s.Settlement != nil {
			now = fmt.Sprintf("%s are settled to %.0f %%; ", s.Settlement.Phase, 100*s.Settlement.Part)
		}
		for _, class := range s.Classes {
			if class.Region == "r4" && class.Class == "critical" {
				now = fmt.Sprintf("%d of %d files, %.0f %% of the bytes", class.VerifiedBlobs, class.DemandedBlobs, 100*class.Progress)
				if class.DemandedBlobs == owed && class.VerifiedBlobs == owed && s.Settlement == nil {
					t.Logf("back-fill of a new region after %v: %s", time.Since(began).Round(100*time.Millisecond), now)
					return nil
				}
			}
		}
		if now != last {
			t.Logf("back-fill of a new region after %v: %s", time.Since(began).Round(100*time.Millisecond), now)
			last = now
		}
		return fmt.Errorf("%s, of %d files", now, owed)
	}, m.process); err != nil {
		t.Fatal(err)
	}
}

// A tenant at ten times its share of the link between two regions, and what another
// notices. At its share it publishes the rest where nothing is to be replicated, so that
// clients and servers have the same to do.
func TestReplicationWithANoisyTenant(t *testing.T) {
	c := startCluster(t, 2, 0, "--wan-down", "4MB/s")
	ctx := limit(t, 6*time.Minute)
	for _, tenant := range []string{"calm", "noisy"} {
		c.repo(t, tenant+"/files", "--second", "r2")
	}
	const (
		phase = 15 * time.Second
		share = 8.0 // files of 256 KiB a second: half of the link
	)
	c.repo(t, "noisy/local", "--class", "cold")
	measure := func(name string, times float64) []time.Duration {
		var calm, noisy []file
		var refused int
		load, end := context.WithTimeout(ctx, phase)
		defer end()
		var group sync.WaitGroup
		group.Go(func() {
			c.publishing(load, t, "noisy/files", fmt.Sprint(times), 256<<10, share*times, &noisy, &refused)
		})
		if times < 10 {
			var local []file
			group.Go(func() {
				c.publishing(load, t, "noisy/local", fmt.Sprint(times), 256<<10, share*(10-times), &local, &refused)
			})
		}
		group.Go(func() { c.publishing(load, t, "calm/files", fmt.Sprint(times), 256<<10, 3, &calm, &refused) })
		group.Wait()
		lags := c.awaitLags(ctx, t, calm)["r2"]
		var sum time.Duration
		for _, l := range lags {
			sum += l
		}
		t.Logf("the noisy tenant published %d files of 256 KiB to replicate in %v (%s): lag of %d files of the calm one: mean %v, median %v, 95th percentile %v, longest %v",
			len(noisy), phase, name, len(lags), (sum / time.Duration(max(len(lags), 1))).Round(time.Millisecond), at(lags, 0.5), at(lags, 0.95), at(lags, 1))
		return lags
	}
	measure("at its share", 1)
	measure("at ten times its share", 10)
	t.Logf("then:\n%s", c.shoal(t, c.servers[0], "replication", "status"))
}

// A repository that wants two copies is answered when they are there, and says so when
// they cannot be.
func TestTwoCopiesBeforeTheAnswer(t *testing.T) {
	c := startCluster(t, 3, 0)
	ctx := limit(t, 4*time.Minute)
	c.repo(t, "acme/safe", "--second", "r2", "--copies-before-ack", "2")
	verified := func(path, digest string) {
		t.Helper()
		// Which two is not promised: while r2 is out r3 stands in for it, and may come first.
		by, _, err := c.lags(ctx, file{"acme/safe", path, digest})
		if err != nil || len(by) < 2 {
			t.Errorf("%s is acknowledged and verified in %v: %v", path, by, err)
		}
	}
	for i := range 5 {
		path := fmt.Sprint("with-both/", i)
		digest, err := put(ctx, c.servers[0], c.token, "acme/safe", path, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		verified(path, digest)
	}
	c.servers[1].process.Kill()
	began := time.Now()
	body := []byte("what waits for its second copy")
	path := "/generic/acme/safe/alone"
	put := func() (*http.Response, error) {
		return c.servers[0].registry(c.token).Do(ctx, http.MethodPut, path, nil, bytes.NewReader(body), int64(len(body)), http.StatusCreated, http.StatusServiceUnavailable)
	}
	res, err := put()
	if err != nil {
		t.Fatal(err)
	}
	var answer bytes.Buffer
	_, _ = answer.ReadFrom(res.Body)
	res.Body.Close()
	t.Logf("without its second region, after %v: %d, Retry-After %s: %s", time.Since(began).Round(time.Second), res.StatusCode, res.Header.Get("Retry-After"), answer.String())
	if res.StatusCode == http.StatusServiceUnavailable && res.Header.Get("Retry-After") == "" {
		t.Error("it does not say when to try again")
	}
	if res.StatusCode == http.StatusServiceUnavailable {
		if _, err := c.servers[2].registry(c.token).Do(ctx, http.MethodGet, path, nil, nil, 0, http.StatusNotFound); err != nil {
			t.Errorf("what was not acknowledged: %v", err)
		}
	}
	c.servers[1].again()
	c.launch(t, c.servers[1])
	if err := proc.Await(ctx, "the same push to be acknowledged", func(context.Context) error {
		res, err := put()
		if err != nil {
			return err
		}
		res.Body.Close()
		if res.StatusCode != http.StatusCreated {
			return fmt.Errorf("status %d", res.StatusCode)
		}
		return nil
	}, c.servers[1].process); err != nil {
		t.Fatal(err)
	}
	verified("alone", image.DigestOf(body))
}

// A tenant that publishes faster than its blobs are replicated is held back, and nobody
// else; when the link is free again it goes on.
func TestProducersAreHeldBack(t *testing.T) {
	c := startCluster(t, 2, 0, "--wan-down", "1MB/s", "--backlog-blobs", "5")
	ctx := limit(t, 4*time.Minute)
	for _, tenant := range []string{"fast", "other"} {
		c.repo(t, tenant+"/files", "--second", "r2")
	}
	var err error
	n := 0
	for ; err == nil && n < 1000; n++ {
		_, err = put(ctx, c.servers[0], c.token, "fast/files", fmt.Sprint("f/", n), 2<<20)
	}
	if image.StatusOf(err) != http.StatusTooManyRequests {
		t.Fatalf("after %d files: %v", n, err)
	}
	t.Logf("after %d files of 2 MiB over a link of 1 MB/s: %v", n, err)
	if _, err := put(ctx, c.servers[0], c.token, "other/files", "f", 1<<10); err != nil {
		t.Errorf("another tenant: %v", err)
	}
	for _, s := range c.servers {
		c.shoal(t, s, "limit", "set", "--wan-down", "none", "--ops", s.node.Host+":"+proc.OpsPort)
	}
	if err := proc.Await(ctx, "the tenant to go on", func(ctx context.Context) error {
		_, err := put(ctx, c.servers[0], c.token, "fast/files", "later", 1<<10)
		return err
	}, c.servers[1].process); err != nil {
		t.Fatal(err)
	}
}
