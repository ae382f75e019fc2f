package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// ReportEgress adds what clients have downloaded since the last report, by tenant, at a
// server and its agents. It is one command each few seconds, whatever the number of
// requests. Tenants that are gone are passed over.
type ReportEgress struct {
	Sums []EgressSum `cbor:"1,keyasint,omitempty"` // at most 1,000
}

// EgressSum is what was downloaded of a tenant.
type EgressSum struct {
	Tenant   meta.TenantName `cbor:"1,keyasint,omitempty"`
	Bytes    int64           `cbor:"2,keyasint,omitempty"`
	Requests int64           `cbor:"3,keyasint,omitempty"`
}

// Egress is what clients downloaded in the present day and month (UTC) and the ones
// before, as it was last reported. Day and Month name which they were.
type Egress struct {
	Day           string `cbor:"1,keyasint,omitempty" json:"day,omitempty"`
	DayBytes      int64  `cbor:"2,keyasint,omitempty" json:"day_bytes"`
	DayRequests   int64  `cbor:"3,keyasint,omitempty" json:"day_requests"`
	Month         string `cbor:"4,keyasint,omitempty" json:"month,omitempty"`
	MonthBytes    int64  `cbor:"5,keyasint,omitempty" json:"month_bytes"`
	MonthRequests int64  `cbor:"6,keyasint,omitempty" json:"month_requests"`
	LastDayBytes  int64  `cbor:"7,keyasint,omitempty" json:"last_day_bytes"`
	// LastMonthBytes is of the month before Month in which there was any.
	LastMonthBytes int64 `cbor:"8,keyasint,omitempty" json:"last_month_bytes"`
}

// In returns the bytes of the period that now is in.
func (e Egress) In(p meta.Period, now meta.Time) int64 {
	switch {
	case p == meta.PerDay && e.Day == p.Of(now):
		return e.DayBytes
	case p != meta.PerDay && e.Month == p.Of(now):
		return e.MonthBytes
	}
	return 0
}

type egressRecord struct {
	Egress Egress         `cbor:"1,keyasint,omitzero"`
	Said   meta.Threshold `cbor:"2,keyasint,omitempty"`
}

// maxSums bounds the tenants of one report.
const maxSums = 1000

// Type implements Command.
func (ReportEgress) Type() uint16 { return typeReportEgress }

// Check implements Command.
func (c ReportEgress) Check() error {
	if len(c.Sums) == 0 || len(c.Sums) > maxSums {
		return fmt.Errorf("report egress of %d tenants, use 1 to %d: %w", len(c.Sums), maxSums, meta.ErrInvalid)
	}
	for _, s := range c.Sums {
		if err := meta.CheckTenant(s.Tenant); err != nil {
			return err
		}
		if s.Bytes < 0 || s.Bytes > maxReserved || s.Requests < 0 || s.Requests > maxReserved {
			return fmt.Errorf("report egress of %s: %d bytes, %d requests: %w", s.Tenant, s.Bytes, s.Requests, meta.ErrInvalid)
		}
	}
	return nil
}

func (c ReportEgress) apply(t *tx) (any, error) {
	for _, s := range c.Sums {
		tenant, err := load[meta.Tenant](t, keyTenant(s.Tenant))
		if err != nil {
			return nil, err
		}
		if tenant == nil {
			continue
		}
		r, err := load[egressRecord](t, keyEgress(s.Tenant))
		if err != nil {
			return nil, err
		}
		if r == nil {
			r = &egressRecord{}
		}
		r.Egress.add(s, t.now)
		t.putEgress(tenant, r)
	}
	return nil, nil
}

// add counts a sum in the periods that now is in. Time that ran back (a leader with
// another clock) counts in the periods there are.
func (e *Egress) add(s EgressSum, now meta.Time) {
	if day := meta.PerDay.Of(now); day > e.Day {
		e.Day, e.LastDayBytes, e.DayBytes, e.DayRequests = day, e.DayBytes, 0, 0
	}
	if month := meta.PerMonth.Of(now); month > e.Month {
		e.Month, e.LastMonthBytes, e.MonthBytes, e.MonthRequests = month, e.MonthBytes, 0, 0
	}
	e.DayBytes, e.DayRequests = e.DayBytes+s.Bytes, e.DayRequests+s.Requests
	e.MonthBytes, e.MonthRequests = e.MonthBytes+s.Bytes, e.MonthRequests+s.Requests
}

// putEgress stores what was downloaded, and tells followers of a threshold.
func (t *tx) putEgress(tenant *meta.Tenant, r *egressRecord) {
	l := tenant.Limits
	said := meta.ThresholdOf(r.Egress.In(l.EgressPeriod, t.now), l.EgressBytes, l.EgressWarn)
	if said != r.Said {
		r.Said = said
		t.emit(feed.Change{Kind: feed.KindQuota, Name: string(tenant.Name)})
	}
	t.put(keyEgress(tenant.Name), r)
}
