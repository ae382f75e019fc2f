package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/shoal-registry/shoal/dht/host"
	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/remote"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/transfer"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/transfer/wave"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Waves: what transfer/wave asks of the metadata, of the protocols and of the store.

// wavePlans is what a server's own state says of waves.
type wavePlans struct {
	metadata interface {
		raftmeta.Asker
		raftmeta.Watcher
	}
}

func (p wavePlans) Reach(ctx context.Context, index uint64) error {
	q := state.ListWaves{Open: true, Page: state.Page{Limit: 1}}
	_, asOf, err := raftmeta.Ask(ctx, p.metadata, meta.Local, q)
	if err == nil && asOf.Index < index {
		fresh := meta.Local
		fresh.After = meta.Token{Epoch: asOf.Epoch, Index: index}
		_, _, err = raftmeta.Ask(ctx, p.metadata, fresh, q)
	}
	return err
}

func (p wavePlans) Open(ctx context.Context) (waves []meta.Wave, index uint64, err error) {
	// More than may be open at one time.
	const most = 1000
	waves, asOf, err := raftmeta.Ask(ctx, p.metadata, meta.Local, state.ListWaves{Open: true, Page: state.Page{Limit: most}})
	return waves, asOf.Index, err
}

func (p wavePlans) Hosts(ctx context.Context, id string, hosts []meta.NodeID) (w meta.Wave, _ []meta.WaveHost, err error) {
	if w, _, err = raftmeta.Ask(ctx, p.metadata, meta.Local, state.GetWave{ID: id}); err != nil || len(hosts) == 0 {
		return w, nil, err
	}
	known, _, err := raftmeta.Ask(ctx, p.metadata, meta.Local, state.WaveHosts{Wave: id, Nodes: hosts})
	return w, known, err
}

func (p wavePlans) Took(ctx context.Context, id string, after meta.NodeID, limit int) ([]meta.WaveHost, error) {
	hosts, _, err := raftmeta.Ask(ctx, p.metadata, meta.Local, state.ListWaveHosts{Wave: id, Page: state.Page{After: string(after), Limit: limit}})
	return hosts, err
}

func (p wavePlans) Watch(ctx context.Context, changed func()) error {
	_, asOf, err := raftmeta.Ask(ctx, p.metadata, meta.Local, state.GetCluster{})
	if err != nil && !errors.Is(err, meta.ErrNotFound) {
		return err
	}
	changed()
	for change, err := range p.metadata.Watch(ctx, asOf.Index) {
		if err != nil {
			return err
		}
		if change.Kind == feed.KindWave {
			changed()
		}
	}
	return ctx.Err()
}

// waveArbiter sends the commands of a server's desk.
type waveArbiter struct {
	doer raftmeta.Doer
	self meta.NodeID
}

func (a waveArbiter) do(ctx context.Context, c state.Command) (any, error) {
	r, err := a.doer.Do(ctx, state.Origin{Principal: "node:" + string(a.self)}, c)
	return r.Value, err
}

func (a waveArbiter) Admit(ctx context.Context, id string, hosts []meta.NodeID) error {
	_, err := a.do(ctx, state.AdmitHosts{Wave: id, Hosts: hosts})
	return err
}

func (a waveArbiter) Report(ctx context.Context, id string, hosts []meta.WaveHost) error {
	_, err := a.do(ctx, state.ReportHosts{Wave: id, Hosts: hosts})
	return err
}

func (a waveArbiter) End(ctx context.Context, id string) error {
	_, err := a.do(ctx, state.EndWave{ID: id})
	return err
}

func (a waveArbiter) Forget(ctx context.Context, before time.Time) error {
	for {
		const atOnce = 1000
		value, err := a.do(ctx, state.ForgetWaves{Before: meta.TimeOf(before), Limit: atOnce})
		if err != nil {
			return err
		}
		if gone, ok := value.(state.ForgetResult); !ok || gone.Waves+gone.Hosts < atOnce {
			return nil
		}
	}
}

// desk makes a server's desk for waves, and what the admin API shows of it.
func (n *Node) desk(records *raftmeta.Store) (*wave.Desk, waveView, error) {
	d, err := wave.NewDesk(wave.DeskConfig{
		Plans: wavePlans{records}, Arbiter: waveArbiter{records, n.ID()},
		Node:   n.swarmHost.Node,
		Agents: func() []meta.Node { return n.swarmHost.Nodes("", meta.RoleAgent) },
		Leads:  func() bool { return records.Leader() == n.ID() },
		Log:    n.log, Metrics: n.metrics,
	})
	if err != nil {
		return nil, waveView{}, err
	}
	client := &http.Client{Transport: n.transport()}
	return d, waveView{
		self: n.ID(), host: n.swarmHost, desk: d,
		others: remote.NewClient(remote.Config{HTTP: client, Servers: func() []string { return nil }, Timeout: time.Second}),
	}, nil
}

