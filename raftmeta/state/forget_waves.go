package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// ForgetWaves drops waves that were over before Before, the oldest first, and their
// hosts; at most Limit records. Result: ForgetResult.
type ForgetWaves struct {
	Before meta.Time `cbor:"1,keyasint,omitempty"`
	Limit  uint32    `cbor:"2,keyasint,omitempty"` // 1 to 1,000
}

// ForgetResult counts what went.
type ForgetResult struct {
	Waves uint32 `cbor:"1,keyasint,omitempty"`
	Hosts uint32 `cbor:"2,keyasint,omitempty"`
}

// Type implements Command.
func (ForgetWaves) Type() uint16 { return typeForgetWaves }

// Check implements Command.
func (c ForgetWaves) Check() error {
	if c.Limit == 0 || c.Limit > 1000 {
		return fmt.Errorf("forget waves: limit %d, use 1 to 1000: %w", c.Limit, meta.ErrInvalid)
	}
	return nil
}

func (c ForgetWaves) apply(t *tx) (any, error) {
	var result ForgetResult
	oldest := span{lower: key{spaceOverWaves}, upper: key{spaceOverWaves}.u64(clock(c.Before))}
	for p, err := range t.scan(oldest) {
		if err != nil {
			return nil, err
		}
		id, err := parseOverWave(p.key)
		if err != nil {
			return nil, err
		}
		over := append(key(nil), p.key...)
		for host, err := range t.scan(within(keyWaveHosts(id))) {
			if err != nil {
				return nil, err
			}
			if result.Waves+result.Hosts == c.Limit {
				return result, nil
			}
			h, err := decode[meta.WaveHost](host.key, host.value)
			if err != nil {
				return nil, err
			}
			t.del(append(key(nil), host.key...))
			if h.Until != 0 {
				t.del(keyLease(id, h))
			}
			result.Hosts++
		}
		if result.Waves+result.Hosts == c.Limit {
			return result, nil
		}
		t.del(keyWave(id))
		t.del(over)
		result.Waves++
	}
	return result, nil
}
