package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/lab/wave"
	"github.com/shoal-registry/shoal/deploy/proc"
)

// ledger is what pushers were told, against which a crash is judged.
type ledger struct {
	mu           sync.Mutex
	acknowledged map[string]string // tag -> digest of the manifest
	tried        map[string]string // the same of every push that began
}

func newLedger() *ledger {
	return &ledger{acknowledged: make(map[string]string), tried: make(map[string]string)}
}

func (l *ledger) try(tag, digest string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tried[tag] = digest
}

func (l *ledger) acknowledge(tag string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acknowledged[tag] = l.tried[tag]
}

func (l *ledger) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acknowledged)
}

// audit checks a registry against the ledger: what was acknowledged is there, whole
// and with the right bytes; what is listed beyond that was at least tried, and is
// whole too: no visible half.
func (l *ledger) audit(ctx context.Context, c *image.Client, repository string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	tags, err := listTags(ctx, c, repository)
	if err != nil {
		return err
	}
	listed := make(map[string]bool)
	for _, tag := range tags {
		listed[tag] = true
		want, ok := l.tried[tag]
		if !ok {
			return fmt.Errorf("tag %s is listed, which nobody pushed", tag)
		}
		p, err := c.Pull(ctx, repository, tag)
		if err != nil {
			return fmt.Errorf("tag %s is visible but not whole: %w", tag, err)
		}
		if got := image.DigestOf(p.Manifest); got != want {
			return fmt.Errorf("tag %s is %s, pushed was %s", tag, got, want)
		}
	}
	for tag := range l.acknowledged {
		if !listed[tag] {
			return fmt.Errorf("tag %s was acknowledged and is gone", tag)
		}
	}
	return nil
}

// listTags reads all pages of a tags list, with all that was acknowledged before: without
// that being asked for a list may be 2 s old.
func listTags(ctx context.Context, c *image.Client, repository string) ([]string, error) {
	var all []string
	for path := "/v2/" + repository + "/tags/list"; path != ""; {
		response, err := c.Do(ctx, http.MethodGet, path, http.Header{"Shoal-Mode": {"strong"}}, nil, 0, http.StatusOK)
		if err != nil {
			return nil, err
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil {
			return nil, err
		}
		var list struct{ Tags []string }
		if err := json.Unmarshal(body, &list); err != nil {
			return nil, err
		}
		all = append(all, list.Tags...)
		path = ""
		if link := response.Header.Get("Link"); strings.Contains(link, `rel="next"`) {
			path = link[strings.Index(link, "<")+1 : strings.Index(link, ">")]
		}
	}
	return all, nil
}

// leader waits until a server other than dead says that it leads, and returns it.
func (c *cluster) leader(ctx context.Context, t *testing.T, dead *member) *member {
	t.Helper()
	var leader *member
	var alive []*proc.Process
	for _, s := range c.servers {
		if s != dead {
			alive = append(alive, s.process)
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("a minute without a leader"))
	defer cancel()
	if err := proc.Await(ctx, "a leader", func(ctx context.Context) error {
		for _, s := range c.servers {
			if s == dead {
				continue
			}
			if leads, err := s.metric(ctx, "shoal_raft_leading"); err == nil && leads == 1 {
				leader = s
				return nil
			}
		}
		return errors.New("no server leads")
	}, alive...); err != nil {
		t.Fatal(err)
	}
	return leader
}

// pushers push tiny images without end, each new image until somebody acknowledges it,
// and go on at the next registry when one fails, as a CI job that retries does.
type pushers struct {
	ledger  *ledger
	retries atomic.Int64
	pushed  chan struct{} // gets a value at an acknowledgement, when someone listens
	stop    context.CancelFunc
	ended   sync.WaitGroup
	errs    chan error
}

func startPushers(ctx context.Context, width int, l *ledger, repository, prefix string, registries ...*image.Client) *pushers {
	ctx, stop := context.WithCancel(ctx)
	p := &pushers{ledger: l, pushed: make(chan struct{}), stop: stop, errs: make(chan error, width)}
	for w := range width {
		p.ended.Add(1)
		go func() {
			defer p.ended.Done()
			p.errs <- p.run(ctx, w, repository, prefix, registries)
		}()
	}
	return p
}

func (p *pushers) run(ctx context.Context, w int, repository, prefix string, registries []*image.Client) error {
	at := w
	for n := 0; ctx.Err() == nil; n++ {
		img, err := image.Make(seed(), 1, 2048)
		if err != nil {
			return err
		}
		tag := fmt.Sprintf("%s-w%d-%d", prefix, w, n)
		p.ledger.try(tag, img.Digest())
		for {
			attempt, cancel := context.WithTimeout(ctx, 10*time.Second)
			err := registries[at%len(registries)].Push(attempt, repository, tag, img)
			cancel()
			if err == nil {
				p.ledger.acknowledge(tag)
				select {
				case p.pushed <- struct{}{}:
				default:
				}
				break
			}
			if ctx.Err() != nil {
				return nil
			}
			// A registry may be away, and say so; it may not refuse what is right.
			if status := image.StatusOf(err); status >= 400 && status < 500 && status != http.StatusNotFound && status != http.StatusTooManyRequests {
				return fmt.Errorf("push of %s refused: %w", tag, err)
			}
			p.retries.Add(1)
			at++
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond): // the client's own back-off
			}
		}
	}
	return nil
}

