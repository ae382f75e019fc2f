package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/proc"
)

// TestHungDisk freezes the disk under a leader, then under a follower: the process
// ends itself, since its heartbeats would go on; the others lead and take writes; and
// it comes back once the disk does.
func TestHungDisk(t *testing.T) {
	needRoot(t, "mounts file systems of its own")
	needTools(t, "fsfreeze")
	c := startCluster(t, 3, 0)
	ctx := limit(t, 5*time.Minute)
	c.shoal(t, c.servers[0], "tenant", "create", "acme")
	c.shoal(t, c.servers[0], "repo", "create", "acme/files", "--format", "generic", "--home", "r1")
	for _, s := range c.servers {
		if err := s.process.Stop(time.Minute); err != nil {
			t.Fatal(err)
		}
		disk := loopDisk(t, c.dir, "disk-"+s.node.Region, smallDisk)
		if err := os.CopyFS(disk, os.DirFS(s.node.Data)); err != nil {
			t.Fatal(err)
		}
		for _, secret := range []string{"node.key", "admin.token", "identity"} {
			_ = os.Chmod(disk+"/"+secret, 0o600)
		}
		s.node.Data = disk
		s.again()
	}
	for _, s := range c.servers {
		if err := c.begin(s); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range c.servers {
		if err := s.awaitReady(ctx); err != nil {
			t.Fatal(err)
		}
	}
	const lastWords = "its disk hangs"
	for _, role := range []string{"leader", "follower"} {
		hung := c.leader(ctx, t, nil)
		if role == "follower" {
			for _, s := range c.servers {
				if s != hung {
					hung = s
					break
				}
			}
		}
		// One server can be both in turn, and its log goes on.
		said := strings.Count(hung.process.LogTail(1<<20), lastWords)
		if out, err := command(ctx, nil, "fsfreeze", "-f", hung.node.Data); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		thaw := func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			_, _ = command(ctx, nil, "fsfreeze", "-u", hung.node.Data)
		}
		t.Cleanup(thaw)
		n := 0
		if err := proc.Await(ctx, "writes through the others", func(ctx context.Context) error {
			for _, s := range c.servers {
				if s == hung {
					continue
				}
				n++
				ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
				r, err := c.ask(ctx, s, http.MethodPut, fmt.Sprintf("/generic/acme/files/%s-%d", role, n), role)
				cancel()
				if err != nil {
					return err
				}
				if r.status != http.StatusCreated {
					return errors.New(r.body)
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		// Its threads that wait for the disk hold the process until the disk is back.
		if err := proc.Await(ctx, "the hung server's last words", func(context.Context) error {
			if text := hung.process.LogTail(1 << 20); strings.Count(text, lastWords) == said {
				return errors.New(text)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		thaw()
		select {
		case <-hung.process.Done():
		case <-ctx.Done():
			t.Fatalf("the %s with the hung disk goes on", role)
		}
		c.launch(t, hung)
		c.awaitVoters(t)
		path := fmt.Sprintf("/generic/acme/files/%s-%d", role, n)
		if r, err := c.ask(ctx, hung, http.MethodGet, path, "", "Shoal-Mode", "strong"); err != nil || r.body != role {
			t.Errorf("%s at the server that came back: %+v, %v", path, r, err)
		}
	}
}
