package node

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// records answers GetBlob with a blob whose root is made of its digest.
type records struct {
	mu    sync.Mutex
	asked []digest.Digest
	err   error
}

func (r *records) Answer(_ context.Context, _ meta.Freshness, q raftmeta.Request) (meta.AsOf, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := q.Args().(state.GetBlob).Digest
	r.asked = append(r.asked, d)
	if r.err != nil {
		return meta.AsOf{}, r.err
	}
	q.Into().(*state.BlobAnswer).Blob = meta.Blob{Digest: d, Root: digest.Sum([]byte(d))}
	return meta.AsOf{}, nil
}

// TestAheadLearnsWhatNobodyAskedFor: of a manifest's blobs those that the client did
// not ask for within a second, each once.
func TestAheadLearnsWhatNobodyAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		layers := make([]meta.Reference, 5)
		for i := range layers {
			layers[i].Digest = digest.FromBytes([]byte{byte(i)})
		}
		layers[4].Version = true // an image of an index has blobs of its own
		v := meta.Version{Repo: meta.RepoRef{Tenant: "acme", Name: "app"}, References: layers}
		source := &records{}
		var prepared []digest.CID
		a := newAhead(source, func(_ context.Context, root digest.CID) error {
			prepared = append(prepared, root)
			if root == digest.Sum([]byte(layers[2].Digest)) {
				return fmt.Errorf("the third: %w", meta.ErrNotFound)
			}
			return nil
		}, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- a.run(ctx) }()
		a.served(&v)
		a.served(&meta.Version{}) // leads nowhere
		a.note(v.Repo, layers[0].Digest)
		time.Sleep(lookAfter - 1)
		synctest.Wait()
		if len(source.asked) != 0 {
			t.Errorf("the client had no time: %v", source.asked)
		}
		a.note(v.Repo, layers[1].Digest)
		time.Sleep(lookAfter + 1)
		synctest.Wait()
		if want := []digest.Digest{layers[2].Digest, layers[3].Digest}; !slices.Equal(source.asked, want) {
			t.Errorf("asked for %v, want %v", source.asked, want)
		}
		if len(prepared) != 2 {
			t.Errorf("prepared for %v", prepared)
		}
		a.served(&v) // the third is tried again, the fourth is known
		time.Sleep(2 * lookAfter)
		synctest.Wait()
		if len(source.asked) != 3 {
			t.Errorf("asked for %v", source.asked)
		}
		source.mu.Lock()
		source.asked, source.err = nil, fmt.Errorf("nobody: %w", meta.ErrUnavailable)
		source.mu.Unlock()
		w := v
		w.Repo.Name = "other"
		for range 3 * maxAhead { // without a server one question each is enough, and too many are left out
			a.served(&w)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(source.asked) > maxAhead+1 {
			t.Errorf("%d questions", len(source.asked))
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
