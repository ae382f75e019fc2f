package local_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/node/local"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// everybodyHolds waits until all nodes have said that they hold the next root.
func everybodyHolds(t *testing.T, c *client.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		waiting := 0
		for h, err := range c.RootHolders(ctx) {
			if err != nil {
				t.Fatal(err)
			}
			if !h.Has {
				waiting++
			}
		}
		if waiting == 0 {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%d nodes still wait", waiting)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// handshake says whether a gateway's certificate holds under roots (PEM).
func handshake(t *testing.T, gateway, roots string) bool {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(roots)) {
		t.Fatal("no roots")
	}
	c, err := (&tls.Dialer{Config: &tls.Config{RootCAs: pool}}).DialContext(t.Context(), "tcp", gateway)
	if err == nil {
		c.Close()
	}
	return err == nil
}

// awaitHandshake waits until a gateway's certificate holds under the roots, or does not.
func awaitHandshake(t *testing.T, gateway, roots string, want bool) {
	t.Helper()
	for end := time.Now().Add(patience); handshake(t, gateway, roots) != want; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: the certificate holds: %v", gateway, !want)
		}
	}
}

// The root of a running cluster is replaced, with a restart of everything in the middle
// and another after it; agents and servers follow by themselves.
func TestTheRootOfAClusterIsReplaced(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a cluster three times")
	}
	opts := local.Options{Dir: t.TempDir(), Regions: 2, Agents: 2}
	c, stop := start(t, opts)
	admin, ctx := operator(t, c, 0), t.Context()
	before, err := admin.Trust(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := admin.FinishRotation(ctx, false); !errors.Is(err, meta.ErrConflict) {
		t.Fatalf("finishing before it began: %v", err)
	}
	begun, err := admin.RotateTrust(ctx)
	if err != nil || begun.Next == nil || begun.SHA256 != before.SHA256 {
		t.Fatalf("%+v, %v", begun, err)
	}
	if _, err := admin.RotateTrust(ctx); !errors.Is(err, meta.ErrConflict) {
		t.Fatalf("a second one at a time: %v", err)
	}
	stop()

	c, stop = start(t, opts)
	admin = operator(t, c, 0)
	everybodyHolds(t, admin)
	for _, g := range gateways(c) {
		if !handshake(t, g, before.Certificate) || !handshake(t, g, before.Certificate+begun.Next.Certificate) {
			t.Errorf("%s: package clients with the old root are refused in the overlap", g)
		}
	}
	after, err := admin.FinishRotation(ctx, false)
	if err != nil || after.SHA256 != begun.Next.SHA256 || after.Next != nil || after.Former != before.SHA256 {
		t.Fatalf("%+v, %v", after, err)
	}
	for _, g := range gateways(c) {
		awaitHandshake(t, g, before.Certificate, false)
		awaitHandshake(t, g, after.Certificate, true)
	}
	works := func(name string) {
		t.Helper()
		all := gateways(c)
		for i, at := range all {
			path := "/generic/acme/files/" + name
			for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
				status, body := request(t, http.MethodPut, "http://"+at+path+string(rune('a'+i)), []byte(name))
				if status < 300 {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("push at %s: %d %s", at, status, body)
				}
			}
			for _, from := range all {
				if status, got := request(t, http.MethodGet, "http://"+from+path+string(rune('a'+i)), nil); status != http.StatusOK || string(got) != name {
					t.Errorf("pull at %s: %d %s", from, status, got)
				}
			}
		}
	}
	works("after")
	stop()
	c, _ = start(t, opts)
	works("restarted")
}
