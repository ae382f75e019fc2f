package host

import (
	"net"
	"net/netip"
	"sync"
)

// pending bounds the inbound TCP connections whose other side has not proved yet which
// node it is. The gate runs after the handshake, so this is what a network of strangers
// can hold: no one network more than a part, so that the others' nodes still get in.
type pending struct {
	most int // of one network
	full func()

	mu sync.Mutex
	by map[netip.Prefix]int // never 0
}

func newPending(most int, full func()) *pending {
	return &pending{most: most, full: full, by: make(map[netip.Prefix]int)}
}

// Networks that count as one: what one customer is commonly given.
const (
	network4 = 24
	network6 = 56
)

// networkOf is the network of an address; ok is false for loopback, which all nodes of a
// test or of `shoal dev` share, and where nobody is a stranger.
func networkOf(addr net.Addr) (netip.Prefix, bool) {
	tcp, isTCP := addr.(*net.TCPAddr)
	if !isTCP {
		return netip.Prefix{}, false
	}
	ip := tcp.AddrPort().Addr().WithZone("").Unmap()
	if ip.IsLoopback() {
		return netip.Prefix{}, false
	}
	bits := network4
	if ip.Is6() {
		bits = network6
	}
	p, err := ip.Prefix(bits)
	return p, err == nil
}

// enter takes a place for a connection from addr, which leave gives back; it may be called
// more than once. ok is false when the network has all its places taken.
func (p *pending) enter(addr net.Addr) (leave func(), ok bool) {
	from, counts := networkOf(addr)
	if !counts {
		return func() {}, true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.by[from] >= p.most {
		p.full()
		return nil, false
	}
	p.by[from]++
	return sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.by[from]--; p.by[from] == 0 {
			delete(p.by, from)
		}
	}), true
}
