package node

import (
	"context"
	"sync"
	"time"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// incidents knows which regions, or their blobs, are out: what is not urgent waits then.
type incidents struct {
	mu     sync.Mutex
	severe map[meta.RegionName]time.Time // since
}

// list takes in how all regions fare.
func (i *incidents) list(ctx context.Context, metadata raftmeta.Asker) error {
	all, _, err := raftmeta.Ask(ctx, metadata, meta.Local, state.RegionHealth{})
	if err != nil {
		return err
	}
	i.mu.Lock()
	i.severe = nil
	i.mu.Unlock()
	for _, h := range all {
		i.note(feed.Change{Region: h.Region, Health: &h})
	}
	return nil
}

// note takes in a change of KindHealth.
func (i *incidents) note(c feed.Change) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if c.Deleted || c.Health == nil || !c.Health.Severe() {
		delete(i.severe, c.Region)
		return
	}
	if i.severe == nil {
		i.severe = map[meta.RegionName]time.Time{}
	}
	i.severe[c.Region] = c.Health.Since.Std()
}

// latest returns since when the latest one is out.
func (i *incidents) latest() (since time.Time, severe bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, s := range i.severe {
		if !severe || s.After(since) {
			since, severe = s, true
		}
	}
	return since, severe
}

// out says whether a region is.
func (i *incidents) out(region meta.RegionName) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	_, severe := i.severe[region]
	return severe
}
