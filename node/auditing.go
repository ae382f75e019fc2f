package node

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/shoal-registry/shoal/gateway"
	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/node/trail"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/audit"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/transfer/wait"
	"github.com/shoal-registry/shoal/verify/trust"
)

const (
	// trailDir holds a node's chain, witnessFile the last checkpoint that it accepted.
	trailDir    = "trail"
	witnessFile = "audit-witness.json"
	// chainPath is where agents tell servers the ends of their chains.
	chainPath = "/shoal.audit.v1/Chain"

	checkpointEvery = time.Minute
	anchorEvery     = 5 * time.Second
	witnessEvery    = time.Minute     // on agents
	cosignEvery     = 5 * time.Second // on servers
	// cosignTurn is how long the next server of a region waits for the one before it.
	cosignTurn = 20 * time.Second
)

// openTrail opens this node's chain. It runs before the gateway that tells it does.
func (n *Node) openTrail() error {
	var err error
	n.trail, err = trail.Open(trail.Config{Dir: filepath.Join(n.cfg.Data, trailDir), Node: n.ID(), Log: n.log, Metrics: n.metrics})
	if err != nil {
		return err
	}
	n.parts.Add("trail", n.trail.Run)
	return nil
}

// trustsServers is the audit.Trust in servers that a root certifies: either, while one
// replaces the other.
func trustsServers(roots ...*trust.Root) audit.Trust {
	return func(chain [][]byte, at time.Time) (meta.NodeID, meta.RegionName, ed25519.PublicKey, error) {
		var tries []error
		for _, root := range roots {
			id, err := root.Verify(chain, at)
			if err == nil && id.Role != meta.RoleServer {
				err = fmt.Errorf("node %s is no server: %w", id.ID, meta.ErrDenied)
			}
			if err != nil {
				tries = append(tries, err)
				continue
			}
			key, err := trust.PublicKeyOf(id.ID)
			return id.ID, id.Region, key, err
		}
		return "", "", nil, errors.Join(tries...)
	}
}

// watcher keeps what this node last accepted of the audit log and compares every later
// checkpoint with it: a log that was rewound, or is another one, is found here though
// all servers agree on it. One is used by one goroutine; its gauge by any.
type watcher struct {
	path     string
	metadata raftmeta.Asker
	trust    func() audit.Trust
	log      *slog.Logger

	witness audit.Witness
	rewound atomic.Pointer[audit.RewoundError] // the last; nil while all is well
}

func newWatcher(path string, metadata raftmeta.Asker, trusted func() audit.Trust, log *slog.Logger, metrics prometheus.Registerer) (*watcher, error) {
	w := &watcher{path: path, metadata: metadata, trust: trusted, log: log}
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("the last checkpoint of the audit log: %w", err)
	default:
		if err = json.Unmarshal(b, &w.witness); err == nil {
			_, err = w.witness.Last()
		}
		if err != nil {
			return nil, fmt.Errorf("%s is damaged: restore it, or remove it to begin anew with what the servers say now: %w", path, err)
		}
	}
	metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "shoal_audit_rewound", Help: "1 when the servers show an audit log that does not continue the one that this node has seen.",
	}, func() float64 {
		if w.rewound.Load() != nil {
			return 1
		}
		return 0
	}))
	return w, nil
}

