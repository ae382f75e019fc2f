package node

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/metatest"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// What no file comes for is closed by the server that leads, after its Quiet and not
// before; a file in between puts it off.
func TestQuietVersionsAreClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		records := metatest.New(t)
		ref := meta.RepoRef{Tenant: "acme", Name: "mvn"}
		records.Must(state.CreateRepository{CreateTenant: true, Repository: meta.Repository{
			Ref: ref, Format: "maven", Kind: meta.KindHosted, Class: meta.ClassStandard, Home: "eu", Visibility: meta.VisibilityPrivate,
		}})
		send := func(version, path string) {
			d := digest.FromBytes([]byte(path))
			b := meta.Blob{Context: "acme", Digest: d, PlainBytes: 3, StoredBytes: 3, Root: digest.Sum([]byte(path))}
			records.Must(state.Publish{
				Version: meta.Version{Repo: ref, Package: "org:demo", Name: version, State: meta.StateOpen, Quiet: 10 * time.Minute},
				Files:   []meta.File{{Path: path, Digest: d, Size: 3}},
				Blobs:   []state.LinkBlob{{Repo: ref, Digest: d, Blob: b, Server: "s1"}},
			})
		}
		is := func(version string, want meta.VersionState) {
			t.Helper()
			v, _, err := raftmeta.Ask(t.Context(), records, meta.Local, state.GetVersion{Repo: ref, Package: "org:demo", Version: version})
			if err != nil || v.State != want {
				t.Errorf("version %s is %s, want %s: %v", version, v.State, want, err)
			}
		}
		var leads atomic.Bool
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		q := quieter{metadata: records, doer: records, self: "s1", leads: leads.Load, log: slog.New(slog.DiscardHandler)}
		go func() { done <- q.run(ctx) }()

		send("1.0", "demo.jar")
		send("2.0", "demo.jar")
		time.Sleep(9 * time.Minute)
		send("2.0", "demo.pom")
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		is("1.0", meta.StateOpen) // nobody leads
		leads.Store(true)
		time.Sleep(quietEvery)
		synctest.Wait()
		is("1.0", meta.StateClosed)
		is("2.0", meta.StateOpen)
		records.Break(meta.ErrUnavailable)
		time.Sleep(9 * time.Minute)
		records.Break(nil)
		time.Sleep(quietEvery)
		synctest.Wait()
		is("2.0", meta.StateClosed)
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
