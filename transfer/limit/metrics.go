package limit

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// places of a peer, as the label says.
const (
	placeZone = iota
	placeCrossZone
	placeWAN
	places
)

var placeNames = [places]string{"zone", "cross_zone", "wan"}

func (f *Flow) place() int {
	switch {
	case f.Beyond:
		return placeWAN
	case f.Zone != "":
		return placeCrossZone
	default:
		return placeZone
	}
}

// Count is how many bytes passed since the start, of one direction, class and place:
// zone (our own), cross_zone or wan.
type Count struct {
	Direction Direction
	Class     Class
	Place     string
	Bytes     int64
}

// Counts returns all counts.
func (b *Budgets) Counts() []Count {
	var all []Count
	for d := range b.sides {
		for class := range b.sides[d].bytes {
			for place := range b.sides[d].bytes[class] {
				all = append(all, Count{Direction(d), Class(class), placeNames[place], b.sides[d].bytes[class][place].Load()})
			}
		}
	}
	return all
}

// collector shows a Budgets to Prometheus. Labels: direction up or down; class; place
// of the peer; budget is the key of the limit, as List names it, or background.
type collector struct{ b *Budgets }

var (
	bytesDesc = prometheus.NewDesc("shoal_limit_bytes_total",
		"Bytes that budgets let through, by direction, class and where the peer is.", []string{"direction", "class", "place"}, nil)
	waitedDesc = prometheus.NewDesc("shoal_limit_wait_seconds_total",
		"Time that transfers waited for bandwidth, summed over all that waited.", []string{"direction", "class"}, nil)
	waitingDesc = prometheus.NewDesc("shoal_limit_waiting",
		"Transfers that wait for bandwidth now.", []string{"direction"}, nil)
	limitDesc = prometheus.NewDesc("shoal_limit_bytes_per_second",
		"Limits in force; one that is not set has no value.", []string{"budget"}, nil)
)

func (collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{bytesDesc, waitedDesc, waitingDesc, limitDesc} {
		out <- d
	}
}

func (c collector) Collect(out chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, kind prometheus.ValueType, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, kind, value, labels...)
	}
	for d := range c.b.sides {
		s, direction := &c.b.sides[d], Direction(d).String()
		for class, name := range classNames {
			send(waitedDesc, prometheus.CounterValue, time.Duration(s.waited[class].Load()).Seconds(), direction, name)
		}
		s.mu.Lock()
		waiting := s.core.waiting
		s.mu.Unlock()
		send(waitingDesc, prometheus.GaugeValue, float64(waiting), direction)
	}
	for _, n := range c.b.Counts() {
		send(bytesDesc, prometheus.CounterValue, float64(n.Bytes), n.Direction.String(), n.Class.String(), n.Place)
	}
	c.b.mu.Lock()
	background := c.b.background
	c.b.mu.Unlock()
	if background > 0 {
		send(limitDesc, prometheus.GaugeValue, float64(background), "background")
	}
	for _, r := range c.b.Limits().List() {
		send(limitDesc, prometheus.GaugeValue, float64(r.BytesPerSec), r.Budget)
	}
}
