package trust

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func TestHead(t *testing.T) {
	k, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	nonce := bytes.Repeat([]byte{7}, HeadNonceBytes)
	want := Head{Access: meta.AccessHead{Epoch: 1, Index: 9, Revision: 4}, Age: time.Second, Nonce: nonce}
	b, err := k.SignHead("c1", want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := OpenHead("c1", b, nonce)
	if err != nil || got.Access != want.Access || got.Age != want.Age || got.Issuer != k.ID() {
		t.Errorf("%+v %v", got, err)
	}
	grant, err := k.SignGrant("c1", Grant{Peer: k.ID(), Root: [32]byte{1}, Expires: 1})
	if err != nil {
		t.Fatal(err)
	}
	other := bytes.Repeat([]byte{8}, HeadNonceBytes)
	for name, try := range map[string]func() (Head, error){
		"of another cluster":  func() (Head, error) { return OpenHead("c2", b, nonce) },
		"of another request":  func() (Head, error) { return OpenHead("c1", b, other) },
		"without a nonce":     func() (Head, error) { return OpenHead("c1", b, nil) },
		"a grant":             func() (Head, error) { return OpenHead("c1", grant, nonce) },
		"nothing":             func() (Head, error) { return OpenHead("c1", nil, nonce) },
		"too long":            func() (Head, error) { return OpenHead("c1", make([]byte, MaxHeadBytes+1), nonce) },
		"with a byte changed": func() (Head, error) { return OpenHead("c1", flipped(b, len(b)/2), nonce) },
	} {
		if h, err := try(); !errors.Is(err, meta.ErrDenied) {
			t.Errorf("%s: %+v %v", name, h, err)
		}
	}
	for _, bad := range []Head{{Nonce: nonce}, {Access: want.Access}, {Access: meta.AccessHead{Index: 1, Revision: 2}, Nonce: nonce}, {Access: want.Access, Age: -1, Nonce: nonce}} {
		if _, err := k.SignHead("c1", bad); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("signed %+v: %v", bad, err)
		}
	}
}

func flipped(b []byte, at int) []byte {
	c := bytes.Clone(b)
	c[at] ^= 1
	return c
}

func FuzzOpenHead(f *testing.F) {
	k, err := NewKey()
	if err != nil {
		f.Fatal(err)
	}
	nonce := make([]byte, HeadNonceBytes)
	b, err := k.SignHead("c1", Head{Access: meta.AccessHead{Index: 1}, Nonce: nonce})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := OpenHead("c1", b, nonce)
		if err == nil && h.Issuer != k.ID() {
			t.Fatalf("a head of %s", h.Issuer)
		}
	})
}
