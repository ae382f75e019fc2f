package host

import (
	"net"
	"sync/atomic"
	"testing"
	"time"
)

func address(s string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(s), Port: 1} }

func TestPending(t *testing.T) {
	full := 0
	p := newPending(2, func() { full++ })
	one, ok1 := p.enter(address("192.0.2.1"))
	_, ok2 := p.enter(address("192.0.2.254"))
	if _, ok := p.enter(address("192.0.2.77")); !ok1 || !ok2 || ok || full != 1 {
		t.Fatalf("a third of a network: %v %v %v, %d", ok1, ok2, ok, full)
	}
	if _, ok := p.enter(address("192.0.3.1")); !ok {
		t.Fatal("another network")
	}
	one()
	one() // of no effect
	again, ok := p.enter(address("::ffff:192.0.2.9"))
	if !ok {
		t.Fatal("a place that was given back")
	}
	again()
	for range 2 {
		p.enter(address("2001:db8:1:2::1"))
	}
	if _, ok := p.enter(address("2001:db8:1:ff::1")); ok {
		t.Fatal("a third of an IPv6 site")
	}
	if _, ok := p.enter(address("2001:db8:1:100::1")); !ok {
		t.Fatal("another IPv6 site")
	}
	for range 10 {
		if _, ok := p.enter(address("127.0.0.1")); !ok {
			t.Fatal("loopback")
		}
	}
}

// local is an address of this machine that is not loopback, where there is one.
func local(t *testing.T) string {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() {
			return n.IP.String()
		}
	}
	t.Skip("this machine has loopback only")
	return ""
}

// Strangers who connect and say nothing hold their network's places, no more, and a
// connection beyond them is closed at once; when they go the places are free.
func TestSilentStrangers(t *testing.T) {
	inner, err := net.Listen("tcp", local(t)+":0")
	if err != nil {
		t.Fatal(err)
	}
	var full atomic.Int64
	open := &sockets{by: map[ends]*Socket{}, pending: newPending(3, func() { full.Add(1) })}
	l := listener{inner: inner, sockets: open}
	accepted := make(chan *Socket, 16)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c.(*Socket)
		}
	}()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	var held []*Socket
	for range 3 {
		dial()
		held = append(held, <-accepted)
	}
	c := dial()
	if err := c.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || full.Load() != 1 {
		t.Fatalf("a fourth: %v, %d", err, full.Load())
	}
	held[0].known() // it has proved who it is
	dial()
	held = append(held, <-accepted)
	held[1].Close()
	dial()
	held = append(held, <-accepted)
	for _, s := range held {
		s.Close()
	}
	if len(open.pending.by) != 0 {
		t.Fatalf("left: %v", open.pending.by)
	}
	inner.Close()
	<-done
}