// accept compares a checkpoint with the last, by proofs of f's freshness, and keeps it.
//
// Errors: *audit.RewoundError, of which is told; of asking and of the disk.
func (w *watcher) accept(ctx context.Context, next audit.Checkpoint, f meta.Freshness) error {
	last, err := w.witness.Last()
	if err != nil {
		return err
	}
	if next == last {
		w.rewound.Store(nil)
		return nil
	}
	changed := w.witness
	changed.Before = slices.Clone(changed.Before)
	err = changed.Accept(next, func(from, to uint64) (tlog.TreeProof, error) {
		path, _, err := raftmeta.Ask(ctx, w.metadata, f, state.ProveContinuation{From: from, To: to})
		proof := make(tlog.TreeProof, len(path))
		for i, h := range path {
			if len(h) != tlog.HashSize {
				return nil, fmt.Errorf("a proof with a hash of %d bytes: %w", len(h), meta.ErrCorrupt)
			}
			proof[i] = tlog.Hash(h)
		}
		return proof, err
	})
	if err != nil {
		return err
	}
	b, err := json.MarshalIndent(changed, "", "  ")
	if err != nil {
		return err
	}
	if err := WriteFileAtomic(w.path, b, 0o600); err != nil {
		return fmt.Errorf("keep the checkpoint of the audit log: %w", err)
	}
	if last.Epoch != next.Epoch && w.witness.Checkpoint != "" {
		w.log.Warn("the cluster was recovered: the audit log goes on in a new epoch, what was behind its beginning may be lost",
			"epoch", next.Epoch, "entries", next.Size, "entries_seen_before", last.Size)
	}
	w.witness = changed
	w.rewound.Store(nil)
	return nil
}

// alarm tells that the log was rewound, once for each finding.
func (w *watcher) alarm(err error) {
	rewound, ok := errors.AsType[*audit.RewoundError](err)
	if !ok {
		return
	}
	if was := w.rewound.Swap(rewound); was == nil || was.New != rewound.New {
		w.log.Error("do not trust the audit log: "+rewound.Error(), "kept", w.path)
	}
}

// look asks for the last checkpoint, verifies its signatures and accepts it. What looks
// rewound is asked for again with a strong read: another server may only be behind.
func (w *watcher) look(ctx context.Context) error {
	var err error
	for _, f := range []meta.Freshness{meta.Bounded, meta.Strong} {
		var log state.AuditLog
		if log, _, err = raftmeta.Ask(ctx, w.metadata, f, state.GetAuditLog{}); err != nil || log.Checked == nil {
			return err
		}
		var point audit.Checkpoint
		if point, _, err = log.Checked.Verify(w.trust()); err == nil {
			err = w.accept(ctx, point, f)
		}
		if _, rewound := errors.AsType[*audit.RewoundError](err); !rewound {
			return err
		}
	}
	w.alarm(err)
	return err
}

// run looks every so often.
func (w *watcher) run(ctx context.Context) error {
	for wait.For(ctx, witnessEvery) {
		if err := w.look(ctx); err != nil && ctx.Err() == nil {
			w.log.Debug("the audit log was not looked at", "error", err)
		}
	}
	return nil
}

// notary signs checkpoints of the audit log: as leader each minute, else for the region
// when they continue what this server has seen.
type notary struct {
	watcher  *watcher
	metadata raftmeta.Asker
	doer     raftmeta.Doer
	leads    func() bool
	// turn is this server's place among those of its region.
	turn   func() int
	region meta.RegionName
	key    *trust.Key
	chain  func() [][]byte
	log    *slog.Logger
}

func (n *notary) run(ctx context.Context) error {
	for wait.For(ctx, cosignEvery) {
		if err := n.step(ctx, time.Now()); err != nil && ctx.Err() == nil {
			n.watcher.alarm(err)
			n.log.Debug("no checkpoint of the audit log was signed", "error", err)
		}
	}
	return nil
}

// step signs what is to be signed at now.
func (n *notary) step(ctx context.Context, now time.Time) error {
	log, _, err := raftmeta.Ask(ctx, n.metadata, meta.Local, state.GetAuditLog{})
	if err != nil || log.Size == 0 {
		return err
	}
	var last audit.Checkpoint
	var regions []meta.RegionName
	if log.Checked != nil {
		if last, regions, err = log.Checked.Verify(n.watcher.trust()); err != nil {
			return err
		}
	}
	if n.leads() {
		if err := n.prune(ctx, now); err != nil {
			n.log.Warn("audit entries that were exported and are old were not removed", "error", err)
		}
		if log.Checked == nil || last.Epoch != log.Epoch || last.Size < log.Size && now.Sub(last.Time) >= checkpointEvery {
			point := audit.Checkpoint{Cluster: log.Cluster, Epoch: log.Epoch, Size: log.Size, Root: tlog.Hash(log.Root), Time: now.UTC().Truncate(time.Second)}
			return n.sign(ctx, point)
		}
	}
	if log.Checked == nil || last.Epoch != log.Epoch {
		return nil
	}
	if slices.Contains(regions, n.region) {
		return n.watcher.accept(ctx, last, meta.Local)
	}
	if now.Sub(last.Time) < time.Duration(n.turn())*cosignTurn {
		return nil
	}
	return n.sign(ctx, last)
}

