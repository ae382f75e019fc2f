package node

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// autopilot is what a leader does for the cluster without being asked: it raises the
// cluster level once every server's build knows a higher one, drains servers that are
// away for too long, takes that back when they return, and removes those of them that
// nothing remains at. What it decides is planCare, a pure function; what it remembers
// is when each server was heard, and a new leader begins that anew.
type autopilot struct {
	metadata  raftmeta.Asker
	doer      raftmeta.Doer
	self      meta.NodeID
	leads     func() bool
	survey    func(context.Context) []raftmeta.Surveyed
	voters    func() []meta.NodeID
	deadAfter time.Duration // 0: servers that are away are left alone
	log       *slog.Logger

	heard map[meta.NodeID]time.Time // when it last answered, or was first asked
	level uint32                    // that all builds knew the last time
	told  map[meta.NodeID]bool      // draining servers of which it was said that nothing remains
}

const (
	// careEvery is how often the leader looks. A level is raised when all servers knew
	// it twice in a row.
	careEvery = 5 * time.Second
	// surveyLimit is how long a server may take to answer.
	surveyLimit = 3 * time.Second
)

func (a *autopilot) run(ctx context.Context) error {
	tick := time.NewTicker(careEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if !a.leads() {
			a.heard, a.level, a.told = nil, 0, nil
			continue
		}
		if err := a.look(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("the servers were not looked after, trying again", "error", err)
		}
	}
}

// look surveys the servers once and does what planCare says.
func (a *autopilot) look(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, surveyLimit)
	answers := a.survey(limited)
	cancel()
	now := time.Now()
	if a.heard == nil {
		a.heard, a.told = map[meta.NodeID]time.Time{}, map[meta.NodeID]bool{}
	}
	known := map[meta.NodeID]bool{}
	for _, s := range answers {
		known[s.ID] = true
		if _, ok := a.heard[s.ID]; s.Answered || !ok {
			a.heard[s.ID] = now
		}
	}
	for id := range a.heard {
		if !known[id] {
			delete(a.heard, id)
			delete(a.told, id)
		}
	}
	if err := a.raise(ctx, answers); err != nil {
		return err
	}
	nodes, _, err := raftmeta.Ask(ctx, a.metadata, meta.Local, state.ListNodes{Role: meta.RoleServer, Page: state.Page{Limit: 1000}})
	if err != nil {
		return err
	}
	votes := a.voters()
	servers := make([]cared, 0, len(nodes))
	for _, n := range nodes {
		s := cared{id: n.ID, region: n.Region, draining: n.Draining, voter: slices.Contains(votes, n.ID)}
		s.away = now.Sub(a.heard[n.ID])
		if n.Draining != nil {
			left, _, err := raftmeta.Ask(ctx, a.metadata, meta.Local, state.Remains{Server: n.ID})
			if err != nil {
				return err
			}
			s.empty = left.Removable()
			if s.empty && !a.told[n.ID] {
				a.log.Info("nothing remains at a server that was drained, it may be removed", "node", n.ID, "region", n.Region)
			}
			a.told[n.ID] = s.empty
		} else {
			delete(a.told, n.ID)
		}
		servers = append(servers, s)
	}
	if a.deadAfter == 0 {
		return nil
	}
	command := planCare(servers, a.deadAfter)
	if command == nil {
		return nil
	}
	level, _, err := raftmeta.Ask(ctx, a.metadata, meta.Local, state.GetLevel{})
	if err != nil || state.CheckLevel(command, level) != nil {
		return err // Nobody is drained before all can.
	}
	a.log.Warn("the leader acts on a server that is away, or is back", "command", state.Name(command), "what", command, "dead_after", a.deadAfter)
	return a.do(ctx, command)
}

func (a *autopilot) do(ctx context.Context, c state.Command) error {
	_, err := a.doer.Do(ctx, state.Origin{Principal: "node:" + string(a.self)}, c)
	if errors.Is(err, meta.ErrConflict) || errors.Is(err, meta.ErrNotFound) {
		a.log.Info("the state is another by now", "error", err)
		return nil
	}
	return err
}

// raise raises the cluster level to what every server knew this time and the last.
func (a *autopilot) raise(ctx context.Context, answers []raftmeta.Surveyed) error {
	all := levelOfAll(answers)
	before := a.level
	a.level = all
	level, _, err := raftmeta.Ask(ctx, a.metadata, meta.Local, state.GetLevel{})
	if err != nil {
		return err
	}
	hold, _, err := raftmeta.Ask(ctx, a.metadata, meta.Local, state.GetHold{})
	if err != nil {
		return err
	}
	target := min(all, before)
	if hold != 0 {
		target = min(target, hold)
	}
	if level == 0 || target <= level {
		return nil
	}
	a.log.Info("every server knows a higher cluster level, raising it; from here on no older build can run", "level", target, "before", level)
	return a.do(ctx, state.SetLevel{Level: target})
}

// levelOfAll returns the highest level that all servers know, 0 when one does not
// answer.
func levelOfAll(answers []raftmeta.Surveyed) uint32 {
	if len(answers) == 0 {
		return 0
	}
	all := state.Level
	for _, s := range answers {
		if !s.Answered {
			return 0
		}
		all = min(all, s.Level)
	}
	return all
}

// cared is a server as planCare sees it.
type cared struct {
	id       meta.NodeID
	region   meta.RegionName
	away     time.Duration // since it last answered
	draining *meta.Drain
	empty    bool // drained, and nothing remains
	voter    bool
}

// minVoters is how many voters the autopilot leaves the cluster able to have.
const minVoters = 3

// planCare returns the next thing to do about servers that are away, nil for nothing.
//
// One that is back is not drained any more, if the autopilot drained it. One that was
// drained so, is still away, has no vote, and at which nothing remains, is removed, if
// three servers stay. One that is away for deadAfter is drained if
// another of its region is there to take its copies: a region that is away as a whole
// is cut off rather than dead.
func planCare(servers []cared, deadAfter time.Duration) state.Command {
	away := func(s cared) bool { return s.away >= deadAfter }
	for _, s := range servers {
		if s.draining == nil || s.draining.By != meta.DrainAutopilot {
			continue
		}
		switch {
		case s.away < min(deadAfter, 2*careEvery):
			return state.DrainServer{ID: s.id, Autopilot: true}
		case away(s) && s.empty && !s.voter && len(servers) > minVoters:
			return state.RemoveNode{ID: s.id}
		}
	}
	for _, s := range servers {
		if s.draining != nil || !away(s) {
			continue
		}
		if slices.ContainsFunc(servers, func(o cared) bool {
			return o.id != s.id && o.region == s.region && o.draining == nil && !away(o)
		}) {
			return state.DrainServer{ID: s.id, Drain: true, Autopilot: true}
		}
	}
	return nil
}
