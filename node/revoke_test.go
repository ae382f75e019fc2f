package node_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/gateway/credential"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// slowly gives bytes a little at a time, for ever, and says when it is not read any more.
type slowly struct {
	ended atomic.Bool
}

func (s *slowly) Read(p []byte) (int, error) {
	if s.ended.Load() {
		return 0, io.EOF
	}
	time.Sleep(5 * time.Millisecond)
	return copy(p, bytes.Repeat([]byte{1}, 512)), nil
}

// A token is revoked: when the last write and the last read with it were taken at each
// node, and when an upload and a download that were under way ended, is printed. That
// they end is asserted here; the bounds are in virtual time (gateway, raftmeta/remote).
func TestRevocationReachesEveryNode(t *testing.T) {
	cluster := begin(t, 2)
	nodes := cluster.Nodes()
	server := nodes[0]
	do := func(c state.Command) any {
		t.Helper()
		v, err := server.Do(t.Context(), c)
		if err != nil {
			t.Fatalf("%s: %v", state.Name(c), err)
		}
		return v
	}
	content := make([]byte, 24<<20)
	_, _ = rand.Read(content)
	big := "/generic/acme/files/big.bin"
	if status, _, text, err := call(t.Context(), http.MethodPut, "http://"+server.Gateway()+big, "", bytes.NewReader(content)); err != nil || status != http.StatusCreated {
		t.Fatalf("PUT: %d %s %v", status, text, err)
	}
	const robot = "robot:acme/ci"
	do(state.CreateAccount{Name: robot})
	do(state.AddBinding{Binding: meta.Binding{Principal: robot, Role: "publisher", Repository: "acme/*"}})
	text, token := credential.Mint()
	do(state.CreateCredential{Life: time.Hour, Credential: meta.Credential{ID: token.ID, Hash: token.Hash, Principal: robot, Kind: meta.CredentialToken}})
	secret := text.Reveal()

	type last struct{ write, read, upload, download atomic.Int64 } // in ns of Unix time
	lasts := make([]last, len(nodes))
	now := func() int64 { return time.Now().UnixNano() }
	stopped := make(chan struct{})
	var group sync.WaitGroup
	var warm sync.WaitGroup
	for i, n := range nodes {
		base := "http://" + n.Gateway()
		warm.Add(4)
		loop := func(at *atomic.Int64, try func(k int) (status int, err error), ok int) {
			group.Go(func() {
				first, refused := true, 0
				for k := 0; refused < 20; k++ {
					status, err := try(k)
					switch {
					case err != nil:
						t.Errorf("%s: %v", n.Role(), err)
						return
					case status == ok:
						at.Store(now())
						refused = 0
						if first {
							first = false
							warm.Done()
						}
					case status == http.StatusUnauthorized, status == http.StatusForbidden: // the latter when it was let in before and came too late
						refused++
					default:
						t.Errorf("%s: status %d", n.Role(), status)
						return
					}
				}
			})
		}
		loop(&lasts[i].write, func(k int) (int, error) {
			path := fmt.Sprintf("/generic/acme/files/%d/%d", i, k)
			status, _, _, err := call(t.Context(), http.MethodPut, base+path, secret, strings.NewReader(path))
			return status, err
		}, http.StatusCreated)
		loop(&lasts[i].read, func(int) (int, error) {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+big, nil)
			if err != nil {
				return 0, err
			}
			r.Header.Set("Authorization", "Bearer "+secret)
			r.Header.Set("Range", "bytes=0-99")
			res, err := http.DefaultClient.Do(r)
			if err != nil {
				return 0, err
			}
			_, err = io.Copy(io.Discard, res.Body)
			res.Body.Close()
			if res.StatusCode == http.StatusPartialContent {
				return http.StatusOK, err
			}
			return res.StatusCode, err
		}, http.StatusOK)
		group.Go(func() { // an upload that is under way
			body := &slowly{}
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, fmt.Sprintf("%s/v2/acme/images/app/blobs/uploads/?digest=sha256:%x", base, sha256.Sum256(nil)), body)
			if err != nil {
				t.Error(err)
				return
			}
			r.Header.Set("Authorization", "Bearer "+secret)
			warm.Done()
			res, err := http.DefaultClient.Do(r)
			lasts[i].upload.Store(now())
			body.ended.Store(true)
			if err == nil {
				if res.StatusCode < 300 {
					t.Errorf("%s: the upload was taken: %s", n.Role(), res.Status)
				}
				res.Body.Close()
			}
		})
		group.Go(func() { // a download that is under way
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+big, nil)
			if err != nil {
				t.Error(err)
				return
			}
			r.Header.Set("Authorization", "Bearer "+secret)
			res, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Error(err)
				return
			}
			defer res.Body.Close()
			warm.Done()
			got := 0
			for b := make([]byte, 4<<10); ; time.Sleep(5 * time.Millisecond) {
				k, err := res.Body.Read(b)
				if got += k; err != nil {
					break
				}
			}
			lasts[i].download.Store(now())
			if got >= len(content) {
				t.Errorf("%s: the download was ended by its end", n.Role())
			}
		})
	}
	warm.Wait()
	revoked := now()
	do(state.RevokeCredential{ID: token.ID})
	answered := now()
	group.Wait()
	close(stopped)
	since := func(at int64) time.Duration {
		return max(0, time.Duration(at-revoked)).Round(time.Millisecond)
	}
	t.Logf("revoking took %v", since(answered))
	for i, n := range nodes {
		l := &lasts[i]
		t.Logf("%s: last write %v (bound 5 s), last private read %v, upload ended %v, download ended %v (bound 15 s) after revoking",
			n.Role(), since(l.write.Load()), since(l.read.Load()), since(l.upload.Load()), since(l.download.Load()))
	}
}

