package quota

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"runtime"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-registry/shoal/gateway"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// MaxWait is how long a call waits at most before it is refused. Clients that try again
// at once (containerd does, five times) are slowed by it all the same.
const MaxWait = 3 * time.Second

const (
	// usageTime is how long what the metadata said of a tenant is used.
	usageTime = 2 * time.Second
	// exchangeTime is how often wants are told, egressTime how often downloads are.
	exchangeTime = time.Second
	egressTime   = 5 * time.Second
	// maxTenants bounds those that are remembered.
	maxTenants = 4096
	// maxPrincipals bounds the principals of a tenant whose uploads are bounded apart.
	maxPrincipals = 4096
)

// Config of a Quota.
type Config struct {
	Self     meta.NodeID
	Metadata raftmeta.Asker
	// Fresh is how fresh the metadata is asked: local on servers, bounded on agents.
	Fresh meta.Freshness
	// Doer changes the metadata; nil on agents.
	Doer raftmeta.Doer
	// Above tells a report to the node above, and is nil at the leader: it says who that
	// is each time, false when this node has nobody above it.
	Above func(ctx context.Context, r *Report) (answer *Answer, top bool, err error)
	// Nodes says between how many a rate is divided while nobody is heard.
	// A call that publishes is served by servers only.
	Nodes func(publish bool) int
	// Slots are the turns of work beyond which tenants share the node; 0 is two for each
	// processor.
	Slots   int
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Quota is the gateway's quota on one node, and what the nodes below it tell it.
type Quota struct {
	cfg     Config
	metrics *metrics
	turns   *turns
	storage *Storage
	run     string

	members *table // this node and its agents
	servers *table // at the leader

	wake chan struct{} // somebody wants a share who has none

	mu      sync.Mutex
	tenants map[meta.TenantName]*tenant
	egress  map[meta.TenantName]*state.EgressSum // not reported yet
	inWay   []state.EgressSum                    // being reported
	shares  map[limitOf]wanted                   // of this node with its agents
}

var _ gateway.Quota = (*Quota)(nil)

// tenant is what this node knows of a tenant.
type tenant struct {
	name   meta.TenantName
	meters [kinds]*meter
	places places

	asking sync.Mutex // held while the metadata is asked

	mu      sync.Mutex
	usage   state.TenantUsage
	asked   time.Time
	used    time.Time
	calls   int
	uploads map[string]*principal
}

// principal is one of a tenant's with an upload under way.
type principal struct {
	places places
	users  int
}

// New returns a Quota.
func New(c Config) (*Quota, error) {
	if c.Slots == 0 {
		c.Slots = 2 * runtime.GOMAXPROCS(0)
	}
	q := &Quota{
		cfg: c, turns: newTurns(c.Slots), run: rand.Text(), members: newTable(), servers: newTable(),
		wake: make(chan struct{}, 1), tenants: map[meta.TenantName]*tenant{},
		egress: map[meta.TenantName]*state.EgressSum{}, shares: map[limitOf]wanted{},
	}
	q.storage = &Storage{quota: q, tenants: map[meta.TenantName]*account{}, told: map[meta.TenantName]bool{}}
	var err error
	q.metrics, err = newMetrics(c.Metrics)
	return q, err
}

// Storage reserves room for uploads; servers only.
func (q *Quota) Storage() *Storage { return q.storage }

func (q *Quota) origin() state.Origin {
	return state.Origin{RequestID: rand.Text(), Principal: "node:" + string(q.cfg.Self)}
}

// tenant returns what is known of a tenant.
func (q *Quota) tenant(name meta.TenantName) *tenant {
	now := time.Now()
	q.mu.Lock()
	defer q.mu.Unlock()
	t := q.tenants[name]
	if t == nil {
		if len(q.tenants) >= maxTenants {
			q.sweep(now)
		}
		t = &tenant{name: name, uploads: map[string]*principal{}}
		for k := range t.meters {
			t.meters[k] = newMeter(Kind(k))
		}
		q.tenants[name] = t
	}
	t.mu.Lock()
	t.used = now
	t.mu.Unlock()
	return t
}

// sweep forgets tenants that are idle. It holds mu.
func (q *Quota) sweep(now time.Time) {
	for name, t := range q.tenants {
		t.mu.Lock()
		idle := t.calls == 0 && now.Sub(t.used) > time.Minute
		t.mu.Unlock()
		if idle {
			delete(q.tenants, name)
		}
	}
}

// usage returns what the metadata says of a tenant, and lets its limits hold here. When
// it cannot be asked, what was known last holds on.
func (q *Quota) usage(ctx context.Context, t *tenant, now time.Time) state.TenantUsage {
	t.mu.Lock()
	known, asked := t.usage, t.asked
	t.mu.Unlock()
	if now.Sub(asked) < usageTime {
		return known
	}
	if asked.IsZero() {
		t.asking.Lock()
	} else if !t.asking.TryLock() {
		return known // Somebody is asking.
	}
	defer t.asking.Unlock()
	t.mu.Lock()
	known, asked = t.usage, t.asked
	t.mu.Unlock()
	if now.Sub(asked) < usageTime {
		return known
	}
	fresh, _, err := raftmeta.Ask(ctx, q.cfg.Metadata, q.cfg.Fresh, state.GetUsage{Tenant: t.name})
	if err != nil {
		fresh = known
	}
	t.mu.Lock()
	t.usage, t.asked = fresh, now
	t.mu.Unlock()
	l := fresh.Tenant.Limits
	for k, limit := range map[Kind]int64{PublishBytes: l.PublishBytes, PublishRequests: l.PublishRequests, DownloadBytes: l.DownloadBytes, DownloadRequests: l.DownloadRequests, Uploads: l.Uploads} {
		t.meters[k].set(float64(limit), q.nodes(k), now)
	}
	t.setPlaces(q.nodes(Uploads), now)
	return fresh
}

// setPlaces lets as many uploads go on as this node has a share of: at least one.
func (t *tenant) setPlaces(nodes int, now time.Time) {
	m := t.meters[Uploads]
	m.mu.Lock()
	most := 0
	if m.rate > 0 {
		most = int(max(1, math.Round(m.here(nodes, now))))
	}
	m.mu.Unlock()
	t.places.set(most)
}

// pass is one admitted call.
type pass struct {
	quota    *Quota
	tenant   *tenant
	publish  bool
	line     *line
	release  []func()
	warnings []string

	mu   sync.Mutex
	turn *turn
}

// Admit implements gateway.Quota.
func (q *Quota) Admit(ctx context.Context, c gateway.Charge) (gateway.Pass, error) {
	now := time.Now()
	t := q.tenant(c.Tenant)
	u := q.usage(ctx, t, now)
	p := &pass{quota: q, tenant: t, publish: c.Publish}
	t.mu.Lock()
	t.calls++
	t.mu.Unlock()
	p.release = append(p.release, func() {
		t.mu.Lock()
		t.calls--
		t.mu.Unlock()
	})
	if err := p.admit(ctx, c, u, now); err != nil {
		p.End()
		return nil, err
	}
	return p, nil
}

func (p *pass) admit(ctx context.Context, c gateway.Charge, u state.TenantUsage, now time.Time) error {
	t, l := p.tenant, u.Tenant.Limits
	requests, bytes, what := t.meters[DownloadRequests], t.meters[DownloadBytes], "download"
	perSec, bytesPerSec := l.DownloadRequests, l.DownloadBytes
	if p.publish {
		requests, bytes, what = t.meters[PublishRequests], t.meters[PublishBytes], "publish"
		perSec, bytesPerSec = l.PublishRequests, l.PublishBytes
	}
	if !p.publish {
		if err := p.egress(u, now); err != nil {
			return err
		}
	} else if quota := l.StorageBytes; meta.ThresholdOf(u.Bytes, quota, l.StorageWarn) >= meta.NearQuota && u.Counted {
		p.warn("storage", u.Bytes, quota)
	}
	retry, err := requests.call(ctx, MaxWait)
	if err != nil {
		return err
	}
	if retry > 0 {
		p.quota.kick()
		return p.refuse(what+"_requests", fmt.Sprintf("%s rate of %d requests per second", what, perSec), retry)
	}
	if debt := bytes.debt(now); debt > MaxWait {
		bytes.note(0, 0, true)
		p.quota.kick()
		return p.refuse(what+"_bytes", fmt.Sprintf("%s rate of %s/s", what, bytesText(bytesPerSec)), debt)
	}
	if p.publish && c.Length != 0 {
		if err := p.upload(ctx, c.Principal, l); err != nil {
			return err
		}
	}
	return p.begin(ctx, u.Tenant.Tier)
}

// egress refuses a download over the quota of its period, with what this node has not
// reported yet.
func (p *pass) egress(u state.TenantUsage, now time.Time) error {
	l := u.Tenant.Limits
	if l.EgressBytes == 0 {
		return nil
	}
	used := u.Egress.In(l.EgressPeriod, meta.TimeOf(now)) + p.quota.unreported(p.tenant.name)
	switch meta.ThresholdOf(used, l.EgressBytes, l.EgressWarn) {
	case meta.OverQuota:
		p.quota.metrics.refused.WithLabelValues("egress").Inc()
		period := "this month"
		if l.EgressPeriod == meta.PerDay {
			period = "today"
		}
		return &meta.QuotaError{
			Tenant: p.tenant.name, Limit: fmt.Sprintf("egress quota of %s for %s (UTC)", bytesText(l.EgressBytes), period),
			Help: "wait for the next, or ask for a larger quota",
		}
	case meta.NearQuota:
		p.warn("egress", used, l.EgressBytes)
	}
	return nil
}

func (p *pass) warn(what string, used, quota int64) {
	p.warnings = append(p.warnings, fmt.Sprintf("tenant %s has used %d%% of its %s quota of %s", p.tenant.name, int(float64(used)/float64(quota)*100), what, bytesText(quota)))
}

func (p *pass) refuse(label, limit string, retry time.Duration) error {
	p.quota.metrics.refused.WithLabelValues(label).Inc()
	return &meta.QuotaError{Tenant: p.tenant.name, Limit: limit, Help: "try again later", RetryAfter: max(retry, time.Second)}
}

// upload takes a place among the tenant's uploads, and among the principal's.
func (p *pass) upload(ctx context.Context, who string, l meta.TenantLimits) error {
	t := p.tenant
	m := t.meters[Uploads]
	if l.PrincipalUploads > 0 {
		t.mu.Lock()
		mine := t.uploads[who]
		if mine == nil && len(t.uploads) < maxPrincipals {
			mine = &principal{}
			t.uploads[who] = mine
		}
		if mine == nil {
			t.mu.Unlock()
			return p.refuse("principal_uploads", fmt.Sprintf("limit of %d principals that upload at one time", maxPrincipals), MaxWait)
		}
		mine.users++
		t.mu.Unlock()
		p.release = append(p.release, func() {
			t.mu.Lock()
			if mine.users--; mine.users == 0 {
				delete(t.uploads, who)
			}
			t.mu.Unlock()
		})
		mine.places.set(int(min(l.PrincipalUploads, math.MaxInt32)))
		ok, err := mine.places.take(ctx, MaxWait)
		if err != nil {
			return err
		}
		if !ok {
			return p.refuse("principal_uploads", fmt.Sprintf("limit of %d concurrent uploads of one principal", l.PrincipalUploads), time.Second)
		}
		p.release = append(p.release, mine.places.free)
	}
	ok, err := t.places.take(ctx, MaxWait)
	if err != nil {
		return err
	}
	if !ok {
		m.note(0, 0, true)
		p.quota.kick()
		return p.refuse("uploads", fmt.Sprintf("limit of %d concurrent uploads", l.Uploads), time.Second)
	}
	p.release = append(p.release, t.places.free)
	return nil
}

// begin waits for the call's first turn.
func (p *pass) begin(ctx context.Context, tier meta.Tier) error {
	p.line = p.quota.turns.open(p.tenant.name, tier.Weight())
	p.release = append(p.release, func() { p.quota.turns.close(p.line) })
	wait, cancel := context.WithTimeout(ctx, MaxWait)
	defer cancel()
	began := time.Now()
	turn, err := p.quota.turns.take(wait, p.line)
	p.quota.metrics.waited.Observe(time.Since(began).Seconds())
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		return p.refuse("busy", "fair share of a busy node", time.Second)
	}
	p.turn = turn
	return nil
}

