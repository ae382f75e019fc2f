package state

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// FuzzDecode feeds bytes as a log entry: they decode or are refused, and what
// decodes applies without harm to a machine.
func FuzzDecode(f *testing.F) {
	young := &logWriter{now: time.Unix(1_800_000_000, 0)}
	levelSixPackages(young)
	levelSixPromotions(young)
	for _, e := range append(levelTwo(), young.entries...) {
		f.Add(e.Command)
	}
	f.Add([]byte{1, 0xff, 0xff, flagIgnorable, 1, 0xa0})
	f.Add([]byte{})
	b := newBench(f)
	b.must(SetLevel{Level: Level})
	b.must(image("m1"))
	f.Fuzz(func(t *testing.T, command []byte) {
		o, c, err := Decode(command)
		if err != nil {
			if _, unknown := errors.AsType[*UnknownTypeError](err); !unknown && !errors.Is(err, meta.ErrInvalid) {
				t.Fatalf("refused without a kind: %v", err)
			}
			return
		}
		b.index++
		r, err := b.Apply(b.index, 1, command)
		if _, newer := errors.AsType[*UnknownLevelError](err); newer {
			return // As it must: the others go on to that level.
		}
		if err != nil {
			t.Fatalf("%+v stops the machine: %v", c, err)
		}
		if c == nil || c.Check() != nil {
			return
		}
		if again, err := DecodeResult(r.Encode()); err != nil || !bytes.Equal(again.Encode(), r.Encode()) {
			t.Fatalf("result %+v comes back as %+v: %v", r, again, err)
		}
		encoded, err := Encode(o, c)
		if err != nil {
			return // Longer than what was read, or above a bound of the origin.
		}
		if _, again, err := Decode(encoded); err != nil || Name(again) != Name(c) {
			t.Fatalf("%+v comes back as %+v: %v", c, again, err)
		}
	})
}

// FuzzParseUpload feeds bytes as a key of the uploads.
func FuzzParseUpload(f *testing.F) {
	f.Add([]byte(upload{Since: 1, Repo: appRef, Link: digest.FromBytes(nil)}.key()))
	f.Add([]byte(upload{Since: 1, Repo: appRef, Draft: "d"}.key()))
	f.Fuzz(func(t *testing.T, k []byte) {
		u, err := parseUpload(k)
		if err != nil {
			return
		}
		if again, err := parseUpload(u.key()); err != nil || again != u {
			t.Fatalf("%+v comes back as %+v: %v", u, again, err)
		}
	})
}

// FuzzKeys checks that no name reaches into another's range of keys.
func FuzzKeys(f *testing.F) {
	f.Add("acme", "app", "api", "1", "acme", "app", "api/", "1")
	f.Add("a", "bc", "d", "", "ab", "c", "d", "")
	f.Add("", "\x00", "", "\xff", "", "", "\x00", "\xff")
	f.Fuzz(func(t *testing.T, tenant1, repo1, package1, name1, tenant2, repo2, package2, name2 string) {
		r1 := meta.RepoRef{Tenant: meta.TenantName(tenant1), Name: repo1}
		r2 := meta.RepoRef{Tenant: meta.TenantName(tenant2), Name: repo2}
		k := keyAliases(r1, package1).last(name1)
		same := r1 == r2 && package1 == package2
		prefix := keyAliases(r2, package2)
		s := within(prefix)
		inside := bytes.Compare(k, s.lower) >= 0 && (s.upper == nil || bytes.Compare(k, s.upper) < 0)
		if inside != same {
			t.Fatalf("%v %q is in the range of %v %q: %v", r1, package1, r2, package2, inside)
		}
		if same && (bytes.Compare(k, prefix.last(name2)) < 0) != (name1 < name2) {
			t.Fatalf("%q and %q are not in byte order", name1, name2)
		}
		if name, rest, ok := cutPart(key(nil).part(tenant1).last(name2)); !ok || name != tenant1 || string(rest) != name2 {
			t.Fatalf("%q comes back as %q", tenant1, name)
		}
	})
}