// sign accepts a checkpoint, so that no other history is ever signed here, and signs it.
func (n *notary) sign(ctx context.Context, point audit.Checkpoint) error {
	if err := n.watcher.accept(ctx, point, meta.Local); err != nil {
		return err
	}
	var signed audit.Signed
	if err := audit.Sign(point, audit.Signer{Node: n.key.ID(), Region: n.region, Chain: n.chain()}, n.key.Private(), &signed); err != nil {
		return err
	}
	_, err := n.doer.Do(ctx, n.origin(), state.PutCheckpoint{Checkpoint: signed})
	return err
}

func (n *notary) origin() state.Origin {
	return state.Origin{Principal: "node:" + string(n.key.ID())}
}

// prune takes entries away that may go, a part at a time.
func (n *notary) prune(ctx context.Context, now time.Time) error {
	for {
		may, _, err := raftmeta.Ask(ctx, n.metadata, meta.Local, state.Prunable{Now: meta.TimeOf(now)})
		if err != nil || !may {
			return err
		}
		if _, err := n.doer.Do(ctx, n.origin(), state.PruneEntries{}); err != nil {
			return err
		}
	}
}

// anchors merges the ends of the chains of this server and of the agents that tell it,
// and writes those that have moved into the log. It is safe for concurrent use.
type anchors struct {
	metadata raftmeta.Asker
	doer     raftmeta.Doer
	self     meta.NodeID
	own      func() audit.Head
	log      *slog.Logger

	mu       sync.Mutex
	told     map[meta.NodeID]audit.Head // since they were anchored
	anchored audit.Head                 // of this server
}

// maxTold bounds the chains that wait to be anchored.
const maxTold = 50_000

func (a *anchors) tell(h audit.Head) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.told == nil {
		a.told = map[meta.NodeID]audit.Head{}
	}
	if _, ok := a.told[h.Node]; !ok && len(a.told) >= maxTold {
		return &meta.UnavailableError{Reason: "busy", RetryAfter: anchorEvery}
	}
	a.told[h.Node] = h
	return nil
}

// serve takes the end of an agent's chain.
func (a *anchors) serve(c *protocol.Call) error {
	var h audit.Head
	if err := protocol.ReadJSON(c.R, 4<<10, &h); err != nil {
		return err
	}
	h.Node = c.Who.Node // It speaks of its own only.
	if h.Seq == 0 || len(h.Sum) != 64 {
		return fmt.Errorf("the end of a chain has a number and a hash: %w", meta.ErrInvalid)
	}
	if err := a.tell(h); err != nil {
		return err
	}
	c.W.WriteHeader(http.StatusNoContent)
	return nil
}

func (a *anchors) mount() gateway.Mount {
	return gateway.Mount{Name: "audit_chain", Pattern: chainPath, Methods: []string{http.MethodPost}, Action: access.NodeOnly, Serve: a.serve}
}

func (a *anchors) run(ctx context.Context) error {
	for wait.For(ctx, anchorEvery) {
		if err := a.step(ctx); err != nil && ctx.Err() == nil {
			a.log.Debug("ends of chains were not anchored", "error", err)
		}
	}
	return nil
}

