package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/audit"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// inChains is below spaceAuditLog: [node] -> audit.Chain.
const inChains = 'h'

func keyChain(node meta.NodeID) key { return key{spaceAuditLog, inChains}.last(string(node)) }

// AnchorChains writes the ends of chains into the log: a server's own and those of the
// agents that told it theirs. The entry of the command is what anchors them. A head
// that goes back is kept and counted as rewound, or the chain could never go on.
//
// Errors: meta.ErrNotFound when the server is not in the roster.
type AnchorChains struct {
	Server meta.NodeID  `cbor:"1,keyasint,omitempty"`
	Heads  []audit.Head `cbor:"2,keyasint,omitempty"` // 1 to 500
}

// MaxAnchors bounds the heads of one AnchorChains.
const MaxAnchors = 500

// Type implements Command.
func (AnchorChains) Type() uint16 { return typeAnchorChains }

// Check implements Command.
func (c AnchorChains) Check() error {
	if c.Server == "" || len(c.Heads) == 0 || len(c.Heads) > MaxAnchors {
		return fmt.Errorf("anchor %d chains of server %q: 1 to %d: %w", len(c.Heads), c.Server, MaxAnchors, meta.ErrInvalid)
	}
	for _, h := range c.Heads {
		if h.Node == "" || h.Seq == 0 || len(h.Sum) != 64 {
			return fmt.Errorf("anchor the chain of node %q: a head has a number and a hash: %w", h.Node, meta.ErrInvalid)
		}
	}
	return nil
}

func (c AnchorChains) apply(t *tx) (any, error) {
	if _, err := findServer(t, c.Server); err != nil {
		return nil, err
	}
	for _, h := range c.Heads {
		was, err := load[audit.Chain](t, keyChain(h.Node))
		if err != nil {
			return nil, err
		}
		is := audit.Chain{Head: h, By: c.Server}
		if was != nil {
			is.Rewound, is.RewoundAt, is.Lost = was.Rewound, was.RewoundAt, was.Lost
			if h.Seq == was.Head.Seq && h.Sum == was.Head.Sum {
				continue
			}
			if h.Seq <= was.Head.Seq {
				is.Rewound, is.RewoundAt = was.Rewound+1, t.now
				is.Lost += was.Head.Seq - h.Seq
			}
		}
		t.put(keyChain(h.Node), is)
	}
	return nil, nil
}
