package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoal-registry/shoal/dht/host"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/trust"
)

const packageName = "api"

// tagsOf is how many of n versions have a tag: a tenth, and a page at least.
func tagsOf(n int) int { return min(n, max(n/10, 100)) }

var repoRef = meta.RepoRef{Tenant: "acme", Name: "app"}

func versionName(i int) string { return fmt.Sprintf("1.%07d", i) }
func tagName(i int) string     { return fmt.Sprintf("t%07d", i) }

// loader is the metadata of a stopped server, open in this process.
type loader struct {
	store   *raftmeta.Store
	longest atomic.Int64 // commit, in nanoseconds
	close   func() error
}

// open opens the metadata beneath a server's data directory and waits until it leads.
func open(ctx context.Context, dir, cluster string) (*loader, error) {
	key, err := trust.LoadOrCreateKey(filepath.Join(dir, "node.key"))
	if err != nil {
		return nil, err
	}
	h, err := host.New(host.Config{Key: key.Private(), Plane: host.Raft, Role: meta.RoleServer, Listen: []string{"127.0.0.1:0"}})
	if err != nil {
		return nil, err
	}
	store, err := raftmeta.OpenStore(raftmeta.StoreConfig{Dir: dir, Self: key.ID(), Cluster: cluster, Host: h, Profile: "site"})
	if err != nil {
		return nil, errors.Join(err, h.Close())
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan error, 1)
	go func() { done <- store.Run(running) }()
	l := &loader{store: store, close: sync.OnceValue(func() error {
		stop()
		return errors.Join(<-done, store.Close(), h.Close())
	})}
	for {
		_, _, err := raftmeta.Ask(ctx, store, meta.Strong, state.GetCluster{})
		if err == nil {
			return l, nil
		}
		if !errors.Is(err, meta.ErrUnavailable) || ctx.Err() != nil {
			return nil, errors.Join(err, l.close())
		}
	}
}

// fill publishes count versions, each with the package, files and references of like,
// the first tags of them tagged.
func (l *loader) fill(ctx context.Context, like meta.Version, files []meta.File, count, tags, width int) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		next  atomic.Int64
		group sync.WaitGroup
	)
	for range width {
		group.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= count {
					return
				}
				if err := l.publish(ctx, like, files, i, i < tags); err != nil {
					cancel(fmt.Errorf("version %d: %w", i, err))
				}
			}
		})
	}
	group.Wait()
	return context.Cause(ctx) // nil unless somebody ended it
}

func (l *loader) publish(ctx context.Context, like meta.Version, files []meta.File, i int, tagged bool) error {
	v := like
	v.Name = versionName(i)
	p := state.Publish{Version: v, Files: files}
	if tagged {
		p.Aliases = []string{tagName(i)}
	}
	began := time.Now()
	_, err := l.store.DoHere(ctx, state.Origin{Principal: "user:scale"}, p)
	took := int64(time.Since(began))
	for {
		was := l.longest.Load()
		if took <= was || l.longest.CompareAndSwap(was, took) {
			return err
		}
	}
}

// example returns a version that was really pushed, and its files.
func (l *loader) example(ctx context.Context, tag string) (meta.Version, []meta.File, error) {
	a, _, err := raftmeta.Ask(ctx, l.store, meta.Local, state.Resolve{Repo: repoRef, Package: packageName, Alias: tag})
	if err != nil {
		return meta.Version{}, nil, err
	}
	files, _, err := raftmeta.Ask(ctx, l.store, meta.Local, state.ListFiles{Repo: repoRef, Package: packageName, Version: a.Version.Name})
	return a.Version, files, err
}

// snapshot copies the state as for a server that is too far behind, while versions are
// published into another package, and returns how long it takes until the copy can be
// read.
func (l *loader) snapshot(ctx context.Context, like meta.Version, files []meta.File) (time.Duration, error) {
	l.longest.Store(0)
	like.Package = "meanwhile"
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- l.fill(ctx, like, files, math.MaxInt, 0, 8) }()
	var worst time.Duration
	for range 3 {
		began := time.Now()
		checkpoint, view, err := l.store.Backup()
		if err != nil {
			return 0, err
		}
		worst = max(worst, time.Since(began))
		_, err = checkpoint.WriteTo(io.Discard)
		if err = errors.Join(err, checkpoint.Close(), view.Close()); err != nil {
			return 0, err
		}
	}
	stop()
	if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
		return 0, err
	}
	return worst, nil
}
