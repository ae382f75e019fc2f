package netns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
)

func TestParseDev(t *testing.T) {
	text := "Inter-|   Receive  |  Transmit\n face |bytes packets|bytes\n" +
		"    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0\n" +
		"  eth0: 98765432   99999    0    0    0     0          0         0   123456     200    0    0    0     0       0          0\n"
	got, err := parseDev(text, "eth0")
	if err != nil || got != (Traffic{Sent: 123456, Received: 98765432}) {
		t.Errorf("eth0: %+v, %v", got, err)
	}
	if _, err := parseDev(text, "eth1"); err == nil {
		t.Error("found an interface that is not there")
	}
	if _, err := parseDev("eth0: 1 2\n", "eth0"); err == nil {
		t.Error("read a short line")
	}
}

// needRoot skips where namespaces cannot be had; on CI that is a failure.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("CI must run the lab's tests as root")
	}
	t.Skip("SKIPPED: not root, so there are no network namespaces")
}

// transfer sends n bytes from one host to the other and returns how long it took.
func transfer(t *testing.T, from, to *Host, n int64) time.Duration {
	t.Helper()
	listener, err := to.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	// Before the first byte can be sent: what came while nobody took it in counts too.
	start := time.Now()
	sent := make(chan error, 1)
	go func() {
		conn, err := from.DialContext(t.Context(), "tcp", listener.Addr().String())
		if err == nil {
			_, err = io.CopyN(conn, image.Random(1), n)
			conn.Close()
		}
		sent <- err
	}()
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	got, err := io.Copy(io.Discard, conn)
	if err != nil || got != n {
		t.Fatalf("received %d of %d bytes: %v", got, n, err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	return time.Since(start)
}

func TestLinksAreLimitedAndCounted(t *testing.T) {
	needRoot(t)
	n, err := New(0)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	const rate = 80_000_000 // 10 MB a second
	var hosts []*Host
	for _, h := range []struct {
		name  string
		place Place
		link  Link
	}{
		{"free", Place{1, 2}, Link{}},
		{"slow up", Place{1, 1}, Link{UpBitsPerSec: rate}},
		{"slow down", Place{2, 1}, Link{DownBitsPerSec: rate}},
		{"neighbour", Place{1, 2}, Link{}},
		{"anywhere", Place{1, 0}, Link{}},
	} {
		host, err := n.Host(h.name, h.place, h.link)
		if err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, host)
	}
	free, slowUp, slowDown, neighbour, anywhere := hosts[0], hosts[1], hosts[2], hosts[3], hosts[4]
	const size = 4 << 20
	// A link cannot be faster than its bucket: the burst and the rest at the rate.
	atLeast := time.Duration(float64(size-(128<<10)) * 8 / rate * float64(time.Second))
	for _, c := range []struct {
		from, to *Host
		slow     bool
		foreign  bool
		zone     bool // another one of the group
	}{
		{slowUp, free, true, false, true},
		{free, slowUp, false, false, true},
		{free, slowDown, true, true, false},
		{slowDown, free, false, true, false},
		{neighbour, free, false, false, false},
		{anywhere, free, false, false, true},
		{free, anywhere, false, false, false}, // which does not say where it is
	} {
		before, err := c.to.Traffic()
		if err != nil {
			t.Fatal(err)
		}
		took := transfer(t, c.from, c.to, size)
		after, err := c.to.Traffic()
		if err != nil {
			t.Fatal(err)
		}
		got := after.Sub(before)
		t.Logf("%s -> %s: %v, %+v", c.from.Name, c.to.Name, took.Round(time.Millisecond), got)
		if c.slow && took < atLeast*9/10 {
			t.Errorf("%s -> %s: %v, faster than the link, %v", c.from.Name, c.to.Name, took, atLeast)
		}
		if got.Received < size || got.Received > size*5/4 {
			t.Errorf("%s -> %s: received %d bytes for %d", c.from.Name, c.to.Name, got.Received, size)
		}
		if c.foreign && (got.Foreign < size || got.Foreign > got.Received) || !c.foreign && got.Foreign != 0 {
			t.Errorf("%s -> %s: %d foreign bytes of %d", c.from.Name, c.to.Name, got.Foreign, got.Received)
		}
		if c.zone && (got.OtherZone < size || got.OtherZone > got.Received) || !c.zone && got.OtherZone != 0 {
			t.Errorf("%s -> %s: %d bytes from another zone of %d", c.from.Name, c.to.Name, got.OtherZone, got.Received)
		}
	}
}

// ask sends a byte over a connection between the hosts and waits for the answer.
func ask(ctx context.Context, t *testing.T, from, to *Host) (time.Duration, error) {
	t.Helper()
	listener, err := to.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			_, _ = io.CopyN(conn, conn, 1)
			conn.Close()
		}
	}()
	conn, err := from.DialContext(ctx, "tcp", listener.Addr().String())
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	start := time.Now()
	if _, err := conn.Write([]byte{1}); err != nil {
		return 0, err
	}
	_, err = io.ReadFull(conn, make([]byte, 1))
	return time.Since(start), err
}

