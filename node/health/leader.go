package health

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// Sight is one server's knowledge of another.
type Sight struct {
	By, Of meta.NodeID
	// Ago is when it was last heard, negative for never; RTT is 0 when unknown.
	Ago, RTT time.Duration
}

// Leader judges how all regions fare while this server leads.
type Leader struct {
	Self     meta.NodeID
	Timing   Timing
	Leads    func() bool
	Metadata raftmeta.Asker
	Doer     raftmeta.Doer
	// Servers lists the servers of the roster.
	Servers func() []meta.Node
	// Sights asks all servers whom they hear; it returns within ctx.
	Sights func(ctx context.Context) []Sight
	Log    *slog.Logger
}

const (
	// judgeEvery is how often the leader looks, sightsTime how long the servers have to
	// say whom they hear.
	judgeEvery = time.Second
	sightsTime = time.Second
	// history is how many incidents are looked at for those of lately.
	history = 100
)

// Run works until ctx ends.
func (l Leader) Run(ctx context.Context) error {
	tick := time.NewTicker(judgeEvery)
	defer tick.Stop()
	var core *Core
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if !l.Leads() {
			core = nil // what it saw is no evidence by the time it leads again
			continue
		}
		if core == nil {
			core = NewCore(l.Timing)
		}
		if err := l.judge(ctx, core); err != nil && ctx.Err() == nil {
			l.Log.Warn("the health of the regions is not judged, trying again", "error", err)
		}
	}
}

// judge looks once.
func (l Leader) judge(ctx context.Context, core *Core) error {
	level, _, err := raftmeta.Ask(ctx, l.Metadata, meta.Local, state.GetLevel{})
	if err != nil || state.CheckLevel(state.SetRegionHealth{}, level) != nil {
		return err
	}
	seen, err := l.look(ctx)
	if err != nil {
		return err
	}
	for _, d := range core.Decide(time.Now(), seen) {
		receipt, err := l.Doer.Do(ctx, state.Origin{Principal: "node:" + string(l.Self)}, d)
		if err != nil {
			if errors.Is(err, meta.ErrNotFound) {
				continue // The region was removed just now.
			}
			return err
		}
		if h, ok := receipt.Value.(meta.RegionHealth); ok && h.Revision == receipt.Token.Index {
			l.Log.Info("the health of a region has changed", "region", h.Region, "state", h.State, "kind", h.Kind, "why", h.Why, "incident", h.Incident, "writes_to", h.Backups)
		}
	}
	return nil
}

func (l Leader) look(ctx context.Context) (Seen, error) {
	limited, cancel := context.WithTimeout(ctx, sightsTime)
	sights := l.Sights(limited)
	cancel()
	seen := Seen{Servers: l.Servers(), Heard: map[meta.NodeID]time.Duration{l.Self: 0}, Lately: map[meta.RegionName]int{}}
	regions := map[meta.NodeID]meta.RegionName{}
	for _, n := range seen.Servers {
		regions[n.ID] = n.Region
	}
	type pair struct{ a, b meta.RegionName }
	distances := map[pair]time.Duration{}
	for _, s := range sights {
		if s.Ago >= 0 {
			if best, ok := seen.Heard[s.Of]; !ok || s.Ago < best {
				seen.Heard[s.Of] = s.Ago
			}
		}
		a, b := regions[s.By], regions[s.Of]
		if s.RTT <= 0 || a == "" || b == "" || a == b {
			continue
		}
		for _, p := range []pair{{a, b}, {b, a}} {
			if best := distances[p]; best == 0 || s.RTT < best {
				distances[p] = s.RTT
			}
		}
	}
	seen.Distance = func(a, b meta.RegionName) time.Duration { return distances[pair{a, b}] }
	// The records come after the sights, and from here: a decision that is on its way is
	// not in them, and is then refused by its Was.
	var err error
	if seen.Records, _, err = raftmeta.Ask(ctx, l.Metadata, meta.Local, state.RegionHealth{}); err != nil {
		return seen, err
	}
	past, _, err := raftmeta.Ask(ctx, l.Metadata, meta.Local, state.ListIncidents{Page: state.Page{Limit: history}})
	if err != nil {
		return seen, err
	}
	since := meta.TimeOf(time.Now().Add(-l.Timing.Memory))
	for _, i := range past {
		if i.Closed > since {
			seen.Lately[i.Region]++
		}
	}
	return seen, nil
}
