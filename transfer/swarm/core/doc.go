// Package core decides for one member of one blob's swarm: whom to ask for which
// chunk, what to send next, whom to stop trusting.
//
// Core is a state machine. Step takes the time and one Event (a message that
// came, a chunk that was verified, a reader that moved) and returns the Effects
// to carry out. It reads no clock, does no I/O, starts no goroutines, and its only
// randomness is the seed in its Config, so production, tests and the simulator run
// the same code and a run can be replayed. Start reading at Event, Effect and
// Core.Step; ask.go is the downloading half, serve.go the uploading half.
//
// The rules, with their figures, are in transfer/DESIGN.md:
//
//   - A seed (a server, complete or itself still fetching) is asked with PULL and
//     picks the chunk when a slot is free: one that no puller has. So the first copy
//     of each chunk goes out once, spread over all (serve.go).
//   - Other members are asked with WANT for the chunk that is rarest in the reader's
//     window, now and then rarest anywhere; ties are broken by chance (ask.go).
//   - A few upload slots, a short queue, BUSY for more.
//   - Of what came only those are told that lack it, a few at once (tell.go).
//   - What takes longer than its history lets expect is asked of a second peer; who
//     does not live is left out (answer.go, pulse.go); the last few chunks are
//     asked of two from the start; the loser is cancelled.
//   - Servers of different regions trade by the region rule (region.go).
//
// Invariants: a chunk is asked of at most two peers at once; a peer that sent two
// bad chunks is never asked, served or told of again; every list is bounded by
// Config.
package core
