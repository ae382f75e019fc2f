package feed_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func TestFilter(t *testing.T) {
	app, lib := meta.RepoRef{Tenant: "acme", Name: "app"}, meta.RepoRef{Tenant: "acme", Name: "lib"}
	alias := func(r meta.RepoRef) feed.Change { return feed.Change{Kind: feed.KindAlias, Repo: r} }
	node := func(role meta.Role, region meta.RegionName) feed.Change {
		return feed.Change{Kind: feed.KindNode, Region: region, Record: &meta.Node{Role: role, Region: region}}
	}
	gone := feed.Change{Kind: feed.KindNode, Region: "us", Deleted: true}
	for _, test := range []struct {
		filter feed.Filter
		change feed.Change
		want   bool
	}{
		{feed.Filter{}, alias(app), true},
		{feed.Filter{Kinds: []feed.Kind{feed.KindNode}}, alias(app), false},
		{feed.Filter{Kinds: []feed.Kind{feed.KindNode}}, feed.Change{Kind: feed.KindProgress}, true},
		{feed.Filter{Repos: []meta.RepoRef{app}}, alias(app), true},
		{feed.Filter{Repos: []meta.RepoRef{app}}, alias(lib), false},
		{feed.Filter{Repos: []meta.RepoRef{app}}, gone, true},
		{feed.Filter{Region: "eu"}, node(meta.RoleAgent, "eu"), true},
		{feed.Filter{Region: "eu"}, node(meta.RoleAgent, "us"), false},
		{feed.Filter{Region: "eu"}, node(meta.RoleServer, "us"), true},
		{feed.Filter{Region: "eu"}, gone, true},
	} {
		if got := test.filter.Match(test.change); got != test.want {
			t.Errorf("%+v passes %+v: %v", test.change, test.filter, got)
		}
	}
}

// pages is a source of indexes with one change each, up to its length.
type pages struct {
	upTo   uint64
	waited chan uint64
}

func (p *pages) Changes(after uint64, limit int) (out []feed.Change, upTo uint64, _ error) {
	if after < 10 {
		return nil, 0, feed.ErrCompacted
	}
	for index := after + 1; index <= p.upTo; index++ {
		if out = append(out, feed.Change{Index: index, Kind: feed.KindTenant}); len(out) == limit {
			return out, index, nil
		}
	}
	return out, p.upTo, nil
}

func (p *pages) Wait(ctx context.Context, index uint64) error {
	p.waited <- index
	<-ctx.Done()
	return ctx.Err()
}

func TestFollowReadsAllPagesThenWaits(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	source := &pages{upTo: 2000, waited: make(chan uint64, 1)}
	next, progress := uint64(11), 0
	for c, err := range feed.Follow(ctx, source, 10) {
		switch {
		case err != nil:
			if !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
		case c.Kind == feed.KindProgress:
			if progress++; c.Index != 2000 || next != 2001 {
				t.Errorf("caught up at %d after change %d", c.Index, next-1)
			}
			stop()
		case c.Index != next:
			t.Fatalf("change %d, want %d", c.Index, next)
		default:
			next++
		}
	}
	if progress != 1 || <-source.waited != 2001 {
		t.Errorf("progress was told %d times", progress)
	}
}

func TestFollowSaysThatItStands(t *testing.T) {
	source := &pages{upTo: 20, waited: make(chan uint64, 1)}
	for c, err := range feed.Follow(t.Context(), source, 20) {
		if err != nil || c.Kind != feed.KindProgress || c.Index != 20 {
			t.Errorf("first comes %+v, %v", c, err)
		}
		break
	}
}

func TestFollowTellsOfCompaction(t *testing.T) {
	for _, err := range feed.Follow(t.Context(), &pages{}, 9) {
		if !errors.Is(err, feed.ErrCompacted) || !strings.Contains(err.Error(), "after 9") {
			t.Errorf("got %v", err)
		}
	}
}

func TestKindsHaveNames(t *testing.T) {
	for k := feed.KindProgress; k <= feed.KindBlob; k++ {
		if strings.HasPrefix(k.String(), "kind(") {
			t.Errorf("kind %d has no name", uint8(k))
		}
	}
	if got := feed.Kind(200).String(); got != "kind(200)" {
		t.Error(got)
	}
}
