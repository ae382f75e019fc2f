package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/metatest"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/transfer/repair"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/verify/digest"
)

// keepers are the servers of region eu around the real metadata, each with its own
// store, its repair loop and its settler; made up is the way of bytes between them.
type keepers struct {
	t     *testing.T
	meta  *metatest.Store
	group sync.WaitGroup

	mu      sync.Mutex
	alive   []meta.NodeID // the first one leads
	stores  map[meta.NodeID]*store.Memory
	stops   map[meta.NodeID]context.CancelFunc
	settled map[meta.NodeID]int // SettleDemands that each proposed
	dies    int                 // after so many of them the leader's process ends
	left    state.Settlement    // where it was then
	blobs   []meta.Blob
}

var keptRef = meta.RepoRef{Tenant: "acme", Name: "kept"}

func (k *keepers) leads(id meta.NodeID) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.alive) > 0 && k.alive[0] == id
}

func (k *keepers) servers() []meta.NodeID {
	nodes, _, err := raftmeta.Ask(context.Background(), k.meta, meta.Local, state.ListNodes{Role: meta.RoleServer, Region: "eu"})
	if err != nil {
		k.t.Error(err)
	}
	var ids []meta.NodeID
	for _, n := range nodes {
		ids = append(ids, n.ID)
	}
	return ids
}

// up starts the process of a server that is in the roster.
func (k *keepers) up(id meta.NodeID) {
	ctx, stop := context.WithCancel(context.Background())
	own := kept{keepers: k, id: id}
	loop, err := repair.New(repair.Config{
		Self: id, Region: "eu", Demands: demands{store: k.meta, incidents: &incidents{}}, Reporter: reporter{k.meta, own, id}, Content: own, Servers: k.servers,
	})
	if err != nil {
		k.t.Fatal(err)
	}
	k.mu.Lock()
	if k.stores[id] == nil {
		k.stores[id] = store.NewMemory()
	}
	k.stops[id] = stop
	k.alive = append(k.alive, id)
	k.mu.Unlock()
	k.group.Go(func() {
		if err := loop.Run(ctx); err != nil {
			k.t.Error(err)
		}
	})
	k.group.Go(func() {
		s := settler{metadata: k.meta, doer: own, self: id, limit: 3, log: slog.New(slog.DiscardHandler)}
		s.leads = func() bool { return k.leads(id) }
		if err := s.run(ctx); err != nil {
			k.t.Error(err)
		}
	})
}

// down ends the process of a server.
func (k *keepers) down(id meta.NodeID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.stops[id]()
	k.alive = slices.DeleteFunc(k.alive, func(a meta.NodeID) bool { return a == id })
}

// publish stores new content at a server and publishes it from there.
func (k *keepers) publish(at meta.NodeID) {
	k.mu.Lock()
	content := []byte(fmt.Sprint("content ", len(k.blobs)))
	s := k.stores[at]
	k.mu.Unlock()
	u, err := s.NewUpload(context.Background(), store.UploadOptions{})
	if err == nil {
		_, err = u.Append(context.Background(), bytes.NewReader(content))
	}
	if err != nil {
		k.t.Fatal(err)
	}
	in, err := u.Commit(context.Background(), digest.FromBytes(content))
	if err != nil {
		k.t.Fatal(err)
	}
	b := meta.Blob{Context: "acme", Digest: in.Digest, PlainBytes: in.PlainBytes, StoredBytes: in.StoredBytes, Root: in.Root}
	k.meta.Must(state.Publish{
		Version: meta.Version{Repo: keptRef, Package: "p", Name: string(b.Digest), Digest: b.Digest, State: meta.StateClosed, Size: b.PlainBytes},
		Files:   []meta.File{{Path: "f", Digest: b.Digest, Size: b.PlainBytes}},
		Blobs:   []state.LinkBlob{{Repo: keptRef, Digest: b.Digest, Blob: b, Server: at}},
	})
	k.mu.Lock()
	k.blobs = append(k.blobs, b)
	k.mu.Unlock()
}