// Warnings implements gateway.Pass.
func (p *pass) Warnings() []string { return p.warnings }

// Received implements gateway.Pass.
func (p *pass) Received(ctx context.Context, n int) {
	if p.publish {
		p.moved(ctx, p.tenant.meters[PublishBytes], n)
	}
}

// Sent implements gateway.Pass.
func (p *pass) Sent(ctx context.Context, n int) {
	if !p.publish {
		p.quota.downloaded(p.tenant.name, int64(n), 0)
		p.moved(ctx, p.tenant.meters[DownloadBytes], n)
	}
}

// moved gives the turn back, waits until the rate allows more, and for another turn.
func (p *pass) moved(ctx context.Context, m *meter, n int) {
	p.mu.Lock()
	turn := p.turn
	p.turn = nil
	p.mu.Unlock()
	p.quota.turns.end(turn)
	m.pace(ctx, n)
	// Who has gone finds out by the next read or write.
	turn, _ = p.quota.turns.take(ctx, p.line)
	p.mu.Lock()
	p.turn = turn
	p.mu.Unlock()
}

// End implements gateway.Pass.
func (p *pass) End() {
	p.mu.Lock()
	turn := p.turn
	p.turn = nil
	p.mu.Unlock()
	p.quota.turns.end(turn)
	if !p.publish && p.line != nil {
		p.quota.downloaded(p.tenant.name, 0, 1)
	}
	for i := len(p.release) - 1; i >= 0; i-- {
		p.release[i]()
	}
	p.release = nil
}

