// Package certfile keeps a certificate that somebody else renews, like an ACME
// client, as its two PEM files say.
//
// Open reads them; Run looks again every few seconds and takes a new pair into use
// without a restart. Files that do not hold leave the old pair in use: a half-written
// file, a key of another certificate (the two are replaced one after the other), one
// that has ended. Status says so, for the log, the metrics and the doctor.
//
// For chooses when two certificates are useful: this one for what it names, else the
// caller's own. Invariant: what For returns was checked as a pair. The package's one
// goroutine is Run's caller's.
package certfile

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// every is how often the files are read: they are small.
const every = 5 * time.Second

// maxBytes bounds each file.
const maxBytes = 1 << 20

// File is a certificate with its key. It is safe for concurrent use.
type File struct {
	cert, key string
	log       *slog.Logger
	reloads   *prometheus.CounterVec
	current   atomic.Pointer[pair]
	status    atomic.Pointer[Status]
	refused   string // what was wrong at the last look
}

type pair struct {
	texts [2][]byte
	tls   tls.Certificate
}

// Status is what is in use, and what is wrong with the files, if anything is.
type Status struct {
	Cert     string    `json:"cert"`
	Key      string    `json:"key"`
	Names    []string  `json:"names"`
	NotAfter time.Time `json:"not_after"`
	Loaded   time.Time `json:"loaded"`
	// Error says why the files as they are now are not in use, "" when they are.
	Error string `json:"error,omitempty"`
}

// Open reads the files, which must hold at this point.
//
// Errors: meta.ErrInvalid with the reason; those of reading.
func Open(cert, key string, log *slog.Logger, metrics prometheus.Registerer) (*File, error) {
	f := &File{cert: cert, key: key, log: log}
	f.reloads = promauto.With(metrics).NewCounterVec(prometheus.CounterOpts{
		Name: "shoal_gateway_certificate_reloads_total", Help: "New certificate files, by whether they were taken into use.",
	}, []string{"result"})
	p, err := f.read(time.Now())
	if err != nil {
		return nil, fmt.Errorf("certificate of the gateway: %w", err)
	}
	f.use(p, time.Now())
	promauto.With(metrics).NewGaugeFunc(prometheus.GaugeOpts{
		Name: "shoal_gateway_certificate_not_after_seconds", Help: "When the given certificate ends, in seconds since 1970.",
	}, func() float64 { return float64(f.Status().NotAfter.Unix()) })
	return f, nil
}

// Status returns what is in use.
func (f *File) Status() Status { return *f.status.Load() }

// For returns the certificate when it is for what the client asks: the name that it
// says (RFC 6066), or without one the address that it called. Nil when it is not.
func (f *File) For(hello *tls.ClientHelloInfo) *tls.Certificate {
	p := f.current.Load()
	name := hello.ServerName
	if name == "" && hello.Conn != nil {
		name = hello.Conn.LocalAddr().String()
		if host, _, err := net.SplitHostPort(name); err == nil {
			name, _, _ = strings.Cut(host, "%")
		}
	}
	if p.tls.Leaf.VerifyHostname(name) != nil {
		return nil
	}
	return &p.tls
}

// Run looks at the files until ctx ends.
func (f *File) Run(ctx context.Context) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			f.look(time.Now())
		}
	}
}

// look takes new files into use when they hold. What does not is told of when it is
// there at two looks, since the files of a pair are replaced one after the other.
func (f *File) look(now time.Time) {
	p, err := f.read(now)
	switch {
	case err == nil && p == nil:
		f.refused = ""
		f.say("")
	case err == nil:
		f.refused = ""
		f.use(p, now)
		f.reloads.WithLabelValues("ok").Inc()
		f.log.Info("the gateway's certificate was reloaded", "file", f.cert, "names", p.tls.Leaf.DNSNames, "not_after", p.tls.Leaf.NotAfter)
	default:
		if f.refused == err.Error() && f.Status().Error != err.Error() {
			f.say(err.Error())
			f.reloads.WithLabelValues("refused").Inc()
			f.log.Warn("the gateway's new certificate is not used, the old one stays", "error", err, "not_after", f.Status().NotAfter)
		}
		f.refused = err.Error()
	}
}

func (f *File) say(problem string) {
	s := f.Status()
	if s.Error != problem {
		s.Error = problem
		f.status.Store(&s)
	}
}

func (f *File) use(p *pair, now time.Time) {
	f.current.Store(p)
	leaf := p.tls.Leaf
	names := append([]string(nil), leaf.DNSNames...)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	f.status.Store(&Status{Cert: f.cert, Key: f.key, Names: names, NotAfter: leaf.NotAfter, Loaded: now})
}

// read returns the files' pair, nil when it is the one in use.
func (f *File) read(now time.Time) (*pair, error) {
	var p pair
	for i, name := range []string{f.cert, f.key} {
		text, err := readFile(name)
		if err != nil {
			return nil, err
		}
		p.texts[i] = text
	}
	if old := f.current.Load(); old != nil && bytes.Equal(old.texts[0], p.texts[0]) && bytes.Equal(old.texts[1], p.texts[1]) {
		return nil, nil
	}
	var err error
	if p.tls, err = tls.X509KeyPair(p.texts[0], p.texts[1]); err != nil {
		// The error of crypto/tls shows nothing of the key.
		return nil, fmt.Errorf("%s with %s: %w: %w", f.cert, f.key, err, meta.ErrInvalid)
	}
	leaf := p.tls.Leaf
	switch {
	case now.After(leaf.NotAfter):
		return nil, fmt.Errorf("%s ended at %s: %w", f.cert, leaf.NotAfter.UTC().Format(time.RFC3339), meta.ErrInvalid)
	case len(leaf.DNSNames)+len(leaf.IPAddresses) == 0:
		return nil, fmt.Errorf("%s names no host (subjectAltName), so no client takes it: %w", f.cert, meta.ErrInvalid)
	}
	return &p, nil
}

func readFile(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxBytes {
		return nil, fmt.Errorf("%s is no file of up to %d bytes: %w", name, maxBytes, meta.ErrInvalid)
	}
	text, err := os.ReadFile(name)
	if err == nil && len(text) > maxBytes {
		err = errors.Join(fmt.Errorf("%s grows while it is read", name), meta.ErrInvalid)
	}
	return text, err
}
