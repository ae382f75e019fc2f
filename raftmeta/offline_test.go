package raftmeta_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/audit"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

var quiet = slog.New(slog.DiscardHandler)

// TestRefounding: one of three servers goes on alone with all that was acknowledged, in
// an epoch in which tokens of before do not count and from which others can join; what
// was there is not touched.
func TestRefounding(t *testing.T) {
	ctx := within(t)
	all := newStores(ctx, t, 3)
	var last raftmeta.Receipt
	for i := range 20 {
		last = all[0].do(ctx, state.CreateTenant{Name: meta.TenantName(fmt.Sprint("tenant", i))})
	}
	all[1].do(ctx, state.CreateJoinToken{Token: meta.JoinToken{ID: "unused", Role: meta.RoleServer, Region: "r1", Uses: 1, Expires: meta.TimeOf(time.Now().Add(time.Hour))}})
	survivor := all[2]
	if _, _, err := raftmeta.Ask(ctx, survivor.store, meta.Strong, state.GetCluster{}); err != nil { // the other two may have been the majority
		t.Fatal(err)
	}
	for _, m := range all {
		m.halt()
	}
	before, err := raftmeta.Inspect(survivor.cfg.Dir, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if len(before.Voters) != 3 || before.Last < last.Token.Index || before.Stamp == 0 || before.Damage != "" || before.Cluster.ID != "c1" {
		t.Errorf("before it stands at %+v", before)
	}
	if other := (raftmeta.Standing{}); !before.Newer(other) || other.Newer(before) {
		t.Error("an empty log is as good")
	}
	next := filepath.Join(t.TempDir(), "next")
	r, err := raftmeta.OpenRefounding(next, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.LoadFrom(survivor.cfg.Dir, func(uint64, meta.Time, state.Command) {}); err != nil {
		t.Fatal(err)
	}
	begin := state.BeginEpoch{Epoch: 2, Node: survivor.node, Sealed: []byte("sealed"), Recovery: meta.Recovery{First: survivor.node.ID, Index: before.Last}}
	if err := errors.Join(r.Begin(ctx, survivor.node.ID, time.Now(), false, begin), r.Close()); err != nil {
		t.Fatal(err)
	}
	if again, err := raftmeta.Inspect(survivor.cfg.Dir, quiet); err != nil || again.Last != before.Last || again.Cluster.Epoch != 1 {
		t.Errorf("what was there stands at %+v, %v", again, err)
	}
	survivor.cfg.Dir, survivor.cfg.Cluster, survivor.cfg.Bootstrap, survivor.cfg.Servers = next, "c1/2", nil, nil
	survivor.start()
	if err := survivor.store.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	tenants, asOf, err := raftmeta.Ask(ctx, survivor.store, meta.Strong, state.ListTenants{})
	if err != nil || len(tenants) != 20 || asOf.Epoch != 2 || asOf.Index <= before.Last {
		t.Errorf("%d tenants as of %+v, %v", len(tenants), asOf, err)
	}
	if _, _, err := raftmeta.Ask(ctx, survivor.store, meta.Freshness{Mode: meta.ModeLocal, After: last.Token}, state.ListTenants{}); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("a token of before: %v", err)
	}
	if _, _, err := raftmeta.Ask(ctx, survivor.store, meta.Strong, state.GetJoinToken{ID: "unused"}); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("a join token of before: %v", err)
	}
	if s := survivor.store.Status(); len(s.Voters) != 1 || s.Term <= before.LastTerm {
		t.Errorf("it stands at %+v after term %d", s, before.LastTerm)
	}
	// The other two are a majority of the old voters, and form their quorum among
	// themselves; not a byte of it reaches the survivor.
	for _, m := range all[:2] {
		m.cfg.Bootstrap = nil
		m.start()
	}
	if err := all[0].store.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	all[0].do(ctx, state.CreateTenant{Name: "of-the-past"})
	token := survivor.do(ctx, state.CreateTenant{Name: "of-the-future"}).Token
	if token.Epoch != 2 {
		t.Errorf("the token of a write is %s", token)
	}
	if _, _, err := raftmeta.Ask(ctx, survivor.store, meta.Strong, state.GetTenant{Name: "of-the-past"}); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("a write of the past: %v", err)
	}
	// One of them gives its log up and joins anew.
	all[0].halt()
	all[0].cfg.Dir, all[0].cfg.Cluster, all[0].cfg.Servers = t.TempDir(), "c1/2", []meta.Node{survivor.node, all[0].node}
	all[0].admit(ctx, survivor)
	all[0].start()
	if err := all[0].store.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	if _, _, err := raftmeta.Ask(ctx, all[0].store, meta.Strong, state.GetTenant{Name: "of-the-future"}); err != nil {
		t.Errorf("a write of the new epoch at a server that joined: %v", err)
	}
	if _, _, err := raftmeta.Ask(ctx, all[0].store, meta.Strong, state.GetTenant{Name: "of-the-past"}); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("a write of the past at a server that joined: %v", err)
	}
}

