package audit

import (
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Chain is the end of a node's chain of denials, failed logins and pulls, as it was
// anchored last.
type Chain struct {
	Head Head `cbor:"1,keyasint,omitempty" json:"head"`
	// By is the server that anchored it.
	By meta.NodeID `cbor:"2,keyasint,omitempty" json:"by"`
	// Rewound counts the heads that did not continue the one before: links are lost or
	// were changed. RewoundAt is when that was seen last, Lost how many are missing.
	Rewound   uint64    `cbor:"3,keyasint,omitempty" json:"rewound,omitempty"`
	RewoundAt meta.Time `cbor:"4,keyasint,omitempty" json:"rewound_at,omitempty"`
	Lost      uint64    `cbor:"5,keyasint,omitempty" json:"lost,omitempty"`
}

// Retention says what of the audit log may go. Nothing does unless Keep is set,
// and only what was exported.
type Retention struct {
	// Keep is how long entries stay at least; 0 is for ever.
	Keep time.Duration `cbor:"1,keyasint,omitempty" json:"keep"`
	// Exported says that entries below it were exported, by who says so.
	Exported uint64 `cbor:"2,keyasint,omitempty" json:"exported"`
	// Pruned is below which entries are gone. Their hashes stay, so that what was
	// exported can be proved for ever.
	Pruned uint64 `cbor:"3,keyasint,omitempty" json:"pruned"`
}
