// Package state is the deterministic machine that holds the metadata: commands
// change it in log order, questions read it, and every server that has applied the
// same index has the same state, down to its hash.
//
// Start reading at Command (command.go) and at one command, say Publish; each has
// its own file with its struct, number, checks and apply. Machine (machine.go)
// applies them, View answers questions (questions.go), Checkpoint carries the state
// to another server. keys.go has every key, ../DESIGN.md the formats and what holds.
//
// There is no raft here, no clock and no randomness: time and ids come in the
// command, and the order of a map decides nothing. A refusal is a result and
// leaves nothing behind; an error of Apply means that the node must stop.
//
// The package starts no goroutines; Pebble's end with Close.
package state
