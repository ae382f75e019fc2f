package raftmeta_test

import (
	"bytes"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/audit"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// TestAuditLogIsWhole lets clients of three servers write at once, some of it refused,
// while servers stop and come back, the leader too. Every change that was answered has
// one entry, nothing has two, and all servers have one log.
func TestAuditLogIsWhole(t *testing.T) {
	ctx := within(t)
	members := newStores(ctx, t, 3)
	var (
		mu       sync.Mutex
		answered = map[string]bool{} // request -> refused
		clients  sync.WaitGroup
	)
	done := make(chan struct{})
	live := make([]chan *member, len(members)) // holds a member while it serves
	for i := range members {
		live[i] = make(chan *member, 1)
		live[i] <- members[i]
	}
	for c := range 6 {
		clients.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-done:
					return
				case m := <-live[c%len(live)]:
					store := m.store
					live[c%len(live)] <- m
					request := fmt.Sprintf("r-%d-%d", c, n)
					var command state.Command = state.CreateTenant{Name: meta.TenantName(fmt.Sprintf("t%d-%d", c, n))}
					if n%3 == 2 {
						command = state.SetLabels{Repo: meta.RepoRef{Tenant: "acme", Name: "none"}, Package: "x"}
					}
					_, err := store.DoHere(ctx, state.Origin{RequestID: request, Principal: "user:ada"}, command)
					if err == nil || meta.KindOf(err) == "not_found" {
						mu.Lock()
						answered[request] = err != nil
						mu.Unlock()
					}
				}
			}
		})
	}
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(answered)
	}
	for round := range 3 {
		want := count() + 60
		await(ctx, t, "writes", func() bool { return count() >= want })
		i := round % len(members)
		<-live[i]
		members[i].halt()
		members[i].start()
		if err := members[i].store.Ready(ctx); err != nil {
			t.Fatal(err)
		}
		live[i] <- members[i]
	}
	close(done)
	clients.Wait()

	var logs []state.AuditLog
	for _, m := range members {
		log, _, err := raftmeta.Ask(ctx, m.store, meta.Strong, state.GetAuditLog{})
		if err != nil {
			t.Fatal(err)
		}
		logs = append(logs, log)
	}
	least := min(logs[0].Size, logs[1].Size, logs[2].Size)
	var lines [3][][]byte
	for i, m := range members {
		for from := uint64(0); from < least; {
			page, _, err := raftmeta.Ask(ctx, m.store, meta.Local, state.ListEntries{From: from})
			if err != nil {
				t.Fatal(err)
			}
			lines[i], from = append(lines[i], page.Lines...), page.Next
		}
	}
	seen := map[string]audit.Entry{}
	var last time.Time
	for n := range least {
		for i := range members {
			if !bytes.Equal(lines[i][n], lines[0][n]) {
				t.Fatalf("entry %d is %s here and %s there", n, lines[0][n], lines[i][n])
			}
		}
		e, err := audit.ParseLine(lines[0][n])
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := seen[e.Request]; twice {
			t.Errorf("request %s has two entries", e.Request)
		}
		if e.Seq != n || e.Time.Before(last) {
			t.Errorf("entry %d is %s", n, lines[0][n])
		}
		seen[e.Request], last = e, e.Time
	}
	for request, refused := range answered {
		if e, ok := seen[request]; !ok || (e.Outcome == audit.Refused) != refused {
			t.Errorf("%s was answered, refused %t: %+v", request, refused, e)
		}
	}
	t.Logf("%d answers, %d entries", len(answered), least)
}
