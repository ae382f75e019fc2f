package swarm_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/transfer/limit"
	"github.com/shoal-registry/shoal/transfer/swarm"
)

func budgets(t testing.TB, l limit.Limits) *limit.Budgets {
	t.Helper()
	b, err := limit.New(limit.Config{Limits: l})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func bounded(b *limit.Budgets) settle { return func(c *swarm.Config) { c.Budgets = b } }

func acme(c *swarm.Config) { c.TenantOf = func([]byte) string { return "acme" } }

func zone(name string) settle { return func(c *swarm.Config) { c.Self.Zone = name } }

// passed sums what a node's budgets let through, by labels that all have to be there.
func passed(t *testing.T, b *limit.Budgets, labels ...string) (n int64) {
	t.Helper()
	for _, c := range b.Counts() {
		name := c.Direction.String() + " " + c.Class.String() + " " + c.Place
		have := 0
		for _, l := range labels {
			if strings.Contains(" "+name+" ", " "+l+" ") {
				have++
			}
		}
		if have == len(labels) {
			n += c.Bytes
		}
	}
	return n
}

// A cap holds on real sockets, at whichever end it is and whatever it is of: a blob takes
// at least as long as the cap says. (A busy machine only makes it longer.)
func TestCapsHoldOnSockets(t *testing.T) {
	const rate = 4_000_000
	content := random(2 << 20)
	for name, c := range map[string]struct {
		up, down  limit.Limits
		seed, own []settle
		options   swarm.FetchOptions
		labels    []string
	}{
		"host up":   {up: limit.Limits{Up: rate}, labels: []string{"up", "urgent", "zone"}},
		"host down": {down: limit.Limits{Down: rate}, labels: []string{"down", "urgent", "zone"}},
		"zone up": {
			up: limit.Limits{ZoneUp: rate}, seed: []settle{zone("a")}, own: []settle{zone("b")},
			labels: []string{"up", "cross_zone"},
		},
		"zone down": {
			down: limit.Limits{ZoneDown: rate}, seed: []settle{zone("a")}, own: []settle{zone("b")},
			labels: []string{"down", "cross_zone"},
		},
		"wan up":   {up: limit.Limits{WANUp: rate}, own: []settle{region("us"), server}, labels: []string{"up", "wan"}},
		"wan down": {down: limit.Limits{WANDown: rate}, own: []settle{region("us"), server}, labels: []string{"down", "wan"}},
		"tenant up": {
			up: limit.Limits{Tenants: map[string]int64{"acme": rate}}, seed: []settle{acme}, labels: []string{"up"},
		},
		"tenant down": {
			down: limit.Limits{Tenants: map[string]int64{"acme": rate}}, options: swarm.FetchOptions{Tenant: "acme"}, labels: []string{"down"},
		},
		"class up": {
			up: limit.Limits{Classes: map[limit.Class]int64{limit.Bulk: rate}}, options: swarm.FetchOptions{Class: limit.Bulk},
			labels: []string{"up", "bulk"},
		},
		"class down": {
			down: limit.Limits{Classes: map[limit.Class]int64{limit.Prewarm: rate}}, options: swarm.FetchOptions{Class: limit.Prewarm},
			labels: []string{"down", "prewarm"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up, down := budgets(t, c.up), budgets(t, c.down)
			w := newTown(t)
			seed := w.add(append([]settle{server, bounded(up)}, c.seed...)...)
			root := w.put(seed, content)
			agent := w.add(append([]settle{bounded(down)}, c.own...)...)
			began := time.Now()
			session, err := agent.Fetch(within(t), root, c.options)
			if err != nil {
				t.Fatal(err)
			}
			defer session.Close()
			got, err := read(within(t), session, 0, -1)
			took := time.Since(began)
			if err != nil || !bytes.Equal(got, content) {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			b := up
			if c.labels[0] == "down" {
				b = down
			}
			counted := passed(t, b, c.labels...)
			if counted < int64(len(content)) {
				t.Errorf("of %d bytes %d were counted as %v", len(content), counted, c.labels)
			}
			if most := 1.05 * rate * max(1, took.Seconds()); float64(counted) > most && took > time.Second {
				t.Errorf("%d bytes in %v at %d/s", counted, took, rate)
			}
			if least := time.Duration(float64(len(content)-rate*4/100) / rate * float64(time.Second)); took < least {
				t.Errorf("%d bytes came in %v at %d/s", len(content), took, rate)
			}
		})
	}
}

// A limit that is lifted lets go of what waits.
func TestLimitsChangeUnderATransfer(t *testing.T) {
	up := budgets(t, limit.Limits{Up: limit.MinRate})
	w := newTown(t)
	seed := w.add(server, bounded(up))
	root := w.put(seed, random(100<<20)) // more than anybody waits for
	agent := w.add()
	session, err := agent.Fetch(within(t), root, swarm.FetchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	if err := session.Wait(within(t), 0); err != nil {
		t.Fatal(err)
	}
	if err := up.Set(limit.Limits{}); err != nil {
		t.Fatal(err)
	}
	if _, err := read(within(t), session, 0, -1); err != nil {
		t.Error(err)
	}
}

// A blob that is being brought before anybody asks, slowly, comes at once when a client
// reads it: both ends take it for urgent from then on.
func TestAReaderMakesAFetchUrgent(t *testing.T) {
	slow := limit.Limits{Classes: map[limit.Class]int64{limit.Prewarm: limit.MinRate}}
	up, down := budgets(t, slow), budgets(t, slow)
	w := newTown(t)
	seed := w.add(server, bounded(up))
	content := random(24 << 20) // 24 s in its class
	root := w.put(seed, content)
	agent := w.add(bounded(down))
	early, err := agent.Fetch(within(t), root, swarm.FetchOptions{Class: limit.Prewarm})
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()
	if err := early.Wait(within(t), 0); err != nil {
		t.Fatal(err)
	}
	if n := passed(t, up, "urgent") + passed(t, down, "urgent"); n > 0 {
		t.Errorf("%d bytes passed as urgent", n)
	}
	reader, err := agent.Fetch(within(t), root, swarm.FetchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if got, err := read(within(t), reader, 0, -1); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	for end, b := range map[string]*limit.Budgets{"seed": up, "agent": down} {
		if urgent := passed(t, b, "urgent"); urgent < 12<<20 {
			t.Errorf("%s: %d bytes passed as urgent, %d before", end, urgent, passed(t, b, "prewarm"))
		}
	}
}

// Chunks of a class that a budget holds up leave memory and streams to readers.
func TestHeldUpChunksLeaveRoom(t *testing.T) {
	down := budgets(t, limit.Limits{Classes: map[limit.Class]int64{limit.Prewarm: limit.MinRate}})
	w := newTown(t)
	seed := w.add(server)
	background, wanted := w.put(seed, random(300*chunk.MinBytes)), w.put(seed, random(8*chunk.MinBytes))
	agent := w.add(bounded(down), limits(swarm.Limits{BufferBytes: 8 << 20}))
	held, err := agent.Fetch(within(t), background, swarm.FetchOptions{Class: limit.Prewarm})
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if err := held.Wait(within(t), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := agent.fetch(within(t), wanted); err != nil {
		t.Fatal(err)
	}
	select {
	case <-held.Done():
		t.Error("75 MB came as pre-warm at 1 MB/s before 2 MB for a reader")
	default:
	}
}

// What is pre-warmed begins slowly and gains while round trips are short; what a client
// reads is not held back.
func TestPrewarmYields(t *testing.T) {
	down := budgets(t, limit.Limits{})
	w := newTown(t)
	seed := w.add(server)
	content := random(4 << 20)
	root := w.put(seed, content)
	agent := w.add(bounded(down), func(c *swarm.Config) { c.Yield = true })
	session, err := agent.Fetch(within(t), root, swarm.FetchOptions{Class: limit.Prewarm})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	began := time.Now()
	if got, err := read(within(t), session, 0, -1); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	// It doubles each half second at most.
	if took := time.Since(began); took < 500*time.Millisecond {
		t.Errorf("4 MiB came in %v, from 1 MB/s on", took)
	}
	if down.Bounds(limit.Flow{Direction: limit.Down}) || !down.Bounds(limit.Flow{Direction: limit.Down, Class: limit.Prewarm}) {
		t.Error("another class is bounded than what is pre-warmed")
	}
}