// downloaded counts what clients have read.
func (q *Quota) downloaded(name meta.TenantName, bytes, requests int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.count(state.EgressSum{Tenant: name, Bytes: bytes, Requests: requests})
}

// count adds to what is not reported yet. It holds mu.
func (q *Quota) count(sum state.EgressSum) {
	s := q.egress[sum.Tenant]
	if s == nil {
		s = &state.EgressSum{Tenant: sum.Tenant}
		q.egress[sum.Tenant] = s
	}
	s.Bytes, s.Requests = s.Bytes+sum.Bytes, s.Requests+sum.Requests
}

func (q *Quota) unreported(name meta.TenantName) (bytes int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if s := q.egress[name]; s != nil {
		bytes = s.Bytes
	}
	for _, s := range q.inWay {
		if s.Tenant == name {
			bytes += s.Bytes
		}
	}
	return bytes
}

// nodes says how many nodes share a limit.
func (q *Quota) nodes(k Kind) int {
	return q.cfg.Nodes(k != DownloadBytes && k != DownloadRequests)
}

// kick has the exchange run soon.
func (q *Quota) kick() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// Run exchanges wants for shares, reports downloads and renews reservations until ctx
// ends; then it reports what is left.
func (q *Quota) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return q.exchange(ctx) })
	if q.cfg.Doer != nil {
		group.Go(func() error { return q.report(ctx) })
		group.Go(func() error { return q.keep(ctx) })
	}
	return group.Wait()
}

