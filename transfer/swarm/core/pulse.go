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

// limit is a time that hardly any sample exceeds: the mean and times deviations,
// not less than least. Without a history it is a second.
func (p *pulse) limit(times int, least time.Duration) time.Duration {
	if p.mean == 0 {
		return max(least, time.Second)
	}
	return max(least, p.mean+time.Duration(times)*p.dev)
}
