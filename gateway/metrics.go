package gateway

import (
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// maxTenantLabels bounds the tenants that have their own label; later ones
// share `other`. Only tenants of existing repositories count.
const maxTenantLabels = 200

// statusLeft counts calls whose client did not wait for the answer. Nobody is told it.
const statusLeft = 499

type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	inFlight prometheus.Gauge
	bytes    *prometheus.CounterVec
	refused  prometheus.Counter
	stalled  prometheus.Counter
	panics   prometheus.Counter
	degraded prometheus.Counter
	lapsed   prometheus.Counter
	cut      prometheus.Counter

	mu      sync.Mutex
	tenants map[meta.TenantName]bool // at most maxTenantLabels
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_gateway_requests_total",
			Help: "Requests answered, by route, status code (499: the client left before its answer) and tenant (the first 200, then `other`).",
		}, []string{"route", "code", "tenant"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "shoal_gateway_request_seconds",
			Help:    "Time from a request's header to the end of its answer, by route.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300},
		}, []string{"route"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shoal_gateway_requests_in_flight",
			Help: "Requests being answered.",
		}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_gateway_body_bytes_total",
			Help: "Bytes of bodies, by route and direction (in, out).",
		}, []string{"route", "direction"}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_gateway_connections_refused_total",
			Help: "Connections closed at once because the limit of connections was reached.",
		}),
		stalled: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_gateway_stalled_total",
			Help: "Exchanges ended because the client moved no byte for the stall timeout.",
		}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_gateway_panics_total",
			Help: "Requests whose handler broke one of our invariants.",
		}),
		degraded: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_gateway_degraded_reads_total",
			Help: "Private reads served although no server said lately that their rights hold.",
		}),
		lapsed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_gateway_lapsed_total",
			Help: "Calls refused because this node has not heard for too long whether rights were taken back.",
		}),
		cut: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_gateway_cut_total",
			Help: "Calls ended on their way because their right was taken back, or may have been.",
		}),
		tenants: map[meta.TenantName]bool{},
	}
	for _, c := range []prometheus.Collector{m.requests, m.seconds, m.inFlight, m.bytes, m.refused, m.stalled, m.panics, m.degraded, m.lapsed, m.cut} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) tenant(name meta.TenantName) string {
	if name == "" {
		return ""
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.tenants[name] {
		if len(m.tenants) == maxTenantLabels {
			return "other"
		}
		m.tenants[name] = true
	}
	return string(name)
}

func (m *metrics) observe(e *exchange, code int, received int64, took time.Duration) {
	m.requests.WithLabelValues(e.route, strconv.Itoa(code), m.tenant(e.tenant)).Inc()
	m.seconds.WithLabelValues(e.route).Observe(took.Seconds())
	m.bytes.WithLabelValues(e.route, "in").Add(float64(received))
	m.bytes.WithLabelValues(e.route, "out").Add(float64(e.stream.written))
}
