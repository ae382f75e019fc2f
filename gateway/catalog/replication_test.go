package catalog_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// region there has a server that makes every copy that is demanded before a publish,
// at once, when it replicates.
type replicating struct {
	*catalogtest.Metadata
	replicates bool
	demands    int
}

const distant = meta.NodeID("12D3KooWthere")

func (r *replicating) Do(ctx context.Context, o state.Origin, c state.Command) (raftmeta.Receipt, error) {
	receipt, err := r.Metadata.Do(ctx, o, c)
	if _, ok := c.(state.DemandBlobs); ok && err == nil {
		if r.demands++; r.replicates {
			return receipt, r.report(ctx)
		}
	}
	return receipt, err
}

func (r *replicating) report(ctx context.Context) error {
	for {
		pending, _, err := raftmeta.Ask(ctx, r.Metadata, meta.Local, state.PendingReplicas{Region: "there", Page: state.Page{Limit: 500}})
		if err != nil || len(pending) == 0 {
			return err
		}
		var made []meta.Replica
		for _, d := range pending {
			made = append(made, meta.Replica{Root: d.Root, Server: distant, State: meta.ReplicaVerified})
		}
		if _, err = r.Metadata.Do(ctx, state.Origin{}, state.ReportReplicas{Replicas: made}); err != nil {
			return err
		}
	}
}

// newReplicated is newWorld with a region there, which is the second of acme/app and
// rival/app.
func newReplicated(t *testing.T, edit func(*catalog.Config)) (*world, *replicating) {
	r := &replicating{}
	w := newWorld(t, func(c *catalog.Config) {
		r.Metadata = c.Metadata.(*catalogtest.Metadata)
		c.Commands = r
		c.Second = func(context.Context, meta.RegionName) meta.RegionName { return "there" }
		c.AckWait = 100 * time.Millisecond
		if edit != nil {
			edit(c)
		}
	})
	for _, c := range []state.Command{
		state.CreateJoinToken{Token: meta.JoinToken{ID: "t", Role: meta.RoleServer, Region: "there", Uses: 1, Expires: meta.TimeOf(time.Now().Add(time.Hour))}},
		state.AdmitNode{TokenSecretHash: "t", Node: meta.Node{
			ID: distant, Role: meta.RoleServer, Region: "there", Gateway: "127.0.0.1:5001",
			Swarm: []string{"/ip4/127.0.0.1/tcp/7073"}, Raft: []string{"/ip4/127.0.0.1/tcp/7074"},
		}},
	} {
		_, err := r.Metadata.Do(t.Context(), state.Origin{}, c)
		w.must(err)
	}
	w.create(app, rival)
	return w, r
}

func TestPublishWaitsForTwoCopies(t *testing.T) {
	w, r := newReplicated(t, nil)
	two := uint32(2)
	_, err := r.Metadata.Do(t.Context(), state.Origin{}, state.SetRepository{Ref: app, CopiesBeforeAck: &two})
	w.must(err)
	layer := w.blob(app, "layer")
	if r.demands != 1 {
		t.Errorf("the upload asked for a second copy %d times", r.demands)
	}
	// No copy comes: nothing is visible, and the answer says to repeat.
	_, err = w.Publish(t.Context(), w.by, app, draft("manifest", layer))
	var unavailable *meta.UnavailableError
	if !errors.As(err, &unavailable) || unavailable.Reason != "not_replicated" || unavailable.RetryAfter == 0 {
		t.Fatalf("without a second copy: %v", err)
	}
	if h := (http.Header{}); protocol.Fail(h, err) != http.StatusServiceUnavailable || h.Get("Retry-After") != "2" {
		t.Errorf("it is answered with %v", h)
	}
	if found, _, err := w.Packages(t.Context(), w.by, app, "", catalog.Page{Limit: 10}); err != nil || len(found) != 0 {
		t.Errorf("what was not published is visible: %v, %v", found, err)
	}
	// The same push again, with copies that come meanwhile.
	r.replicates = true
	p, err := w.Publish(t.Context(), w.by, app, draft("manifest", layer))
	w.must(err)
	if !p.Created {
		t.Error("it was there already")
	}
	for _, name := range []meta.Reference{layer, {Digest: p.Version.Digest}} {
		b, _, err := w.Blob(t.Context(), w.by, app, name.Digest)
		w.must(err)
		n, _, err := raftmeta.Ask(t.Context(), w.meta, meta.Local, state.CopiesOf{Roots: []digest.CID{b.Blob.Root}})
		if err != nil || n[0] != 2 {
			t.Errorf("%s has %v copies: %v", name.Digest, n, err)
		}
	}
	// Once more it is idempotent, and nothing is waited for.
	if p, err := w.Publish(t.Context(), w.by, app, draft("manifest", layer)); err != nil || p.Created {
		t.Errorf("again: %+v, %v", p, err)
	}
	// What cannot come is refused at once.
	here := []meta.RegionName{catalogtest.Region}
	_, err = r.Metadata.Do(t.Context(), state.Origin{}, state.SetRepository{Ref: app, Regions: &here})
	w.must(err)
	_, err = w.Publish(t.Context(), w.by, app, draft("another"))
	if !errors.As(err, &unavailable) || unavailable.Reason != "no_second_server" {
		t.Errorf("with one server: %v", err)
	}
	// Other repositories wait for nothing.
	if _, err := w.Publish(t.Context(), w.by, rival, draft("manifest")); err != nil {
		t.Error(err)
	}
}

func TestATenantIsHeldBack(t *testing.T) {
	out := false
	w, r := newReplicated(t, func(c *catalog.Config) {
		c.Backlog = catalog.Backlog{MaxBlobs: 3, MaxBytes: 1 << 20, Out: func(region meta.RegionName) bool { return out && region == "there" }}
	})
	var err error
	published := 0
	give := time.Now().Add(2 * time.Minute)
	publish := func() error {
		published++
		_, err := w.Publish(t.Context(), w.by, app, draft(fmt.Sprint("manifest ", published)))
		return err
	}
	for err == nil && time.Now().Before(give) { // What was found is used for a second.
		err = publish()
	}
	var behind *meta.BacklogError
	if !errors.As(err, &behind) || behind.Tenant != "acme" || behind.Region != "there" || behind.Blobs < 4 {
		t.Fatalf("after %d versions: %v", published, err)
	}
	if h := (http.Header{}); protocol.Fail(h, err) != http.StatusTooManyRequests || h.Get("Retry-After") != "5" {
		t.Errorf("it is answered with %v", h)
	}
	if _, err := w.Begin(t.Context(), w.by, app, false); !errors.As(err, &behind) {
		t.Errorf("an upload: %v", err)
	}
	if _, err := w.Publish(t.Context(), w.by, rival, draft("manifest")); err != nil {
		t.Errorf("another tenant: %v", err)
	}
	// It goes on when copies were made; and where the region is out, which holding back
	// would not help.
	until := func(what string) {
		t.Helper()
		err := publish()
		for errors.As(err, &behind) && time.Now().Before(give) {
			time.Sleep(10 * time.Millisecond)
			err = publish()
		}
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	w.must(r.report(t.Context()))
	until("after the copies were made")
	for err = nil; err == nil && time.Now().Before(give); {
		err = publish()
	}
	out = true
	until("while the region is out")
}
