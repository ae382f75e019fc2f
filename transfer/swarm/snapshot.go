package swarm

import (
	"cmp"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/verify/digest"
)

// What a node shows of its swarms: counters beside the work, read without
// stopping it.

// Bounds of a Snapshot; the totals are over everything.
const (
	maxShownRoots = 256
	maxShownPeers = 256
	maxShownBans  = 64
)

// Bytes is how much came from, or went to, each distance. Rack and Zone are the
// same when a node names no racks, Local is what was here before the fetch: from
// an earlier one, or from other blobs that share chunks.
type Bytes struct {
	Local  int64 `json:"local,omitempty"`
	Rack   int64 `json:"rack"`
	Zone   int64 `json:"zone"`
	Region int64 `json:"region"`
	WAN    int64 `json:"wan"`
}

// Sum is what moved: everything but Local.
func (b Bytes) Sum() int64 { return b.Rack + b.Zone + b.Region + b.WAN }

// Snapshot is what a Swarm does at one moment. All counters only grow while the
// node runs; rates are differences of two Snapshots.
type Snapshot struct {
	At     time.Time `json:"at"`
	Totals Totals    `json:"totals"`
	// Roots are the blobs fetched, then those served, the busiest first; at most 256.
	Roots []RootSnapshot `json:"roots"`
	// Peers are those connected, the busiest first; at most 256.
	Peers []PeerSnapshot `json:"peers"`
	// Banned are peers that sent wrong chunks; at most 64.
	Banned []BannedPeer `json:"banned"`
}

// Totals are over all roots and peers since the node started.
type Totals struct {
	In        Bytes `json:"in"`
	Out       Bytes `json:"out"`
	ChunksIn  int64 `json:"chunks_in"`
	ChunksOut int64 `json:"chunks_out"`
	// Hedges are chunks asked of a second peer, Wasted those that came twice or
	// too late, Bad those that were wrong.
	Hedges int64 `json:"hedges"`
	Wasted int64 `json:"wasted"`
	Bad    int64 `json:"bad"`
	// Roots and Links are how many there are now.
	Roots    int `json:"roots"`
	Fetching int `json:"fetching"`
	Links    int `json:"links"`
}

// RootSnapshot is one blob.
type RootSnapshot struct {
	Root digest.CID `json:"root"`
	// Bytes, Chunks are 0 until the map is known; Have and HaveBytes are verified here.
	Bytes     int64 `json:"bytes"`
	HaveBytes int64 `json:"have_bytes"`
	Chunks    int   `json:"chunks"`
	Have      int   `json:"have"`
	// Readers hold the fetch; 0 means that the blob is only served.
	Readers int `json:"readers"`
	// Peers are connected members, Complete those of them that are known to have every
	// chunk (whole members are told nothing more), Servers those that are servers. Known
	// are all heard of.
	Peers    int `json:"peers"`
	Complete int `json:"complete"`
	Servers  int `json:"servers"`
	Known    int `json:"known"`

	In        Bytes         `json:"in"`
	Out       Bytes         `json:"out"`
	ChunksIn  int64         `json:"chunks_in"`
	ChunksOut int64         `json:"chunks_out"`
	Hedges    int64         `json:"hedges"`
	Wasted    int64         `json:"wasted"`
	Bad       int64         `json:"bad"`
	Age       time.Duration `json:"age_ns"`
	// Trouble is why nothing comes, when nothing does.
	Trouble string `json:"trouble,omitempty"`
}

// PeerSnapshot is one connected peer, as it says of itself.
type PeerSnapshot struct {
	ID     meta.NodeID     `json:"id"`
	Region meta.RegionName `json:"region"`
	Zone   string          `json:"zone,omitempty"`
	Rack   string          `json:"rack,omitempty"`
	Server bool            `json:"server,omitempty"`
	// RTT is the least round trip seen lately, 0 when unknown.
	RTT time.Duration `json:"rtt_ns"`
	// Roots is how many blobs it is a member of with this node.
	Roots int   `json:"roots"`
	In    int64 `json:"in"`
	Out   int64 `json:"out"`
	Bad   int64 `json:"bad,omitempty"`
}

// BannedPeer is kept away until then.
type BannedPeer struct {
	ID    meta.NodeID `json:"id"`
	Until time.Time   `json:"until"`
}

// meter counts what passed. Its methods are called at most a few times a chunk.
type meter struct {
	local     atomic.Int64
	in, out   [len(places)]atomic.Int64
	chunksIn  atomic.Int64
	chunksOut atomic.Int64
	hedges    atomic.Int64
	wasted    atomic.Int64
	bad       atomic.Int64
}

