package meta

import (
	"fmt"
	"time"
)

// TenantLimits bound what a tenant takes of the whole cluster; 0 is without bound.
type TenantLimits struct {
	// PublishBytes and DownloadBytes are bodies in bytes per second, PublishRequests and
	// DownloadRequests calls per second.
	PublishBytes     int64 `cbor:"1,keyasint,omitempty" json:"publish_bytes,omitempty"`
	PublishRequests  int64 `cbor:"2,keyasint,omitempty" json:"publish_requests,omitempty"`
	DownloadBytes    int64 `cbor:"3,keyasint,omitempty" json:"download_bytes,omitempty"`
	DownloadRequests int64 `cbor:"4,keyasint,omitempty" json:"download_requests,omitempty"`
	// Uploads and PrincipalUploads are bodies that come in at one time, for the tenant
	// and for each principal.
	Uploads          int64 `cbor:"5,keyasint,omitempty" json:"uploads,omitempty"`
	PrincipalUploads int64 `cbor:"6,keyasint,omitempty" json:"principal_uploads,omitempty"`
	// StorageBytes is what the tenant's repositories hold together, each blob once a
	// repository, in plain bytes; from StorageWarn percent of it on clients are warned.
	StorageBytes int64 `cbor:"7,keyasint,omitempty" json:"storage_bytes,omitempty"`
	StorageWarn  int64 `cbor:"8,keyasint,omitempty" json:"storage_warn,omitempty"`
	// EgressBytes is what clients download in one EgressPeriod.
	EgressBytes  int64  `cbor:"9,keyasint,omitempty" json:"egress_bytes,omitempty"`
	EgressWarn   int64  `cbor:"10,keyasint,omitempty" json:"egress_warn,omitempty"`
	EgressPeriod Period `cbor:"11,keyasint,omitempty" json:"egress_period,omitempty"`
}

// DefaultWarn is the percentage of a quota from which clients are warned, when the
// tenant has none of its own.
const DefaultWarn = 80

// maxLimit is more than anybody has, and small enough that sums do not overflow.
const maxLimit = 1 << 60

// Check reports the first limit that cannot hold.
//
// Errors: ErrInvalid.
func (l TenantLimits) Check() error {
	for _, v := range []struct {
		name  string
		value int64
		most  int64
	}{
		{"publish rate", l.PublishBytes, maxLimit}, {"publish requests", l.PublishRequests, maxLimit},
		{"download rate", l.DownloadBytes, maxLimit}, {"download requests", l.DownloadRequests, maxLimit},
		{"concurrent uploads", l.Uploads, maxLimit}, {"concurrent uploads of a principal", l.PrincipalUploads, maxLimit},
		{"storage quota", l.StorageBytes, maxLimit}, {"egress quota", l.EgressBytes, maxLimit},
		{"percentage of the storage quota to warn at", l.StorageWarn, 100},
		{"percentage of the egress quota to warn at", l.EgressWarn, 100},
	} {
		if v.value < 0 || v.value > v.most {
			return fmt.Errorf("%s %d: use 0 (none) to %d: %w", v.name, v.value, v.most, ErrInvalid)
		}
	}
	return l.EgressPeriod.Check()
}

// LimitsChange changes limits of a tenant; nil leaves as it is, zero takes the limit
// away. The fields are those of TenantLimits.
type LimitsChange struct {
	PublishBytes     *int64  `cbor:"1,keyasint,omitempty" json:"publish_bytes,omitempty"`
	PublishRequests  *int64  `cbor:"2,keyasint,omitempty" json:"publish_requests,omitempty"`
	DownloadBytes    *int64  `cbor:"3,keyasint,omitempty" json:"download_bytes,omitempty"`
	DownloadRequests *int64  `cbor:"4,keyasint,omitempty" json:"download_requests,omitempty"`
	Uploads          *int64  `cbor:"5,keyasint,omitempty" json:"uploads,omitempty"`
	PrincipalUploads *int64  `cbor:"6,keyasint,omitempty" json:"principal_uploads,omitempty"`
	StorageBytes     *int64  `cbor:"7,keyasint,omitempty" json:"storage_bytes,omitempty"`
	StorageWarn      *int64  `cbor:"8,keyasint,omitempty" json:"storage_warn,omitempty"`
	EgressBytes      *int64  `cbor:"9,keyasint,omitempty" json:"egress_bytes,omitempty"`
	EgressWarn       *int64  `cbor:"10,keyasint,omitempty" json:"egress_warn,omitempty"`
	EgressPeriod     *Period `cbor:"11,keyasint,omitempty" json:"egress_period,omitempty"`
}

