package host

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// minted is an identity that somebody has made up.
func minted(t testing.TB) (crypto.PrivKey, peer.ID) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Error(err)
		return nil, ""
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Error(err)
	}
	return key, id
}

// Ten thousand identities that nobody enrolled: none is accepted at any step, and the
// enrolled nodes go on. The gate judges all of them; a part, all with SHOAL_E2E=full,
// goes through the whole handshake over a socket.
func TestMintedIdentities(t *testing.T) {
	const ids = 10_000
	handshakes := 200
	if os.Getenv("SHOAL_E2E") == "full" {
		handshakes = ids
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	reg := prometheus.NewRegistry()
	server, agent := newHost(t, Config{Metrics: reg}), newHost(t, Config{})
	roster := []meta.Node{enrolled(server, meta.RoleServer), enrolled(agent, meta.RoleAgent)}
	server.SetRoster(roster)
	agent.SetRoster(roster)
	gate := &gate{roster: server.roster, metrics: newMetrics(Swarm)}
	for range ids {
		public, _, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		key, err := crypto.UnmarshalEd25519PublicKey(public)
		if err != nil {
			t.Fatal(err)
		}
		id, err := peer.IDFromPublicKey(key)
		if err != nil {
			t.Fatal(err)
		}
		if gate.InterceptSecured(network.DirInbound, id, nil) || gate.InterceptPeerDial(id) {
			t.Fatalf("%s is let in", id)
		}
	}

	stopPings, pinged := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-stopPings:
				pinged <- n
				return
			default:
			}
			if err := ping(ctx, agent, server.ID()); err != nil {
				t.Errorf("an enrolled node: %v", err)
				<-stopPings
				pinged <- n
				return
			}
			n++
		}
	}()
	began := time.Now()
	var accepted, done atomic.Int64
	var group errgroup.Group
	group.SetLimit(8)
	address := hostPort(t, server)
	for range handshakes {
		group.Go(func() error {
			key, _ := minted(t)
			if knock(ctx, key, server.ID(), address) {
				accepted.Add(1)
			}
			done.Add(1)
			return nil
		})
	}
	_ = group.Wait()
	took := time.Since(began)
	close(stopPings)
	n := <-pinged
	if accepted.Load() != 0 {
		t.Errorf("%d of %d were accepted", accepted.Load(), handshakes)
	}
	if n == 0 {
		t.Error("the enrolled nodes did not get through meanwhile")
	}
	refused := testutil.ToFloat64(mustCounter(t, reg, "shoal_host_refused_total"))
	t.Logf("%d identities judged, %d of them over sockets in %v: 0 accepted, %.0f counted; %d round trips of enrolled nodes meanwhile", ids, handshakes, took.Round(time.Millisecond), refused, n)
}

// hostPort returns the TCP address of a host.
func hostPort(t *testing.T, h *Host) string {
	for _, a := range h.Advertised() {
		parts := strings.Split(a, "/")
		if len(parts) == 5 && parts[3] == "tcp" {
			return net.JoinHostPort(parts[2], parts[4])
		}
	}
	t.Fatalf("no TCP address in %v", h.Advertised())
	return ""
}

// knock goes through the handshake of libp2p by hand and reports whether the other side
// takes the connection: whether it speaks a multiplexer on it.
func knock(ctx context.Context, key crypto.PrivKey, other peer.ID, address string) bool {
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return false
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(time.Minute))
	if !agree(raw, libp2ptls.ID) {
		return false
	}
	transport, err := libp2ptls.New(libp2ptls.ID, key, nil)
	if err != nil {
		return false
	}
	secured, err := transport.SecureOutbound(ctx, raw, other)
	if err != nil {
		return false
	}
	// The dialler's half of the handshake is over before the other side has judged: only
	// a byte from it says that this is a connection.
	return agree(secured, "/yamux/1.0.0")
}

// agree settles on a protocol by multistream-select 1.0.0.
func agree(c net.Conn, id string) bool {
	var text []byte
	for _, line := range []string{"/multistream/1.0.0", id} {
		text = append(append(append(text, byte(len(line)+1)), line...), '\n')
	}
	if _, err := c.Write(text); err != nil {
		return false
	}
	answer := make([]byte, len(text))
	_, err := io.ReadFull(c, answer)
	return err == nil && bytes.Equal(answer, text)
}
