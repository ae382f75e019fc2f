package lifecycle_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoal-registry/shoal/node/lifecycle"
)

func TestStopsInReverse(t *testing.T) {
	var mu sync.Mutex
	var stopped []string
	var g lifecycle.Group
	for _, name := range []string{"store", "swarm", "gateway"} {
		g.Add(name, func(ctx context.Context) error {
			<-ctx.Done()
			mu.Lock()
			defer mu.Unlock()
			stopped = append(stopped, name)
			return ctx.Err()
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.Run(ctx); err != nil {
		t.Fatalf("Run = %v", err)
	}
	if want := []string{"gateway", "swarm", "store"}; !slices.Equal(stopped, want) {
		t.Errorf("stopped %v, want %v", stopped, want)
	}
}

func TestFailureEndsTheGroup(t *testing.T) {
	broken := errors.New("disk on fire")
	var g lifecycle.Group
	neighbourEnded := false
	g.Add("neighbour", func(ctx context.Context) error {
		<-ctx.Done()
		neighbourEnded = true
		return nil
	})
	g.Add("store", func(context.Context) error { return broken })
	if err := g.Run(t.Context()); !errors.Is(err, broken) {
		t.Fatalf("Run = %v, want %v", err, broken)
	}
	if !neighbourEnded {
		t.Error("Run returned before the neighbour ended")
	}
}

func TestEndingByItselfIsAFailure(t *testing.T) {
	var g lifecycle.Group
	g.Add("feed", func(context.Context) error { return nil })
	var ended *lifecycle.EndedError
	if err := g.Run(t.Context()); !errors.As(err, &ended) || ended.Part != "feed" {
		t.Fatalf("Run = %v, want EndedError of feed", err)
	}
}

func TestSlowPartDoesNotHoldTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := lifecycle.Group{StopAfter: time.Second}
		var firstTold time.Time
		begin := time.Now()
		g.Add("first", func(ctx context.Context) error {
			<-ctx.Done()
			firstTold = time.Now()
			return nil
		})
		g.Add("slow", func(ctx context.Context) error {
			<-ctx.Done()
			time.Sleep(time.Minute)
			return nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := g.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if waited := firstTold.Sub(begin); waited != time.Second {
			t.Errorf("the first part was told after %v, want 1s", waited)
		}
		if total := time.Since(begin); total != time.Minute {
			t.Errorf("Run returned after %v, want when the slow part ended", total)
		}
	})
}

func TestEmptyGroup(t *testing.T) {
	var g lifecycle.Group
	if err := g.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
}
