package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/audit"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// inChains is below spaceAuditLog: [node] -> Chain.
const inChains = 'h'

func keyChain(node meta.NodeID) key { return key{spaceAuditLog, inChains}.last(string(node)) }

// Chain is the end of a node's chain of denials, failed logins and pulls, as it was
// anchored last.
type Chain struct {
	Head audit.Head `cbor:"1,keyasint,omitempty" json:"head"`
	// By is the server that anchored it.
	By meta.NodeID `cbor:"2,keyasint,omitempty" json:"by"`
	// Rewound counts the heads that did not continue the one before: links are lost or
	// were changed. RewoundAt is when that was seen last, Lost how many are missing.
	Rewound   uint64    `cbor:"3,keyasint,omitempty" json:"rewound,omitempty"`
	RewoundAt meta.Time `cbor:"4,keyasint,omitempty" json:"rewound_at,omitempty"`
	Lost      uint64    `cbor:"5,keyasint,omitempty" json:"lost,omitempty"`
}

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
		if h.Node == "" || h.Seq == 0 || len(h.Hash) != 64 {
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
		was, err := load[Chain](t, keyChain(h.Node))
		if err != nil {
			return nil, err
		}
		is := Chain{Head: h, By: c.Server}
		if was != nil {
			is.Rewound, is.RewoundAt, is.Lost = was.Rewound, was.RewoundAt, was.Lost
			if h.Seq == was.Head.Seq && h.Hash == was.Head.Hash {
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
