package upstream_test

import (
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/gateway/upstream/upstreamtest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// halves is an upstream that sends the first part of a file, and the second when it is
// told to.
type halves struct {
	*httptest.Server
	first, second []byte
	sized         bool // it says how long it is
	asked         atomic.Int64
	go_           chan struct{}
}

func newHalves(t *testing.T, first, second int, sized bool) *halves {
	h := &halves{first: noise(1, first), second: noise(2, second), sized: sized, go_: make(chan struct{})}
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.asked.Add(1)
		if h.sized {
			w.Header().Set("Content-Length", strconv.Itoa(first+second))
		}
		_, _ = w.Write(h.first)
		_ = http.NewResponseController(w).Flush()
		select {
		case <-h.go_:
		case <-r.Context().Done():
			return
		}
		_, _ = w.Write(h.second)
	}))
	t.Cleanup(h.Close)
	return h
}

func noise(seed byte, n int) []byte {
	b := make([]byte, n)
	x := uint32(seed)*2654435761 + 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b[i] = byte(x)
	}
	return b
}

func (h *halves) whole() []byte { return append(bytes.Clone(h.first), h.second...) }

// gate is a reader that tells when so many bytes have come.
type gate struct {
	bytes.Buffer
	at   int
	open chan struct{}
	once sync.Once
}

func (g *gate) Write(p []byte) (int, error) {
	n, err := g.Buffer.Write(p)
	if g.Len() >= g.at {
		g.once.Do(func() { close(g.open) })
	}
	return n, err
}

func arriving(t *testing.T, h *halves, w upstream.Want) (*proxy, *upstream.Arriving) {
	t.Helper()
	p := start(t)
	p.repo = p.Proxy(t, "acme/large", "npm", h.URL)
	w.Path, w.Kind = "large", upstream.File
	f, a, err := p.Engine.Stream(upstreamtest.Context(t), upstreamtest.By(), &p.repo, w)
	if err != nil || f != nil {
		t.Fatalf("a file that arrives: %+v, %v", f, err)
	}
	t.Cleanup(func() { a.Close() })
	return p, a
}

// Readers have the first half of a file before its upstream has sent the second; the
// upstream is asked once; the whole is what it sent.
func TestReadersWhileAFileArrives(t *testing.T) {
	for name, sized := range map[string]bool{"of known size": true, "of unknown size": false} {
		t.Run(name, func(t *testing.T) {
			h := newHalves(t, 12<<20, 5<<20+17, sized)
			p, a := arriving(t, h, upstream.Want{})
			if want := int64(len(h.first) + len(h.second)); sized && a.Total != want || !sized && a.Total != -1 {
				t.Errorf("it says that it has %d bytes", a.Total)
			}
			// Segments of 1, 2 and 4 MiB are told when more has come, or shorter ones on a slow
			// machine; that of 8 is not whole.
			half := &gate{at: 3 << 20, open: make(chan struct{})}
			done := make(chan error, 1)
			go func() { _, err := a.WriteTo(half); done <- err }()
			<-half.open
			second, late := upstreamtest.Context(t), &bytes.Buffer{}
			_, b, err := p.Engine.Stream(second, upstreamtest.By(), &p.repo, upstream.Want{Path: "large", Kind: upstream.File})
			if err != nil || b == nil {
				t.Fatalf("a second reader: %+v, %v", b, err)
			}
			defer b.Close()
			close(h.go_)
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if _, err := b.WriteTo(late); err != nil {
				t.Fatal(err)
			}
			for _, got := range [][]byte{half.Bytes(), late.Bytes()} {
				if !bytes.Equal(got, h.whole()) {
					t.Errorf("%d bytes of %d are not what the upstream sent", len(got), len(h.whole()))
				}
			}
			f, err := p.Engine.Fetch(upstreamtest.Context(t), upstreamtest.By(), &p.repo, upstream.Want{Path: "large", Kind: upstream.File})
			if err != nil || f.Record.Digest != digest.FromBytes(h.whole()) {
				t.Errorf("afterwards: %+v, %v", f, err)
			}
			if n := h.asked.Load(); n != 1 {
				t.Errorf("the upstream was asked %d times", n)
			}
		})
	}
}

// A file that turns out to be another than was promised is never all of it given out.
func TestAFileThatArrivesIsWrong(t *testing.T) {
	h := newHalves(t, 12<<20, 1<<20, true)
	promised := digest.FromBytes([]byte("something else"))
	p, a := arriving(t, h, upstream.Want{Digest: promised})
	half := &gate{at: 3 << 20, open: make(chan struct{})}
	done := make(chan error, 1)
	go func() { _, err := a.WriteTo(half); done <- err }()
	<-half.open
	close(h.go_)
	var wrong *upstream.IntegrityError
	if err := <-done; !errors.As(err, &wrong) {
		t.Fatalf("a wrong file ended with %v", err)
	}
	if half.Len() >= len(h.whole()) {
		t.Errorf("all %d bytes of it were given out", half.Len())
	}
	p.refuse(upstream.Want{Path: "large", Kind: upstream.File, Digest: promised}, meta.ErrCorrupt)
}

// A client that leaves ends the download when nobody else waits for it.
func TestAReaderLeavesWhileAFileArrives(t *testing.T) {
	h := newHalves(t, 12<<20, 1<<20, true)
	p, a := arriving(t, h, upstream.Want{})
	broken := errors.New("the client has gone")
	if _, err := a.WriteTo(failing{broken}); !errors.Is(err, broken) {
		t.Errorf("its reader ended with %v", err)
	}
	a.Close()
	close(h.go_)
	if err := p.Engine.Close(); err != nil {
		t.Error(err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }
