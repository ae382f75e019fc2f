package join_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/node/join"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/trust"
)

// metadata is a state machine that is its own log.
type metadata struct {
	*state.Machine
	mu    sync.Mutex
	index uint64
}

func (m *metadata) Do(_ context.Context, o state.Origin, c state.Command) (raftmeta.Receipt, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o.Time = meta.TimeOf(time.Now())
	b, err := state.Encode(o, c)
	if err != nil {
		return raftmeta.Receipt{}, err
	}
	m.index++
	result, err := m.Apply(m.index, 1, b)
	return raftmeta.Receipt{Value: result.Value}, errors.Join(err, result.Err)
}

func (m *metadata) Answer(_ context.Context, f meta.Freshness, q raftmeta.Request) (meta.AsOf, error) {
	v, err := m.View()
	if err != nil {
		return meta.AsOf{}, err
	}
	return meta.AsOf{Index: v.Index(), Mode: f.Mode}, errors.Join(q.Run(v), v.Close())
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// cluster is one with a server whose certificate was issued at a time.
type cluster struct {
	t         *testing.T
	authority *trust.Authority
	metadata  *metadata
	record    meta.Node // the server's
	cred      *trust.Credential
	server    *join.Server
	url       string
}

func begin(t *testing.T, issued time.Time) *cluster {
	c := &cluster{t: t, authority: must[*trust.Authority](t)(trust.NewAuthority("test", issued))}
	machine := must[*state.Machine](t)(state.Open(t.TempDir(), state.Options{}))
	t.Cleanup(func() { machine.Close() })
	c.metadata = &metadata{Machine: machine}
	key := c.key()
	c.record = meta.Node{ID: key.ID(), Role: meta.RoleServer, Region: "eu", Gateway: "127.0.0.1:5000", Seal: key.Recipient()}
	recipient, err := trust.ParseRecipient(c.record.Seal)
	if err != nil {
		t.Fatal(err)
	}
	sealed := must[[]byte](t)(trust.Seal(must[[]byte](t)(c.authority.KeyDER()), recipient))
	c.do(state.Bootstrap{
		Cluster: meta.Cluster{ID: "test", Root: c.authority.Root().DER(), RootKey: map[meta.NodeID][]byte{key.ID(): sealed}},
		Node:    c.record, Region: meta.Region{Name: "eu", Primary: true},
	})
	c.cred = c.credential(key, c.record, issued)
	c.server = &join.Server{
		Metadata: c.metadata, Key: key, Log: slog.New(slog.DiscardHandler),
		PeerOf: func(r *http.Request) (trust.Identity, bool) {
			id, ok, err := c.cred.PeerOf(r.TLS)
			return id, ok && err == nil
		},
	}
	mux := http.NewServeMux()
	mux.HandleFunc(join.EnterPath, c.server.Enter)
	mux.HandleFunc(join.RenewPath, c.server.Renew)
	mux.HandleFunc(join.StandingPath, c.server.Standing)
	ts := httptest.NewUnstartedServer(mux)
	// Through GetConfigForClient, since httptest adds a certificate of its own.
	config := trust.ServerTLS(c.cred)
	ts.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return config, nil }}
	ts.StartTLS()
	t.Cleanup(ts.Close)
	c.url = ts.URL
	return c
}

func (c *cluster) key() *trust.Key {
	return must[*trust.Key](c.t)(trust.LoadOrCreateKey(filepath.Join(c.t.TempDir(), "node.key")))
}

func (c *cluster) do(command state.Command) {
	c.t.Helper()
	must[raftmeta.Receipt](c.t)(c.metadata.Do(c.t.Context(), state.Origin{Principal: "test"}, command))
}

func (c *cluster) credential(key *trust.Key, n meta.Node, issued time.Time) *trust.Credential {
	chain := must[[][]byte](c.t)(c.authority.Issue(n, nil, issued))
	return must[*trust.Credential](c.t)(trust.NewCredential(key, c.authority.Root(), chain))
}

