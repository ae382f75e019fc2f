package upstream

import (
	"crypto/md5"  //nolint:gosec // an upstream's own checksum, beside which others may stand
	"crypto/sha1" //nolint:gosec // as above
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"hash"
	"strings"

	"github.com/shoal-registry/shoal/verify/digest"
)

// algorithms of checksums that upstreams give. Others are not checked.
var algorithms = map[string]func() hash.Hash{
	"md5": md5.New, "sha1": sha1.New, "sha224": sha256.New224, "sha256": sha256.New, "sha384": sha512.New384, "sha512": sha512.New,
}

// sums hashes what comes by the algorithms of what is wanted.
type sums struct {
	want   map[string]string
	hashes map[string]hash.Hash
	size   int64
}

func newSums(want map[string]string) *sums {
	s := &sums{want: want, hashes: map[string]hash.Hash{}}
	for algorithm := range want {
		if make := algorithms[algorithm]; make != nil {
			s.hashes[algorithm] = make()
		}
	}
	return s
}

// Write implements io.Writer; it never fails.
func (s *sums) Write(p []byte) (int, error) {
	for _, h := range s.hashes {
		h.Write(p)
	}
	s.size += int64(len(p))
	return len(p), nil
}

// check compares with what is wanted.
func (s *sums) check() *digest.MismatchError {
	for algorithm, h := range s.hashes {
		if got := hex.EncodeToString(h.Sum(nil)); !strings.EqualFold(got, s.want[algorithm]) {
			return &digest.MismatchError{Want: digest.Digest(algorithm + ":" + s.want[algorithm]), Got: digest.Digest(algorithm + ":" + got)}
		}
	}
	return nil
}
