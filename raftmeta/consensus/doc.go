// Package consensus orders commands: one Raft group among the servers of all
// regions, and the reads that follow from it.
//
// It is the only user of hashicorp/raft. Start reading at Node: Propose puts a
// command in the log from any server, Read waits until this server's state has
// seen all that was acknowledged, WaitVisible until the others have seen a write.
// What is replicated is a Machine, of which this package knows bytes only.
//
//   - node.go    opens, runs and stops the parts; leadership
//   - log.go     raft-wal with a checksum an entry and a watchdog
//   - snapshot.go  descriptions of what is durable; the state as one stream
//   - machine.go the machine under Raft: batches, watermark, recent results
//   - stream.go  Raft's transport over libp2p; exchange.go question and answer
//   - propose.go commands, from the leader or forwarded to it
//   - round.go   quorum-index rounds, the age of the local state
//   - peers.go   who was heard from, what they have applied
//   - members.go the Raft configuration follows the roster and voters.Plan
//
// Goroutines belong to Run; those of the Raft library end with it too.
//
// Invariants: a command that was answered is on a majority of voters, fsynced; a
// strong read that began after an answer sees it (DESIGN.md, Consensus, has the
// proof); an entry that fails its checksum is never applied; no stranger's stream
// reaches Raft, which authenticates nobody itself.
//
// Wire: /shoal/<cluster>/raft/1 is hashicorp's own (msgpack), /command/1 and
// /round/1 are codec frames, one answer a question. Sources: Ongaro, Consensus:
// Bridging Theory and Practice (2014), chapters 3, 4 and 6.4; hashicorp/raft issues
// 503, 683, 697.
package consensus
