package wave

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/wait"
)

// DeskConfig is what a Desk needs; Plans to Leads are required.
type DeskConfig struct {
	Plans   Plans
	Arbiter Arbiter
	// Node finds a node of the roster, Agents lists all agents.
	Node   func(meta.NodeID) (meta.Node, bool)
	Agents func() []meta.Node
	// Leads says that this server is the one that ends waves.
	Leads func() bool
	// Log is silent when nil, Metrics unregistered when nil.
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

const (
	// gather is how long what hosts say is gathered for one command.
	gather = 100 * time.Millisecond
	// maxAsking bounds the hosts of a wave that wait at one server; more are told to
	// come back.
	maxAsking = 16_384
	// reachTime is how long a host waits for a server to know what the host has heard
	// of; then the next server is asked.
	reachTime = 5 * time.Second
	// comeBack is when a host that was not let in to wait tries again.
	comeBack = 5 * time.Second
	// maxSeats bounds the hosts of a wave that a server remembers.
	maxSeats = 1 << 17
	// leadEvery is how often the leader looks whether waves are done, tidyEvery how
	// often it takes back leases and looks at each host, forgetEvery how often it drops
	// what was over for keepOver.
	leadEvery   = 2 * time.Second
	tidyEvery   = 20 * time.Second
	forgetEvery = time.Hour
	keepOver    = 30 * 24 * time.Hour
	// commands bounds the waves whose commands a server has under way.
	commands = 8
)

// Desk is a server's side of waves. It is safe for concurrent use.
type Desk struct {
	cfg     DeskConfig
	log     *slog.Logger
	metrics deskMetrics
	changed chan struct{} // holds a token when the open waves may have changed
	work    chan struct{} // holds a token when a line has something to do
	read    sync.Mutex    // held while the open waves are read

	mu    sync.Mutex
	lines map[string]*line
	index uint64 // at which the open waves were read; 0 before the first time
}

// line is an open wave with the hosts that stand before the desk. Desk.mu guards it.
type line struct {
	wave   meta.Wave // as last read
	seats  map[meta.NodeID]*seat
	asking []*ticket // to be admitted
	saying []*ticket // to be recorded
	busy   bool      // a goroutine works on it
	// When the arbiter was last asked though there was no room, leases were taken back,
	// and all hosts were looked at.
	probed, tidied, looked time.Time
}

// seat is what was heard lately of a host that has not settled.
type seat struct {
	region       meta.RegionName
	state        meta.HostState
	bytes, total int64
	asked        time.Time // since when it waits: its place in the queue
	heard        time.Time
	renewed      time.Time // when the command was sent that its lease is of
}

// ticket is a host's wish, of one call of Sync.
type ticket struct {
	word  meta.WaveHost // State is waiting to be admitted
	asked time.Time
	done  bool
	gone  bool          // nobody waits for it any more
	tell  chan struct{} // of the call; holds a token when a ticket is done
}

type deskMetrics struct {
	waiting  prometheus.Gauge
	commands *prometheus.CounterVec
	refused  prometheus.Counter
}

// NewDesk returns a Desk.
func NewDesk(cfg DeskConfig) (*Desk, error) {
	if cfg.Plans == nil || cfg.Arbiter == nil || cfg.Node == nil || cfg.Agents == nil || cfg.Leads == nil {
		return nil, fmt.Errorf("wave: Plans, Arbiter, Node, Agents and Leads are required: %w", meta.ErrInvalid)
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	f := promauto.With(cfg.Metrics)
	return &Desk{
		cfg: cfg, log: log, lines: make(map[string]*line),
		changed: make(chan struct{}, 1), work: make(chan struct{}, 1),
		metrics: deskMetrics{
			waiting: f.NewGauge(prometheus.GaugeOpts{
				Name: "shoal_wave_waiting_hosts",
				Help: "Hosts that wait at this server to be admitted to a wave.",
			}),
			commands: f.NewCounterVec(prometheus.CounterOpts{
				Name: "shoal_wave_commands_total",
				Help: "Commands about waves that this server sent, by what they do (admit, report, end) and result (ok, conflict, error).",
			}, []string{"command", "result"}),
			refused: f.NewCounter(prometheus.CounterOpts{
				Name: "shoal_wave_refused_hosts_total",
				Help: "Hosts told to come back because too many wait at this server for a wave.",
			}),
		},
	}, nil
}

// Run works until ctx ends.
func (d *Desk) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.watch(ctx) })
	group.Go(func() error { return d.reread(ctx) })
	group.Go(func() error { return d.serve(ctx) })
	group.Go(func() error { return d.lead(ctx) })
	return group.Wait()
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // the token that is there will do
	}
}

