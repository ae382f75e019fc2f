package protocol

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func FuzzContentRange(f *testing.F) {
	for _, seed := range []string{"0-0", "5-9", "bytes 0-9/10", "bytes=0-9", "-", "9-0", "0-", "99999999999999999999-1", "+1-+2", "0-9223372036854775807"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		start, end, err := ParseContentRange(s)
		if err == nil && (start < 0 || end < start || end-start+1 <= 0) {
			t.Errorf("%q is %d to %d", s, start, end)
		}
	})
}

func TestParseContentRange(t *testing.T) {
	for s, want := range map[string][2]int64{"0-0": {0, 0}, "5-9": {5, 9}, "bytes 0-9/10": {0, 9}, "bytes=3-9": {3, 9}} {
		if start, end, err := ParseContentRange(s); err != nil || start != want[0] || end != want[1] {
			t.Errorf("%q is %d to %d: %v", s, start, end, err)
		}
	}
	for _, s := range []string{"", "-", "9-0", "0-", "-5", "a-b", "+1-+2", "bytes */10", "0-9223372036854775807"} {
		if start, end, err := ParseContentRange(s); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%q is %d to %d: %v", s, start, end, err)
		}
	}
}

func TestBodyThatBreaksOff(t *testing.T) {
	gone := errors.New("the client has gone")
	r := &http.Request{Body: io.NopCloser(io.MultiReader(strings.NewReader("half"), failing{gone}))}
	b, err := io.ReadAll(Body(r))
	if string(b) != "half" || !errors.Is(err, ErrBroken) || !errors.Is(err, gone) || !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("%q, %v", b, err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
