package swarm_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/transfer/swarm"
)

// BenchmarkTransfer moves a blob of 64 MiB from a server to an agent over loopback,
// stores in memory: hash, write, serve, TLS and yamux of both ends in one process.
// Allocations are per chunk (256).
func BenchmarkTransfer(b *testing.B) {
	w := newTown(b)
	content := random(256 * chunk.MinBytes)
	seed := w.add(server, limits(swarm.Limits{IdleAfter: time.Second}))
	root := w.put(seed, content)
	agent := w.add(limits(swarm.Limits{IdleAfter: time.Millisecond, Linger: time.Millisecond}))
	b.SetBytes(int64(len(content)))
	b.ReportAllocs()
	for b.Loop() {
		session, err := agent.Fetch(context.Background(), root, swarm.FetchOptions{})
		if err != nil {
			b.Fatal(err)
		}
		<-session.Done()
		if err := session.Err(); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		_ = session.Close()
		await(b, "the membership has ended", func() bool { return agent.counter("shoal_swarm_roots") == 0 })
		if err := agent.store.Remove(context.Background(), root); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkPlainTLS is the yardstick of BenchmarkTransfer: the same bytes over one
// TLS 1.3 connection on loopback, hashed into a memory store by the receiver.
func BenchmarkPlainTLS(b *testing.B) {
	cert, err := selfSigned()
	if err != nil {
		b.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	content := random(256 * chunk.MinBytes)
	m := mapOf(b, content)
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write(content)
			_ = c.Close()
		}
	}()
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		c, err := tls.DialWithDialer(&net.Dialer{}, "tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // the yardstick has no identity to check
		if err != nil {
			b.Fatal(err)
		}
		blob, err := store.NewMemory().Create(context.Background(), m)
		if err != nil {
			b.Fatal(err)
		}
		buf := make([]byte, chunk.MinBytes)
		for i := range m.Chunks {
			if _, err := io.ReadFull(c, buf); err != nil {
				b.Fatal(err)
			}
			if err := blob.WriteChunk(context.Background(), i, buf); err != nil {
				b.Fatal(err)
			}
		}
		_ = c.Close()
	}
	_ = l.Close()
	<-served
}

// BenchmarkWave is a server and six agents that fetch 64 MiB at once, all in this
// process: MB/s delivered to all agents together.
func BenchmarkWave(b *testing.B) {
	const agents = 6
	content := random(256 * chunk.MinBytes)
	b.SetBytes(agents * int64(len(content)))
	for b.Loop() {
		b.StopTimer()
		w := newTown(b)
		seed := w.add(server)
		root := w.put(seed, content)
		nodes := []*node{seed}
		for range agents {
			nodes = append(nodes, w.add())
		}
		var wg sync.WaitGroup
		b.StartTimer()
		for _, n := range nodes[1:] {
			wg.Go(func() {
				session, err := n.Fetch(context.Background(), root, swarm.FetchOptions{})
				if err != nil {
					b.Error(err)
					return
				}
				defer session.Close()
				<-session.Done()
			})
		}
		wg.Wait()
		b.StopTimer()
		b.ReportMetric(float64(seed.bytes("sent", ""))/float64(len(content)), "seed-copies")
		for _, n := range nodes {
			n.kill()
		}
		b.StartTimer()
	}
}