// keep renews reservations.
func (q *Quota) keep(ctx context.Context) error {
	tick := time.NewTicker(reservedLease / 6)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := q.storage.renew(ctx); err != nil && ctx.Err() == nil {
			q.cfg.Log.Debug("reservations were not renewed", "error", err)
		}
	}
}

// report tells the metadata what was downloaded here and at the agents.
func (q *Quota) report(ctx context.Context) error {
	tick := time.NewTicker(egressTime)
	defer tick.Stop()
	for {
		var last bool
		select {
		case <-ctx.Done():
			last = true
		case <-tick.C:
		}
		try, cancel := context.WithTimeout(context.WithoutCancel(ctx), egressTime)
		if err := q.reportEgress(try); err != nil {
			q.cfg.Log.Debug("downloads were not reported yet", "error", err)
		}
		cancel()
		if last {
			return nil
		}
	}
}

// take moves what is not reported yet into the way; what is there stays.
func (q *Quota) take() []state.EgressSum {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.inWay) > 0 {
		return q.inWay
	}
	for name, s := range q.egress {
		if len(q.inWay) == maxSums {
			break
		}
		q.inWay = append(q.inWay, *s)
		delete(q.egress, name)
	}
	return q.inWay
}

// told forgets what was in the way; kept puts it back.
func (q *Quota) told(kept bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if kept {
		for _, s := range q.inWay {
			q.count(s)
		}
	}
	q.inWay = nil
}

