package local_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/node/local"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func adminOf(d local.Description) *client.Client {
	return &client.Client{Base: "http://" + d.Servers[0].Gateway, Token: d.AdminToken, HTTP: http.DefaultClient}
}

// largest returns the largest file of the blobs of a node.
func largest(t *testing.T, data string) string {
	t.Helper()
	var found string
	var most int64
	if err := filepath.WalkDir(filepath.Join(data, "blobs", "blobs"), func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		if stat, err := e.Info(); err == nil && stat.Size() > most {
			found, most = name, stat.Size()
		}
		return nil
	}); err != nil || found == "" {
		t.Fatalf("no blob beneath %s: %v", data, err)
	}
	return found
}

func flip(t *testing.T, name string, at int64) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x20
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
}

// scrubAll asks for a full scrub and waits until each server has answered it and nothing
// is open or lost.
func scrubAll(t *testing.T, c *client.Client) client.ScrubStatus {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := c.RunScrub(ctx, client.NewScrub{Full: true})
	if err != nil {
		t.Fatal(err)
	}
	for {
		s, err := c.Scrub(ctx)
		if err != nil && ctx.Err() != nil {
			t.Fatal(err)
		}
		if err == nil {
			open := uint64(0)
			for _, a := range s.Servers {
				open += a.Report.Open
			}
			if done, of := s.Answered(r.ID); done == of && open == 0 && s.Unrepairable == 0 {
				return s
			}
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the scrub is not done: %+v, %v", s, errors.Join(err, ctx.Err()))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// The last server copy is damaged and a host has the blob in its cache: the server takes
// the damaged chunks, and nothing else, from there. Also when the host was restarted in
// between, so that no discovery knows of it any more.
func TestAServerIsRepairedFromACache(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restarted %v", restart), func(t *testing.T) {
			dir := t.TempDir()
			cluster, _ := start(t, local.Options{Dir: dir, Regions: 1, Agents: 1})
			d := cluster.Description()
			content := make([]byte, 6<<20)
			rand.Read(content)
			const path = "/generic/acme/files/model.bin"
			if status, answer := request(t, http.MethodPut, "http://"+d.Servers[0].Gateway+path, content); status != http.StatusCreated {
				t.Fatalf("PUT: %d %s", status, answer)
			}
			if status, body := request(t, http.MethodGet, "http://"+d.Agents[0].Gateway+path, nil); status != http.StatusOK || !bytes.Equal(body, content) {
				t.Fatalf("GET at the agent: %d", status)
			}
			if restart {
				if err := cluster.Stop(1); err != nil {
					t.Fatal(err)
				}
			}
			c := adminOf(d)
			before := view(t, d.Servers[0]).Totals.In
			file := largest(t, filepath.Join(dir, "server-1"))
			for _, at := range []int64{100_000, 3 << 20} { // of chunks 0 and 12
				flip(t, file, at)
			}
			if restart {
				if _, err := c.RunScrub(t.Context(), client.NewScrub{Full: true}); err != nil {
					t.Fatal(err)
				}
				awaitLost(t, c, "acme/files")
				if err := cluster.Start(t.Context(), 1); err != nil {
					t.Fatal(err)
				}
			}
			s := scrubAll(t, c)
			after := view(t, d.Servers[0]).Totals.In
			if got := after.Rack + after.Zone + after.Region + after.WAN - before.Rack - before.Zone - before.Region - before.WAN; got != 2*256<<10 {
				t.Errorf("%d bytes were fetched, the damaged chunks have %d", got, 2*256<<10)
			}
			if s.Servers[0].Report.DamagedChunks != 2 {
				t.Errorf("%d damaged chunks of 2", s.Servers[0].Report.DamagedChunks)
			}
			stored, err := os.ReadFile(largest(t, filepath.Join(dir, "server-1")))
			if err != nil || !bytes.Equal(stored, content) {
				t.Errorf("the server's file is not what was pushed: %v", err)
			}
		})
	}
}

