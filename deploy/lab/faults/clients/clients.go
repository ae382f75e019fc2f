// Package clients is the load of the fault runs: clients that publish, retag, read and
// delete over HTTP like anybody else, write down what they were told, and keep a ledger of
// what must be there at the end.
//
// Start reading at Workload.Run and client.step; ops.go has the requests, ledger.go the
// audit, pulse.go the counts a second. A client stays with one node and goes to another
// when that one does not answer. A key (history.Kind says what one is) is used by all
// clients at once, until its history is long enough; then a new key takes its place, and what
// must be there of the old one goes into the ledger.
//
// Run starts a goroutine for each client; all have ended when it returns. All else is
// called from anywhere.
package clients

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/lab/faults/history"
)

// Repositories that the clients use; whoever starts the cluster creates them, all of
// class critical: oci and generic, the last one immutable.
const (
	Images   = "acme/images"
	Files    = "acme/files"
	Releases = "acme/releases"
)

// Config says how much load there is.
type Config struct {
	Clients int
	Keys    int           // that are used at any time
	Rate    float64       // operations a second of all clients together, at most
	Timeout time.Duration // of one request
	Seed    uint64
	Token   string // credential
	// LargeBytes is the size of one in LargeEvery artifacts; others have up to 24 KiB.
	LargeBytes int64
	LargeEvery int
	Say        func(format string, args ...any) // gets what is wrong as soon as it is seen
}

// Node is a gateway that clients talk to.
type Node struct {
	Name  string
	Base  string
	HTTP  *http.Client
	Agent bool
}

// Workload is the clients and what they know.
type Workload struct {
	cfg    Config
	record *history.Recorder
	Pulse  *Pulse

	mu     sync.Mutex
	nodes  []Node
	shun   map[string]bool // nodes that get no publishes
	keys   []*key          // in use
	ledger []entry
	faults Faults
	named  int // keys so far
}

// Faults are what needs no checker to be wrong.
type Faults struct {
	Bytes   []string // wrong bytes, or versions that nobody published
	Tokens  []string // a read that does not include the write whose token it carried
	Missing []string // an acknowledged artifact was said not to be there
	Refused []string // a correct publish was refused for good
}

// maxNotes bounds each list of Faults.
const maxNotes = 200

func note(list *[]string, format string, args ...any) {
	if len(*list) < maxNotes {
		*list = append(*list, fmt.Sprintf(format, args...))
	}
}

// New returns a workload without nodes.
func New(cfg Config, record *history.Recorder) *Workload {
	w := &Workload{cfg: cfg, record: record, Pulse: newPulse(), shun: make(map[string]bool)}
	for range cfg.Keys {
		w.keys = append(w.keys, w.newKey())
	}
	return w
}

// SetNodes says which nodes there are from now on.
func (w *Workload) SetNodes(nodes []Node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nodes = append([]Node(nil), nodes...)
}

// Shun keeps publishes away from a node, or lets them come back. An operator does so before
// a server loses its disk, since a publish is acknowledged when one server has its bytes.
func (w *Workload) Shun(node string, yes bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.shun[node] = yes
}

// pick returns a node; publishing leaves out those that get none.
func (w *Workload) pick(rng *rand.Rand, publishing bool) Node {
	w.mu.Lock()
	defer w.mu.Unlock()
	for range 20 {
		n := w.nodes[rng.IntN(len(w.nodes))]
		if !publishing || !w.shun[n.Name] {
			return n
		}
	}
	return w.nodes[0]
}

func (w *Workload) shunned(name string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.shun[name]
}

// version is what a client published or tried to.
type version struct {
	digest string
	seed   uint64
	size   int64        // of a file
	image  *image.Image // of an image
	puts   int          // attempts
	acked  bool         // one of them succeeded
	// began and wrote are when the first attempt began, and when the first one that
	// succeeded ended, 0 if none has yet.
	began, wrote int64
	deletes      int  // attempts
	gone         bool // one of them succeeded
	unknown      bool // an attempt of either kind has no known outcome
}

// key is one key while it is in use.
type key struct {
	name string // in the history
	path string // in URLs: package, or image name
	kind history.Kind

	mu       sync.Mutex
	versions []version // number 1 is the first
	users    int       // operations under way
	full     bool
	unknown  bool // a write of any kind has no known outcome
}

func (w *Workload) newKey() *key {
	w.named++
	kinds := []history.Kind{history.File, history.Image, history.Image, history.File, history.Release}
	kind := kinds[w.named%len(kinds)]
	name := fmt.Sprintf("%s-%d", kind, w.named)
	return &key{name: name, path: name, kind: kind}
}

// enter picks a key for an operation; leave must follow.
func (w *Workload) enter(rng *rand.Rand) *key {
	for {
		w.mu.Lock()
		k := w.keys[rng.IntN(len(w.keys))]
		w.mu.Unlock()
		if k.enter() {
			return k
		}
	}
}

// enter begins an operation, unless the key is closed or about to be.
func (k *key) enter() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.full {
		return false
	}
	k.users++
	return true
}

// leave ends an operation. The last who leaves a full key closes it.
func (w *Workload) leave(ctx context.Context, c *client, k *key) {
	k.mu.Lock()
	k.users--
	last := k.full && k.users == 0
	k.mu.Unlock()
	if last {
		w.close(ctx, c, k)
	}
}