// A node that reaches no server: what is private goes on, marked, for as long as its
// repository allows, what is public for ever, and nothing is written. It takes the 15 s.
func TestReadsWithoutServers(t *testing.T) {
	if os.Getenv("SHOAL_E2E") != "full" {
		t.Skip("takes 20 s: SHOAL_E2E=full")
	}
	cluster := begin(t, 1)
	server, agent := cluster.Nodes()[0], cluster.Nodes()[1]
	put := func(path string) {
		if status, _, text, err := call(t.Context(), http.MethodPut, "http://"+server.Gateway()+path, "", strings.NewReader("hello")); err != nil || status != http.StatusCreated {
			t.Fatalf("PUT: %d %s %v", status, text, err)
		}
	}
	none, public := time.Duration(0), meta.VisibilityPublic
	for _, name := range []string{"usual", "strict", "open"} {
		put("/generic/acme/" + name + "/doc")
		change := state.SetRepository{Ref: meta.RepoRef{Tenant: "acme", Name: name}}
		switch name {
		case "strict":
			change.DegradedReadMax = &none
		case "open":
			change.Visibility = &public
		}
		if _, err := server.Do(t.Context(), change); err != nil {
			t.Fatal(err)
		}
	}
	read := func(name string) (int, string) {
		status, header, _, err := call(t.Context(), http.MethodGet, "http://"+agent.Gateway()+"/generic/acme/"+name+"/doc", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		return status, header.Get(protocol.HeaderStale)
	}
	for _, name := range []string{"usual", "strict", "open"} {
		await(t, "the read of "+name, func() bool { status, _ := read(name); return status == http.StatusOK })
	}
	if err := cluster.Stop(0); err != nil {
		t.Fatal(err)
	}
	gone := time.Now()
	await(t, "the strict one to end", func() bool {
		status, _ := read("strict")
		time.Sleep(20 * time.Millisecond)
		return status == http.StatusServiceUnavailable
	})
	t.Logf("no server: a repository with degraded_read_max 0 was read for %v (bound 15 s)", time.Since(gone).Round(time.Millisecond))
	if status, stale := read("usual"); status != http.StatusOK || stale != "1" {
		t.Errorf("what is private, with the default: %d, stale %q", status, stale)
	}
	if status, _ := read("open"); status != http.StatusOK {
		t.Errorf("what is public: %d", status)
	}
	if status, _, _, err := call(t.Context(), http.MethodPut, "http://"+agent.Gateway()+"/generic/acme/usual/more", "", strings.NewReader("x")); err != nil || status < 500 {
		t.Errorf("a write without servers: %d %v", status, err)
	}
}
