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
//     picks the chunk when a slot is free: least sent, then lowest in the puller's
//     window. So the first copy of each chunk goes out once, spread over all.
//   - Other members are asked with WANT for the chunk that is rarest in the reader's
//     window, now and then rarest anywhere; ties are broken by chance.
//   - A few upload slots at full rate, work waits in a bounded queue.
//   - What takes longer than a few times the usual is asked of a second peer; the
//     last few chunks are asked of two from the start; the loser is cancelled.
//
// Invariants: a chunk is asked of at most two peers at once; a peer that sent two
// bad chunks is never asked, served or told of again; every list is bounded by
// Config.
package core