// TestInspectNothing: a directory without a log says so.
func TestInspectNothing(t *testing.T) {
	if _, err := raftmeta.Inspect(t.TempDir(), quiet); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("an empty directory: %v", err)
	}
}

// refounded has the state that commands of one time make, in a new epoch that begins at
// another.
func refounded(t *testing.T, level uint32, of, begin time.Time, commands ...state.Command) *state.View {
	t.Helper()
	machine, err := state.Open(filepath.Join(t.TempDir(), "old"), state.Options{Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer machine.Close()
	node := meta.Node{ID: "n1", Role: meta.RoleServer, Region: "r1"}
	commands = append([]state.Command{
		state.Bootstrap{Cluster: meta.Cluster{ID: "c1", Level: level, Epoch: 1}, Node: node, Region: meta.Region{Name: "r1", Primary: true}},
	}, commands...)
	for i, c := range commands {
		command, err := state.Encode(state.Origin{Principal: "admin:bootstrap", Time: meta.TimeOf(of)}, c)
		if err != nil {
			t.Fatal(err)
		}
		if result, err := machine.Apply(uint64(i+1), 1, command); err != nil || result.Err != nil {
			t.Fatal(err, result.Err)
		}
	}
	frozen, err := machine.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer frozen.Close()
	var stream bytes.Buffer
	if _, err := frozen.WriteTo(&stream); err != nil {
		t.Fatal(err)
	}
	r, err := raftmeta.OpenRefounding(filepath.Join(t.TempDir(), "next"), quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	if err := r.Load(&stream); err != nil {
		t.Fatal(err)
	}
	if err := r.Begin(within(t), node.ID, begin, false, state.BeginEpoch{Epoch: 2, Node: node, Sealed: []byte("sealed"), VoidTokens: true}); err != nil {
		t.Fatal(err)
	}
	v, err := r.View()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v
}

// TestRefoundingKeepsAHeldLevel: whoever held the level may still want the older build.
func TestRefoundingKeepsAHeldLevel(t *testing.T) {
	const held = state.Level - 1
	v := refounded(t, held, time.Now(), time.Now(), state.HoldLevel{Level: held})
	if level, err := (state.GetLevel{}).Answer(v); err != nil || level != held {
		t.Errorf("held at %d, it begins at %d, %v", held, level, err)
	}
}

// TestRefoundingIsNotBeforeTheLog: the clock of the machine that restores is an hour
// behind; time goes on from the log's all the same.
func TestRefoundingIsNotBeforeTheLog(t *testing.T) {
	of := time.Now().Truncate(time.Millisecond)
	v := refounded(t, state.Level, of, of.Add(-time.Hour), state.CreateTenant{Name: "acme"})
	last, err := state.ListEntries{}.Answer(v)
	if err != nil || len(last.Lines) < 2 {
		t.Fatal(last, err)
	}
	for _, line := range last.Lines {
		if e, err := audit.ParseLine(line); err != nil || e.Time.Before(of) {
			t.Errorf("%s, before %v, %v", line, of, err)
		}
	}
}
