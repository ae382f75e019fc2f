package consensus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	autopilot "github.com/hashicorp/raft-autopilot"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/shoal-registry/shoal/raftmeta/consensus/voters"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// members is the change of the Raft configuration that the roster asks for.
type members struct {
	Add, Remove []meta.NodeID
	// Leave says that this leader is out of the roster: another must lead, and
	// remove it.
	Leave bool
}

// planMembers compares the configuration with the roster. Servers join without a
// vote; an empty roster is one not yet written, and changes nothing.
func planMembers(configured []raft.Server, roster []meta.Node, self meta.NodeID) members {
	var p members
	if len(roster) == 0 {
		return p
	}
	for _, node := range roster {
		if !slices.ContainsFunc(configured, func(s raft.Server) bool { return s.ID == raft.ServerID(node.ID) }) {
			p.Add = append(p.Add, node.ID)
		}
	}
	for _, s := range configured {
		switch id := meta.NodeID(s.ID); {
		case holds(roster, id):
		case id == self:
			p.Leave = true
		default:
			p.Remove = append(p.Remove, id)
		}
	}
	slices.Sort(p.Add)
	slices.Sort(p.Remove)
	return p
}

// reconcile lets the configuration follow the roster, one change at a time.
func (n *Node) reconcile() {
	plan := planMembers(n.servers(), n.cfg.Roster.Servers(), n.cfg.Self)
	const patience = 5 * time.Second
	for _, id := range plan.Add {
		if err := n.raft.AddNonvoter(raft.ServerID(id), raft.ServerAddress(id), 0, patience).Error(); err != nil {
			n.log.Debug("cannot add a server yet", "node", id, "error", err)
			return
		}
		n.log.Info("server added to raft", "node", id)
	}
	for _, id := range plan.Remove {
		if err := n.raft.RemoveServer(raft.ServerID(id), 0, patience).Error(); err != nil {
			n.log.Debug("cannot remove a server yet", "node", id, "error", err)
			return
		}
		n.log.Info("server removed from raft", "node", id)
	}
	if plan.Leave {
		if err := n.giveAway(); err != nil {
			n.log.Debug("cannot hand over yet", "error", err)
		}
	}
}

// giveAway makes another voter lead. Raft's own choice, the first of those that are as
// far as any, may be one that does not hear this server, and stays its choice while
// nothing is written; then each other voter is asked in turn.
func (n *Node) giveAway() error {
	err := n.raft.LeadershipTransfer().Error()
	for _, s := range n.servers() {
		if err == nil || n.raft.State() != raft.Leader {
			break
		}
		if s.Suffrage == raft.Voter && meta.NodeID(s.ID) != n.cfg.Self {
			err = n.handTo(s)
		}
	}
	return err
}

