package core

import "time"

// pulse is the history of a recurring time: its mean and mean deviation, smoothed
// as TCP does with round trips (RFC 6298).
type pulse struct{ mean, dev time.Duration }

func (p *pulse) add(sample time.Duration) {
	sample = max(sample, 1)
	if p.mean == 0 {
		p.mean, p.dev = sample, sample/2
		return
	}
	p.dev = (3*p.dev + max(sample-p.mean, p.mean-sample)) / 4
	p.mean = max((7*p.mean+sample)/8, 1)
}

// unit is the length of chunk for which times are kept: longer ones take in proportion
// longer, shorter ones hardly less.
const unit = 256 << 10

// scale is how much longer length bytes take than the unit.
func scale(length uint32) float64 { return max(float64(length)/unit, 1) }

// of is t scaled by how.
func of(t time.Duration, how float64) time.Duration { return time.Duration(float64(t) * how) }

// limit is a time that hardly any sample, scaled by how, exceeds: the mean and times
// deviations, not less than least. Without a history it is a second.
func (p *pulse) limit(times int, how float64, least time.Duration) time.Duration {
	if p.mean == 0 {
		return max(least, time.Second)
	}
	return max(least, of(p.mean+time.Duration(times)*p.dev, how))
}
