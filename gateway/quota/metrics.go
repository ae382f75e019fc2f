package quota

import (
	"errors"
	"net"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

type metrics struct {
	refused *prometheus.CounterVec
	waited  prometheus.Histogram
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_quota_refused_total",
			Help: "Calls and uploads refused by a limit of their tenant: publish_requests, publish_bytes, download_requests, download_bytes, uploads, principal_uploads, storage, egress; busy is the fair share of a busy node.",
		}, []string{"limit"}),
		waited: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "shoal_quota_turn_seconds",
			Help:    "How long calls waited for their first turn at a busy node.",
			Buckets: []float64{.0001, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 3},
		}),
	}
	return m, errors.Join(r.Register(m.refused), r.Register(m.waited))
}

// UnsentError says that a report did not reach the node above.
type UnsentError struct{ Cause error }

func (e *UnsentError) Error() string { return "not sent: " + e.Cause.Error() }

// Unwrap returns the cause.
func (e *UnsentError) Unwrap() error { return e.Cause }

// Unsent reports whether what failed with err surely was not taken.
func Unsent(err error) bool {
	_, unsent := errors.AsType[*UnsentError](err)
	return unsent
}

// refused reports whether a request failed before any of it was sent.
func refused(err error) bool {
	op, is := errors.AsType[*net.OpError](err)
	return is && op.Op == "dial"
}

// unknown reports whether a command that failed with err may have been applied.
func unknown(err error) bool {
	_, is := errors.AsType[*meta.UnknownOutcomeError](err)
	return is
}

// bytesText writes a size for people.
func bytesText(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	f, unit := float64(n), 0
	for f >= 1024 && unit+1 < len(units) {
		f, unit = f/1024, unit+1
	}
	return strconv.FormatFloat(f, 'f', precision(f), 64) + " " + units[unit]
}

func precision(f float64) int {
	if f == float64(int64(f)) {
		return 0
	}
	return 1
}
