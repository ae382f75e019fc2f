package node

import (
	"context"
	"log/slog"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/audit"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/transfer/wait"
)

// maxBrokenChains bounds the chains that a view and a status name.
const maxBrokenChains = 100

// auditHealth is what this node knows to be wrong with the audit log: at /view/audit for
// `shoal doctor`, and in `shoal status`. It is safe for concurrent use.
type auditHealth struct {
	watcher  *watcher
	metadata raftmeta.Asker // nil on agents, which see only the log
	log      *slog.Logger
	chains   atomic.Pointer[[]client.BrokenChain]
}

func newAuditHealth(w *watcher, metadata raftmeta.Asker, log *slog.Logger, metrics prometheus.Registerer) *auditHealth {
	h := &auditHealth{watcher: w, metadata: metadata, log: log}
	if metadata != nil {
		metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "shoal_audit_chains_broken", Help: "Nodes, at most 100, whose chains of denials, logins and pulls once did not continue what was anchored.",
		}, func() float64 { return float64(len(h.trouble().Chains)) }))
	}
	return h
}

// trouble reads memory only.
func (h *auditHealth) trouble() (t client.AuditTrouble) {
	if rewound := h.watcher.rewound.Load(); rewound != nil {
		t.Rewound = rewound.Error()
	}
	if chains := h.chains.Load(); chains != nil {
		t.Chains = *chains
	}
	return t
}

// run looks for chains that did not continue, once a minute.
func (h *auditHealth) run(ctx context.Context) error {
	for {
		if err := h.look(ctx); err != nil && ctx.Err() == nil {
			h.log.Debug("chains of nodes were not looked at", "error", err)
		}
		if !wait.For(ctx, witnessEvery) {
			return nil
		}
	}
}

func (h *auditHealth) look(ctx context.Context) error {
	found, _, err := raftmeta.Ask(ctx, h.metadata, meta.Local, state.ListChains{Rewound: true, Page: state.Page{Limit: maxBrokenChains}})
	if err != nil {
		return err
	}
	broken := make([]client.BrokenChain, len(found))
	for i, c := range found {
		broken[i] = brokenChain(c)
	}
	h.chains.Store(&broken)
	return nil
}

func brokenChain(c audit.Chain) client.BrokenChain {
	return client.BrokenChain{Node: c.Head.Node, Times: c.Rewound, Last: c.RewoundAt, Lost: c.Lost}
}

// showAudit makes the view and what the admin API tells; metadata is nil on agents.
func (n *Node) showAudit(w *watcher, metadata raftmeta.Asker, log *slog.Logger) *auditHealth {
	h := newAuditHealth(w, metadata, log, n.metrics)
	n.audited = h
	n.views["audit"] = func() any { return h.trouble() }
	return h
}