func bytesOf(by *[len(places)]atomic.Int64, local int64) Bytes {
	return Bytes{Local: local, Rack: by[0].Load(), Zone: by[1].Load(), Region: by[2].Load(), WAN: by[3].Load()}
}

// census is who the owner of a membership sees; it publishes a new one with its chores.
type census struct{ peers, complete, servers, known int }

// took counts a chunk of n bytes that came from l, whatever becomes of it.
func (m *membership) took(l *link, n int64) {
	info := l.info()
	near := m.s.near(info)
	m.s.metrics.bytes(info, near, "received", n)
	for _, c := range []*meter{&m.meter, &m.s.meter} {
		c.in[near].Add(n)
		c.chunksIn.Add(1)
	}
	l.took.Add(n)
}

// gave counts a chunk of n bytes that went to l.
func (m *membership) gave(l *link, n int64) {
	info := l.info()
	near := m.s.near(info)
	m.s.metrics.bytes(info, near, "sent", n)
	for _, c := range []*meter{&m.meter, &m.s.meter} {
		c.out[near].Add(n)
		c.chunksOut.Add(1)
	}
	l.gave.Add(n)
}

// wasted counts a chunk that came for nothing.
func (m *membership) wasted() {
	m.s.metrics.received.WithLabelValues("unwanted").Inc()
	m.meter.wasted.Add(1)
	m.s.meter.wasted.Add(1)
}

// wrong counts, logs and reports a wrong chunk.
func (m *membership) wrong(l *link, chunk int) {
	m.s.metrics.received.WithLabelValues("corrupt").Inc()
	m.meter.bad.Add(1)
	m.s.meter.bad.Add(1)
	l.bad.Add(1)
	m.s.log.Warn("peer sent a wrong chunk", "peer", l.id.String(), "root", m.root.String(), "chunk", chunk)
	if m.s.cfg.Report != nil {
		m.s.cfg.Report(meta.NodeID(l.id.String()), m.root, chunk)
	}
}

// hedged counts a chunk asked of a second peer.
func (m *membership) hedged() {
	m.s.metrics.hedges.Inc()
	m.meter.hedges.Add(1)
	m.s.meter.hedges.Add(1)
}

// found counts what a fetch need not bring: the chunks that are here when it begins.
// A blob that is only served counts nothing.
func (m *membership) found(cm *chunk.Map, have chunk.Bitmap) {
	m.mu.Lock()
	fetching := len(m.sessions) > 0
	m.mu.Unlock()
	if !fetching {
		return
	}
	m.foundBytes(storedBytes(cm, have))
}

func (m *membership) foundBytes(n int64) {
	m.meter.local.Add(n)
	m.s.meter.local.Add(n)
	m.s.metrics.local.Add(float64(n))
}

func storedBytes(cm *chunk.Map, have chunk.Bitmap) (n int64) {
	for i, c := range cm.Chunks {
		if have.Has(i) {
			n += int64(c.Stored)
		}
	}
	return n
}

// takeCensus publishes who is there. The owner calls it.
func (m *membership) takeCensus() {
	now := census{known: len(m.members)}
	for _, p := range m.members {
		if p.channel == 0 {
			continue
		}
		now.peers++
		if p.info.Server {
			now.servers++
		}
		if m.core != nil && m.core.PeerHave(p.handle) == len(m.blob.Map().Chunks) {
			now.complete++
		}
	}
	m.seen.Store(&now)
}

// collectors are the metrics that are read off the counters of snapshots.
func (s *Swarm) collectors() []prometheus.Collector {
	return []prometheus.Collector{
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "shoal_swarm_chunks_sent_total", Help: "Chunks sent to peers.",
		}, func() float64 { return float64(s.meter.chunksOut.Load()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "shoal_swarm_fetching_roots", Help: "Blobs that are fetched and not whole yet.",
		}, func() float64 { n, _ := s.missing(); return float64(n) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "shoal_swarm_missing_bytes", Help: "Bytes that the blobs which are fetched still lack.",
		}, func() float64 { _, n := s.missing(); return float64(n) }),
	}
}

// missing returns how many blobs are fetched and not whole, and the bytes that they
// lack, as far as their maps are known.
func (s *Swarm) missing() (roots int, bytes int64) {
	s.mu.Lock()
	memberships := slices.Collect(maps.Values(s.byRoot))
	s.mu.Unlock()
	for _, m := range memberships {
		m.mu.Lock()
		fetching := len(m.sessions) > 0 && (m.blob == nil || !m.have.Full())
		m.mu.Unlock()
		if fetching {
			r := m.snapshot(time.Now())
			roots++
			bytes += r.Bytes - r.HaveBytes
		}
	}
	return roots, bytes
}

