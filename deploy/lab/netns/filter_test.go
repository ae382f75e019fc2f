package netns

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"
	"time"
)

func TestDeafHostsAndReshapedLinks(t *testing.T) {
	needRoot(t)
	n, err := New(0)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	var hosts []*Host
	for _, name := range []string{"a", "b", "c"} {
		h, err := n.Host(name, Place{Group: 1}, Link{})
		if err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, h)
	}
	a, b, c := hosts[0], hosts[1], hosts[2]
	listener, err := a.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	dial := func(from *Host, patience time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		conn, err := from.DialContext(ctx, "tcp", listener.Addr().String())
		if err == nil {
			conn.Close()
		}
		return err
	}
	if err := a.Deaf(b.Addr); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if err := dial(b, time.Second); !errors.As(err, &timeout) && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a deaf host answered, or refused: %v", err)
	}
	if err := dial(c, time.Minute); err != nil {
		t.Errorf("it is deaf to others too: %v", err)
	}
	if err := a.Deaf(); err != nil {
		t.Fatal(err)
	}
	for _, from := range []*Host{b, c} {
		if err := dial(from, time.Minute); err != nil {
			t.Errorf("still deaf to %s: %v", from.Name, err)
		}
	}

	const size, rate = 1 << 20, 16_000_000 // 2 MB a second
	if err := a.Reshape(Link{UpBitsPerSec: rate}); err != nil {
		t.Fatal(err)
	}
	slow := transfer(t, a, b, size)
	if atLeast := time.Duration(float64(size-(128<<10)) * 8 / rate * float64(time.Second)); slow < atLeast*9/10 {
		t.Errorf("%v, faster than the link, %v", slow, atLeast)
	}
	if err := a.Reshape(Link{}); err != nil {
		t.Fatal(err)
	}
	t.Logf("slow %v, as it comes %v", slow, transfer(t, a, b, size))
	if err := a.Reshape(Link{}); err != nil {
		t.Errorf("twice: %v", err)
	}
}
