package bucket

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/verify/digest"
)

// pipes is a network within a synctest bubble.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error { close(p.done); return nil }

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

func (p *pipes) dial(context.Context, string, string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case p.conns <- there:
		return here, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

// slow has a Bucket over a service that f plays, in virtual time; whatever f holds up ends
// with the test, and what the Bucket leaves behind fails it.
func slow(t *testing.T, f func(w http.ResponseWriter, r *http.Request, ended <-chan struct{}), test func(t *testing.T, b *Bucket)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		disk, err := store.OpenDisk(store.DiskConfig{Dir: dir, CacheBytes: 1 << 30, HotBytes: -1, Reserve: -1})
		if err != nil {
			t.Fatal(err)
		}
		b, err := New(Config{
			Location: Location{Bucket: "blobs", Endpoint: "bucket.test:1", Plain: true, Region: "us-east-1", PathStyle: true},
			Cache:    disk, Credentials: credentials.NewStaticV4("key", "secret", ""),
			Seen: func(context.Context) (uint64, error) { return 1, nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		net := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
		b.remote.dial = net.dial
		b.remote.transport.Proxy, b.remote.joining.Proxy = nil, nil
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { f(w, r, net.done) })}
		served := make(chan error, 1)
		go func() { served <- server.Serve(net) }()
		test(t, b)
		if err := errors.Join(b.Close(), disk.Close(), server.Close()); err != nil {
			t.Error(err)
		}
		<-served
		synctest.Wait() // what is left behind is a deadlock of the bubble
	})
}

// within says that do has failed for want of the bucket, not before least and not after
// most.
func within(t *testing.T, what string, least, most time.Duration, do func() error) {
	t.Helper()
	began := time.Now()
	err := do()
	took := time.Since(began)
	if !errors.Is(err, meta.ErrUnavailable) || !strings.Contains(err.Error(), "the bucket ") || took < least || took > most {
		t.Errorf("%s: after %v: %v", what, took, err)
	} else {
		t.Logf("%s: after %v: %v", what, took, err)
	}
}

const nothing = `<?xml version="1.0"?><ListBucketResult><Name>blobs</Name><KeyCount>0</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated></ListBucketResult>`

// A bucket that stops in the middle of an answer, or that does not begin one, holds no
// reader for longer than its tries take.
func TestAStalledRead(t *testing.T) {
	content := bytes.Repeat([]byte("a stalled read. "), 1<<16)
	m := chunk.Of(content)
	for name, sent := range map[string]int64{"no answer": -1, "an answer without a body": 0, "half a chunk": 100 << 10} {
		t.Run(name, func(t *testing.T) {
			slow(t, func(w http.ResponseWriter, r *http.Request, ended <-chan struct{}) {
				if sent >= 0 {
					w.Header().Set("Content-Length", strconv.Itoa(len(content)))
					w.Header().Set("ETag", `"x"`)
					w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
					w.WriteHeader(http.StatusPartialContent)
					_, _ = w.Write(content[:sent])
					_ = http.NewResponseController(w).Flush()
				}
				<-ended
			}, func(t *testing.T, b *Bucket) {
				o := &object{root: m.Root(), name: nameFor(1), seen: 1, bytes: int64(len(content)), hasData: true, hasMap: true, loaded: true}
				within(t, "a chunk", stallAfter, readTries*stallAfter+5*time.Second, func() error {
					_, err := b.readChunk(t.Context(), o, m, 0, false)
					return err
				})
				within(t, "a map", stallAfter, remoteRetries*stallAfter+10*time.Second, func() error {
					_, _, err := b.mapOf(t.Context(), o)
					return err
				})
				within(t, "a chunk again", stallAfter, remoteRetries*stallAfter+10*time.Second, func() error {
					_, err := b.again(t.Context(), o, m, 0)
					return err
				})
				within(t, "a probe", probeWithin, probeWithin, func() error { return b.Probe(t.Context()) })
			})
		})
	}
}

