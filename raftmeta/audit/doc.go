// Package audit is the audit log apart from where it is kept: what an entry is, how
// entries make a Merkle tree, what a signed checkpoint of it says, and how somebody
// who trusts nobody but the cluster's root checks all that offline.
//
// Start at Entry. Its encoding is one line of JSON, the line is the leaf, and so an
// export is checked with nothing but SHA-256 (RFC 6962). Tree appends leaves and keeps
// only a compact range; Hashes reads inner nodes for proofs; Checkpoint is the signed
// statement "the log had this size and this root"; Auditor takes an export and
// checkpoints and says what was changed, left out, rewound or forked. Chain is the
// smaller cousin for what nodes see and nobody agrees on: denials, failed logins,
// pulls. Render writes records of all kinds in canonical JSON without their secrets.
//
// Invariants: one value has one encoding, for ever (servers of two builds must make
// the same leaf), so this package writes JSON itself; nothing here reads a clock or
// has a goroutine; a secret never reaches an entry, see Render.
package audit