// wait returns when a push has been acknowledged from now on.
func (p *pushers) wait(ctx context.Context) error {
	select {
	case <-p.pushed:
		return nil
	case err := <-p.errs:
		p.errs <- err
		return fmt.Errorf("a pusher ended: %w", err)
	case <-ctx.Done():
		return fmt.Errorf("no push acknowledged: %w", context.Cause(ctx))
	}
}

func (p *pushers) close(t *testing.T) {
	t.Helper()
	p.stop()
	p.ended.Wait()
	close(p.errs)
	for err := range p.errs {
		if err != nil {
			t.Error(err)
		}
	}
}

// kill -9 of a lone server in the middle of pushes, again and again.
func TestKillASingleServer(t *testing.T) {
	const kills = 12
	d := startDev(t, "")
	ctx := limit(t, 8*time.Minute)
	const repository = "acme/crash/image"
	l := newLedger()
	for i := range kills {
		p := startPushers(ctx, 3, l, repository, fmt.Sprintf("k%d", i), registry(d.Servers[0], ""))
		for range 4 + i%3 {
			if err := p.wait(ctx); err != nil {
				t.Fatal(err)
			}
		}
		d.process.Kill()
		p.close(t)
		d.start(t)
		if err := l.audit(ctx, registry(d.Servers[0], ""), repository); err != nil {
			t.Fatalf("after kill %d: %v", i+1, err)
		}
	}
	t.Logf("%d kills, %d acknowledged pushes, none missing", kills, l.count())
}

// kill -9 of the leader of three servers, at least 50 times, while clients push and
// retry: another leads, and nothing acknowledged is missing anywhere.
func TestKillTheLeader(t *testing.T) {
	kills := 50
	if full {
		kills = 200
	}
	c := startCluster(t, 3, 0)
	ctx := limit(t, time.Duration(kills)*30*time.Second)
	c.createRepo(t, "crash", "--class", "critical")
	const repository = "acme/crash/image"
	var registries []*image.Client
	for _, s := range c.servers {
		registries = append(registries, s.registry(c.token))
	}
	l := newLedger()
	p := startPushers(ctx, 3, l, repository, "k", registries...)
	defer p.stop()
	var failovers []float64
	for i := range kills {
		if err := p.wait(ctx); err != nil {
			t.Fatal(err)
		}
		leader := c.leader(ctx, t, nil)
		leader.process.Kill()
		start := time.Now()
		// An acknowledgement may have been on its way: the failover is over when
		// somebody else leads and a push has been acknowledged since.
		c.leader(ctx, t, leader)
		if err := p.wait(ctx); err != nil {
			t.Fatalf("after kill %d of %s: %v", i+1, leader.name, err)
		}
		failovers = append(failovers, time.Since(start).Seconds())
		leader.again()
		c.launch(t, leader)
		if (i+1)%5 == 0 {
			t.Logf("%d kills, %d acknowledged, %d retries", i+1, l.count(), p.retries.Load())
		}
	}
	p.close(t)
	for _, s := range c.servers {
		if err := l.audit(ctx, s.registry(c.token), repository); err != nil {
			t.Errorf("%s: %v", s.name, err)
		}
	}
	slices.Sort(failovers)
	t.Logf("%d kills of the leader, %d acknowledged pushes, none missing; failover median %.2f s, 90 %% %.2f s, longest %.2f s (aim: 5 s)",
		kills, l.count(), wave.Quantile(failovers, 0.5), wave.Quantile(failovers, 0.9), failovers[len(failovers)-1])
}