func TestOtherGroupsAreFarAway(t *testing.T) {
	needRoot(t)
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("SKIPPED: no TUN devices: ", err)
	}
	const rtt, size = 60 * time.Millisecond, 1 << 20
	n, err := New(rtt)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	var hosts []*Host
	for i, group := range []int{1, 1, 2} {
		h, err := n.Host(fmt.Sprint(i), Place{Group: group}, Link{UpBitsPerSec: 200e6, DownBitsPerSec: 200e6})
		if err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, h)
	}
	// The shortest of some: a busy machine holds up what the relay does not.
	near := time.Hour
	for try := 0; try < 100 && near >= rtt; try++ {
		took, err := ask(t.Context(), t, hosts[0], hosts[1])
		if err != nil {
			t.Fatal(err)
		}
		near = min(near, took)
	}
	far, err := ask(t.Context(), t, hosts[0], hosts[2])
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("within the group %v, between groups %v", near, far)
	if far < rtt || near >= rtt {
		t.Errorf("within the group %v, between groups %v, want less and at least %v", near, far, rtt)
	}
	// What is held still passes the link and its counters.
	before, err := hosts[2].Traffic()
	if err != nil {
		t.Fatal(err)
	}
	took := transfer(t, hosts[0], hosts[2], size)
	after, err := hosts[2].Traffic()
	if err != nil {
		t.Fatal(err)
	}
	if got := after.Sub(before); got.Foreign < size || got.Foreign > size*5/4 {
		t.Errorf("%d bytes crossed the link for %d, in %v", got.Foreign, size, took)
	}
}

func TestACutLinkIsSilent(t *testing.T) {
	needRoot(t)
	n, err := New(0)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	var hosts []*Host
	for i := range 2 {
		h, err := n.Host(fmt.Sprint(i), Place{Group: 1}, Link{})
		if err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, h)
	}
	if err := hosts[1].Cut(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := ask(ctx, t, hosts[0], hosts[1]); !errors.Is(err, context.DeadlineExceeded) && !os.IsTimeout(err) {
		t.Errorf("over a cut link: %v, not silence", err)
	}
	if err := hosts[1].Mend(); err != nil {
		t.Fatal(err)
	}
	if _, err := ask(t.Context(), t, hosts[0], hosts[1]); err != nil {
		t.Errorf("over a mended link: %v", err)
	}
}

func TestTwoNetworksDoNotMeet(t *testing.T) {
	needRoot(t)
	for range 2 {
		n, err := New(0)
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		// The same address in both: only isolation makes this work.
		h, err := n.Host("h", Place{Group: 1}, Link{UpBitsPerSec: 1e9, DownBitsPerSec: 1e9})
		if err != nil {
			t.Fatal(err)
		}
		if h.Addr.String() != "10.1.0.1" {
			t.Errorf("address %v", h.Addr)
		}
	}
}