// await waits for a condition, up to an hour of virtual time.
func (k *keepers) await(what string, ok func() bool) {
	k.t.Helper()
	for range 36_000 {
		if ok() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	k.t.Fatalf("it does not come to this: %s", what)
}

func (k *keepers) settledAll() bool {
	_, _, err := raftmeta.Ask(context.Background(), k.meta, meta.Local, state.NextSettlement{})
	return errors.Is(err, meta.ErrNotFound)
}

// quiet waits until nothing is to be settled and then nothing is owed: in this order, as
// a settlement ends with what it makes owed.
func (k *keepers) quiet() {
	k.t.Helper()
	k.await("nothing is owed", func() bool {
		if !k.settledAll() {
			return false
		}
		owed, _, err := raftmeta.Ask(context.Background(), k.meta, meta.Local, state.PendingReplicas{Region: "eu"})
		return err == nil && len(owed) == 0
	})
}

// kept is one server's way to bytes and to the log.
type kept struct {
	*keepers
	id meta.NodeID
}

// Ensure implements repair.Content: whole chunks from any server that lives.
func (s kept) Ensure(ctx context.Context, b meta.Blob) error {
	s.mu.Lock()
	own := s.stores[s.id]
	var others []*store.Memory
	for _, id := range s.alive {
		if id != s.id {
			others = append(others, s.stores[id])
		}
	}
	s.mu.Unlock()
	for _, other := range others {
		from, err := other.Open(ctx, b.Root)
		if err != nil || !from.Complete() {
			continue
		}
		to, err := own.Create(ctx, from.Map())
		if err != nil {
			return err
		}
		for i := range from.Map().Chunks {
			c, err := from.ReadChunk(ctx, i, nil)
			if err == nil {
				err = to.WriteChunk(ctx, i, c)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("blob %s at any server: %w", b.Root, meta.ErrNotFound)
}

// Do implements raftmeta.Doer; a leader may die right after a step of a settlement.
func (s kept) Do(ctx context.Context, o state.Origin, c state.Command) (raftmeta.Receipt, error) {
	r, err := s.meta.Do(ctx, o, c)
	if _, settles := c.(state.SettleDemands); settles {
		s.mu.Lock()
		s.settled[s.id]++
		dies := s.dies > 0 && s.settled[s.id] == s.dies
		if dies {
			s.dies = 0 // The one after it lives.
			left, _, askErr := raftmeta.Ask(context.Background(), s.meta, meta.Local, state.NextSettlement{})
			s.left, err = left, errors.Join(err, askErr)
		}
		s.mu.Unlock()
		if dies {
			s.down(s.id)
		}
	}
	return r, err
}

// All servers of a region are replaced one after the other while content is published,
// and the leader is killed in the middle of a settlement. In the end the new servers'
// own stores have two whole copies of everything.
func TestAllServersOfARegionAreReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keepers{t: t, meta: metatest.New(t), stores: map[meta.NodeID]*store.Memory{}, stops: map[meta.NodeID]context.CancelFunc{}, settled: map[meta.NodeID]int{}}
		defer k.group.Wait()
		defer func() {
			for _, id := range slices.Clone(k.alive) {
				k.down(id)
			}
		}()
		k.meta.Must(state.CreateRepository{CreateTenant: true, Repository: meta.Repository{
			Ref: keptRef, Format: "generic", Kind: meta.KindHosted, Class: meta.ClassCritical, Home: "eu", Visibility: meta.VisibilityPublic,
		}})
		enter := func(id meta.NodeID) {
			k.meta.Admit(meta.Node{ID: id, Role: meta.RoleServer, Region: "eu", Gateway: "127.0.0.1:1"})
			k.up(id)
		}
		k.up("s1")
		enter("s2")
		enter("s3")
		for i := range 30 {
			k.publish(meta.NodeID(fmt.Sprint("s", 1+i%3)))
		}
		k.quiet()
		for i, gone := range []meta.NodeID{"s1", "s2", "s3"} {
			enter(meta.NodeID(fmt.Sprint("new", i+1)))
			stays := k.servers()[0] // by name the newest come first
			k.publish(stays)
			k.down(gone)
			if gone == "s2" {
				// Who leads now dies two steps into the settlement, and comes back later.
				leader := k.alive[0]
				k.mu.Lock()
				k.dies = k.settled[leader] + 2
				k.mu.Unlock()
				k.meta.Must(state.RemoveNode{ID: gone, Force: true})
				k.await("the leader is dead", func() bool {
					k.publish(stays)
					return !k.leads(leader)
				})
				if len(k.left.After) == 0 {
					t.Fatalf("the leader left the settlement at %+v", k.left)
				}
				k.await("settled by another leader", k.settledAll)
				k.up(leader) // Some blobs lie only there.
			} else {
				k.meta.Must(state.RemoveNode{ID: gone, Force: true})
			}
			for range 5 {
				k.publish(stays)
				time.Sleep(300 * time.Millisecond)
			}
			k.quiet()
		}
		if got := fmt.Sprint(k.servers()); got != "[new1 new2 new3]" {
			t.Fatalf("servers are %s", got)
		}
		for _, b := range k.blobs {
			copies := 0
			for _, id := range k.servers() {
				if k.whole(id, b) {
					copies++
				}
			}
			if copies < 2 {
				t.Errorf("blob %s has %d copies", b.Digest, copies)
			}
			known, _, err := raftmeta.Ask(t.Context(), k.meta, meta.Local, state.Replicas{Root: b.Root})
			if err != nil {
				t.Fatal(err)
			}
			verified := 0
			for _, r := range known {
				if r.Server != "" && (r.State != meta.ReplicaVerified || !k.whole(r.Server, b)) {
					t.Errorf("the metadata says %+v, the store does not have it", r)
				}
				if r.Server != "" {
					verified++
				}
			}
			if verified < 2 || known[0].State != meta.ReplicaVerified {
				t.Errorf("the metadata says of %s: %+v", b.Digest, known)
			}
		}
	})
}

// whole reads a server's copy of a blob and compares its digest.
func (k *keepers) whole(id meta.NodeID, b meta.Blob) bool {
	from, err := k.stores[id].Open(k.t.Context(), b.Root)
	if err != nil || !from.Complete() {
		return false
	}
	var content []byte
	for i := range from.Map().Chunks {
		c, err := from.ReadChunk(k.t.Context(), i, nil)
		if err != nil {
			return false
		}
		content = append(content, c...)
	}
	return digest.FromBytes(content) == b.Digest
}
