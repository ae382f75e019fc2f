package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// CollectStrays orders a server to remove what it found in its store and the metadata
// knows nothing of: uploads that were never linked, copies that were made on the way
// to somebody else. Roots that have come to be known meanwhile are left alone. Result:
// StraysResult.
//
// Errors: meta.ErrNotFound when the server is not in the roster.
type CollectStrays struct {
	Server meta.NodeID `cbor:"1,keyasint,omitempty"`
	Strays []Stray     `cbor:"2,keyasint,omitempty"` // 1 to 500
}

// Stray is a blob of a server's store.
type Stray struct {
	Root        digest.CID `cbor:"1,keyasint,omitempty"`
	StoredBytes int64      `cbor:"2,keyasint,omitempty"`
}

// StraysResult counts the orders.
type StraysResult struct {
	Ordered uint32 `cbor:"1,keyasint,omitempty"`
	Bytes   int64  `cbor:"2,keyasint,omitempty"`
}

// MaxStrays bounds the blobs of one command.
const MaxStrays = 500

// Type implements Command.
func (CollectStrays) Type() uint16 { return typeCollectStrays }

// Check implements Command.
func (c CollectStrays) Check() error {
	if n := len(c.Strays); n == 0 || n > MaxStrays {
		return fmt.Errorf("collect %d strays, use 1 to %d: %w", n, MaxStrays, meta.ErrInvalid)
	}
	for _, s := range c.Strays {
		if s.Root.IsZero() || s.StoredBytes < 0 {
			return fmt.Errorf("collect strays: root %s of %d bytes: %w", s.Root, s.StoredBytes, meta.ErrInvalid)
		}
	}
	return nil
}

func (c CollectStrays) apply(t *tx) (any, error) {
	if _, err := findHolder(t, c.Server); err != nil {
		return nil, err
	}
	var result StraysResult
	for _, s := range c.Strays {
		known, err := knownRoot(t, s.Root)
		if err != nil {
			return nil, err
		}
		order, err := t.get(keyOrder(c.Server, s.Root))
		if err != nil {
			return nil, err
		}
		if known || order != nil {
			continue
		}
		if err := t.undiscard(s.Root); err != nil {
			return nil, err
		}
		if _, err := t.collect(s.Root, s.StoredBytes, c.Server); err != nil {
			return nil, err
		}
		result.Ordered++
		result.Bytes += s.StoredBytes
	}
	return result, nil
}

// knownRoot reports whether there is a blob of the root, linked or not.
func knownRoot(r reader, root digest.CID) (bool, error) {
	for _, err := range r.scan(within(keyRoots(root))) {
		return err == nil, err
	}
	return false, nil
}
