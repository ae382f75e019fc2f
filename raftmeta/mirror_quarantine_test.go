package raftmeta_test

import (
	"errors"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// TestMirrorHearsOfQuarantine: an agent that heard that a version went into quarantine
// gives no answer again that leads to it, neither now nor when no server is left; one
// that asked in between keeps the answer that says so.
func TestMirrorHearsOfQuarantine(t *testing.T) {
	s := watched{withApp(t), make(chan uint64)}
	push(s.Store, "m1", "sound")
	pushed := push(s.Store, "m2", "latest")
	stolen := string(digest.FromBytes([]byte("m2")))
	m := openMirror(t, t.TempDir(), s)
	hour := meta.Freshness{Mode: meta.ModeBounded, MaxAge: time.Hour}
	version := state.GetVersion{Repo: appRef, Package: "api", Version: stolen}
	blob := state.GetBlob{Repo: appRef, Digest: digest.Digest(stolen)}
	sound := state.Resolve{Repo: appRef, Package: "api", Alias: "sound"}
	resolve(t, m, hour, "m2") // The repository is one to follow from now on.
	run(t, m.Run)
	s.wait(pushed.Index)
	if a, _, err := raftmeta.Ask(t.Context(), m, hour, blob); err != nil || a.Quarantine != nil {
		t.Fatalf("before, the blob is %+v: %v", a, err)
	}
	if _, _, err := raftmeta.Ask(t.Context(), m, hour, version); err != nil {
		t.Fatal(err)
	}
	if _, _, err := raftmeta.Ask(t.Context(), m, hour, sound); err != nil {
		t.Fatal(err)
	}
	s.wait(s.Must(state.QuarantineVersion{Repo: appRef, Package: "api", Version: stolen, Reason: "stolen"}).Index)
	go func() {
		for range s.seen {
		}
	}()
	if a, _, err := raftmeta.Ask(t.Context(), m, hour, blob); err != nil || a.Quarantine == nil {
		t.Errorf("after, the blob is %+v: %v", a, err)
	}
	s.Break(noServer)
	if a, asOf, err := raftmeta.Ask(t.Context(), m, meta.Local, latest); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("without servers latest is %+v as of %+v, %v", a, asOf, err)
	}
	if a, asOf, err := raftmeta.Ask(t.Context(), m, meta.Local, version); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("without servers the version is %+v as of %+v, %v", a, asOf, err)
	}
	if a, asOf, err := raftmeta.Ask(t.Context(), m, meta.Local, blob); err != nil || a.Quarantine == nil {
		t.Errorf("without servers the blob is %+v as of %+v, %v", a, asOf, err)
	}
	if _, asOf, err := raftmeta.Ask(t.Context(), m, meta.Local, sound); err != nil || !asOf.Stale {
		t.Errorf("without servers the sound one is as of %+v, %v", asOf, err)
	}
}
