package remote_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/remote"
)

// desk answers with what it was told.
type desk struct {
	err  error
	held func() // when set, Sync calls it and waits until its caller leaves
}

func (d *desk) Sync(ctx context.Context, node meta.NodeID, said meta.WaveWord, wait time.Duration) (o meta.WaveOrders, _ error) {
	if d.held != nil {
		d.held()
		<-ctx.Done()
		return o, ctx.Err()
	}
	for _, p := range said.Parts {
		o.Orders = append(o.Orders, meta.WaveOrder{ID: fmt.Sprint(node, " ", p.Wave), State: p.State, In: wait})
	}
	return o, d.err
}

func (d *desk) Progress(wave string) []meta.WaveProgress {
	return []meta.WaveProgress{{Region: meta.RegionName(wave), Waiting: 3}}
}

func serveDesk(t *testing.T, d remote.Desk, who meta.Principal) string {
	prefix, handler := remote.WavesHandler(d)
	mux := http.NewServeMux()
	mux.Handle(prefix, handler(who))
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s.URL
}

func TestSync(t *testing.T) {
	agent := meta.Principal{Node: "a1", Role: meta.RoleAgent}
	gone := httptest.NewServer(nil)
	gone.Close()
	busy := &desk{err: &meta.UnavailableError{Reason: "no_quorum", RetryAfter: time.Second}}
	good := &desk{}
	urls := []string{gone.URL, serveDesk(t, busy, agent), serveDesk(t, good, agent)}
	c := remote.NewClient(remote.Config{HTTP: http.DefaultClient, Servers: func() []string { return urls }})
	said := meta.WaveWord{Parts: []meta.WavePart{{Wave: "w1", State: meta.HostFetching, Bytes: 1, TotalBytes: 2}}}
	orders, err := c.Sync(t.Context(), said, time.Hour)
	if err != nil || len(orders.Orders) != 1 || orders.Orders[0].ID != "a1 w1" || orders.Orders[0].In != 30*time.Second {
		t.Errorf("orders are %+v, %v", orders, err)
	}
	good.err = fmt.Errorf("node a1: %w", meta.ErrNotFound)
	if _, err := c.Sync(t.Context(), said, 0); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("a host that nobody knows: %v", err)
	}
	good.err = nil
	if _, err := c.Sync(t.Context(), meta.WaveWord{Parts: make([]meta.WavePart, 2000)}, 0); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("too many parts: %v", err)
	}
	urls = urls[:2]
	if _, err := c.Sync(t.Context(), meta.WaveWord{}, 0); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("nobody has a quorum: %v", err)
	}
	ctx, leave := context.WithCancel(t.Context())
	good.held = leave
	urls = []string{serveDesk(t, good, agent)}
	if _, err := c.Sync(ctx, meta.WaveWord{}, time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("a host that leaves: %v", err)
	}
}

func TestProgress(t *testing.T) {
	c := remote.NewClient(remote.Config{HTTP: http.DefaultClient})
	url := serveDesk(t, &desk{}, meta.Principal{Node: "s1", Role: meta.RoleServer})
	if p, err := c.Progress(t.Context(), url, "w1"); err != nil || len(p) != 1 || p[0] != (meta.WaveProgress{Region: "w1", Waiting: 3}) {
		t.Errorf("got %+v, %v", p, err)
	}
	url = serveDesk(t, &desk{}, meta.Principal{Node: "a1", Role: meta.RoleAgent})
	if _, err := c.Progress(t.Context(), url, "w1"); err == nil {
		t.Error("an agent is told")
	}
}