// A bucket that does not take what is written, or does not say that it has, ends a push
// with an error once it was patient.
func TestAStalledPush(t *testing.T) {
	content := bytes.Repeat([]byte("a stalled push. "), 1<<16)
	for name, reads := range map[string]bool{"the body is not read": false, "the body is not answered": true} {
		t.Run(name, func(t *testing.T) {
			slow(t, func(w http.ResponseWriter, r *http.Request, ended <-chan struct{}) {
				if r.Method == http.MethodGet {
					_, _ = io.WriteString(w, nothing)
					return
				}
				if reads {
					_, _ = io.Copy(io.Discard, r.Body)
				}
				<-ended
			}, func(t *testing.T, b *Bucket) {
				u, err := b.NewUpload(t.Context(), store.UploadOptions{})
				if err != nil {
					t.Fatal(err)
				}
				defer u.Close()
				if _, err := u.Append(t.Context(), bytes.NewReader(content)); err != nil {
					t.Fatal(err)
				}
				within(t, "a push", keepPatience, keepPatience+remoteRetries*stallAfter+30*time.Second, func() error {
					_, err := u.Commit(t.Context(), digest.FromBytes(content))
					return err
				})
				if b.parts.TryAcquire(partsMost) {
					b.parts.Release(partsMost)
				} else {
					t.Error("memory of parts is not given back")
				}
			})
		})
	}
}

// A slow bucket is no stalled one: bytes that come now and then are waited for, and so is
// the joining of parts.
func TestASlowBucket(t *testing.T) {
	content := bytes.Repeat([]byte("a slow read. . ."), 1<<16)
	m := chunk.Of(content)
	var joins atomic.Int64
	slow(t, func(w http.ResponseWriter, r *http.Request, _ <-chan struct{}) {
		switch r.Method {
		case http.MethodPost: // five minutes, as of an object of many GiB
			joins.Add(1)
			time.Sleep(5 * time.Minute)
			_, _ = io.WriteString(w, `<?xml version="1.0"?><CompleteMultipartUploadResult><Bucket>blobs</Bucket><Key>k</Key><ETag>"e"</ETag></CompleteMultipartUploadResult>`)
		case http.MethodPut: // 16 KiB each 10 s
			for _, err := io.CopyN(io.Discard, r.Body, 16<<10); err == nil; _, err = io.CopyN(io.Discard, r.Body, 16<<10) {
				time.Sleep(10 * time.Second)
			}
			w.Header().Set("ETag", `"e"`)
		default:
			w.Header().Set("Content-Length", strconv.Itoa(len(content)))
			w.Header().Set("ETag", `"x"`)
			w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
			w.WriteHeader(http.StatusPartialContent)
			for at := 0; at < len(content); at += 128 << 10 {
				time.Sleep(10 * time.Second)
				_, _ = w.Write(content[at:min(at+128<<10, len(content))])
				_ = http.NewResponseController(w).Flush()
			}
		}
	}, func(t *testing.T, b *Bucket) {
		o := &object{root: m.Root(), name: nameFor(1), seen: 1, bytes: int64(len(content)), hasData: true, hasMap: true, loaded: true}
		for i := range m.Len() {
			if p, err := b.readChunk(t.Context(), o, m, i, false); err != nil || digest.Sum(p) != m.Chunks[i].ID {
				t.Fatalf("chunk %d: %v", i, err)
			}
		}
		began := time.Now()
		if err := b.remote.put(t.Context(), "k", content[:256<<10], false); err != nil {
			t.Errorf("a slow write: after %v: %v", time.Since(began), err)
		}
		if took := time.Since(began); took < 2*time.Minute {
			t.Errorf("it took %v only", took)
		}
		if err := b.remote.complete(t.Context(), multi{key: "k", id: "u"}, nil); err != nil || joins.Load() != 1 {
			t.Errorf("a slow joining, tried %d times: %v", joins.Load(), err)
		}
	})
}
