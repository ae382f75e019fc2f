package clients

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/lab/faults/history"
)

// fate is what must have become of a version.
type fate uint8

const (
	open  fate = iota // nobody can say: an outcome is unknown, or a deletion met a publish
	there             // acknowledged, and nobody tried to delete it
	gone              // its deletion was acknowledged, or its publish refused for good
)

// unsettled is of an alias that a write without known outcome may still change.
const unsettled = -1

// entry is a closed key.
type entry struct {
	name, path string
	kind       history.Kind
	tags       [history.MaxTags]int8 // version that each alias names for good, 0 none
	versions   []kept
}

type kept struct {
	digest string
	fate   fate
}

// Audit is what came out of comparing nodes with the ledger.
type Audit struct {
	Nodes     int   `json:"nodes"`
	Artifacts int64 `json:"artifacts"` // acknowledged ones, each read from every node
	Gone      int64 `json:"deleted"`   // each asked for at every node
	Aliases   int64 `json:"aliases"`   // the same
	Bytes     int64 `json:"bytes"`

	mu    sync.Mutex
	Lost  []string `json:"lost,omitempty"`  // acknowledged, and not there
	Alive []string `json:"alive,omitempty"` // deleted, and there
	Moved []string `json:"moved,omitempty"` // aliases that name something else
	Wrong []string `json:"wrong,omitempty"` // bytes
}

func (a *Audit) note(list *[]string, format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	note(list, format, args...)
}

// Audit reads every acknowledged artifact from every node, and holds aliases and deletions
// against the ledger. Keys must have been closed (Finish). A node that does not answer is
// asked again for patience; what it still does not give is lost.
func (w *Workload) Audit(ctx context.Context, nodes []Node, width int, patience time.Duration) *Audit {
	w.mu.Lock()
	ledger := w.ledger
	w.mu.Unlock()
	audit := &Audit{Nodes: len(nodes)}
	var next atomic.Int64
	var readers sync.WaitGroup
	for range width {
		readers.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(ledger) {
					return
				}
				for _, n := range nodes {
					(&auditor{audit, w, n, patience}).key(ctx, ledger[i], n.Name == nodes[0].Name)
				}
			}
		})
	}
	readers.Wait()
	return audit
}

// auditor compares one node with the ledger.
type auditor struct {
	*Audit
	w        *Workload
	node     Node
	patience time.Duration
}

// get asks until there is an answer; that a node cannot answer right now is none.
func (a *auditor) get(ctx context.Context, method, path string) (answer, error) {
	patience := a.patience
	if a.hopeless() {
		patience = min(patience, 2*time.Second)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		attempt, stop := context.WithTimeout(ctx, 15*time.Second)
		got, err := a.node.ask(attempt, a.w.cfg.Token, method, path, http.Header{headerMode: {"strong"}, "Accept": {image.ManifestType, "*/*"}}, nil, 0)
		stop()
		if err == nil {
			err = got.cut
		}
		if err == nil && got.status < 500 && got.status != http.StatusTooManyRequests {
			return got, nil
		}
		if err == nil {
			err = fmt.Errorf("%d %s", got.status, head(got.body))
		}
		select {
		case <-ctx.Done():
			return got, err
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// hopeless reports whether so much is wrong that there is no use in being patient with
// each of the rest.
func (a *auditor) hopeless() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.Lost)+len(a.Alive)+len(a.Moved) >= 10
}

// key compares one key; counts are taken at one node only.
func (a *auditor) key(ctx context.Context, e entry, counts bool) {
	k := &key{name: e.name, path: e.path, kind: e.kind}
	count := func(n *int64, by int) {
		if counts {
			atomic.AddInt64(n, int64(by))
		}
	}
	for t := range aliases(e.kind) {
		if e.tags[t] == unsettled {
			continue
		}
		count(&a.Aliases, 1)
		got, err := a.get(ctx, http.MethodHead, k.aliasURL(t))
		want, found := "", strings.Trim(got.header.Get("Etag"), `"`)
		if e.tags[t] > 0 {
			want = e.versions[e.tags[t]-1].digest
		}
		if got.status == http.StatusNotFound {
			found = ""
		}
		if err != nil || found != want {
			a.note(&a.Moved, "%s alias %d at %s: %q instead of %q (%v)", e.name, t, a.node.Name, found, want, err)
		}
	}
	for i, v := range e.versions {
		switch v.fate {
		case gone:
			count(&a.Gone, 1)
			if got, err := a.get(ctx, http.MethodHead, k.versionURL(v.digest)); err != nil || got.status != http.StatusNotFound {
				a.note(&a.Alive, "%s version %d at %s: %d (%v)", e.name, i+1, a.node.Name, got.status, err)
			}
		case there:
			count(&a.Artifacts, 1)
			body := a.artifact(ctx, e, k.versionURL(v.digest), v.digest)
			count(&a.Bytes, len(body))
			if e.kind != history.Image || body == nil {
				continue
			}
			var m image.Manifest
			if err := json.Unmarshal(body, &m); err != nil {
				a.note(&a.Wrong, "%s version %d at %s: %v", e.name, i+1, a.node.Name, err)
				continue
			}
			for _, d := range append(m.Layers, m.Config) {
				count(&a.Bytes, len(a.artifact(ctx, e, "/v2/"+Images+"/"+e.path+"/blobs/"+d.Digest, d.Digest)))
			}
		}
	}
}

// artifact reads bytes that must be there; nil when they are not.
func (a *auditor) artifact(ctx context.Context, e entry, path, digest string) []byte {
	got, err := a.get(ctx, http.MethodGet, path)
	if err != nil || got.status != http.StatusOK {
		a.note(&a.Lost, "%s: %s at %s: %d %s (%v)", e.name, path, a.node.Name, got.status, head(got.body), err)
		return nil
	}
	if found := image.DigestOf(got.body); found != digest {
		a.note(&a.Wrong, "%s: %s at %s has digest %s", e.name, path, a.node.Name, found)
		return nil
	}
	return got.body
}
