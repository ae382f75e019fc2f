package meta_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func TestNames(t *testing.T) {
	long := strings.Repeat("a", 63)
	for name, ok := range map[string]bool{
		"a": true, "acme": true, "a-b": true, "0": true, long: true,
		"": false, "-a": false, "a-": false, "A": false, "a_b": false, "a/b": false, "a.b": false, long + "a": false, "ä": false,
	} {
		if err := meta.CheckTenant(meta.TenantName(name)); (err == nil) != ok {
			t.Errorf("tenant %q: %v", name, err)
		}
		if err := meta.CheckRegion(meta.RegionName(name)); (err == nil) != ok {
			t.Errorf("region %q: %v", name, err)
		}
		_, err := meta.ParseRepoRef("acme/" + name)
		if (err == nil) != ok {
			t.Errorf("repository %q: %v", name, err)
		}
		if err != nil && !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("repository %q: %v is not ErrInvalid", name, err)
		}
	}
	if _, err := meta.ParseRepoRef("acme"); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("a tenant alone is no repository: %v", err)
	}
}

func TestParseFreshness(t *testing.T) {
	for text, want := range map[string]meta.Freshness{
		"strong": {Mode: meta.ModeStrong, Exact: true}, "local": {Mode: meta.ModeLocal, Exact: true},
		"bounded":       {Mode: meta.ModeBounded, MaxAge: 2 * time.Second, Exact: true},
		"bounded=250ms": {Mode: meta.ModeBounded, MaxAge: 250 * time.Millisecond, Exact: true},
		"":              {}, "Strong": {}, "strong=1s": {}, "local=": {}, "bounded=": {}, "bounded=0s": {}, "bounded=-1s": {}, "bounded=2": {}, "eventual": {},
	} {
		got, err := meta.ParseFreshness(text)
		if got != want || (err == nil) != (want.Mode != "") || err != nil && !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func TestPaths(t *testing.T) {
	for path, ok := range map[string]bool{
		"a": true, "a/b.c": true, "ä/ö": true, "a b": true,
		"": false, "/a": false, "a/": false, "a//b": false, ".": false, "..": false, "a/../b": false, "./a": false,
		"a\\b": false, "a\x00b": false, "a\nb": false, "a\xff": false, strings.Repeat("a", meta.MaxPathBytes+1): false,
	} {
		if err := meta.CheckPath(path); (err == nil) != ok {
			t.Errorf("path %.40q: %v", path, err)
		}
	}
}

func TestLabels(t *testing.T) {
	many := meta.Labels{}
	for i := range meta.MaxLabels + 1 {
		many[fmt.Sprint(i)] = ""
	}
	for name, c := range map[string]struct {
		labels meta.Labels
		ok     bool
	}{
		"none": {nil, true}, "one": {meta.Labels{"team": "core"}, true}, "too many": {many, false},
		"no key": {meta.Labels{"": "x"}, false}, "a long key": {meta.Labels{strings.Repeat("k", 64): ""}, false},
		"a long value": {meta.Labels{"k": strings.Repeat("v", 256)}, false}, "no text": {meta.Labels{"k": "\xff"}, false},
	} {
		if err := c.labels.Check(); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPatterns(t *testing.T) {
	ref := meta.RepoRef{Tenant: "acme", Name: "app"}
	for pattern, want := range map[string]bool{
		"*": true, "acme/app": true, "acme/*": true, "acme/a*": true, "*/app": true, "ac*/*": true, "*/*": true,
		"acme": false, "acme/b*": false, "acm/*": false, "other/app": false, "acme/app/x": false, "": false, "/": false,
	} {
		if got := meta.Match([]string{"none/such", pattern}, ref); got != want {
			t.Errorf("Match(%q) = %v", pattern, got)
		}
	}
	if meta.Match(nil, ref) {
		t.Error("no pattern matches")
	}
	for pattern, ok := range map[string]bool{
		"*": true, "acme/app": true, "acme/*": true, "acme-*/x": true, "*/*": true,
		"acme": false, "**/x": false, "acme/": false, "/app": false, "Acme/*": false, "a*b/c": false,
	} {
		if err := meta.CheckPattern(pattern); (err == nil) != ok {
			t.Errorf("CheckPattern(%q) = %v", pattern, err)
		}
	}
}

// An error keeps its kind and its sentence from one node to another.
func TestErrorsTravel(t *testing.T) {
	if meta.ToWire(nil).Err() != nil {
		t.Error("no error became one")
	}
	for word, kind := range meta.Kinds {
		sent := fmt.Errorf("publish acme/app: %w", kind)
		came := meta.ToWire(sent).Err()
		if !errors.Is(came, kind) || came.Error() != sent.Error() || meta.KindOf(came) != word {
			t.Errorf("%s came as %v", word, came)
		}
	}
	plain := meta.ToWire(errors.New("broken")).Err()
	if meta.KindOf(plain) != "" || plain.Error() != "broken" {
		t.Errorf("an error without kind came as %v", plain)
	}
	for _, ended := range []error{context.Canceled, context.DeadlineExceeded} {
		if came := meta.ToWire(fmt.Errorf("resolve acme/app: %w", ended)).Err(); !errors.Is(came, meta.ErrUnavailable) {
			t.Errorf("what was not done to its end came as %v", came)
		}
		if came := meta.ToWire(fmt.Errorf("%w: %w", meta.ErrDenied, ended)).Err(); meta.KindOf(came) != "denied" {
			t.Errorf("an error with a kind came as %v", came)
		}
	}
	cause := errors.New("reset")
	for _, err := range []error{
		&meta.UnavailableError{Reason: "no_quorum", RetryAfter: time.Second}, &meta.NotLeaderError{}, &meta.NotLeaderError{Leader: "x"},
		&meta.UnknownOutcomeError{Cause: cause},
	} {
		if !errors.Is(err, meta.ErrUnavailable) {
			t.Errorf("%T is not ErrUnavailable", err)
		}
	}
	if !errors.Is(&meta.UnknownOutcomeError{Cause: cause}, cause) {
		t.Error("the cause is lost")
	}
}

func TestTokens(t *testing.T) {
	want := meta.Token{Epoch: 3, Index: 1 << 60}
	if got, err := meta.ParseToken(want.String()); err != nil || got != want {
		t.Errorf("%s reads as %v, %v", want, got, err)
	}
	if got, err := meta.ParseToken(""); err != nil || got != (meta.Token{}) {
		t.Errorf("nothing reads as %v, %v", got, err)
	}
	for _, bad := range []string{"1", "1.", ".1", "a.b", "1.2.3", "-1.2", "1.99999999999999999999"} {
		if _, err := meta.ParseToken(bad); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestTime(t *testing.T) {
	if meta.TimeOf(time.Time{}) != 0 || !meta.Time(0).Std().IsZero() {
		t.Error("never is not the zero time")
	}
	at := time.Date(2026, 11, 22, 1, 2, 3, 4, time.FixedZone("", 3600))
	if got := meta.TimeOf(at).Std(); !got.Equal(at) || got.Location() != time.UTC {
		t.Errorf("%v came back as %v", at, got)
	}
}
