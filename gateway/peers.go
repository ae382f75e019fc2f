package gateway

import (
	"context"
	"net"
	"net/http"
	"sync"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// peers knows the connections on which nodes have called, to close them when one is
// removed.
type peers struct {
	mu    sync.Mutex
	of    map[meta.NodeID]map[net.Conn]struct{}
	whose map[net.Conn]meta.NodeID
}

func newPeers() *peers {
	return &peers{of: map[meta.NodeID]map[net.Conn]struct{}{}, whose: map[net.Conn]meta.NodeID{}}
}

// connKey is where a request's context has its connection.
type connKey struct{}

func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// note says that a node called with r.
func (p *peers) note(r *http.Request, id meta.NodeID) {
	c, ok := r.Context().Value(connKey{}).(net.Conn)
	if !ok {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	// Of HTTP/2 a request may come to be served after its connection was closed and
	// forgotten, which its context then says: nobody would forget it again.
	if p.whose[c] == id || r.Context().Err() != nil {
		return
	}
	p.forget(c)
	p.whose[c] = id
	if p.of[id] == nil {
		p.of[id] = map[net.Conn]struct{}{}
	}
	p.of[id][c] = struct{}{}
}

// state is http.Server.ConnState.
func (p *peers) state(c net.Conn, s http.ConnState) {
	if s == http.StateClosed || s == http.StateHijacked {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.forget(c)
	}
}

// forget drops what is known of a connection. It holds mu.
func (p *peers) forget(c net.Conn) {
	id, ok := p.whose[c]
	if !ok {
		return
	}
	delete(p.whose, c)
	if delete(p.of[id], c); len(p.of[id]) == 0 {
		delete(p.of, id)
	}
}

// take returns the connections of a node.
func (p *peers) take(id meta.NodeID) (conns []net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.of[id] {
		conns = append(conns, c)
	}
	return conns
}

// Evict closes the connections of a node that was removed, with all that goes on over
// them.
func (g *Gateway) Evict(id meta.NodeID) {
	conns := g.peers.take(id)
	for _, c := range conns {
		c.Close()
	}
	if len(conns) > 0 {
		g.Log.Info("connections of a removed node were closed", "node", id, "connections", len(conns))
	}
}
