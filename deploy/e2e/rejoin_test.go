package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestDamagedVoterRejoins flips bytes in a stopped voter's Raft log, then in its
// state: the server ends itself and says what to do, does not start until that is
// done, and comes back as a voter that answers what the others do.
func TestDamagedVoterRejoins(t *testing.T) {
	c := startCluster(t, 3, 0)
	ctx := limit(t, 5*time.Minute)
	c.shoal(t, c.servers[0], "tenant", "create", "acme")
	c.shoal(t, c.servers[0], "repo", "create", "acme/files", "--format", "generic", "--home", "r1")
	victim := c.servers[2]
	for _, damage := range []struct {
		what  string
		files string // below the data directory
		flip  func([]byte) int
	}{
		{"log", "raft/wal/*.wal", func(b []byte) int { return flipAfter(b, "needle-") }},
		{"state", "state/db-*/*.sst", func(b []byte) int {
			// Every block, so that whatever is read first is damaged.
			n := 0
			for at := 40; at < len(b)*3/4; at += 200 {
				b[at] ^= 0x10
				n++
			}
			return n
		}},
	} {
		var last string
		for i := range 20 {
			last = fmt.Sprintf("/generic/acme/files/%s/needle-%d", damage.what, i)
			if r, err := c.ask(ctx, c.servers[0], http.MethodPut, last, "of "+damage.what); err != nil || r.status != http.StatusCreated {
				t.Fatalf("%s: %+v, %v", last, r, err)
			}
		}
		// A restart writes what the state has to files of its own.
		victim.again()
		for range 2 {
			if err := victim.process.Stop(time.Minute); err != nil {
				t.Fatal(err)
			}
			c.launch(t, victim)
		}
		if err := victim.process.Stop(time.Minute); err != nil {
			t.Fatal(err)
		}
		flipped := 0
		files, err := filepath.Glob(filepath.Join(victim.node.Data, damage.files))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			flipped += damage.flip(b)
			if err := os.WriteFile(file, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if flipped == 0 {
			t.Fatalf("%s: nothing to flip in %d files", damage.what, len(files))
		}
		c.mustEnd(ctx, t, victim, damage.what)
		c.mustEnd(ctx, t, victim, damage.what+", started again")
		out := c.shoal(t, victim, "rejoin", "--data", victim.node.Data)
		if !strings.Contains(out, "aside-") {
			t.Errorf("rejoin says %q", out)
		}
		c.launch(t, victim)
		c.awaitVoters(t)
		if r, err := c.ask(ctx, victim, http.MethodGet, last, "", "Shoal-Mode", "strong"); err != nil || r.body != "of "+damage.what {
			t.Errorf("%s after rejoining: %+v, %v", last, r, err)
		}
	}
}

// flipAfter flips a bit behind the first place where text is.
func flipAfter(b []byte, text string) int {
	at := bytes.Index(b, []byte(text))
	if at < 0 {
		return 0
	}
	b[at] ^= 1
	return 1
}

// mustEnd starts a damaged server, which has to end with an error that names the way
// back.
func (c *cluster) mustEnd(ctx context.Context, t *testing.T, m *member, what string) {
	t.Helper()
	if err := c.begin(m); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.process.Done():
	case <-ctx.Done():
		t.Fatalf("%s: the server goes on: %s", what, m.process.LogTail(4096))
	}
	if m.process.Err() == nil || !strings.Contains(m.process.LogTail(4096), "shoal rejoin --data "+m.node.Data) {
		t.Fatalf("%s: it ended with %v and said %s", what, m.process.Err(), m.process.LogTail(4096))
	}
}
