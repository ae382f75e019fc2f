package generic

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"

	godigest "github.com/opencontainers/go-digest"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// sums are the checksums that a client sent with its bytes; empty when it sent none.
type sums struct{ sha256, sha512 digest.Digest }

// checksums reads all forms in which a client may send them. Algorithms that are
// not ours are left out (RFC 9530, section 2); of ours, all must agree.
//
// Errors: meta.ErrInvalid.
func checksums(h http.Header) (sums, error) {
	var s sums
	add := func(from string, algorithm godigest.Algorithm, raw []byte, err error) error {
		if err != nil || len(raw) != algorithm.Size() {
			return fmt.Errorf("header %s: the %s is malformed: %w", from, algorithm, meta.ErrInvalid)
		}
		d := godigest.NewDigestFromBytes(algorithm, raw)
		into := &s.sha256
		if algorithm == godigest.SHA512 {
			into = &s.sha512
		}
		if *into != "" && *into != d {
			return fmt.Errorf("header %s: its %s is not that of another header: %w", from, algorithm, meta.ErrInvalid)
		}
		*into = d
		return nil
	}
	for _, from := range []string{"Repr-Digest", "Content-Digest", "Digest"} {
		for _, line := range h.Values(from) {
			for member := range strings.SplitSeq(line, ",") {
				name, value, _ := strings.Cut(strings.TrimSpace(member), "=")
				algorithm := algorithms[strings.ToLower(name)]
				if algorithm == "" {
					continue
				}
				if from != "Digest" { // a byte sequence of RFC 8941 stands between colons
					inner, ok := strings.CutPrefix(value, ":")
					inner, closed := strings.CutSuffix(inner, ":")
					if !ok || !closed {
						return sums{}, add(from, algorithm, nil, nil)
					}
					value = inner
				}
				raw, err := base64.StdEncoding.DecodeString(value)
				if err := add(from, algorithm, raw, err); err != nil {
					return sums{}, err
				}
			}
		}
	}
	for from, algorithm := range map[string]godigest.Algorithm{"X-Checksum-Sha256": godigest.SHA256, "X-Checksum-Sha512": godigest.SHA512} {
		if v := h.Get(from); v != "" {
			raw, err := hex.DecodeString(strings.ToLower(v))
			if err := add(from, algorithm, raw, err); err != nil {
				return sums{}, err
			}
		}
	}
	return s, nil
}

// algorithms by their names in HTTP (RFC 9530, section 7.2).
var algorithms = map[string]godigest.Algorithm{"sha-256": godigest.SHA256, "sha-512": godigest.SHA512}

// setChecksums says what the whole file hashes to.
func setChecksums(h http.Header, d digest.Digest) {
	raw, err := hex.DecodeString(d.Encoded())
	if err != nil || d.Algorithm() != godigest.SHA256 {
		return
	}
	h.Set("Repr-Digest", "sha-256=:"+base64.StdEncoding.EncodeToString(raw)+":")
	h.Set("X-Checksum-Sha256", d.Encoded())
}
