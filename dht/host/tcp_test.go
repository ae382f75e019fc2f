package host

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// line is a multistream-select line.
func line(s string) []byte { return append([]byte{byte(len(s) + 1)}, s+"\n"...) }

// tlsRecord is a TLS record with n bytes after its header.
func tlsRecord(kind byte, n int) []byte {
	b := binary.BigEndian.AppendUint16([]byte{kind, 3, 3}, uint16(n))
	return append(b, make([]byte, n)...)
}

func TestRecordsAreFollowedFromTheFirstByte(t *testing.T) {
	lines := append(line("/multistream/1.0.0"), line("/tls/1.0.0")...)
	stream := append(bytes.Clone(lines), tlsRecord(22, 300)...)
	stream = append(stream, tlsRecord(20, 1)...)
	stream = append(stream, tlsRecord(23, 16<<10+17)...)
	stream = append(stream, tlsRecord(23, 35)...)
	ends := []int{len(lines) + 305, len(lines) + 305 + 6, len(lines) + 305 + 6 + 5 + 16<<10 + 17, len(stream)}
	// Whatever the pieces, what is missing never goes beyond the end of a record, and
	// within one it goes as far as that.
	for _, piece := range []int{1, 2, 3, 7, 1448, 16406, len(stream)} {
		var r records
		for at := 0; at < len(stream); {
			n := min(piece, len(stream)-at)
			r.pass(stream[at : at+n])
			at += n
			end, begin := len(stream), len(lines)
			for _, e := range ends {
				if e > at {
					end = e
					break
				}
				begin = e
			}
			want := 1
			if at >= begin+5 && at < end && at > len(lines) {
				want = end - at
			}
			if got := r.missing(0); got != min(want, wakeBytes) {
				t.Fatalf("pieces of %d: %d bytes are missing at %d, want %d", piece, got, at, want)
			}
		}
	}
}

// What is waited for is never more than what comes.
func TestRecordsAreWaitedForAsLongAsSomethingIsWanted(t *testing.T) {
	const overhead = 17
	lengths := []int{12, 16 << 10, 16 << 10, 10_000, 12, 40, 12, 70}
	stream := line("/tls/1.0.0")
	var plain, clear []int // where records end, in the stream and in the clear
	for i, n := range lengths {
		kind := byte(23)
		if i == 0 {
			kind = recordHandshake
		}
		stream = append(stream, tlsRecord(kind, n+overhead)...)
		plain, clear = append(plain, len(stream)), append(clear, n)
	}
	// Frames as a muxer reads them: a header and a body that spans records.
	frames := []int{12, 16<<10 + 16<<10 + 10_000, 12, 40, 12, 70}
	var r records
	at, record, have := 0, 0, 0 // have: bytes in the clear of whole records
	for _, frame := range frames {
		for frame > have {
			for at < plain[record] {
				need := r.missing(frame - have)
				if at+need > plain[len(plain)-1] {
					t.Fatalf("waits for %d bytes at %d of %d", need, at, len(stream))
				}
				// A muxer must get its frame with the bytes it waited for or more.
				end := plain[record]
				for k, sum := record, have; sum < frame && k < len(clear); k++ {
					sum += clear[k]
					end = plain[k]
				}
				if at+need > end {
					t.Fatalf("waits until %d for a frame that is there at %d", at+need, end)
				}
				n := min(1000, plain[record]-at)
				r.pass(stream[at : at+n])
				at += n
			}
			have += clear[record]
			record++
		}
		have -= frame
	}
	if at != len(stream) {
		t.Errorf("read %d of %d", at, len(stream))
	}
	// On a fast link that is one wake-up for two records.
	r = records{tls: true}
	if got := r.missing(64 << 10); got != wakeBytes {
		t.Errorf("waits for %d bytes of a large frame", got)
	}
}