func (d *Desk) watch(ctx context.Context) error {
	for ctx.Err() == nil {
		err := d.cfg.Plans.Watch(ctx, func() { poke(d.changed) })
		poke(d.changed) // what happened until the next watch is not heard of
		if ctx.Err() == nil {
			d.log.Warn("following the waves failed, trying again", "error", err)
			wait.For(ctx, time.Second)
		}
	}
	return nil
}

func (d *Desk) reread(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.changed:
		}
		for d.refresh(ctx, 0) != nil && wait.For(ctx, time.Second) {
		}
	}
}

// reach reads the open waves as of a log index or later. How far the log is a host
// may have made up: each waits by itself, and not for long.
func (d *Desk) reach(ctx context.Context, index uint64) error {
	limited, cancel := context.WithTimeout(ctx, reachTime)
	defer cancel()
	switch err := d.cfg.Plans.Reach(limited, index); {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case limited.Err() != nil:
		return fmt.Errorf("know of waves up to log index %d: %w", index, &meta.UnavailableError{Reason: "behind", RetryAfter: time.Second})
	case err != nil:
		return fmt.Errorf("know of waves up to log index %d: %w", index, err)
	}
	return d.refresh(ctx, index)
}

// refresh reads the open waves, unless they are known as of index or later; 0 reads
// in any case.
func (d *Desk) refresh(ctx context.Context, known uint64) error {
	d.read.Lock()
	defer d.read.Unlock()
	if known > 0 && d.seen() >= known {
		return nil // another call has just read it
	}
	waves, index, err := d.cfg.Plans.Open(ctx)
	if err != nil {
		return fmt.Errorf("read the open waves: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	open := make(map[string]bool, len(waves))
	for _, w := range waves {
		open[w.ID] = true
		if l := d.lines[w.ID]; l != nil {
			l.wave = w
		} else {
			d.lines[w.ID] = &line{wave: w, seats: make(map[meta.NodeID]*seat)}
		}
	}
	for id, l := range d.lines {
		if !open[id] {
			// Who stands there learns that it is over.
			for _, t := range slices.Concat(l.asking, l.saying) {
				t.finish()
			}
			delete(d.lines, id)
		}
	}
	d.index = max(d.index, index)
	d.count()
	return nil
}

func (d *Desk) seen() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.index
}

// count sets the gauge; it holds mu.
func (d *Desk) count() {
	n := 0
	for _, l := range d.lines {
		n += len(l.asking)
	}
	d.metrics.waiting.Set(float64(n))
}

func (t *ticket) finish() {
	t.done = true
	poke(t.tell)
}

// Sync takes what a host says and returns what it is to do, as of said.After or
// later. It answers when what the host reported is recorded, and then, when it waits
// to be admitted somewhere, as soon as it is or wait has passed.
//
// Errors: meta.ErrNotFound for a host that is not in the roster; meta.ErrInvalid for
// what no host says; meta.ErrUnavailable; of ctx.
func (d *Desk) Sync(ctx context.Context, node meta.NodeID, said meta.WaveWord, wait time.Duration) (meta.WaveOrders, error) {
	n, ok := d.cfg.Node(node)
	if !ok {
		return meta.WaveOrders{}, fmt.Errorf("host %s: %w", node, meta.ErrNotFound)
	}
	for _, p := range said.Parts {
		if err := check(p); err != nil {
			return meta.WaveOrders{}, fmt.Errorf("host %s: %w", node, err)
		}
	}
	if seen := d.seen(); seen == 0 || said.After > seen {
		if err := d.reach(ctx, max(said.After, 1)); err != nil {
			return meta.WaveOrders{}, err
		}
	}
	c := &visit{desk: d, node: n, parts: make(map[string]meta.WavePart, len(said.Parts)), tell: make(chan struct{}, 1)}
	for _, p := range said.Parts {
		c.parts[p.Wave] = p
	}
	defer c.leave()
	for _, id := range d.matching(n) {
		if err := c.enter(ctx, id); err != nil {
			return meta.WaveOrders{}, err
		}
	}
	if c.works {
		wait = min(wait, d.paced())
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	timeout := false
	for !c.ready(timeout) {
		select {
		case <-c.tell:
		case <-timer.C:
			timeout = true
		case <-ctx.Done():
			return meta.WaveOrders{}, context.Cause(ctx)
		}
	}
	return c.orders(ctx)
}

// matching lists the open waves that are for a node, in the order of their ids.
func (d *Desk) matching(n meta.Node) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var ids []string
	for id, l := range d.lines {
		if l.wave.Match(n) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// visit is one call of Sync.
type visit struct {
	desk  *Desk
	node  meta.Node
	parts map[string]meta.WavePart
	tell  chan struct{}

	words, asks []*ticket
	works       bool // the host fetches, and is to be heard again soon
	full        bool // it was not let in to wait
}

// enter hears what the host says of a wave, and takes up what has to be decided.
func (c *visit) enter(ctx context.Context, id string) error {
	_, hosts, err := c.desk.cfg.Plans.Hosts(ctx, id, []meta.NodeID{c.node.ID})
	if errors.Is(err, meta.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	host, part, now := hosts[0], c.parts[id], time.Now()
	c.desk.mu.Lock()
	defer c.desk.mu.Unlock()
	l := c.desk.lines[id]
	if l == nil {
		return nil
	}
	if host.State.Settled() {
		delete(l.seats, c.node.ID)
		return nil
	}
	s := l.hear(c.node, part, now)
	t := &ticket{word: meta.WaveHost{Node: c.node.ID, State: part.State, Bytes: part.Bytes, Reason: part.Reason}, tell: c.tell, asked: now}
	switch {
	case part.State.Settled():
		if host.State == "" {
			return nil // It was never admitted; nothing is to be recorded.
		}
		l.saying, c.words = append(l.saying, t), append(c.words, t)
	case host.State == meta.HostFetching:
		c.works = true
		if l.wave.MaxParallel == 0 || s != nil && now.Sub(s.renewed) < renewAfter {
			return nil
		}
		t.word.State = meta.HostFetching
		l.saying, c.words = append(l.saying, t), append(c.words, t)
	case s == nil || len(l.asking) >= maxAsking:
		c.desk.metrics.refused.Inc()
		c.full = true
		return nil
	default:
		t.word.State, t.asked = meta.HostWaiting, s.asked
		l.asking, c.asks = append(l.asking, t), append(c.asks, t)
		c.desk.count()
	}
	poke(c.desk.work)
	return nil
}

// hear notes what a host says; it returns nil when too many are remembered.
func (l *line) hear(n meta.Node, p meta.WavePart, now time.Time) *seat {
	s := l.seats[n.ID]
	if s == nil {
		if len(l.seats) >= maxSeats {
			return nil
		}
		s = &seat{asked: now}
		l.seats[n.ID] = s
	}
	s.region, s.heard, s.bytes, s.total = n.Region, now, p.Bytes, p.TotalBytes
	if s.state = p.State; s.state == "" {
		s.state = meta.HostWaiting
	}
	return s
}

// ready reports whether there is something to answer.
func (c *visit) ready(timeout bool) bool {
	c.desk.mu.Lock()
	defer c.desk.mu.Unlock()
	for _, t := range c.words {
		if !t.done {
			return false // The host has no server but this one to record it.
		}
	}
	for _, t := range c.asks {
		if t.done {
			return true
		}
	}
	return timeout || len(c.words) > 0 || len(c.asks) == 0
}

// leave takes back what was not decided.
func (c *visit) leave() {
	c.desk.mu.Lock()
	defer c.desk.mu.Unlock()
	for _, t := range slices.Concat(c.words, c.asks) {
		t.gone = true
	}
}

// orders answers from what the metadata says now.
func (c *visit) orders(ctx context.Context) (o meta.WaveOrders, _ error) {
	again := func(d time.Duration) {
		if o.Again == 0 || d < o.Again {
			o.Again = d
		}
	}
	for _, id := range c.desk.matching(c.node) {
		w, hosts, err := c.desk.cfg.Plans.Hosts(ctx, id, []meta.NodeID{c.node.ID})
		now := time.Now()
		if errors.Is(err, meta.ErrNotFound) || err == nil && (w.Ended != 0 || meta.TimeOf(now) >= w.Expires) {
			continue
		}
		if err != nil {
			return o, err
		}
		order := meta.WaveOrder{ID: id, State: cmp.Or(hosts[0].State, meta.HostWaiting)}
		if order.State == meta.HostLost {
			order.State = meta.HostWaiting
		}
		part, knows := c.parts[id]
		if !knows {
			order.Wave = &meta.Wave{
				ID: w.ID, Name: w.Name, Refs: w.Refs, Platform: w.Platform,
				NotBefore: w.NotBefore, Expires: w.Expires, MaxParallel: w.MaxParallel,
			}
		}
		switch order.State {
		case meta.HostWaiting:
			order.In = max(w.NotBefore.Std().Sub(now), 0)
			switch {
			case part.State.Settled():
				// It was never admitted, or this server lags behind the one that did, as after
				// that was lost: its word is still to be recorded.
				again(comeBack)
			case order.In > 0:
				again(order.In)
			case c.full:
				again(comeBack)
			default:
				again(gather)
			}
		case meta.HostFetching:
			if again(c.desk.paced()); w.MaxParallel > 0 {
				renewed := c.desk.renewed(id, c.node.ID)
				// Counted from before the command that it is of was sent, so it ends no
				// later than the arbiter thinks. One that was not renewed here is renewed
				// with the next word.
				order.Lease = meta.WaveLease - now.Sub(renewed)
				if renewed.IsZero() || order.Lease <= 0 {
					order.Lease = time.Second
				}
			}
		}
		o.Orders = append(o.Orders, order)
	}
	return o, nil
}

// paced returns after how long a host that fetches is to be heard again.
func (d *Desk) paced() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	hosts := 0
	for _, l := range d.lines {
		hosts += len(l.seats)
	}
	return pace(hosts)
}

// renewed returns when the lease of a host was renewed here, zero when it was not.
func (d *Desk) renewed(id string, node meta.NodeID) (at time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if l := d.lines[id]; l != nil && l.seats[node] != nil {
		at = l.seats[node].renewed
	}
	return at
}

// Progress returns what was heard lately of the hosts of a wave that have not
// settled, by region.
func (d *Desk) Progress(id string) []meta.WaveProgress {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.lines[id]
	if l == nil {
		return nil
	}
	now := time.Now()
	regions := map[meta.RegionName]*meta.WaveProgress{}
	for _, s := range l.seats {
		if now.Sub(s.heard) > quiet {
			continue
		}
		p := regions[s.region]
		if p == nil {
			p = &meta.WaveProgress{Region: s.region}
			regions[s.region] = p
		}
		switch s.state {
		case meta.HostFetching:
			p.Fetching++
			p.Bytes += s.bytes
		case meta.HostWaiting:
			p.Waiting++
		}
		p.HostBytes = max(p.HostBytes, s.total)
	}
	var all []meta.WaveProgress
	for _, p := range regions {
		all = append(all, *p)
	}
	slices.SortFunc(all, func(a, b meta.WaveProgress) int { return cmp.Compare(a.Region, b.Region) })
	return all
}

// serve works on the lines that have something to do, each at most once at a time.
func (d *Desk) serve(ctx context.Context) error {
	var group errgroup.Group
	group.SetLimit(commands)
	defer func() { _ = group.Wait() }() // They return no errors.
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.work:
		}
		if !wait.For(ctx, gather) {
			return nil
		}
		for id, l := range d.due() {
			group.Go(func() error {
				d.attend(ctx, id, l)
				d.mu.Lock()
				defer d.mu.Unlock()
				l.busy = false
				if len(l.asking)+len(l.saying) > 0 {
					poke(d.work)
				}
				return nil
			})
		}
	}
}

// due takes the lines that have something to do.
func (d *Desk) due() map[string]*line {
	d.mu.Lock()
	defer d.mu.Unlock()
	lines := map[string]*line{}
	for id, l := range d.lines {
		l.asking, l.saying = present(l.asking), present(l.saying)
		if !l.busy && len(l.asking)+len(l.saying) > 0 {
			l.busy = true
			lines[id] = l
		}
	}
	d.count()
	return lines
}

func present(tickets []*ticket) []*ticket {
	return slices.DeleteFunc(tickets, func(t *ticket) bool { return t.gone || t.done })
}

// attend sends the commands of a line, until nothing is left that can be decided now.
func (d *Desk) attend(ctx context.Context, id string, l *line) {
	for ctx.Err() == nil {
		more, err := d.record(ctx, id, l)
		if err == nil && !more {
			more, err = d.admit(ctx, id, l)
		}
		switch {
		case errors.Is(err, meta.ErrConflict), errors.Is(err, meta.ErrNotFound):
			// The wave has changed under the line.
			poke(d.changed)
			return
		case err != nil:
			d.log.Warn("a wave's hosts wait for the metadata", "wave", id, "error", err)
			wait.For(ctx, time.Second)
			return
		case !more:
			return
		}
	}
}

// counted counts a command.
func (d *Desk) counted(command string, err error) error {
	result := "ok"
	switch {
	case errors.Is(err, meta.ErrConflict):
		result = "conflict"
	case err != nil:
		result = "error"
	}
	d.metrics.commands.WithLabelValues(command, result).Inc()
	return err
}

// record sends what hosts reported; more says that there may be more of it.
func (d *Desk) record(ctx context.Context, id string, l *line) (more bool, _ error) {
	d.mu.Lock()
	l.saying = present(l.saying)
	tickets := slices.Clone(l.saying[:min(len(l.saying), commandHosts)])
	d.mu.Unlock()
	if len(tickets) == 0 {
		return false, nil
	}
	words := make([]meta.WaveHost, len(tickets))
	for i, t := range tickets {
		words[i] = t.word
	}
	words = words[:fits(words)]
	sent := time.Now()
	err := d.counted("report", d.cfg.Arbiter.Report(ctx, id, words))
	if err != nil && !errors.Is(err, meta.ErrNotFound) {
		return false, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, t := range tickets[:len(words)] {
		s := l.seats[t.word.Node]
		switch {
		case t.word.State.Settled():
			delete(l.seats, t.word.Node)
		case s != nil:
			s.renewed = sent
		}
		t.finish()
	}
	return true, err
}

// admit brings waiting hosts before the arbiter, those that have waited longest
// first; more says that there may be room for more.
func (d *Desk) admit(ctx context.Context, id string, l *line) (more bool, _ error) {
	now := time.Now()
	d.mu.Lock()
	l.asking = present(l.asking)
	slices.SortStableFunc(l.asking, func(a, b *ticket) int { return a.asked.Compare(b.asked) })
	tickets := slices.Clone(l.asking[:min(len(l.asking), commandHosts)])
	probe := now.Sub(l.probed) >= probeEvery
	d.mu.Unlock()
	if len(tickets) == 0 {
		return false, nil
	}
	ids := make([]meta.NodeID, len(tickets))
	for i, t := range tickets {
		ids[i] = t.word.Node
	}
	// The wave as it is now: other servers' hosts come and go, too.
	w, hosts, err := d.cfg.Plans.Hosts(ctx, id, ids)
	if err != nil {
		return false, err
	}
	if d.admitted(l, tickets, hosts) {
		return true, nil
	}
	n := room(&w, len(ids), meta.TimeOf(now), probe)
	if n == 0 {
		return false, nil
	}
	ids, tickets = ids[:n], tickets[:n]
	if err := d.counted("admit", d.cfg.Arbiter.Admit(ctx, id, ids)); err != nil {
		return false, err
	}
	if _, hosts, err = d.cfg.Plans.Hosts(ctx, id, ids); err != nil {
		return false, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	l.probed = now
	admitted := 0
	for i, h := range hosts {
		switch {
		case h.State == meta.HostFetching:
			admitted++
			if s := l.seats[h.Node]; s != nil {
				s.state, s.renewed = meta.HostFetching, now
			}
			tickets[i].finish()
		case h.State.Settled():
			tickets[i].finish()
		default:
			// Others were quicker, or the wave is not for it: the next one's turn.
			tickets[i].asked = now
			if s := l.seats[h.Node]; s != nil && w.MaxParallel == 0 {
				s.asked = now
			}
		}
	}
	return admitted > 0 && len(l.asking) > admitted, nil
}

// admitted finds the tickets of hosts that need not be brought before the arbiter, as it
// has admitted them: the call that asked before was ended in between, or nothing was
// heard of the command. Their lease is to be renewed, so that it is known here since
// when it runs. It reports whether there are any.
func (d *Desk) admitted(l *line, tickets []*ticket, hosts []meta.WaveHost) (found bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, h := range hosts {
		switch t := tickets[i]; {
		case h.State.Settled():
			t.finish()
		case h.State == meta.HostFetching:
			t.word.State = meta.HostFetching
			l.asking = slices.DeleteFunc(l.asking, func(other *ticket) bool { return other == t })
			l.saying = append(l.saying, t)
		default:
			continue
		}
		found = true
	}
	return found
}

// lead ends waves while this server leads.
func (d *Desk) lead(ctx context.Context) error {
	var forgot time.Time
	for wait.For(ctx, leadEvery) {
		d.forgetQuiet()
		if !d.cfg.Leads() {
			continue
		}
		if now := time.Now(); now.Sub(forgot) > forgetEvery {
			forgot = now
			if err := d.cfg.Arbiter.Forget(ctx, now.Add(-keepOver)); err != nil && ctx.Err() == nil {
				d.log.Warn("old waves were not dropped", "error", err)
			}
		}
		for _, id := range d.open() {
			if err := d.settle(ctx, id); err != nil && ctx.Err() == nil && !errors.Is(err, meta.ErrConflict) {
				d.log.Warn("a wave was not looked at", "wave", id, "error", err)
			}
		}
	}
	return nil
}

// forgetQuiet drops what was heard of hosts that are heard no more.
func (d *Desk) forgetQuiet() {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	for _, l := range d.lines {
		for id, s := range l.seats {
			if now.Sub(s.heard) > 2*quiet {
				delete(l.seats, id)
			}
		}
	}
}

func (d *Desk) open() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	ids := make([]string, 0, len(d.lines))
	for id := range d.lines {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// settle ends a wave that has expired or of which all hosts have settled, and has
// leases taken back that have ended.
func (d *Desk) settle(ctx context.Context, id string) error {
	w, _, err := d.cfg.Plans.Hosts(ctx, id, nil)
	if err != nil || w.Ended != 0 {
		return err
	}
	now := meta.TimeOf(time.Now())
	if now >= w.Expires {
		return d.counted("end", d.cfg.Arbiter.End(ctx, id))
	}
	total := w.Total()
	if w.MaxParallel > 0 && total.Fetching > 0 && w.Admits(now) && d.once(id, func(l *line) *time.Time { return &l.tidied }) {
		return d.counted("admit", d.cfg.Arbiter.Admit(ctx, id, nil))
	}
	if w.State != meta.WaveRunning || total.Fetching > 0 {
		return nil
	}
	due := map[meta.NodeID]bool{}
	for _, n := range d.cfg.Agents() {
		if w.Match(n) {
			due[n.ID] = true
		}
	}
	if int(total.Settled()) < len(due) || total.Settled() == 0 || !d.once(id, func(l *line) *time.Time { return &l.looked }) {
		return nil
	}
	done, err := d.everybody(ctx, id, due)
	if err != nil || !done {
		return err
	}
	return d.counted("end", d.cfg.Arbiter.End(ctx, id))
}

// once reports that the last time was tidyEvery ago, and makes this the last.
func (d *Desk) once(id string, last func(*line) *time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.lines[id]
	if l == nil || time.Since(*last(l)) < tidyEvery {
		return false
	}
	*last(l) = time.Now()
	return true
}

// everybody reports whether all hosts that are due have settled: as many as are due
// may have, and not the same.
func (d *Desk) everybody(ctx context.Context, id string, due map[meta.NodeID]bool) (bool, error) {
	var took []meta.WaveHost
	for after := meta.NodeID(""); ; {
		const page = 1000
		some, err := d.cfg.Plans.Took(ctx, id, after, page)
		if err != nil {
			return false, err
		}
		took = append(took, some...)
		if len(some) < page {
			return allSettled(due, took), nil
		}
		after = some[len(some)-1].Node
	}
}