// add records an operation; when the key's history is long enough a new key takes its place.
func (w *Workload) add(k *key, o history.Op) {
	o.Key, o.Kind = k.name, k.kind
	long := w.record.Add(o)
	k.mu.Lock()
	if o.Outcome == history.Unknown {
		k.unknown = true
	}
	replace := long && !k.full
	k.full = k.full || long
	k.mu.Unlock()
	if !replace {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.keys {
		if w.keys[i] == k {
			w.keys[i] = w.newKey()
		}
	}
}

// close reads a key's aliases a last time, hands its history to the judge and puts into
// the ledger what must be there.
func (w *Workload) close(ctx context.Context, c *client, k *key) {
	e := entry{name: k.name, path: k.path, kind: k.kind, versions: make([]kept, 0, len(k.versions))}
	for t := range aliases(k.kind) {
		e.tags[t] = unsettled
		if k.unknown {
			continue // it may change at any time
		}
		for range 3 {
			got, mode, ok := c.read(ctx, k, t, true)
			if ok && mode == "strong" {
				e.tags[t] = int8(got)
			}
			if ok {
				break
			}
			c.move()
		}
	}
	for _, v := range k.versions {
		kv := kept{digest: v.digest, fate: open}
		switch {
		case v.acked && v.deletes == 0:
			kv.fate = there
		case v.unknown:
		case v.gone && v.puts == 1, !v.acked:
			kv.fate = gone
		}
		e.versions = append(e.versions, kv)
	}
	w.record.CloseKey(k.name)
	w.mu.Lock()
	w.ledger = append(w.ledger, e)
	w.mu.Unlock()
}

// Run lets the clients work until ctx ends.
func (w *Workload) Run(ctx context.Context) {
	var clients sync.WaitGroup
	for i := range w.cfg.Clients {
		c := w.client(i)
		clients.Go(func() { c.run(ctx) })
	}
	clients.Wait()
}

// Finish closes all keys that are in use. Nobody may work on them any more.
func (w *Workload) Finish(ctx context.Context) {
	c := w.client(w.cfg.Clients)
	w.mu.Lock()
	keys := append([]*key(nil), w.keys...)
	w.mu.Unlock()
	for _, k := range keys {
		if !k.full {
			w.close(ctx, c, k)
		}
	}
}

// Faults returns what was seen to be wrong so far.
func (w *Workload) Faults() Faults {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.faults
}

func (w *Workload) fault(pick func(*Faults) *[]string, format string, args ...any) {
	w.cfg.Say("WRONG: "+format, args...)
	w.mu.Lock()
	defer w.mu.Unlock()
	note(pick(&w.faults), format, args...)
}

// aliases returns how many aliases a kind of key has here.
func aliases(k history.Kind) int {
	if k == history.Image {
		return 3
	}
	return 1
}

// client is one of them.
type client struct {
	w    *Workload
	id   int
	rng  *rand.Rand
	node Node
	// wrote is the key of its last publish, token what that returned, version its number.
	wrote   *key
	token   string
	version uint8
}

func (w *Workload) client(id int) *client {
	c := &client{w: w, id: id, rng: rand.New(rand.NewPCG(w.cfg.Seed, uint64(id)))}
	c.move()
	return c
}

// move goes to another node.
func (c *client) move() {
	for range 4 {
		next := c.w.pick(c.rng, false)
		if next.Name != c.node.Name {
			c.node = next
			return
		}
	}
}

// run works at its share of the rate.
func (c *client) run(ctx context.Context) {
	pace := time.Duration(float64(time.Second) * float64(c.w.cfg.Clients) / c.w.cfg.Rate)
	next := time.Now().Add(time.Duration(c.rng.Int64N(int64(pace) + 1)))
	timer := time.NewTimer(time.Until(next))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		c.step(ctx)
		// Who was held up does not make up for it in a burst.
		next = next.Add(pace)
		if now := time.Now(); next.Before(now.Add(-time.Second)) {
			next = now
		}
		timer.Reset(time.Until(next))
	}
}

// step is one operation; a node that does not answer is left.
func (c *client) step(ctx context.Context) {
	if c.rng.IntN(20) == 0 {
		c.move()
	}
	if wrote := c.wrote; wrote != nil && c.rng.IntN(2) == 0 && wrote.enter() {
		c.wrote = nil
		if c.rng.IntN(2) == 0 {
			c.move()
		}
		if !c.readAfterWrite(ctx, wrote) {
			c.move()
		}
		c.w.leave(ctx, c, wrote)
		return
	}
	k := c.w.enter(c.rng)
	if !c.operate(ctx, k) {
		c.move()
	}
	c.w.leave(ctx, c, k)
}

// operate does something with the key and reports whether the node answered.
func (c *client) operate(ctx context.Context, k *key) bool {
	k.mu.Lock()
	have := len(k.versions)
	k.mu.Unlock()
	roll := c.rng.IntN(100)
	switch {
	case have == 0 || roll < 10 && have < history.MaxVersions-c.w.cfg.Clients:
		return c.publish(ctx, k)
	case roll < 14 && k.kind != history.File:
		return c.again(ctx, k, c.recent(have))
	case roll < 19:
		return c.delete(ctx, k, c.recent(have))
	case roll < 22 && k.kind == history.Image:
		return c.untag(ctx, k, c.rng.IntN(aliases(k.kind)))
	case roll < 40:
		return c.fetch(ctx, k, c.recent(have))
	case roll < 50 && k.kind == history.Image:
		return c.pullLayer(ctx, k, c.recent(have))
	default:
		_, _, ok := c.read(ctx, k, c.rng.IntN(aliases(k.kind)), c.rng.IntN(10) < 7)
		return ok
	}
}

// recent picks a version, young ones more often than old ones.
func (c *client) recent(have int) uint8 {
	if c.rng.IntN(3) > 0 {
		return uint8(have - c.rng.IntN(min(3, have)))
	}
	return uint8(1 + c.rng.IntN(have))
}

// Any reports whether there is one.
func (f Faults) Any() bool { return len(f.Bytes)+len(f.Tokens)+len(f.Missing)+len(f.Refused) > 0 }