// awaitLost waits until something of the repository is listed as lost by name.
func awaitLost(t *testing.T, c *client.Client, repo string) client.Unrepairable {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		for u, err := range c.Unrepairable(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			for _, use := range u.Uses {
				if strings.HasPrefix(use.String(), repo) {
					return u
				}
			}
		}
		select {
		case <-ctx.Done():
			t.Fatal("nothing is listed as lost")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// The only copy is gone: it is listed by name, a second push of the same bytes heals it.
func TestASecondPushHeals(t *testing.T) {
	dir := t.TempDir()
	cluster, _ := start(t, local.Options{Dir: dir, Regions: 1})
	d := cluster.Description()
	content := make([]byte, 2<<20)
	rand.Read(content)
	const path = "/generic/acme/files/tool.tgz"
	url := "http://" + d.Servers[0].Gateway + path
	if status, answer := request(t, http.MethodPut, url, content); status != http.StatusCreated {
		t.Fatalf("PUT: %d %s", status, answer)
	}
	c := adminOf(d)
	for _, how := range []string{"flipped", "flipped and found", "cut", "gone"} {
		file := largest(t, filepath.Join(dir, "server-1"))
		switch how {
		case "flipped", "flipped and found":
			flip(t, file, 1<<20)
		case "cut":
			if err := os.Truncate(file, 1<<20); err != nil {
				t.Fatal(err)
			}
		case "gone":
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}
		if how != "flipped" {
			if _, err := c.RunScrub(t.Context(), client.NewScrub{Full: true}); err != nil {
				t.Fatal(err)
			}
			u := awaitLost(t, c, "acme/files")
			if len(u.Uses) != 1 || u.Uses[0].Path == "" || u.Uses[0].Repo != (meta.RepoRef{Tenant: "acme", Name: "files"}) {
				t.Errorf("%s: lost is %+v", how, u)
			}
			s, err := c.Status(t.Context())
			if err != nil || s.Unrepairable != 1 {
				t.Errorf("%s: the status counts %d lost, %v", how, s.Unrepairable, err)
			}
		}
		if status, answer := request(t, http.MethodPut, url, content); status/100 != 2 {
			t.Fatalf("%s: second PUT: %d %s", how, status, answer)
		}
		if status, body := request(t, http.MethodGet, url, nil); status != http.StatusOK || !bytes.Equal(body, content) {
			t.Errorf("%s: after a second push: %d, %d bytes", how, status, len(body))
		}
		scrubAll(t, c)
		if stored, err := os.ReadFile(largest(t, filepath.Join(dir, "server-1"))); err != nil || !bytes.Equal(stored, content) {
			t.Errorf("%s: the file is not what was pushed: %v", how, err)
		}
	}
}

// A client that asks before it sends hears that a lost blob is not there, and sends it.
func TestALostBlobIsSentAgain(t *testing.T) {
	dir := t.TempDir()
	cluster, _ := start(t, local.Options{Dir: dir, Regions: 1})
	d := cluster.Description()
	layer := make([]byte, 1<<20)
	rand.Read(layer)
	gateway := d.Servers[0].Gateway
	pushImage(t, gateway, "acme/app/api", layer)
	name := fmt.Sprintf("sha256:%x", sha256.Sum256(layer))
	blob := "http://" + gateway + "/v2/acme/app/api/blobs/" + name
	if status, _ := request(t, http.MethodHead, blob, nil); status != http.StatusOK {
		t.Fatalf("HEAD: %d", status)
	}
	if err := os.Remove(largest(t, filepath.Join(dir, "server-1"))); err != nil {
		t.Fatal(err)
	}
	c := adminOf(d)
	if _, err := c.RunScrub(t.Context(), client.NewScrub{}); err != nil {
		t.Fatal(err)
	}
	u := awaitLost(t, c, "acme/app")
	if len(u.Uses) != 1 || u.Uses[0].Package != "api" || u.Digest.String() != name || u.Reason != "its file is gone" {
		t.Errorf("lost is %+v", u)
	}
	if status, _ := request(t, http.MethodHead, blob, nil); status != http.StatusNotFound {
		t.Errorf("HEAD of a lost blob: %d", status)
	}
	uploads := "http://" + gateway + "/v2/acme/app/other/blobs/uploads/"
	if status, _ := request(t, http.MethodPost, uploads+"?mount="+name+"&from=acme/app/api", nil); status != http.StatusAccepted {
		t.Errorf("a mount of a lost blob: %d", status)
	}
	if status, answer := request(t, http.MethodPost, "http://"+gateway+"/v2/acme/app/api/blobs/uploads/?digest="+name, layer); status != http.StatusCreated {
		t.Fatalf("sent again: %d %s", status, answer)
	}
	if status, body := request(t, http.MethodGet, blob, nil); status != http.StatusOK || !bytes.Equal(body, layer) {
		t.Errorf("GET afterwards: %d", status)
	}
	scrubAll(t, c)
}

// The last copy of one region is damaged and nobody has the blob but a host of another:
// the server there takes it in, and the first is repaired from that.
func TestAServerIsRepairedFromACacheOfAnotherRegion(t *testing.T) {
	dir := t.TempDir()
	cluster, _ := start(t, local.Options{Dir: dir, Regions: 2, Agents: 2})
	d := cluster.Description()
	coldRepository(t, d, meta.RepoRef{Tenant: "acme", Name: "cold"}, "generic")
	content := make([]byte, 3<<20)
	rand.Read(content)
	const path = "/generic/acme/cold/model.bin"
	if status, answer := request(t, http.MethodPut, "http://"+d.Servers[0].Gateway+path, content); status != http.StatusCreated {
		t.Fatalf("PUT: %d %s", status, answer)
	}
	far := slices.IndexFunc(d.Agents, func(e local.Endpoint) bool { return e.Region == "r2" })
	if status, body := request(t, http.MethodGet, "http://"+d.Agents[far].Gateway+path, nil); status != http.StatusOK || !bytes.Equal(body, content) {
		t.Fatalf("GET at the agent: %d", status)
	}
	// What its server kept of that, nobody counts on.
	for _, file := range []string{largest(t, filepath.Join(dir, "server-2")), largest(t, filepath.Join(dir, "server-1"))} {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	scrubAll(t, adminOf(d))
	for _, server := range []string{"server-1", "server-2"} {
		if stored, err := os.ReadFile(largest(t, filepath.Join(dir, server))); err != nil || !bytes.Equal(stored, content) {
			t.Errorf("the file of %s is not what was pushed: %v", server, err)
		}
	}
}