// waveView is the live view of waves over all servers.
type waveView struct {
	self   meta.NodeID
	host   *host.Host
	desk   *wave.Desk
	others *remote.Client
}

func (v waveView) Matching(w *meta.Wave) map[meta.RegionName]int {
	counts := map[meta.RegionName]int{}
	for _, n := range v.host.Nodes("", meta.RoleAgent) {
		if w.Match(n) {
			counts[n.Region]++
		}
	}
	return counts
}

func (v waveView) LeftOut(w *meta.Wave) (ids []meta.NodeID) {
	for _, n := range v.host.Nodes("", meta.RoleAgent) {
		if w.LeavesOut(n) {
			ids = append(ids, n.ID)
		}
	}
	slices.Sort(ids)
	return ids
}

func (v waveView) Progress(ctx context.Context, id string) ([]meta.WaveProgress, []meta.NodeID) {
	var (
		mu        sync.Mutex
		group     sync.WaitGroup
		unreached []meta.NodeID
	)
	sums := map[meta.RegionName]meta.WaveProgress{}
	add := func(regions []meta.WaveProgress) {
		mu.Lock()
		defer mu.Unlock()
		for _, p := range regions {
			s := sums[p.Region]
			s.Region, s.HostBytes = p.Region, max(s.HostBytes, p.HostBytes)
			s.Waiting, s.Fetching, s.Bytes = s.Waiting+p.Waiting, s.Fetching+p.Fetching, s.Bytes+p.Bytes
			sums[p.Region] = s
		}
	}
	add(v.desk.Progress(id))
	for _, s := range v.host.Nodes("", meta.RoleServer) {
		if s.ID == v.self {
			continue
		}
		group.Go(func() {
			regions, err := v.others.Progress(ctx, "https://"+s.Gateway, id)
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				unreached = append(unreached, s.ID)
				return
			}
			add(regions)
		})
	}
	group.Wait()
	all := make([]meta.WaveProgress, 0, len(sums))
	for _, p := range sums {
		all = append(all, p)
	}
	slices.Sort(unreached)
	return all, unreached
}

// expander finds out what a wave's references close over, as the host's own clients
// would: what they will ask of the metadata is then known here, too.
type expander struct {
	names    *catalog.Catalog
	formats  map[string]protocol.Packages
	metadata raftmeta.Asker
	host     meta.Principal
	readable func(meta.Principal, *meta.Repository) bool
}

func (e expander) Expand(ctx context.Context, ref meta.WaveRef, platform string) ([]meta.Blob, error) {
	q := state.GetRepository{Ref: ref.Repo}
	repo, _, err := raftmeta.Ask(ctx, e.metadata, meta.Bounded, q)
	if errors.Is(err, meta.ErrNotFound) {
		repo, _, err = raftmeta.Ask(ctx, e.metadata, meta.Strong, q)
	}
	if err != nil {
		return nil, err
	}
	if !e.readable(e.host, &repo) {
		return nil, fmt.Errorf("%s may not read %s: let its join token say --read %s: %w", e.host.Name, ref.Repo, ref.Repo, meta.ErrDenied)
	}
	format := e.formats[repo.Format]
	if format == nil {
		return nil, fmt.Errorf("this host's build has no waves of format %s, update it: %w", repo.Format, meta.ErrInvalid)
	}
	by := catalog.Caller{Who: e.host}
	pkg := catalog.Package{Repo: ref.Repo, Name: ref.Package}
	if ref.Alias != "" {
		// What the name leads to now is of no matter here: a client will ask, perhaps
		// when no server can answer.
		_, _, _ = e.names.Peek(ctx, by, pkg, ref.Alias)
	}
	v, _, err := e.names.Version(ctx, by, pkg, ref.Version)
	if err != nil {
		return nil, err
	}
	return format.Closure(ctx, e.host, v, platform)
}

// warmed keeps what waves bring.
type warmed struct {
	*transfer.Content
	*store.Disk
}

func (w warmed) Held(ctx context.Context, root digest.CID) (bytes int64) {
	b, err := w.Disk.Open(ctx, root)
	if err != nil {
		return 0
	}
	defer b.Close()
	m := b.Map()
	if b.Complete() {
		return m.StoredBytes
	}
	have := b.Have()
	for i, c := range m.Chunks {
		if have.Has(i) {
			bytes += int64(c.Stored)
		}
	}
	return bytes
}
