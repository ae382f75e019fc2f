package swarm_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/transfer/swarm"
)

// spent measures the CPU of all threads, user and system, while the timer of b runs.
type spent struct {
	b     *testing.B
	total time.Duration
	since time.Duration
}

func usage(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func (s *spent) start() {
	s.since = usage(s.b)
	s.b.StartTimer()
}

func (s *spent) stop() {
	s.b.StopTimer()
	s.total += usage(s.b) - s.since
}

// report adds the figures that compare: CPU-seconds for 10^9 bytes.
func (s *spent) report(bytesEach int) {
	s.b.ReportMetric(s.total.Seconds()/(float64(s.b.N)*float64(bytesEach)/1e9), "CPU-s/GB")
}

// BenchmarkTransfer moves a blob of 64 MiB from a server to an agent over loopback,
// stores in memory: hash, write, serve, TLS and yamux of both ends in one process. To
// be read beside BenchmarkPlainTLS of the same run.
func BenchmarkTransfer(b *testing.B) {
	w := newTown(b)
	content := random(256 * chunk.MinBytes)
	seed := w.add(server, limits(swarm.Limits{IdleAfter: time.Second}))
	root := w.put(seed, content)
	agent := w.add(limits(swarm.Limits{IdleAfter: time.Millisecond, Linger: time.Millisecond}))
	b.SetBytes(int64(len(content)))
	cpu := &spent{b: b}
	var allocs, mallocs uint64
	count := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.Mallocs
	}
	b.ResetTimer()
	b.StopTimer()
	for range b.N {
		mallocs = count()
		cpu.start()
		session, err := agent.Fetch(context.Background(), root, swarm.FetchOptions{})
		if err != nil {
			b.Fatal(err)
		}
		<-session.Done()
		cpu.stop()
		allocs += count() - mallocs
		if err := session.Err(); err != nil {
			b.Fatal(err)
		}
		_ = session.Close()
		await(b, "the membership has ended", func() bool { return agent.counter("shoal_swarm_roots") == 0 })
		if err := agent.store.Remove(context.Background(), root); err != nil {
			b.Fatal(err)
		}
	}
	cpu.report(len(content))
	b.ReportMetric(float64(allocs)/float64(b.N)/256, "allocs/chunk")
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
	cpu := &spent{b: b}
	b.ResetTimer()
	b.StopTimer()
	for range b.N {
		cpu.start()
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
		cpu.stop()
	}
	cpu.report(len(content))
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