func TestASocketWritesAtOnce(t *testing.T) {
	s, other := socketPair(t)
	s.cork()
	for range 3 {
		if n, err := s.Write([]byte("abcd")); n != 4 || err != nil {
			t.Fatal(n, err)
		}
	}
	if s.Written() != 0 {
		t.Errorf("%d bytes went out while corked", s.Written())
	}
	if err := s.uncork(); err != nil || s.Written() != 12 {
		t.Errorf("%d bytes, %v", s.Written(), err)
	}
	if _, err := s.Write([]byte("efgh")); err != nil || s.Written() != 16 {
		t.Errorf("%d bytes, %v", s.Written(), err)
	}
	b := make([]byte, 16)
	if _, err := io.ReadFull(other, b); err != nil || string(b) != "abcdabcdabcdefgh" {
		t.Errorf("%q came, %v", b, err)
	}
	s.Close()
	s.cork()
	s.Write([]byte("x"))
	if s.uncork() == nil {
		t.Error("a closed socket takes bytes")
	}
}

func TestRecordsOfNonsenseAreBounded(t *testing.T) {
	junk := make([]byte, 64<<10)
	if _, err := rand.Read(junk); err != nil {
		t.Fatal(err)
	}
	for first := range 256 {
		junk[0] = byte(first)
		var r records
		for at := 0; at < len(junk); at += 97 {
			r.pass(junk[at:min(at+97, len(junk))])
			if m := r.missing(at); m < 1 || m > wakeBytes {
				t.Fatalf("waits for %d bytes", m)
			}
		}
	}
}

// socketPair returns a Socket and the plain other end.
func socketPair(t *testing.T) (*Socket, *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	other, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	s, err := newSocket(conn, &sockets{by: map[ends]*Socket{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		other.Close()
	})
	return s, other.(*net.TCPConn)
}

func TestASocketWaitsForARecord(t *testing.T) {
	s, other := socketPair(t)
	whole := tlsRecord(22, 10_000)
	lowat := func() (n int) {
		if err := s.raw.Control(func(fd uintptr) { n, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT) }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	got := make(chan []byte, 1)
	go func() {
		b := make([]byte, len(whole))
		n, err := io.ReadFull(s, b)
		if err != nil {
			t.Error(err)
		}
		got <- b[:n]
	}()
	if _, err := other.Write(whole[:1000]); err != nil {
		t.Fatal(err)
	}
	within := time.Now().Add(30 * time.Second)
	for lowat() != len(whole)-1000 {
		if time.Now().After(within) {
			t.Fatalf("it waits for %d bytes", lowat())
		}
		time.Sleep(time.Millisecond)
	}
	if _, err := other.Write(whole[1000:]); err != nil {
		t.Fatal(err)
	}
	if b := <-got; !bytes.Equal(b, whole) {
		t.Error("other bytes came")
	}
	// A message that is shorter than what was waited for before is not held back.
	go func() {
		b := make([]byte, 20)
		n, _ := s.Read(b)
		got <- b[:n]
	}()
	for lowat() != 1 && !time.Now().After(within) {
		time.Sleep(time.Millisecond)
	}
	if _, err := other.Write(tlsRecord(23, 2)); err != nil {
		t.Fatal(err)
	}
	if b := <-got; len(b) != 7 {
		t.Errorf("%d bytes came", len(b))
	}
}

func TestASocketEndsWhileItWaitsForARecord(t *testing.T) {
	s, other := socketPair(t)
	if _, err := other.Write(tlsRecord(22, 10_000)[:100]); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 10_005)
	if _, err := io.ReadFull(s, b[:100]); err != nil {
		t.Fatal(err)
	}
	if err := s.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Read(b); !os.IsTimeout(err) {
		t.Errorf("after the deadline: %v", err)
	}
	if err := s.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Write(b[:50]); err != nil {
		t.Fatal(err)
	}
	if err := other.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if n, err := io.ReadFull(s, b); n != 50 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%d bytes, %v", n, err)
	}
	if s.Close(); s.sockets.get(s) != nil {
		t.Error("a closed socket is still known")
	}
}

func TestASocketTellsWhatHasGoneOut(t *testing.T) {
	s, other := socketPair(t)
	go io.Copy(io.Discard, other)
	if s.Written() != 0 || s.sockets.get(s) != s {
		t.Fatal("a new socket")
	}
	reached := s.Reach(3000)
	for range 2 {
		if _, err := s.Write(make([]byte, 1499)); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-reached:
		t.Errorf("signalled after %d bytes", s.Written())
	default:
	}
	if _, err := s.Write(make([]byte, 2)); err != nil {
		t.Fatal(err)
	}
	<-reached
	if <-s.Reach(10); s.Written() != 3000 {
		t.Errorf("%d bytes were written", s.Written())
	}
}
