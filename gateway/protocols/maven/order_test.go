package maven

import (
	"slices"
	"testing"
)

// The order of the Maven documentation (POM Reference, Version Order Specification) and
// of ComparableVersion's own tests.
func TestCompareVersions(t *testing.T) {
	for _, order := range [][]string{
		{"1-alpha2snapshot", "1-alpha2", "1-alpha-123", "1-beta-2", "1-beta123", "1-m2", "1-m11", "1-rc", "1-cr2", "1-rc123", "1-SNAPSHOT", "1", "1-sp", "1-sp2", "1-sp123", "1-abc", "1-def", "1-pom-1", "1-1-snapshot", "1-1", "1-2", "1-123"},
		{"2.0", "2.0.a", "2-1", "2.0.2", "2.0.123", "2.1.0", "2.1-a", "2.1b", "2.1-c", "2.1-1", "2.1.0.1", "2.2", "2.123", "11.a2", "11.a11", "11.b2", "11.b11", "11.m2", "11.m11", "11", "11.a", "11b", "11c", "11m"},
		{"1.0-alpha-1-SNAPSHOT", "1.0-alpha-1", "1.0-beta-1", "1.0-SNAPSHOT", "1.0", "1.1", "1.2", "1.10", "2"},
		{"20190126.230843", "1234567890.12345", "123456789012345.1H.5-beta", "12345678901234567890.1H.5-beta"},
	} {
		for i, a := range order {
			for j, b := range order {
				if got, want := compareVersions(a, b), i-j; got > 0 != (want > 0) || got < 0 != (want < 0) {
					t.Errorf("%s to %s is %d", a, b, got)
				}
			}
		}
	}
	for _, same := range [][]string{
		{"1", "1.0", "1.0.0", "1-0", "1.ga", "1-ga", "1.final", "1-release", "1.0-final", "01"}, {"1x", "1-x", "1.0.0-x", "1.0x", "1.0.0x"},
		{"1a1", "1-alpha-1"}, {"1b2", "1-beta-2"}, {"1m3", "1-milestone-3"}, {"1RC", "1cr", "1-CR"}, {"", "0", "-", "."},
	} {
		for _, b := range same {
			if c := compareVersions(same[0], b); c != 0 {
				t.Errorf("%s to %s is %d", same[0], b, c)
			}
		}
	}
}

// The order is one: of any three, none is both before and behind another.
func FuzzCompareVersions(f *testing.F) {
	f.Add("1.0", "1.0-alpha-1", "1-sp")
	f.Add("1--", "..-1a", "1.a.b-c")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		if len(a)+len(b)+len(c) > 300 || !isVersion(a) || !isVersion(b) || !isVersion(c) {
			return
		}
		if compareVersions(a, a) != 0 || compareVersions(a, b) != -compareVersions(b, a) {
			t.Fatalf("%q to %q: %d and %d", a, b, compareVersions(a, b), compareVersions(b, a))
		}
		list := []string{a, b, c}
		slices.SortFunc(list, compareVersions)
	})
}
