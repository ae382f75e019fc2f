package certfile

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// made returns a certificate and its key in PEM, as an ACME client writes them.
func made(t *testing.T, notAfter time.Time, names ...string) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: notAfter.Add(-90 * 24 * time.Hour), NotAfter: notAfter}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

type files struct {
	t         *testing.T
	cert, key string
}

func (f files) write(cert, key []byte) {
	f.t.Helper()
	for name, text := range map[string][]byte{f.cert: cert, f.key: key} {
		if text == nil {
			continue
		}
		if err := os.WriteFile(name, text, 0o600); err != nil {
			f.t.Fatal(err)
		}
	}
}

func newFiles(t *testing.T) files {
	dir := t.TempDir()
	return files{t, filepath.Join(dir, "fullchain.pem"), filepath.Join(dir, "privkey.pem")}
}

func asks(name string) *tls.ClientHelloInfo { return &tls.ClientHelloInfo{ServerName: name} }

// lines is a log: that time passes in a bubble does not order what its goroutines do.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *lines) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Reset()
}

func TestReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		files := newFiles(t)
		end := time.Now().Add(80 * 24 * time.Hour)
		files.write(made(t, end, "a.example"))
		var log lines
		f, err := Open(files.cert, files.key, slog.New(slog.NewTextHandler(&log, nil)), prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- f.Run(t.Context()) }()
		settle := func() {
			time.Sleep(3 * every)
			synctest.Wait()
		}
		settle()
		if f.For(asks("a.example")) == nil || f.For(asks("b.example")) != nil || log.String() != "" {
			t.Fatalf("at first: %v, %s", f.Status(), log.String())
		}

		inUse, inUseKey := made(t, end, "a.example", "*.b.example")
		files.write(inUse, inUseKey)
		settle()
		if f.For(asks("x.b.example")) == nil || f.Status().Error != "" {
			t.Fatalf("a new pair: %v", f.Status())
		}

		// Bad files leave the pair that is in use, whatever they are.
		good := f.For(asks("a.example"))
		goodCert, goodKey := made(t, end, "a.example")
		_, otherKey := made(t, end, "a.example")
		endedCert, endedKey := made(t, time.Now().Add(-time.Hour), "a.example")
		namelessCert, namelessKey := made(t, end)
		for name, bad := range map[string][2][]byte{
			"half":       {goodCert[:len(goodCert)/2], goodKey},
			"empty":      {{}, {}},
			"wrong key":  {goodCert, otherKey},
			"ended":      {endedCert, endedKey},
			"no name":    {namelessCert, namelessKey},
			"very large": {make([]byte, maxBytes+1), goodKey},
		} {
			files.write(inUse, inUseKey)
			settle()
			log.Reset()
			files.write(bad[0], bad[1])
			settle()
			if f.For(asks("a.example")) != good || f.Status().Error == "" {
				t.Errorf("%s: %v", name, f.Status())
			}
			if strings.Count(log.String(), "level=WARN") != 1 {
				t.Errorf("%s was told of not once: %s", name, log.String())
			}
			if strings.Contains(log.String(), "PRIVATE") || strings.Contains(f.Status().Error, "PRIVATE") {
				t.Errorf("%s: the key shows", name)
			}
		}
		if err := os.Remove(files.key); err != nil {
			t.Fatal(err)
		}
		settle()
		if f.For(asks("a.example")) != good || f.Status().Error == "" {
			t.Errorf("without a key: %v", f.Status())
		}

		// Between the two renames of an ACME client nobody is told anything.
		files.write(goodCert, goodKey)
		settle()
		log.Reset()
		next, nextKey := made(t, end, "c.example")
		files.write(next, nil)
		f.look(time.Now())
		files.write(nil, nextKey)
		f.look(time.Now())
		if f.For(asks("c.example")) == nil || strings.Contains(log.String(), "WARN") {
			t.Errorf("between two renames: %v %s", f.Status(), log.String())
		}
	})
}

func TestOpenRefuses(t *testing.T) {
	files := newFiles(t)
	open := func() error {
		_, err := Open(files.cert, files.key, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		return err
	}
	if err := open(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no files: %v", err)
	}
	files.write(made(t, time.Now().Add(-time.Hour), "a.example"))
	if err := open(); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("ended: %v", err)
	}
}

// Without a name the address that was called decides.
func TestByAddress(t *testing.T) {
	files := newFiles(t)
	files.write(made(t, time.Now().Add(time.Hour), "a.example", "127.0.0.1"))
	f, err := Open(files.cert, files.key, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]bool{"127.0.0.1:0": true, "127.0.0.2:0": false} {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Skip(err)
		}
		got := make(chan bool, 1)
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			got <- f.For(&tls.ClientHelloInfo{Conn: c}) != nil
			c.Close()
		}()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if <-got != want {
			t.Errorf("%s: %v", addr, !want)
		}
		c.Close()
		l.Close()
	}
}
