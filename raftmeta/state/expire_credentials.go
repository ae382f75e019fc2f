package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// maxExpired bounds what one command forgets.
const maxExpired = 500

// ExpireCredentials forgets up to Limit credentials that ended a day ago or earlier.
// Result: ExpiredCredentials.
type ExpireCredentials struct {
	Limit int `cbor:"1,keyasint,omitempty"`
}

// ExpiredCredentials says how many were forgotten.
type ExpiredCredentials struct {
	Forgotten int `cbor:"1,keyasint,omitempty"`
}

// Type implements Command.
func (ExpireCredentials) Type() uint16 { return typeExpireCredentials }

// Check implements Command.
func (c ExpireCredentials) Check() error {
	if c.Limit < 1 || c.Limit > maxExpired {
		return fmt.Errorf("expire tokens: a limit of %d, use 1 to %d: %w", c.Limit, maxExpired, meta.ErrInvalid)
	}
	return nil
}

func (c ExpireCredentials) apply(t *tx) (any, error) {
	var ended []*meta.Credential
	prefix := keyCredentialsEnding()
	for p, err := range t.scan(within(prefix)) {
		if err != nil {
			return nil, err
		}
		if endOf(p.key)+meta.Time(meta.KeepExpired) > t.now || len(ended) == c.Limit {
			break
		}
		known, err := findCredential(t, string(p.key[len(prefix)+8:]))
		if err != nil {
			return nil, err
		}
		ended = append(ended, known)
	}
	for _, known := range ended {
		if err := t.dropCredential(known); err != nil {
			return nil, err
		}
	}
	return ExpiredCredentials{Forgotten: len(ended)}, nil
}
