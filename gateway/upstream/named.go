package upstream

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// An agent says itself what a server is to get, and may be a stolen host: what it asks for
// ends in a repository that others read. So a server gets for it what is below the
// upstream's own URL, and of other addresses those only that a document names which the
// server itself got of that upstream.

// Names reports whether a document of a proxy's upstream names the address of w for its
// package and version. It reads what this node gets, and believes nothing else of w.
type Names func(ctx context.Context, by catalog.Caller, repo *meta.Repository, w *Want) (bool, error)

// NamedBy says who knows what the documents of a format name. Without it agents are
// refused all addresses that are not below the upstream's URL. A nil Engine knows nobody.
func (e *Engine) NamedBy(format string, names Names) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.names[format] = names
}

// unnamedFor is when an agent whose document was another one may come again: by then it
// knows the server's.
const unnamedFor = time.Second

// named refuses an address for a node that is no server.
//
// Errors: meta.ErrUnavailable when no document names it, as an honest node may have read
// the one before; as Names has them.
func (e *Engine) named(ctx context.Context, node meta.NodeID, repo *meta.Repository, w *Want) error {
	if below(baseURL(repo), w.Path) {
		return nil
	}
	e.mu.Lock()
	names := e.names[repo.Format]
	e.mu.Unlock()
	var ok bool
	var err error
	if names != nil {
		// Once for all that ask at a time: documents may have many megabytes, and a launch wave
		// many agents.
		key := fmt.Sprintf("%s %q %q %q %q", repo.Ref, repo.Upstream.URL, w.Path, w.Package, w.Version)
		var said any
		said, err, _ = e.naming.Do(key, func() (any, error) {
			return names(e.base, catalog.Caller{Who: e.principal()}, repo, w)
		})
		ok, _ = said.(bool)
	}
	if ok || err != nil && !errors.Is(err, meta.ErrNotFound) {
		return err
	}
	e.metrics.requests.WithLabelValues("unnamed").Inc()
	e.unnamed.Do(func() {
		e.log.Warn("a node asked for an address that no document of the upstream names, it was refused; look at that host when this goes on",
			"node", node, "repository", repo.Ref.String(), "path", fmt.Sprintf("%.200s", w.Path))
	})
	return fmt.Errorf("no document of the upstream of %s names %.200q for %q %q: %w", repo.Ref, w.Path, w.Package, w.Version,
		&meta.UnavailableError{Reason: "not_named", RetryAfter: unnamedFor})
}

// below reports whether a path lies at or below a base URL. None climbs: what is asked for
// has no segments of dots (meta.CheckFetchedPath).
func below(base, path string) bool {
	base = strings.TrimSuffix(base, "/")
	return !absolute(path) || path == base || strings.HasPrefix(path, base+"/")
}
