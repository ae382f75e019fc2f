// Package buckettest starts a real S3 service for tests: versitygw, one of the tools of
// deploy/tools, over a directory, behind a proxy that can be told to fail. Start reading
// at Start.
//
// The process and the proxy end with the test.
package buckettest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// Keys of the service.
const (
	AccessKey = "shoal-test"
	SecretKey = "shoal-test-secret"
	// Name is the bucket that is there.
	Name = "blobs"
)

// Service is a running S3 service with one bucket.
type Service struct {
	// Dir has the objects of the bucket as files, by their keys.
	Dir string

	t      testing.TB
	root   string
	binary string
	proxy  *httptest.Server
	mu     sync.Mutex
	cmd    *exec.Cmd
	target atomic.Pointer[url.URL]
	fault  atomic.Pointer[Fault]
	served atomic.Pointer[func(*http.Request)]
}

// Fault decides what becomes of a request: a status answers it, 0 passes it on, and a
// negative one cuts the connection.
type Fault func(r *http.Request) (status int)

// Binary returns where the service's program is, "" when it was not built.
func Binary() string {
	dirs := []string{os.Getenv("SHOAL_TOOLS")}
	if root, err := moduleRoot(); err == nil {
		if out, err := exec.Command(filepath.Join(root, "deploy", "tools", "setup"), "path").Output(); err == nil {
			dirs = append(dirs, strings.TrimSpace(string(out)))
		}
	}
	for _, dir := range dirs {
		if path := filepath.Join(dir, "versitygw"); dir != "" && isFile(path) {
			return path
		}
	}
	path, _ := exec.LookPath("versitygw")
	return path
}

func isFile(path string) bool {
	stat, err := os.Stat(path)
	return err == nil && stat.Mode().IsRegular()
}

func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	for err == nil && dir != "/" {
		if isFile(filepath.Join(dir, "go.mod")) {
			return dir, nil
		}
		dir = filepath.Dir(dir)
	}
	return "", fmt.Errorf("no module: %w", err)
}

// Start starts a service; where its program was not built the test is skipped, on CI it
// fails.
func Start(t testing.TB) *Service {
	t.Helper()
	s := &Service{t: t, binary: Binary()}
	if s.binary == "" {
		if os.Getenv("CI") != "" {
			t.Fatal("CI must have versitygw: deploy/tools/setup go")
		}
		t.Skip("SKIPPED: no versitygw; `make tools` builds it")
	}
	s.root = t.TempDir()
	s.Dir = filepath.Join(s.root, Name)
	if err := os.Mkdir(s.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s.proxy = httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(s.target.Load())
			p.Out.Host = p.In.Host // it is signed
		},
		Transport:     &http.Transport{DisableKeepAlives: true, DisableCompression: true},
		FlushInterval: -1,
		ErrorHandler:  func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
		ErrorLog:      nil,
	})
	inner := s.proxy.Config.Handler
	s.proxy.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fault := s.fault.Load(); fault != nil {
			switch status := (*fault)(r); {
			case status < 0:
				panic(http.ErrAbortHandler)
			case status > 0:
				_, _ = io.Copy(io.Discard, r.Body) // so that the client reads the answer
				w.WriteHeader(status)
				return
			}
		}
		inner.ServeHTTP(w, r)
		if served := s.served.Load(); served != nil {
			(*served)(r)
		}
	})
	t.Cleanup(func() {
		s.proxy.CloseClientConnections()
		s.proxy.Close()
		s.Stop()
	})
	s.Run()
	return s
}

// Run starts the service's process, after Stop again.
func (s *Service) Run() {
	s.t.Helper()
	for try := 1; ; try++ {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			s.t.Fatal(err)
		}
		address := l.Addr().String()
		_ = l.Close() // for the process
		var output bytes.Buffer
		cmd := exec.Command(s.binary, "--port", address, "--quiet", "posix", s.root)
		cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+AccessKey, "ROOT_SECRET_KEY="+SecretKey)
		cmd.Stdout, cmd.Stderr = &output, &output
		if err := cmd.Start(); err != nil {
			s.t.Fatal(err)
		}
		s.mu.Lock()
		s.cmd = cmd
		s.mu.Unlock()
		s.target.Store(&url.URL{Scheme: "http", Host: address})
		if s.answers(address) {
			return
		}
		s.Stop()
		if try == 3 { // somebody else may have taken the port
			s.t.Fatalf("versitygw does not start: %s", output.String())
		}
	}
}

func (s *Service) answers(address string) bool {
	c, err := minio.New(address, &minio.Options{Creds: s.Credentials(), Region: "us-east-1", BucketLookup: minio.BucketLookupPath, MaxRetries: 1})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		if ok, err := c.BucketExists(ctx, Name); err == nil && ok {
			return true
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	return false
}

// Stop kills the process, as a service that goes down.
func (s *Service) Stop() {
	s.mu.Lock()
	cmd := s.cmd
	s.cmd = nil
	s.mu.Unlock()
	if cmd != nil {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	}
}

// Fail has all requests decided by f from now on; nil is no fault.
func (s *Service) Fail(f Fault) {
	if f == nil {
		s.fault.Store(nil)
		return
	}
	s.fault.Store(&f)
}

// Served has f told of each request that the service has answered.
func (s *Service) Served(f func(*http.Request)) { s.served.Store(&f) }

// Endpoint is the service's URL.
func (s *Service) Endpoint() string { return s.proxy.URL }

// URL is what --blobs takes, with a prefix ("" for none).
func (s *Service) URL(prefix string) string {
	return "s3://" + strings.TrimSuffix(Name+"/"+prefix, "/") + "?endpoint=" + url.QueryEscape(s.proxy.URL) + "&path-style=1"
}

// Credentials are the service's.
func (s *Service) Credentials() *credentials.Credentials {
	return credentials.NewStaticV4(AccessKey, SecretKey, "")
}

// Env are the variables by which a process gets the credentials.
func Env() []string {
	return []string{"AWS_ACCESS_KEY_ID=" + AccessKey, "AWS_SECRET_ACCESS_KEY=" + SecretKey}
}

// Files lists the objects below a prefix, by key, with their bytes.
func (s *Service) Files(prefix string) map[string]int64 {
	s.t.Helper()
	files := map[string]int64{}
	err := filepath.WalkDir(filepath.Join(s.Dir, prefix), func(path string, d os.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil || !d.Type().IsRegular() || strings.Contains(path, ".sgwtmp") {
			return err
		}
		key, err := filepath.Rel(s.Dir, path)
		if err != nil {
			return err
		}
		stat, err := d.Info()
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil {
			return err
		}
		files[key] = stat.Size()
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return files
}

// Flip changes a bit of a file.
func Flip(t testing.TB, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
}
