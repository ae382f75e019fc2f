// Package model simulates launch waves: the product's decision core
// (transfer/swarm/core) for every host and server, over modelled links, in virtual time.
//
// Start at Scenario, Run and Result. Inside, sim.go has the state and the loop over
// events, host.go what a shell does around its cores (links, HAVEs, messages, readers),
// registrar.go the introductions, net.go the links, clock.go the queue of events.
//
// What is modelled: up- and downlinks of hosts and servers as queues that take
// segments of up to a quarter of a chunk; round trips; at most two unconfirmed
// segments of a chunk inside a region; caps on what enters and leaves a region; losses as
// stalls; what control messages cost the links; connections, membership with its bounds and
// referrals; introductions of half a zone with leases, over the server's own link; small blobs
// inside them; peer exchange; sends and links that end for want of progress. What is not:
// processors and disks of agents, TCP's own search for its rate, lost connections besides the
// faults.
//
// Invariants: one goroutine, no clock but the model's, no map iterated where order could
// show, so a seed replays a run step for step (Result.Trace is a hash of all steps).
// A chunk counts as sent or taken only as the core decides it; Result.Breaches counts
// wrong chunks that were taken and chunks sent by who does not have them.
package model
