package consensus

import (
	"context"
	"time"

	"github.com/hashicorp/raft"
)

// Room is how much the disk of the log has left. It comes from the node, which knows
// what else is on it.
type Room int

// Levels of Room.
const (
	// RoomPlenty needs no care.
	RoomPlenty Room = iota
	// RoomLow: this server hands leadership over, stands for election late, and keeps
	// little of the log. What is committed elsewhere it still takes.
	RoomLow
	// RoomFull: nothing is appended, so that the disk never refuses the log in the
	// middle of a write. The server is a follower that lags, until there is room.
	RoomFull
)

const (
	roomEvery = 500 * time.Millisecond
	// Of a server without room: entries kept behind a snapshot, and by how much longer
	// than others it waits before it stands for election.
	thriftyTrailing = 4096
	thriftyPatience = 10
)

// keepRoom does what RoomLow says, and takes it back.
func (n *Node) keepRoom(ctx context.Context) error {
	if n.cfg.Room == nil {
		return nil
	}
	tick := time.NewTicker(roomEvery)
	defer tick.Stop()
	low, leads := false, false
	for {
		if now := n.cfg.Room() != RoomPlenty; now != low {
			low, leads = now, n.economise(now)
		} else if leads { // but once: with every disk low leadership would go round for ever
			leads = !n.handOver()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// economise begins or ends what RoomLow says, and reports whether this server leads on
// though it is low.
func (n *Node) economise(low bool) (leads bool) {
	reload := raft.ReloadableConfig{
		TrailingLogs: n.cfg.Snapshots.Trailing, SnapshotInterval: n.cfg.Snapshots.Every, SnapshotThreshold: n.cfg.Snapshots.Entries,
		HeartbeatTimeout: n.cfg.Timing.Heartbeat, ElectionTimeout: n.cfg.Timing.Election,
	}
	if low {
		reload.TrailingLogs = min(reload.TrailingLogs, thriftyTrailing)
		if len(n.voters()) > 1 {
			reload.HeartbeatTimeout *= thriftyPatience
		}
	}
	if err := n.raft.ReloadConfig(reload); err != nil {
		n.log.Warn("raft keeps its settings", "error", err)
	}
	if !low {
		n.log.Info("the disk of the raft log has room again")
		return false
	}
	n.log.Warn("the disk of the raft log has little room: leadership goes to another server, little of the log is kept")
	leads = !n.handOver()
	// A snapshot lets the log go that is behind it, by whole segments.
	if err := n.raft.Snapshot().Error(); err != nil {
		n.log.Debug("no snapshot now", "error", err)
	}
	return leads
}