func (q *Quota) reportEgress(ctx context.Context) error {
	sums := q.take()
	if len(sums) == 0 {
		return nil
	}
	// One request id for all tries: what was not known to be counted is not counted twice.
	o := q.origin()
	for {
		_, err := q.cfg.Doer.Do(ctx, o, state.ReportEgress{Sums: sums})
		if unknown(err) && ctx.Err() == nil {
			if sleep(ctx, 100*time.Millisecond) == nil {
				continue
			}
		}
		// Of an outcome that stays unknown the bytes are given up rather than counted twice.
		q.told(err != nil && !unknown(err))
		return err
	}
}

// exchange tells wants and takes over shares.
func (q *Quota) exchange(ctx context.Context) error {
	tick := time.NewTicker(exchangeTime)
	defer tick.Stop()
	var sequence uint64
	var quiet time.Time // no report out of turn before that
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-q.wake:
			if time.Now().Before(quiet) {
				continue
			}
		}
		quiet = time.Now().Add(exchangeTime / 4)
		sequence++
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		if err := q.exchangeOnce(try, sequence); err != nil && ctx.Err() == nil {
			q.cfg.Log.Debug("nobody says what part of the tenants' rates is this node's", "error", err)
		}
		cancel()
	}
}

func (q *Quota) exchangeOnce(ctx context.Context, sequence uint64) error {
	now := time.Now()
	// What nobody limits is told only as often as downloads are.
	all := sequence%uint64(egressTime/exchangeTime) == 0
	own := &Report{Node: q.cfg.Self, Run: q.run, Sequence: sequence, Wants: q.wants(now, all)}
	agent := q.cfg.Doer == nil
	if !agent {
		q.members.note(own, now)
	}
	up := &Report{Node: own.Node, Run: own.Run, Sequence: own.Sequence, Wants: own.Wants}
	if agent && all {
		up.Egress = q.take()
	} else if !agent {
		up.Wants = q.members.sums(now)
	}
	if len(up.Wants) == 0 && len(up.Egress) == 0 {
		return nil
	}
	answer, top, err := q.cfg.Above(ctx, up)
	if agent {
		// A report that may have arrived is not sent again: better lost than counted twice.
		if len(up.Egress) > 0 {
			q.told(Unsent(err))
		}
	}
	if err != nil {
		return err
	}
	if top {
		answer = q.lead(up, now)
	}
	q.mu.Lock()
	for k, s := range q.shares {
		if now.Sub(s.at) > shareTime {
			delete(q.shares, k)
		}
	}
	for _, s := range answer.Shares {
		if s.Kind < kinds {
			q.shares[limitOf{s.Tenant, s.Kind}] = wanted{s.Value, now}
		}
	}
	q.mu.Unlock()
	for _, w := range own.Wants {
		q.grant(limitOf{w.Tenant, w.Kind}, agent, now)
	}
	return nil
}

// grant takes over this node's own part of a share that it has for itself and its agents.
func (q *Quota) grant(k limitOf, agent bool, now time.Time) {
	q.mu.Lock()
	share, ok := q.shares[k]
	t := q.tenants[k.tenant]
	q.mu.Unlock()
	if !ok || t == nil {
		return
	}
	if !agent {
		share.value = q.members.shareOf(k, q.cfg.Self, share.value)
	}
	nodes := q.nodes(k.kind)
	t.meters[k.kind].grant(share.value, nodes, now)
	if k.kind == Uploads {
		t.setPlaces(nodes, now)
	}
}

