// Package quota bounds what tenants take of a node and of the cluster: rates and
// concurrent uploads (429, they pass by themselves), storage and downloads of a period
// (403, they do not), and a fair share of a node that is busy.
//
// Start at Quota: the gateway asks Admit for each call and tells its Pass of each piece
// of a body; catalog asks Storage for room before it takes bytes. Three pure cores
// decide and know no clock: share.go divides a rate of the whole cluster between nodes,
// turns.go whose work goes on when a node has more than it can do, ledger.go what of a
// reservation is whose. What a tenant may take and has used comes from the metadata,
// read again every 2 s while the tenant is active.
//
// # Rates of the cluster
//
// A node that serves a tenant with a limit says each second how much it could use: an
// agent to a server of its region, a server (for itself and its agents together) to the
// leader. The answers are shares that hold for 10 s (Report, Answer). It is soft state:
// nothing of it is in the log. A node that hears nobody takes its fair part, so that all
// nodes together stay within the rate however the cluster falls apart; one that has just
// begun does the same until its first answer.
//
// # Invariants
//
//   - Nobody waits longer than MaxWait to be admitted, and what waits is bounded by that.
//   - A body that has begun is slowed, never cut.
//   - Bytes that clients read are counted once, where the client is; what nodes move
//     between each other is not counted.
//   - The storage quota holds in the state machine (state.ReserveStorage); a reservation
//     here only spares clients an upload that would be refused.
//
// Run owns the goroutines: the exchange, the reports, the renewal of reservations.
// Source of the division and the turns: max-min fairness (Bertsekas, Gallager: Data
// Networks, 6.5.2) and start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996).
package quota
