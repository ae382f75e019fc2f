// Package wire holds the messages that members of a swarm exchange.
package wire
