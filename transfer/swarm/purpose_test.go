package swarm

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"pgregory.net/rapid"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/limit"
	"github.com/shoal-registry/shoal/verify/digest"
)

// The fetch is of the most urgent class of its sessions, and whoever waits in another
// hears of it.
func TestPurposeIsTheMostUrgent(t *testing.T) {
	m := newMembership(&Swarm{}, digest.CID{}, 1, nil, false)
	sessions := map[string]*Session{}
	now := func(want FetchOptions, changes bool, step string) {
		t.Helper()
		before := m.fetchedFor()
		m.reclassify()
		after := m.fetchedFor()
		told := false
		select {
		case <-before.changed:
			told = true
		default:
		}
		if after.FetchOptions != want || told != changes {
			t.Errorf("%s: %+v, told %v", step, after.FetchOptions, told)
		}
	}
	add := func(name string, o FetchOptions) {
		m.lastID++
		sessions[name] = &Session{m: m, id: m.lastID, options: o}
		m.sessions[m.lastID] = sessions[name]
	}
	add("copy", FetchOptions{Class: limit.Bulk, Tenant: "acme"})
	now(FetchOptions{Class: limit.Bulk, Tenant: "acme"}, true, "a copy")
	add("early", FetchOptions{Class: limit.Prewarm})
	now(FetchOptions{Class: limit.Bulk, Tenant: "acme"}, false, "a copy and a pre-warm")
	add("reader", FetchOptions{Class: limit.Urgent, Tenant: "acme"})
	now(FetchOptions{Class: limit.Urgent, Tenant: "acme"}, true, "a reader, too")
	delete(m.sessions, sessions["reader"].id)
	now(FetchOptions{Class: limit.Bulk, Tenant: "acme"}, true, "the reader has left")
	clear(m.sessions)
	now(FetchOptions{Class: limit.Bulk, Tenant: "acme"}, false, "all have left")
}

// What a peer says may be of a later version.
func TestHearsOnlyClassesThereAre(t *testing.T) {
	var p member
	for said, want := range map[uint8]limit.Class{0: limit.Urgent, 1: limit.Bulk, 2: limit.Prewarm, 3: limit.Prewarm, 255: limit.Prewarm} {
		if p.hears(said, false); (outgoing{said: &p.class}).class() != want {
			t.Errorf("%d is heard as %v", said, limit.Class(p.class.Load()))
		}
	}
}

// Bytes of chunks and bytes on the link: never more chunk than link, always some.
func TestHeaders(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.IntRange(1, 5<<20).Draw(t, "most")
		if got := ofChunk(onLink(most), most); got != most {
			t.Fatalf("%d of %d", got, most)
		}
		n := rapid.IntRange(0, onLink(most)).Draw(t, "n")
		switch got := ofChunk(n, most); {
		case (got > 0) != (n > 0), got > most, got > 1 && onLink(got) > n+1:
			t.Fatalf("of %d on the link %d of %d are of the chunk", n, got, most)
		}
	})
}

// saying is a stream on which a peer has written.
type saying struct {
	network.Stream
	said *bytes.Reader
}

func (s saying) Read(b []byte) (int, error) { return s.said.Read(b) }

// A grant of nothing, or of more than there is, breaks the protocol.
func TestCreditIsChecked(t *testing.T) {
	for _, c := range []struct {
		said []byte
		want int
		err  error
	}{
		{[]byte{0, 0, 0, 1}, 1, nil},
		{[]byte{0, 1, 0, 0}, 1 << 16, nil},
		{[]byte{0, 1, 0, 1}, 0, meta.ErrInvalid},
		{[]byte{0xff, 0xff, 0xff, 0xff}, 0, meta.ErrInvalid},
		{[]byte{0, 0, 0, 0}, 0, meta.ErrInvalid},
		{[]byte{0, 0, 0}, 0, io.ErrUnexpectedEOF},
	} {
		f := &flow{st: saying{said: bytes.NewReader(c.said)}}
		if n, err := f.credit(1 << 16); n != c.want || !errors.Is(err, c.err) {
			t.Errorf("%x of %d: %d, %v", c.said, 1<<16, n, err)
		}
	}
}
