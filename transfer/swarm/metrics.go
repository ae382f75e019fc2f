package swarm

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the swarm's own. Labels: direction received or sent; peer server or
// agent; place rack, zone, region or wan; result ok, corrupt or unwanted.
type metrics struct {
	moved    *prometheus.CounterVec
	local    prometheus.Counter
	received *prometheus.CounterVec
	hedges   prometheus.Counter
	busy     prometheus.Counter
	refused  *prometheus.CounterVec
	broken   *prometheus.CounterVec
	bans     prometheus.Counter
}

var places = [...]string{"rack", "zone", "region", "wan"}

func newMetrics(s *Swarm, r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		moved: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_swarm_bytes_total",
			Help: "Bytes of whole chunks exchanged, by direction, kind of peer and how near it is.",
		}, []string{"direction", "peer", "place"}),
		local: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_swarm_local_bytes_total",
			Help: "Bytes that fetches found here already: of an earlier fetch, or of other blobs that share chunks.",
		}),
		received: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_swarm_chunks_received_total",
			Help: "Chunks received, by what became of them.",
		}, []string{"result"}),
		hedges: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_swarm_hedges_total", Help: "Chunks asked of a second peer because the first took too long.",
		}),
		busy: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_swarm_busy_total", Help: "Requests that peers refused as busy.",
		}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_swarm_refused_total", Help: "Times a peer was refused for want of a valid grant, by what is wrong with the grant.",
		}, []string{"reason"}),
		broken: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_swarm_broken_total", Help: "Links ended because the peer broke the protocol, by where it did.",
		}, []string{"where"}),
		bans: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_swarm_bans_total", Help: "Peers kept away because they sent wrong chunks.",
		}),
	}
	if r == nil {
		return m, nil
	}
	gauge := func(name, help string, value func() int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			s.mu.Lock()
			defer s.mu.Unlock()
			return float64(value())
		})
	}
	for _, c := range append(s.collectors(), []prometheus.Collector{
		m.moved, m.local, m.received, m.hedges, m.busy, m.refused, m.broken, m.bans,
		gauge("shoal_swarm_roots", "Roots that are fetched or served now.", func() int { return len(s.byRoot) }),
		gauge("shoal_swarm_links", "Peers that are connected or being connected.", func() int { return len(s.links) }),
		gauge("shoal_swarm_sessions", "Holds on fetches.", func() int {
			n := 0
			for _, m := range s.byRoot {
				m.mu.Lock()
				n += len(m.sessions)
				m.mu.Unlock()
			}
			return n
		}),
	}...) {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// bytes counts n bytes of a whole chunk.
func (m *metrics) bytes(p Peer, near uint8, direction string, n int64) {
	kind := "agent"
	if p.Server {
		kind = "server"
	}
	m.moved.WithLabelValues(direction, kind, places[near]).Add(float64(n))
}
