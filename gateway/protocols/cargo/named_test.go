package cargo

import (
	"slices"
	"testing"
)

// The index is asked in the spelling that an address has; an address that has none, as a
// registry's may that has crates by their checksums, is looked up in those that a
// normalized name may stand for.
func TestSpellings(t *testing.T) {
	for _, test := range []struct {
		at, name string
		want     []string
	}{
		{"https://static.example/crates/serde_json/1.0.0/download", "serde-json", []string{"serde_json", "serde-json"}},
		{"https://static.example/crates/Serde-JSON/1.0.0/download", "serde-json", []string{"serde-json", "serde_json"}},
		{"https://static.example/se/rd/9f86d081884c7d65", "serde-json", []string{"serde-json", "serde_json"}},
		{"https://static.example/se/rd/9f86d081884c7d65", "serde", []string{"serde"}},
		{"https://static.example/a_b-c/a-b_c.crate", "a-b-c", []string{"a_b-c", "a-b_c", "a-b-c", "a_b_c"}},
		{"https://static.example/", "", nil},
	} {
		if got := spellings(test.at, test.name); !slices.Equal(got, test.want) {
			t.Errorf("%s in %s: %q, want %q", test.name, test.at, got, test.want)
		}
	}
}
