package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// SettleCollected is a server's word on what it was ordered to remove: removed, or
// kept, because it has just received the content anew. Once it is applied the server
// does not act on the order any more. Orders that are gone, or newer, are left alone.
type SettleCollected struct {
	Server  meta.NodeID     `cbor:"1,keyasint,omitempty"`
	Removed []CollectedCopy `cbor:"2,keyasint,omitempty"`
	Kept    []CollectedCopy `cbor:"3,keyasint,omitempty"`
}

// CollectedCopy names an order.
type CollectedCopy struct {
	Root  digest.CID `cbor:"1,keyasint,omitempty"`
	Index uint64     `cbor:"2,keyasint,omitempty"` // of the command that ordered it
}

// MaxSettledCopies bounds the orders of one command.
const MaxSettledCopies = 500

// Type implements Command.
func (SettleCollected) Type() uint16 { return typeSettleCollected }

// Check implements Command.
func (c SettleCollected) Check() error {
	if n := len(c.Removed) + len(c.Kept); c.Server == "" || n == 0 || n > MaxSettledCopies {
		return fmt.Errorf("settle %d removals of server %q, use 1 to %d: %w", n, c.Server, MaxSettledCopies, meta.ErrInvalid)
	}
	return nil
}

func (c SettleCollected) apply(t *tx) (any, error) {
	for _, copy := range c.Removed {
		if err := c.settle(t, copy, func(r *ReclaimCount, o *orderRecord) {
			r.Reclaimed++
			r.ReclaimedBytes += o.StoredBytes
			r.Last = t.now
		}); err != nil {
			return nil, err
		}
	}
	for _, copy := range c.Kept {
		if err := c.settle(t, copy, nil); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

func (c SettleCollected) settle(t *tx, copy CollectedCopy, change func(*ReclaimCount, *orderRecord)) error {
	o, err := load[orderRecord](t, keyOrder(c.Server, copy.Root))
	if err != nil || o == nil || o.Index != copy.Index {
		return err
	}
	return t.settleOrder(c.Server, copy.Root, change)
}
