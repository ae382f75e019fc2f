package gateway

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// errStalled says that a client sent or took no byte for the stall timeout.
var errStalled = errors.New("the client stopped")

// stream guards one exchange: what is read from and written to the client may
// take as long as it moves, each single step has a deadline. It counts bytes and
// remembers whether the answer has begun.
//
// Deadlines are cleared after each step, because on HTTP/2 they run also while
// nobody waits, and on HTTP/1 the server's own reader would see them.
type stream struct {
	http.ResponseWriter
	control *http.ResponseController
	stall   time.Duration

	status  int
	written int64
	begun   atomic.Bool           // the answer has
	ended   atomic.Pointer[error] // why it may not go on

	// pass, when set, is told of the bytes that move, and paces them.
	pass    Pass
	passCtx context.Context

	body     io.ReadCloser
	bodyMu   sync.Mutex // guards bodyDone: a forwarded body is read by another goroutine
	bodyDone bool
	received int64 // under bodyMu
}

func newStream(w http.ResponseWriter, r *http.Request, stall time.Duration) *stream {
	s := &stream{ResponseWriter: w, control: http.NewResponseController(w), stall: stall, body: r.Body}
	// The connection may still have the deadline of the exchange before.
	_ = s.control.SetWriteDeadline(time.Time{})
	return s
}

// Unwrap lets http.ResponseController reach the connection.
func (s *stream) Unwrap() http.ResponseWriter { return s.ResponseWriter }

// limit paces all that moves from now on by pass. It is called before the handler is.
func (s *stream) limit(ctx context.Context, pass Pass) { s.passCtx, s.pass = ctx, pass }

func (s *stream) wrote() bool { return s.status != 0 }

func (s *stream) WriteHeader(status int) {
	if s.status == 0 && status >= 200 {
		s.status = status
	}
	s.ResponseWriter.WriteHeader(status)
}

func (s *stream) begin() {
	if s.status == 0 {
		s.status = http.StatusOK
	}
}

// cut ends what the handler reads and writes, now and from now on, with err. It must not
// be called once the exchange is over.
func (s *stream) cut(err error) {
	s.ended.Store(&err)
	// Who reads or writes at this moment is woken; an answer that has not begun can still
	// be another.
	past := time.Unix(1, 0)
	_ = s.control.SetReadDeadline(past)
	if s.begun.Load() {
		_ = s.control.SetWriteDeadline(past)
	}
}

// cause returns why the exchange was cut, nil when it was not.
func (s *stream) cause() error {
	if err := s.ended.Load(); err != nil {
		return *err
	}
	return nil
}

// resume lets the gateway say why an exchange was cut, after the handler has returned.
// It returns the cause.
func (s *stream) resume() error {
	err := s.cause()
	s.ended.Store(nil)
	return err
}

// step runs one write under its deadline.
func (s *stream) step(write func() (int64, error)) (int64, error) {
	s.begun.Store(true)
	// Where the writer has no deadlines (a recorder in a test) nothing can stall.
	_ = s.control.SetWriteDeadline(time.Now().Add(s.stall))
	if err := s.cause(); err != nil {
		return 0, err
	}
	s.begin()
	n, err := write()
	_ = s.control.SetWriteDeadline(time.Time{})
	s.written += n
	if s.pass != nil && n > 0 {
		s.pass.Sent(s.passCtx, int(n))
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = errors.Join(errStalled, err)
	}
	return n, err
}

func (s *stream) Write(p []byte) (int, error) {
	total := 0
	for {
		piece := p[:min(len(p), pieceBytes)]
		n, err := s.step(func() (int64, error) {
			n, err := s.ResponseWriter.Write(piece)
			return int64(n), err
		})
		total += int(n)
		if p = p[len(piece):]; err != nil || len(p) == 0 {
			return total, err
		}
	}
}

// pieceBytes is what has to move within one stall timeout: with 60 s, 4 KiB/s.
const pieceBytes = 256 << 10

var pieces = sync.Pool{New: func() any { b := make([]byte, pieceBytes); return &b }}

// ReadFrom copies in pieces. From a file on a plain connection the kernel does
// it (sendfile), which the server's own ReadFrom knows how to ask for.
func (s *stream) ReadFrom(src io.Reader) (total int64, err error) {
	plain := src
	limited, isLimited := src.(*io.LimitedReader)
	if isLimited {
		plain = limited.R
	}
	if _, isFile := plain.(*os.File); isFile {
		if rf, ok := s.ResponseWriter.(io.ReaderFrom); ok {
			for {
				want := int64(pieceBytes)
				if isLimited {
					want = min(want, limited.N)
				}
				if want == 0 {
					return total, nil
				}
				n, err := s.step(func() (int64, error) { return rf.ReadFrom(io.LimitReader(plain, want)) })
				total += n
				if isLimited {
					limited.N -= n
				}
				if err != nil || n < want {
					return total, err
				}
			}
		}
	}
	buf := pieces.Get().(*[]byte)
	defer func() {
		if buf != nil {
			pieces.Put(buf)
		}
	}()
	for {
		n, err := src.Read(*buf)
		if n > 0 {
			m, err := s.Write((*buf)[:n])
			total += int64(m)
			if err != nil {
				buf = nil // a stream of HTTP/2 that was reset may still be reading it
				return total, err
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// Flush sends what is buffered.
func (s *stream) Flush() { _ = s.FlushError() }

// FlushError is Flush for http.ResponseController.
func (s *stream) FlushError() error {
	_, err := s.step(func() (int64, error) { return 0, s.control.Flush() })
	return err
}

// Read reads the request's body.
func (s *stream) Read(p []byte) (int, error) {
	s.bodyMu.Lock()
	if s.bodyDone {
		s.bodyMu.Unlock()
		return 0, http.ErrBodyReadAfterClose
	}
	_ = s.control.SetReadDeadline(time.Now().Add(s.stall))
	s.bodyMu.Unlock()
	if err := s.cause(); err != nil {
		return 0, err
	}

	n, err := s.body.Read(p)
	if s.pass != nil && n > 0 {
		// No deadline runs while the pass has it wait.
		defer s.pass.Received(s.passCtx, n)
	}

	s.bodyMu.Lock()
	defer s.bodyMu.Unlock()
	s.received += int64(n)
	if !s.bodyDone {
		_ = s.control.SetReadDeadline(time.Time{})
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = errors.Join(errStalled, err)
	}
	return n, err
}

// Close closes the request's body.
func (s *stream) Close() error { return s.body.Close() }

// finish is called when the handler has returned: the server still flushes, and
// reads what is left of the body.
func (s *stream) finish() (received int64) {
	s.bodyMu.Lock()
	defer s.bodyMu.Unlock()
	s.bodyDone = true
	deadline := time.Now().Add(s.stall)
	_ = s.control.SetWriteDeadline(deadline)
	if s.body != nil && s.body != http.NoBody {
		_ = s.control.SetReadDeadline(deadline)
	}
	return s.received
}
