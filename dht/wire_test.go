package dht

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"testing"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

func framed(v any) []byte { return codec.AppendFrame(nil, codec.Encode(v)) }

// TestGoldenFrames keeps the form on the wire: another server version reads it.
func TestGoldenFrames(t *testing.T) {
	root := digest.Sum([]byte("golden"))
	for _, test := range []struct {
		name    string
		message any
		want    string
	}{
		{"request", request{Root: root, Have: 7, HasMap: true},
			"28a3015820" + root.Hex() + "020705f5"},
		{"leave", request{Root: root, Leave: true},
			"26a2015820" + root.Hex() + "04f5"},
		{"look", request{Root: root, Look: true},
			"26a2015820" + root.Hex() + "06f5"},
		{"report", request{Root: root, Accused: "n1", Chunk: 9, Judged: true},
			"2ca4015820" + root.Hex() + "07626e31080909f5"},
		{"count", reply{Copies: 2, Away: []meta.NodeID{"n1"}},
			"08a20a020b81626e31"},
		{"reply", reply{Grant: []byte{1, 2}, GrantExpires: 5, Peers: []referral{{"n1", true}}, AgainMillis: 5000, Members: 3},
			"16a50542010206050781a201626e3102f5081913880903"},
	} {
		if got := hex.EncodeToString(framed(test.message)); got != test.want {
			t.Errorf("%s is %s, want %s", test.name, got, test.want)
		}
	}
}

func TestReplyBounds(t *testing.T) {
	for name, rep := range map[string]reply{
		"peers":  {Peers: make([]referral, maxTold+1)},
		"away":   {Away: make([]meta.NodeID, maxTold+1)},
		"inline": {Inline: make([]byte, MaxInlineBytes+1)},
	} {
		if _, err := readReply(bufio.NewReader(bytes.NewReader(framed(rep)))); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("too many %s: %v", name, err)
		}
	}
	if _, err := readRequest(bufio.NewReader(bytes.NewReader(framed(request{})))); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("no root: %v", err)
	}
	// The largest reply that a registrar makes fits a frame.
	largest := reply{Map: make([]byte, MaxMapBytes), Inline: make([]byte, MaxInlineBytes), Grant: make([]byte, 1024)}
	for range MaxPeers + 1 {
		largest.Peers = append(largest.Peers, referral{"12D3KooWSomethingOfTheUsualLengthOfFiftyTwoCharacters", true})
	}
	for range maxAway {
		largest.Away = append(largest.Away, "12D3KooWSomethingOfTheUsualLengthOfFiftyTwoCharacters")
	}
	if got := len(framed(largest)); got > maxReplyBytes {
		t.Errorf("a reply of %d bytes", got)
	}
}

func FuzzRequest(f *testing.F) {
	f.Add(framed(request{Root: digest.Sum(nil), Have: 1}))
	f.Add(framed(request{Root: digest.Sum(nil), Leave: true})[:20])
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, b []byte) {
		req, err := readRequest(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			return
		}
		again, err := readRequest(bufio.NewReader(bytes.NewReader(framed(req))))
		if err != nil || again != req {
			t.Fatalf("%+v came back as %+v, %v", req, again, err)
		}
	})
}

func FuzzReply(f *testing.F) {
	f.Add(framed(reply{Map: []byte{1}, Peers: []referral{{"a", true}}, Members: 1}))
	f.Add(framed(reply{Error: meta.ToWire(meta.ErrNotFound)}))
	f.Add([]byte{3, 0xa1, 7, 0x9b})
	f.Fuzz(func(t *testing.T, b []byte) {
		rep, err := readReply(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			return
		}
		if a := rep.again(); a <= 0 {
			t.Fatalf("again after %v", a)
		}
		again, err := readReply(bufio.NewReader(bytes.NewReader(framed(rep))))
		if err != nil || !reflect.DeepEqual(codec.Encode(again), codec.Encode(rep)) {
			t.Fatalf("%+v came back as %+v, %v", rep, again, err)
		}
	})
}
