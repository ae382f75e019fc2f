package main

import (
	"testing"

	"github.com/shoal-registry/shoal/deploy/proc"
)

// What the loader makes, the binary serves; the figures of a thousand versions are all
// there. How large they are is for `make scale` to print.
func TestSmall(t *testing.T) {
	bin, err := proc.Binary(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	o := options{bin: bin, data: t.TempDir(), few: 100, versions: 1000, requests: 10, width: 16, log: t.Logf}
	for _, n := range []int{o.few, o.versions} {
		f, err := o.measure(t.Context(), t.TempDir()+"/data", n)
		if err != nil {
			t.Fatal(err)
		}
		for name, l := range map[string]latency{
			"publish": f.publish, "resolve": f.resolve, "strong": f.strongly, "tags": f.tags, "versions": f.versions,
		} {
			if l.median <= 0 || l.p99 < l.median {
				t.Errorf("%s of %d versions: %+v", name, n, l)
			}
		}
		if f.snapshot <= 0 || f.restart <= 0 || f.strong < f.restart || f.residentMiB <= 0 || f.stateMiB <= 0 || f.perSecond <= 0 {
			t.Errorf("figures of %d versions: %+v", n, f)
		}
	}
}
