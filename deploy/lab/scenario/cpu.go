package scenario

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/lab/wave"
)

var cpu = Scenario{
	Name:  "cpu",
	Claim: "a server and three agents on unlimited links: processor time per GB that clients got",
	Full:  wave.Plan{Hosts: 3, Bytes: 512 << 20, Layers: 1},
	Quick: wave.Plan{Hosts: 3, Bytes: 32 << 20, Layers: 1},
	Run: func(ctx context.Context, l *Lab) error {
		c, err := l.Start(ctx)
		if err != nil {
			return err
		}
		img, err := c.Image(0, l.Plan.Layers, l.Plan.Bytes)
		if err != nil {
			return err
		}
		const name = wave.Repository + "/cpu"
		if err := c.Push(ctx, name, "1", img); err != nil {
			return err
		}
		if err := c.Warm(ctx); err != nil {
			return err
		}
		members := c.Members()
		spent := func() (nodes, clients time.Duration, err error) {
			for _, m := range members {
				used, err := m.Process().CPU()
				if err != nil {
					return 0, 0, err
				}
				nodes += used
			}
			clients, err = ownCPU()
			return nodes, clients, err
		}
		nodesBefore, clientsBefore, err := spent()
		if err != nil {
			return err
		}
		l.Say("go")
		start := time.Now()
		results, err := c.Pull(ctx, c.Agents, name, img, nil)
		if err != nil {
			return err
		}
		took := time.Since(start)
		nodes, clients, err := spent()
		if err != nil {
			return err
		}
		l.rightBytes(results)
		delivered := float64(img.Bytes()) * float64(len(results)) / 1e9
		perGB := func(used time.Duration) float64 { return used.Seconds() / delivered }
		l.AtMost("CPU-seconds per GB delivered, all processes and clients", "%.2f", perGB(nodes-nodesBefore+clients-clientsBefore), 3)
		l.Note("of them the clients, which check sha256", "%.2f", perGB(clients-clientsBefore))
		l.Note("GB delivered a second, all readers together", "%.2f", delivered/took.Seconds())

		raw, err := rawCopy(ctx, c.Origin(), c.Agents[0], l.Plan.Bytes)
		if err != nil {
			return err
		}
		l.Note("a bare TCP and TLS copy between two of the hosts, CPU-seconds per GB", "%.2f", raw)
		checked, err := checkCPU(l.Plan.Bytes)
		if err != nil {
			return err
		}
		l.Note("sha256 of a GB, CPU-seconds", "%.2f", checked)
		return nil
	},
}

// ownCPU returns the processor time of this process, user and system.
func ownCPU() (time.Duration, error) {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		return 0, err
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()), nil
}

// rawCopy sends bytes of memory over TLS 1.3 from one host to another and returns the
// CPU-seconds per GB of both ends.
func rawCopy(ctx context.Context, from, to *wave.Member, bytes int64) (float64, error) {
	certificate, err := selfSigned()
	if err != nil {
		return 0, err
	}
	listener, err := from.Host.Listen()
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	before, err := ownCPU()
	if err != nil {
		return 0, err
	}
	sent := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			sent <- err
			return
		}
		defer conn.Close()
		secure := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS13})
		block := make([]byte, 256<<10)
		if _, err := io.ReadFull(image.Random(1), block); err != nil {
			sent <- err
			return
		}
		for left := bytes; left > 0 && err == nil; {
			var n int
			n, err = secure.Write(block[:min(left, int64(len(block)))])
			left -= int64(n)
		}
		sent <- errors.Join(err, secure.CloseWrite())
	}()
	conn, err := to.Host.DialContext(ctx, "tcp", listener.Addr().String())
	if err != nil {
		listener.Close()
		return 0, errors.Join(err, <-sent)
	}
	defer conn.Close()
	// The namespace is the identity here, as for the clients.
	secure := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
	buffer := make([]byte, 256<<10)
	var got int64
	for err == nil {
		var n int
		n, err = secure.Read(buffer)
		got += int64(n)
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	if err == nil && got != bytes {
		err = fmt.Errorf("a bare copy brought %d of %d bytes", got, bytes)
	}
	conn.Close()
	if err := errors.Join(err, <-sent); err != nil {
		return 0, err
	}
	after, err := ownCPU()
	return (after - before).Seconds() / (float64(bytes) / 1e9), err
}

// checkCPU returns the CPU-seconds that sha256 of a GB takes here.
func checkCPU(bytes int64) (float64, error) {
	before, err := ownCPU()
	if err != nil {
		return 0, err
	}
	block := make([]byte, 1<<20)
	n := max(1, min(bytes, 256<<20)>>20)
	for range n {
		image.DigestOf(block)
	}
	after, err := ownCPU()
	return (after - before).Seconds() / (float64(n<<20) / 1e9), err
}

func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