// wants lists what this node could use of each limit; all has what it uses without one
// too.
func (q *Quota) wants(now time.Time, all bool) (out []Amount) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for name, t := range q.tenants {
		for k, m := range t.meters {
			if Kind(k) == Uploads {
				taken, waiting := t.places.use()
				m.note(0, float64(taken+waiting), waiting > 0)
			}
			if !all && !m.limited() {
				continue
			}
			if want, active := m.want(q.nodes(Kind(k)), now); active && len(out) < maxWants {
				if Kind(k) == Uploads {
					taken, waiting := t.places.use()
					want = float64(taken + 2*waiting)
				}
				out = append(out, Amount{name, Kind(k), want})
			}
		}
	}
	return out
}

// Rates returns what the nodes of the cluster use of each kind at present, per second;
// of what is limited, what they could use. Servers only.
//
// Errors: *UnsentError and others while the leader cannot be asked.
func (q *Quota) Rates(ctx context.Context) (map[meta.TenantName][]float64, error) {
	now := time.Now()
	r := &Report{Node: q.cfg.Self, Run: q.run, Totals: true}
	answer, top, err := q.cfg.Above(ctx, r)
	if err != nil {
		return nil, err
	}
	if top {
		answer = q.lead(r, now)
	}
	out := map[meta.TenantName][]float64{}
	for _, a := range answer.Totals {
		if out[a.Tenant] == nil {
			out[a.Tenant] = make([]float64, kinds)
		}
		if a.Kind < kinds {
			out[a.Tenant][a.Kind] = a.Value
		}
	}
	return out, nil
}

// Below answers the report of an agent of this server, or, when this server leads, of a
// server.
//
// Errors: meta.ErrInvalid.
func (q *Quota) Below(r *Report, server bool) (*Answer, error) {
	if err := r.Check(); err != nil {
		return nil, fmt.Errorf("the report of %s: %w", r.Node, err)
	}
	now := time.Now()
	if server {
		return q.lead(r, now), nil
	}
	fresh := q.members.note(r, now)
	a := &Answer{}
	q.mu.Lock()
	if fresh {
		for _, s := range r.Egress {
			if q.egress[s.Tenant] != nil || len(q.egress) < maxTenants {
				q.count(s)
			}
		}
	}
	shares := make([]wanted, len(r.Wants))
	have := make([]bool, len(r.Wants))
	for i, w := range r.Wants {
		shares[i], have[i] = q.shares[limitOf{w.Tenant, w.Kind}]
	}
	q.mu.Unlock()
	for i, w := range r.Wants {
		if !have[i] {
			q.kick() // The leader is asked first.
			continue
		}
		w.Value = q.members.shareOf(limitOf{w.Tenant, w.Kind}, r.Node, shares[i].value)
		a.Shares = append(a.Shares, w)
	}
	return a, nil
}

// exists reports whether a tenant that a node names is remembered here, or is not known
// to be none.
func (q *Quota) exists(name meta.TenantName) bool {
	q.mu.Lock()
	known := q.tenants[name] != nil
	q.mu.Unlock()
	if known {
		return true
	}
	_, _, err := raftmeta.Ask(context.Background(), q.cfg.Metadata, q.cfg.Fresh, state.GetUsage{Tenant: name})
	return !errors.Is(err, meta.ErrNotFound)
}

// lead divides the cluster's rates between servers.
func (q *Quota) lead(r *Report, now time.Time) *Answer {
	q.servers.note(r, now)
	a := &Answer{}
	if r.Totals {
		a.Totals = q.servers.sums(now)
	}
	for _, w := range r.Wants {
		if !q.exists(w.Tenant) {
			continue
		}
		t := q.tenant(w.Tenant)
		q.usage(context.Background(), t, now)
		m := t.meters[w.Kind]
		m.mu.Lock()
		rate := m.rate
		m.mu.Unlock()
		if rate > 0 {
			w.Value = q.servers.shareOf(limitOf{w.Tenant, w.Kind}, r.Node, rate)
			a.Shares = append(a.Shares, w)
		}
	}
	return a
}
