package generic_test

import (
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// TestQuarantine: a file in quarantine is refused with the reason, by its path and by its
// version, and no directory lists it; the version before it is served as ever.
func TestQuarantine(t *testing.T) {
	f := start(t, catalogtest.Options{})
	f.expect(f.do("PUT", "bin/tool", "sound"), 201)
	f.expect(f.do("PUT", "bin/other", "other"), 201)
	f.expect(f.do("PUT", "bin/tool", "stolen"), 201)
	stolen, sound := string(digest.FromBytes([]byte("stolen"))), string(digest.FromBytes([]byte("sound")))
	do := func(c state.Command) {
		t.Helper()
		if _, err := f.Metadata.Do(t.Context(), state.Origin{Principal: "user:curator"}, c); err != nil {
			t.Fatal(err)
		}
	}
	ref := meta.RepoRef{Tenant: "acme", Name: "files"}
	do(state.QuarantineVersion{Repo: ref, Package: "bin/tool", Version: stolen, Reason: "the token was stolen"})
	for _, path := range []string{"bin/tool", "bin/tool?version=" + stolen} {
		a := f.expect(f.do("GET", path, ""), 403)
		if !strings.Contains(a.Text, "the token was stolen") || !strings.Contains(a.Text, `"denied"`) {
			t.Errorf("%s is refused with %s", path, a.Text)
		}
	}
	if a := f.expect(f.do("GET", "bin/tool?version="+sound, ""), 200); a.Text != "sound" {
		t.Errorf("the version before is %q", a.Text)
	}
	if a := f.expect(f.do("GET", "bin/", "", "Accept: application/json"), 200); strings.Contains(a.Text, `"tool"`) || !strings.Contains(a.Text, `"other"`) {
		t.Errorf("listed is %s", a.Text)
	}
	f.expect(f.do("DELETE", "bin/tool?version="+stolen, ""), 403)
	f.expect(f.do("PUT", "bin/tool", "stolen"), 403)
	f.expect(f.do("PUT", "bin/tool", "repaired"), 201)
	if a := f.expect(f.do("GET", "bin/tool", ""), 200); a.Text != "repaired" {
		t.Errorf("the path serves %q", a.Text)
	}
	do(state.ReleaseVersion{Repo: ref, Package: "bin/tool", Version: stolen, Reason: "it was not"})
	if a := f.expect(f.do("GET", "bin/tool?version="+stolen, ""), 200); a.Text != "stolen" {
		t.Errorf("released it is %q", a.Text)
	}
}