// step anchors what has moved. What could not be anchored waits for the next step.
func (a *anchors) step(ctx context.Context) error {
	if level, _, err := raftmeta.Ask(ctx, a.metadata, meta.Local, state.GetLevel{}); err != nil || level < state.AuditLevel {
		return err
	}
	a.mu.Lock()
	heads := a.told
	a.told = nil
	if own := a.own(); own.Seq > 0 && (own.Seq != a.anchored.Seq || own.Sum != a.anchored.Sum) {
		if heads == nil {
			heads = map[meta.NodeID]audit.Head{}
		}
		heads[a.self] = own
	}
	a.mu.Unlock()
	sorted := make([]audit.Head, 0, len(heads))
	for _, h := range heads {
		sorted = append(sorted, h)
	}
	slices.SortFunc(sorted, func(x, y audit.Head) int { return cmp.Compare(x.Node, y.Node) })
	var failed error
	for some := range slices.Chunk(sorted, state.MaxAnchors) {
		err := failed // those behind a part that could not be anchored wait as well
		if err == nil {
			_, err = a.doer.Do(ctx, state.Origin{Principal: "node:" + string(a.self)}, state.AnchorChains{Server: a.self, Heads: some})
		}
		a.mu.Lock()
		for _, h := range some {
			switch _, newer := a.told[h.Node]; {
			case err == nil && h.Node == a.self:
				a.anchored = h
			case err != nil && h.Node != a.self && !newer:
				if a.told == nil {
					a.told = map[meta.NodeID]audit.Head{}
				}
				a.told[h.Node] = h
			}
		}
		a.mu.Unlock()
		failed = err
	}
	return failed
}

// tellChain tells a server the end of this agent's chain when it has moved.
func (n *Node) tellChain(ctx context.Context) error {
	client := &http.Client{Transport: n.transport(), Timeout: 10 * time.Second}
	var told audit.Head
	for wait.For(ctx, anchorEvery) {
		head := n.trail.Head()
		if head.Seq == 0 || head.Seq == told.Seq && head.Sum == told.Sum {
			continue
		}
		body, err := json.Marshal(head)
		if err != nil {
			return err
		}
		for _, url := range n.serverURLs(n.id.Node.Region) {
			if err = postChain(ctx, client, url+chainPath, body); err == nil {
				told = head
				break
			}
		}
		if err != nil && ctx.Err() == nil {
			n.log.Debug("no server was told the end of this node's chain", "error", err)
		}
	}
	return nil
}

func postChain(ctx context.Context, client *http.Client, url string, body []byte) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	response, err := client.Do(r)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 4<<10)) // So that the connection is used again.
	if response.StatusCode/100 != 2 {
		return fmt.Errorf("%s answered %s", url, response.Status)
	}
	return nil
}

// buildAudit adds what keeps the audit log on a server; it returns the mount for agents.
func (n *Node) buildAudit(records *raftmeta.Store, log *slog.Logger) (gateway.Mount, error) {
	me := n.id.Node
	if err := n.openTrail(); err != nil {
		return gateway.Mount{}, err
	}
	w, err := n.auditWatcher(records, log)
	if err != nil {
		return gateway.Mount{}, err
	}
	n.parts.Add("chains", n.showAudit(w, records, log).run)
	n.parts.Add("notary", (&notary{
		watcher: w, metadata: records, doer: records, leads: func() bool { return records.Leader() == me.ID },
		turn:   func() int { return max(slices.Index(n.regionServers(me.Region), me.ID), 0) },
		region: me.Region, key: n.key, chain: n.cred.Chain, log: log,
	}).run)
	merged := &anchors{metadata: records, doer: records, self: me.ID, own: n.trail.Head, log: log}
	n.parts.Add("anchors", merged.run)
	return merged.mount(), nil
}

// followAudit adds what watches the audit log on an agent.
func (n *Node) followAudit(metadata raftmeta.Asker, log *slog.Logger) error {
	if err := n.openTrail(); err != nil {
		return err
	}
	w, err := n.auditWatcher(metadata, log)
	if err != nil {
		return err
	}
	n.showAudit(w, nil, log)
	n.parts.Add("audit", w.run)
	n.parts.Add("chain", n.tellChain)
	return nil
}

func (n *Node) auditWatcher(metadata raftmeta.Asker, log *slog.Logger) (*watcher, error) {
	return newWatcher(filepath.Join(n.cfg.Data, witnessFile), metadata, func() audit.Trust { return trustsServers(n.cred.Root(), n.cred.Newest()) }, log, n.metrics)
}
