package upstream_test

import (
	"testing"

	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/gateway/upstream/upstreamtest"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// TestSegmentsLeaveRoom: a file that arrives is cut into segments only where the tenant's
// quota has room for both.
func TestSegmentsLeaveRoom(t *testing.T) {
	h := newHalves(t, 12<<20, 1<<20, true)
	close(h.go_)
	p := start(t)
	p.repo = p.Proxy(t, "acme/large", "npm", h.URL)
	quota := int64(21 << 20)
	if _, err := p.Metadata.Do(t.Context(), state.Origin{Principal: "user:ada"}, state.SetTenant{Name: "acme", Limits: &meta.LimitsChange{StorageBytes: &quota}}); err != nil {
		t.Fatal(err)
	}
	f, a, err := p.Engine.Stream(upstreamtest.Context(t), upstreamtest.By(), &p.repo, upstream.Want{Path: "large", Kind: upstream.File})
	if err != nil || a != nil || f.Record.Size != int64(len(h.whole())) {
		t.Fatalf("%+v, arriving %v, %v", f, a != nil, err)
	}
	u, _, err := raftmeta.Ask(t.Context(), p.Metadata, meta.Local, state.GetUsage{Tenant: "acme"})
	if err != nil || u.Bytes != int64(len(h.whole())) {
		t.Errorf("%d bytes are held of %d, %v", u.Bytes, len(h.whole()), err)
	}
}