// handTo makes a voter lead. Raft says that an attempt has failed before it takes the
// next one, which is waited for.
func (n *Node) handTo(s raft.Server) error {
	for {
		err := n.raft.LeadershipTransferToServer(s.ID, s.Address).Error()
		if !errors.Is(err, raft.ErrLeadershipTransferInProgress) || n.raft.State() != raft.Leader {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// impatient is Raft's transport on which an heir has only so long to answer. Until it
// has, Raft refuses commands and asks no other, long after it has given the attempt up.
type impatient struct {
	*raft.NetworkTransport
	patience time.Duration
}

// TimeoutNow implements raft.Transport. The answer says nothing. A server that hangs
// keeps one goroutine for the transport's own timeout.
func (t impatient) TimeoutNow(id raft.ServerID, target raft.ServerAddress, args *raft.TimeoutNowRequest, _ *raft.TimeoutNowResponse) error {
	done := make(chan error, 1)
	go func() { done <- t.NetworkTransport.TimeoutNow(id, target, args, &raft.TimeoutNowResponse{}) }()
	select {
	case err := <-done:
		return err
	case <-time.After(t.patience):
		return fmt.Errorf("%s does not answer: %w", id, meta.ErrUnavailable)
	}
}

// pilot is raft-autopilot's view of this cluster; it promotes and demotes as
// voters.Plan says, and leaves membership to reconcile.
type pilot struct{ n *Node }

var (
	_ autopilot.ApplicationIntegration = pilot{}
	_ autopilot.Promoter               = pilot{}
)

const (
	regionKey   = "region"
	drainingKey = "draining"
)

// AutopilotConfig implements autopilot.ApplicationIntegration.
func (p pilot) AutopilotConfig() *autopilot.Config {
	return &autopilot.Config{
		LastContactThreshold:    p.n.cfg.Timing.Heartbeat,
		MaxTrailingLogs:         1024,
		ServerStabilizationTime: p.n.cfg.Timing.Stable,
	}
}

// NotifyState implements autopilot.ApplicationIntegration.
func (p pilot) NotifyState(*autopilot.State) {}

// KnownServers implements autopilot.ApplicationIntegration.
func (p pilot) KnownServers() map[raft.ServerID]*autopilot.Server {
	out := map[raft.ServerID]*autopilot.Server{}
	for _, node := range p.n.cfg.Roster.Servers() {
		id := raft.ServerID(node.ID)
		out[id] = &autopilot.Server{
			ID: id, Name: string(node.ID), Address: raft.ServerAddress(id), NodeStatus: autopilot.NodeAlive,
			RaftVersion: raft.ProtocolVersionMax, IsLeader: node.ID == p.n.cfg.Self,
			Meta: map[string]string{regionKey: string(node.Region)},
		}
		if node.Draining != nil {
			out[id].Meta[drainingKey] = "true"
		}
	}
	return out
}

// FetchServerStats implements autopilot.ApplicationIntegration.
func (p pilot) FetchServerStats(ctx context.Context, servers map[raft.ServerID]*autopilot.Server) map[raft.ServerID]*autopilot.ServerStats {
	var mu sync.Mutex
	var group sync.WaitGroup
	out := map[raft.ServerID]*autopilot.ServerStats{}
	for id := range servers {
		if meta.NodeID(id) == p.n.cfg.Self {
			mu.Lock()
			out[id] = &autopilot.ServerStats{LastTerm: p.n.lastTerm(), LastIndex: p.n.raft.LastIndex()}
			mu.Unlock()
			continue
		}
		group.Go(func() {
			a, err := p.n.ask(ctx, meta.NodeID(id), question{Health: true})
			stats := &autopilot.ServerStats{LastContact: -1}
			if err == nil {
				stats = &autopilot.ServerStats{LastContact: a.Contact, LastTerm: a.LastTerm, LastIndex: a.Last}
			}
			mu.Lock()
			defer mu.Unlock()
			out[id] = stats
		})
	}
	group.Wait()
	return out
}

// RemoveFailedServer implements autopilot.ApplicationIntegration; the roster alone
// removes servers.
func (p pilot) RemoveFailedServer(*autopilot.Server) {}

// GetServerExt implements autopilot.Promoter.
func (p pilot) GetServerExt(*autopilot.Config, *autopilot.ServerState) any { return nil }

// GetStateExt implements autopilot.Promoter.
func (p pilot) GetStateExt(*autopilot.Config, *autopilot.State) any { return nil }

// GetNodeTypes implements autopilot.Promoter.
func (p pilot) GetNodeTypes(*autopilot.Config, *autopilot.State) map[raft.ServerID]autopilot.NodeType {
	return nil
}

// FilterFailedServerRemovals implements autopilot.Promoter.
func (p pilot) FilterFailedServerRemovals(*autopilot.Config, *autopilot.State, *autopilot.FailedServers) *autopilot.FailedServers {
	return &autopilot.FailedServers{}
}

// IsPotentialVoter implements autopilot.Promoter.
func (p pilot) IsPotentialVoter(autopilot.NodeType) bool { return true }

// CalculatePromotionsAndDemotions implements autopilot.Promoter.
func (p pilot) CalculatePromotionsAndDemotions(c *autopilot.Config, s *autopilot.State) autopilot.RaftChanges {
	now := time.Now()
	servers := make([]voters.Server, 0, len(s.Servers))
	for id, state := range s.Servers {
		if state.Server.NodeStatus != autopilot.NodeAlive {
			continue // out of the roster, reconcile removes it
		}
		servers = append(servers, voters.Server{
			ID: meta.NodeID(id), Region: meta.RegionName(state.Server.Meta[regionKey]),
			Voter: state.HasVotingRights(), Leader: state.State == autopilot.RaftLeader,
			Ready:   state.Health.IsStable(now, s.ServerStabilizationTime(c)),
			Lost:    !state.Health.Healthy && now.Sub(state.Health.StableSince) > p.n.cfg.Timing.Lost,
			Leaving: state.Server.Meta[drainingKey] != "",
		})
	}
	plan := voters.Plan(servers)
	if len(plan.Promote) > 0 {
		plan.Demote = nil // autopilot would demote one that is lost first: there are never fewer voters meanwhile
	}
	ids := func(from []meta.NodeID) []raft.ServerID {
		out := make([]raft.ServerID, len(from))
		for i, id := range from {
			out[i] = raft.ServerID(id)
		}
		return out
	}
	return autopilot.RaftChanges{Promotions: ids(plan.Promote), Demotions: ids(plan.Demote), Leader: raft.ServerID(plan.Transfer)}
}

// learned is what others said about servers that this one's roster lacks.
type learned struct {
	mu    sync.Mutex
	nodes map[meta.NodeID]meta.Node
	// index is how far those who said it were: once the own state is there, the own
	// roster is as good.
	index uint64
}

// admits reports whether a peer may ask and command: a server of the roster, or one
// that is known otherwise while this one lags behind.
func (n *Node) admits(id peer.ID) bool {
	node := meta.NodeID(id.String())
	return holds(n.cfg.Roster.Servers(), node) || n.ahead(node)
}

func holds(nodes []meta.Node, id meta.NodeID) bool {
	return slices.ContainsFunc(nodes, func(n meta.Node) bool { return n.ID == id })
}

// admitsRaft is the gate of Raft itself, which authenticates nobody: a server of
// the roster that is in the configuration, when there is one.
func (n *Node) admitsRaft(id peer.ID) bool {
	if !n.admits(id) {
		return false
	}
	servers := n.servers()
	return len(servers) == 0 || slices.ContainsFunc(servers, func(s raft.Server) bool { return string(s.ID) == id.String() }) ||
		n.ahead(meta.NodeID(id.String()))
}

// ahead reports whether id is a server of a later state than this server's own: a
// seed while no round has succeeded yet, or one that another server named.
func (n *Node) ahead(id meta.NodeID) bool {
	if holds(n.cfg.Seeds, id) && n.rounds.freshest().began.IsZero() {
		return true
	}
	n.learned.mu.Lock()
	defer n.learned.mu.Unlock()
	_, ok := n.learned.nodes[id]
	return ok && n.replica.applied.get() < n.learned.index
}

// refused notes a stranger. It may be the leader: after a long absence this
// server's roster and configuration know only those of old, so it asks them.
func (n *Node) refused(id peer.ID) {
	n.m.refused.Inc()
	n.log.Debug("stream of a stranger refused", "peer", id)
	select {
	case n.strangers <- struct{}{}:
	default:
	}
}

// learn asks the servers of the roster who else there is, when a stranger came or
// the leader is silent.
func (n *Node) learn(ctx context.Context) error {
	silent := time.NewTicker(3 * n.cfg.Timing.Heartbeat)
	defer silent.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.strangers:
		case <-silent.C:
			if n.Leader() != "" {
				continue
			}
		}
		known := n.cfg.Roster.Servers()
		if len(known) == 0 {
			known = n.cfg.Seeds
		}
		var group sync.WaitGroup
		for _, s := range known {
			if s.ID == n.cfg.Self {
				continue
			}
			group.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, roundLimit)
				defer cancel()
				if a, err := n.ask(ctx, s.ID, question{Servers: true}); err == nil {
					n.learnFrom(a)
				}
			})
		}
		group.Wait()
		select { // at most one asking a second
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

func (n *Node) learnFrom(a *answer) {
	if a.Applied <= n.replica.applied.get() {
		return
	}
	known := n.cfg.Roster.Servers()
	var fresh []meta.Node
	n.learned.mu.Lock()
	if a.Applied > n.learned.index {
		n.learned.index = a.Applied
		n.learned.nodes = map[meta.NodeID]meta.Node{}
		for _, s := range a.Servers {
			n.learned.nodes[s.ID] = s
			if !holds(known, s.ID) {
				fresh = append(fresh, s)
			}
		}
	}
	n.learned.mu.Unlock()
	if len(fresh) > 0 && n.cfg.Learned != nil {
		n.cfg.Learned(fresh)
	}
}
