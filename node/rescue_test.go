package node

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoal-registry/shoal/dht"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/metatest"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/verify/digest"
)

// joins are the swarms that were joined; so many attempts fail first.
type joins struct {
	fail   int
	joined chan digest.CID
}

func (j *joins) Join(_ context.Context, w dht.Want) (dht.Introduction, error) {
	if j.fail--; j.fail >= 0 {
		return dht.Introduction{}, errors.New("no registrar answers")
	}
	select {
	case j.joined <- w.Root:
	default:
	}
	return dht.Introduction{}, nil
}

// What is lost right after an agent asked is offered, though the signal comes but once and
// the mirror still has the answer of before; so is what could not be offered at first.
func TestLostBlobsAreOffered(t *testing.T) {
	for name, fail := range map[string]int{"at once": 0, "after failures": 2} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				records := metatest.New(t)
				ref := meta.RepoRef{Tenant: "acme", Name: "app"}
				records.Must(state.CreateRepository{CreateTenant: true, Repository: meta.Repository{
					Ref: ref, Format: "generic", Kind: meta.KindHosted, Class: meta.ClassStandard, Home: "eu", Visibility: meta.VisibilityPrivate,
				}})
				disk := store.NewMemory()
				u, err := disk.NewUpload(t.Context(), store.UploadOptions{})
				if err == nil {
					_, err = u.Append(t.Context(), bytes.NewReader([]byte("content")))
				}
				if err != nil {
					t.Fatal(err)
				}
				in, err := u.Commit(t.Context(), digest.FromBytes([]byte("content")))
				if err != nil {
					t.Fatal(err)
				}
				records.Must(state.LinkBlob{Repo: ref, Digest: in.Digest, Server: "s1", Blob: meta.Blob{
					Context: "acme", Digest: in.Digest, PlainBytes: in.PlainBytes, StoredBytes: in.StoredBytes, Root: in.Root,
				}})

				mirror, err := raftmeta.OpenMirror(raftmeta.MirrorConfig{Dir: t.TempDir(), Region: "eu", Upstream: records})
				if err != nil {
					t.Fatal(err)
				}
				ctx, stop := context.WithCancel(t.Context())
				found := &joins{fail: fail, joined: make(chan digest.CID, 1)}
				ended := make(chan error, 2)
				go func() { ended <- mirror.Run(ctx) }()
				go func() {
					ended <- rescue{
						metadata: mirror, store: disk, finder: found, lost: mirror.Lost(), log: slog.New(slog.DiscardHandler),
					}.run(ctx)
				}()
				synctest.Wait() // it has asked, and nothing is lost
				time.Sleep(time.Second)
				records.Must(state.ReportReplicas{Replicas: []meta.Replica{{Root: in.Root, Server: "s1", State: meta.ReplicaFailed, Reason: "gone"}}})
				select {
				case root := <-found.joined:
					if root != in.Root {
						t.Errorf("offered %s", root)
					}
				case <-time.After(time.Minute):
					t.Error("it is not offered")
				}
				stop()
				for range 2 {
					if err := <-ended; err != nil {
						t.Error(err)
					}
				}
				if err := mirror.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