// Snapshot returns what the swarm does now. It stops nothing: locks are held to
// copy references only, and who is a member is as of the last half second.
func (s *Swarm) Snapshot() Snapshot {
	now := time.Now()
	s.mu.Lock()
	memberships := make([]*membership, 0, len(s.byRoot))
	for _, m := range s.byRoot {
		memberships = append(memberships, m)
	}
	links := make([]*link, 0, len(s.links))
	for _, l := range s.links {
		links = append(links, l)
	}
	bans := make(map[peer.ID]time.Time, min(len(s.bans), maxShownBans))
	for id, until := range s.bans {
		if until.After(now) && len(bans) < maxShownBans {
			bans[id] = until
		}
	}
	s.mu.Unlock()

	out := Snapshot{
		At: now, Roots: []RootSnapshot{}, Peers: []PeerSnapshot{}, Banned: []BannedPeer{},
		Totals: Totals{
			In: bytesOf(&s.meter.in, s.meter.local.Load()), Out: bytesOf(&s.meter.out, 0),
			ChunksIn: s.meter.chunksIn.Load(), ChunksOut: s.meter.chunksOut.Load(),
			Hedges: s.meter.hedges.Load(), Wasted: s.meter.wasted.Load(), Bad: s.meter.bad.Load(),
			Roots: len(memberships), Links: len(links),
		},
	}
	for id, until := range bans {
		out.Banned = append(out.Banned, BannedPeer{ID: meta.NodeID(id.String()), Until: until})
	}
	slices.SortFunc(out.Banned, func(a, b BannedPeer) int { return b.Until.Compare(a.Until) })

	busy := func(m *membership) int64 { return bytesOf(&m.meter.in, 0).Sum() + bytesOf(&m.meter.out, 0).Sum() }
	type ranked struct {
		*membership
		fetching bool
		busy     int64
	}
	order := make([]ranked, len(memberships))
	for i, m := range memberships {
		m.mu.Lock()
		fetching := len(m.sessions) > 0 && (m.blob == nil || !m.have.Full())
		m.mu.Unlock()
		if fetching {
			out.Totals.Fetching++
		}
		order[i] = ranked{m, fetching, busy(m)}
	}
	slices.SortFunc(order, func(a, b ranked) int {
		if a.fetching != b.fetching {
			if a.fetching {
				return -1
			}
			return 1
		}
		return cmp.Compare(b.busy, a.busy)
	})
	for _, m := range order[:min(len(order), maxShownRoots)] {
		out.Roots = append(out.Roots, m.snapshot(now))
	}

	for _, l := range links {
		l.mu.Lock()
		up, roots := l.stream != nil && !l.ended, len(l.members)
		l.mu.Unlock()
		if !up {
			continue
		}
		info := l.info()
		out.Peers = append(out.Peers, PeerSnapshot{
			ID: info.ID, Region: info.Region, Zone: info.Zone, Rack: info.Rack, Server: info.Server,
			RTT: time.Duration(l.rtt.Load()), Roots: roots, In: l.took.Load(), Out: l.gave.Load(), Bad: l.bad.Load(),
		})
	}
	slices.SortFunc(out.Peers, func(a, b PeerSnapshot) int {
		return cmp.Or(cmp.Compare(b.In+b.Out, a.In+a.Out), cmp.Compare(a.ID, b.ID))
	})
	out.Peers = out.Peers[:min(len(out.Peers), maxShownPeers)]
	return out
}

func (m *membership) snapshot(now time.Time) RootSnapshot {
	out := RootSnapshot{
		Root: m.root, In: bytesOf(&m.meter.in, m.meter.local.Load()), Out: bytesOf(&m.meter.out, 0),
		ChunksIn: m.meter.chunksIn.Load(), ChunksOut: m.meter.chunksOut.Load(),
		Hedges: m.meter.hedges.Load(), Wasted: m.meter.wasted.Load(), Bad: m.meter.bad.Load(),
		Age: now.Sub(m.start),
	}
	if c := m.seen.Load(); c != nil {
		out.Peers, out.Complete, out.Servers, out.Known = c.peers, c.complete, c.servers, c.known
	}
	m.mu.Lock()
	out.Readers, out.Trouble = len(m.sessions), m.trouble
	var have chunk.Bitmap
	blob := m.blob
	if blob != nil {
		have = m.have.Clone()
	}
	m.mu.Unlock()
	if blob == nil {
		return out
	}
	cm := blob.Map()
	out.Bytes, out.Chunks, out.Have = cm.StoredBytes, len(cm.Chunks), have.Count()
	if out.HaveBytes = cm.StoredBytes; out.Have < out.Chunks {
		out.HaveBytes = storedBytes(cm, have)
	}
	return out
}