// token makes a join token.
func (c *cluster) token(role meta.Role, region meta.RegionName) trust.JoinToken {
	token := trust.NewJoinToken(c.authority.Root())
	c.do(state.CreateJoinToken{Token: meta.JoinToken{
		ID: token.SecretHash(), Role: role, Region: region, Uses: 1, Expires: meta.TimeOf(time.Now().Add(time.Hour)),
	}})
	return token
}

// A cluster that was stopped for longer than a certificate lives comes back by
// itself: its servers hold the authority, its agents their keys.
func TestExpiredCertificatesAreRenewed(t *testing.T) {
	longAgo := time.Now().Add(-2 * trust.CertificateLife)
	c := begin(t, longAgo)
	if !c.cred.Expired(time.Now()) {
		t.Fatal("the server's certificate is still valid")
	}
	reply, err := c.server.Reissue(t.Context(), join.Request{Node: c.record})
	if err != nil {
		t.Fatalf("the server: %v", err)
	}
	if err := c.cred.Set(reply.Chain); err != nil {
		t.Fatal(err)
	}

	key := c.key()
	agent := meta.Node{ID: key.ID(), Role: meta.RoleAgent, Region: "eu"}
	if _, err := join.Enter(t.Context(), c.url, c.token(meta.RoleAgent, "eu"), key, join.Request{Node: agent}); err != nil {
		t.Fatal(err)
	}
	cred := c.credential(key, agent, longAgo)
	reply, err = join.Renew(t.Context(), c.url, cred, join.Request{Node: agent})
	if err != nil {
		t.Fatalf("an agent: %v", err)
	}
	if err := cred.Set(reply.Chain); err != nil || cred.Expired(time.Now()) {
		t.Errorf("the agent's new certificate: %v, expired %v", err, cred.Expired(time.Now()))
	}

	c.do(state.RemoveNode{ID: agent.ID})
	removed := c.credential(key, agent, longAgo)
	if _, err := join.Renew(t.Context(), c.url, removed, join.Request{Node: agent}); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("a removed node: %v, want ErrDenied", err)
	}
}

// Who says another region than the token learns so before the token is spent.
func TestRegionIsTheTokens(t *testing.T) {
	c := begin(t, time.Now())
	token, key := c.token(meta.RoleServer, "us"), c.key()
	record := meta.Node{ID: key.ID(), Role: meta.RoleServer, Region: "eu", Seal: key.Recipient()}
	if _, err := join.Enter(t.Context(), c.url, token, key, join.Request{Node: record}); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("a token for us admitted a server of eu: %v", err)
	}
	record.Region = "us"
	reply, err := join.Enter(t.Context(), c.url, token, key, join.Request{Node: record})
	if err != nil || reply.Node.Region != "us" || reply.Known {
		t.Errorf("the right region: %+v, %v", reply, err)
	}
	// One that has lost all but its key is told that it is not new.
	if reply, err = join.Enter(t.Context(), c.url, token, key, join.Request{Node: record}); err != nil || !reply.Known {
		t.Errorf("again: %+v, %v", reply, err)
	}
}

// A server that ends in the middle of its answer is asked again, as one that is away.
func TestAnAnswerThatBreaksOffIsNoAnswer(t *testing.T) {
	c := begin(t, time.Now())
	key := c.key()
	self := c.credential(key, meta.Node{ID: key.ID(), Role: meta.RoleServer, Region: "r1"}, time.Now())
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = w.Write([]byte("half"))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.TLS = trust.ServerTLS(self)
	server.StartTLS()
	defer server.Close()
	_, err := join.Enter(t.Context(), server.URL, c.token(meta.RoleAgent, "r1"), c.key(), join.Request{})
	if !errors.Is(err, meta.ErrUnavailable) || !strings.Contains(err.Error(), "read the answer") {
		t.Errorf("got %v", err)
	}
}
