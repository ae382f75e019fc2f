package fence

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/trust"
)

// member is a server with a gateway.
type member struct {
	*Fence
	gateway     string
	kept        []byte
	connections atomic.Int32 // that were made to it
}

// start opens the gateway of a server that is in an epoch and knows others.
func start(t *testing.T, a *trust.Authority, epoch uint64, peers func() []Peer) *member {
	t.Helper()
	key, err := trust.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.Issue(meta.Node{ID: key.ID(), Role: meta.RoleServer, Region: "eu"}, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	credential, err := trust.NewCredential(key, a.Root(), chain)
	if err != nil {
		t.Fatal(err)
	}
	var statement []byte
	if epoch > 0 {
		statement = a.SignEpoch(trust.Epoch{Number: epoch, First: key.ID(), At: meta.TimeOf(time.Now())})
	}
	m := &member{}
	m.Fence = New(Config{
		Self: key.ID(), Root: a.Root(), Peers: peers,
		Epoch:    func() (uint64, []byte) { return epoch, statement },
		Position: func() (uint64, uint64, bool) { return 7, 2, true },
		PeerOf: func(r *http.Request) (trust.Identity, bool) {
			id, ok, err := trust.PeerOf(a.Root(), r.TLS)
			return id, ok && err == nil
		},
	}, func(b []byte) error { m.kept = b; return nil })
	server := httptest.NewUnstartedServer(m.Fence)
	config := trust.ServerTLS(credential)
	config.NextProtos = []string{"http/1.1"}
	server.Listener = tls.NewListener(server.Listener, config) // StartTLS would show a certificate of its own.
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			m.connections.Add(1)
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	m.gateway = strings.TrimPrefix(server.URL, "http://")
	return m
}

func nobody() []Peer { return nil }

// TestTheLaterEpochWins: a server of an old epoch stops whether it asks or is told, and
// one of the later never does.
func TestTheLaterEpochWins(t *testing.T) {
	a, err := trust.NewAuthority("one", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	young := start(t, a, 2, nobody)
	asks := start(t, a, 1, func() []Peer { return []Peer{{ID: young.Self, Gateway: young.gateway}} })
	err = asks.Check(t.Context())
	if s, ok := errors.AsType[*SupersededError](err); !ok || s.Own != 1 || s.Epoch.Number != 2 || s.Epoch.First != young.Self {
		t.Errorf("asking: %v", err)
	}
	if err := asks.Heard(asks.kept); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("what was kept: %v", err)
	}
	// Two recoveries apart from one another: the one begun last holds, on both sides.
	second := start(t, a, 2, nobody)
	if err := second.Heard(asks.kept); err != nil {
		t.Errorf("the last one to begin: %v", err)
	}
	_, statement := second.Epoch()
	if err := young.Heard(statement); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("the first one to begin: %v", err)
	}
	if err := second.Heard(statement); err != nil {
		t.Errorf("its own epoch: %v", err)
	}

	told := start(t, a, 0, nobody)
	ended := make(chan error, 1)
	go func() { ended <- told.Run(t.Context()) }()
	teller := start(t, a, 2, func() []Peer { return []Peer{{ID: told.Self, Gateway: told.gateway}} })
	if err := teller.Check(t.Context()); err != nil {
		t.Errorf("the teller: %v", err)
	}
	if err := <-ended; !errors.Is(err, meta.ErrConflict) {
		t.Errorf("told: %v", err)
	}
	if err := young.Check(t.Context()); err != nil {
		t.Errorf("the later epoch: %v", err)
	}
}

// TestCallsStandAlone: no call goes over the connection of another, which may lead nowhere
// any more although nobody has closed it.
func TestCallsStandAlone(t *testing.T) {
	a, err := trust.NewAuthority("one", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	asked := start(t, a, 1, nobody)
	asks := start(t, a, 1, func() []Peer { return []Peer{{ID: asked.Self, Gateway: asked.gateway}} })
	for range 3 {
		if err := asks.Check(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if n := asked.connections.Load(); n != 3 {
		t.Errorf("3 calls over %d connections", n)
	}
}

// TestOnlyTheRootIsBelieved: statements of another cluster, even of its servers, stop
// nobody.
func TestOnlyTheRootIsBelieved(t *testing.T) {
	a, err := trust.NewAuthority("one", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	forger, err := trust.NewAuthority("one", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	m := start(t, a, 1, nobody)
	word := Word{Node: "x", Epoch: 9, Statement: forger.SignEpoch(trust.Epoch{Number: 9})}
	client := caller(a.Root())
	defer client.CloseIdleConnections()
	answer, err := Tell(t.Context(), client, m.gateway, word)
	if err != nil || answer.Epoch != 1 || answer.Node != m.Self {
		t.Errorf("it answers %+v: %v", answer, err)
	}
	if answer.Last != 0 || answer.Leads {
		t.Errorf("a stranger is told how far the log goes: %+v", answer)
	}
	if err := m.Check(t.Context()); err != nil {
		t.Errorf("a forged epoch: %v", err)
	}
	if m.kept != nil {
		t.Error("a forged statement was kept")
	}
	// A gateway that is not of the cluster is not even spoken to.
	other := start(t, forger, 9, nobody)
	if _, err := Tell(context.Background(), client, other.gateway, word); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("the gateway of another cluster: %v", err)
	}
}

// TestTheWordIsKeptFirst: the server stops once it is told of a later epoch, so what it
// has to remember is on disk by then.
func TestTheWordIsKeptFirst(t *testing.T) {
	a, err := trust.NewAuthority("one", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	m := start(t, a, 1, nobody)
	kept := 0
	m.keep = func([]byte) error {
		kept++
		if err := m.heard(); err != nil {
			t.Errorf("it is told before the word is kept: %v", err)
		}
		return nil
	}
	young := start(t, a, 2, nobody)
	_, statement := young.Epoch()
	m.hear(statement)
	m.hear(statement) // again, while the first is under way
	if err := m.heard(); !errors.Is(err, meta.ErrConflict) || kept != 1 {
		t.Errorf("kept %d times: %v", kept, err)
	}
}
