package node

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Bounds of an ahead.
const (
	// lookAfter is how long a client has to ask for the blobs of a manifest itself,
	// and as much again at random: a wave's agents do not ask all at once.
	lookAfter = time.Second
	// lookTime bounds one blob.
	lookTime = 2 * time.Second
	// maxAhead bounds the manifests that wait, maxAheadBlobs what is looked at of one.
	maxAhead, maxAheadBlobs = 64, 128
)

// ahead learns, on an agent, what the blobs of a manifest are that a client was
// given and has not asked for yet: their records, and grants. So a pull ends also
// when every server is lost after its manifest was read. What a client asks for
// within a second costs nothing more.
type ahead struct {
	metadata raftmeta.Asker
	prepare  func(ctx context.Context, root digest.CID) error
	log      *slog.Logger
	queue    chan dueVersion

	mu    sync.Mutex
	asked *simplelru.LRU[aheadKey, struct{}]
}

type dueVersion struct {
	version meta.Version
	due     time.Time
}

type aheadKey struct {
	repo   meta.RepoRef
	digest digest.Digest
}

func newAhead(metadata raftmeta.Asker, prepare func(context.Context, digest.CID) error, log *slog.Logger) *ahead {
	asked, _ := simplelru.NewLRU[aheadKey, struct{}](4096, nil) // fails for sizes <= 0 only
	return &ahead{metadata: metadata, prepare: prepare, log: log, queue: make(chan dueVersion, maxAhead), asked: asked}
}

// note takes that a client asks for a blob itself.
func (a *ahead) note(repo meta.RepoRef, d digest.Digest) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked.Add(aheadKey{repo, d}, struct{}{})
}

// served takes that a client was given the document of v. It does not block: when
// many wait, one more is left out.
func (a *ahead) served(v *meta.Version) {
	if len(v.References) == 0 {
		return
	}
	select {
	case a.queue <- dueVersion{*v, time.Now().Add(lookAfter + rand.N(lookAfter))}:
	default:
	}
}

func (a *ahead) known(k aheadKey) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, ok := a.asked.Get(k)
	return ok
}

// run looks at one manifest after another until ctx ends.
func (a *ahead) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case v := <-a.queue:
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(time.Until(v.due)):
			}
			a.look(ctx, v.version)
		}
	}
}

func (a *ahead) look(ctx context.Context, v meta.Version) {
	for _, r := range v.References[:min(len(v.References), maxAheadBlobs)] {
		key := aheadKey{v.Repo, r.Digest}
		if r.Version || a.known(key) {
			continue
		}
		limited, cancel := context.WithTimeout(ctx, lookTime)
		b, _, err := raftmeta.Ask(limited, a.metadata, meta.Local, state.GetBlob{Repo: v.Repo, Digest: r.Digest})
		if err == nil && b.Quarantine == nil {
			err = a.prepare(limited, b.Blob.Root)
		}
		cancel()
		if errors.Is(err, meta.ErrUnavailable) || ctx.Err() != nil {
			return // no server: the others are not to be learned either
		}
		if err != nil {
			a.log.Debug("a blob of a manifest was not looked at ahead", "repository", v.Repo.String(), "digest", string(r.Digest), "error", err)
			continue
		}
		a.note(v.Repo, r.Digest)
	}
}
