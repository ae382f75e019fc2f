// Package raftmeta is the metadata: what exists, decided once for all regions in
// one Raft group, and read everywhere.
//
// Start at ask.go: Ask reads, Doer changes, Watcher follows. A server's Store
// answers from its own state machine (raftmeta/state) and changes it through Raft
// (raftmeta/consensus). An agent's Mirror asks the servers of its region through
// raftmeta/remote, reuses answers for as long as their freshness allows, and serves
// the last known ones, labelled, when no server is reachable. DESIGN.md has the
// invariants and formats.
package raftmeta
