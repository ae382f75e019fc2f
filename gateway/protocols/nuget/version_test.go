package nuget

import (
	"slices"
	"strings"
	"testing"
)

func TestVersion(t *testing.T) {
	for text, want := range map[string]struct{ full, key string }{
		"1":                    {"1.0.0", "1.0.0"},
		"1.0":                  {"1.0.0", "1.0.0"},
		"01.002.3":             {"1.2.3", "1.2.3"},
		"1.2.3.0":              {"1.2.3", "1.2.3"},
		"1.2.3.4":              {"1.2.3.4", "1.2.3.4"},
		"1.0.0-Beta.1":         {"1.0.0-Beta.1", "1.0.0-beta.1"},
		"1.0-RC":               {"1.0.0-RC", "1.0.0-rc"},
		"1.0.0-a-b":            {"1.0.0-a-b", "1.0.0-a-b"},
		"1.0.0+Sha.7":          {"1.0.0+Sha.7", "1.0.0"},
		"1.0.0-x+b-1":          {"1.0.0-x+b-1", "1.0.0-x"},
		"2147483647.0.0":       {"2147483647.0.0", "2147483647.0.0"},
		"1.0.0-00.01":          {"1.0.0-00.01", "1.0.0-00.01"},
		"1.0.0-99999999999999": {"1.0.0-99999999999999", "1.0.0-99999999999999"},
	} {
		v, err := parseVersion(text)
		if err != nil || v.full() != want.full || v.key() != want.key {
			t.Errorf("%q is %s with key %s, %v; want %+v", text, v.full(), v.key(), err, want)
		}
	}
	for _, text := range []string{
		"", "a", "v1.0", "1.", ".1", "1..2", "1.2.3.4.5", "-1", "+1", "1.0.0-", "1.0.0+", "1.0.0-a..b", "1.0.0-a_b",
		"1.0.0 ", "2147483648.0.0", "1.0.0-é", "1.+2.3", "1.0.0/..", strings.Repeat("1", 65),
	} {
		if v, err := parseVersion(text); err == nil {
			t.Errorf("%q is taken as %s", text, v.full())
		}
	}
}

func TestVersionOrder(t *testing.T) {
	want := strings.Fields("0.9 1.0.0-1 1.0.0-2 1.0.0-10 1.0.0-alpha 1.0.0-alpha.1 1.0.0-alpha.beta 1.0.0-BETA 1.0.0-beta.2 1.0.0-beta.11 1.0.0-rc 1.0 1.0.0.1 1.0.1 1.2 1.10 2")
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, func(a, b string) int {
		v, _ := scanVersion(a)
		o, _ := scanVersion(b)
		return v.compare(o)
	})
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	a, _ := scanVersion("1.0-Beta+x")
	b, _ := scanVersion("1.0.0.0-beta+y")
	if a.compare(b) != 0 || a.key() != b.key() {
		t.Errorf("%v and %v differ", a, b)
	}
}

func TestSpan(t *testing.T) {
	for text, want := range map[string]string{
		"":               "(, )",
		"1.0":            "[1.0.0, )",
		" [1.0,2.0) ":    "[1.0.0, 2.0.0)",
		"(1.0,)":         "(1.0.0, )",
		"(,1.0]":         "(, 1.0.0]",
		"[1.0]":          "[1.0.0, 1.0.0]",
		"[1.0,1.0]":      "[1.0.0, 1.0.0]",
		"1.0.0-Beta.1":   "[1.0.0-Beta.1, )",
		"1.*":            "1.*",
		"[1.0.0-*, 2.0]": "[1.0.0-*, 2.0]",
		"(,)":            "(, )",
	} {
		if r, err := parseSpan(text); err != nil || r.String() != want {
			t.Errorf("%q is %q, %v; want %q", text, r, err, want)
		}
	}
	for _, text := range []string{"[", "[]", "(1.0)", "[1.0", "1.0]", "[2.0,1.0]", "(1.0,1.0)", "x", "[1.0,2.0,3.0]", "<script>*", strings.Repeat("1", 200)} {
		if r, err := parseSpan(text); err == nil {
			t.Errorf("%q is taken as %s", text, r)
		}
	}
	for text, want := range map[string]bool{"1.0": false, "1.0-a": false, "1.0-a.1": true, "[1.0,2.0+x]": true} {
		if r, err := parseSpan(text); err != nil || r.semVer2() != want {
			t.Errorf("%q: semVer2 is %t, %v", text, r.semVer2(), err)
		}
	}
}

func TestID(t *testing.T) {
	for id, want := range map[string]string{"Acme.Demo": "acme.demo", "a": "a", "_x-1": "_x-1"} {
		if got, err := parseID(id); err != nil || got != want {
			t.Errorf("%q is %q, %v", id, got, err)
		}
	}
	for _, id := range []string{"", ".", "..", "a..b", "a.", "-a", "a b", "a/b", "Ä", "a\x00", strings.Repeat("a", 101)} {
		if got, err := parseID(id); err == nil {
			t.Errorf("%q is taken as %q", id, got)
		}
	}
}

func FuzzVersion(f *testing.F) {
	for _, s := range []string{"1.0", "1.2.3.4-a.1+b", "[1.0,2.0)", "1.*", "(,)"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if v, ok := scanVersion(s); ok {
			again, ok := scanVersion(v.full())
			if !ok && len(v.full()) <= maxVersionBytes || ok && (again.compare(v) != 0 || again.key() != v.key() || again.full() != v.full()) {
				t.Errorf("%q is %s, and that is %s", s, v.full(), again.full())
			}
		}
		if r, err := parseSpan(s); err == nil && r.floating == "" {
			again, err := parseSpan(r.String())
			if err == nil && again.String() != r.String() {
				t.Errorf("%q is %s, and that is %s", s, r, again)
			}
		}
	})
}
