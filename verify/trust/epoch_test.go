package trust

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// TestEpochStatements: only the root's own word counts, whole and for its cluster.
func TestEpochStatements(t *testing.T) {
	a, err := NewAuthority("one", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewAuthority("one", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	said := a.SignEpoch(Epoch{Number: 3, First: "first", At: 5})
	if e, err := a.Root().CheckEpoch(said); err != nil || e != (Epoch{Cluster: "one", Number: 3, First: "first", At: 5}) {
		t.Errorf("read back %+v: %v", e, err)
	}
	if _, err := other.Root().CheckEpoch(said); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("another root takes it: %v", err)
	}
	for i := range said {
		bad := bytes.Clone(said)
		bad[i] ^= 0x20
		if _, err := a.Root().CheckEpoch(bad); !errors.Is(err, meta.ErrDenied) {
			t.Fatalf("with byte %d flipped: %v", i, err)
		}
	}
	if _, err := a.Root().CheckEpoch(nil); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("nothing at all: %v", err)
	}
}

func FuzzCheckEpoch(f *testing.F) {
	a, err := NewAuthority("one", time.Now())
	if err != nil {
		f.Fatal(err)
	}
	said := a.SignEpoch(Epoch{Number: 3})
	f.Add(said)
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, err := a.Root().CheckEpoch(b); err == nil && e.Number != 3 {
			t.Fatalf("it takes %x for %+v", b, e)
		}
	})
}

// TestSealingToPeople: a backup's key opens with the identity of any recipient, and no
// other.
func TestSealingToPeople(t *testing.T) {
	person, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	node, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := SealTo([]byte("the key"), []string{person.Recipient().String(), node.Recipient()})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := OpenWith(sealed, []byte("# a comment\n"+person.String()+"\n")); err != nil || string(got) != "the key" {
		t.Errorf("opened %q: %v", got, err)
	}
	if got, err := node.Open(sealed); err != nil || string(got) != "the key" {
		t.Errorf("opened with an ssh key %q: %v", got, err)
	}
	stranger, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenWith(sealed, []byte(stranger.String())); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("a stranger's identity: %v", err)
	}
	sealed[len(sealed)-1] ^= 1
	if _, err := OpenWith(sealed, []byte(person.String())); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("a changed box: %v", err)
	}
	for _, bad := range [][]string{nil, {"age1nonsense"}, {"ssh-ed25519 AAAA"}, {""}} {
		if _, err := SealTo(nil, bad); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("recipients %q: %v", bad, err)
		}
	}
	if _, err := OpenWith(sealed, []byte("nonsense")); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("an identity that is none: %v", err)
	}
}