// Of returns l with what changes.
func (c LimitsChange) Of(l TenantLimits) TenantLimits {
	replace(&l.PublishBytes, c.PublishBytes)
	replace(&l.PublishRequests, c.PublishRequests)
	replace(&l.DownloadBytes, c.DownloadBytes)
	replace(&l.DownloadRequests, c.DownloadRequests)
	replace(&l.Uploads, c.Uploads)
	replace(&l.PrincipalUploads, c.PrincipalUploads)
	replace(&l.StorageBytes, c.StorageBytes)
	replace(&l.StorageWarn, c.StorageWarn)
	replace(&l.EgressBytes, c.EgressBytes)
	replace(&l.EgressWarn, c.EgressWarn)
	replace(&l.EgressPeriod, c.EgressPeriod)
	return l
}

func replace[T any](field, to *T) {
	if to != nil {
		*field = *to
	}
}

// Period is what an egress quota is for.
type Period string

// Periods; "" is PerMonth. They begin at midnight UTC.
const (
	PerDay   Period = "day"
	PerMonth Period = "month"
)

// Check refuses a period that is none.
//
// Errors: ErrInvalid.
func (p Period) Check() error {
	switch p {
	case "", PerDay, PerMonth:
		return nil
	}
	return fmt.Errorf("period %q: use day or month: %w", p, ErrInvalid)
}

// Of returns the name of the period that t is in: 2026-11 or 2026-11-22.
func (p Period) Of(t Time) string {
	if p == PerDay {
		return t.Std().UTC().Format(time.DateOnly)
	}
	return t.Std().UTC().Format("2006-01")
}

// Threshold says how much of a quota is used.
type Threshold uint8

// Thresholds.
const (
	BelowQuota Threshold = 0
	NearQuota  Threshold = 1 // clients are warned
	OverQuota  Threshold = 2 // what would add to it is refused
)

func (t Threshold) String() string { return [...]string{"ok", "warning", "over"}[min(t, 2)] }

// MarshalText implements encoding.TextMarshaler.
func (t Threshold) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *Threshold) UnmarshalText(b []byte) error {
	for i := range OverQuota + 1 {
		if string(b) == i.String() {
			*t = i
			return nil
		}
	}
	return fmt.Errorf("threshold %q: %w", b, ErrInvalid)
}

// ThresholdOf compares what is used with a quota (0: none) and the percentage to warn
// at (0: DefaultWarn).
func ThresholdOf(used, quota, warn int64) Threshold {
	if warn == 0 {
		warn = DefaultWarn
	}
	switch {
	case quota == 0:
		return BelowQuota
	case used >= quota:
		return OverQuota
	case float64(used) >= float64(quota)*float64(warn)/100:
		return NearQuota
	}
	return BelowQuota
}

// QuotaError says that a limit of a tenant is reached. A rate passes by itself and is
// ErrOverQuota: try again after RetryAfter. A quota is ErrDenied, for trying again does
// not help.
type QuotaError struct {
	Tenant TenantName
	// Limit says which, as people read it: "publish rate of 100 MiB/s".
	Limit string
	// Help says what to do about it.
	Help string
	// RetryAfter is set for what passes by itself.
	RetryAfter time.Duration
}

func (e *QuotaError) Error() string {
	return fmt.Sprintf("tenant %s has reached its %s; %s", e.Tenant, e.Limit, e.Help)
}

// Unwrap returns ErrOverQuota or ErrDenied.
func (e *QuotaError) Unwrap() error {
	if e.RetryAfter > 0 {
		return ErrOverQuota
	}
	return ErrDenied
}
