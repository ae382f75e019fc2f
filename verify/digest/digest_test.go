package digest_test

import (
	"bytes"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/verify/digest"
)

func TestParse(t *testing.T) {
	good := "sha256:" + strings.Repeat("0a", 32)
	for _, c := range []struct {
		text        string
		ok          bool
		unsupported bool
	}{
		{text: good, ok: true},
		{text: "sha512:" + strings.Repeat("0a", 64), ok: true},
		{text: ""},
		{text: "sha256"},
		{text: "sha256:" + strings.Repeat("0a", 31)},
		{text: "sha256:" + strings.Repeat("0A", 32)},
		{text: "sha256:" + strings.Repeat("0g", 32)},
		{text: good + "/../x"},
		{text: "md5:" + strings.Repeat("0a", 16), unsupported: true},
		{text: "sha384:" + strings.Repeat("0a", 48), unsupported: true},
	} {
		d, err := digest.Parse(c.text)
		if (err == nil) != c.ok || errors.Is(err, digest.ErrUnsupported) != c.unsupported {
			t.Errorf("Parse(%q) = %q, %v", c.text, d, err)
		}
	}
}

func TestHasherNamesContent(t *testing.T) {
	h := digest.NewHasher(true)
	h.Write([]byte("abc"))
	// FIPS 180-2, appendix B.1 and C.1.
	const sha256abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
	if h.SHA256() != sha256abc || h.Size() != 3 {
		t.Errorf("sha256 = %s, %d bytes", h.SHA256(), h.Size())
	}
	sum := sha512.Sum512([]byte("abc"))
	want512 := digest.Digest("sha512:" + hex.EncodeToString(sum[:]))
	if h.SHA512() != want512 {
		t.Errorf("sha512 = %s", h.SHA512())
	}
	for _, want := range []digest.Digest{sha256abc, want512} {
		if err := h.Check(want); err != nil {
			t.Errorf("Check(%s) = %v", want, err)
		}
	}
	var mismatch *digest.MismatchError
	if err := h.Check(digest.FromBytes(nil)); !errors.As(err, &mismatch) || mismatch.Got != sha256abc {
		t.Errorf("another digest: %v", err)
	}
	if err := digest.NewHasher(false).Check(want512); !errors.Is(err, digest.ErrUnsupported) {
		t.Errorf("a sha512 that was not computed: %v", err)
	}
}

// A hasher that is saved and restored at any point ends where one that was not does.
func TestHasherResumes(t *testing.T) {
	content := bytes.Repeat([]byte("shoal "), 100)
	for _, both := range []bool{false, true} {
		whole := digest.NewHasher(both)
		whole.Write(content)
		for cut := range len(content) {
			first := digest.NewHasher(both)
			first.Write(content[:cut])
			state, err := first.MarshalBinary()
			if err != nil {
				t.Fatal(err)
			}
			var second digest.Hasher
			if err := second.UnmarshalBinary(state); err != nil {
				t.Fatalf("restore at %d: %v", cut, err)
			}
			second.Write(content[cut:])
			if second.SHA256() != whole.SHA256() || second.SHA512() != whole.SHA512() || second.Size() != whole.Size() {
				t.Fatalf("cut at %d, both %v: the names differ", cut, both)
			}
		}
	}
}

func FuzzHasherState(f *testing.F) {
	state, err := digest.NewHasher(true).MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(state)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		var h digest.Hasher
		if h.UnmarshalBinary(b) == nil {
			h.Write([]byte("x"))
			h.SHA256()
		}
	})
}

func TestCIDText(t *testing.T) {
	c := digest.Sum([]byte("chunk"))
	text := c.String()
	if !strings.HasPrefix(text, "b") {
		t.Errorf("%s is not base32 multibase", text)
	}
	back, err := digest.ParseCID(text)
	if err != nil || back != c {
		t.Errorf("ParseCID(String) = %v, %v", back, err)
	}
	if back, err = digest.ParseHex(c.Hex()); err != nil || back != c {
		t.Errorf("ParseHex(Hex) = %v, %v", back, err)
	}
	for _, bad := range []string{
		"", "b", text[:len(text)-1], text + "a",
		"bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku", // sha2-256
		"QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG",              // version 0
	} {
		if _, err := digest.ParseCID(bad); err == nil {
			t.Errorf("ParseCID(%q) is no error", bad)
		}
	}
	for _, bad := range []string{"", c.Hex()[1:], c.Hex() + "00", strings.Repeat("zz", 32)} {
		if _, err := digest.ParseHex(bad); err == nil {
			t.Errorf("ParseHex(%q) is no error", bad)
		}
	}
}

func TestZeroCID(t *testing.T) {
	var zero digest.CID
	b, err := zero.MarshalBinary()
	if err != nil || len(b) != 0 {
		t.Errorf("the zero CID is %x, %v; want nothing", b, err)
	}
	c := digest.Sum([]byte("x"))
	if err := c.UnmarshalBinary(b); err != nil || !c.IsZero() {
		t.Errorf("nothing reads as %v, %v", c, err)
	}
	if err := c.UnmarshalText(nil); err != nil || !c.IsZero() {
		t.Errorf("no text reads as %v, %v", c, err)
	}
	if err := c.UnmarshalBinary(make([]byte, 31)); err == nil {
		t.Error("31 bytes are no error")
	}
}
