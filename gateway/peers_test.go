package gateway

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// What is noted of a connection is forgotten with it, also when one of its requests is
// served only after it was closed.
func TestPeersForgetClosedConnections(t *testing.T) {
	p := newPeers()
	conn, other := net.Pipe()
	defer other.Close()
	defer conn.Close()
	ctx, closed := context.WithCancel(withConn(t.Context(), conn))
	r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
	for _, id := range []meta.NodeID{"a", "a", "b"} {
		p.note(r, id)
		if got := p.take(id); len(got) != 1 || got[0] != conn {
			t.Errorf("connections of %s: %v", id, got)
		}
	}
	if got := p.take("a"); got != nil {
		t.Errorf("a still has %v", got)
	}
	closed()
	p.state(conn, http.StateClosed)
	p.note(r, "b")
	if len(p.of) != 0 || len(p.whose) != 0 {
		t.Errorf("of a closed connection %v is kept", p.of)
	}
}
